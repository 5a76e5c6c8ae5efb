"""KServe's manifest of a model repository. Pure.

Source: KServe's API `serving.kserve.io/v1beta1`, InferenceService; its runtime `kserve-tritonserver`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from lowbit.errors import UsageError

RUNTIME = "kserve-tritonserver"
MOST = 63
"""Characters of a name in Kubernetes that becomes part of a host's."""


@dataclass(frozen=True)
class Service:
    """What the cluster is told beyond the models.

    Attributes:
        name: Of the model; made fit for Kubernetes.
        storage_uri: Where the cluster finds the repository, e.g. "s3://bucket/models/demo".
        cores: CPUs that the measurements hold for.
        canary: Percent of requests that go to this revision; None sends all.
        version: Tag of Triton's image; None leaves it to the cluster.
    """

    name: str
    storage_uri: str
    cores: int
    canary: int | None = None
    version: str | None = None


def manifest(service: Service, about: Mapping[str, str]) -> str:
    """The manifest, as YAML.

    Args:
        service: What is served.
        about: Facts to keep with it, as annotations.

    Raises:
        UsageError: no storage URI.
    """
    if not re.match(r"[a-z][a-z0-9+.-]*://\S+$", service.storage_uri):
        raise UsageError(
            f"'{service.storage_uri}' is no address of a store.", "Say where models/ will lie, e.g. --storage-uri s3://bucket/models/demo."
        )
    model: dict[str, object] = {
        "modelFormat": {"name": "triton"},
        "protocolVersion": "v2",
        "runtime": RUNTIME,
        "storageUri": service.storage_uri,
        "resources": {"requests": {"cpu": str(service.cores)}, "limits": {"cpu": str(service.cores)}},
    }
    if service.version is not None:
        model["runtimeVersion"] = service.version
    predictor: dict[str, object] = {"model": model}
    if service.canary is not None:
        predictor = {"canaryTrafficPercent": service.canary, **predictor}
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": kubernetes_name(service.name), "annotations": {f"lowbit/{key}": value for key, value in about.items()}},
        "spec": {"predictor": predictor},
    }
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that some reader may take for numbers: 608490e43075 is one to Go's, and none to Python's."""

    def text(self, value: str) -> yaml.ScalarNode:
        plain = re.match(r"[A-Za-z]", value) is not None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_Dumper.add_representer(str, _Dumper.text)


def kubernetes_name(name: str) -> str:
    """Lower case letters, digits and dashes, a letter first.

    >>> kubernetes_name("ResNet_50.v2")
    'resnet-50-v2'
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"m-{plain}".rstrip("-")
    return plain[:MOST].rstrip("-")
