"""One sample a call: sizes are fixed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from pair_case import answers, neutral_of, residual

from graph_cases import Case, node, run, samples, weights
from lowbit.export.falling_back import parts
from lowbit.export.fixed_batch import with_fixed_batch

X = samples((3, 4, 8, 8), seed=1)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_copy_takes_just_so_many_samples_and_answers_the_same(batch: int) -> None:
    source = neutral_of(residual())
    model = onnx_ir.to_proto(with_fixed_batch(source, "Some target", batch=batch))
    onnx.checker.check_model(model, full_check=True)
    dims = [value.type.tensor_type.shape.dim[0].dim_value for value in (*model.graph.input, *model.graph.output)]
    assert dims == [batch, batch]
    found = run(model, {"x": X[:batch]})["y"]
    assert np.allclose(found, answers(source, X[:batch]), atol=1e-5)


def test_an_open_batch_stays_open() -> None:
    source = neutral_of(residual())
    model = onnx_ir.to_proto(with_fixed_batch(source, "Some target", batch=None))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_parts_hang_together_and_name_what_goes_in_and_out() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Erf", "a", "b"),
        node("Abs", "a", "c"),
        node("Mul", "b c", "d"),
        node("Conv", "d v", "e"),
        node("Erf", "e", "y"),
    ]
    case = Case(nodes, {"x": [1, 4, 8, 8]}, ["y"], {"w": weights(4, 4, 1, 1), "v": weights(4, 4, 1, 1)})
    graph = onnx_ir.from_proto(case.proto()).graph
    found = parts(graph, {"Erf:b", "Abs:c", "Mul:d", "Erf:y"})
    assert [str(part) for part in found] == [
        "Erf 'Erf:b', Abs 'Abs:c', Mul 'Mul:d' (from 'a' to 'd')",
        "Erf 'Erf:y' (from 'e' to 'y')",
    ]
    assert parts(graph, set()) == []
