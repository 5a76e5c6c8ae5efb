"""What a detector's outputs mean, as data: written into the bundle with the preprocessing. In YAML:

    boxes:
      kind: distances          # distances, corners, yolov8 or yolov5
      score_threshold: 0.05    # boxes with lower scores are dropped
      nms_iou: 0.6             # of two boxes of one class that overlap more, the one with the lower score is dropped
      max_detections: 100      # an image
      confident: 0.3           # score from which a box counts where the model is compared with FP32
      scores: ["792", "814"]   # outputs by name; left out, they are found by their shapes
      boxes: ["795", "817"]

What the kinds are, with n boxes and C classes:

    distances   scores [N, n, C] and distances [N, n, 4 x bins], one of each per stride or one for all strides (or one output
                with both, scores first): from each cell's centre to the left, top, right and bottom, in strides; with more
                than one bin the expectation of their softmax (generalized focal loss, Li et al. 2020). NanoDet; with bins: 1 FCOS
                strides: [8, 16, 32]; bins: 8; centre: 0.5 of a cell, shift: 0 pixels; sigmoid: true where scores are logits
    corners     scores [N, n, C] and boxes [N, n, 4] as x1 y1 x2 y2
                background: 0 where that class means nothing is there; normalised: true where boxes are in 0-1
    yolov8      one output [N, 4 + C, n]: centre x and y, width, height, class scores
    yolov5      one output [N, n, 5 + C]: centre x and y, width, height, objectness, class scores
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from lowbit.errors import UsageError, unknown

KINDS = ("distances", "corners", "yolov8", "yolov5")
MOST = 1000
"""Detections an image at most: what is kept per image grows with it."""
_ONLY = {"strides": "distances", "bins": "distances", "centre": "distances", "shift": "distances", "background": "corners"}


@dataclass(frozen=True)
class Boxes:
    """How boxes are read from a detector's outputs; see the module's text for the YAML.

    Attributes:
        kind: One of KINDS.
        scores: Names of the outputs with class scores (yolo: of the only output), in the order of `strides`; empty: by shape.
        boxes: Names of the outputs with boxes; empty: by shape.
        strides: Pixels a cell, in the order of the outputs.
        bins: Numbers a distance.
        centre: Where in its cell a cell's centre lies, in cells.
        shift: Pixels added to that.
        sigmoid: Whether scores are logits still.
        background: The class that means nothing is there, None where there is none. Classes after it move up by one.
        normalised: Whether boxes are in 0-1 instead of pixels.
        score_threshold: Boxes with lower scores are dropped.
        nms_iou: Intersection over union from which the lower of two boxes of a class is dropped.
        max_detections: Boxes kept an image, the highest scores first.
        confident: Score from which a box counts where two models are compared with each other.
    """

    kind: str
    scores: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    strides: tuple[int, ...] = (8, 16, 32)
    bins: int = 1
    centre: float = 0.5
    shift: float = 0.0
    sigmoid: bool = False
    background: int | None = None
    normalised: bool = False
    score_threshold: float = 0.05
    nms_iou: float = 0.6
    max_detections: int = 100
    confident: float = 0.3

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of boxes", self.kind, KINDS)
        for key, kind in _ONLY.items():
            if self.kind != kind and getattr(self, key) != _default(key):
                raise UsageError(f"`{key}` is for boxes of kind {kind}, these are {self.kind}.", "Leave it out.")
        for key in ("score_threshold", "nms_iou", "confident"):
            if not 0 <= getattr(self, key) <= 1:
                raise UsageError(f"`{key}: {getattr(self, key):g}` of the boxes is not between 0 and 1.")
        if self.score_threshold == 0:
            raise UsageError("`score_threshold: 0` of the boxes would keep everything.", "Give a score above 0, e.g. 0.05.")
        for key, most in (("bins", 256), ("max_detections", MOST)):
            if not 1 <= getattr(self, key) <= most:
                raise UsageError(f"`{key}: {getattr(self, key)}` of the boxes is not between 1 and {most}.")
        if not self.strides or min(self.strides) < 1:
            raise UsageError(f"Strides {list(self.strides)} are not pixels a cell.", "Give e.g. `strides: [8, 16, 32]`.")
        if self.kind.startswith("yolo") and (self.boxes or len(self.scores) > 1):
            raise UsageError(f"Boxes of kind {self.kind} come from one output.", "Name it in `scores`, or leave the names out.")

    def changed(self) -> dict[str, Any]:
        """Every value that is not the default, as plain YAML has it."""
        found: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "kind" and value != field.default:
                found[field.name] = list(value) if isinstance(value, tuple) else value
        return found


def _default(key: str) -> Any:
    return next(field.default for field in fields(Boxes) if field.name == key)
