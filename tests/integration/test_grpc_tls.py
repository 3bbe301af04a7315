"""An order-service with TLS, as a process: its files are replaced while calls flow, and no call fails for that."""

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from brewctl.client import OrderClient
from brewctl.errors import BrewError, UnreachableError
from brewctl.lab.play.nodes import Node
from brewctl.lifecycle import wait_until
from brewctl.proto import orders_pb2_grpc
from brewctl.security import PLAINTEXT, OrderSecurity
from tests.certificates import Authority, Files, put, variables
from tests.conftest import Rig, begin
from tests.integration.grpc_tools import answer, order

CHANNELS = 8


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "one")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "other")


def serve(rig: Rig, files: Files, *options: str) -> Node:
    return rig.start("order-1", "serve", "order", "--port", "0", "--no-publisher", *files.options, *options)


def replace(files: Files, new: Files) -> None:
    """One file after the other, as two renames are."""
    put(files.key, new.key.read_bytes(), mode=0o600)
    put(files.certificate, new.certificate.read_bytes())


def serial_at(address: str, security: OrderSecurity) -> int:
    """The certificate that a new connection is shown, whether it is trusted or not."""
    host, port = address.split(":")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if security.certificate:
        context.load_cert_chain(security.certificate, security.key)
    with (
        contextlib.closing(ssl.create_connection((host, int(port)), timeout=30)) as plain,  # type: ignore[attr-defined]
        context.wrap_socket(plain) as tls,
    ):
        shown = tls.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def logged(node: Node, event: str) -> list[str]:
    return [line for line in node.log.read_text().splitlines() if f"event={event} " in f"{line} "]


def wait_logged(node: Node, event: str, times: int = 1) -> list[str]:
    wait_until(event, lambda: len(logged(node, event)) >= times, timeout_s=60)
    return logged(node, event)


