"""Preprocessing as data: what is done to a raw sample before the model sees it.

It is written into the bundle, so that serving applies the very same steps. In YAML:

    kind: image            # array: numbers, also the rows of a table; text: see `lowbit.data.text`
    resize: 256            # short side; [h, w] for exactly that; null for none; auto: crop * 256/224
    crop: [224, 224]       # from the centre; null for none; auto: the model's own size
    letterbox: [416, 416]  # instead of resize and crop: the whole image, its shape kept, the rest filled up; auto: the model's size
                           # or {size: [h, w], value: 114, align: centre or corner}
    keep_exact: true       # a sample that already has the final size is neither resized nor cropped
    interpolation: bilinear
    channels: rgb          # rgb, bgr or grey; mean and std are in this order
    scale: 1/255
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
    layout: nchw           # nchw, nhwc or nhw
    dtype: float32

Whatever is left out is `auto` and follows from the model's input. `preset: imagenet` fills in
the preset's values first. Detectors add `boxes`: what the outputs mean (`lowbit.data.boxes`). Tables add
`columns` (their order), `target`, and `target_mean` and `target_std`, by which labels are brought to the model's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from lowbit.data import steps
from lowbit.data.boxes import Boxes
from lowbit.data.geometry import Frame, Letterbox, frame_of
from lowbit.data.steps import Raw, Size
from lowbit.data.text import FILE, Text
from lowbit.errors import DataError, UsageError, unknown
from lowbit.types import Array, TensorInfo

Auto = Literal["auto"]
_CHOICES = {
    "kind": ("auto", "image", "array", "text"),
    "interpolation": ("bilinear", "bicubic"),
    "channels": ("auto", "rgb", "bgr", "grey"),
    "layout": ("auto", "nchw", "nhwc", "nhw"),
    "dtype": ("auto", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool"),
}


@dataclass(frozen=True)
class Preprocess:
    """The steps, in the order in which they are applied; see the module's text for the YAML.

    Attributes:
        kind: "image", "array", "text", or "auto": follows from the model and the data.
        resize: Short side in pixels, (height, width), None, or "auto".
        crop: (height, width), None, or "auto".
        letterbox: Instead of resize and crop: the whole image, its aspect ratio kept, the rest filled up.
        keep_exact: Leave samples that already have the final size as they are.
        interpolation: "bilinear" or "bicubic" (Pillow's, antialiased).
        channels: What the model takes: "rgb", "bgr", "grey", or "auto". Arrays are taken to be RGB.
        scale: Factor, e.g. 1/255; "auto": 1/255 for uint8 data whose mean is within [-1, 1], else 1.
        mean: Subtracted after scaling, along the last axis; one for all or one a channel or column; empty for none.
        std: Divided by after that.
        layout: Of the model's input.
        dtype: Of the model's input.
        columns: Order of a table's columns.
        target: The table's label column.
        target_mean: Labels become (label - target_mean) / target_std.
        target_std: See `target_mean`.
        boxes: What the outputs of a detector mean; None where the model is none.
        text: How text becomes tokens; None where samples are no text.
        note: What was inferred, in words.
    """

    kind: str = "auto"
    resize: int | Size | Auto | None = "auto"
    crop: Size | Auto | None = "auto"
    letterbox: Letterbox | None = None
    keep_exact: bool = True
    interpolation: str = "bilinear"
    channels: str = "auto"
    scale: float | Auto = "auto"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "auto"
    dtype: str = "auto"
    columns: tuple[str, ...] = ()
    target: str | None = None
    target_mean: float | None = None
    target_std: float | None = None
    boxes: Boxes | None = None
    text: Text | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise unknown(f"value of `{key}`", getattr(self, key), allowed)
        if any(value <= 0 for value in (*self.std, *(() if self.target_std is None else (self.target_std,)))):
            raise UsageError("A standard deviation in the preprocessing is zero or negative; it must be above 0.")
        if len({len(values) for values in (self.mean, self.std) if len(values) > 1}) > 1:
            raise UsageError(
                f"The preprocessing has {len(self.mean)} means and {len(self.std)} standard deviations.", "Give as many of each."
            )
        if (self.kind == "text") != (self.text is not None):
            raise UsageError("Preprocessing with `kind: text` has a section `text`, and no other has.")
        if self.letterbox is not None and not (self.resize in (None, "auto") and self.crop in (None, "auto")):
            raise UsageError("The preprocessing has both `letterbox` and `resize` or `crop`.", "Leave one of them out.")

    @classmethod
    def preset(cls, name: str) -> Preprocess:
        """A preset by name; sizes follow from the model unless the preset fixes them.

        Raises:
            UsageError: no such preset.
        """
        if name not in PRESETS:
            raise unknown("preset", name, PRESETS)
        return PRESETS[name]

    @classmethod
    def load(cls, spec: str | Path) -> Preprocess:
        """A YAML file, or a preset by name.

        Raises:
            UsageError: neither, or the file's content is not understood.
        """
        if str(spec) in PRESETS:
            return PRESETS[str(spec)]
        path = Path(spec)
        if path.suffix not in (".yaml", ".yml") and not path.is_file():
            raise unknown("preprocessing (a preset or a .yaml file)", spec, PRESETS)
        try:
            return cls.from_yaml(path.read_text(encoding="utf-8"), path.parent)
        except (OSError, ValueError) as error:
            raise UsageError(f"The preprocessing file '{path.name}' cannot be read: {error}") from error

    @classmethod
    def from_yaml(cls, text: str, folder: Path | None = None) -> Preprocess:
        """Reads what `to_yaml` wrote, or what a person did.

        Args:
            text: The YAML.
            folder: Where it is, and with it the files that it names (a tokenizer).

        Raises:
            UsageError: not YAML, an unknown key, or a value that is not allowed.
        """
        from lowbit.data.preprocess_yaml import parse

        return parse(cls, text, folder)

    def to_yaml(self) -> str:
        """Every value that is not `auto` or empty; `from_yaml` gives back an equal object."""
        out: dict[str, Any] = {"schema": 1}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                out[field.name] = _plain(value)
        if out.get("scale") == 1 / 255:
            out["scale"] = "1/255"
        return yaml.safe_dump(out, sort_keys=False, width=1000, default_flow_style=None)

    def files(self) -> dict[str, str]:
        """Files that belong beside the YAML: name -> content."""
        return {} if self.text is None else {FILE: self.text.tokenizer}

    def __call__(self, sample: Raw) -> Array:
        """One raw sample as the model takes it, without the batch axis.

        Args:
            sample: A Pillow image, a path, encoded bytes, an array, or a row by column name.

        Raises:
            DataError: it cannot be read, or lacks a column.
        """
        return self.batch([sample])[0]

    def batch(self, values: Array | Sequence[Raw], name_of: Callable[[int], str] = "sample {}".format) -> Array:
        """Raw samples as the model takes them.

        Args:
            values: An array [N, ...] or N raw samples.
            name_of: Position -> name, for messages.

        Returns:
            [N, ...] in `dtype`, C-contiguous.

        Raises:
            DataError: a sample cannot be read, the sizes differ, or a cast would lose values.
        """
        from lowbit.data.fit import cast, stack

        if self.kind == "text":
            raise UsageError("Text becomes several arrays.", "Use lowbit.data.prepare(samples, inputs, preprocess).")
        if self.kind == "auto":
            raise UsageError("This preprocessing is not settled yet.", "Call `resolve` with the model's input first.")
        if self.kind == "array":
            rows: Sequence[Raw] | Array = [self._row(value) for value in values] if not isinstance(values, np.ndarray) else values
            block = steps.standardise(stack(rows, name_of), self._scale, self.mean, self.std)
        else:
            pixels = self._pixels(values, name_of)
            block = steps.to_layout(steps.standardise(pixels, self._scale, self.mean, self.std), self.layout)
        return np.ascontiguousarray(block if self.dtype == "auto" else cast(block, self.dtype))

    def labels(self, labels: Array) -> Array:
        """Labels in the model's scale: `(label - target_mean) / target_std`, where those are given."""
        if self.target_mean is None and self.target_std is None:
            return labels
        return (np.asarray(labels, np.float64) - (self.target_mean or 0.0)) / (self.target_std or 1.0)

    def resolve(self, info: TensorInfo, example: Raw) -> Preprocess:
        """Settles everything that is `auto`.

        Args:
            info: The model's input.
            example: One raw sample.

        Raises:
            DataError: the model's input is not an image's, or its size is dynamic and none was given.
        """
        from lowbit.data.resolve import resolve

        return resolve(self, info, example)

    @property
    def _scale(self) -> float:
        return 1.0 if isinstance(self.scale, str) else self.scale

    def _row(self, value: Raw) -> Array:
        """One row: a mapping by column, or anything numpy understands."""
        if not isinstance(value, Mapping):
            return as_numbers(value)
        names = self.columns or tuple(value)
        if missing := [name for name in names if name not in value]:
            raise DataError(f"The row lacks {', '.join(missing)}. It has {', '.join(map(str, value))}.")
        return as_numbers([value[name] for name in names])

    def _pixels(self, values: Array | Sequence[Raw], name_of: Callable[[int], str]) -> Array:
        """[N, H, W, C] after resize, crop and channel order."""
        from lowbit.data.fit import stack

        channels = 1 if self.channels == "grey" else 3
        if isinstance(values, np.ndarray):
            block = steps.match_channels(steps.channels_last(values, channels, self.layout), channels)
            if self._moves((block.shape[1], block.shape[2])):
                block = np.stack([steps.place_planes(one, self._place) for one in block])
        else:
            block = stack([self._one_image(value, channels) for value in values], name_of)
        return block[..., ::-1] if self.channels == "bgr" else block

    def _one_image(self, raw: Raw, channels: int) -> Array:
        if steps.is_image(raw):
            pixels = np.asarray(self._place(steps.colours(steps.decode(raw), self.channels)))
            return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
        block = steps.match_channels(steps.channels_last(as_numbers(raw)[np.newaxis], channels, self.layout), channels)
        return steps.place_planes(block[0], self._place) if self._moves((block.shape[1], block.shape[2])) else block[0]

    def _place(self, image: Any) -> Any:
        """Resizes, crops or letterboxes one Pillow image."""
        if self.letterbox is not None and not isinstance(self.letterbox.size, str):
            return steps.letterbox(image, self.letterbox.size, self.letterbox.value, self.letterbox.align, self.interpolation)
        return steps.place(image, *self._geometry, self.interpolation, self.keep_exact)

    def _moves(self, size: Size) -> bool:
        """Whether an image of this size is resized, cropped or letterboxed at all."""
        if self.letterbox is not None:
            return self.letterbox.size != size
        return steps.needs_geometry(size, *self._geometry, self.keep_exact)

    def frame(self, size: Size) -> Frame:
        """Where an image of this height and width lands in the model's input; see `lowbit.data.geometry.to_original`."""
        return frame_of(size, *self._geometry, self.letterbox, self.keep_exact)

    @property
    def size(self) -> Size | None:
        """Height and width of the model's input once settled; None where they follow from the image."""
        if self.letterbox is not None:
            return None if isinstance(self.letterbox.size, str) else self.letterbox.size
        resize, crop = self._geometry
        return crop or (resize if isinstance(resize, tuple) else None)

    @property
    def _geometry(self) -> tuple[int | Size | None, Size | None]:
        """Resize and crop once settled."""
        resize = None if isinstance(self.resize, str) else self.resize
        crop = None if isinstance(self.crop, str) else self.crop
        return resize, crop


def _plain(value: Any) -> Any:
    """A field's value as YAML has it."""
    if isinstance(value, Text):
        return value.plain()
    if isinstance(value, Boxes):
        return value.changed()
    if isinstance(value, Letterbox):
        return {key: _plain(item) for key, item in vars(value).items()}
    return list(value) if isinstance(value, tuple) else value


def as_numbers(value: Raw) -> Array:
    """Anything array-like as an array of numbers.

    Raises:
        DataError: text, mixed lengths, or objects.
    """
    if hasattr(value, "detach"):  # a torch tensor, wherever it is
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"A value is not an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"A value is not an array of numbers but of {array.dtype}.",
            "Encode text as numbers first (tokenise it, number its categories).",
        )
    return array


