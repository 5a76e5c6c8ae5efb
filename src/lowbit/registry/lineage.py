"""Where a version comes from, taken out of its manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lowbit.bundle.manifest import without_paths
from lowbit.bundle.schema import CandidateEntry, Manifest

DELTA = ("value", "ci_low", "ci_high", "confidence", "n", "relative")


def lineage_of(manifest: Manifest, digests: Mapping[str, str]) -> dict[str, Any]:
    """What made the version that a manifest describes, and how good it was then.

    Args:
        manifest: Of the bundle, or of its source.
        digests: Path of each file of the version -> SHA-256.

    Returns:
        JSON: source, preprocess_sha256, recipe, recipe_sha256, artifact_bytes, tuning, calibration (None for a source), validation, score,
        latency_ms (median by batch), verdict, lowbit_version, tools, hardware, command, made.
    """
    chosen = manifest.chosen
    own = chosen.id == manifest.baseline.id
    recipe = digests.get(f"candidates/{chosen.id}/recipe.yaml") or hashlib.sha256(chosen.recipe.encode()).hexdigest()
    found = {
        "source": {"name": manifest.source.path, **manifest.source.model_dump(mode="json", exclude={"path"})},
        "preprocess_sha256": preprocess_of(manifest),
        "recipe": chosen.recipe,
        "recipe_sha256": recipe,
        "artifact_bytes": chosen.size_bytes,
        "tuning": chosen.tuning.model_dump(mode="json"),
        "calibration": None if own else manifest.data.calibration.model_dump(mode="json"),
        "validation": manifest.data.validation.model_dump(mode="json"),
        "score": _score(chosen),
        "latency_ms": {str(m.batch): m.latency_ms.p50 for m in chosen.measurements if m.streams == chosen.tuning.streams},
        "verdict": manifest.decision.verdict,
        "lowbit_version": manifest.lowbit_version,
        "tools": manifest.environment.versions,
        "hardware": manifest.environment.model_dump(mode="json", include={"cpu", "cores", "isa", "memory_bytes", "accelerator", "system"}),
        "command": manifest.command,
        "made": manifest.created,
    }
    plain: dict[str, Any] = json.loads(json.dumps(without_paths(found), allow_nan=False))
    return plain


def preprocess_of(manifest: Manifest) -> str | None:
    """SHA-256 of the preprocessing and all its files, as one; None where samples are fed as they are."""
    if manifest.preprocess is None:
        return None
    folders = ("model/", "baseline/")
    parts = sorted(f"{file.path}={file.sha256}" for file in manifest.files if not file.path.startswith(folders))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _score(entry: CandidateEntry) -> dict[str, Any] | None:
    metric = entry.metric.model_dump(mode="json") if entry.metric else None
    delta = entry.delta.model_dump(mode="json", include=set(DELTA)) if entry.delta else None
    return None if metric is None else {**metric, "delta": delta, "agreement": entry.agreement}
