"""Real models and data: FP32 scores must come out as their authors' preprocessing gives them."""

from __future__ import annotations

import pytest

from lowbit.data import Preprocess, open_data
from lowbit.types import TensorInfo

CASES = [
    ("cifar10-resnet/resnet20.onnx", "cifar10/cifar10_test10k.npz", "imagenet", 0.8103),
    ("imagenet-models/mcunet-320kb-1mb.onnx", "imagenet-sample", "inception", 0.690),
    ("imagenet-models/squeezenet1.1.onnx", "imagenet-sample", "imagenet-caffe", 0.612),
]


@pytest.mark.parametrize(("model", "folder", "preset", "score"), CASES)
def test_fp32_scores_are_reproduced(shared_data, model, folder, preset, score) -> None:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # no spinning threads: this is not about speed
    session = ort.InferenceSession(shared_data / model, options, providers=["CPUExecutionProvider"])
    info = session.get_inputs()[0]
    data = open_data(shared_data / folder, [TensorInfo(info.name, tuple(info.shape), "float32")], Preprocess.preset(preset))
    right = sum(int((session.run(None, batch.feeds)[0].argmax(1) == batch.labels).sum()) for batch in data.batches(50))
    assert right / len(data) == pytest.approx(score, abs=0.0021 if len(data) == 500 else 0.0005)
    assert data.skipped == ()
