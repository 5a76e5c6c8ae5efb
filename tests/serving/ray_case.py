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


def need_ray() -> None:
    """Skips where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        missing("ray (`make ray`)")


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Any, Any]]:
    """A cluster, and its second machine: `cluster.remove_node(second, allow_graceful=False)` kills it."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        yield cluster, cluster.add_node(**NODE)
    finally:
        cluster.shutdown()
