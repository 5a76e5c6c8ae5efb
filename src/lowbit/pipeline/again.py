"""Go on with a bundle: the request that made it, from its journal, with more asked for."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lowbit.bundle.manifest import read_manifest
from lowbit.bundle.schema import Manifest
from lowbit.errors import UsageError
from lowbit.pipeline.journal import Journal, decode
from lowbit.pipeline.optimize import Result, carry_out
from lowbit.pipeline.reporting import Reporter
from lowbit.pipeline.request import Data, Options, read_request
from lowbit.types import Origin


def qat(
    bundle: str | Path,
    data: Data,
    *,
    calibration: Data | None = None,
    train: Data | None = None,
    train_labels: bool = False,
    minutes: float = 10.0,
    reporter: Reporter | None = None,
    command: str | None = None,
) -> Result:
    """Trains the best static integer candidate of a bundle by distillation, and decides again with it among the candidates.

    Args:
        bundle: What `optimize` wrote.
        data: The data it was given.
        calibration: Likewise, where it was given.
        train: Samples to learn from, labels not needed; those that calibrate where not given.
        train_labels: Learn from their labels, too.
        minutes: Most time to train.
        reporter: Who is told about progress.
        command: For the manifest.

    Raises:
        UsageError: not a bundle, or one of other data.
        DataError: too few samples to learn from, or such as also judge.
    """
    started, folder = time.monotonic(), Path(bundle)
    manifest = read_manifest(folder)
    start = next(Journal(folder / "journal.jsonl").events(), {})
    if "options" not in start:
        raise UsageError(f"'{folder.name}' does not say how it was made.", "Run lowbit optimize once more, with --qat always.")
    settled = {name: start["policy"][name] for name in ("task", "metric")}  # a folder's own, where the user named none
    kept: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in start["options"].items()}
    options = Options(
        **{**kept, **{name: kept[name] or value for name, value in settled.items()}},
        preprocess=folder / manifest.preprocess if manifest.preprocess else None,
        calibration=calibration,
        qat="again",
        qat_minutes=minutes,
        train=train,
        train_labels=train_labels,
    )
    with TemporaryDirectory(prefix="lowbit-") as scratch:
        request = read_request(source_of(folder, manifest, Path(scratch)), data, options)
        exported = manifest.source.exported_from
        origin = None if exported is None else decode(Origin, exported.model_dump())
        request = replace(request, model=replace(request.model, origin=origin))
        return carry_out(request, folder, reporter or Reporter(), command, started)


def source_of(folder: Path, manifest: Manifest, scratch: Path) -> Path:
    """The bundle's FP32 model under the name that it came with."""
    for file in (folder / "baseline").iterdir():
        own = file.name == "model.onnx"
        (scratch / (manifest.source.path if own else file.name)).symlink_to(file.resolve())
    return scratch / manifest.source.path
