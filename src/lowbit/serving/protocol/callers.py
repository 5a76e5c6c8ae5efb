"""What every way in asks of a request before it is looked at: a key, and how long the client waits."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping, Sequence

from lowbit.serving.protocol.refusals import Malformed, Unauthorized
from lowbit.serving.protocol.requests import Parameter

DEADLINE = "x-request-timeout-ms"
REQUEST_ID = "x-request-id"
MOST_ID = 128
"""Characters of a client's request id; longer ones are cut: they go into logs and back."""
TIMEOUT = "timeout"
"""Parameter of a request: microseconds, as Triton's clients send it."""


def admit(keys: Sequence[str], headers: Mapping[str, str]) -> None:
    """Asks for a key where there are any.

    Raises:
        Unauthorized: none, or the wrong one.
    """
    if not keys:
        return
    scheme, _, bearer = headers.get("authorization", "").strip().partition(" ")
    given = [headers.get("x-api-key", ""), bearer.strip() if scheme.lower() == "bearer" else ""]
    if not any(hmac.compare_digest(one.encode(), key.encode()) for one in given for key in keys):
        raise Unauthorized("An API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY.")


def request_id(headers: Mapping[str, str]) -> str:
    """The client's own, or a new one; printable, so that no line of a log or header can be forged with it."""
    given = headers.get(REQUEST_ID, "")
    return given if 0 < len(given) <= MOST_ID and given.isascii() and given.isprintable() else secrets.token_hex(8)


def waits_s(headers: Mapping[str, str], parameters: Mapping[str, Parameter]) -> float | None:
    """How long the client waits: the header `x-request-timeout-ms`, or the parameter `timeout` in microseconds; None where it says neither.

    Raises:
        Malformed: it says nonsense.
    """
    if (value := headers.get(DEADLINE)) is not None:
        return _number(value, f"The header {DEADLINE} must be milliseconds above 0.") / 1e3
    if (given := parameters.get(TIMEOUT)) is not None:
        return _number(given, f"The parameter {TIMEOUT} must be microseconds above 0.") / 1e6
    return None


def _number(value: Parameter, message: str) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or not 0 < number < 1e12:
        raise Malformed(message)
    return number
