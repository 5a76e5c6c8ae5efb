"""Webhooks against a real HTTP server: retries, redirects, secrets, a receiver that hangs or is away. Nothing is lost in silence."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lowbit.errors import UsageError
from lowbit.monitoring.alerts import Alert, Alerts, Webhook


class Receiver:
    """Answers with the given codes in turn, the last one for ever."""

    def __init__(self, codes: list[int], hold: threading.Event | None = None) -> None:
        self.codes, self.hold, self.bodies, self.paths = codes, hold, [], []  # type: ignore[var-annotated]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.paths.append((self.command, self.path))
                outer.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                if outer.hold is not None:
                    outer.hold.wait(10)
                code = outer.codes.pop(0) if len(outer.codes) > 1 else outer.codes[0]
                self.send_response(code)
                if code == 302:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook?token=secret"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receivers() -> Iterator[list[Receiver]]:
    made: list[Receiver] = []
    yield made
    for receiver in made:
        receiver.close()


def receiver(made: list[Receiver], *codes: int, hold: threading.Event | None = None) -> Receiver:
    made.append(Receiver(list(codes), hold))
    return made[-1]


def alert(n: int = 0) -> Alert:
    return Alert("review opened", "ticket", "Confidence moved.", 12.0, {"model": "demo", "n": n})


def test_an_alert_comes_as_json(receivers: list[Receiver]) -> None:
    one = receiver(receivers, 200)
    hook = Webhook(one.url)
    assert hook.send(alert(7))
    hook.close()
    (body,) = one.bodies
    assert {**body, "lowbit": "x"} == {
        "event": "review opened",
        "severity": "ticket",
        "text": "Confidence moved.",
        "at": 12.0,
        "model": "demo",
        "n": 7,
        "lowbit": "x",
    }
    assert hook.counts == {"sent": 1, "failed": 0, "dropped": 0}
    assert one.paths == [("POST", "/hook?token=secret")]


def test_it_tries_again_and_keeps_the_order(receivers: list[Receiver]) -> None:
    one = receiver(receivers, 503, 429, 204)
    hook = Webhook(one.url, pauses_s=(0.01, 0.01))
    for n in range(3):
        hook.send(alert(n))
    deadline = time.monotonic() + 20
    while hook.counts["sent"] < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    hook.close()
    assert hook.counts["sent"] == 3
    assert [body["n"] for body in one.bodies] == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(("code", "attempts"), [(404, 1), (302, 1), (500, 3)])
def test_it_gives_up_counted_and_logged(receivers: list[Receiver], caplog: pytest.LogCaptureFixture, code: int, attempts: int) -> None:
    """A redirect is not followed: what was given is what is posted to. The address is in no log: it may hold a secret."""
    one = receiver(receivers, code)
    hook = Webhook(one.url, pauses_s=(0.01, 0.01))
    hook.send(alert())
    hook.close()
    assert (hook.counts["failed"], len(one.bodies)) == (1, attempts)
    (record,) = (record for record in caplog.records if record.name == "lowbit.monitoring")
    assert record.message == "an alert could not be sent"
    assert record.facts["why"] == f"HTTP {code}"  # type: ignore[attr-defined]
    assert "secret" not in str(record.__dict__)


def test_nobody_is_there(receivers: list[Receiver]) -> None:
    one = receiver(receivers, 200)
    url = one.url
    one.close()
    receivers.clear()
    hook = Webhook(url, pauses_s=(0.01,))
    hook.send(alert())
    hook.close()
    assert hook.counts == {"sent": 0, "failed": 1, "dropped": 0}


def test_a_receiver_that_hangs_keeps_nobody_waiting(receivers: list[Receiver], caplog: pytest.LogCaptureFixture) -> None:
    """What finds no room is counted; what waits when the server ends is counted, too: the sum is what was given."""
    free = threading.Event()
    hook = Webhook(receiver(receivers, 200, hold=free).url, waiting=4)
    start = time.perf_counter()
    taken = [hook.send(alert(n)) for n in range(20)]
    assert time.perf_counter() - start < 2, "twenty would take minutes if it waited"
    assert 4 <= sum(taken) <= 5
    assert hook.counts["dropped"] == 20 - sum(taken)
    hook.close(wait_s=0.2)
    free.set()
    assert hook.counts["failed"] >= sum(taken) - 2
    assert "an alert found no room" in caplog.messages


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example.com",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "http://",
        "http://[::1",
        "http://a:port/",
        "http://me:secret@a/",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="http or https"):
        Webhook(url)


def test_everybody_is_told(receivers: list[Receiver], caplog: pytest.LogCaptureFixture) -> None:
    def fails(_: Alert) -> None:
        raise RuntimeError

    told: list[Alert] = []
    alerts = Alerts(Webhook(receiver(receivers, 200).url), (fails, told.append))
    with caplog.at_level(logging.INFO):
        alerts.send(alert())
    alerts.close()
    assert told == [alert()]
    assert alerts.counts() == {("log", "sent"): 1, ("webhook", "sent"): 1, ("webhook", "failed"): 0, ("webhook", "dropped"): 0}
    assert caplog.messages == ["review opened", "an alert was not taken"]
    quiet = Alerts()
    quiet.send(alert())
    assert quiet.counts() == {("log", "sent"): 1}
