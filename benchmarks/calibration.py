"""Calibration: time and peak memory against plain inference and against onnxruntime's own calibrators.

    python benchmarks/calibration.py            about five minutes on two cores
    python benchmarks/calibration.py --quick    about one minute

The model is shaped like ResNet-50 (224 x 224, 25.5 M parameters, random weights; a calibrator's cost does not depend on their
values). Every configuration runs in a process of its own, and the configurations take turns; each round gives one
ratio, and the median over rounds is what counts. Seconds are wall time of the whole job: loading the model,
all samples, and computing the ranges by the methods named; the ratio of CPU seconds stands beside, because other load
on the machine disturbs it less. The images are the same for all.

onnxruntime's percentile and entropy calibrators keep every activation, so they get few images; compare per image.
Its calibrators observe the operators that its `quantize_static` quantizes by default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "calibration.json"
SIZE = 224
LIMITS = {"minmax": 1.5, "all": 2.0, "memory_mb": 50.0}


# What runs in the fresh process ---------------------------------------------------------------------------------------


def images(n: int, size: int) -> Iterator[np.ndarray[Any, Any]]:
    """Batches of images: 16 different ones, over and over, each time at another brightness."""
    pool = np.random.default_rng(0).normal(size=(16, 3, SIZE, SIZE)).astype(np.float32)
    for start in range(0, n, size):
        rows = np.arange(start, min(start + size, n))
        yield pool[rows % 16] * (1 + np.sin(rows, dtype=np.float32) / 4)[:, None, None, None]


def plain(model: Path, n: int, batch: int, threads: int) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    for x in images(n, batch):
        session.run(None, {"x": x})


def ours(model: Path, n: int, batch: int, threads: int, methods: tuple[str, ...]) -> None:
    from lowbit.compress.calibrate import calibrate
    from lowbit.types import Batch

    batches = (Batch(np.arange(len(x)), {"x": x}, None) for x in images(n, batch))
    stats = calibrate(model, batches, methods=methods, threads=threads)  # type: ignore[arg-type]
    for method in methods:
        stats.ranges(method)  # type: ignore[arg-type]


def theirs(model: Path, n: int, batch: int, method: str) -> None:
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = images(n, batch)

        def get_next(self) -> Any:
            x = next(self.batches, None)
            return None if x is None else {"x": x}

    with tempfile.TemporaryDirectory() as folder:
        operators = sorted({*QDQRegistry, *QLinearOpsRegistry})
        calibrator = create_calibrator(model, operators, str(Path(folder) / "augmented.onnx"), CalibrationMethod[method])
        calibrator.collect_data(Reader())
        calibrator.compute_data()


def work(name: str, model: Path, n: int, batch: int, threads: int) -> None:
    import onnx  # noqa: F401  imports are not what is measured
    import onnxruntime.quantization.calibrate  # noqa: F401

    import lowbit.compress.calibrate  # noqa: F401

    cpu_before, start = time.process_time(), time.perf_counter()
    if name == "plain":
        plain(model, n, batch, threads)
    elif name.startswith("onnxruntime"):
        theirs(model, n, batch, name.partition(" ")[2])
    else:
        every = ("minmax", "percentile", "entropy", "mse")
        ours(model, n, batch, threads, every if name == "lowbit all" else ("minmax",))
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - cpu_before
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mb": used.ru_maxrss / 1024}))


# The model ------------------------------------------------------------------------------------------------------------


class ResNet50:
    """Bottleneck blocks 3-4-6-3, batch normalisation folded, as ONNX."""

    def __init__(self) -> None:
        self.rng, self.nodes, self.weights = np.random.default_rng(0), list[Any](), list[Any]()

    def save(self, path: Path) -> None:
        from onnx import TensorProto, helper, save

        x = self.node("MaxPool", [self.conv("x", 3, 64, 7, 2)], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        channels = 64
        for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
            for block in range(blocks):
                stride = 2 if block == 0 and stage else 1
                y = self.conv(self.conv(x, channels, width, 1, 1), width, width, 3, stride)
                y = self.conv(y, width, 4 * width, 1, 1, relu=False)
                x = x if block else self.conv(x, channels, 4 * width, 1, stride, relu=False)
                x, channels = self.node("Relu", [self.node("Add", [y, x])]), 4 * width
        flat = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        self.nodes.append(helper.make_node("Gemm", [flat, self.weight((2048, 1000), 2048)], ["y"], name="fc"))
        shapes = {"x": ["N", 3, SIZE, SIZE], "y": ["N", 1000]}
        x_info, y_info = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
        graph = helper.make_graph(self.nodes, "resnet50", [x_info], [y_info], self.weights)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int, relu: bool = True) -> str:
        weight = self.weight((outputs, inputs, kernel, kernel), inputs * kernel**2 * (1 if relu else 4))
        y = self.node("Conv", [x, weight], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4)
        return self.node("Relu", [y]) if relu else y

    def weight(self, shape: tuple[int, ...], fan_in: int) -> str:
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        values = self.rng.normal(size=shape) * np.sqrt(2 / fan_in)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name


# What the measuring process does --------------------------------------------------------------------------------------


def fresh(name: str, model: Path, n: int, args: argparse.Namespace) -> dict[str, float]:
    """One configuration in a process of its own."""
    command = [sys.executable, __file__, "--worker", name, "--model", str(model), "--images", str(n)]
    command += ["--batch", str(args.batch), "--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} with {n} images failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {name:24} {n:4} images  {result['seconds']:7.2f} s  {result['peak_mb']:7.0f} MB", file=sys.stderr, flush=True)
    return {"images": n, **result}


def measure(model: Path, args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Rounds of all configurations, in turn; the direction alternates."""
    n, few = (48, 8) if args.quick else (96, 16)
    jobs = [("plain", n), ("lowbit minmax", n), ("lowbit all", n), ("onnxruntime MinMax", n // 3)]
    jobs += [("onnxruntime Percentile", few), ("onnxruntime Entropy", few)]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name, _ in jobs}
    for number in range(args.rounds or (2 if args.quick else 5)):
        for name, count in jobs if number % 2 == 0 else reversed(jobs):
            if name.startswith("onnxruntime") and number > 1:
                continue  # two rounds tell enough of what is several times slower
            runs[name].append(fresh(name, model, count, args))
    return runs


def summary(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    rows = []
    for name, results in runs.items():
        per_image = [r["seconds"] / r["images"] * 1e3 for r in results]
        pairs = list(zip(results, runs["plain"][: len(results)], strict=True))
        ratios, cpu = ([r[key] / r["images"] / (p[key] / p["images"]) for r, p in pairs] for key in ("seconds", "cpu_seconds"))
        rows.append(
            {
                "name": name,
                "images": int(results[0]["images"]),
                "ms_per_image": round(statistics.median(per_image), 1),
                "times_plain": round(statistics.median(ratios), 2),
                "times_plain_cpu": round(statistics.median(cpu), 2),
                "rounds": [round(r, 2) for r in ratios],
                "peak_mb": round(max(r["peak_mb"] for r in results)),
            }
        )
    return rows


def flatness(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory with few and with ten times as many images."""
    few, many = (16, 160) if args.quick else (50, 500)
    found: dict[str, Any] = {"images": [few, many]}
    for name in ("lowbit minmax", "lowbit all"):
        peaks = [fresh(name, model, n, args)["peak_mb"] for n in (few, many)]
        found[name] = {"peak_mb": [round(p, 1) for p in peaks], "growth_mb": round(peaks[1] - peaks[0], 1)}
    return found


def environment() -> dict[str, Any]:
    import onnxruntime

    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    versions = {"python": platform.python_version(), "numpy": np.__version__, "onnxruntime": onnxruntime.__version__}
    return {"cpu": cpu, "cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2), "versions": versions}


def verdicts(rows: list[dict[str, Any]], memory: dict[str, Any]) -> dict[str, bool]:
    ratio = {row["name"]: row["times_plain"] for row in rows}
    growth = max(memory[name]["growth_mb"] for name in ("lowbit minmax", "lowbit all"))
    return {
        f"min-max at most {LIMITS['minmax']}x plain inference": ratio["lowbit minmax"] <= LIMITS["minmax"],
        f"all methods at most {LIMITS['all']}x plain inference": ratio["lowbit all"] <= LIMITS["all"],
        f"memory grows by at most {LIMITS['memory_mb']:.0f} MB": growth <= LIMITS["memory_mb"],
    }


def show(report: dict[str, Any]) -> None:
    print(f"\n{'':26}{'images':>7}{'ms/image':>10}{'x plain':>9}{'CPU x':>8}{'peak MB':>9}   rounds")
    for row in report["configurations"]:
        costs = f"{row['ms_per_image']:10}{row['times_plain']:9}{row['times_plain_cpu']:8}{row['peak_mb']:9}"
        print(f"{row['name']:26}{row['images']:7}{costs}   {row['rounds']}")
    few, many = report["memory"]["images"]
    for name in ("lowbit minmax", "lowbit all"):
        peaks = report["memory"][name]["peak_mb"]
        print(f"\npeak memory of {name}: {peaks[0]} MB with {few} images, {peaks[1]} MB with {many}", end="")
    print("\n")
    for claim, holds in report["holds"].items():
        print(f"{'yes' if holds else 'NO '}  {claim}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds; writes no file")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--rounds", type=int, default=0)
    for hidden, kind in (("--worker", str), ("--model", Path), ("--images", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.model, args.images, args.batch, args.threads)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "resnet50.onnx"
        ResNet50().save(model)
        before = environment()
        rows = summary(measure(model, args))
        memory = flatness(model, args)
    report = {"environment": before, "batch": args.batch, "configurations": rows, "memory": memory, "holds": verdicts(rows, memory)}
    show(report)
    if not args.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(report["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
