"""The Kafka client asks its selector for sockets that it has closed meanwhile (kafka-python-ng issue 177)."""

import contextlib
import selectors
import socket

from brewctl.delivery.broker.kafka_python.connection_settings import Selector


def test_a_socket_that_is_closed_is_neither_watched_nor_an_error() -> None:
    one, other = socket.socketpair()
    with contextlib.closing(other), Selector() as selector:
        selector.register(one, selectors.EVENT_READ)
        one.close()
        assert selector.unregister(one).events == selectors.EVENT_READ
        for _ in range(2):
            selector.unregister(one)
            selector.modify(one, selectors.EVENT_WRITE)
            selector.register(one, selectors.EVENT_READ)
        assert not selector.get_map()
        assert selector.select(0) == []
