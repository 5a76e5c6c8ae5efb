"""How a server behaves: what `lowbit serve` takes, as one record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lowbit.serving.deployment import CHOSEN, FULL, Limits


@dataclass(frozen=True)
class Settings:
    """Of one server.

    Attributes:
        host: Address to listen on; loopback unless told.
        port: For REST; 0 takes a free one.
        grpc_port: For gRPC; 0 takes a free one, None leaves gRPC out.
        roles: Variants to load: "chosen", "full", or ids of candidates.
        limits: On what waits.
        deadline_s: A request that says none is given up after this.
        max_body_bytes: Of a request.
        max_requests: Requests that may be in the server at once, over all models.
        body_timeout_s: A body that has not come whole by then is refused: a slow client holds no place for ever.
        drain_s: What was accepted has so long to end when the server is told to stop.
        api_keys: One of these must come with every request but health; empty asks for none.
        certificate: TLS certificate chain (PEM); None speaks plain HTTP.
        private_key: Its key (PEM).
        policy: Routing policy (YAML); None answers with the chosen variant.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    roles: tuple[str, ...] = (CHOSEN, FULL)
    limits: Limits = field(default_factory=Limits)
    deadline_s: float = 30.0
    max_body_bytes: int = 64 << 20
    max_requests: int = 1024
    body_timeout_s: float = 20.0
    drain_s: float = 25.0
    api_keys: tuple[str, ...] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    policy: Path | None = None
