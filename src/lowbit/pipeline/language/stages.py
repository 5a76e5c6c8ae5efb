"""The stages of a language model's search, callable alone: quantize, write, judge, time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.errors import ModelError, RunError, UsageError, unknown
from lowbit.llm import formats
from lowbit.llm.candidate import EngineCandidate, engine_of
from lowbit.llm.decoder import Decoder, Weights
from lowbit.llm.engines import registry
from lowbit.llm.evaluate.judge import evaluate_artifact
from lowbit.llm.evaluate.perplexity import Perplexity
from lowbit.llm.evaluate.windows import Windows
from lowbit.llm.folder import INDEX, SINGLE, read_json
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.unfinished import full_disk
from lowbit.llm.workload.measure import measure
from lowbit.llm.workload.speed import Speed
from lowbit.llm.workload.workload import Workload
from lowbit.pipeline.language.make import main_file, settled
from lowbit.pipeline.language.recipes import catalogue
from lowbit.pipeline.language.text_bytes import sizes_of
from lowbit.pipeline.reporting import Reporter

if TYPE_CHECKING:
    from lowbit.llm.folder import SourceFolder
    from lowbit.llm.table import Table

ENGINES = {"gguf": "llamacpp", "openvino": "openvino", "onnx": "onnxruntime-genai", "safetensors": "torch"}
"""What runs a format where nobody says otherwise."""

ENDINGS = {".gguf": "gguf", ".xml": "openvino", ".onnx": "onnx", ".safetensors": "safetensors", ".json": "safetensors"}
TABLE = "table.json"


def quantize_model(
    model: Path, recipe: str, calibration: str | Path | None, out: Path, *, windows: int, window: int, reporter: Reporter
) -> Table:
    """Quantizes a Hugging Face folder's weights into a table.

    Args:
        model: The folder.
        recipe: Name of a built-in recipe, or a YAML file with one.
        calibration: Text; None where the recipe needs none.
        out: Folder of the table.
        windows: To calibrate on.
        window: Tokens of each.
        reporter: Who is told.

    Raises:
        UsageError, ModelError, DataError: what the user can mend.
    """
    from lowbit.llm.folder import SourceFolder
    from lowbit.llm.methods.base import calibrates
    from lowbit.llm.tokens import read_texts
    from lowbit.llm.walk import quantize_folder

    check_out(out, weights=True)
    source = SourceFolder.open(model)
    chosen = read_recipe(recipe, source)
    if chosen.method in ("none", "llamacpp"):
        raise UsageError(
            f"Recipe '{chosen.name}' has no table: {'the weights stay' if chosen.method == 'none' else 'llama.cpp chooses the levels'}."
        )
    tokens = np.zeros((0, window), np.int32)
    if calibrates(chosen):
        if calibration is None:
            raise UsageError(f"Recipe '{chosen.name}' calibrates.", "Give text like what the model will read: --calibration texts/.")
        tokens = read_texts(source, calibration).windows(windows, min(window, source.decoder.positions))
    chosen = settled(chosen, source, tokens)
    reporter.stage(f"Quantizing: {chosen.name}", source.decoder.layers)
    return quantize_folder(source, chosen, tokens, out, progress=lambda done, _: reporter.advance(done))


def read_recipe(name: str, source: SourceFolder) -> LanguageRecipe:
    """A built-in recipe, or the one in a YAML file.

    Raises:
        UsageError: neither.
    """
    known = catalogue(source.decoder)
    if name in known:
        return known[name]
    if Path(name).suffix in (".yaml", ".yml"):
        try:
            return LanguageRecipe.from_yaml(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"The recipe {name} cannot be read: {error.strerror}.") from error
        except UnicodeError as error:
            raise UsageError(f"The recipe {name} cannot be read: it is not UTF-8.") from error
    raise unknown("recipe", name, known)


def open_weights(folder: Path) -> Weights:
    """A table, or a Hugging Face folder."""
    if (folder / TABLE).is_file():
        from lowbit.llm.table import Table

        return Table.open(folder)
    from lowbit.llm.folder import SourceFolder

    return SourceFolder.open(folder)


def write_format(weights: Path, form: str, out: Path, reporter: Reporter) -> Path:
    """Writes a table or a folder in a format; returns the main file.

    Raises:
        UsageError: the format is not known or cannot hold the weights, or `out` cannot take them.
        Interrupted: the disk is full.
    """
    check_out(out, weights=form == "safetensors")
    source = open_weights(weights)
    reporter.stage(f"Writing {form}", len(source.names()))
    with full_disk(out):
        return formats.write(source, form, out, progress=lambda done, _: reporter.advance(done))


def check_out(out: Path, *, weights: bool) -> None:
    """Refuses a folder that cannot be written, before anything is computed; and one whose weights would be replaced.

    Raises:
        UsageError: naming it.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"'{there}' is a file; a folder is needed.", "Give another --out.")
    if not os.access(there, os.W_OK):
        raise UsageError(f"'{out}' cannot be written.", "Give another --out, or change its permissions.")
    if weights and any((out / name).exists() for name in (SINGLE, INDEX)):
        raise UsageError(f"'{out}' has the weights of a model already.", "Give another --out: nothing here replaces a model.")


