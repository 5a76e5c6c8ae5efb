"""Versions, references, aliases and their log, on a real bundle."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from registry_case import BY, MODEL, bundle, copied, filled
from serving_case import BASELINE, INPUT, INT8

from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import read_manifest, to_json
from lowbit.bundle.source import source_manifest
from lowbit.errors import ModelError, UsageError
from lowbit.registry.aliases import ANY
from lowbit.registry.diff import difference
from lowbit.registry.records import Conflict, parse_ref
from lowbit.registry.registry import Registry
from small_models import images


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return filled(tmp_path / "registry")[0]


def test_a_push_makes_a_source_and_what_was_made_from_it(tmp_path: Path) -> None:
    with Registry.open(tmp_path, create=True) as registry:
        pushed = registry.push(bundle("first"), MODEL, by=BY)
        assert pushed.quantized is not None
        assert [version.ref for version in pushed.new] == [f"{MODEL}@1", f"{MODEL}@2"]
        assert (pushed.source.kind, pushed.source.candidate, pushed.source.precision, pushed.source.parents) == (
            "source",
            BASELINE,
            "fp32",
            (),
        )
        assert (pushed.quantized.kind, pushed.quantized.candidate, pushed.quantized.precision) == ("quantized", INT8, "int8")
        assert pushed.quantized.parents == (pushed.source.digest,)
        line = pushed.quantized.lineage
        assert line["calibration"] == {"sha256": "c1" * 32, "n": 64, "how_selected": "the 64 lowest content hashes"}
        assert (line["source"]["name"], line["recipe"], line["verdict"]) == ("model.onnx", "int8-static", "ship")
        assert line["validation"]["n"] == 400
        assert line["latency_ms"]["1"] == 0.1
        assert line["command"] == "lowbit optimize cnn.onnx --data images.npz"
        assert pushed.source.lineage["calibration"] is None
        assert (registry.models(), registry.versions(MODEL)) == ([MODEL], [pushed.source, pushed.quantized])


def test_pushing_again_changes_nothing_and_another_bundle_finds_its_parent(tmp_path: Path) -> None:
    with Registry.open(tmp_path, create=True) as registry:
        first = registry.push(bundle("first"), MODEL, by=BY)
        head = registry.head()
        again = registry.push(bundle("first"), MODEL, by="bo")
        assert (again.source, again.quantized, again.new, registry.head()) == (first.source, first.quantized, (), head)
        second = registry.push(bundle("second"), MODEL, by=BY)
        assert [version.number for version in second.new] == [3]
        assert second.source == first.source
        assert second.quantized is not None
        assert second.quantized.parents == (first.source.digest,)
        elsewhere = registry.push(bundle("first"), "other", by=BY)
        assert [version.ref for version in elsewhere.new] == ["other@1", "other@2"]
        assert elsewhere.source.digest == first.source.digest


def test_without_a_name_the_source_file_gives_it(tmp_path: Path) -> None:
    with Registry.open(tmp_path, create=True) as registry:
        assert registry.push(bundle("first"), by=BY).source.model == "model"


def test_a_source_bundle_pushed_again_is_the_same_version(registry: Registry, tmp_path: Path) -> None:
    source = registry.resolve(f"{MODEL}@1")
    folder = registry.export(source, tmp_path / "copy")
    pushed = registry.push(folder, MODEL, by=BY)
    assert (pushed.source, pushed.quantized, pushed.new) == (source, None, ())


def test_a_derived_manifest_keeps_the_baseline_and_deriving_again_changes_nothing() -> None:
    manifest = read_manifest(bundle("first"))
    derived = source_manifest(manifest)
    assert to_json(source_manifest(derived)) == to_json(derived)
    assert (derived.decision.verdict, derived.decision.chosen, derived.candidates) == ("keep", BASELINE, ())
    assert [file.path for file in derived.files] == ["baseline/model.onnx", "preprocess.yaml"]
    assert derived.model.artifact == "baseline/model.onnx"
    assert derived.baseline == manifest.baseline


def test_both_versions_load_in_a_server_and_answer_as_the_bundle_does(registry: Registry) -> None:
    from lowbit.serving.answer.certainty import reader_for
    from lowbit.serving.run.deployment import FULL, load

    feeds = {INPUT: images(4)}
    origin = Bundle.load(bundle("first"))
    for number, candidate in ((1, BASELINE), (2, INT8)):
        folder = registry.checkout(registry.resolve(f"{MODEL}@{number}"))
        with origin.session(candidate=candidate) as expected, Bundle.load(folder).session() as found:
            np.testing.assert_array_equal(found.run(feeds)["logits"], expected.run(feeds)["logits"])
        assert Bundle.load(folder).preprocess == origin.preprocess
        assert reader_for(Bundle.load(folder), origin.session().outputs) is not None

    async def served() -> list[set[str]]:
        found = []
        for number in (1, 2):
            deployment = load(registry.checkout(registry.resolve(f"{MODEL}@{number}")), name=MODEL)
            found.append({variant.id for variant in deployment.variants.values()})
            assert deployment.variant(FULL) is not None
            deployment.close()
        return found

    assert asyncio.run(served()) == [{BASELINE}, {BASELINE, INT8}]


def test_what_the_server_reads_beside_the_manifest_comes_along(tmp_path: Path) -> None:
    folder = copied("first", tmp_path / "bundle")
    other = folder / "candidates" / "int8-dynamic@onnxruntime"
    other.mkdir()
    (other / "model.onnx").write_bytes(b"x")
    for name in ("outcomes-search.npz", "recipe.yaml", "notes.txt"):
        (folder / "candidates" / INT8 / name).write_text(name)
    (folder / "baseline" / "outcomes-search.npz").write_text("search")
    (folder / "report.html").write_text("report")
    raw = json.loads((folder / "bundle.json").read_text())
    extra = {**raw["candidates"][0], "id": other.name, "artifact": f"candidates/{other.name}/model.onnx", "verdict": "reject"}
    raw["candidates"].append(extra)
    (folder / "bundle.json").write_text(json.dumps(raw))
    with Registry.open(tmp_path / "registry", create=True) as registry:
        pushed = registry.push(folder, MODEL, by=BY)
        assert {file.path for file in registry.files(pushed.version)} == {
            "report.html",
            "bundle.json",
            "baseline/model.onnx",
            "baseline/outcomes-search.npz",
            "model/model.onnx",
            "preprocess.yaml",
            f"candidates/{INT8}/outcomes-search.npz",
            f"candidates/{INT8}/recipe.yaml",
            f"candidates/{other.name}/model.onnx",
        }
        assert {file.path for file in registry.files(pushed.source)} == {
            "bundle.json",
            "baseline/model.onnx",
            "baseline/outcomes-search.npz",
            "preprocess.yaml",
        }
        assert registry.verify() == []


def test_references(registry: Registry) -> None:
    def number(ref: str) -> int:
        return registry.resolve(ref).number

    digest = registry.resolve(f"{MODEL}@3").digest
    assert (number(MODEL), number(f"{MODEL}@champion"), number(f"{MODEL}@fallback"), number(f"{MODEL}@3")) == (2, 2, 1, 3)
    assert number(f"{MODEL}@sha256:{digest[:8]}") == number(f"{MODEL}@sha256:{digest}") == 3
    registry.move(MODEL, "champion", None, expect=ANY, by=BY, why="nothing answers")
    assert number(MODEL) == 3


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("shirt", r"Unknown model 'shirt'. Allowed: shirts.\nDid you mean 'shirts'?"),
        ("shirts@9", "no version 9. It has: 1, 2, 3."),
        ("shirts@challenger", "no alias 'challenger'. It has: champion, fallback."),
        ("shirts@sha256:ab", "4 to 64 hex digits"),
        ("shirts@sha256:0000000000", "no version with a digest that begins with 0000000000"),
        ("shirts@Champion", "names no version"),
        ("shirts@9999999999999999999", "names no version"),
        ("../shirts", "cannot be a model's name"),
        ("shirts@../x", "names no version"),
        ("", "cannot be a model's name"),
    ],
)
def test_a_wrong_reference_is_told_kindly(registry: Registry, ref: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        registry.resolve(ref)
    assert said.replace(r"\n", "\n") in str(error.value)


def test_parse_ref_reads_each_form() -> None:
    ref = parse_ref("a@3")
    assert (ref.model, ref.number, ref.alias, ref.digest) == ("a", 3, None, None)
    assert parse_ref("a@sha256:abcd").digest == "abcd"
    assert parse_ref("a-1.b_c@champion").alias == "champion"
    assert parse_ref("a").alias is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a@b", "-a", "a b", "a\n", "a\0", "x" * 101, "ä"])
def test_names_that_could_lead_elsewhere_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        registry.push(bundle("first"), name, by=BY)
    with pytest.raises(UsageError, match="cannot be"):
        registry.move(MODEL, name, None, expect=ANY, by=BY, why="")
    assert registry.verify() == []


def test_an_alias_moves_by_compare_and_swap(registry: Registry) -> None:
    one, two, three = (registry.resolve(f"{MODEL}@{number}").digest for number in (1, 2, 3))
    rows = len(registry.audit())
    with pytest.raises(Conflict) as conflict:
        registry.move(MODEL, "champion", three, expect=one, by="bo", why="mine")
    assert conflict.value.found == two
    assert "shirts@champion names shirts@2, moved by ana at" in conflict.value.message
    assert "not shirts@1 as expected. Nothing was changed." in conflict.value.message
    with pytest.raises(Conflict, match="does not exist, not shirts@1 as expected"):
        registry.move(MODEL, "challenger", three, expect=one, by="bo", why="mine")
    with pytest.raises(Conflict, match="not nothing as expected"):
        registry.move(MODEL, "champion", three, expect=None, by="bo", why="mine")
    assert len(registry.audit()) == rows
    event = registry.move(MODEL, "champion", three, expect=two, by="bo", why="mine")
    assert (event.before, event.after, event.by, event.kind) == (two, three, "bo", "set")
    assert registry.move(MODEL, "champion", three, expect=two, by="bo", why="again") == event, "asked again after a crash: done already"
    with pytest.raises(UsageError, match="no version with the digest"):
        registry.move(MODEL, "champion", "ab" * 32, expect=three, by="bo", why="no such one")


def test_a_promotion_keeps_the_champion_before_as_fallback_and_a_rollback_goes_back_once(registry: Registry) -> None:
    event = registry.promote(f"{MODEL}@3", by=BY, why="better")
    assert {alias: v.number for alias, v in registry.aliases(MODEL).items()} == {"champion": 3, "fallback": 2}
    back = registry.rollback(MODEL, by="bo", why="worse")
    assert (back.before, back.after, back.kind) == (event.after, event.before, "rollback")
    assert registry.resolve(MODEL).number == 2
    rows = len(registry.audit())
    assert registry.rollback(MODEL, by="bo", why="worse, said again") == back
    assert registry.rollback(MODEL, to=event.before, by="bo", why="and again") == back
    assert len(registry.audit()) == rows
    assert registry.rollback(MODEL, to=1, by="bo", why="to the first").after == registry.resolve(f"{MODEL}@1").digest
    with pytest.raises(UsageError, match="has no event 999"):
        registry.rollback(MODEL, to=999, by="bo", why="")
    with pytest.raises(UsageError, match="never named the version"):
        registry.rollback(MODEL, to="ab" * 32, by="bo", why="")
    with pytest.raises(UsageError, match="no alias 'challenger' to roll back"):
        registry.rollback(MODEL, alias="challenger", by="bo", why="")
    assert registry.verify() == []


def test_promoting_another_alias_leaves_the_fallback_alone(registry: Registry) -> None:
    registry.promote(f"{MODEL}@3", alias="challenger", by=BY, why="try it")
    assert {alias: v.number for alias, v in registry.aliases(MODEL).items()} == {"challenger": 3, "champion": 2, "fallback": 1}
    with pytest.raises(UsageError, match="had no version before"):
        registry.rollback(MODEL, alias="challenger", by=BY, why="")


def test_a_transaction_is_all_or_nothing_and_a_part_of_it_can_fail_alone(registry: Registry) -> None:
    three = registry.resolve(f"{MODEL}@3").digest
    before = registry.audit()
    with pytest.raises(Conflict):
        _fails_at_its_end(registry, three)
    assert registry.audit() == before
    assert registry.resolve(MODEL).number == 2
    with registry.transaction() as db:
        db.execute("CREATE TABLE rollouts (id TEXT)")
        with pytest.raises(Conflict):
            registry.move(MODEL, "champion", three, expect=None, by=BY, why="", within=db)
        registry.note("rollout", "r1", {"state": "running"}, BY, within=db)
        registry.move(MODEL, "challenger", three, expect=None, by=BY, why="", within=db)
    assert [row.action for row in registry.audit(after=before[-1].id)] == ["rollout", "set"]
    with pytest.raises(UsageError, match="no transaction of this registry"):
        registry.move(MODEL, "champion", three, expect=ANY, by=BY, why="", within=db)
    assert registry.verify() == []


def _fails_at_its_end(registry: Registry, digest: str) -> None:
    with registry.transaction() as db:
        db.execute("CREATE TABLE rollouts (id TEXT)")
        registry.move(MODEL, "champion", digest, expect=ANY, by=BY, why="within", within=db)
        registry.move(MODEL, "fallback", digest, expect=None, by=BY, why="within", within=db)


def test_changes_is_another_number_after_any_commit(registry: Registry) -> None:
    with Registry.open(registry.folder) as other:
        before = registry.changes()
        assert registry.changes() == before
        other.note("hello", "world", {}, BY)
        after = registry.changes()
        assert after != before
        registry.note("hello", "again", {}, BY)
        assert registry.changes() != after


def test_the_log_never_holds_a_path_or_the_name_of_whoever_runs_it(registry: Registry) -> None:
    row = registry.note("sample", "s", {"file": f"{Path.home()}/secret/model.onnx", "list": ["/etc/passwd"]}, BY)
    assert row.body["list"] == ["passwd"]
    registry.move(MODEL, "challenger", registry.resolve(MODEL).digest, expect=None, by=BY, why="see /tmp/reports/may.html")
    assert registry.history(MODEL)[-1].why == "see may.html"
    text = json.dumps([row.body for row in registry.audit()])
    assert str(Path.home()) not in text
    assert str(registry.folder) not in text
    assert {row.by for row in registry.audit()} == {BY}
    assert registry.verify() == []


@pytest.mark.parametrize("by", ["", "  ", "a\nb", "x" * 201])
def test_who_does_it_must_be_said(registry: Registry, by: str) -> None:
    with pytest.raises(UsageError, match="Who does this"):
        registry.promote(f"{MODEL}@3", by=by, why="")
    with pytest.raises(UsageError, match="Who does this"):
        registry.push(bundle("third"), MODEL, by=by)


def test_audit_pages(registry: Registry) -> None:
    rows = registry.audit()
    assert [row.id for row in rows] == list(range(1, len(rows) + 1))
    assert registry.audit(after=2, limit=2) == rows[2:4]
    assert [row.action for row in registry.audit(subject=f"{MODEL}@champion")] == ["promote", "promote"]
    assert rows[-1].sha256 == registry.head()


def test_gc_keeps_what_is_needed(registry: Registry) -> None:
    for note in ("four", "five", "six"):
        registry.push(bundle(note), MODEL, by=BY)
    for version in registry.versions(MODEL):
        registry.checkout(version)
    dry = registry.gc(keep=1, dry_run=True, by=BY)
    assert [version.number for version in dry.versions] == [3, 4, 5]
    assert len(registry.versions(MODEL)) == 6
    assert registry.gc(keep=1, by=BY) == dry
    assert [version.number for version in registry.versions(MODEL)] == [1, 2, 6]
    assert len(list((registry.folder / "checkouts").iterdir())) == 3
    assert registry.verify() == []
    assert registry.gc(keep=1, by=BY).blobs == 0
    with pytest.raises(UsageError, match="removed by `gc`"):
        registry.resolve(f"{MODEL}@3")
    assert [version.number for version in registry.push(bundle("second"), MODEL, by=BY).new] == [7], "numbers are never used again"
    with pytest.raises(UsageError, match="at least 1"):
        registry.gc(keep=0, by=BY)


def test_gc_keeps_what_a_rollback_would_lead_to(registry: Registry) -> None:
    registry.move(MODEL, "fallback", None, expect=ANY, by=BY, why="no fallback any more")
    registry.push(bundle("four"), MODEL, by=BY)
    registry.promote(f"{MODEL}@4", by=BY, why="newest")
    registry.move(MODEL, "fallback", None, expect=ANY, by=BY, why="no fallback any more")
    registry.gc(keep=1, by=BY)
    assert [version.number for version in registry.versions(MODEL)] == [1, 2, 4]
    assert registry.rollback(MODEL, by=BY, why="as it was").after == registry.resolve(f"{MODEL}@2").digest


def test_a_difference_names_files_lineage_score_and_latency(registry: Registry) -> None:
    one, two, three = (registry.resolve(f"{MODEL}@{number}") for number in (1, 2, 3))
    found = difference(one, two, (registry.files(one), registry.files(two)))
    assert {change.what for change in found.files} == {"bundle.json", "model/model.onnx"}
    assert next(change for change in found.latency_ms if change.what == "1").before == 0.2
    assert next(change for change in found.latency_ms if change.what == "1").after == 0.1
    keys = {change.what: (change.before, change.after) for change in found.lineage}
    assert keys["recipe"] == ("fp32", "int8-static")
    assert keys["calibration.n"] == (None, 64)
    assert found.notes == ()
    assert difference(two, two, (registry.files(two),) * 2).files == ()
    assert {change.what for change in difference(two, three, (registry.files(two), registry.files(three))).files} == {"bundle.json"}
    elsewhere = replace(three, lineage={**three.lineage, "hardware": {"cpu": "another"}})
    assert "do not compare" in difference(two, elsewhere, ((), ())).notes[0]


def test_a_checkout_is_one_folder_for_all_and_is_made_again_when_it_was_changed(registry: Registry) -> None:
    version = registry.resolve(f"{MODEL}@2")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(registry.checkout(version))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {registry.folder / "checkouts" / version.digest}
    assert len(found) == 8
    assert [folder.name for folder in (registry.folder / "checkouts").iterdir()] == [version.digest]
    folder = found[0]
    for spoil in (_overwrite, _remove, _add, _link, _link_all):
        spoil(folder)
        assert [problem.kind for problem in registry.verify()] == ["checkout"]
        assert Bundle.load(registry.checkout(version)).chosen.id == INT8
        assert registry.verify() == []


def _overwrite(folder: Path) -> None:
    file = folder / "model" / "model.onnx"
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _remove(folder: Path) -> None:
    (folder / "preprocess.yaml").unlink()


def _add(folder: Path) -> None:
    (folder / "model" / "more.bin").write_text("x")


def _link(folder: Path) -> None:
    file = folder / "bundle.json"
    file.rename(folder.parent / "elsewhere.json")
    file.symlink_to(folder.parent / "elsewhere.json")


def _link_all(folder: Path) -> None:
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def test_an_exported_copy_is_the_callers(registry: Registry, tmp_path: Path) -> None:
    folder = registry.export(registry.resolve(f"{MODEL}@2"), tmp_path / "copy")
    (folder / "bundle.json").write_text("mine")
    assert registry.verify() == []
    with pytest.raises(UsageError, match="exists"):
        registry.export(registry.resolve(f"{MODEL}@2"), folder)


@pytest.mark.parametrize("path", ["model/model.onnx", "preprocess.yaml", "bundle.json", "model", "candidates", "report.html"])
def test_a_bundle_with_a_link_is_refused(tmp_path: Path, path: str) -> None:
    folder = copied("first", tmp_path / "bundle")
    (folder / "report.html").write_text("report")
    (folder / "candidates" / INT8 / "recipe.yaml").write_text("recipe")
    moved = tmp_path / "elsewhere"
    (folder / path).rename(moved)
    (folder / path).symlink_to(moved)
    with Registry.open(tmp_path / "registry", create=True) as registry:
        with pytest.raises(ModelError, match="no plain file"):
            registry.push(folder, MODEL, by=BY)
        assert registry.models() == []


def test_a_file_that_changes_while_it_is_pushed_is_refused(tmp_path: Path) -> None:
    """Same size, same time: what was found when the bundle was loaded holds no more when it is copied."""
    folder = copied("first", tmp_path / "bundle")
    file = folder / "model" / "model.onnx"
    Bundle.load(folder)
    state, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    with Registry.open(tmp_path / "registry", create=True) as registry:
        with pytest.raises(ModelError, match="changed"):
            registry.push(folder, MODEL, by=BY)
        assert registry.models() == []
        assert list((tmp_path / "registry" / "incoming").iterdir()) == []


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/hostname", "a//b", "./a", "a\\b", "C:/x", "a/../../b", ""])
def test_a_listing_that_leads_out_is_refused(path: str) -> None:
    from lowbit.registry.listing import Listed, listing_text, read_listing

    with pytest.raises(ModelError, match="no path within a bundle"):
        read_listing(listing_text([Listed(path, "ab" * 32, 1)]))


def test_no_registry_is_told_kindly(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no registry in"):
        Registry.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="No registry can be made"):
        Registry.open(tmp_path / "file", create=True)


def test_a_file_that_is_no_database_and_a_newer_one_are_told_kindly(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "registry.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ModelError, match="is damaged"):
        Registry.open(tmp_path / "odd")
    with registry.transaction() as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ModelError, match="has schema 99"):
        Registry.open(registry.folder)
