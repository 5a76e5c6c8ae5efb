"""Every layer alone, on the exact inputs of its reference: how often does a target's kernel give another level, and by how many?

    python benchmarks/by_layer.py                         ResNet-20, SqueezeNet and MCUNet on LiteRT and on QNN, a quarter of an hour
    python benchmarks/by_layer.py --model mcunet          one model; may be repeated
    python benchmarks/by_layer.py --folder DIR            where bundles are made, and kept for the next run

End to end, differences of one level grow from layer to layer, so that a wrong kernel cannot be told from rounding. Here each operation of
LiteRT's program is a model of its own, fed with what the exact interpreter has there; and each stretch of QNN's file between two rounded
tensors, fed with what onnxruntime has there without optimizations. Results: benchmarks/results/by_layer.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from target_models import MODELS, bundle_of

from lowbit.errors import RunError
from lowbit.export.litert.sessions import BUILT_IN, XNNPACK, LiteRtSession
from lowbit.export.litert.writer import to_bytes
from lowbit.export.neutral import Neutral, read_neutral
from lowbit.export.program import reference
from lowbit.export.program.lower import lower
from lowbit.export.program.program import Kind, Operation, Port, Program
from lowbit.export.qnn import writer
from lowbit.export.qnn.session import KERNELS as HTP
from lowbit.export.qnn.session import Htp
from lowbit.pipeline.targets.samples import parted, questions
from lowbit.quant.affine import dequantize
from lowbit.types import Array, Feeds

RESULTS = Path(__file__).parent / "results" / "by_layer.json"
PANEL = ("resnet20", "squeezenet", "mcunet")


@dataclass(frozen=True)
class Layer:
    """One operation on one kernel set.

    Attributes:
        kernels: Of the target.
        kind: Of the operation, or operators of the stretch, joined by "+".
        output: Name of what it gives.
        levels: How many were compared.
        differ: How many are others.
        largest: The largest difference in levels.
    """

    kernels: str
    kind: str
    output: str
    levels: int
    differ: int
    largest: int


def compared(kernels: str, kind: str, output: str, theirs: Array, exact: Array) -> Layer:
    """Levels [N, ...] against levels."""
    apart = np.abs(theirs.astype(np.int64).reshape(-1) - exact.astype(np.int64).reshape(-1))
    return Layer(kernels, kind, output, apart.size, int((apart > 0).sum()), int(apart.max()))


def on_litert(source: Neutral, feeds: Feeds) -> Iterator[Layer]:
    """Every operation of the integer program, on XNNPACK and on LiteRT's built-in kernels."""
    program = lower(source, float_input=False, float_output=False)
    exact = reference.run_tensors(program, feeds)
    for operation in program.operations:
        if operation.kind in (Kind.QUANTIZE, Kind.DEQUANTIZE):
            continue
        alone = single(program, operation)
        fed = {}
        for port in alone.inputs:
            grid = alone.tensors[port.tensor].grid
            assert grid is not None, "the program is on integers from end to end"
            fed[port.name] = dequantize(exact[port.tensor].reshape(-1, *port.shape[1:]), grid).astype(np.float32)
        for kernels in (XNNPACK, BUILT_IN):
            session = LiteRtSession(to_bytes(alone), alone, kernels)
            output = operation.outputs[0]
            yield compared(kernels, str(operation.kind), output, session.integers(fed)[output], exact[output])
            session.close()


def single(program: Program, operation: Operation) -> Program:
    """One operation as a program."""
    tensors = {name: program.tensors[name] for name in (*operation.inputs, *operation.outputs) if name}
    inputs = dict.fromkeys(name for name in operation.inputs if name and tensors[name].data is None)
    ports = [tuple(Port(name, tensors[name].shape, name) for name in names) for names in (inputs, operation.outputs)]
    return Program("one", tensors, (operation,), *ports)