def find_artifact(path: Path) -> tuple[Path, str]:
    """The main file and the format of what the user named: the file itself, or the folder that it is in.

    Raises:
        ModelError: there is none.
    """
    if path.is_dir():
        for form in ("gguf", "openvino", "onnx", "safetensors"):
            if found := main_file(path, form):
                return found, form
        raise ModelError(f"'{path}' holds no artifact of a language model.", f"Known: {', '.join(ENDINGS)} and the folders they are in.")
    if not path.is_file() or path.suffix not in ENDINGS:
        raise ModelError(f"'{path}' is no artifact of a language model.", f"Give a file that ends in {', '.join(ENDINGS)}, or its folder.")
    return path, ENDINGS[path.suffix]


def candidate_of(path: Path, engine: str | None) -> EngineCandidate:
    """What the user named, with the engine that runs it and its default tuning here.

    Raises:
        UsageError: the engine opens another format.
    """
    from lowbit.runtimes.hardware import probe

    artifact, form = find_artifact(path)
    chosen = engine_of(engine or ENGINES[form])
    if chosen.opens != form:
        raise UsageError(f"Engine '{chosen.name}' opens {chosen.opens}, and '{path.name}' is {form}.", f"Use {ENGINES[form]}.")
    return EngineCandidate(f"{path.name}@{chosen.name}", chosen.name, artifact, chosen.tunings(probe())[0])


@dataclass
class _Home:
    """What a tokenizer is read from: no weights are needed, and beside most artifacts none lie that a `SourceFolder` knows."""

    path: Path
    decoder: Decoder

    @classmethod
    def open(cls, path: Path) -> _Home:
        from lowbit.llm.families import read_decoder

        return cls(path, read_decoder(read_json(path, "config.json")))

    def names(self) -> tuple[str, ...]:
        return ()

    def get(self, name: str) -> Any:
        raise KeyError(name)


def judge(
    artifact: Path, data: str | Path, model: Path | None, engine: str | None, *, window: int, stride: int | None, reporter: Reporter
) -> Perplexity:
    """Perplexity of an artifact on text.

    Args:
        artifact: A file or folder.
        data: Text.
        model: Folder with config.json and the tokenizer; None: the artifact's own.
        engine: None: by format.
        window: Tokens of a window.
        stride: None: rows without overlap.
        reporter: Who is told.

    Raises:
        RunError: the engine could not.
    """
    from lowbit.llm.tokens import read_texts

    candidate = candidate_of(artifact, engine)
    home = model or candidate.artifact.parent
    if not (home / "config.json").is_file() or not (home / "tokenizer.json").is_file():
        raise UsageError(f"'{home}' has no config.json and tokenizer.json.", "Say where they are: --model FOLDER.")
    texts = read_texts(_Home.open(home), data)
    reporter.stage(f"Reading text: {candidate.id}", sum(max(1, len(tokens) // (stride or window)) for _, tokens in texts.documents))
    sizes, windows = sizes_of(texts.documents, home), Windows(window, stride)
    found = evaluate_artifact(candidate, texts.documents, windows, sizes=sizes, progress=lambda done, _: reporter.advance(done))
    if found.perplexity is None:
        raise RunError(f"{candidate.id} could not be judged: {found.error}")
    return found.perplexity


def bench_artifacts(
    artifacts: Sequence[Path], workload: str, engines: Sequence[str], *, rounds: int, price_per_hour: float | None, reporter: Reporter
) -> dict[str, Speed]:
    """Times artifacts on a workload, on every engine asked for that opens them.

    Raises:
        UsageError: none of the engines asked for opens an artifact, or one of them opens none of the artifacts.
        ModelError: what was named is no artifact.
    """
    asked = Workload.of(workload)
    forms = [(path, find_artifact(path)[1]) for path in artifacts]
    opens = {name: engine_of(name).opens for name in engines}
    _check_engines(forms, opens)
    found: dict[str, EngineCandidate] = {}
    for path, form in forms:
        for name in [each for each in opens if opens[each] == form] or [ENGINES[form]]:
            candidate = candidate_of(path, name)
            ident = candidate.id if candidate.id not in found else f"{path}@{name}"
            found[ident] = EngineCandidate(ident, candidate.engine, candidate.artifact, candidate.tuning)
    reporter.stage("Timing the workload", rounds)
    return measure(
        list(found.values()), asked, rounds=rounds, price_per_hour=price_per_hour, progress=lambda done, _: reporter.advance(done)
    )


def _check_engines(forms: Sequence[tuple[Path, str]], opens: Mapping[str, str]) -> None:
    """Refuses what would be timed on another engine than was asked for, or not at all.

    Raises:
        UsageError: naming it.
    """
    if not opens:
        return
    told = ", ".join(f"{name} opens {form}" for name, form in opens.items())
    for path, form in forms:
        if form not in opens.values():
            fits = " or ".join(name for name in registry.names() if name not in opens and _opens(name) == form) or ENGINES[form]
            raise UsageError(
                f"'{path.name}' is {form}, and no engine that was asked for opens that: {told}.",
                f"Add --engine {fits}, or leave --engine out: then each runs on what is usual for its format.",
            )
    there = sorted({form for _, form in forms})
    if idle := [name for name, form in opens.items() if form not in there]:
        raise UsageError(
            f"Engine '{idle[0]}' opens {opens[idle[0]]}, and nothing that was named is: {', '.join(there)}.",
            f"Leave --engine {idle[0]} out, or write an artifact for it: `lowbit llm write`.",
        )


def _opens(name: str) -> str | None:
    """What an engine opens; None where it is not installed."""
    try:
        return registry.get(name).opens
    except UsageError:
        return None
