"""Two detectors of fixed batch 1: calibrated on photos of the ImageNet sample, scored on photos with what they look for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lowbit.data.preprocess import Preprocess
from panel.paths import SHARED
from panel.pool import Array, Pool, Split
from panel.subject import Subject, part

FOLDER = SHARED / "detection"
PHOTOS, CALIBRATE = 160, 100


def nanodet(path: Path) -> Array:
    """Letterbox to 416 x 416, BGR, scaled as NanoDet was trained [3, 416, 416]."""
    from PIL import Image

    with Image.open(path) as image:
        picture = image.convert("RGB")
    scale = 416 / max(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (416, 416))
    canvas.paste(picture, ((416 - picture.width) // 2, (416 - picture.height) // 2))
    pixels = np.asarray(canvas, np.float32)[..., ::-1]
    scaled = (pixels - np.array([103.53, 116.28, 123.675])) / np.array([57.375, 57.12, 58.395])
    return np.ascontiguousarray(np.moveaxis(scaled, -1, 0).astype(np.float32))


def pool(name: str, read: object, wanted: str) -> Pool:
    """The photos of `wanted` and others are scored, 100 of the ImageNet sample calibrate."""
    found = sorted(file for file in (FOLDER / wanted).rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    photos = sorted((SHARED / "imagenet-sample" / "images").glob("*.jpg"))
    files = [*found, *(photos[row] for row in part(len(photos), PHOTOS))]
    block = np.stack([read(file) for file in files])  # type: ignore[operator]
    order = np.random.default_rng(0).permutation(np.arange(len(found), len(files)))
    split = Split(order[:CALIBRATE], order[:CALIBRATE], np.concatenate([np.arange(len(found)), order[CALIBRATE:]]))
    return Pool({name: block}, None, (split,))


def ultraface_pool() -> Pool:
    steps = Preprocess(
        kind="image", resize=(240, 320), crop=None, channels="rgb", scale=1.0, mean=(127.0,), std=(128.0,), layout="nchw", dtype="float32"
    )
    return pool("input", steps, "face-images")


SUBJECTS = (
    Subject("nanodet", "boxes", lambda: FOLDER / "nanodet_m_416.onnx", lambda: pool("input.1", nanodet, "coco8"), fixed_batch=1, quick=20),
    Subject("ultraface", "boxes", lambda: FOLDER / "ultraface_slim_320.onnx", ultraface_pool, fixed_batch=1, quick=20),
)
