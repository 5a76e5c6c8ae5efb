"""The models of `benchmarks/targets.py`: each with the arguments of `lowbit optimize` that make its bundle, and what it is judged on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowbit.bundle.bundle import Bundle
from lowbit.cli.demo import DEMO

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
INT8 = ("--runtime", "onnxruntime", "--no-nncf", "--qat", "never")
IMAGES = SHARED / "imagenet-sample" / "images"
"""As pictures without labels: what detectors are asked; their boxes are compared with full precision's."""


@dataclass(frozen=True)
class Given:
    """A model and its data.

    Attributes:
        model: The ONNX file.
        data: What it is judged on; what calibrates is taken out of it.
        options: Of `lowbit optimize`.
        recipes: Static ones that fit the model.
    """

    model: Path
    data: Path
    options: tuple[str, ...]
    recipes: tuple[str, ...] = ("int8-static-mse",)


def shared(model: str, data: Path, *options: str) -> Callable[[Path], Given]:
    """A model of ../shared/data."""
    return lambda _: Given(SHARED / model, data, options)


def housing(folder: Path) -> Given:
    """The dense network 8-64-64-1 of examples/california, trained there."""
    out = folder / "made" / "california"
    if not (out / "mlp.onnx").exists():
        table = SHARED / "tabular" / "california_housing.csv"
        subprocess.run([sys.executable, ROOT / "examples" / "california" / "train.py", "--data", table, "--out", out], check=True)
    return Given(out / "mlp.onnx", out / "test.csv", ("--preprocess", str(out / "preprocess.yaml"), "--max-drop", "5%"))


def reviews(folder: Path) -> Given:
    """The sentence encoder MiniLM-L6 of examples/minilm, 64 tokens, and behind it a linear head for two classes of film reviews (SST-2)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    out, sentences = folder / "made" / "sst2", SHARED / "sst2" / "dev.tsv"
    if not (out / "sst2.npz").exists():
        subprocess.run([sys.executable, ROOT / "examples" / "minilm" / "export.py", "--sentences", sentences, "--out", out], check=True)
        model = onnx.load(out / "minilm.onnx")
        with np.load(SHARED / "sst2" / "minilm_linear_head.npz") as head:
            model.graph.initializer.extend(numpy_helper.from_array(head[name], f"head.{name}") for name in ("weight", "bias"))
        model.graph.node.append(helper.make_node("Gemm", [model.graph.output[0].name, "head.weight", "head.bias"], ["logits"], transB=1))
        batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2]))
        onnx.save(model, out / "sst2.onnx")
        labels = np.array([int(line.split("\t")[1]) for line in sentences.read_text(encoding="utf-8").splitlines()])
        with np.load(out / "sentences.npz") as tokens:
            np.savez(out / "sst2.npz", **tokens, label=labels)
    return Given(out / "sst2.onnx", out / "sst2.npz", ("--max-drop", "2pp"), ("int8-static-minmax", "int8-smoothed"))


def sine(folder: Path) -> Given:
    """The sine of TensorFlow Lite Micro's hello_world: three dense layers, 1-16-16-1, their weights read from its float .tflite file."""
    import onnx
    from ai_edge_litert import schema_py_generated as schema
    from onnx import TensorProto, helper, numpy_helper

    out = folder / "made" / "hello_world"
    out.mkdir(parents=True, exist_ok=True)
    file = schema.ModelT.InitFromObj(schema.Model.GetRootAs((SHARED / "tinyml" / "hello_world_float.tflite").read_bytes()))
    graph = file.subgraphs[0]
    nodes, constants, entering = [], [], "x"
    for number, layer in enumerate(graph.operators):
        weight, bias = (graph.tensors[index] for index in layer.inputs[1:3])
        for name, tensor in ((f"w{number}", weight), (f"b{number}", bias)):
            values = np.frombuffer(bytes(file.buffers[tensor.buffer].data), "<f4").reshape(tensor.shape)
            constants.append(numpy_helper.from_array(values.copy(), name))
        rectified = layer.builtinOptions.fusedActivationFunction == schema.ActivationFunctionType.RELU
        leaving = f"h{number}" if rectified else "y"
        nodes.append(helper.make_node("Gemm", [entering, f"w{number}", f"b{number}"], [f"d{number}" if rectified else "y"], transB=1))
        if rectified:
            nodes.append(helper.make_node("Relu", [f"d{number}"], [leaving]))
        entering = leaving
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("x", "y")]
    made = helper.make_graph(nodes, "hello_world", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), out / "hello_world.onnx")
    x = np.random.default_rng(0).uniform(0, 2 * np.pi, (4000, 1)).astype(np.float32)
    np.savez(out / "data.npz", x=x, label=np.sin(x[:, 0]))
    return Given(out / "hello_world.onnx", out / "data.npz", ("--max-drop", "20%"))


IMAGENET, CIFAR = SHARED / "imagenet-sample", SHARED / "cifar10" / "cifar10_test10k.npz"

MODELS: dict[str, Callable[[Path], Given]] = {
    "demo": lambda _: Given(DEMO / "resnet_fashion.onnx", DEMO / "fashion_mnist.npz", ()),
    "resnet20": shared("cifar10-resnet/resnet20.onnx", CIFAR, "--preprocess", "imagenet", "--limit", "3000", "--max-drop", "2pp"),
    "squeezenet": shared("imagenet-models/squeezenet1.1.onnx", IMAGENET, "--preprocess", "imagenet-caffe", "--max-drop", "5pp"),
    "mcunet": shared("imagenet-models/mcunet-320kb-1mb.onnx", IMAGENET, "--preprocess", "inception", "--max-drop", "5pp"),
    "sst2": reviews,
    "hello_world": sine,
    "housing": housing,
    "ultraface": shared("detection/ultraface_slim_320.onnx", IMAGES, "--preprocess", "ultraface", "--limit", "200", "--max-drop", "5pp"),
    "nanodet": shared("detection/nanodet_m_416.onnx", IMAGES, "--preprocess", "nanodet-m", "--limit", "200", "--max-drop", "5pp"),
}


def bundle_of(name: str, folder: Path) -> Bundle:
    """The model's bundle, made once; the demo has a command of its own."""
    out = folder / name
    if not (out / "report.html").exists():
        given = MODELS[name](folder)
        recipes = [word for recipe in given.recipes for word in ("--recipe", recipe)]
        command = ["demo"] if name == "demo" else ["optimize", given.model, "--data", given.data, *given.options, *INT8, *recipes]
        subprocess.run([sys.executable, "-m", "lowbit", *map(str, command), "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    return Bundle.load(out)
