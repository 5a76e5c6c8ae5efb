"""Quantization-aware training by others, PT2E's (torchao) and NNCF's: with labels, on the images and in the time that lowbit has.

    python benchmarks/qat_peers.py --case resnet20-w4a8 --minutes 10 --out build/peer.json

    resnet20-w4a8, resnet20-w3a8              PT2E: weights a channel, symmetric, 4 or 3 bits; activations of 8 bits
    resnet20-fp32                             the same training without quantization: how much of a gain is the labels' alone
    resnet20-w8a8-nncf, resnet20-w4a8-nncf    NNCF's quantize, trained on; what it refuses is the answer

The module is the published CIFAR ResNet-20 with its batch normalisations, which is more than lowbit gets to see. 4,500 of the 5,000
training images train, mirrored and shifted, 500 choose the best epoch, and the 10,000 test images score. Rounded are the inputs and
weights of every convolution and of the last layer; sums stay in floating point. SGD with momentum; the rate falls to zero along a
cosine over the given time; for the last quarter grids and normalisation statistics are frozen, as PyTorch's guide does.

The training images are JPEG copies of those that the network knew (data/README.md): to learn from their labels is also to get used to
them, so training can pass the FP32 model's own accuracy. That is what resnet20-fp32 is for.

torchao is installed into an environment of its own (build/venvs/torchao) where it is not there already.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
VENV = ROOT / "build" / "venvs" / "torchao"

MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HELD_OUT = 500
CALIBRATION = 100
BATCH = 64
RATES = {8: 0.005, 4: 0.01, 3: 0.02, 32: 0.005}
"""Bits of the weights -> SGD's rate at the start."""
FREEZE_AT = 0.75
"""Share of the time after which grids and normalisation statistics stay as they are."""

Numbers = dict[str, Any]
Freeze = Callable[[nn.Module], None]


