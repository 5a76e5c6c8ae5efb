"""`lowbit registry` as a shell sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runner import Shell, lowbit
from registry_case import MODEL, bundle

from lowbit.cli.registry_tables import _one_line
from lowbit.registry.registry import Registry

Run = Callable[..., Shell]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`lowbit registry ARGS` with its folder and a name from the environment."""
    monkeypatch.setenv("LOWBIT_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("LOWBIT_BY", "ana")
    return lambda *args: lowbit(capfd, monkeypatch, "registry", *args)


@pytest.fixture
def filled(run: Run) -> Run:
    """With versions 1 and 2, of which 2 answers."""
    for args in (("push", bundle("first"), "--model", MODEL), ("promote", f"{MODEL}@1"), ("promote", f"{MODEL}@2", "--why", "faster")):
        assert run(*args).code == 0
    return run


def document(shell: Shell) -> dict[str, object]:
    assert shell.code == 0, shell.err
    return dict(json.loads(shell.out))


def test_push_list_and_show(run: Run) -> None:
    shell = run("push", bundle("first"), "--model", MODEL)
    assert shell.out.splitlines() == [
        f"{MODEL}@1  fp32@onnxruntime, fp32: new",
        f"{MODEL}@2  int8-static@onnxruntime, int8: new",
    ]
    assert "head of the log: " in shell.err
    assert f"lowbit registry promote {MODEL}@2" in shell.err
    assert "was there already" in run("push", bundle("first"), "--model", MODEL).out
    found = document(run("push", bundle("second"), "--model", MODEL, "--output", "json"))
    assert found["new"] == [f"{MODEL}@3"]
    lines = run("list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["version", f"{MODEL}@1", f"{MODEL}@2", f"{MODEL}@3"]
    versions = document(run("list", MODEL, "--output", "json"))["versions"]
    assert [version["by"] for version in versions] == ["ana"] * 3  # type: ignore[union-attr, index, attr-defined]
    shown = run("show", f"{MODEL}@2").out
    for text in ("quantized, made from shirts@1", "the 64 lowest content hashes", "lowbit optimize cnn.onnx --data images.npz", "by ana"):
        assert text in shown
    assert document(run("show", f"{MODEL}@2", "--output", "json"))["lineage"]["calibration"]["n"] == 64  # type: ignore[index]


def test_an_empty_place_and_a_wrong_name_are_told_kindly(run: Run, tmp_path: Path) -> None:
    shell = run("list")
    assert (shell.code, "There is no registry in" in shell.err) == (2, True)
    assert not (tmp_path / "registry").exists()
    shell = run("push", tmp_path)
    assert (shell.code, "is not a bundle" in shell.err) == (2, True)
    run("push", bundle("first"), "--model", MODEL)
    shell = run("show", "shirt@2")
    assert (shell.code, "Did you mean 'shirts'?" in shell.err) == (2, True)


def test_promote_rollback_and_history(filled: Run) -> None:
    shell = filled("promote", f"{MODEL}@1", "--dry-run")
    assert shell.out == f"{MODEL}@champion: {MODEL}@2 → {MODEL}@1  not done: --dry-run\n"
    assert len(document(filled("history", MODEL, "--output", "json"))["events"]) == 3  # type: ignore[arg-type]
    assert "names shirts@2 already, since event 2" in filled("promote", f"{MODEL}@2").out
    shell = filled("promote", f"{MODEL}@1", "--expect", f"{MODEL}@1")
    assert shell.code == 2 or "already" in shell.out
    shell = filled("promote", f"{MODEL}@1", "--alias", "challenger", "--expect", f"{MODEL}@2")
    assert (shell.code, "does not exist, not shirts@2 as expected. Nothing was changed." in shell.err) == (2, True)
    assert filled("promote", f"{MODEL}@1", "--alias", "challenger", "--expect", "none").code == 0
    assert "not done" in filled("rollback", MODEL, "--dry-run").out
    shell = filled("rollback", MODEL, "--why", "confidences fell")
    assert shell.out == f"{MODEL}@champion: {MODEL}@2 → {MODEL}@1  event 5\n"
    assert "nothing was changed" in filled("rollback", MODEL).out
    assert document(filled("rollback", MODEL, "--output", "json"))["changed"] is False
    assert document(filled("rollback", MODEL, "--to", "2", "--output", "json"))["changed"] is True
    assert document(filled("rollback", MODEL, "--to", f"{MODEL}@1", "--output", "json"))["kind"] == "rollback"
    lines = filled("history", MODEL, "--alias", "champion").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "5", "6", "7"]
    assert "confidences fell" in lines[3]


def test_a_rollback_takes_a_model_and_says_how_to_name_a_version(filled: Run) -> None:
    refused = filled("rollback", f"{MODEL}@1")
    assert refused.code == 2
    assert f"lowbit registry rollback {MODEL} --to {MODEL}@1" in refused.err


def test_diff(filled: Run) -> None:
    found = document(filled("diff", f"{MODEL}@1", f"{MODEL}@2", "--output", "json"))
    assert {change["what"] for change in found["files"]} == {"bundle.json", "model/model.onnx"}  # type: ignore[attr-defined, index]
    assert "recipe" in filled("diff", f"{MODEL}@1", f"{MODEL}@2").out
    assert "are the same" in filled("diff", f"{MODEL}@2", MODEL).out


def test_verify_ends_with_3_where_something_was_changed(filled: Run, tmp_path: Path) -> None:
    shell = filled("verify")
    assert (shell.code, shell.out) == (0, "Everything is as it was written.\n")
    head = shell.err.split()[-1]
    assert filled("verify", "--head", head).code == 0
    shell = filled("verify", "--head", "ab" * 32)
    assert (shell.code, "No row has the digest" in shell.out) == (3, True)
    with Registry.open(tmp_path / "registry") as registry:
        version = registry.resolve(f"{MODEL}@2")
    blob = tmp_path / "registry" / "blobs" / version.digest[:2] / version.digest
    blob.chmod(0o644)
    blob.write_bytes(b"[]")
    shell = filled("verify", "--output", "json")
    assert shell.code == 3
    assert [problem["kind"] for problem in json.loads(shell.out)["problems"]] == ["listing"]
    shell = filled("checkout", MODEL)
    assert (shell.code, "was changed after it was registered" in shell.err) == (3, True)


def test_gc_asks_first(filled: Run) -> None:
    for note in ("second", "third"):
        filled("push", bundle(note), "--model", MODEL)
    shell = filled("gc", "--keep", "1", "--dry-run")
    assert shell.out.splitlines()[0] == f"{MODEL}@3"
    assert "would be removed" in shell.out
    shell = filled("gc", "--keep", "1")
    assert (shell.code, "Say --yes, or look first with --dry-run." in shell.err) == (2, True)
    assert document(filled("gc", "--keep", "1", "--yes", "--output", "json"))["versions"] == [f"{MODEL}@3"]
    assert "removed by `gc`" in filled("show", f"{MODEL}@3").err


def test_checkout_copies_and_keys_sign(filled: Run, tmp_path: Path) -> None:
    assert (tmp_path / "registry" / "checkouts") in Path(filled("checkout", MODEL).out.strip()).parents
    assert filled("checkout", MODEL, "--out", tmp_path / "copy").out.strip() == str(tmp_path / "copy")
    assert (tmp_path / "copy" / "bundle.json").is_file()
    assert filled("checkout", MODEL, "--out", tmp_path / "copy").code == 2
    pytest.importorskip("cryptography")
    key, public = tmp_path / "release.pem", tmp_path / "release.pub.pem"
    assert filled("keygen", key).code == 0
    shell = filled("checkout", MODEL, "--trusted", public)
    assert (shell.code, "not signed by a trusted key" in shell.err) == (3, True)
    assert filled("sign", MODEL, "--key", key).code == 0
    assert filled("checkout", MODEL, "--trusted", public).code == 0
    assert filled("verify", "--trusted", public).code == 3, "version 1 is not signed"
    assert filled("push", bundle("first"), "--model", MODEL, "--sign", key).code == 0
    assert filled("verify", "--trusted", public).code == 0


def test_audit_shows_the_log(filled: Run) -> None:
    lines = filled("audit").out.splitlines()
    assert [line.split()[5] for line in lines[1:]] == ["push", "push", "promote", "promote", "set"]
    found = document(filled("audit", "--subject", f"{MODEL}@fallback", "--output", "json"))
    assert [row["action"] for row in found["rows"]] == ["set"]  # type: ignore[attr-defined, index]


def test_who_does_it_is_the_user_unless_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWBIT_BY")
    monkeypatch.setenv("LOGNAME", "bo")
    found = document(run("push", bundle("first"), "--output", "json"))
    assert found["source"]["by"] == "bo"  # type: ignore[index]
    found = document(run("promote", "model", "--by", "night watch", "--output", "json"))
    assert found["by"] == "night watch"


def test_a_push_with_a_wrong_key_registers_nothing(run: Run, tmp_path: Path) -> None:
    assert run("push", bundle("first"), "--model", MODEL, "--sign", tmp_path / "none.pem").code == 2
    assert "There is no registry" in run("list").err


def test_a_history_of_nothing_says_so(filled: Run) -> None:
    assert filled("history", MODEL, "--alias", "nobody").out == f"{MODEL} never had an alias 'nobody'.\n"


def test_a_dry_run_changes_nothing_and_says_what_would_be(filled: Run) -> None:
    before = document(filled("audit", "--output", "json"))
    found = document(filled("promote", f"{MODEL}@1", "--dry-run", "--output", "json"))
    assert (found["changed"], found["dry_run"], found["head"]) == (False, True, before["head"])
    assert filled("promote", f"{MODEL}@1", "--dry-run").out == f"{MODEL}@champion: {MODEL}@2 → {MODEL}@1  not done: --dry-run\n"
    assert document(filled("audit", "--output", "json")) == before


def test_what_a_bundle_says_does_not_steer_the_terminal() -> None:
    assert _one_line("lowbit\n optimize \x1b[2J a\u200db") == "lowbit optimize ?[2J a\u200db"
