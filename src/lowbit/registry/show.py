"""What a version says of itself, read from its blobs."""

from __future__ import annotations

import json

from lowbit.bundle.manifest import FILE_NAME, migrate
from lowbit.bundle.schema import Manifest
from lowbit.errors import ModelError
from lowbit.registry.blobs import Blobs
from lowbit.registry.checkout import listing_of
from lowbit.registry.records import ModelVersion


def manifest_of(blobs: Blobs, version: ModelVersion) -> Manifest:
    """See `Registry.manifest`."""
    for file in listing_of(blobs, version.digest):
        if file.path == FILE_NAME:
            try:
                return Manifest.model_validate(migrate(json.loads(blobs.read(file.sha256))))
            except ValueError as error:
                raise ModelError(f"{FILE_NAME} of {version.ref} is not a manifest: {error}.", "Push the bundle again.") from error
    raise ModelError(f"{version.ref} has no {FILE_NAME}.", "Push the bundle again.")
