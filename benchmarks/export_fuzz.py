"""Random integer programs through the LiteRT writer and the C generator, beside the reference; random models through the whole way.

    python benchmarks/export_fuzz.py            # 500 programs, 100 models
    python benchmarks/export_fuzz.py --quick    # 40 and 20

A program is drawn, checked, and run by the reference (`lowbit.export.program.reference`); then it is written as a flatbuffer and run by
every kernel set that is installed, and generated as C, compiled and run on this machine, every 25th also under QEMU as a Cortex-M7 and M55.
tflite-micro and the C code must answer the same levels; of LiteRT's own kernels the share of equal levels and the largest step is kept, and
per kind in `kinds` (programs of that kind alone). Models are random ONNX graphs, rounded by lowbit's placement and writer, then lowered:
tflite-micro must again answer the same, and the error against floating point stands beside that of the QDQ model on onnxruntime.
All of it runs in a process of its own, so that one that dies is counted and not the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import LowbitError
from lowbit.export.program.program import Kind, Program
from lowbit.types import Array, Feeds

RESULT = Path(__file__).resolve().parent / "results" / "export_fuzz.json"
SAMPLES = 4
BOARDS_EVERY = 25
PROGRAMS_A_KIND = 12
MUST_AGREE = ("tflite-micro", "host", "qemu-m7", "qemu-m55")
PACKAGES = ("ai-edge-litert", "tflite_micro", "onnxruntime", "numpy")


@dataclass
class Tally:
    """Of one way to run programs: what agreed with the reference."""

    programs: int = 0
    identical: int = 0
    levels: int = 0
    differing: int = 0
    largest_step: int = 0
    share_identical: float = 1.0
    refused: list[str] = field(default_factory=list)
    died: list[int] = field(default_factory=list)
    seeds_that_differ: list[int] = field(default_factory=list)

    def add(self, seed: int, found: Mapping[str, Any]) -> None:
        """One program's outcome."""
        self.programs += 1
        if "refused" in found:
            self.refused.append(f"{seed}: {found['refused']}")
            return
        self.levels += found["levels"]
        self.differing += found["differing"]
        self.largest_step = max(self.largest_step, found["step"])
        self.share_identical = 1 - self.differing / max(self.levels, 1)
        self.identical += not found["differing"]
        if found["differing"]:
            self.seeds_that_differ.append(seed)


# ---- what runs in the other process ------------------------------------------------------------------------------------------------


def one_program(seed: int, kind: str | None, ways: tuple[str, ...]) -> dict[str, Any]:
    """Draws a program and runs it every way; what each answered, beside the reference."""
    from lowbit.export.program.random_programs import random_feeds, random_program
    from lowbit.export.program.reference import run_integers

    program = random_program(seed, kinds=frozenset({Kind(kind)}) if kind else None)
    feeds = random_feeds(program, SAMPLES, seed)
    expected = run_integers(program, feeds)
    found: dict[str, Any] = {"kinds": [operation.kind.value for operation in program.operations]}
    for way in ways:
        try:
            found[way] = compared(expected, answers(program, feeds, way))
        except LowbitError as error:
            found[way] = {"refused": error.message[:200]}
    return found


def answers(program: Program, feeds: Feeds, way: str) -> Mapping[str, Array]:
    """Levels, by a kernel set of LiteRT's or of the C target's."""
    if way not in MUST_AGREE or way == "tflite-micro":
        from lowbit.export.litert.sessions import LiteRtSession
        from lowbit.export.litert.writer import to_bytes

        return LiteRtSession(to_bytes(program), program, way).integers(feeds)
    from lowbit.export.cortexm.target import CortexM

    target = CortexM()
    settings = {wish.name: wish.default for wish in target.wishes}
    with tempfile.TemporaryDirectory(prefix="lowbit-fuzz-") as folder:
        session = target.open(target.write_program(program, Path(folder), settings, "a random program"), way)
        found = session.integers(feeds)
        session.close()
    assert found is not None
    return found


def compared(expected: Mapping[str, Array], found: Mapping[str, Array]) -> dict[str, int]:
    """How many levels differ, and by how much."""
    gaps = np.concatenate([np.abs(found[name].astype(int) - values).ravel() for name, values in expected.items()])
    return {"levels": int(gaps.size), "differing": int(np.count_nonzero(gaps)), "step": int(gaps.max(initial=0))}


