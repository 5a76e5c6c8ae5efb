"""What our registry holds is there in a real MLflow, through its own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_case import mlflow_server
from registry_case import BY, MODEL, bundle, filled

from conftest import missing
from lowbit.errors import UsageError
from lowbit.registry.aliases import ANY
from lowbit.registry.mlflow_mirror import Mirrored, connect, mirror
from lowbit.registry.registry import Registry


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        import mlflow  # noqa: F401
    except ImportError:
        missing("mlflow-skinny (extra 'mlflow')")
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as address:
        yield address


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return filled(tmp_path_factory.mktemp("registry"))[0]


def numbers(client: Any) -> dict[str, str]:
    return {found.tags["lowbit.ref"]: str(found.version) for found in client.search_model_versions(f"name = '{MODEL}'")}


def aliases(client: Any) -> dict[str, str]:
    refs = {number: ref for ref, number in numbers(client).items()}
    return {alias: refs[str(number)] for alias, number in client.get_registered_model(MODEL).aliases.items()}


@pytest.mark.slow
def test_mlflow_shows_what_the_registry_holds_and_follows_it(registry: Registry, uri: str) -> None:
    assert mirror(registry, uri) == Mirrored(versions=3, new=3, aliases=2)
    client = connect(uri)
    assert sorted(numbers(client)) == [f"{MODEL}@1", f"{MODEL}@2", f"{MODEL}@3"]
    assert aliases(client) == {"champion": f"{MODEL}@2", "fallback": f"{MODEL}@1"}

    champion, version = client.get_model_version_by_alias(MODEL, "champion"), registry.resolve(MODEL)
    assert champion.tags["lowbit.digest"] == version.digest
    assert champion.tags["lowbit.parents"] == registry.resolve(f"{MODEL}@1").digest
    assert champion.source == f"lowbit://sha256/{version.digest}"
    found = client.search_model_versions(f"name = '{MODEL}' and tags.precision = 'fp32'")
    assert [one.tags["lowbit.ref"] for one in found] == [f"{MODEL}@1"]

    run = client.get_run(champion.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"{MODEL}@2")
    assert run.data.params["recipe"] == "int8-static"
    assert run.data.params["command"] == "lowbit optimize cnn.onnx --data images.npz"
    assert run.data.metrics["top1"] == pytest.approx(version.lineage["score"]["value"])
    assert run.data.metrics["latency_ms_batch_1"] == 0.1
    data = {tag.value: entry.dataset.digest for entry in run.inputs.dataset_inputs for tag in entry.tags}
    assert data == {"calibration": ("c1" * 32)[:36], "validation": ("d2" * 32)[:36]}
    source = client.get_run(client.get_model_version_by_alias(MODEL, "fallback").run_id)
    assert [tag.value for entry in source.inputs.dataset_inputs for tag in entry.tags] == ["validation"]

    assert mirror(registry, uri) == Mirrored(versions=3, new=0, aliases=2)
    registry.push(bundle("third"), MODEL, by=BY)
    registry.promote(f"{MODEL}@4", by=BY, why="better")
    registry.move(MODEL, "challenger", registry.resolve(f"{MODEL}@3").digest, expect=None, by=BY, why="try")
    client.set_registered_model_alias(MODEL, "theirs", numbers(client)[f"{MODEL}@1"])
    assert mirror(registry, uri, MODEL) == Mirrored(versions=4, new=1, aliases=3)
    moved = {"champion": f"{MODEL}@4", "fallback": f"{MODEL}@2", "challenger": f"{MODEL}@3", "theirs": f"{MODEL}@1"}
    assert aliases(client) == moved
    registry.rollback(MODEL, by=BY, why="worse")
    registry.move(MODEL, "challenger", None, expect=ANY, by=BY, why="enough")
    mirror(registry, uri)
    assert aliases(client) == {"champion": f"{MODEL}@2", "fallback": f"{MODEL}@2", "theirs": f"{MODEL}@1"}


@pytest.mark.slow
def test_a_mirroring_that_broke_off_is_taken_up(registry: Registry, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model version, and in the middle of a run."""
    from lowbit.registry import mlflow_mirror

    registry.push(bundle("first"), "other", by=BY)
    for broken in ("_metrics", "_datasets"):
        with monkeypatch.context() as patch:
            patch.setattr(mlflow_mirror, broken, lambda version: 1 / 0)  # noqa: ARG005
            with pytest.raises(ZeroDivisionError):
                mirror(registry, uri, "other")
    assert mirror(registry, uri, "other") == Mirrored(versions=2, new=2, aliases=0)
    client = connect(uri)
    experiment = client.get_experiment_by_name("lowbit/other")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["other@1", "other@2"]
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_told_kindly(registry: Registry) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(UsageError, match="MLflow could not do that"):
        mirror(registry, "http://127.0.0.1:9")


def test_our_own_database_works_without_a_server(registry: Registry, tmp_path: Path) -> None:
    try:
        import alembic  # noqa: F401
        import mlflow  # noqa: F401
    except ImportError:
        missing("mlflow-skinny, SQLAlchemy and alembic (extra 'mlflow')")
    where = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert mirror(registry, where, MODEL).versions >= 3
    assert connect(where).get_model_version_by_alias(MODEL, "champion").tags["lowbit.ref"] == f"{MODEL}@2"
