"""New connections go where they are sent; none that is open is lost."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

import pytest

from lowbit.serving.web.handover import give_away, turn_away

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")


@contextlib.contextmanager
def listener(port: int = 0) -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("127.0.0.1", port))
        made.listen(256)
        made.setblocking(False)
        yield made


def call(port: int, times: int = 1, timeout: float = 5) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port), timeout) for _ in range(times)]


def accepted(listening: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listening.accept()[0].close()
            count += 1
    return count


def test_the_successor_gets_all_and_keeps_them_when_the_first_has_gone() -> None:
    with listener() as second_holder, contextlib.ExitStack() as clients:
        port = second_holder.getsockname()[1]
        first = second_holder
        with listener(port) as second:
            for made in call(port, 60):
                clients.enter_context(made)
            shares = accepted(first), accepted(second)
            assert sum(shares) == 60
            assert min(shares) > 5
            assert give_away(first)
            for made in call(port, 60):
                clients.enter_context(made)
            assert (accepted(first), accepted(second)) == (0, 60)
            first.close()
            for made in call(port, 60):
                clients.enter_context(made)
            assert accepted(second) == 60


def test_without_a_successor_nothing_changes() -> None:
    with listener() as alone, contextlib.ExitStack() as clients:
        assert give_away(alone)
        for made in call(alone.getsockname()[1], 20):
            clients.enter_context(made)
        assert accepted(alone) == 20


def test_who_is_turned_away_is_refused_later_and_who_is_in_stays() -> None:
    with listener() as leaving, contextlib.ExitStack() as clients:
        port = leaving.getsockname()[1]
        for made in call(port, 5):
            clients.enter_context(made)
        assert turn_away(leaving)
        with pytest.raises(TimeoutError):
            call(port, timeout=0.2)
        assert accepted(leaving) == 5
        leaving.close()
        with pytest.raises(ConnectionRefusedError):
            call(port)


def test_a_system_that_cannot_says_so() -> None:
    with socket.socket(socket.AF_UNIX) as other:
        assert not give_away(other)
