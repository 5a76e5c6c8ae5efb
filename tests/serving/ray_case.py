"""A Ray cluster of two machines, both of them this one, on loopback."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from conftest import missing

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20, "node_ip_address": "127.0.0.2", "include_dashboard": False}
"""One CPU: a machine has room for one replica of a model that runs on one thread. The first loopback address will not do: in a cluster's
address Ray replaces it by the machine's own."""

TRIES = 3


def need_ray() -> None:
    """Skips where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        missing("ray (`make ray`)")


def _cluster() -> Any:
    """One machine. On a busy one Ray's own patience with its processes may end before they have begun: then once more."""
    from ray.cluster_utils import Cluster

    for _ in range(TRIES - 1):
        with contextlib.suppress(RuntimeError):
            return Cluster(initialize_head=True, head_node_args=NODE)
    return Cluster(initialize_head=True, head_node_args=NODE)


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Any, Any]]:
    """A cluster, and its second machine: `cluster.remove_node(second, allow_graceful=False)` kills it."""
    cluster = _cluster()
    try:
        yield cluster, cluster.add_node(**NODE)
    finally:
        cluster.shutdown()
