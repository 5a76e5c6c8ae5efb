"""A bundle as a folder for another server: made whole beside its place, then moved there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowbit import __version__
from lowbit.bundle.bundle import Bundle
from lowbit.bundle.manifest import FILE_NAME
from lowbit.errors import UsageError
from lowbit.export.placing import made_beside, move
from lowbit.export.servers.kserve import Service, manifest
from lowbit.export.servers.leaving import Leaving, leaving
from lowbit.export.servers.triton import MODEL_FILE, Configured, configured

MODELS, MANIFEST = "models", "inferenceservice.yaml"


@dataclass(frozen=True)
class Wishes:
    """How a bundle leaves.

    Attributes:
        name: Of the model; the bundle's folder's if None.
        candidate: Its id; what ships if None.
        full: Whether the full-precision model comes along.
        max_batch: See `triton.configured`.
        window_s: See `triton.configured`.
        storage_uri: For KServe; None leaves its manifest out.
        canary: See `kserve.Service`.
        version: See `kserve.Service`.
        force: Replace what is there.
    """

    name: str | None = None
    candidate: str | None = None
    full: bool = True
    max_batch: int | None = None
    window_s: float = 0.0
    storage_uri: str | None = None
    canary: int | None = None
    version: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        repository: Folder that Triton is pointed at.
        manifest: KServe's; None without it.
        models: With their configurations.
        notes: What is different there, for people.
    """

    repository: Path
    manifest: Path | None
    models: tuple[tuple[Leaving, Configured], ...]
    notes: tuple[str, ...]


def export(folder: Path, out: Path, wishes: Wishes = Wishes()) -> Written:
    """Writes a bundle's models as a Triton repository, and KServe's manifest where a storage URI is given.

    Args:
        folder: Of the bundle; every file is checked against its digest.
        out: Folder to write; the repository itself, or for KServe the manifest with the repository in models/. Other models there stay.
        wishes: What and how.

    Raises:
        UsageError: no bundle, no such candidate, nothing that Triton takes, or the models are there already.
        ModelError: a file of the bundle was changed or is damaged.
        Interrupted: the disk is full; nothing was changed.
    """
    bundle, out = Bundle.load(folder), out.resolve()
    name = wishes.name or folder.resolve().name
    models = []
    for model in leaving(bundle, name, candidate=wishes.candidate, full=wishes.full):
        asked = wishes.max_batch if model.apart or model.name == name else None  # what was asked for is the first one's
        models.append((model, configured(model, about=_about(bundle, model), max_batch=asked, window_s=wishes.window_s)))
    texts = {}
    repository = out
    if wishes.storage_uri is not None:
        service = Service(name, wishes.storage_uri, bundle.manifest.environment.cores, wishes.canary, wishes.version)
        texts[MANIFEST] = manifest(service, _about(bundle, models[0][0]))
        repository = out / MODELS
    _write(out, repository.relative_to(out), models, texts, force=wishes.force)
    notes = tuple(note for _, made in models for note in made.notes)
    return Written(repository, out / MANIFEST if texts else None, tuple(models), notes)


def _about(bundle: Bundle, model: Leaving) -> dict[str, str]:
    """Where a model came from, so that answers elsewhere can be traced back to the evidence."""
    versions, runtime = bundle.manifest.environment.versions, model.candidate.runtime
    return {
        "candidate": model.candidate.id,
        "precision": model.candidate.precision,
        "bundle": hashlib.sha256((bundle.folder / FILE_NAME).read_bytes()).hexdigest()[:12],
        "measured-with": f"{runtime} {versions.get(runtime, 'of an unknown version')}",
        "version": __version__,
    }


def _write(out: Path, inside: Path, models: Sequence[tuple[Leaving, Configured]], texts: Mapping[str, str], *, force: bool) -> None:
    """Makes all of it in a folder beside `out`, then moves part by part into place; a part is there whole or not at all."""
    parts = [inside / model.name for model, _ in models] + [Path(name) for name in texts]
    there = [str(part) for part in parts if (out / part).exists()]
    if out.is_file() or (there and not force):
        what = "is a file" if out.is_file() else f"has {' and '.join(there)} already"
        raise UsageError(f"{out.name} {what}.", "Choose another --out folder" + (", or replace with --force." if there else "."))
    with made_beside(out) as made:
        for model, config in models:
            _write_model(made / inside / model.name, model, config)
        for name, text in texts.items():
            (made / name).write_text(text, encoding="utf-8")
        for number, part in enumerate(parts):
            move(made / part, out / part, made / f"old-{number}")


def _write_model(folder: Path, model: Leaving, config: Configured) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config.text, encoding="utf-8")
    artifact, *data = model.files
    shutil.copyfile(artifact, version / MODEL_FILE)
    for file in data:  # where the .onnx file says that it is
        target = version / file.relative_to(artifact.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
