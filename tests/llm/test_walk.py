"""Quantizing block by block: what a method is given, what is refused, and that neither a kill nor a full disk loses what was done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import need, random_decoder

from lowbit.errors import Interrupted, ModelError, UsageError
from lowbit.llm.folder import SINGLE, SourceFolder
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.recipe import LanguageRecipe

RTN = LanguageRecipe("int4", "rtn", Grid(4, 32), options={"candidates": 2})
TOKENS = np.random.default_rng(0).integers(0, 320, (6, 24)).astype(np.int32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceFolder:
    need("torch")
    return SourceFolder.open(random_decoder("llama", tmp_path_factory.mktemp("walk") / "model", layers=3))


class Told:
    """A method that rounds, remembers what it was given, and can change norms."""

    def __init__(self, norms: float = 1.0) -> None:
        self.problems: list[Any] = []
        self.norms = norms

    def __call__(self, problem: Any) -> Any:
        from lowbit.llm.methods.base import QuantizedBlock
        from lowbit.llm.methods.grids import min_max

        kept = {name: None if (value := getattr(problem, name)) is None else value.clone() for name in ("exact", "reached")}
        self.problems.append((problem.index, kept["exact"], kept["reached"]))
        linears = {}
        for role, weights in problem.block.weights.items():
            scales = min_max(weights, problem.recipe.grid_of(problem.index, role))
            linears[role] = scales.packed(scales.nearest(weights))
        norm = problem.block.floats["norm1.weight"].numpy() * self.norms
        with np.errstate(over="ignore"):
            norm = norm.astype(np.float16)
        return QuantizedBlock(linears, {"norm1.weight": norm}, {"mlp.up": {"seen": float(problem.index)}})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return using(monkeypatch, Told())


def using(monkeypatch: pytest.MonkeyPatch, method: Any, finish: Mapping[str, Any] | None = None) -> Any:
    from lowbit.llm import walk

    monkeypatch.setattr(walk, "METHODS", {"gptq": method, "rtn": method})
    monkeypatch.setattr(walk, "FINISH", dict(finish or {}))
    return method


def recipe(**changes: Any) -> LanguageRecipe:
    return LanguageRecipe(**({"name": "x", "method": "gptq", "grid": Grid(3, 32)} | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("memory_bytes", [1 << 30, 1000])
def test_a_method_is_given_what_both_models_feed_its_block(source: SourceFolder, told: Told, tmp_path: Path, memory_bytes: int) -> None:
    import torch

    from lowbit.llm.forward import Reference
    from lowbit.llm.walk import quantize_folder

    progress: list[tuple[int, int]] = []
    table = quantize_folder(
        source, recipe(), TOKENS, tmp_path / "t", memory_bytes=memory_bytes, progress=lambda *each: progress.append(each)
    )
    assert progress == [(1, 3), (2, 3), (3, 3)]
    exact, reached = Reference(source), Reference(table)
    with torch.no_grad():
        for index, seen_exact, seen_reached in told.problems:
            expected, ours = exact.embed(TOKENS), exact.embed(TOKENS)
            for before in range(index):
                expected, ours = exact.block(before).run(expected), reached.block(before).run(ours)
            torch.testing.assert_close(seen_exact, expected, atol=1e-5, rtol=1e-5)
            if index == 0:
                assert seen_reached is None
            else:
                torch.testing.assert_close(seen_reached, ours, atol=1e-5, rtol=1e-5)
                assert float((expected - ours).abs().max()) > 1e-3
    assert [index for index, _, _ in told.problems] == [0, 1, 2]
    assert table.facts["blocks.2"] == {"mlp.up": {"seen": 2.0}}
    assert table.calibration is not None
    assert (table.calibration["windows"], table.calibration["length"]) == (6, 24)
    assert not list((tmp_path / "t").glob("hidden-*"))


def test_a_quantized_embedding_is_reached_from_the_first_block(source: SourceFolder, told: Told, tmp_path: Path) -> None:
    from lowbit.llm.walk import quantize_folder

    table = quantize_folder(source, recipe(head=Grid(4, 32)), TOKENS, tmp_path)
    assert told.problems[0][2] is not None
    assert table.grid("embed.weight") == table.grid("head.weight") == Grid(4, 32)
    from lowbit.llm.forward import Reference

    np.testing.assert_array_equal(told.problems[0][2].numpy(), Reference(table).embed(TOKENS).numpy())


def test_rounded_activations_are_what_later_blocks_are_fed(source: SourceFolder, told: Told, tmp_path: Path) -> None:
    from lowbit.llm.walk import quantize_folder

    quantize_folder(source, recipe(activations="int8-token"), TOKENS, tmp_path / "a")
    rounded = told.problems[-1][2]
    quantize_folder(source, recipe(), TOKENS, tmp_path / "b")
    assert 0 < float((rounded - told.problems[-1][2]).abs().max()) < 1


def test_a_recipe_that_does_not_calibrate_runs_no_text(source: SourceFolder, told: Told, tmp_path: Path) -> None:
    from lowbit.llm.walk import quantize_folder

    table = quantize_folder(source, RTN, None, tmp_path / "a")
    assert all(exact is None for _, exact, _ in told.problems)
    assert table.calibration is None
    assert quantize_folder(source, RTN, TOKENS, tmp_path / "b").digest == table.digest  # text does not matter to it


def test_the_same_call_opens_what_is_finished_and_another_is_refused(source: SourceFolder, told: Told, tmp_path: Path) -> None:
    from lowbit.llm.walk import quantize_folder

    quantize_folder(source, recipe(), TOKENS, tmp_path / "t")
    before = contents(tmp_path / "t")
    quantize_folder(source, recipe(), TOKENS, tmp_path / "t")
    assert len(told.problems) == 3
    for other, tokens in ((recipe(grid=Grid(4, 32)), TOKENS), (recipe(), TOKENS[:5])):
        with pytest.raises(UsageError, match="table of another model, recipe or calibration text"):
            quantize_folder(source, other, tokens, tmp_path / "t")
    assert contents(tmp_path / "t") == before
    assert quantize_folder(source, recipe(grid=Grid(4, 32)), TOKENS, tmp_path / "t", force=True).recipe.grid == Grid(4, 32)


def test_other_peoples_files_are_not_touched(source: SourceFolder, tmp_path: Path) -> None:
    from lowbit.llm.walk import quantize_folder

    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks/mine.txt").write_text("x")
    with pytest.raises(UsageError, match="has 'blocks' that is of no table"):
        quantize_folder(source, RTN, None, tmp_path)
    assert (tmp_path / "blocks/mine.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("asked", "tokens", "said"),
    [
        (LanguageRecipe("f16", "none"), None, "makes no table"),
        (LanguageRecipe("k", "llamacpp", preset="Q4_K_M"), None, "makes no table"),
        (recipe(method="magic"), None, "Unknown method 'magic'"),
        (recipe(), None, "needs tokens .N, T., and was given none"),
        (recipe(), TOKENS[0], r"the shape \[24\]"),
        (recipe(), np.zeros((1, 129), np.int32), "129 tokens are longer than the model's 128 positions"),
    ],
)
def test_calls_that_cannot_work_are_refused(source: SourceFolder, tmp_path: Path, asked: LanguageRecipe, tokens: Any, said: str) -> None:
    from lowbit.llm.walk import quantize_folder

    with pytest.raises(UsageError, match=said):
        quantize_folder(source, asked, tokens, tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("name", "canonical"), [("model.layers.1.mlp.up_proj.weight", "blocks.1.mlp.up"), ("lm_head.weight", "head.weight")]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_found(source: SourceFolder, tmp_path: Path, name: str, canonical: str, value: float) -> None:
    from safetensors.numpy import load_file, save_file

    from lowbit.llm.walk import quantize_folder

    folder = Path(shutil.copytree(source.path, tmp_path / "m"))
    tensors = load_file(folder / SINGLE)
    tensors[name][3, 5] = value
    save_file(tensors, folder / SINGLE)
    with pytest.raises(ModelError, match=f"'{canonical}.* has NaN or infinite values"):
        quantize_folder(SourceFolder.open(folder), RTN, None, tmp_path / "t")


def test_a_method_that_overflows_is_refused(source: SourceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.llm.walk import quantize_folder

    using(monkeypatch, Told(norms=1e6))
    with pytest.raises(ModelError, match=r"'blocks.0.norm1.weight' does not fit 16 bit"):
        quantize_folder(source, recipe(), TOKENS, tmp_path)


class Stop(Exception):
    pass


def test_what_was_stopped_goes_on_and_ends_the_same(source: SourceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.llm.walk import quantize_folder

    calm = using(monkeypatch, Told(norms=1.5))
    whole = quantize_folder(source, recipe(), TOKENS, tmp_path / "whole")

    class Failing(Told):
        def __call__(self, problem: Any) -> Any:
            if problem.index == 2:
                raise Stop
            return super().__call__(problem)

    using(monkeypatch, Failing(norms=1.5))
    with pytest.raises(Stop):
        quantize_folder(source, recipe(), TOKENS, tmp_path / "parts")
    assert not (tmp_path / "parts/table.json").exists()
    (tmp_path / "parts/blocks/000.safetensors").unlink()  # one in the middle is done again too
    later = using(monkeypatch, Told(norms=1.5))
    parts = quantize_folder(source, recipe(), TOKENS, tmp_path / "parts")
    assert [index for index, _, _ in later.problems] == [0, 2]
    assert contents(parts.path) == contents(whole.path)
    np.testing.assert_array_equal(later.problems[1][2].numpy(), calm.problems[2][2].numpy())


def test_the_last_stage_changes_all_blocks_or_none(source: SourceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from lowbit.llm.methods.base import QuantizedBlock
    from lowbit.llm.walk import quantize_folder

    failing = True

    def finish(model: Any, table: Any, tokens: Any, asked: LanguageRecipe) -> Iterator[tuple[int, QuantizedBlock]]:
        assert (model is source, tokens.shape, asked.name) == (True, TOKENS.shape, "x")
        for index in range(3):
            if failing and index == 2:
                raise Stop
            up = table.get(f"blocks.{index}.mlp.up.weight")
            assert isinstance(up, QuantizedLinear)
            yield index, QuantizedBlock({"mlp.up": replace(up, scale=up.scale * np.float16(2))})

    using(monkeypatch, Told(), {"gptq": finish})
    with pytest.raises(Stop):
        quantize_folder(source, recipe(), TOKENS, tmp_path / "t")
    failing = False
    using(monkeypatch, None, {"gptq": finish})  # no block is made again
    table = quantize_folder(source, recipe(), TOKENS, tmp_path / "t")
    using(monkeypatch, Told())
    plain = quantize_folder(source, recipe(), TOKENS, tmp_path / "plain")
    for index in range(3):
        ours, theirs = (each.get(f"blocks.{index}.mlp.up.weight") for each in (table, plain))
        np.testing.assert_array_equal(ours.scale, theirs.scale * np.float16(2))
        np.testing.assert_array_equal(
            table.get(f"blocks.{index}.mlp.gate.weight").levels, plain.get(f"blocks.{index}.mlp.gate.weight").levels
        )
    assert not (tmp_path / "t/finish").exists()
    assert not (tmp_path / "t/finish.whole").exists()


def walked(model: Path, out: Path, pause: float = 0.0) -> Any:
    """The call that is killed, and the same once more."""
    from lowbit.llm.walk import quantize_folder

    def told(done: int, _: int) -> None:
        print(done, flush=True)
        time.sleep(pause)

    asked = LanguageRecipe("int4", "rtn", Grid(4, 32), outliers=6.0, options={"candidates": 2})
    return quantize_folder(SourceFolder.open(model), asked, TOKENS, out, progress=told, threads=1, memory_bytes=1000)


CHILD = f"""
    import sys
    from pathlib import Path
    sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}
    from test_walk import walked
    walked(Path(sys.argv[1]), Path(sys.argv[2]), 0.5)
