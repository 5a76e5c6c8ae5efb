"""What a server may answer instead of a result; each knows its HTTP status and its gRPC code.

    Refusal             500  INTERNAL             the runtime failed on this request
    ├── Malformed       400  INVALID_ARGUMENT     names, shapes, types or sizes are wrong
    ├── Unauthorized    401  UNAUTHENTICATED      no key, or the wrong one
    ├── NotServed       404  NOT_FOUND            no such model, version or variant
    ├── WrongMethod     405  UNIMPLEMENTED        the address takes other methods
    ├── Conflicting     409  ABORTED              it is not any more what the client believed
    ├── TooSlow         408  DEADLINE_EXCEEDED    the request did not come whole in time
    ├── TooLarge        413  RESOURCE_EXHAUSTED   the body is over the limit
    ├── WrongKind       415  INVALID_ARGUMENT     a body of another kind than the model takes
    ├── Unavailable     503  UNAVAILABLE          queue full, draining or not ready: try again, here or elsewhere
    ├── TooLate         504  DEADLINE_EXCEEDED    the deadline passed before there was an answer
    └── Gone            499  CANCELLED            the client went away: nobody reads this

A message says what was found and what is allowed; it goes to the client, so it never holds a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowbit.serving.run.deployment import Deployment


class Refusal(Exception):
    """Base of all answers that are no result.

    Args:
        message: For the client.
        retry_after_s: When to try again; None where that would not help.
    """

    status = 500
    code = "INTERNAL"
    outcome = "failed"
    """A word for metrics and logs."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.told = False  # to the observers
        self.variant: str | None = None  # id of the one that failed, where it came so far
        self.elsewhere: Deployment | None = None  # may answer the same request
        self.headers: dict[str, str] = {}


class Malformed(Refusal):
    """Names, shapes, types or sizes are wrong."""

    status, code, outcome = 400, "INVALID_ARGUMENT", "malformed"


class Unauthorized(Refusal):
    """No key, or the wrong one."""

    status, code, outcome = 401, "UNAUTHENTICATED", "unauthorized"


class NotServed(Refusal):
    """No such model, version or variant."""

    status, code, outcome = 404, "NOT_FOUND", "unknown"


class WrongMethod(Refusal):
    """The address takes other methods."""

    status, code, outcome = 405, "UNIMPLEMENTED", "malformed"

    def __init__(self, method: str, path: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{method} is not for '{path}'. Allowed: {', '.join(allowed)}.")
        self.headers = {"allow": ", ".join(allowed)}


class Conflicting(Refusal):
    """What is to be changed is not any more what the client believed it to be."""

    status, code, outcome = 409, "ABORTED", "conflict"


class TooSlow(Refusal):
    """The request did not come whole in time."""

    status, code, outcome = 408, "DEADLINE_EXCEEDED", "slow"


class WrongKind(Malformed):
    """A body of another kind than the model takes."""

    status = 415


class TooLarge(Refusal):
    """The body is over the limit."""

    status, code, outcome = 413, "RESOURCE_EXHAUSTED", "too_large"


class Unavailable(Refusal):
    """The queue is full, or the server is draining or not ready."""

    status, code, outcome = 503, "UNAVAILABLE", "unavailable"


class TooLate(Refusal):
    """The deadline passed before there was an answer."""

    status, code, outcome = 504, "DEADLINE_EXCEEDED", "late"


class Gone(Refusal):
    """The client went away before it was answered."""

    status, code, outcome = 499, "CANCELLED", "gone"
