"""The similarity cache on real images: how often copies are recognised, and how often an answer is wrong for it.

    python benchmarks/similarity.py

Sources: 500 photos (MCUNet), 1,000 CIFAR-10 images (ResNet-20), 1,000 Fashion-MNIST images (the demo's ResNet). All of a
model's sources are kept; then come copies (re-encoded, resized, brighter), edited images (patches inverted, shifted, text on
them), and images that are not kept. A false hit is one whose kept answer names another class than the model does on the image
itself. Intervals are Wilson's, two-sided 95 %.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from lowbit.data.preprocess import Preprocess
from lowbit.serving.answer.certainty import ClassReader
from lowbit.serving.cache.images import THUMB, Look, Pixels
from lowbit.serving.cache.similar import CLOSE, MARGIN, LocalIndex
from lowbit.serving.cache.store import Kept

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULT = ROOT / "benchmarks" / "results" / "similarity.json"
CLOSENESS = (2.0, 4.0, 6.0, 8.0, 12.0)
BLOCKS = (THUMB,)
MARGINS = (0.0, 0.3, 0.5, 0.8, 0.9)
TWO_SIDED = 1.959963984540054
BATCH = 50
Edit = Callable[[Image.Image, np.random.Generator], Image.Image]


@dataclass(frozen=True)
class Case:
    """A model with its images."""

    name: str
    model: Path
    preprocess: Preprocess
    kept: list[Image.Image]
    others: list[Image.Image]


def jpeg(quality: int) -> Edit:
    def edit(image: Image.Image, _: np.random.Generator) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        return Image.open(stream).copy()

    return edit


def resized(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Photos at three quarters of their size; small images larger and back."""
    if min(image.size) < 64:
        return image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.BICUBIC).resize(
            image.size, Image.Resampling.BICUBIC
        )
    return image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.BICUBIC)


def brighter(levels: int) -> Edit:
    def edit(image: Image.Image, _: np.random.Generator) -> Image.Image:
        return image.point([min(max(value + levels, 0), 255) for value in range(256)] * len(image.getbands()))

    return edit


def inverted(of_224: int) -> Edit:
    """A square patch within the middle of the image, as large for it as so many pixels are for 224."""

    def edit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        side = min(image.size)
        size = max(2, round(side * of_224 / 224))
        room = side * 7 // 10 - size
        x = (image.width - side * 7 // 10) // 2 + int(rng.integers(max(room, 1)))
        y = (image.height - side * 7 // 10) // 2 + int(rng.integers(max(room, 1)))
        made = image.copy()
        made.paste(ImageChops.invert(image.crop((x, y, x + size, y + size))), (x, y))
        return made

    return edit


def shifted(image: Image.Image, _: np.random.Generator) -> Image.Image:
    by = max(1, round(min(image.size) * 4 / 224))
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -by, 0, 1, 0), fillcolor=0)


