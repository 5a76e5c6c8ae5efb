"""A bundle's source model as a bundle of its own: what a registry keeps as the parent of everything that was made from it."""

from __future__ import annotations

from lowbit.bundle.schema import DecisionEntry, Manifest, ModelEntry

REASON = "This is the source model in its own precision: what everything that was made from it is compared with."


def source_manifest(manifest: Manifest) -> Manifest:
    """The manifest of a bundle that answers with its baseline and holds nothing else.

    Applying it twice changes nothing more, and it says when and with what the baseline was measured, not when it was derived.

    Args:
        manifest: Of any bundle.

    Returns:
        Lists the files of the baseline and of the preprocessing, at the paths that they have in the bundle.

    Raises:
        ValueError: the manifest names no file of its baseline (an own invariant).
    """
    baseline = manifest.baseline
    if baseline.artifact is None:
        raise ValueError("a baseline always has its artifact")
    shipped, kept = folder_of(manifest.model.artifact), folder_of(baseline.artifact)
    files = tuple(file for file in manifest.files if shipped == kept or folder_of(file.path) != shipped)
    decision = DecisionEntry(verdict="keep", chosen=baseline.id, reasons=(REASON,), next_steps=())
    language = manifest.language
    if language is not None:
        own = {baseline.id: language.candidates[baseline.id]} if baseline.id in language.candidates else {}
        language = language.model_copy(update={"chosen": language.baseline or language.chosen, "candidates": own})
    changed = {
        "candidates": (),
        "language": language,
        "decision": decision,
        "model": ModelEntry(artifact=baseline.artifact, inputs=manifest.model.inputs, outputs=manifest.model.outputs),
        "files": files,
    }
    # Through validation again, because `model_copy` does not check.
    return Manifest.model_validate({**{name: getattr(manifest, name) for name in Manifest.model_fields}, **changed})


def folder_of(path: str) -> str:
    """The first part of a path within a bundle; "" for a file at the top."""
    first, slash, _ = path.partition("/")
    return first if slash else ""