class Callers:
    """Clients that create orders one after the other, each on a channel of its own, and some that connect each time."""

    def __init__(self, address: str, security: OrderSecurity) -> None:
        self._address = address
        self._security = security
        self._stop = threading.Event()
        self.errors: list[str] = []
        self.made = [0] * CHANNELS
        self.connected = 0

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        with ThreadPoolExecutor(CHANNELS + 1) as threads:
            for number in range(CHANNELS):
                threads.submit(self._keep, number)
            threads.submit(self._reconnect)
            try:
                yield
            finally:
                self._stop.set()

    def wait_for_more(self) -> None:
        """Wait until each has made orders that it began from now on."""
        before, connected = list(self.made), self.connected

        def more() -> bool:
            counted = zip(self.made, before, strict=True)
            return all(now >= then + 2 for now, then in counted) and self.connected >= connected + 2

        wait_until("orders of every caller", lambda: bool(self.errors) or more(), timeout_s=60)
        assert not self.errors

    def _keep(self, number: int) -> None:
        creds = self._credentials()
        with grpc.secure_channel(self._address, creds, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = orders_pb2_grpc.OrderServiceStub(channel)  # type: ignore[no-untyped-call]
            while not self._stop.is_set():
                told = answer(lambda: stub.Create(order(), timeout=30))
                if told.code is not grpc.StatusCode.OK:
                    self.errors.append(told.details)
                    return
                self.made[number] += 1

    def _reconnect(self) -> None:
        while not self._stop.is_set():
            try:
                with OrderClient([self._address], security=self._security, on_retry=self.errors.append) as client:
                    client.create("c1", amount_cents=450, currency="EUR")
            except BrewError as error:
                self.errors.append(str(error))
                return
            self.connected += 1

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(Path(self._security.ca).read_bytes())


def test_a_certificate_is_replaced_while_calls_flow(rig: Rig, authority: Authority) -> None:
    files = authority.issue()
    node = serve(rig, files)
    callers = Callers(node.address, authority.trusted())
    seen = {serial_at(node.address, authority.trusted())}
    with callers.calling():
        callers.wait_for_more()
        for _ in range(3):
            new = authority.issue("new")
            replace(files, new)
            assert serial_at(node.address, authority.trusted()) == new.serial
            seen.add(new.serial)
            callers.wait_for_more()
    assert not callers.errors
    assert len(seen) == 4
    assert len(wait_logged(node, "certificate_replaced", 3)) == 3
    assert not logged(node, "certificate_unusable")


def test_files_that_do_not_fit_change_nothing_and_are_named_once(rig: Rig, authority: Authority) -> None:
    files = authority.issue()
    served, key = files.serial, files.key.read_bytes()
    node = serve(rig, files)
    callers = Callers(node.address, authority.trusted())
    new = authority.issue("new")
    with callers.calling():
        put(files.certificate, new.certificate.read_bytes()[:-40])
        wait_logged(node, "certificate_unusable", 1)
        put(files.certificate, new.certificate.read_bytes())
        wait_logged(node, "certificate_unusable", 2)
        files.key.unlink()
        wait_logged(node, "certificate_unusable", 3)
        callers.wait_for_more()
        assert serial_at(node.address, authority.trusted()) == served
        put(files.key, new.key.read_bytes(), mode=0o600)
        wait_until("the new one", lambda: serial_at(node.address, authority.trusted()) == new.serial, timeout_s=60)
        callers.wait_for_more()
    first, second, third = logged(node, "certificate_unusable")
    assert "not written to its end" in first
    assert f"--tls-key: {files.key} is not the key of the certificate in {files.certificate}" in second
    assert "no such file or directory" in third
    assert key not in node.log.read_bytes()


def test_a_certificate_that_expires_while_it_is_used(rig: Rig, authority: Authority) -> None:
    files = authority.issue()
    node = serve(rig, files)
    stub: Any = None
    with contextlib.ExitStack() as connections:

        def takes_an_order() -> bool:
            return answer(lambda: stub.Create(order(), timeout=30)).code is grpc.StatusCode.OK

        def connected() -> bool:
            """Connect while a certificate is good that is not so for long: a slow machine may be too late for it."""
            nonlocal stub
            replace(files, authority.issue("new", left=timedelta(seconds=3)))
            trusting = grpc.ssl_channel_credentials(authority.ca.read_bytes())
            alone = [("grpc.use_local_subchannel_pool", 1)]
            channel = connections.enter_context(grpc.secure_channel(node.address, trusting, alone))
            stub = orders_pb2_grpc.OrderServiceStub(channel)  # type: ignore[no-untyped-call]
            return takes_an_order()

        wait_until("a connection", connected, timeout_s=60)
        wait_until("its end", lambda: _refused(node.address, authority.trusted(), "has expired"), timeout_s=60)
        wait_logged(node, "certificate_expired")
        # Who is connected goes on.
        assert takes_an_order()
        with OrderClient([node.address], security=authority.trusted(), timeout_s=60) as client:
            with pytest.raises(UnreachableError) as refused:
                client.create("c1", amount_cents=450, currency="EUR")
            assert "shows a certificate that has expired" in refused.value.message
            replace(files, authority.issue("new"))
            assert client.create("c1", amount_cents=450, currency="EUR")
        assert takes_an_order()


def _refused(address: str, security: OrderSecurity, why: str) -> bool:
    try:
        with OrderClient([address], security=security) as client:
            client.create("c1", amount_cents=450, currency="EUR")
    except UnreachableError as error:
        return why in error.message
    return False


def test_one_that_has_expired_at_the_start_is_served_and_said(rig: Rig, authority: Authority) -> None:
    node = serve(rig, authority.issue(age=timedelta(3), left=timedelta(-1)))
    (line,) = wait_logged(node, "certificate_expired")
    assert "level=warning" in line
    assert "no restart is needed" in line


def test_one_that_expires_soon_is_said(rig: Rig, authority: Authority) -> None:
    node = serve(rig, authority.issue(left=timedelta(hours=1)))
    (line,) = wait_logged(node, "certificate_expires")
    assert 'within="1 h"' in line
    security = authority.trusted()
    for verdict, left in (("warn", timedelta(hours=1)), ("ok", timedelta(30))):
        new = authority.issue("server", left=left)
        wait_until("it", lambda new=new: serial_at(node.address, security) == new.serial, timeout_s=60)  # type: ignore[misc]
        with begin("doctor", "--addr", node.address, "--json", env={**rig.env, **variables(security)}) as process:
            told, _ = process.communicate(timeout=120)
        found = [each for each in json.loads(told)["findings"] if "speaks TLS" in each["found"]]
        assert [each["verdict"] for each in found] == [verdict]
        assert bool(found[0]["mend"]) is (verdict == "warn")


@pytest.mark.parametrize("options", [("--insecure",), ()])
def test_other_machines_are_let_in(rig: Rig, authority: Authority, options: tuple[str, ...]) -> None:
    more = options or authority.issue().options
    node = rig.start("order-1", "serve", "order", "--host", "0.0.0.0", "--port", "0", "--no-publisher", *more)
    address = f"127.0.0.1:{node.address.rpartition(':')[2]}"
    with OrderClient([address], security=PLAINTEXT if options else authority.trusted()) as client:
        assert client.create("c1", amount_cents=450, currency="EUR")


def test_a_key_that_all_may_read_is_said(rig: Rig, authority: Authority) -> None:
    files = authority.issue()
    files.key.chmod(0o644)
    (line,) = wait_logged(serve(rig, files), "key_readable_by_all")
    assert f"chmod 600 {files.key}" in line


def test_the_authority_of_the_clients_is_replaced(rig: Rig, authority: Authority, other: Authority) -> None:
    known = authority.folder / "clients.pem"
    put(known, authority.ca.read_bytes())
    node = serve(rig, authority.issue(), "--tls-client-ca", str(known))
    ours, theirs = authority.trusted(authority.issue("client")), authority.trusted(other.issue("client"))

    def refused(security: OrderSecurity) -> bool:
        return _refused(node.address, security, "certificate")

    assert (refused(ours), refused(theirs), refused(authority.trusted())) == (False, True, True)
    put(known, other.ca.read_bytes())
    assert (refused(ours), refused(theirs), refused(authority.trusted())) == (True, False, True)


def test_workers_serve_it_too(rig: Rig, authority: Authority) -> None:
    files = authority.issue()
    node = serve(rig, files, "--workers", "2")
    callers = Callers(node.address, authority.trusted())
    with callers.calling():
        callers.wait_for_more()
        new = authority.issue("new")
        replace(files, new)
        wait_logged(node, "certificate_replaced", 2)
        assert {serial_at(node.address, authority.trusted()) for _ in range(CHANNELS)} == {new.serial}
        callers.wait_for_more()
    assert not callers.errors


def test_a_load_goes_on_while_the_clients_files_are_replaced(rig: Rig, authority: Authority, other: Authority) -> None:
    """Both ends change their authority: the server first takes both, then the clients move, then the old one goes."""
    mine = authority.issue("client")
    known = authority.folder / "clients.pem"
    put(known, authority.ca.read_bytes() + other.ca.read_bytes())
    node = serve(rig, authority.issue(), "--tls-client-ca", str(known))
    with begin(
        *("load", "--orders", "600", "--rate", "100", "--warmup", "0", "--addr", node.address, "--json"),
        env={**rig.env, **variables(authority.trusted(mine))},
    ) as load:
        wait_until("the first orders", lambda: rig.counts().orders > 50, timeout_s=60)
        replace(mine, other.issue("client"))
        after = rig.counts().orders
        wait_until("more orders", lambda: rig.counts().orders > after + 150, timeout_s=60)
        put(known, other.ca.read_bytes())
        told, errors = load.communicate(timeout=120)
    assert load.returncode == 0, (told, errors)
    assert rig.counts().orders == 600