def on_qnn(source: Neutral, feeds: Feeds, folder: Path) -> Iterator[Layer]:
    """Every stretch of QNN's 8-bit file between rounded tensors, on the emulated HTP."""
    import onnx
    from onnx import numpy_helper

    path = writer.write(source, folder / "whole.onnx", 8).path
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    made = {output: each for each in model.graph.node for output in each.output}
    pairs = [each for each in model.graph.node if each.op_type == "DequantizeLinear" and each.input[0] not in constants]
    exact = {**feeds, **every_tensor(model, [each.output[0] for each in pairs], feeds)}
    cutter = onnx.utils.Extractor(model)
    for pair in pairs:
        quantizer = made.get(pair.input[0])
        if quantizer is None or quantizer.input[0] not in made:
            continue  # the model's own input
        sources, kinds = stretch(made, constants, quantizer.input[0])
        entering = [made[made[name].input[0]].input[0] for name in sources]  # before their own rounding, which gives the same levels again
        alone = cutter.extract_model(entering, [pair.output[0]])
        for value, name in zip(alone.graph.input, sources, strict=True):
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, [1, *exact[name].shape[1:]]))
        onnx.save(alone, folder / "alone.onnx")
        try:
            htp = Htp(folder / "alone.onnx", {})
        except RunError as error:
            print(f"    {pair.output[0]}: {error.message.splitlines()[0]}")
            continue
        given = htp.run(dict(zip(entering, [exact[name] for name in sources], strict=True)))[pair.output[0]]
        htp.close()
        steps = [np.rint(values / constants[pair.input[1]]) for values in (given, exact[pair.output[0]])]
        yield compared(HTP, "+".join(sorted(kinds)), pair.output[0], *steps)


def stretch(made: dict[str, Any], constants: dict[str, Array], end: str) -> tuple[list[str], list[str]]:
    """What a tensor is computed from: rounded tensors, and the operators between."""
    sources, kinds, open_ends = [], [], [end]
    while open_ends:
        name = open_ends.pop()
        node = made.get(name)
        if node is None:
            continue
        if node.op_type == "DequantizeLinear":
            sources += [name] if node.input[0] not in constants else []
            continue
        kinds.append(node.op_type)
        open_ends += [each for each in node.input if each and each not in constants]
    return list(dict.fromkeys(sources)), kinds


def every_tensor(model: Any, names: list[str], feeds: Feeds) -> dict[str, Array]:
    """Tensors of a model [N, ...], one sample a call, without optimizations."""
    import onnx
    import onnxruntime

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    given = {each.name for each in shown.graph.output}
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in given)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    count = len(next(iter(feeds.values())))
    rows = [session.run(names, {name: values[row : row + 1] for name, values in feeds.items()}) for row in range(count)]
    return {name: np.concatenate([row[place] for row in rows]) for place, name in enumerate(names)}


def summary(layers: list[Layer]) -> dict[str, dict[str, float]]:
    """By kernels and kind: layers, share of other levels, the largest difference."""
    groups: dict[str, list[Layer]] = defaultdict(list)
    for each in layers:
        groups[f"{each.kernels}: {each.kind}"].append(each)
    return {
        name: {
            "layers": len(group),
            "differ": sum(each.differ for each in group) / sum(each.levels for each in group),
            "largest": max(each.largest for each in group),
        }
        for name, group in sorted(groups.items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PANEL, action="append")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--samples", type=int, default=4)
    said = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(prefix="lowbit-layers-") as scratch:
        folder = said.folder or Path(scratch)
        for name in said.model or PANEL:
            bundle = bundle_of(name, folder)
            source = read_neutral(bundle)
            asked = questions(source, parted(bundle, MODELS[name](folder).data)[0], said.samples)
            feeds = next(asked.batches())[0]
            layers = [*on_litert(source, feeds), *on_qnn(source, feeds, Path(scratch))]
            results[name] = {"samples": said.samples, "by_kind": summary(layers), "layers": [asdict(each) for each in layers]}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            for kind, told in results[name]["by_kind"].items():
                words = f"{told['layers']:3} layers, {100 * told['differ']:6.3f} % other levels, at most {told['largest']}"
                print(f"{name:<11} {kind:<40} {words}", flush=True)


if __name__ == "__main__":
    main()
