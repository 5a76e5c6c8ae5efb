"""Language models: perplexity, size and speed of every method and engine, beside llama.cpp's quantizer, NNCF and GPTQModel.

    python benchmarks/llm.py                        everything, about an hour on two quiet cores
    python benchmarks/llm.py --only perplexity      one part: perplexity, engines, peers, outliers, speed
    python benchmarks/llm.py --only speed --rounds 7

perplexity   the small trained Llama of ../shared/data on its four held-back texts, rows of 256 tokens, calibrated on its four other
             texts: every method at 8, 4, 3 and 2 bit in groups of 32 of the blocks' weights, the rest in 16 bit, exact arithmetic.
engines      the same model as each engine's artifact, head in 8 bit: what users run. llama.cpp's own Q8_0 and Q4_0 beside ours.
peers        NNCF's and GPTQModel's INT4 in groups of 32, in environments of their own, dequantized and judged by the same evaluator.
outliers     the same function with a few hidden channels 50 times as large: plain W8A8, SmoothQuant, and LLM.int8()'s decomposition.
speed        a generated network of 254 million parameters: reading and writing tokens for every engine and number of bits, llama.cpp's
             own files and NNCF's weight compression among them; which one wins a prompt-heavy and an answer-heavy workload.

Rises of perplexity are paired with the 16-bit model's, with 95 % intervals over blocks of windows. Results: benchmarks/results/llm.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lowbit.errors import LowbitError
from lowbit.llm import formats
from lowbit.llm.candidate import EngineCandidate
from lowbit.llm.engines import registry
from lowbit.llm.engines.base import EngineTuning
from lowbit.llm.evaluate.judge import Scored, evaluate_artifact, spool_reference
from lowbit.llm.evaluate.paired_text import compare
from lowbit.llm.evaluate.perplexity import Perplexity
from lowbit.llm.evaluate.windows import Documents, Windows
from lowbit.llm.folder import SourceFolder
from lowbit.llm.linear import Grid
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.table import Table
from lowbit.llm.tokens import TextTokens, read_texts
from lowbit.llm.walk import quantize_folder
from lowbit.llm.workload.measure import measure
from lowbit.llm.workload.rank import rank
from lowbit.llm.workload.workload import Workload
from lowbit.runtimes.hardware import probe

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "small-llama"
RESULTS = Path(__file__).parent / "results" / "llm.json"
PEERS = Path(__file__).parent / "llm_peers"
WITHOUT_DEPENDENCIES = {"gptqmodel": "gptqmodel==7.7.0"}
"""Asks for a newer torch than it needs; what else it needs is in its requirements."""
PARTS = ("perplexity", "engines", "peers", "outliers", "speed")
ROWS = Windows(256)
CALIBRATION = (128, 256)
Numbers = dict[str, Any]

GROUP = 32
HEAD = Grid(8, GROUP)
METHODS = (
    *((4, "gptq"), (3, "gptq"), (2, "gptq"), (8, "rtn"), (4, "plain"), (3, "plain"), (2, "plain")),
    *((4, "rtn"), (4, "awq"), (4, "hqq"), (3, "rtn"), (2, "rtn"), (2, "tuned")),
)
"""Bits, and how levels are chosen: "plain" is rounding with scales that just reach the largest weight, "rtn" searches the scales."""

WORKLOADS = {"long prompts": "prompt=1024,output=16", "long answers": "prompt=64,output=256"}


class Run:
    """One run of the benchmark: where things are made, what is judged, what was found."""

    def __init__(self, folder: Path, rounds: int, every: int = 1) -> None:
        self.folder, self.rounds, self.every = folder, rounds, every
        self.found: Numbers = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        self.baseline: Perplexity | None = None

    def keep(self, part: str, numbers: Numbers) -> None:
        """Writes what was found so far: a long run that is stopped loses nothing."""
        self.found[part] = numbers
        self.found["machine"] = asdict(probe())
        self.found.setdefault("every", {})[part] = self.every
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(self.found, indent=1) + "\n")

    def source(self) -> SourceFolder:
        return SourceFolder.open(SHARED)

    def text(self, kind: str) -> TextTokens:
        """Of the four books: "eval" or "calib"."""
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(SHARED.glob(f"{kind}_*.txt")):
            if not (folder / file.name).exists():
                (folder / file.name).symlink_to(file)
        return read_texts(self.source(), folder)

    def judging(self) -> Documents:
        """The held-back texts, or every so many of their rows: a row is judged by itself, so that the others change nothing."""
        documents = self.text("eval").documents
        if self.every == 1:
            return documents
        rows = [(name, tokens[: len(tokens) // ROWS.size * ROWS.size].reshape(-1, ROWS.size)) for name, tokens in documents]
        return [(name, each[:: self.every].reshape(-1)) for name, each in rows]

    def table(self, recipe: LanguageRecipe, source: SourceFolder | None = None, name: str = "") -> tuple[Table, float]:
        """Quantized weights of a recipe, and the seconds they took."""
        source = source or self.source()
        start = time.perf_counter()
        windows = self.text("calib").windows(*CALIBRATION)
        table = quantize_folder(source, recipe, windows, self.folder / "tables" / (name + recipe.name))
        return table, time.perf_counter() - start

    def judged(self, ident: str, engine: str, artifact: Path, reference: Path | None = None, tuning: EngineTuning | None = None) -> Numbers:
        """Perplexity of an artifact on all of the held-back text, against the 16-bit model's."""
        chosen = tuning or registry.get(engine).tunings(probe())[0]
        found = evaluate_artifact(EngineCandidate(ident, engine, artifact, chosen), self.judging(), ROWS, reference=reference)
        return self.numbers(ident, found)

    def numbers(self, ident: str, found: Scored) -> Numbers:
        if found.perplexity is None:
            print(f"{ident:<34} {found.error}")
            return {"error": found.error}
        told: Numbers = {"perplexity": found.perplexity.value, "tokens": found.perplexity.tokens, "seconds": found.seconds}
        if self.baseline is not None:
            delta = compare(self.baseline, found.perplexity)
            told["rise"] = {"value": delta.value, "ci_low": delta.ci_low, "ci_high": delta.ci_high, "n": delta.n}
        if found.divergence is not None:
            told["divergence"] = asdict(found.divergence)
        rise = (
            f"{100 * told['rise']['value']:+7.3f} % [{100 * told['rise']['ci_low']:+.3f}, {100 * told['rise']['ci_high']:+.3f}]"
            if self.baseline
            else ""
        )
        kl = f"  KL {found.divergence.kl_mean:.5f}" if found.divergence else ""
        print(f"{ident:<34} {found.perplexity.value:8.3f} {rise}{kl}", flush=True)
        return told

    def reference(self) -> Path:
        """The 16-bit model judged by itself, and its probabilities kept for divergences."""
        folder = self.folder / "reference"
        artifact = SHARED / "model.safetensors"
        if self.baseline is None:
            candidate = EngineCandidate("f16@torch", "torch", artifact, registry.get("torch").tunings(probe())[0])
            found = spool_reference(candidate, self.judging(), ROWS, folder)
            self.numbers("f16@torch", found)
            self.baseline = found.perplexity
            self.found["baseline"] = {"perplexity": found.perplexity.value if found.perplexity else None}
        return folder


