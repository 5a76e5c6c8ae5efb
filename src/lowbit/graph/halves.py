"""Store weights in 16 bit and widen them at load time: half the size, arithmetic left to the runtime.

Every runtime folds the Cast when it loads the model, so speed is that of FP32 (or of bfloat16
where the runtime is asked for it), and no operator needs a 16-bit kernel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

MIN_ELEMENTS = 256
"""Smaller tensors (biases, scalars) stay FP32: they weigh nothing and may be sensitive."""

FLOAT16_MAX = 65504.0


def write_fp16(prepared: Path, out: Path) -> Path:
    """Writes a copy of `prepared` whose large FP32 weights are stored as FP16 followed by a Cast.

    A tensor with a value beyond FP16's range (65,504) stays FP32.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_model(prepared)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < MIN_ELEMENTS:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > FLOAT16_MAX:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_fp16"))
        casts.append(helper.make_node("Cast", [f"{name}_fp16"], [name], name=f"{name}_widen", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, out)
    return out
