"""Profiles from a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

import small_models
from lowbit.errors import RunError
from lowbit.measure.profile import profile
from lowbit.measure.race import Variant
from lowbit.types import Tuning


def feeds() -> dict[str, small_models.Array]:
    return {"input.1": small_models.images(4)}


def test_kernels_come_in_order_with_their_seconds(tmp_path: Path) -> None:
    variant = Variant("m", "onnxruntime", small_models.cnn(tmp_path / "m.onnx"), Tuning(threads=1))
    found = profile(variant, feeds(), batch=4, repeats=8)
    assert [kernel.kind for kernel in found if kernel.kind in ("Conv", "FusedConv", "Gemm")][-1] == "Gemm"
    gemm = next(kernel for kernel in found if kernel.kind == "Gemm")
    assert gemm.origins == ("gemm",)
    assert gemm.elements == 4 * 10
    assert 0 < gemm.seconds < 1


@pytest.mark.parametrize(("file", "says"), [("absent.onnx", "does not exist"), ("text.onnx", "is not an ONNX file")])
def test_what_cannot_be_loaded_says_so(tmp_path: Path, file: str, says: str) -> None:
    (tmp_path / "text.onnx").write_text("no model at all\n")
    with pytest.raises(RunError, match=f"'{file}' cannot be profiled on onnxruntime: .*{says}"):
        profile(Variant("m", "onnxruntime", tmp_path / file), feeds(), batch=4)
