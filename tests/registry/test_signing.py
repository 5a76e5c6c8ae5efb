"""Signatures of versions: made, checked, and demanded."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
from pathlib import Path

import pytest
from registry_case import BY, MODEL, filled

from conftest import missing
from lowbit.errors import ModelError, UsageError
from lowbit.registry import signing
from lowbit.registry.registry import Registry


@pytest.fixture(autouse=True)
def _installed() -> None:
    if not signing.installed():
        missing("cryptography (extra 'sign')")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return filled(tmp_path / "registry")[0]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signing.keygen(tmp_path / "release.pem")
    return tmp_path / "release.pem"


def test_a_private_key_is_its_owners_alone_and_never_overwritten(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert signing.public_key(key.with_suffix(".pub.pem")) == signing.private_key(key).public_key().public_bytes_raw().hex()
    with pytest.raises(UsageError, match="No key was written"):
        signing.keygen(key)


def test_no_half_of_a_pair_is_written(tmp_path: Path) -> None:
    (tmp_path / "one.pub.pem").write_text("mine")
    with pytest.raises(UsageError, match=r"one\.pub\.pem exists"):
        signing.keygen(tmp_path / "one.pem")
    assert not (tmp_path / "one.pem").exists()
    for folder in (tmp_path, Path()):
        with pytest.raises(UsageError, match="it is a folder"):
            signing.keygen(folder)


def test_signing_again_puts_a_spoilt_signature_right(registry: Registry, key: Path) -> None:
    version = registry.resolve(f"{MODEL}@2")
    public = registry.sign(version, key, by=BY)
    with registry.transaction() as db:
        db.execute("UPDATE signatures SET signature = 'ab'")
    assert registry.signers(version) == set()
    registry.sign(version, key, by=BY)
    assert registry.signers(version) == {public}


def test_a_signed_version_is_known_and_another_is_refused(registry: Registry, key: Path) -> None:
    two, three = registry.resolve(f"{MODEL}@2"), registry.resolve(f"{MODEL}@3")
    public = registry.sign(two, key, by=BY)
    assert registry.signers(two) == {public}
    assert registry.signers(three) == set()
    head = registry.head()
    registry.sign(two, key, by=BY)
    assert registry.head() == head, "signing twice is signing once"
    assert registry.audit()[-1].action == "sign"
    trusted = key.with_suffix(".pub.pem")
    assert {problem.subject for problem in registry.verify(trusted=[trusted])} == {f"{MODEL}@1", f"{MODEL}@3"}
    assert registry.verify() == []
    with Registry.open(registry.folder, trusted=[trusted]) as strict:
        assert strict.checkout(two).is_dir()
        with pytest.raises(ModelError, match="not signed by a trusted key"):
            strict.checkout(three)
        with pytest.raises(ModelError, match="not signed by a trusted key"):
            strict.export(three, registry.folder.parent / "out")


def test_a_signature_of_another_key_or_of_other_content_does_not_count(registry: Registry, key: Path, tmp_path: Path) -> None:
    two, three = registry.resolve(f"{MODEL}@2"), registry.resolve(f"{MODEL}@3")
    signing.keygen(tmp_path / "other.pem")
    registry.sign(two, tmp_path / "other.pem", by="eve")
    trusted = key.with_suffix(".pub.pem")
    assert f"{MODEL}@2" in {problem.subject for problem in registry.verify(trusted=[trusted])}
    public = registry.sign(three, key, by=BY)
    db = sqlite3.connect(registry.folder / "registry.sqlite")
    db.execute("UPDATE signatures SET digest = ? WHERE key = ?", (two.digest, public))
    db.commit()
    assert registry.signers(two) == {signing.public_key(tmp_path / "other.pub.pem")}
    assert [problem.text for problem in registry.verify()] == [f"A signature of {MODEL}@2 is not valid (key {public[:12]})."]


def test_the_statement_is_what_is_signed(key: Path) -> None:
    """A signature over the digest alone, or over another statement, is none."""
    private = signing.private_key(key)
    public, digest = private.public_key().public_bytes_raw().hex(), "ab" * 32
    assert signing.valid(digest, public, private.sign(f"lowbit registry: I answer for the version {digest}\n".encode()).hex())
    assert not signing.valid(digest, public, private.sign(digest.encode()).hex())
    assert not signing.valid(digest, public, "00" * 64)
    assert not signing.valid(digest, "no hex", "zz")


def test_keys_that_openssl_made_are_taken_and_others_refused(registry: Registry, tmp_path: Path) -> None:
    def openssl(*arguments: str) -> None:
        try:
            subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=tmp_path)
        except FileNotFoundError:
            missing("openssl")

    openssl("genpkey", "-algorithm", "ed25519", "-out", "theirs.pem")
    openssl("pkey", "-in", "theirs.pem", "-pubout", "-out", "theirs.pub.pem")
    two = registry.resolve(f"{MODEL}@2")
    assert registry.sign(two, tmp_path / "theirs.pem", by=BY) == signing.public_key(tmp_path / "theirs.pub.pem")
    assert len(registry.signers(two)) == 1
    openssl("genpkey", "-algorithm", "rsa", "-out", "rsa.pem")
    openssl("pkey", "-in", "rsa.pem", "-pubout", "-out", "rsa.pub.pem")
    for work, said in (
        (lambda: signing.private_key(tmp_path / "rsa.pem"), "is no Ed25519 key"),
        (lambda: signing.public_key(tmp_path / "rsa.pub.pem"), "is no Ed25519 key"),
        (lambda: signing.private_key(tmp_path / "theirs.pub.pem"), "is no private key"),
        (lambda: signing.public_key(tmp_path / "theirs.pem"), "is no public key"),
        (lambda: signing.private_key(tmp_path / "nowhere.pem"), "cannot be read"),
    ):
        with pytest.raises(UsageError, match=said):
            work()


def test_without_the_package_signing_says_what_to_install_and_signatures_are_not_believed(
    registry: Registry, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = registry.resolve(f"{MODEL}@2")
    registry.sign(two, key, by=BY)
    monkeypatch.setattr(signing, "installed", lambda: False)
    with pytest.raises(UsageError) as error:
        registry.sign(two, key, by=BY)
    assert error.value.hint == "pip install 'lowbit[sign]'"
    assert [problem.kind for problem in registry.verify()] == ["signature"]
