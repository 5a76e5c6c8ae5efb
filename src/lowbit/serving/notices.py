"""A cloud's notice that this machine is about to be taken away, from its metadata service.

AWS     IMDSv2: a token, then `spot/instance-action`: 404 until two minutes before the end; polled every five seconds
GCP     `instance/preempted` with `wait_for_change`: a request that is answered when it changes, about 30 s before the end
Azure   Scheduled Events: an event of type Preempt, at least 30 s before; polled every five seconds. Every machine of a scale set hears of
        all of them: only one that names this machine counts

A metadata service that cannot be reached, or answers nonsense, is asked again: it must never end a server, nor keep one from running.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from lowbit.serving.load.http_client import Failed, Response, fetch
from lowbit.serving.watch import logs

PROVIDERS = ("aws", "gcp", "azure")
LINK_LOCAL = "http://169.254.169.254"
POLL_S = 5.0
PATIENCE_S = 2.0
"""For one answer; metadata services are on the same machine."""
LONG_POLL_S = 60
TOKEN_S = 21_600


@dataclass(frozen=True)
class Notice:
    """That this machine is to go.

    Attributes:
        provider: That said so.
        what: It said.
    """

    provider: str
    what: str


Ask = Callable[[str], Awaitable[Notice | None]]
"""Asks a metadata service once; None where there is no notice. Raises Failed where it cannot be asked."""


async def aws(base: str) -> Notice | None:
    """Source: EC2 user guide, "Spot Instance interruption notices" and "Use the Instance Metadata Service"."""
    token = await _get(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}, method="PUT")
    if token.status != 200:
        raise Failed(f"no token: status {token.status}")
    found = await _get(f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token.body.decode("latin-1").strip()})
    if found.status == 404:
        return None
    action = _object(found).get("action")
    return Notice("aws", str(action)) if action in ("stop", "terminate", "hibernate") else None


async def gcp(base: str, wait_s: int = LONG_POLL_S) -> Notice | None:
    """Source: Compute Engine, "Preemptible and Spot VMs: preemption process" and "Query VM metadata: waiting for updates"."""
    url = f"{base}/computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec={wait_s}&last_etag="
    now = await _get(f"{base}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    if _text(now) == "TRUE":
        return Notice("gcp", "preempted")
    etag = now.headers.get("etag", "0")
    found = await _get(url + etag, {"Metadata-Flavor": "Google"}, patience_s=wait_s + PATIENCE_S)
    return Notice("gcp", "preempted") if _text(found) == "TRUE" else None


async def azure(base: str) -> Notice | None:
    """Source: Azure virtual machines, "Scheduled Events for Linux VMs" and "Azure Instance Metadata Service"."""
    found = await _get(f"{base}/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
    events = _object(found).get("Events")
    told = [event for event in events if isinstance(event, dict)] if isinstance(events, list) else []
    going = [event for event in told if event.get("EventType") == "Preempt"]
    if not going:
        return None
    name = _text(await _get(f"{base}/metadata/instance/compute/name?api-version=2021-02-01&format=text", {"Metadata": "true"}))
    named = (resource for event in going if isinstance(event.get("Resources"), list) for resource in event["Resources"])
    return Notice("azure", "Preempt") if name and any(isinstance(each, str) and each.lower() == name.lower() for each in named) else None


ASKS: Mapping[str, Ask] = {"aws": aws, "gcp": gcp, "azure": azure}
WAITS_ITSELF = ("gcp",)


async def watch(provider: str, on_notice: Callable[[Notice], None], base: str | None = None, poll_s: float = POLL_S) -> None:
    """Asks until there is a notice, tells of it, and ends.

    Args:
        provider: One of `PROVIDERS`, or "auto": whoever answers first is kept.
        on_notice: Told once.
        base: URL of the metadata service; None is where the clouds have theirs.
        poll_s: Between two questions.
    """
    base = (base or LINK_LOCAL).rstrip("/")
    last: str | None = None
    while True:
        for each in PROVIDERS if provider == "auto" else (provider,):
            try:
                notice = await ASKS[each](base)
            except Exception as error:  # Failed, or whatever an odd address or answer brings about
                why = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
                if why != last and provider != "auto":
                    last = why
                    logs.warn("the metadata service did not answer", provider=each, why=last)
                continue
            provider = each
            if notice is not None:
                logs.warn("interruption notice", provider=notice.provider, what=notice.what)
                on_notice(notice)
                return
            break
        await asyncio.sleep(min(poll_s, 1.0) if provider in WAITS_ITSELF else poll_s)


async def _get(url: str, headers: Mapping[str, str], *, method: str = "GET", patience_s: float = PATIENCE_S) -> Response:
    return await fetch(url, method=method, headers=headers, timeout_s=patience_s)


def _text(found: Response) -> str:
    if found.status != 200:
        raise Failed(f"status {found.status}")
    return found.body.decode("latin-1").strip()


def _object(found: Response) -> Mapping[str, object]:
    try:
        document = json.loads(_text(found))
    except ValueError:
        raise Failed("the answer is not JSON") from None
    if not isinstance(document, dict):
        raise Failed("the answer is no object")
    return document
