"""Each fault of a proxy between real sockets."""

import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc

from brewctl.lab.network.proxy import Proxy
from tests.unit import proxy_tools
from tests.unit.proxy_tools import (
    PATIENCE_S,
    Connect,
    Serve,
    answers,
    echo,
    exchange,
    is_reset,
    is_turned_away,
    never,
    read,
    read_to_end,
    says_nothing,
    soon,
)

stack, serve, echoing, connect = proxy_tools.stack, proxy_tools.serve, proxy_tools.echoing, proxy_tools.connect


def test_latency_is_felt_both_ways(echoing: Proxy, connect: Connect) -> None:
    end = connect(echoing)
    assert answers(end)
    echoing.latency(0.1, chance=random.Random(1))
    begin = time.monotonic()
    assert answers(end)
    assert time.monotonic() - begin >= 0.2


def test_what_is_late_arrives_when_healed(echoing: Proxy, connect: Connect) -> None:
    end = connect(echoing)
    assert answers(end)
    never(echoing)
    end.sendall(b"late")
    end.shutdown(socket.SHUT_WR)
    soon("bytes under way", lambda: echoing.held_bytes() == 4)
    assert says_nothing(end)
    echoing.heal()
    assert read_to_end(end) == b"late"


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
    soon("losses", lambda: proxy.losses() == 3)
    assert proxy.connections() == 5
    assert all(says_nothing(end) for end in (idle, talks, leaves, new, new_and_talks))
    proxy.heal()
    assert all(is_reset(end) for end in (talks, leaves, new_and_talks))
    assert answers(idle, b"after")
    assert answers(new, b"after")
    assert heard == b"beforebeforebeforeafterafter"


def test_a_black_hole_swallows_answers_that_are_under_way(echoing: Proxy, connect: Connect) -> None:
    end = connect(echoing)
    assert answers(end)
    never(echoing)
    end.sendall(b"lost")
    soon("bytes under way", lambda: echoing.held_bytes() == 4)
    echoing.black_hole()
    assert (echoing.held_bytes(), echoing.losses()) == (0, 1)
    echoing.heal()
    assert is_reset(end)
    assert answers(connect(echoing))


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