def linear_bytes(table: Table) -> int:
    """Packed levels, scales and zero points of the blocks' linear layers."""
    decoder = table.decoder
    names = [f"blocks.{block}.{role}.weight" for block in range(decoder.layers) for role in decoder.roles]
    return sum(weights.size_bytes if hasattr(weights, "levels") else weights.nbytes for weights in map(table.get, names))


def methods() -> Iterator[LanguageRecipe]:
    """Every method at every width, groups of 32, symmetric, embedding and head in 16 bit: as the yardstick has it."""
    for bits, name in METHODS:
        options = {"candidates": 0.0} if name == "plain" else {}
        yield LanguageRecipe(f"int{bits}-{name}", "rtn" if name == "plain" else name, Grid(bits, GROUP), options=options)


def perplexity(run: Run) -> Numbers:
    """Exact arithmetic on the tables themselves."""
    reference = run.reference()
    found: Numbers = {}
    for recipe in methods():
        table, seconds = run.table(recipe)
        told = run.judged(recipe.name, "torch", table.path / "table.json", reference)
        found[recipe.name] = {**told, "quantize_seconds": seconds, "linear_bytes": linear_bytes(table)}
        run.keep("perplexity", found)
    return found


def engines(run: Run) -> Numbers:
    """What users run: each engine's own artifact, and llama.cpp's own quantizer beside ours."""
    reference = run.reference()
    found: Numbers = {}
    recipes = [LanguageRecipe("f16", "none"), LanguageRecipe("int8-head8", "rtn", Grid(8, GROUP), HEAD)]
    recipes += [LanguageRecipe(f"int4-{name}-head8", name, Grid(4, GROUP), HEAD) for name in ("rtn", "gptq")]  # type: ignore[arg-type]
    recipes.append(LanguageRecipe("int4-gptq-head4", "gptq", Grid(4, GROUP), Grid(4, GROUP)))
    for recipe in recipes:
        weights = run.source() if recipe.method == "none" else run.table(recipe)[0]
        for engine in ("llamacpp", "openvino", "onnxruntime-genai"):
            ident = f"{recipe.name}@{engine}"
            artifact = written(weights, registry.get(engine).opens, run.folder / "artifacts" / ident)
            found[ident] = {**run.judged(ident, engine, artifact, reference), "size_bytes": weights_size(artifact)}
            run.keep("engines", found)
    plain = run.folder / "artifacts" / "f16@llamacpp" / "model.gguf"
    for preset in ("Q8_0", "Q4_0"):
        artifact = run.folder / "artifacts" / f"own-{preset}" / "model.gguf"
        own_quantizer(plain, artifact, preset)
        ident = f"llama.cpp's own {preset}@llamacpp"
        found[ident] = {**run.judged(ident, "llamacpp", artifact, reference), "size_bytes": weights_size(artifact)}
        run.keep("engines", found)
    return found


