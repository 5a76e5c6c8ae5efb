"""The registry shown in MLflow: a run for each version with its data sets, a model version, and the aliases.

A mirror: this registry is the one of record, MLflow is brought up to date from it, and nothing is read back. MLflow keeps no history of
aliases; ours does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowbit.errors import LowbitError, UsageError
from lowbit.registry.records import ModelVersion
from lowbit.registry.registry import Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

REF, DIGEST = "lowbit.ref", "lowbit.digest"
"""Tags by which a version is found again."""
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
SHORT_DIGEST = 36
"""MLflow keeps that many characters of a data set's digest; all of it is in its source."""


@dataclass(frozen=True)
class Mirrored:
    """What is in MLflow now.

    Attributes:
        versions: Of our registry.
        new: Of these, written now.
        aliases: That name a version.
    """

    versions: int
    new: int
    aliases: int


def mirror(registry: Registry, uri: str, model: str | None = None) -> Mirrored:
    """Writes what MLflow lacks; doing it again, also after it broke off, changes nothing more.

    Args:
        registry: To show.
        uri: Of a tracking server, or "sqlite:///FILE".
        model: This one alone; all if None.

    Raises:
        UsageError: the extra `mlflow` is not installed, or MLflow could not do it.
    """
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    versions = new = aliases = 0
    try:
        for name in [model] if model else registry.models():
            known = registry.versions(name)
            numbers = _model(client, name)
            for version in known:
                if version.ref not in numbers:
                    numbers[version.ref] = _version(client, version)
                    new += 1
            versions += len(known)
            aliases += _aliases(client, registry, name, numbers)
    except MlflowException as error:
        raise UsageError(f"MLflow could not do that: {_first_line(error)}", "Check its address, and run it again.") from error
    return Mirrored(versions, new, aliases)


def connect(uri: str) -> MlflowClient:
    """A client that sends nothing to anybody else and gives up soon.

    Raises:
        UsageError: the extra is not installed, or the address is none.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise UsageError("The mirror needs MLflow, which is not installed.", "pip install 'lowbit[mlflow]'") from error
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except LowbitError:
        raise
    except Exception as error:  # it raises whatever its stores raise
        raise UsageError(f"'{uri}' is no address of MLflow: {_first_line(error)}", "For example http://localhost:5000.") from error


def _model(client: MlflowClient, name: str) -> dict[str, str]:
    """Makes sure of the registered model; our reference -> MLflow's number of the versions that are there."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, tags={"lowbit": "mirror"})
    return {found.tags[REF]: str(found.version) for found in client.search_model_versions(f"name = '{name}'") if REF in found.tags}


def _version(client: MlflowClient, version: ModelVersion) -> str:
    """Writes a version and its run; returns MLflow's number of it."""
    run = _run(client, version)
    made = client.create_model_version(
        version.model,
        source=f"lowbit://sha256/{version.digest}",  # not a path: MLflow's servers refuse those, and files stay where they are checked
        run_id=run,
        tags=_tags(version),
        description=f"{version.candidate}, {version.precision} on {version.runtime}",
    )
    return str(made.version)


def _run(client: MlflowClient, version: ModelVersion) -> str:
    """The run of a version, with what made it and how good it was; found again where a mirroring broke off."""
    from mlflow.entities import Metric, Param

    experiment = client.get_experiment_by_name(f"lowbit/{version.model}")
    id = experiment.experiment_id if experiment else client.create_experiment(f"lowbit/{version.model}")
    at = int(version.created * 1000)
    for begun in client.search_runs([id], f"tags.`{REF}` = '{version.ref}'"):
        if begun.info.status == "FINISHED":
            return str(begun.info.run_id)
        client.delete_run(begun.info.run_id)
    run = client.create_run(id, start_time=at, tags={**_tags(version), "mlflow.user": version.by}, run_name=version.ref)
    params = [Param(key, str(value)) for key, value in _params(version).items()]
    client.log_batch(run.info.run_id, metrics=[Metric(key, value, at, 0) for key, value in _metrics(version)], params=params)
    client.log_inputs(run.info.run_id, list(_datasets(version)))
    client.set_terminated(run.info.run_id, end_time=at)
    return str(run.info.run_id)


def _tags(version: ModelVersion) -> dict[str, str]:
    line = version.lineage
    return {
        REF: version.ref,
        DIGEST: version.digest,
        "lowbit.parents": ",".join(version.parents),
        "lowbit.source": line["source"]["sha256"],
        "kind": version.kind,
        "precision": version.precision,
        "runtime": version.runtime,
        "verdict": line["verdict"],
    }


def _params(version: ModelVersion) -> dict[str, Any]:
    line = version.lineage
    named = {"candidate": version.candidate, "recipe": line["recipe"], "recipe_sha256": line["recipe_sha256"], "command": line["command"]}
    tools = {f"tool.{name}": number for name, number in line["tools"].items()}
    hardware = {f"hardware.{name}": value for name, value in line["hardware"].items() if isinstance(value, str | int)}
    return {**named, "source": line["source"]["name"], "lowbit_version": line["lowbit_version"], **tools, **hardware}


def _metrics(version: ModelVersion) -> Iterator[tuple[str, float]]:
    line = version.lineage
    score = line.get("score") or {}
    found = {score.get("name"): score.get("value"), "agreement": score.get("agreement"), "artifact_bytes": line.get("artifact_bytes")}
    found |= {f"latency_ms_batch_{batch}": value for batch, value in (line.get("latency_ms") or {}).items()}
    found["worse_than_baseline"] = (score.get("delta") or {}).get("value")
    yield from ((name, float(value)) for name, value in found.items() if name and value is not None)


def _datasets(version: ModelVersion) -> Iterator[Any]:
    """Calibration and validation data, by fingerprint: samples never leave."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    for context in ("calibration", "validation"):
        part = version.lineage.get(context)
        if part and part["sha256"]:
            data = Dataset(f"{version.model} {context}", part["sha256"][:SHORT_DIGEST], "code", json.dumps(part), profile=json.dumps(part))
            yield DatasetInput(data, [InputTag("mlflow.data.context", context)])


def _aliases(client: MlflowClient, registry: Registry, model: str, numbers: dict[str, str]) -> int:
    """Sets aliases as ours are, and removes those that we had once and have no more; others' own ones stay."""
    named = {alias: version.ref for alias, version in registry.aliases(model).items() if _allowed(alias)}
    ours = {alias: numbers[ref] for alias, ref in named.items() if ref in numbers}  # what was pushed meanwhile comes next time
    theirs = {alias: str(number) for alias, number in client.get_registered_model(model).aliases.items()}
    for alias, number in ours.items():
        if theirs.get(alias) != number:
            client.set_registered_model_alias(model, alias, number)
    for alias in {event.alias for event in registry.history(model)} & theirs.keys() - named.keys():
        client.delete_registered_model_alias(model, alias)
    return len(ours)


def _allowed(alias: str) -> bool:
    """MLflow keeps "latest" and v1, v2, ... for itself."""
    return alias != "latest" and not (alias.startswith("v") and alias[1:].isdigit())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
