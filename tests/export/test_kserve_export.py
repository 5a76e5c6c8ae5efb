"""KServe's manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from bundle_examples import ENVIRONMENT
from cli_runner import lowbit
from serving_case import tiny_bundle

from lowbit.errors import UsageError
from lowbit.export.servers.kserve import Service, kubernetes_name, manifest
from lowbit.export.servers.write import Wishes, export

CORES = str(ENVIRONMENT.cores)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("kserve") / "Tiny_v2")


def test_the_manifest_and_its_models(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "deploy"
    written = export(tiny, out, Wishes(storage_uri="s3://bucket/models/tiny", canary=10, version="25.11-py3"))
    assert written.manifest == out / "inferenceservice.yaml"
    assert sorted(each.name for each in (out / "models").iterdir()) == ["Tiny_v2", "Tiny_v2_full"]
    found = yaml.safe_load(written.manifest.read_text())
    annotations = found["metadata"].pop("annotations")
    assert annotations["lowbit/candidate"] == "int8-static@onnxruntime"
    assert found == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "tiny-v2"},
        "spec": {
            "predictor": {
                "canaryTrafficPercent": 10,
                "model": {
                    "modelFormat": {"name": "triton"},
                    "protocolVersion": "v2",
                    "runtime": "kserve-tritonserver",
                    "storageUri": "s3://bucket/models/tiny",
                    "resources": {"requests": {"cpu": CORES}, "limits": {"cpu": CORES}},
                    "runtimeVersion": "25.11-py3",
                },
            }
        },
    }


def test_what_is_not_said_is_left_to_the_cluster() -> None:
    found = yaml.safe_load(manifest(Service("m", "pvc://claim/m", 2), {}))
    assert "canaryTrafficPercent" not in found["spec"]["predictor"]
    assert "runtimeVersion" not in found["spec"]["predictor"]["model"]


def test_texts_that_look_like_numbers_are_quoted() -> None:
    """Annotations must be texts, and readers differ in what they take for a number."""
    text = manifest(Service("m", "s3://b/m", 2, version="25.11"), {"bundle": "608490e43075", "other": "true"})
    assert 'lowbit/bundle: "608490e43075"' in text
    assert "lowbit/other: 'true'" in text
    assert 'runtimeVersion: "25.11"' in text
    assert 'cpu: "2"' in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [("demo", "demo"), ("ResNet_50.v2", "resnet-50-v2"), ("7b", "m-7b"), ("a" * 80, "a" * 63), ("x" * 62 + "-yy", "x" * 62)],
)
def test_names_fit_kubernetes(name: str, expected: str) -> None:
    assert kubernetes_name(name) == expected


@pytest.mark.parametrize("uri", ["bucket/models", "s3://", "s3://a b", ""])
def test_a_storage_uri_that_is_none(uri: str) -> None:
    with pytest.raises(UsageError, match="no address of a store"):
        manifest(Service("m", uri, 2), {})


def test_options_belong_to_their_target(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, words in (
        (("--to", "kserve"), "fetches models from a store"),
        (("--to", "triton", "--canary", 10), "--canary is for KServe"),
        (("--to", "triton", "--storage-uri", "s3://b/m"), "--storage-uri is for KServe"),
    ):
        done = lowbit(capfd, monkeypatch, "export", tiny, "--out", tmp_path / "out", *options)
        assert (done.code, words in done.err) == (2, True), done.err
    done = lowbit(capfd, monkeypatch, "export", tiny, "--out", tmp_path / "out", "--to", "kserve", "--storage-uri", "gs://b/m")
    assert (done.code, done.err) == (0, "")