def one_model(seed: int) -> dict[str, Any]:
    """Draws a model, lowers it and runs it: against tflite-micro, and against floating point beside its QDQ form."""
    import onnxruntime

    from lowbit.export.program import reference
    from lowbit.export.program.lower import lower
    from lowbit.export.program.problems import check_program
    from lowbit.export.program.random_models import random_quantized

    drawn = random_quantized(seed)
    try:
        program = lower(drawn.neutral, float_input=True, float_output=True)
    except LowbitError as error:
        return {"refused": error.message[:200]}
    check_program(program)
    found = compared(reference.run_integers(program, drawn.feeds), answers(program, drawn.feeds, "tflite-micro"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(drawn.pairs.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    pairs = dict(zip(names, session.run(names, drawn.feeds), strict=True))
    ours = reference.run(program, drawn.feeds)
    errors = {
        "program": max(error_of(ours[n], drawn.values[n]) for n in names),
        "pairs": max(error_of(pairs[n], drawn.values[n]) for n in names),
    }
    return {**found, **errors}


def error_of(values: Array, real: Array) -> float:
    """Relative error, in the 2-norm."""
    return float(np.linalg.norm(values - real) / max(float(np.linalg.norm(real)), 1e-9))


# ---- what runs here ----------------------------------------------------------------------------------------------------------------


def outcomes(jobs: Iterable[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any] | None]]:
    """Runs jobs (a function and its arguments) one after the other in another process; None where that process died of one."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context)
    for number, (function, *arguments) in enumerate(jobs):
        try:
            yield (function, *arguments), pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            yield (function, *arguments), None
            pool = ProcessPoolExecutor(1, mp_context=context)
        if number % 50 == 49:
            print(f"{number + 1} done", file=sys.stderr, flush=True)
    pool.shutdown()


def fuzz_programs(count: int, ways: tuple[str, ...], boards: tuple[str, ...]) -> dict[str, Any]:
    """The first `count` programs, every way; boards every 25th."""
    tallies = {way: Tally() for way in (*ways, *boards)}
    kinds: Counter[str] = Counter()
    jobs = ((one_program, seed, None, (way,)) for seed in range(count) for way in (*ways, *(boards if seed % BOARDS_EVERY == 0 else ())))
    for (_, seed, _, (way,)), found in outcomes(jobs):
        if found is None:
            tallies[way].died.append(seed)
            continue
        tallies[way].add(seed, found[way])
        if way == ways[0]:
            kinds.update(found["kinds"])
    return {"programs": count, "operations": dict(sorted(kinds.items())), "ways": {way: asdict(tally) for way, tally in tallies.items()}}


def fuzz_kinds(ways: tuple[str, ...]) -> dict[str, dict[str, list[float]]]:
    """Kind -> kernel set -> share of equal levels and largest step, of programs of that kind alone."""
    found: dict[str, dict[str, Tally]] = {}
    jobs = ((one_program, seed, kind.value, ways) for kind in Kind if kind is not Kind.DEQUANTIZE for seed in range(PROGRAMS_A_KIND))
    for (_, seed, kind, _), outcome in outcomes(jobs):
        for way in ways:
            tally = found.setdefault(kind, {}).setdefault(way, Tally())
            if outcome is None:
                tally.died.append(seed)
            else:
                tally.add(seed, outcome[way])
    return {kind: {way: [round(each.share_identical, 5), each.largest_step] for way, each in ways.items()} for kind, ways in found.items()}


def fuzz_models(count: int) -> dict[str, Any]:
    """The whole way from random graphs."""
    tally, ratios = Tally(), []
    errors = []
    for (_, seed), found in outcomes((one_model, seed) for seed in range(count)):
        if found is None:
            tally.died.append(seed)
            continue
        tally.add(seed, found)
        if "program" in found:
            errors.append((found["program"], found["pairs"]))
            ratios.append((found["program"] / max(found["pairs"], 1e-6), seed))
    program, pairs = np.array(errors).T if errors else (np.zeros(1), np.zeros(1))
    return {
        **asdict(tally),
        "relative_error_mean": {"program": float(program.mean()), "pairs": float(pairs.mean())},
        "worst_ratios": [{"ratio": round(ratio, 2), "seed": seed} for ratio, seed in sorted(ratios, reverse=True)[:5]],
    }


def main() -> None:
    """Runs it all and keeps the result."""
    from lowbit.export.cortexm import qemu
    from lowbit.export.litert.sessions import kernel_sets

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 programs and 20 models")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    programs, models = (40, 20) if chosen.quick else (500, 100)
    boards = qemu.kernel_sets("mps2-an500")
    ways = (*kernel_sets(), *(("host",) if "host" in boards else ()))
    drawn = fuzz_programs(programs, ways, tuple(way for way in ("qemu-m7", "qemu-m55") if way in boards))
    lowered = fuzz_models(models)
    result = {
        "machine": platform.machine(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "samples": SAMPLES,
        "random": drawn,
        "kinds": fuzz_kinds(kernel_sets()),
        "models": lowered,
    }
    chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    tallies = {**drawn["ways"], "models": lowered}
    for way, tally in tallies.items():
        equal = f"{tally['share_identical']:.4%} of levels, {tally['largest_step']} steps"
        print(f"{way:13s} {tally['identical']:4d} of {tally['programs']} identical; {equal}")
    strict = {*MUST_AGREE, "models"}
    broken = [way for way, tally in tallies.items() if tally["died"] or tally["refused"] or (way in strict and tally["differing"])]
    if broken:
        sys.exit(f"Not as it must be: {', '.join(broken)}; see {chosen.out.name}.")


if __name__ == "__main__":
    main()
