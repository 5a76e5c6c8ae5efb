"""bundle.json: what goes in comes out, nothing private or undefined gets in, nothing is half-written."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from bundle_examples import BASELINE, CANDIDATES, EXAMPLES, POLICY, candidate, keep, ship
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lowbit.bundle.manifest import (
    candidate_entry,
    candidate_of,
    decision_of,
    digest,
    file_entries,
    migrate,
    policy_entry,
    policy_of,
    read_manifest,
    to_json,
    write_atomic,
    write_manifest,
)
from lowbit.bundle.schema import CandidateEntry, Manifest, json_schema
from lowbit.errors import Interrupted, LowbitError, ModelError, UsageError
from lowbit.types import Budget, Candidate, Delta, Energy, Judgement, Ratio, Tuning

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "reference" / "bundle.schema.json"
finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
deltas = st.builds(
    Delta,
    finite,
    finite,
    finite,
    st.floats(0.5, 0.999),
    st.integers(0, 10**6),
    st.sampled_from(["tango-score", "paired-bootstrap"]),
    st.booleans(),
    st.none() | st.integers(0, 99),
    st.none() | st.integers(0, 99),
)
candidates = st.builds(
    lambda base, delta, confirm, **more: replace(
        base,
        search=base.search and replace(base.search, delta=delta, guards={"fpr": delta}),
        confirm=base.search if confirm else None,
        **more,
    ),
    st.sampled_from([BASELINE, *CANDIDATES]),
    deltas,
    st.booleans(),
    tuning=st.builds(Tuning, st.integers(0, 64), st.integers(1, 8), st.sampled_from(["f32", "bf16", "f16"]), st.booleans()),
    size_bytes=st.none() | st.integers(0, 10**12),
    energy=st.none() | st.builds(Energy, st.none() | finite, st.text(), st.none() | finite),
    reasons=st.lists(st.text(alphabet=st.characters(exclude_characters="/\\~:")), max_size=3).map(tuple),
)


@settings(deadline=None)
@given(candidates)
def test_a_candidate_survives_the_manifest(record: Candidate) -> None:
    entry = candidate_entry(record, Judgement(record.id, "reject", ("why",)))
    text = json.dumps(entry.model_dump(mode="json"), allow_nan=False)
    assert candidate_of(CandidateEntry.model_validate(json.loads(text))) == record


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_manifest_survives_the_disk(name: str, tmp_path: Path) -> None:
    manifest = EXAMPLES[name]()
    write_manifest(manifest, tmp_path)
    assert to_json(read_manifest(tmp_path)) == to_json(manifest)
    assert [file.name for file in tmp_path.iterdir()] == ["bundle.json"]


def test_a_decision_and_its_evidence_can_be_replayed_from_the_file(tmp_path: Path) -> None:
    write_manifest(ship(), tmp_path)
    manifest = read_manifest(tmp_path)
    assert policy_of(manifest.policy) == POLICY
    assert candidate_of(manifest.baseline) == BASELINE
    assert {candidate_of(entry) for entry in manifest.candidates if entry.search is None} == {CANDIDATES[-1]}
    assert [candidate_of(entry) for entry in manifest.candidates] == sorted(CANDIDATES, key=lambda c: c.id)
    decision = decision_of(manifest)
    assert (decision.verdict, decision.chosen, len(decision.judgements)) == ("ship", "int8-static-mse@openvino", 11)


@settings(deadline=None)
@given(st.decimals(0, "99.999", places=6), st.booleans())
def test_a_budget_survives_in_the_users_words(value: Any, relative: bool) -> None:
    policy = replace(POLICY, max_drop=Budget.parse(f"{value}{'%' if relative else 'pp'}"))
    assert policy_of(policy_entry(policy)) == policy


def test_the_entry_repeats_the_comparison_that_counts() -> None:
    confirmed = ship().entry("int8-static-mse@openvino")
    assert (confirmed.evidence, confirmed.metric and confirmed.metric.n) == ("confirm", 4000)
    assert confirmed.delta == (confirmed.confirm and confirmed.confirm.delta)
    assert confirmed.delta
    assert confirmed.delta.value == 0.0021
    searched = ship().entry("int8-static-entropy@openvino")
    assert (searched.evidence, searched.delta and searched.delta.value) == ("search", 0.021)
    failed = ship().entry("int8-static-percentile@onnxruntime")
    assert (failed.evidence, failed.metric, failed.agreement, failed.slices) == (None, None, None, ())


def test_undefined_numbers_are_null_in_json_and_nan_in_memory() -> None:
    manifest = keep()
    raw = json.loads(to_json(manifest), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    broken = next(entry for entry in raw["candidates"] if "tensor" in entry["id"])
    assert broken["metric"] == {"name": "cosine", "value": None, "n": 400}
    assert broken["agreement"] is None
    back = candidate_of(Manifest.model_validate(raw).entry(broken["id"]))
    assert back.search
    assert math.isnan(back.search.metric.value)
    assert math.isnan(back.search.delta.ci_high)


def test_measured_numbers_must_be_defined() -> None:
    measured = replace(BASELINE.measurements[0], speedup=Ratio(math.nan, 1, 1))
    with pytest.raises(ValidationError, match="finite"):
        candidate_entry(replace(BASELINE, measurements=(measured,)), None)


def test_the_same_records_in_any_order_make_the_same_file() -> None:
    assert to_json(ship(candidates=CANDIDATES[::-1])) == to_json(ship())
    assert [entry.id for entry in ship(candidates=(*CANDIDATES, BASELINE)).candidates] == sorted(c.id for c in CANDIDATES)


def test_the_schema_in_the_docs_is_current_and_the_examples_follow_it() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == json_schema(), (
        "run: python -m lowbit.bundle.schema > docs/reference/bundle.schema.json"
    )
    validator = jsonschema.Draft202012Validator(json.loads(json_schema()))
    for example in EXAMPLES.values():
        validator.validate(json.loads(to_json(example())))


def test_every_field_that_the_contract_names_is_there() -> None:
    raw = json.loads(to_json(ship()))
    assert {"schema", "lowbit_version", "created", "command", "source", "data", "environment", "policy", "baseline", "candidates"} <= set(
        raw
    )
    assert set(raw["source"]) == {"path", "sha256", "format", "parameters", "size_bytes", "exported_from"}
    assert {"cpu", "cores", "isa", "memory_bytes", "accelerator", "versions"} <= set(raw["environment"])
    assert {"task", "metric", "max_drop", "confidence", "objective", "batch"} <= set(raw["policy"])
    fields = (
        "id recipe runtime tuning status size_bytes measurements peak_memory_bytes energy metric delta agreement confidence_shift slices"
    )
    assert set(f"{fields} verdict reasons artifact".split()) <= set(raw["candidates"][0])
    assert set(raw["candidates"][0]["measurements"][0]["latency_ms"]) == {"p50", "p95", "p99", "ci_low", "ci_high"}
    assert set(raw["decision"]) == {"verdict", "chosen", "reasons", "next_steps"}


# ── nothing private ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ("lowbit optimize /home/ann/m.onnx --data ~/val --out=/tmp/o/b", "lowbit optimize m.onnx --data val --out=b"),
        ("Load model from /opt/x/model.onnx failed.", "Load model from model.onnx failed."),
        ("cannot open 'C:\\Users\\ann\\m.onnx'", "cannot open 'm.onnx'"),
        ("see file:///srv/data/labels.csv", "see labels.csv"),
        ("node '/layer2/conv1/Conv' has no kernel", "node '/layer2/conv1/Conv' has no kernel"),
        ("--data ../val/images and 3/4 of a/b", "--data ../val/images and 3/4 of a/b"),
    ],
)
def test_absolute_paths_are_cut_to_base_names(found: str, kept: str) -> None:
    assert ship(command=found).command == kept
    assert candidate_entry(replace(BASELINE, reasons=(found,)), None).notes == (kept,)


def test_neither_home_nor_working_folder_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "Ann Lee"
    (home / "models").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "models")
    assert (
        ship(command=f"lowbit optimize {home}/models/m.onnx --data {home}/val --out {home}").command
        == "lowbit optimize m.onnx --data val --out ~"
    )


@pytest.mark.parametrize("path", ["/model/m.onnx", "../m.onnx", "model/../../m.onnx", "C:/m.onnx", "model\\m.onnx", "~/m.onnx", ""])
def test_paths_are_relative_and_stay_inside(path: str) -> None:
    with pytest.raises(ValidationError, match="relative path"):
        _with("model", {"artifact": path})


@pytest.mark.parametrize("text", ["made in /home/ann", "/tmp/x", "at ~/models", "C:\\models", "\\\\host\\share"])
def test_a_path_that_slipped_through_is_refused_on_write(text: str) -> None:
    with pytest.raises(ValidationError, match="absolute path"):
        _with("command", text)


def test_a_source_is_a_base_name() -> None:
    assert ship().source.path == "fashion-resnet.onnx"
    with pytest.raises(ValidationError, match="base name"):
        _with("source", {"path": "models/m.onnx"})


@pytest.mark.parametrize("name", ["~model.onnx", "m:load", "a..b.onnx", "-.onnx"])
def test_a_base_name_may_be_any_name(name: str) -> None:
    assert _with("source", {"path": name}).source.path == name
    assert _with("data", {"source": name}).data.source == name


@pytest.mark.parametrize("name", ["", ".", "..", "../m.onnx", "/m.onnx", "C:\\models\\m.onnx"])
def test_a_base_name_has_no_separator(name: str) -> None:
    with pytest.raises(ValidationError, match="base name"):
        _with("source", {"path": name})


def _with(part: str, value: Any) -> Manifest:
    raw = json.loads(to_json(ship()))
    raw[part] = {**raw[part], **value} if isinstance(value, dict) else value
    return Manifest.model_validate(raw)


# ── contradictions ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValidationError, match="chose 'nobody'"):
        _with("decision", {"chosen": "nobody"})
    with pytest.raises(ValidationError, match="one id"):
        ship(candidates=(*CANDIDATES, CANDIDATES[0]))
    with pytest.raises(ValidationError, match=r"no digest is given for model/other\.onnx"):
        _with("model", {"artifact": "model/other.onnx"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        _with("source", {"owner": "me"})
    with pytest.raises(ValidationError, match="pattern"):
        candidate_entry(candidate("a/../b@openvino", "int8", 1, 0, 1), None)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    def refused(kind: type[LowbitError], text: str, folder: Path = tmp_path) -> None:
        with pytest.raises(kind, match=text) as caught:
            read_manifest(folder)
        assert caught.value.hint

    refused(UsageError, "There is no folder", tmp_path / "nowhere")
    refused(UsageError, "is not a bundle")
    whole = to_json(ship())
    file = tmp_path / "bundle.json"
    for text, kind, words in [
        (whole[: len(whole) // 2], ModelError, "not whole JSON"),
        ("", ModelError, "not whole JSON"),
        ("[1]", UsageError, "names no schema"),
        (whole.replace('"schema": "2"', '"schema": "7"'), UsageError, "schema '7'; lowbit .* reads '1' and '2'"),
        (whole.replace('"schema": "2"', '"schema": 2'), UsageError, "schema '2'; lowbit"),
        (whole.replace('"cores": 2', '"cores": "many"'), ModelError, "environment.cores: .*valid integer"),
        (whole.replace('"cores": 2', '"cores": 2, "host": "x"'), ModelError, r"environment.host: Extra inputs"),
    ]:
        assert text != whole
        file.write_text(text, encoding="utf-8")
        refused(kind, words)
    file.write_bytes(b"\xff\xfe\x00")
    refused(ModelError, "not whole JSON")


def test_a_bundle_of_the_schema_before_reads_as_it_did(tmp_path: Path) -> None:
    now = json.loads(to_json(ship()))
    del now["language"]
    (tmp_path / "bundle.json").write_text(json.dumps({**now, "schema": "1"}), encoding="utf-8")
    assert read_manifest(tmp_path) == ship()


def test_readers_take_the_schema_before_the_current_one_and_no_older() -> None:
    steps = {"2": lambda old: {"schema": "3", "new": old["old"]}}
    raw = {"schema": "2", "old": 5}
    assert migrate(raw, steps, "3") == {"schema": "3", "new": 5}
    assert raw == {"schema": "2", "old": 5}
    assert migrate({"schema": "3"}, steps, "3") == {"schema": "3"}
    with pytest.raises(UsageError, match=r"schema '1'; lowbit .* reads '2' and '3'") as caught:
        migrate({"schema": "1"}, steps, "3")
    assert caught.value.hint == "Run `lowbit optimize` again to make a bundle of this version."
    with pytest.raises(UsageError) as caught:
        migrate({"schema": "4"}, steps, "3")
    assert caught.value.hint == "Upgrade lowbit: pip install -U lowbit."


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, Interrupted), (errno.EACCES, UsageError)])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[LowbitError]
) -> None:
    file = tmp_path / "bundle.json"
    write_atomic(file, "old")

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(kind):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_files_are_listed_with_their_digests(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"abc")
    (tmp_path / "model" / "model.onnx.data").write_bytes(b"")
    (tmp_path / "preprocess.yaml").write_bytes(b"x: 1\n")
    found = file_entries(tmp_path, ["preprocess.yaml", "model", "absent"])
    assert [(entry.path, entry.size_bytes) for entry in found] == [
        ("preprocess.yaml", 5),
        ("model/model.onnx", 3),
        ("model/model.onnx.data", 0),
    ]
    assert (
        found[1].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" == digest(tmp_path / "model" / "model.onnx")
    )