def written(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    made, side = image.copy(), min(image.size)
    place = (image.width // 2 - side // 4, image.height // 2 + int(rng.integers(side // 5)))
    ImageDraw.Draw(made).text(place, "SALE 50 %" if side >= 64 else "7", fill=255 if image.mode == "L" else (255, 255, 255))
    return made


COPIES: Mapping[str, Edit] = {
    "jpeg 90": jpeg(90),
    "jpeg 75": jpeg(75),
    "resized": resized,
    "2 levels brighter": brighter(2),
    "8 levels brighter": brighter(8),
    "8 levels darker": brighter(-8),
}
EDITS: Mapping[str, Edit] = {
    "patch 32/224 inverted": inverted(32),
    "patch 16/224 inverted": inverted(16),
    "shifted 4/224": shifted,
    "text": written,
}


def cases() -> Iterator[Case]:
    photos = [Image.open(file).convert("RGB") for file in sorted((DATA / "imagenet-sample" / "images").glob("*.jpg"))]
    steps = (
        "kind: image\nresize: 201\ncrop: [176, 176]\nchannels: rgb\nscale: 1/255\nmean: [0.5]\nstd: [0.5]\nlayout: nchw\ndtype: float32\n"
    )
    faces = [Image.open(file).convert("RGB") for file in sorted((DATA / "detection").rglob("*.jpg"))]
    yield Case("photos, MCUNet", DATA / "imagenet-models" / "mcunet-320kb-1mb.onnx", Preprocess.from_yaml(steps), photos, faces)

    pixels = np.load(DATA / "cifar10" / "cifar10_test10k.npz")["images"][:2000].transpose(0, 2, 3, 1)
    small = [Image.fromarray(each) for each in pixels]
    steps = (
        "kind: image\nresize: 32\ncrop: [32, 32]\nchannels: rgb\nscale: 1/255\nmean: [0.485, 0.456, 0.406]\n"
        "std: [0.229, 0.224, 0.225]\nlayout: nchw\ndtype: float32\n"
    )
    yield Case("CIFAR-10, ResNet-20", DATA / "cifar10-resnet" / "resnet20.onnx", Preprocess.from_yaml(steps), small[:1000], small[1000:])

    with gzip.open(next((DATA / "fashion-mnist").glob("t10k-images*.gz"))) as stream:
        grey = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:2000]
    clothes = [Image.fromarray(each) for each in grey]
    steps = (
        "kind: image\nresize: 32\ncrop: [28, 28]\nchannels: grey\nscale: 1/255\nmean: [0.286]\nstd: [0.353]\nlayout: nchw\ndtype: float32\n"
    )
    model = Path(str(resources.files("lowbit") / "demo" / "resnet_fashion.onnx"))
    yield Case("Fashion-MNIST, ResNet", model, Preprocess.from_yaml(steps), clothes[:1000], clothes[1000:])


@dataclass(frozen=True)
class Asked:
    """Images as the model gets them, and what it says of them."""

    looks: Mapping[int, list[Look]]  # by blocks of a side
    classes: np.ndarray
    margins: np.ndarray


class Model:
    """Runs a case's model."""

    def __init__(self, case: Case) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(case.model, options)
        self.steps = case.preprocess
        self.name = self.session.get_inputs()[0].name
        self.reader = ClassReader("y", False)

    def ask(self, images: list[Image.Image]) -> Asked:
        logits, looks = [], {blocks: [] for blocks in BLOCKS}
        for at in range(0, len(images), BATCH):
            tensors = self.steps.batch(images[at : at + BATCH])
            logits.append(self.session.run(None, {self.name: tensors})[0])
            for blocks in BLOCKS:
                pixels = Pixels("x", True, float(self.steps.scale), self.steps.mean, self.steps.std, blocks)
                looks[blocks] += [pixels.look({"x": tensor[None]}) for tensor in tensors]
        found = np.concatenate(logits)
        return Asked(looks, found.argmax(axis=1), self.reader({"y": found}).margin)


def looked_up(index: LocalIndex, blocks: int, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Of each image: the distance to the nearest that is kept (infinite where there is none), and whether that one's class is another."""
    distances, wrong = np.full(len(asked.classes), np.inf), np.zeros(len(asked.classes), bool)
    for row, look in enumerate(asked.looks[blocks]):
        if (near := index.nearest(b"", look)) is not None:
            distances[row], wrong[row] = near[0], near[1].about["class"] != asked.classes[row]
    return distances, wrong


def filled(blocks: int, kept: Asked, margin: float) -> LocalIndex:
    index = LocalIndex(1 << 30, 1e9)

    async def fill() -> None:
        for row in np.flatnonzero(kept.margins >= margin):
            await index.put(b"", kept.looks[blocks][row], Kept({}, {"class": int(kept.classes[row])}))

    asyncio.run(fill())
    return index


def wilson(found: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if n == 0:
        return 0.0, 1.0
    share, spread = found / n, TWO_SIDED**2 / n
    half = TWO_SIDED * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    middle = share + spread / 2
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def rate(found: int, n: int) -> dict[str, float | int]:
    low, high = wilson(found, n)
    return {"found": found, "n": n, "rate": round(found / max(n, 1), 5), "ci_low": round(low, 5), "ci_high": round(high, 5)}


def measure(case: Case) -> list[dict[str, object]]:
    """One row for each kind of image, number of blocks, margin and closeness."""
    model, rng = Model(case), np.random.default_rng(0)
    kept = model.ask(case.kept)
    asked = {name: ("copy", model.ask([edit(image, rng) for image in case.kept])) for name, edit in COPIES.items()}
    asked |= {name: ("edited", model.ask([edit(image, rng) for image in case.kept])) for name, edit in EDITS.items()}
    asked["others"] = ("different", model.ask(case.others))
    rows: list[dict[str, object]] = []
    for blocks, margin in itertools.product(BLOCKS, MARGINS):
        index = filled(blocks, kept, margin)
        for name, (group, questions) in asked.items():
            distances, wrong = looked_up(index, blocks, questions)
            for close in CLOSENESS:
                hits = distances <= close
                row = {"case": case.name, "group": group, "kind": name, "blocks": blocks, "margin": margin, "close": close}
                rows.append(row | {"n": len(hits), "hits": int(hits.sum()), "false": int((hits & wrong).sum())})
    return rows


def total(rows: list[dict[str, object]], group: str | None, setting: Mapping[str, float]) -> dict[str, object]:
    """Hits of the questions, false ones of the questions, and false ones of the hits."""
    mine = [row for row in rows if group in (None, row["group"]) and all(row[key] == value for key, value in setting.items())]
    n, hits, false = (sum(int(str(row[key])) for row in mine) for key in ("n", "hits", "false"))
    return {"hits": rate(hits, n), "false_of_questions": rate(false, n), "false_of_hits": rate(false, hits)}


def main() -> None:
    if not DATA.is_dir():
        sys.exit("The images are not here: see ../shared/data.")
    rows, sources = [], {}
    for case in cases():
        print(f"{case.name}: {len(case.kept)} kept, {len(case.others)} others", flush=True)
        sources[case.name] = {"kept": len(case.kept), "others": len(case.others)}
        rows += measure(case)
    settings = []
    print("blocks  margin  close  copies hit  edited hit  false of edited (<=)  false of hits (<=)        different hit")
    for blocks, margin, close in itertools.product(BLOCKS, MARGINS, CLOSENESS):
        setting = {"blocks": blocks, "margin": margin, "close": close}
        found = {group or "all": total(rows, group, setting) for group in ("copy", "edited", "different", None)}
        settings.append(setting | found)
        edited, every = found["edited"]["false_of_questions"], found["all"]["false_of_hits"]
        print(
            f"{blocks:6}  {margin:6}  {close:5}  {found['copy']['hits']['rate']:10.3f}  {found['edited']['hits']['rate']:10.3f}  "
            f"{edited['found']:9} ({edited['ci_high']:.4f})  {every['found']:4} of {every['n']:6} ({every['ci_high']:.4f})  "
            f"{found['different']['hits']['found']:4} of {found['different']['hits']['n']}"
        )
    default = {"blocks": THUMB, "margin": MARGIN, "close": CLOSE}
    RESULT.write_text(text({"sources": sources, "default": default, "settings": settings, "rows": rows}))


def text(found: Mapping[str, object]) -> str:
    """JSON with a line for each row."""
    parts = []
    for name, value in found.items():
        lines = ",\n  ".join(json.dumps(each) for each in value) if isinstance(value, list) else None
        parts.append(f' "{name}": ' + (json.dumps(value) if lines is None else f"[\n  {lines}\n ]"))
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
