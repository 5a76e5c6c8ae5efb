"""Four-bit packing: by hand, round trips, and ONNX's own packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lowbit.errors import UsageError
from lowbit.quant import packing
from lowbit.types import Array

BOUNDS = {"int4": (-8, 7), "uint4": (0, 15)}
some = st.sampled_from(sorted(BOUNDS)).flatmap(
    lambda dtype: st.tuples(
        st.just(dtype),
        arrays(np.int8, array_shapes(max_dims=3, max_side=7, min_side=0), elements=st.integers(*BOUNDS[dtype])),
    )
)


def test_by_hand() -> None:
    assert packing.pack(np.array([1, 2, 15]), "uint4").tolist() == [0x21, 0x0F]
    assert packing.pack(np.array([-1, -8, 7]), "int4").tolist() == [0x8F, 0x07]
    assert packing.unpack(np.array([0x8F, 0x07], np.uint8), (3,), "int4").tolist() == [-1, -8, 7]


@given(some)
def test_unpacking_gives_back_what_was_packed(case: tuple[str, Array]) -> None:
    dtype, values = case
    packed = packing.pack(values, dtype)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-values.size // 2),)
    back = packing.unpack(packed, values.shape, dtype)
    assert back.dtype == (np.int8 if dtype == "int4" else np.uint8)
    assert np.array_equal(back, values)


@given(some)
def test_it_is_onnxs_packing(case: tuple[str, Array]) -> None:
    import onnx
    from onnx import helper, numpy_helper

    dtype, values = case
    kind = onnx.TensorProto.INT4 if dtype == "int4" else onnx.TensorProto.UINT4
    tensor = helper.make_tensor("w", kind, values.shape, packing.pack(values, dtype).tobytes(), raw=True)
    assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), values)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UsageError, match="do not fit int4"):
        packing.pack(np.array([8]), "int4")
    with pytest.raises(UsageError, match="do not fit uint4"):
        packing.pack(np.array([-1]), "uint4")
    with pytest.raises(UsageError, match="not packed"):
        packing.pack(np.array([0]), "int8")
    with pytest.raises(UsageError, match="is 2 bytes"):
        packing.unpack(np.zeros(1, np.uint8), (3,), "int4")
