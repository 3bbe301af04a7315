"""A proxy between real sockets, with each fault."""

import hashlib
import random
import resource
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import grpc
import psutil
import pytest

from brewctl.errors import BrewError
from brewctl.lab.network.proxy import Proxy
from brewctl.lifecycle import wait_until

PATIENCE_S = 30
NEVER_S = 3600.0
ROOM = 256 * 1024


class Upstream:
    """A server: `serve` has each connection, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None], port: int = 0) -> None:
        self.accepted: list[socket.socket] = []
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError, ValueError):  # closed
            while True:
                select.select([self._listener], [], [])  # accept() takes a descriptor before anyone connects
                end = self._listener.accept()[0]
                end.settimeout(PATIENCE_S)
                self.accepted.append(end)
                self._threads.append(threading.Thread(target=self._run, args=(end,)))
                self._threads[-1].start()

    def _run(self, end: socket.socket) -> None:
        with end, suppress(OSError):
            self._serve(end)

    def close(self) -> None:
        for end in (self._listener, *self.accepted):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


def echo(end: socket.socket) -> None:
    while piece := end.recv(65536):
        end.sendall(piece)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


Serve = Callable[[Callable[[socket.socket], None]], Upstream]
Connect = Callable[[Proxy], socket.socket]


@pytest.fixture
def serve(stack: ExitStack) -> Serve:
    def start(handle: Callable[[socket.socket], None]) -> Upstream:
        upstream = Upstream(handle)
        stack.callback(upstream.close)
        return upstream

    return start


@pytest.fixture
def echoing(serve: Serve, stack: ExitStack) -> Proxy:
    """A proxy in front of an echo server."""
    return stack.enter_context(Proxy("echo", serve(echo).address))


@pytest.fixture
def connect(stack: ExitStack) -> Connect:
    def connect(proxy: Proxy) -> socket.socket:
        return stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S))

    return connect


def read(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := end.recv(size - len(data))):
        data += piece
    return data


def read_to_end(end: socket.socket) -> bytes:
    data = bytearray()
    while piece := end.recv(65536):
        data += piece
    return bytes(data)


def answers(end: socket.socket, question: bytes = b"question") -> bool:
    end.sendall(question)
    return read(end, len(question)) == question


def is_reset(end: socket.socket) -> bool:
    try:
        end.recv(1)
    except ConnectionResetError:
        return True
    return False


def is_turned_away(proxy: Proxy) -> bool:
    """Where the client is slow, connecting itself fails already."""
    try:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as end:
            return is_reset(end)
    except ConnectionResetError:
        return True


def says_nothing(end: socket.socket) -> bool:
    end.setblocking(False)
    try:
        end.recv(1)
    except BlockingIOError:
        return True
    finally:
        end.settimeout(PATIENCE_S)
    return False


def exchange(end: socket.socket, seed: int, size: int) -> bool:
    """Send random pieces, read the echo at the same time; say whether it is the same to the byte."""
    chance = random.Random(seed)
    sent = hashlib.sha256()

    def send() -> None:
        left = size
        while left:
            piece = chance.randbytes(min(left, chance.choice([1, 10, 1000, 100_000])))
            left -= len(piece)
            sent.update(piece)
            end.sendall(piece)
        end.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = read_to_end(end)
    sender.join()
    return hashlib.sha256(got).digest() == sent.digest()


def plain(_proxy: Proxy) -> None:
    pass


def late(proxy: Proxy) -> None:
    proxy.latency(0.005, 0.005, chance=random.Random(1))


def slow(proxy: Proxy) -> None:
    proxy.bandwidth(2_000_000)


def late_and_slow(proxy: Proxy) -> None:
    late(proxy)
    slow(proxy)


@pytest.mark.parametrize(
    ("fault", "size"), [(plain, 3_000_000), (late, 200_000), (slow, 200_000), (late_and_slow, 200_000)]
)
def test_every_byte_arrives_in_order(
    echoing: Proxy, connect: Connect, fault: Callable[[Proxy], None], size: int
) -> None:
    fault(echoing)
    ends = [connect(echoing) for _ in range(4)]
    with ThreadPoolExecutor(len(ends)) as pool:
        assert all(pool.map(lambda seed: exchange(ends[seed], seed, size), range(len(ends))))
    wait_until("all closed", lambda: echoing.connections() == 0, timeout_s=PATIENCE_S, every_s=0.01)


def test_a_hundred_connections(echoing: Proxy, connect: Connect) -> None:
    ends = [connect(echoing) for _ in range(100)]
    for number, end in enumerate(ends):
        end.sendall(b"%03d" % number)
    assert [read(end, 3) for end in ends] == [b"%03d" % number for number in range(100)]
    assert echoing.connections() == 100


def test_the_client_may_end_first(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    def count(end: socket.socket) -> None:
        end.sendall(b"%d" % len(read_to_end(end)))

    end = connect(stack.enter_context(Proxy("count", serve(count).address)))
    end.sendall(b"x" * 1000)
    end.shutdown(socket.SHUT_WR)
    assert read_to_end(end) == b"1000"


def test_the_server_may_end_first(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    got = threading.Event()

    def last_words(end: socket.socket) -> None:
        end.sendall(b"no more")
        end.shutdown(socket.SHUT_WR)
        if read_to_end(end) == b"understood":
            got.set()

    end = connect(stack.enter_context(Proxy("last", serve(last_words).address)))
    assert read_to_end(end) == b"no more"
    end.sendall(b"understood")
    end.shutdown(socket.SHUT_WR)
    assert got.wait(PATIENCE_S)


def test_a_slow_reader_slows_the_sender(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    block = random.Random(1).randbytes(1024 * 1024)
    blocks = 64  # more than the kernel's buffers take

    def flood(end: socket.socket) -> None:
        for _ in range(blocks):
            end.sendall(block)

    proxy = stack.enter_context(Proxy("flood", serve(flood).address))
    end = connect(proxy)
    wait_until("a connection", lambda: proxy.connections() == 1, timeout_s=PATIENCE_S, every_s=0.01)
    (connection,) = proxy._relay.connections
    flow = connection.response

    def full() -> bool:
        return flow.size > 0 and not flow.watched & selectors.EVENT_READ

    wait_until("a stop", full, timeout_s=PATIENCE_S, every_s=0.001)
    assert flow.size <= ROOM
    assert not flow.ended
    assert hashlib.sha256(read_to_end(end)).digest() == hashlib.sha256(block * blocks).digest()


def test_upstream_that_is_not_there(stack: ExitStack, connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
    proxy = stack.enter_context(Proxy("absent", address))
    assert is_turned_away(proxy)
    upstream = Upstream(echo, address[1])
    stack.callback(upstream.close)
    assert answers(connect(proxy))


def test_a_reset_reaches_the_other_end(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    seen = threading.Event()

    def crash(end: socket.socket) -> None:
        if read(end, 5) == b"crash":
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif is_reset(end):
            seen.set()

    proxy = stack.enter_context(Proxy("crash", serve(crash).address))
    end = connect(proxy)
    end.sendall(b"crash")
    assert is_reset(end)
    end = connect(proxy)
    end.sendall(b"hello")
    wait_until("a connection", lambda: proxy.connections() == 1, timeout_s=PATIENCE_S, every_s=0.01)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
    assert seen.wait(PATIENCE_S)


def test_latency_is_felt_both_ways(echoing: Proxy, connect: Connect) -> None:
    end = connect(echoing)
    assert answers(end)
    echoing.latency(0.1, chance=random.Random(1))
    begin = time.monotonic()
    assert answers(end)
    assert time.monotonic() - begin >= 0.2


def test_jitter_changes_no_order(echoing: Proxy, connect: Connect) -> None:
    end = connect(echoing)
    echoing.latency(0.002, 0.002, chance=random.Random(1))
    lines = b"".join(b"%03d\n" % number for number in range(200))
    for at in range(0, len(lines), 4):
        end.sendall(lines[at : at + 4])
    assert read(end, len(lines)) == lines


def test_what_is_late_arrives_when_healed(echoing: Proxy, connect: Connect) -> None:
    end = connect(echoing)
    assert answers(end)
    echoing.latency(NEVER_S, chance=random.Random(1))
    end.sendall(b"late")
    end.shutdown(socket.SHUT_WR)
    wait_for_bytes_under_way(echoing)
    assert says_nothing(end)
    echoing.heal()
    assert read_to_end(end) == b"late"


def test_a_new_latency_does_not_wait_for_the_old(echoing: Proxy, connect: Connect) -> None:
    end = connect(echoing)
    echoing.latency(NEVER_S, chance=random.Random(1))
    end.sendall(b"late")
    wait_for_bytes_under_way(echoing)
    echoing.heal()
    assert read(end, 4) == b"late"
    echoing.latency(0.01, chance=random.Random(1))
    assert answers(end)


def wait_for_bytes_under_way(proxy: Proxy) -> None:
    def under_way() -> bool:
        return any(flow.pieces for connection in list(proxy._relay.connections) for flow in connection.flows)

    wait_until("bytes under way", under_way, timeout_s=PATIENCE_S, every_s=0.01)


def test_a_slow_line_is_shared(echoing: Proxy, connect: Connect) -> None:
    ends = [connect(echoing) for _ in range(2)]
    echoing.bandwidth(200_000)
    begin = time.monotonic()
    with ThreadPoolExecutor(len(ends)) as pool:
        assert all(pool.map(lambda seed: exchange(ends[seed], seed, 20_000), range(len(ends))))
    assert time.monotonic() - begin >= 0.2


def test_a_black_hole_and_what_becomes_of_whom(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    heard = bytearray()

    def listen(end: socket.socket) -> None:
        while piece := end.recv(65536):
            heard.extend(piece)
            end.sendall(piece)

    proxy = stack.enter_context(Proxy("hole", serve(listen).address))
    idle, talks, leaves = (connect(proxy) for _ in range(3))
    for end in (idle, talks, leaves):
        assert answers(end, b"before")
    proxy.black_hole()
    new, new_and_talks, new_and_leaves = (connect(proxy) for _ in range(3))
    talks.sendall(b"lost")
    new_and_talks.sendall(b"lost")
    leaves.shutdown(socket.SHUT_WR)
    new_and_leaves.shutdown(socket.SHUT_WR)
    assert is_reset(new_and_leaves)
    wait_until("losses", lambda: losses(proxy) == 3, timeout_s=PATIENCE_S, every_s=0.01)
    assert proxy.connections() == 5
    assert all(says_nothing(end) for end in (idle, talks, leaves, new, new_and_talks))
    proxy.heal()
    assert all(is_reset(end) for end in (talks, leaves, new_and_talks))
    assert answers(idle, b"after")
    assert answers(new, b"after")
    assert heard == b"beforebeforebeforeafterafter"


def losses(proxy: Proxy) -> int:
    return sum(connection.lost for connection in list(proxy._relay.connections))


def test_a_black_hole_swallows_what_is_under_way(echoing: Proxy, connect: Connect) -> None:
    end = connect(echoing)
    assert answers(end)
    echoing.latency(NEVER_S, chance=random.Random(1))
    end.sendall(b"lost")
    wait_for_bytes_under_way(echoing)
    echoing.black_hole()
    echoing.heal()
    assert is_reset(end)
    assert answers(connect(echoing))


def test_a_black_hole_swallows_answers(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    speak = threading.Event()

    def answer_later(end: socket.socket) -> None:
        read(end, 8)
        speak.wait(PATIENCE_S)
        end.sendall(b"answer")
        read_to_end(end)

    upstream = serve(answer_later)
    proxy = stack.enter_context(Proxy("hole", upstream.address))
    end = connect(proxy)
    end.sendall(b"question")
    wait_until("a question", lambda: len(upstream.accepted) == 1, timeout_s=PATIENCE_S, every_s=0.01)
    proxy.black_hole()
    speak.set()
    wait_until("a loss", lambda: losses(proxy) == 1, timeout_s=PATIENCE_S, every_s=0.01)
    assert says_nothing(end)
    proxy.heal()
    assert is_reset(end)


def test_a_connection_that_was_being_made_survives_a_black_hole(echoing: Proxy, connect: Connect) -> None:
    for _ in range(20):
        end = connect(echoing)
        echoing.black_hole()
        echoing.heal()
        assert answers(end)


def test_reset_concerns_who_is_connected(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    resets = threading.Semaphore(0)

    def echo_until_reset(end: socket.socket) -> None:
        try:
            echo(end)
        except ConnectionResetError:
            resets.release()

    proxy = stack.enter_context(Proxy("reset", serve(echo_until_reset).address))
    old = connect(proxy)
    assert answers(old)
    just_now = connect(proxy)
    proxy.reset()
    assert proxy.connections() == 0
    assert is_reset(old)
    assert is_reset(just_now)
    assert resets.acquire(timeout=PATIENCE_S)
    assert answers(connect(proxy))


def test_refuse_concerns_who_comes(echoing: Proxy, connect: Connect) -> None:
    old = connect(echoing)
    assert answers(old)
    echoing.refuse()
    assert is_turned_away(echoing)
    assert answers(old)
    assert echoing.connections() == 1
    echoing.heal()
    assert answers(connect(echoing))


def test_of_a_cut_answer_a_part_arrives(serve: Serve, stack: ExitStack, connect: Connect) -> None:
    asked: list[bytes] = []
    reset = threading.Event()

    def answer(end: socket.socket) -> None:
        end.sendall(b"welcome ")
        asked.append(read(end, 8))
        end.sendall(b"answer")
        if is_reset(end):
            reset.set()

    proxy = stack.enter_context(Proxy("cut", serve(answer).address))
    proxy.cut_response(3)
    end = connect(proxy)
    assert read(end, 8) == b"welcome "
    end.sendall(b"question")
    assert read(end, 3) == b"ans"
    assert is_reset(end)
    assert reset.wait(PATIENCE_S)
    assert asked == [b"question"]
    assert proxy.cuts == 1


def test_a_cut_answer_comes_as_late_as_others(echoing: Proxy, connect: Connect) -> None:
    end = connect(echoing)
    assert answers(end)
    echoing.cut_response(4)
    echoing.latency(0.05, chance=random.Random(1))
    begin = time.monotonic()
    end.sendall(b"question")
    assert read(end, 4) == b"ques"
    assert is_reset(end)
    assert time.monotonic() - begin >= 0.1


def outcomes(proxy: Proxy, connect: Connect, count: int) -> str:
    """Ask, over a connection that is made anew after a reset; `+` is an answer."""
    end, seen = connect(proxy), ""
    for _ in range(count):
        try:
            seen += "+" if answers(end) else "?"
        except ConnectionResetError:
            seen += "-"
            end = connect(proxy)
    return seen


def test_every_third_answer_is_cut(echoing: Proxy, connect: Connect) -> None:
    echoing.cut_response(every=3)
    assert outcomes(echoing, connect, 7) == "++-++-+"
    assert echoing.cuts == 2
    echoing.cut_response(every=2, times=1)
    assert outcomes(echoing, connect, 5) == "+-+++"
    assert echoing.cuts == 3
    echoing.cut_response(times=2)
    assert outcomes(echoing, connect, 4) == "--++"
    echoing.cut_response()
    echoing.heal()
    assert outcomes(echoing, connect, 2) == "++"
    assert echoing.cuts == 5


def test_a_grpc_call_whose_result_is_cut_has_been_carried_out(stack: ExitStack) -> None:
    calls: list[bytes] = []

    def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
        calls.append(request)
        if request == b"bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")
        return b"result of " + request

    handlers = {"Do": grpc.unary_unary_rpc_method_handler(handle)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stack.callback(lambda: server.stop(None).wait())
    proxy = stack.enter_context(Proxy("grpc", ("127.0.0.1", port)))
    proxy.cut_response(every=2)

    def call(requests: list[bytes]) -> list[bytes | grpc.StatusCode]:
        """Over one connection: after its end a client may lose a call before it notices."""
        outcomes: list[bytes | grpc.StatusCode] = []
        with grpc.insecure_channel(proxy.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            do = channel.unary_unary("/Test/Do")
            for request in requests:
                try:
                    outcomes.append(do(request, timeout=PATIENCE_S))
                except grpc.RpcError as error:
                    outcomes.append(error.code())
        return outcomes

    bad, cut = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE
    assert call([b"1", b"bad", b"2"]) == [b"result of 1", bad, cut]  # an error is no result
    assert call([b"3", b"4"]) == [b"result of 3", cut]
    assert calls == [b"1", b"bad", b"2", b"3", b"4"]
    assert proxy.cuts == 2


def test_close_leaves_nothing(serve: Serve, connect: Connect) -> None:
    upstream = serve(echo)
    descriptors = psutil.Process().num_fds()
    many = 10
    for _ in range(many):
        proxy = Proxy("closing", upstream.address)
        ends = [connect(proxy) for _ in range(5)]
        assert all(answers(end) for end in ends)
        proxy.latency(NEVER_S, chance=random.Random(1))
        ends[0].sendall(b"never")
        wait_for_bytes_under_way(proxy)
        proxy.close()
        proxy.close()
        assert all(is_reset(end) for end in ends)
        for end in ends:
            end.close()
        assert proxy.connections() == 0
    assert "proxy-closing" not in {thread.name for thread in threading.enumerate()}
    # Other tests' servers may be ending: less than one a proxy is not ours.
    wait_until("no leak", lambda: psutil.Process().num_fds() < descriptors + many, timeout_s=PATIENCE_S, every_s=0.01)
    with pytest.raises(BrewError, match="proxy closing is closed"):
        proxy.heal()
    with Proxy("next", upstream.address, port=proxy.port) as after:
        assert after.address == f"127.0.0.1:{proxy.port}"


def test_a_busy_port_is_named(echoing: Proxy) -> None:
    with pytest.raises(BrewError, match=f"proxy other: port {echoing.port} can't be listened on"):
        Proxy("other", ("127.0.0.1", 1), port=echoing.port)


def test_a_host_that_is_not_known() -> None:
    with pytest.raises(BrewError, match=r"proxy other: host nowhere\.invalid is not known"):
        Proxy("other", ("nowhere.invalid", 1))


def test_what_makes_no_sense_is_told_the_caller(echoing: Proxy, connect: Connect) -> None:
    with pytest.raises(ValueError, match="bandwidth"):
        echoing.bandwidth(0)
    assert answers(connect(echoing))


def test_many_hands_at_the_controls(echoing: Proxy) -> None:
    """Threads put faults on and take them off while others talk: no answer is wrong, and all recover."""
    over = threading.Event()
    answered = [0] * 4

    def meddle(seed: int) -> None:
        chance = random.Random(seed)
        faults: list[Callable[[], None]] = [
            echoing.heal,
            echoing.reset,
            echoing.refuse,
            echoing.black_hole,
            lambda: echoing.latency(0.001, 0.001, chance=chance),
            lambda: echoing.bandwidth(100_000),
            lambda: echoing.cut_response(2, every=2),
        ]
        for _ in range(150):
            chance.choice(faults)()

    def talk(number: int) -> None:
        while not over.is_set():
            with (
                suppress(ConnectionError, TimeoutError),
                socket.create_connection(("127.0.0.1", echoing.port), timeout=0.2) as end,
            ):
                while not over.is_set():
                    question = b"%04d" % answered[number]
                    end.sendall(question)
                    assert read(end, 4) == question
                    answered[number] += 1

    with ThreadPoolExecutor(8) as pool:
        talking = [pool.submit(talk, number) for number in range(4)]
        try:
            for meddling in [pool.submit(meddle, seed) for seed in range(4)]:
                meddling.result()
            echoing.heal()
            before = list(answered)
            wait_until("answers for all", lambda: all(map(int.__lt__, before, answered)), timeout_s=PATIENCE_S)
        finally:
            over.set()
        for talk_ended in talking:
            talk_ended.result()


def test_what_goes_wrong_ends_one_connection(echoing: Proxy, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    well, ill = connect(echoing), connect(echoing)
    assert answers(well)
    assert answers(ill)
    send = echoing._relay._send

    def fail_once(*_: object) -> None:
        monkeypatch.setattr(echoing._relay, "_send", send)
        raise ZeroDivisionError

    monkeypatch.setattr(echoing._relay, "_send", fail_once)
    ill.sendall(b"x")
    assert is_reset(ill)
    assert answers(well)
    assert answers(connect(echoing))


def comes_to_rest(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Say whether the thread wakes up next to never in some tenth of a second."""
    turns = 0
    turn = proxy._relay.turn

    def counted() -> None:
        nonlocal turns
        turns += 1
        turn()

    def rests() -> bool:
        nonlocal turns
        turns = 0
        threading.Event().wait(0.1)
        return turns <= 3

    with monkeypatch.context() as patch:
        patch.setattr(proxy._relay, "turn", counted)
        wait_until("rest", rests, timeout_s=PATIENCE_S)
    return True


