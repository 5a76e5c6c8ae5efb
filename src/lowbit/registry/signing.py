"""Signatures of versions: Ed25519 over the digest, so that a version is known to come from who holds a key.

Source: RFC 8032; keys are PEM files as `openssl genpkey -algorithm ed25519` writes them.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.errors import UsageError
from lowbit.registry import audit
from lowbit.registry.records import ModelVersion

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

REPAIR = (
    "ON CONFLICT DO UPDATE SET signature = excluded.signature, at = excluded.at, by = excluded.by WHERE signature != excluded.signature"
)
"""One key's signature of one text is always the same: another one there is not valid, and signing again puts that right."""
HOW_TO_KEY = "`lowbit registry keygen KEY.pem` makes a pair; openssl's Ed25519 keys are taken, too."


def statement(digest: str) -> bytes:
    """What is signed: the words keep a signature from meaning anything else."""
    return f"lowbit registry: I answer for the version {digest}\n".encode()


def keygen(file: Path) -> Path:
    """Writes a private key (readable by its owner alone) to a new file, and the public one beside it.

    Returns:
        The public key's file, NAME.pub.pem.

    Raises:
        UsageError: there is such a file already, or it cannot be written.
    """
    _needed()
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not file.name or file.is_dir():
        raise UsageError(f"No key can be written to {file}: it is a folder.", "Name a file that does not exist yet, e.g. release.pem.")
    key, public = Ed25519PrivateKey.generate(), file.with_suffix(".pub.pem")
    for target in (file, public):
        if target.exists():
            raise UsageError(f"No key was written: {target} exists.", "Name a file that does not exist yet.")
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    other = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    try:
        for target, content in ((file, private), (public, other)):
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(content)
    except OSError as error:
        raise UsageError(
            f"No key was written to {file}: {error.strerror}.", "Name a new file in a folder that can be written to."
        ) from error
    public.chmod(0o644)
    return public


def sign(db: sqlite3.Connection, version: ModelVersion, key: Path, by: str) -> str:
    """Signs a version, within a transaction; signing it twice with one key changes nothing.

    Returns:
        The public key, hex.

    Raises:
        UsageError: the file is no private Ed25519 key, or the extra is missing.
    """
    private = private_key(key)
    public = private.public_key().public_bytes_raw().hex()
    signature = private.sign(statement(version.digest)).hex()
    values = (version.digest, public, signature, time.time(), by)
    done = db.execute("INSERT INTO signatures (digest, key, signature, at, by) VALUES (?, ?, ?, ?, ?) " + REPAIR, values)
    if done.rowcount:
        audit.append(db, "sign", version.ref, {"digest": version.digest, "key": public, "signature": signature}, by)
    return public


def valid(digest: str, key: str, signature: str) -> bool:
    """Whether a signature (hex) over a version's digest was made with the private half of a key (hex)."""
    _needed()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), statement(digest))
    except (InvalidSignature, ValueError):
        return False
    return True


def signers(db: sqlite3.Connection, digest: str) -> set[str]:
    """Public keys, hex, with a valid signature of a version."""
    rows = db.execute("SELECT key, signature FROM signatures WHERE digest = ?", (digest,)).fetchall()
    return {row["key"] for row in rows if valid(digest, row["key"], row["signature"])}


def private_key(file: Path) -> Ed25519PrivateKey:
    """A private key out of a PEM file without a password.

    Raises:
        UsageError: it is none.
    """
    _needed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_content(file), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"'{file.name}' is no private key without a password.", HOW_TO_KEY) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"'{file.name}' is no Ed25519 key.", HOW_TO_KEY)
    return key


def public_key(file: Path) -> str:
    """A public key, hex, out of a PEM file.

    Raises:
        UsageError: it is none.
    """
    _needed()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_content(file))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"'{file.name}' is no public key.", HOW_TO_KEY) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"'{file.name}' is no Ed25519 key.", HOW_TO_KEY)
    return key.public_bytes_raw().hex()


def installed() -> bool:
    """Whether signatures can be made and checked here."""
    import importlib.util

    return importlib.util.find_spec("cryptography") is not None


def _needed() -> None:
    if not installed():
        raise UsageError("Signatures need the package cryptography, which is not installed.", "pip install 'lowbit[sign]'")


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"The key '{file.name}' cannot be read: {error.strerror}.", HOW_TO_KEY) from error
