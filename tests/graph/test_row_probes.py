"""Probes for rows give the elements that were asked for and the extremes of channels, and change nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graph_cases import Case, everything, node, open_session, samples, weights
from lowbit.graph.row_probes import instrument


@pytest.mark.parametrize("opset", [13, 18])
def test_elements_and_extremes_are_those_of_the_tensors(opset: int) -> None:
    nodes = [node("Relu", "x", "r"), node("Conv", "r w", "c"), node("Conv", "c v", "y")]
    constants = {"w": weights(16, 3, 3, 3), "v": weights(4, 16, 1, 1)}
    case = Case(nodes, {"x": [2, 3, 8, 8]}, ["y"], constants, opset=opset)
    model = case.proto()
    probes = instrument(model, {"r": 4, "c": 4}, {"r": ["one"], "c": ["two", "three"]})
    names = [name for probe in probes.values() for name in probe.outputs]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    rng = np.random.default_rng(0)
    feeds = {"x": samples([2, 3, 8, 8])}
    seen = everything(case.proto(), feeds)
    wanted = {
        name: rng.integers(0, seen[tensor].size, 7 + index)
        for index, (tensor, name) in enumerate([("r", "one"), ("c", "two"), ("c", "three")])
    }
    places = {probe.places[name]: wanted[name].astype(np.int32) for probe in probes.values() for name in probe.places}
    found = dict(zip(names, open_session(model).run(names, {**feeds, **places}), strict=True))
    for tensor, probe in probes.items():
        np.testing.assert_allclose(found[probe.low], seen[tensor].min(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[probe.high], seen[tensor].max(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
        for name, output in probe.found.items():
            np.testing.assert_allclose(found[output], seen[tensor].reshape(-1)[wanted[name]], rtol=1e-5, atol=1e-6)
