"""The folder's other model: OpenVINO's own format, where the classes of optimum-intel look for it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.errors import ModelError, RunError
from lowbit.export.neutral import Neutral
from lowbit.export.optimum.files import IMAGES, MODEL, Shape
from lowbit.export.qdq_again import write_qdq
from lowbit.graph.profiles import OPENVINO_CPU
from lowbit.quant.affine import Affine
from lowbit.quiet import no_output, no_telemetry

if TYPE_CHECKING:
    from lowbit.runtimes.openvino_cpu import OpenVinoSession

FILES = ("openvino_model.xml", "openvino_model.bin")
"""The names by which optimum-intel knows a model."""

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
"""OpenVINO's default is bfloat16 where the processor has it, for what is no integer."""


@dataclass(frozen=True)
class Ir:
    """What was written.

    Attributes:
        path: The .xml; its weights are beside it.
        outputs: Output -> its grid, of outputs that are rounded for everybody.
        reshapes: Whether all sizes can be opened, which is what a class does when it loads, unless told `dynamic_shapes=False`.
    """

    path: Path
    outputs: Mapping[str, Affine]
    reshapes: bool

    @property
    def size_bytes(self) -> int:
        """Of both files."""
        return sum((self.path.parent / name).stat().st_size for name in FILES)

    def keywords(self) -> dict[str, Any]:
        """Of `from_pretrained`, so that it computes what was judged, on one thread."""
        return {"ov_config": EXACT} | ({} if self.reshapes else {"dynamic_shapes": False})


def write_ir(source: Neutral, shape: Shape, folder: Path) -> Ir:
    """Writes the model: rounded where OpenVINO's kernels want it, in 32 bit where it is floating point, one name a tensor.

    Raises:
        ModelError: OpenVINO does not read it.
    """
    no_telemetry()
    import openvino

    path = folder / FILES[0]
    with tempfile.TemporaryDirectory(dir=folder) as place, no_output():
        rounded = write_qdq(source, Path(place) / MODEL, OPENVINO_CPU, renamed=shape.renamed)
        try:
            model = openvino.Core().read_model(rounded.path)
            _tidy(model, {shape.name_of(info.name) for info in (*source.inputs, *source.outputs)})
            openvino.save_model(model, path, compress_to_fp16=False)
            reshapes = _reshapes(openvino.Core().read_model(path), images=shape.task == IMAGES)
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1]
            raise ModelError(f"OpenVINO does not read the model: {said}", "Leave it out: --set openvino=false.") from error
    return Ir(path, rounded.outputs, reshapes)


def open_ir(path: Path) -> OpenVinoSession:
    """Loads the file by openvino itself, as exactly as the classes are asked to.

    Raises:
        RunError: it does not load.
    """
    no_telemetry()
    import openvino

    from lowbit.runtimes.openvino_cpu import OpenVinoSession

    try:
        return OpenVinoSession(openvino.Core().compile_model(path, "CPU", EXACT), path)
    except RuntimeError as error:
        raise RunError(f"openvino cannot load '{path.name}': {str(error).splitlines()[0]}") from error


def _tidy(model: Any, ends: Set[str]) -> None:
    """Takes away all names of tensors but those of inputs and outputs, and counts anew what OpenVINO has counted.

    When it compiles, tensors between which nothing is left become one with all their names, of which the class for custom tasks takes any.
    Operators without a name are numbered over the whole process, so that no two files would be the same.
    """
    for number, node in enumerate(model.get_ordered_ops()):
        for port in node.outputs():
            port.get_tensor().set_names(port.get_names() & ends)
        if re.fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")


def _reshapes(model: Any, *, images: bool) -> bool:
    """Does what a class does when it loads: opens the first two sizes of every input, for images all four."""
    shapes = {port: port.get_partial_shape() for port in model.inputs}
    try:
        for shape in shapes.values():
            for axis in range(4 if images else 2):
                shape[axis] = -1
        model.reshape(shapes)
    except (RuntimeError, IndexError):
        return False
    return True