def written(weights: Any, form: str, folder: Path) -> Path:
    """An artifact, made once."""
    from lowbit.pipeline.language.make import main_file

    return main_file(folder, form) or formats.write(weights, form, folder)


def weights_size(artifact: Path) -> int:
    from lowbit.pipeline.language.make import size_of

    return size_of(artifact)


def own_quantizer(plain: Path, target: Path, preset: str) -> Path:
    """llama.cpp's own quantizer, from the 16-bit file."""
    from lowbit.llm.writers.llamacpp_quantizer import quantize

    target.parent.mkdir(parents=True, exist_ok=True)
    return target if target.exists() else quantize(plain, target, preset)


def peers(run: Run) -> Numbers:
    """Others' INT4, each in an environment of its own; what comes back are plain 16-bit folders, judged like everything else."""
    reference = run.reference()
    found: Numbers = {}
    texts = [str(file) for file in sorted(SHARED.glob("calib_*.txt"))]
    for script in sorted(PEERS.glob("*_run.py")):
        name = script.stem.removesuffix("_run")
        out = run.folder / "peers" / name
        command = [
            str(environment(name)),
            str(script),
            str(SHARED),
            str(out),
            "--bits",
            "4",
            "--group",
            str(GROUP),
            "--calibration",
            *texts,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if done.returncode != 0:
            found[name] = {"error": (done.stderr.strip().splitlines() or ["it failed"])[-1]}
            print(f"{name:<34} {found[name]['error']}")
        else:
            told = json.loads(done.stdout.strip().splitlines()[-1])
            found[name] = {**told, **run.judged(name, "torch", out / "model.safetensors", reference)}
        run.keep("peers", found)
    return found


def environment(name: str) -> Path:
    """A peer's own Python, made once beside the benchmarks."""
    folder = Path(os.environ.get("LOWBIT_PEERS", Path(__file__).parent / ".peers")) / f"llm-{name}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "torch==2.13.0"], check=True)
        subprocess.run([*pip, "-r", str(PEERS / f"requirements-{name}.txt")], check=True)
        if name in WITHOUT_DEPENDENCIES:
            subprocess.run([*pip, "--no-deps", "--no-build-isolation", WITHOUT_DEPENDENCIES[name]], check=True)
    return python


def outliers(run: Run) -> Numbers:
    """W8A8 on a model whose function is the same and whose activations have outlier channels."""
    sys.path.insert(0, str(PEERS.parent))
    from llm_outliers import with_outliers

    folder = run.folder / "outliers"
    if not (folder / "config.json").exists():
        with_outliers(SHARED, folder)
    source = SourceFolder.open(folder)
    reference = run.reference()
    grid = Grid(8)
    recipes = [
        LanguageRecipe("w8a8", "rtn", grid, None, "int8-token"),
        LanguageRecipe("w8a8-smooth", "rtn", grid, None, "int8-token", smooth=0.5),
        LanguageRecipe("w8a8-outliers", "rtn", grid, None, "int8-token", outliers=6.0),
        LanguageRecipe("w8a8-outliers-20", "rtn", grid, None, "int8-token", outliers=20.0),
    ]
    found: Numbers = {"f16": run.judged("f16 with outliers", "torch", folder / "model.safetensors", reference)}
    for recipe in recipes:
        table, _ = run.table(recipe, source, "outliers-")
        found[recipe.name] = run.judged(recipe.name, "torch", table.path / "table.json", reference)
        run.keep("outliers", found)
    return found


def speed(run: Run) -> Numbers:
    """254 million parameters, random: what engines and widths make of two workloads."""
    candidates = speed_candidates(run)
    found: Numbers = {"sizes": {each.id: weights_size(each.artifact) for each in candidates}, "workloads": {}}
    for name, text in WORKLOADS.items():
        workload = Workload.parse(text)
        speeds = measure(candidates, workload, rounds=run.rounds, progress=rounds_of(name))
        found["workloads"][name] = {
            "workload": text,
            "speeds": {ident: asdict(each) for ident, each in speeds.items()},
            "ranking": [asdict(place) for place in rank(speeds)],
        }
        print_speeds(name, speeds)
        run.keep("speed", found)
    return found


def rounds_of(name: str) -> Callable[[int, int], None]:
    """Says after each round how far it is."""
    return lambda done, of: print(f"  {name}: round {done} of {of}", flush=True)


def speed_candidates(run: Run) -> list[EngineCandidate]:
    """Every engine's artifacts of the generated network, ours and others'."""
    source = SourceFolder.open(generated(run.folder / "network"))
    grids = {"int8": Grid(8), "int4-g32": Grid(4, 32), "int4-g64-asym": Grid(4, 64, symmetric=False), "int4-g128": Grid(4, 128)}
    made: list[EngineCandidate] = []
    for engine in ("llamacpp", "openvino", "onnxruntime-genai"):
        form = registry.get(engine).opens
        for name, grid in {"f16": None, **grids}.items():
            head, kind = (Grid(8, 32), "blocks") if engine == "llamacpp" else (Grid(8), "rows")
            recipe = LanguageRecipe(
                f"{name}-{kind}", "rtn", grid, head, options={"candidates": 0}
            )  # random weights: speed is all they have
            if engine == "llamacpp" and name not in ("f16", "int8", "int4-g32"):
                continue
            weights = source if grid is None else quantize_folder(source, recipe, None, run.folder / "network-tables" / recipe.name)
            try:
                artifact = written(weights, form, run.folder / "network-artifacts" / f"{name}@{engine}")
            except LowbitError as error:
                print(f"{name}@{engine}: {error.message}")
                continue
            made.append(EngineCandidate(f"{name}@{engine}", engine, artifact, registry.get(engine).tunings(probe())[0]))
    plain = run.folder / "network-artifacts" / "f16@llamacpp" / "model.gguf"
    for preset in ("Q8_0", "Q4_0", "Q4_K_M"):
        artifact = own_quantizer(plain, run.folder / "network-artifacts" / f"own-{preset}" / "model.gguf", preset)
        made.append(EngineCandidate(f"own {preset}@llamacpp", "llamacpp", artifact, registry.get("llamacpp").tunings(probe())[0]))
    return [*made, *tuned_candidates(made), *nncf_candidates(run)]


def tuned_candidates(made: list[EngineCandidate]) -> list[EngineCandidate]:
    """The other tunings that a search would try, of what they change most: bfloat16, and wider groups of activations."""
    found = []
    for each in made:
        if each.id not in ("f16@openvino", "int8@openvino", "int4-g128@openvino", "int8@onnxruntime-genai"):
            continue
        for tuning in registry.get(each.engine).tunings(probe())[1:]:
            wide = tuning.activations is not None and each.id != "f16@openvino"
            if (wide or tuning.precision == "bf16") and tuning.kv == each.tuning.kv:
                words = [tuning.precision] * (tuning.precision != "f32") + [f"a{tuning.activations}"] * (tuning.activations is not None)
                found.append(replace(each, id=f"{each.id} {','.join(words)}", tuning=tuning))
    return found


def nncf_candidates(run: Run) -> list[EngineCandidate]:
    """NNCF's weight compression of the same 16-bit graph: the peer whose kernels ours must reach."""
    plain = run.folder / "network-artifacts" / "f16@openvino" / "openvino_model.xml"
    found = []
    for name, mode, group in (("INT8", "INT8_ASYM", -1), ("INT4 g128", "INT4_SYM", 128), ("INT4 g64 asym", "INT4_ASYM", 64)):
        target = run.folder / "network-artifacts" / f"nncf-{mode}-{group}" / "openvino_model.xml"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            code = (
                "import sys, openvino as ov, nncf\n"
                f"model = ov.Core().read_model({str(plain)!r})\n"
                f"options = {{}} if {group} < 0 else {{'group_size': {group}, 'ratio': 1.0}}\n"
                f"small = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.{mode}, **options)\n"
                f"ov.save_model(small, {str(target)!r}, compress_to_fp16=False)\n"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                print(f"NNCF {name}: {done.stderr.strip().splitlines()[-1]}")
                continue
            for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
                if (plain.parent / file).exists():
                    (target.parent / file).write_bytes((plain.parent / file).read_bytes())
        found.append(EngineCandidate(f"NNCF {name}@openvino", "openvino", target, registry.get("openvino").tunings(probe())[0]))
    return found


def generated(folder: Path) -> Path:
    """The table's shape: width 1024, 16 layers, 16 heads of which 8 key-value, 2816, vocabulary 32,000; random weights."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=2816,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).half().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((SHARED / name).read_bytes())
    return folder


def print_speeds(name: str, speeds: dict[str, Any]) -> None:
    print(f"\n{name}: {WORKLOADS[name]}")
    for ident, each in sorted(speeds.items(), key=lambda pair: pair[1].total_s.value if pair[1].usable else 1e9):
        if each.usable:
            writes = each.decode_tokens_per_s.value if each.decode_tokens_per_s else 0
            print(
                f"  {ident:<36} {each.total_s.value:7.3f} s  reads {each.prefill_tokens_per_s.value:7.0f}/s  writes {writes:6.1f}/s",
                flush=True,
            )
        else:
            print(f"  {ident:<36} {each.error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--folder", type=Path, help="Where artifacts are made, and kept for the next run; a temporary one if not given.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--every", type=int, default=1, help="Judge one row of so many: quicker, wider intervals.")
    said = parser.parse_args()
    todo: dict[str, Callable[[Run], Numbers]] = {
        "perplexity": perplexity,
        "engines": engines,
        "peers": peers,
        "outliers": outliers,
        "speed": speed,
    }
    with tempfile.TemporaryDirectory(prefix="lowbit-llm-") as scratch:
        run = Run(said.folder or Path(scratch), said.rounds, said.every)
        for part in said.only or PARTS:
            print(f"\n== {part}", flush=True)
            run.keep(part, todo[part](run))


if __name__ == "__main__":
    main()