def test_it_sleeps_while_nothing_happens(
    serve: Serve, stack: ExitStack, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def read_nothing(_end: socket.socket) -> None:
        over.wait(PATIENCE_S)

    upstream = serve(read_nothing)
    stack.callback(over.set)
    proxy = stack.enter_context(Proxy("idle", upstream.address))
    idle, half_closed, stuck = (connect(proxy) for _ in range(3))
    half_closed.shutdown(socket.SHUT_WR)
    stuck.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            stuck.send(bytes(65536))
    wait_until("all accepted", lambda: proxy.connections() == 3, timeout_s=PATIENCE_S, every_s=0.01)
    assert comes_to_rest(proxy, monkeypatch)
    proxy.latency(NEVER_S, chance=random.Random(1))
    idle.sendall(b"late")
    wait_for_bytes_under_way(proxy)
    assert comes_to_rest(proxy, monkeypatch)
    proxy.black_hole()
    idle.shutdown(socket.SHUT_WR)
    assert comes_to_rest(proxy, monkeypatch)


def test_no_descriptor_is_free(echoing: Proxy, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [stack.enter_context(socket.socket()) for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    for end in ends:
        end.settimeout(PATIENCE_S)
        end.connect(("127.0.0.1", echoing.port))
    assert comes_to_rest(echoing, monkeypatch)
    assert echoing.connections() == 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(answers(end) for end in ends)