"""


def test_a_killed_process_resumes_by_block_and_ends_bit_by_bit_the_same(tmp_path: Path) -> None:
    model = random_decoder("llama", tmp_path / "model", layers=8)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(model), str(tmp_path / "killed")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    whole = walked(model, tmp_path / "whole")
    assert child.stdout is not None
    while (line := child.stdout.readline()) not in ("3\n", ""):
        pass
    assert line == "3\n"
    time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    done = len(list((tmp_path / "killed/blocks").glob("*.safetensors")))
    assert 3 <= done < 8
    assert not (tmp_path / "killed/table.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed/blocks").iterdir()}
    walked(model, tmp_path / "killed")
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert contents(tmp_path / "killed") == contents(whole.path)


def test_a_full_disk_stops_before_it_is_full_and_the_same_call_goes_on(
    source: SourceFolder, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    from lowbit.llm import unfinished, walk

    usage, free = namedtuple("usage", "total used free"), [1e12]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2e12, 1e12, free[0]))

    def fill(done: int, _: int) -> None:
        free[0] = unfinished.MARGIN + 10 if done == 2 else 1e12

    with pytest.raises(Interrupted, match=r"The disk is full(.|\n)*the same call resumes, and no finished block is lost"):
        walk.quantize_folder(source, recipe(), TOKENS, tmp_path, progress=fill)
    assert len(list((tmp_path / "blocks").glob("*"))) == 2
    free[0] = 1e12
    walk.quantize_folder(source, recipe(), TOKENS, tmp_path)
    assert [index for index, _, _ in told.problems] == [0, 1, 2]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB; its tests skip where none may be mounted."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True).returncode
    ):
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_others_fill_meanwhile(source: SourceFolder, told: Told, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.llm import walk

    monkeypatch.setattr(walk, "need_room", lambda *_: None)
    filler = tiny_disk / "others"

    def fill(done: int, _: int) -> None:
        if done == 1:
            filler.write_bytes(bytes(shutil.disk_usage(tiny_disk).free - 8192))

    with pytest.raises(Interrupted, match="The disk is full"):
        walk.quantize_folder(source, recipe(), TOKENS, tiny_disk / "t", progress=fill)
    assert [file.name for file in (tiny_disk / "t/blocks").iterdir()] == ["000.safetensors"]
    filler.unlink()
    assert walk.quantize_folder(source, recipe(), TOKENS, tiny_disk / "t").names()
    assert len(told.problems) == 4
    with pytest.raises(Interrupted, match="The disk is full"):  # hidden states do not fit either: no crash of the process
        walk.quantize_folder(source, recipe(), np.zeros((40, 100), np.int32), tiny_disk / "u", memory_bytes=0)


def test_memory_holds_a_block_and_not_the_model(tmp_path: Path) -> None:
    """Anonymous memory while a model of 12 blocks of 8 MB is quantized, in a process of its own."""
    model = random_decoder("llama", tmp_path / "model", layers=12, width=256, inner=1024, heads=4)
    code = """
        import re, sys
        from pathlib import Path
        from lowbit.llm.folder import SourceFolder
        from lowbit.llm.linear import Grid
        from lowbit.llm.recipe import LanguageRecipe
        from lowbit.llm.walk import quantize_folder

        def now():
            return int(re.search(r"RssAnon:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        source = SourceFolder.open(sys.argv[1])
        peaks = []
        def told(done, total):
            peaks.append(now())
        recipe = LanguageRecipe("int4", "rtn", Grid(4, 32), options={"candidates": 0})
        quantize_folder(source, recipe, None, Path(sys.argv[2]), progress=told, threads=1)
        print(peaks[0], peaks[-1], source.size_bytes)
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell")
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(model), str(tmp_path / "t")], capture_output=True, text=True, check=True
    )
    first, last, size = map(int, run.stdout.split())
    assert size > 20e6
    assert last - first < size / 3  # later blocks take the place of earlier ones
