"""The demo model as C code in QEMU: logits against tflite-micro's, arena against its head, SRAM, flash, stack, instructions.

    python benchmarks/cortexm.py                                  makes the demo bundle first; some ten minutes on two quiet cores
    python benchmarks/cortexm.py --bundle DIR                     a demo bundle that is there
    python benchmarks/cortexm.py --bundle DIR --also RESNET_DIR   and other bundles, asked samples drawn from what calibration saw
    python benchmarks/cortexm.py --samples 20 --board qemu-m7     less of it

The program is written as C and as a .tflite file; 500 Fashion-MNIST images that calibrated nothing are answered by the C code on an
emulated Cortex-M4, M7 and M55 and by tflite-micro on this machine, and every logit is compared as an integer. Instructions are counted
by QEMU (-icount and the board's SysTick): in emulation, without caches, wait states or dual issue. They are not latency.
Results: benchmarks/results/cortexm.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.bundle.bundle import Bundle
from lowbit.errors import ModelError
from lowbit.export.base import Artifact
from lowbit.export.cortexm import qemu
from lowbit.export.cortexm.prepared import prepare
from lowbit.export.cortexm.session import CSession
from lowbit.export.cortexm.target import CortexM
from lowbit.export.litert import sessions, writer
from lowbit.export.neutral import read_neutral
from lowbit.export.program.lower import lower
from lowbit.export.program.program import Program
from lowbit.pipeline.targets.samples import questions
from lowbit.types import Array, Feeds

RESULTS = Path(__file__).parent / "results" / "cortexm.json"
COUNTED = 2
"""Samples with instructions counted; the number is the same for every sample, but for saturated roundings."""
SMALL_KB = 320
"""SRAM of the chips that MCUNet was made for."""


def demo_bundle(folder: Path | None) -> Bundle:
    """The bundle in a folder, or a new one of the demo."""
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="lowbit-cortexm-")) / "demo"
        subprocess.run([sys.executable, "-m", "lowbit", "demo", "--out", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return Bundle.load(folder)


def samples_of(bundle: Bundle, wanted: int, data: Path | None) -> tuple[Feeds, Array | None]:
    """Feeds, and labels where there are data."""
    asked = questions(bundle, read_neutral(bundle), data, wanted)
    batches = list(asked.batches())
    names = batches[0][0]
    feeds = {name: np.concatenate([batch[name] for batch, _ in batches])[:wanted] for name in names}
    labels = None if data is None else np.concatenate([label for _, label in batches if label is not None])[:wanted]
    return feeds, labels


def on_board(target: CortexM, artifact: Artifact, kernels: str, feeds: Feeds, expected: Array, labels: Array | None) -> dict[str, Any]:
    """All samples on one emulated core, compared with tflite-micro's integers."""
    session = target.open(artifact, kernels)
    assert isinstance(session, CSession)
    try:
        answers = session.integers(feeds)
        assert answers is not None
        found = next(iter(answers.values())).reshape(len(expected), -1)
        stack = session.last.stack if session.last else None
        counted = None if kernels == qemu.HOST else session.count({name: values[:COUNTED] for name, values in feeds.items()}).instructions
    finally:
        session.close()
    row: dict[str, Any] = {
        "identical": bool(np.array_equal(found, expected)),
        "samples": len(found),
        "different_logits": int(np.count_nonzero(found != expected)),
        "argmax_agreement": float((found.argmax(1) == expected.argmax(1)).mean()),
        "stack_bytes": stack,
        "instructions_in_emulation_not_latency": counted,
    }
    return row if labels is None else {**row, "accuracy": float((found.argmax(1) == labels).mean())}


def judge(program: Program, feeds: Feeds, labels: Array | None, boards: list[str]) -> dict[str, Any]:
    """One model on every core."""
    target = CortexM()
    content = writer.to_bytes(program)
    oracle = sessions.LiteRtSession(content, program, sessions.MICRO)
    expected = next(iter(oracle.integers(feeds).values()))
    expected = expected.reshape(len(expected), -1)
    with tempfile.TemporaryDirectory() as folder:
        settings = {wish.name: wish.default for wish in target.wishes}
        artifact = target.write_program(program, Path(folder), settings, "a bundle")
        with ThreadPoolExecutor(len(boards)) as pool:
            rows = list(pool.map(lambda kernels: on_board(target, artifact, kernels, feeds, expected, labels), boards))
        size = target.measure(artifact)
    return {
        "model": program.name,
        "arena": arena(program, content),
        "flash_bytes": size.flash,
        "sram_bytes": size.sram,
        "cores": dict(zip(boards, rows, strict=True)),
    }


def arena(program: Program, content: bytes) -> dict[str, Any]:
    """Our plan beside what tflite-micro records of its own."""
    plan = prepare(program).arena
    head = sessions.arena(content, program)["head"]
    return {
        "tflite_micro_head_bytes": head,
        "same_method_bytes": plan.size_by_size,
        "same_method_over_head": plan.size_by_size / head,
        "arena_bytes": plan.size,
        "arena_over_head": plan.size / head,
        "lower_bound_bytes": plan.peak_bytes,
    }


def refusal(program: Program) -> str | None:
    """What is said where 320 KB of SRAM are not enough."""
    target = CortexM()
    settings = {**{wish.name: wish.default for wish in target.wishes}, "sram_kb": SMALL_KB}
    with tempfile.TemporaryDirectory() as folder:
        try:
            target.write_program(program, Path(folder), settings, "a bundle")
        except ModelError as error:
            assert not any(Path(folder).iterdir()), "something was written"
            return str(error)
    return None


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--also", type=Path, action="append", default=[])
    parser.add_argument("--board", action="append", choices=[*qemu.KERNELS, qemu.HOST])
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--also-samples", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from lowbit.cli.demo import DEMO

    rows = []
    for number, bundle in enumerate([demo_bundle(given.bundle), *map(Bundle.load, given.also)]):
        program = lower(read_neutral(bundle), float_input=False, float_output=False)
        data = DEMO / "fashion_mnist.npz" if number == 0 else None
        feeds, labels = samples_of(bundle, given.samples if number == 0 else given.also_samples, data)
        row = judge(program, feeds, labels, given.board or list(qemu.KERNELS))
        rows.append({**row, f"refused_at_{SMALL_KB}_kb": refusal(program)})
        print(json.dumps(rows[-1], indent=1))
    found = {"tflite_micro": sessions.versions()[sessions.MICRO], "models": rows}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    bad = [row["model"] for row in rows for core in row["cores"].values() if not core["identical"]]
    if bad:
        raise SystemExit(f"Not identical with tflite-micro: {', '.join(bad)}.")


if __name__ == "__main__":
    main()