class Block(nn.Module):
    """Two convolutions beside a shortcut, which skips every other pixel and pads channels with zeros where the shape changes."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, made, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(made)
        self.conv2 = nn.Conv2d(made, made, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(made)
        self.padding = (made - given) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """He et al. 2015, section 4.2 (https://arxiv.org/abs/1512.03385), named as in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = self._stage(16, 16, 1), self._stage(16, 32, 2), self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(given: int, made: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(given, made, stride), Block(made, made, 1), Block(made, made, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def network() -> ResNet20:
    stored = torch.load(SHARED / "cifar10-resnet" / "resnet20.th", weights_only=True, map_location="cpu")["state_dict"]
    module = ResNet20()
    module.load_state_dict({name.removeprefix("module."): value for name, value in stored.items()})
    return module.eval()


def images(name: str) -> tuple[Tensor, Tensor]:
    """[N, 3, 32, 32] as the network takes them, and labels [N]."""
    with np.load(SHARED / "cifar10" / f"{name}.npz") as raw:
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
        pixels = (raw["images"].astype(np.float32) / 255 - mean) / std
        return torch.from_numpy(pixels), torch.from_numpy(raw["labels"].astype(np.int64))


@torch.no_grad()
def top1(module: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Share of right answers, in percent."""
    right = sum(int((module(part).argmax(1) == labels).sum()) for part, labels in zip(x.split(500), y.split(500), strict=True))
    return 100 * right / len(y)


# PT2E ------------------------------------------------------------------------------------------------------------------


def quantizer(bits: int) -> Any:
    """Weights and inputs of convolutions and linear layers, rounded as in training; nothing else."""
    from torchao.quantization.pt2e import FakeQuantize, MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    # Not the fused kind, which is the usual default: with grids of fewer than 8 bits it trains on another grid than convert_pt2e
    # writes (its answers differed by 41 % from those of the converted module; these are the same).
    channel = FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0)
    tensor = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver)
    high = 2 ** (bits - 1) - 1
    weight = QuantizationSpec(torch.int8, channel, -high, high, torch.per_channel_symmetric, 0)
    activation = QuantizationSpec(torch.uint8, tensor, 0, 255, torch.per_tensor_affine)
    targets = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)

    class Products(Quantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                if node.target in targets:
                    specs = {node.args[0]: activation, node.args[1]: weight}
                    node.meta["quantization_annotation"] = QuantizationAnnotation(input_qspec_map=specs, _annotated=True)
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            pass

    return Products()


def exported() -> nn.Module:
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(network(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},)).module()


def pt2e(bits: int, calibration: Tensor) -> nn.Module:
    """The network with fake quantization, calibrated."""
    from torchao.quantization.pt2e import allow_exported_model_train_eval
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    module = allow_exported_model_train_eval(prepare_qat_pt2e(exported(), quantizer(bits)))
    module.eval()
    with torch.no_grad():
        for part in calibration.split(10):
            module(part)
    return module


def freeze_pt2e(module: nn.Module) -> None:
    from torchao.quantization.pt2e import disable_observer

    module.apply(disable_observer)
    module.eval()  # normalisations use their running statistics from here on; everything is still trained


def use_running_statistics(module: nn.Module) -> None:
    module.eval()


def converted(module: nn.Module) -> nn.Module:
    """What would ship: integers, with quantize and dequantize around every product."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    module.eval()
    return convert_pt2e(copy.deepcopy(module))


# Training --------------------------------------------------------------------------------------------------------------


def batches(x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in a new order; each image mirrored or not, and shifted by up to four pixels."""
    for rows in torch.randperm(len(x), generator=generator).split(BATCH):
        part = x[rows]
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        part = torch.where(mirrored[:, None, None, None], part.flip(3), part)
        down, right = torch.randint(0, 9, (2,), generator=generator).tolist()
        yield F.pad(part, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32], y[rows]


def train(module: nn.Module, x: Tensor, y: Tensor, *, minutes: float, rate: float, freeze: Freeze) -> Numbers:
    """Trains with labels until the time is over, and leaves the module as it was after its best epoch."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator)
    kept, judged = order[HELD_OUT:], order[:HELD_OUT]
    optimizer = torch.optim.SGD(module.parameters(), rate, momentum=0.9, weight_decay=1e-4, nesterov=True)
    start, budget, epochs, frozen, busy = time.monotonic(), 60 * minutes, 0, False, time.process_time()
    module.eval()  # an exported module's returns nothing
    best, state = top1(module, x[judged], y[judged]), copy.deepcopy(module.state_dict())
    while (share := (time.monotonic() - start) / budget) < 1:
        frozen = frozen or share >= FREEZE_AT
        module.train()
        if frozen:
            freeze(module)
        for given, labels in batches(x[kept], y[kept], generator):
            share = min(1.0, (time.monotonic() - start) / budget)
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * share))
            optimizer.zero_grad()
            F.cross_entropy(module(given), labels).backward()
            optimizer.step()
            if share >= 1:
                break
        epochs += 1
        module.eval()
        if (held := top1(module, x[judged], y[judged])) >= best:
            best, state = held, copy.deepcopy(module.state_dict())
    seconds, busy = time.monotonic() - start, time.process_time() - busy
    module.load_state_dict(state)
    freeze(module)
    return {"epochs": epochs, "seconds": seconds, "cpu_seconds": busy, "threads": torch.get_num_threads(), "held_out": best}


def run_pt2e(bits: int, minutes: float) -> Numbers:
    (x, y), (test, truth) = images("cifar10_train5k"), images("cifar10_test10k")
    module = pt2e(bits, x[:CALIBRATION])
    found: Numbers = {"by": "torchao PT2E", "before": top1(converted(module), test, truth)}
    found |= train(module, x, y, minutes=minutes, rate=RATES[bits], freeze=freeze_pt2e)
    return found | {"trainer": top1(module, test, truth), "after": top1(converted(module), test, truth)}


def run_fp32(minutes: float) -> Numbers:
    (x, y), (test, truth) = images("cifar10_train5k"), images("cifar10_test10k")
    module = network()
    before = top1(module, test, truth)
    found = train(module, x, y, minutes=minutes, rate=RATES[32], freeze=use_running_statistics)
    return {"by": "PyTorch", "before": before, **found, "after": top1(module, test, truth)}


def run_nncf(bits: int, minutes: float) -> Numbers:
    """NNCF folds normalisations first, so there are no statistics to freeze; its ranges are trained along with the weights."""
    os.environ["ORT_DISABLE_TELEMETRY"], sys.modules["openvino_telemetry"] = "1", None  # type: ignore[assignment]
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")  # it compiles its kernels on first use, which may take minutes
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    (x, y), (test, truth) = images("cifar10_train5k"), images("cifar10_test10k")
    asked = None if bits == 8 else AdvancedQuantizationParameters(weights_quantization_params=QuantizationParameters(num_bits=bits))
    data = nncf.Dataset([x[row : row + 1] for row in range(CALIBRATION)])
    try:
        module = nncf.quantize(network(), data, subset_size=CALIBRATION, advanced_parameters=asked)
    except Exception as error:  # the answer to a question that it may not understand
        return {"by": "NNCF", "refused": f"{type(error).__name__}: {error}"}
    before = top1(module, test, truth)
    found = train(module, x, y, minutes=minutes, rate=RATES[bits], freeze=use_running_statistics)
    return {"by": "NNCF", "before": before, **found, "after": top1(module, test, truth)}


CASES: dict[str, Callable[[float], Numbers]] = {
    "resnet20-w4a8": lambda minutes: run_pt2e(4, minutes),
    "resnet20-w3a8": lambda minutes: run_pt2e(3, minutes),
    "resnet20-w8a8": lambda minutes: run_pt2e(8, minutes),
    "resnet20-fp32": run_fp32,
    "resnet20-w8a8-nncf": lambda minutes: run_nncf(8, minutes),
    "resnet20-w4a8-nncf": lambda minutes: run_nncf(4, minutes),
}


def needs(case: str) -> tuple[str, ...]:
    return ("nncf",) if case.endswith("-nncf") else () if case.endswith("-fp32") else ("torchao",)


def environment(packages: tuple[str, ...]) -> Path:
    """The interpreter of an environment with the peers in it, made on first use. torch first and by itself, pinned, as in the Makefile."""
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    ready = VENV / f"ready-{'-'.join(packages)}"
    if not ready.exists():
        subprocess.run([*install, *pinned, "torch", "numpy"], check=True)
        subprocess.run([*install, *pinned, *packages], check=True)
        ready.touch()
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training")
    parser.add_argument("--out", type=Path, help="a JSON file to write as well")
    options = parser.parse_args()
    packages = needs(options.case)
    if any(importlib.util.find_spec(name) is None for name in packages):
        raise SystemExit(subprocess.call([str(environment(packages)), *sys.argv]))
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    found = {"case": options.case, "labels": True, "minutes": options.minutes, **CASES[options.case](options.minutes)}
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
