"""How a server behaves: what `lowbit serve` takes, as one record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lowbit.serving.cache.settings import CacheSettings
from lowbit.serving.keep.settings import KeepSettings
from lowbit.serving.language.settings import LanguageSettings
from lowbit.serving.run.deployment import CHOSEN, FULL, Limits
from lowbit.serving.run.ray_engine import RaySettings


@dataclass(frozen=True)
class Settings:
    """Of one server.

    Attributes:
        host: Address to listen on; loopback unless told.
        port: For REST; 0 takes a free one.
        grpc_port: For gRPC; 0 takes a free one, None leaves gRPC out.
        reuse_port: Share the ports with a predecessor or a successor, so that one takes over from the other without a gap.
        roles: Variants to load: "chosen", "full", or ids of candidates.
        limits: On what waits.
        deadline_s: A request that says none is given up after this, and so is one that says more.
        max_body_bytes: Of a request.
        max_held_bytes: Of all bodies that are being read or answered at one time.
        max_requests: Requests that may be in the server at once, over all models.
        body_timeout_s: A body that has not come whole by then is refused: a slow client holds no place for ever.
        linger_s: Told to stop, the server first says for so long that it is not ready and closes connections behind their answers, but
            still answers, so that clients and balancers go elsewhere before anything is refused.
        drain_s: What was accepted has so long to end when the server is told to stop, lingering included.
        api_keys: One of these must come with every request but health; empty asks for none.
        certificate: TLS certificate chain (PEM); None speaks plain HTTP.
        private_key: Its key (PEM).
        policy: Routing policy (YAML); None answers with the chosen variant.
        cache: What answers are kept.
        keep_inputs: Keep the inputs of questions to people, not only their digest.
        state: Folder for what outlives the server; None keeps everything in memory.
        spot: Cloud whose interruption notices are watched: "aws", "gcp", "azure", "auto" or "off".
        metadata_url: Of the cloud's metadata service, where it is not at its usual address.
        access_log: Share of answered requests that are logged; what fails is logged always.
        traces: Send OpenTelemetry traces to where the OTEL_* environment variables say.
        record: Keep histograms of confidences and statistics of inputs.
        keep: What is kept of the traffic, beside that.
        ray: Run the variants on Ray; None runs them in this process.
        registry: Folder of the registry that versions come from; None where bundles are served.
        language: How language models are served.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    reuse_port: bool = False
    roles: tuple[str, ...] = (CHOSEN, FULL)
    limits: Limits = field(default_factory=Limits)
    deadline_s: float = 30.0
    max_body_bytes: int = 64 << 20
    max_held_bytes: int = 1 << 30
    max_requests: int = 1024
    body_timeout_s: float = 20.0
    linger_s: float = 0.0
    drain_s: float = 25.0
    api_keys: tuple[str, ...] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    policy: Path | None = None
    cache: CacheSettings = field(default_factory=CacheSettings)
    keep_inputs: bool = False
    state: Path | None = None
    spot: str = "off"
    metadata_url: str | None = None
    access_log: float = 0.0
    traces: bool = False
    record: bool = True
    keep: KeepSettings = field(default_factory=KeepSettings)
    ray: RaySettings | None = None
    language: LanguageSettings = field(default_factory=LanguageSettings)
    registry: Path | None = None
