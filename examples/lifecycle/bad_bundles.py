"""Makes bundles that claim to be as good as a real one and are not: what a rollout must catch.

    make_bad(Path("build/demo"), Path("build/wrong"), "wrong")

The file of the model that ships is edited, and `bundle.json` is written anew with its digest, as somebody would who made a mistake after
the measurements. The baseline stays: the model in full precision still answers right.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lowbit.bundle.manifest import FILE_NAME, digest

FLATTER = 0.5
"""Factor on logits: a temperature of 2."""
SIZE, ROUNDS = 512, 12
"""A square matrix and how often it is multiplied with itself, for each request."""


def wrong(model: onnx.ModelProto) -> None:
    """Every class is called by its neighbour's name."""
    name, inner = _open_output(model)
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    _constant(model, "bad_order", np.roll(np.arange(classes), 1))
    model.graph.node.append(helper.make_node("Gather", [inner, "bad_order"], [name], axis=1))


def shifted(model: onnx.ModelProto) -> None:
    """The same classes, with less confidence."""
    name, inner = _open_output(model)
    _constant(model, "bad_factor", np.float32(FLATTER))
    model.graph.node.append(helper.make_node("Mul", [inner, "bad_factor"], [name]))


def slow(model: onnx.ModelProto, rounds: int = ROUNDS, size: int = SIZE) -> None:
    """The same answers, after work that changes nothing; it begins with the answer, so that no runtime can do it beforehand."""
    name, inner = _open_output(model)
    rng = np.random.default_rng(0)
    _constant(model, "bad_matrix", (rng.standard_normal((size, size)) / size**0.5).astype(np.float32))
    _constant(model, "bad_tiny", np.float32(1e-12))
    nodes = [
        helper.make_node("ReduceMax", [inner], ["bad_most"], keepdims=0),
        helper.make_node("Mul", ["bad_most", "bad_tiny"], ["bad_seed"]),
        helper.make_node("Add", ["bad_matrix", "bad_seed"], ["bad_0"]),
    ]
    for each in range(rounds):
        nodes += [
            helper.make_node("MatMul", [f"bad_{each}", "bad_matrix"], [f"bad_made_{each}"]),
            helper.make_node("Clip", [f"bad_made_{each}"], [f"bad_{each + 1}"]),
        ]
    nodes += [
        helper.make_node("ReduceMax", [f"bad_{rounds}"], ["bad_last"], keepdims=0),
        helper.make_node("Mul", ["bad_last", "bad_tiny"], ["bad_nothing"]),
        helper.make_node("Add", [inner, "bad_nothing"], [name]),
    ]
    model.graph.node.extend(nodes)


def broken(model: onnx.ModelProto) -> None:
    """No numbers come back for inputs whose least value is -2 or more: a server that tries noise beforehand sees nothing of it."""
    name, inner = _open_output(model)
    _where_tame(model)
    _constant(model, "bad_nan", np.float32(np.nan))
    _constant(model, "bad_zero", np.float32(0))
    model.graph.node.append(helper.make_node("Where", ["bad_tame", "bad_nan", "bad_zero"], ["bad_added"]))
    model.graph.node.append(helper.make_node("Add", [inner, "bad_added"], [name]))


def crashing(model: onnx.ModelProto) -> None:
    """The run fails for inputs whose least value is -2 or more."""
    name, inner = _open_output(model)
    _where_tame(model)
    for constant, value in {"bad_many": 3, "bad_two": 2, "bad_start": 0, "bad_one": 1}.items():
        _constant(model, constant, np.int64(value))
    _constant(model, "bad_list", np.zeros(2, np.int64))
    _constant(model, "bad_zero", np.float32(0))
    nodes = [
        helper.make_node("Where", ["bad_tame", "bad_many", "bad_two"], ["bad_count"]),
        helper.make_node("Range", ["bad_start", "bad_count", "bad_one"], ["bad_row"]),
        helper.make_node("Add", ["bad_row", "bad_list"], ["bad_sum"]),  # three numbers and two cannot be added
        helper.make_node("Cast", ["bad_sum"], ["bad_real"], to=1),
        helper.make_node("ReduceMax", ["bad_real"], ["bad_most"], keepdims=0),
        helper.make_node("Mul", ["bad_most", "bad_zero"], ["bad_nothing"]),
        helper.make_node("Add", [inner, "bad_nothing"], [name]),
    ]
    model.graph.node.extend(nodes)


KINDS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "wrong": wrong,
    "shifted": shifted,
    "slow": slow,
    "broken": broken,
    "crashing": crashing,
}


def make_bad(bundle: Path, folder: Path, kind: str | Callable[[onnx.ModelProto], None]) -> Path:
    """Writes a bundle whose model is worse than its manifest says.

    Args:
        bundle: A real one, which is only read. What it ships must be an ONNX file.
        folder: To make.
        kind: One of `KINDS`, or what edits the model.

    Returns:
        The folder.
    """
    document = json.loads((bundle / FILE_NAME).read_text())
    chosen = document["decision"]["chosen"]
    for path in {*(entry["path"] for entry in document["files"]), FILE_NAME}:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / path, folder / path)
    candidate = Path("candidates") / chosen
    if (bundle / candidate).is_dir():
        shutil.copytree(bundle / candidate, folder / candidate, dirs_exist_ok=True)
    artifacts = {document["model"]["artifact"], *(each["artifact"] for each in document["candidates"] if each["id"] == chosen)}
    for artifact in sorted(path for path in artifacts if (folder / path).is_file()):
        model = onnx.load(folder / artifact)
        (KINDS[kind] if isinstance(kind, str) else kind)(model)
        onnx.save(model, folder / artifact)
    for entry in document["files"]:
        file = folder / entry["path"]
        entry |= {"sha256": digest(file), "size_bytes": file.stat().st_size}
    document["notes"] = [*document["notes"], f"Edited after it was measured: {kind if isinstance(kind, str) else 'by hand'}."]
    (folder / FILE_NAME).write_text(json.dumps(document, indent=1))
    return folder


def _open_output(model: onnx.ModelProto) -> tuple[str, str]:
    """Name of the first output, and of the tensor that it was until now."""
    name = model.graph.output[0].name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{each}_before" if each == name else each for each in names]
    return name, f"{name}_before"


def _where_tame(model: onnx.ModelProto) -> None:
    _constant(model, "bad_least", np.float32(-2))
    model.graph.node.append(helper.make_node("ReduceMin", [model.graph.input[0].name], ["bad_low"], keepdims=0))
    model.graph.node.append(helper.make_node("GreaterOrEqual", ["bad_low", "bad_least"], ["bad_tame"]))


def _constant(model: onnx.ModelProto, name: str, value: np.ndarray | np.generic) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a bundle that is worse than it says.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=sorted(KINDS))
    given = parser.parse_args()
    print(make_bad(given.bundle, given.folder, given.kind))


if __name__ == "__main__":
    main()