_UNIT = Preprocess(kind="image", scale=1 / 255)
PRESETS: Mapping[str, Preprocess] = {
    # 0-1, no mean: what many small models take.
    "unit": _UNIT,
    # torchvision's ImageNet models; also the CIFAR ResNets of He et al. as most repositories train them.
    "imagenet": replace(_UNIT, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    # Caffe's: BGR, pixel means, no scaling, crop from a short side of 256.
    "imagenet-caffe": Preprocess(kind="image", resize=256, channels="bgr", scale=1.0, mean=(104.0, 117.0, 123.0)),
    # -1 to 1: Inception, MobileNet (TensorFlow), MCUNet.
    "inception": replace(_UNIT, mean=(0.5,), std=(0.5,)),
    # CIFAR-10's own mean and standard deviation.
    "cifar10": replace(_UNIT, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "fashion-mnist": replace(_UNIT, channels="grey", mean=(0.2860,), std=(0.3530,)),
    "mnist": replace(_UNIT, channels="grey", mean=(0.1307,), std=(0.3081,)),
    # Ultralytics' exports without non-maximum suppression in them.
    "yolov5": replace(_UNIT, channels="rgb", letterbox=Letterbox(), boxes=Boxes("yolov5")),
    "yolov8": replace(_UNIT, channels="rgb", letterbox=Letterbox(), boxes=Boxes("yolov8")),
    # NanoDet-m, at whatever size it was exported: generalized focal loss with 8 bins, pixel means in BGR order.
    "nanodet-m": Preprocess(
        kind="image",
        letterbox=Letterbox(value=0),
        channels="bgr",
        scale=1.0,
        mean=(103.53, 116.28, 123.675),
        std=(57.375, 57.12, 58.395),
        boxes=Boxes("distances", bins=8, shift=-0.5),
    ),
    # Ultra-Light-Fast-Generic-Face-Detector, slim and RFB: resized to exactly the model's size, class 0 is the background.
    "ultraface": Preprocess(
        kind="image",
        channels="rgb",
        scale=1.0,
        mean=(127.0,),
        std=(128.0,),
        boxes=Boxes("corners", background=0, normalised=True, nms_iou=0.3, confident=0.7),
    ),
}
