"""compressed-tensors folders: the numbers that are in them, and that transformers and the format's own library read the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import need, random_decoder
from engine_case import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_case import Rounded, recipe, rounded

from lowbit.errors import ModelError, UsageError
from lowbit.llm.folder import SourceFolder
from lowbit.llm.linear import Grid, QuantizedLinear
from lowbit.llm.recipe import LanguageRecipe
from lowbit.llm.writers import compressed_tensors_folder
from lowbit.llm.writers.compressed_layout import grid_of, joined, parts, scheme
from lowbit.llm.writers.compressed_read import CompressedFolder

TEXT = [int(token) for token in np.random.default_rng(5).integers(2, 300, 20)]


@pytest.fixture(autouse=True, scope="module")
def _packages() -> None:
    need("torch", "transformers", "safetensors", "compressed_tensors")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SourceFolder:
    return SourceFolder.open(random_decoder("llama", tmp_path_factory.mktemp("llama")))


def transformers_logits(folder: Path) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    from lowbit.quiet import no_output

    with no_output(), torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        found: np.ndarray = model(torch.tensor([TEXT])).logits[0].numpy()
    return found


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from([4, 8]),
    groups=st.sampled_from([None, 8, 16]),
    symmetric=st.booleans(),
    rows=st.integers(1, 40),
    columns=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_there_and_back(bits: int, groups: int | None, symmetric: bool, rows: int, columns: int, seed: int) -> None:
    width = columns * (groups or 7)
    grid = Grid(bits, groups, symmetric)
    before = rounded(np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32), grid)
    after = joined(parts("x.weight", before, False, np.float16), "x.weight", grid_of(scheme(grid, False)), False)
    assert differing(after, before) == []


def differing(after: QuantizedLinear, before: QuantizedLinear) -> list[str]:
    """Parts that are not the same."""
    return [
        part
        for part in ("grid", "levels", "scale", "zero")
        if not np.array_equal(getattr(after, part), getattr(before, part))  # None equals None alone
    ]


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 32, False), Grid(4, None, False), Grid(8), Grid(8, 32, False)])
def test_the_formats_own_library_unpacks_the_same_weights(grid: Grid) -> None:
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    layer = rounded(np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32), grid)
    stored = {name.removeprefix("x."): torch.from_numpy(array) for name, array in parts("x.weight", layer, False, np.float32).items()}
    described = {key: value for key, value in scheme(grid, False).items() if key != "format"}
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    found = library.decompress(stored, QuantizationScheme(targets=["Linear"], **described))["weight"]
    np.testing.assert_array_equal(found.numpy(), layer.dequantized())


CASES: dict[str, tuple[str, LanguageRecipe, dict[str, Any]]] = {
    "int4": ("llama", recipe(Grid(4, 32)), {}),
    "int4, rows": ("llama", recipe(Grid(4)), {}),
    "int8": ("llama", recipe(Grid(8)), {}),
    "int8, groups": ("qwen2", recipe(Grid(8, 32)), {}),
    "mixed": ("qwen3", recipe(Grid(4, 32), formats={"mlp.down": Grid(8), "blocks.0.attention.o": Grid(4, 16)}), {}),
    "fused": ("phi3", recipe(Grid(4, 32)), {}),
    "phi": ("phi", recipe(Grid(4, 32)), {}),
    "tied, bfloat16": ("mistral", recipe(Grid(4, 32)), {"tied": True, "dtype": "bfloat16"}),
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_references_logits(case: str, tmp_path: Path) -> None:
    family, asked, changes = CASES[case]
    weights = Rounded(SourceFolder.open(random_decoder(family, tmp_path / "source", **changes)), asked)
    main = compressed_tensors_folder.write(weights, tmp_path / "out")
    assert main.name == "model.safetensors"
    # float32 on the same numbers: only the order of additions differs.
    assert np.abs(transformers_logits(main.parent) - reference(weights, TEXT)).max() < 5e-5
    again = CompressedFolder.open(main.parent)
    assert set(again.names()) == set(weights.names())
    for name in weights.names():
        ours, theirs = weights.get(name), again.get(name)
        if isinstance(ours, QuantizedLinear):
            assert isinstance(theirs, QuantizedLinear)
            assert differing(theirs, ours) == []
        else:
            assert not isinstance(theirs, QuantizedLinear)
            np.testing.assert_array_equal(theirs.astype(np.float32), ours.astype(np.float32))


def test_eight_bit_activations(llama: SourceFolder, tmp_path: Path) -> None:
    weights = Rounded(llama, recipe(Grid(8), activations="int8-token"))
    main = compressed_tensors_folder.write(weights, tmp_path)
    again = CompressedFolder.open(main.parent)
    assert np.abs(reference(again, TEXT) - reference(weights, TEXT)).max() < 1e-6
    plain = reference(Rounded(llama, recipe(Grid(8))), TEXT)
    found = transformers_logits(main.parent)
    # transformers rounds as well, to steps of the largest / 127.5: another rounding, an error of the same size.
    ours, theirs = (np.sqrt(np.mean((each - plain) ** 2)) for each in (reference(weights, TEXT), found))
    assert 0.5 * ours < theirs < 2 * ours
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    inputs = config["config_groups"]["group_0"]["input_activations"]
    assert (config["format"], inputs["dynamic"], inputs["strategy"]) == ("int-quantized", True, "token")


def test_a_plain_source_gives_a_plain_folder(tmp_path: Path) -> None:
    for family in ("gpt2", "phi3"):
        source = SourceFolder.open(random_decoder(family, tmp_path / family, dtype="bfloat16"))
        main = compressed_tensors_folder.write(source, tmp_path / f"{family}-out")
        again = SourceFolder.open(main.parent)
        assert again.dtype == "bfloat16"
        for name in source.names():
            np.testing.assert_array_equal(again.get(name), source.get(name))
        assert np.abs(transformers_logits(main.parent) - reference(source, TEXT)).max() < 2e-4


def test_large_models_are_spread_over_files(llama: SourceFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Rounded(llama, recipe(Grid(4, 32)))
    compressed_tensors_folder.write(weights, tmp_path)
    monkeypatch.setattr(compressed_tensors_folder, "SHARD_BYTES", 30_000)
    main = compressed_tensors_folder.write(weights, tmp_path)
    assert main.name == "model.safetensors.index.json"
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert np.abs(transformers_logits(tmp_path) - reference(weights, TEXT)).max() < 5e-5
    assert np.abs(reference(CompressedFolder.open(tmp_path), TEXT) - reference(weights, TEXT)).max() < 1e-6


REFUSED = {
    "3 bits": recipe(Grid(3, 32)),
    "2 bits": recipe(Grid(2, 32)),
    "in groups of 48": recipe(Grid(4, 48)),
    "columns in 16 bit": recipe(Grid(8), outliers=6.0),
    "grid for the head": recipe(Grid(4, 32), head=Grid(8)),
    "one scale a row": recipe(Grid(8, 32), activations="int8-token"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_the_format_does_not_hold_is_refused(words: str, llama: SourceFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        compressed_tensors_folder.check(llama.decoder, REFUSED[words])
    with pytest.raises(UsageError, match=words):
        compressed_tensors_folder.write(Rounded(llama, REFUSED[words]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gpt2s_layers_and_parts_that_differ_are_refused(tmp_path: Path) -> None:
    gpt2 = SourceFolder.open(random_decoder("gpt2", tmp_path / "gpt2"))
    with pytest.raises(UsageError, match="gpt2"):
        compressed_tensors_folder.write(Rounded(gpt2, recipe(Grid(4, 32))), tmp_path / "out")
    phi3 = SourceFolder.open(random_decoder("phi3", tmp_path / "phi3"))
    with pytest.raises(UsageError, match="different grids"):
        compressed_tensors_folder.write(Rounded(phi3, recipe(Grid(4, 32), formats={"attention.k": Grid(8)})), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Large(Rounded):
    """A norm beyond float16."""

    def get(self, name: str) -> Any:
        found = super().get(name)
        return found if name != "norm.weight" else found * np.asarray(1e6, found.dtype)


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    source = SourceFolder.open(random_decoder("llama", tmp_path / "source", dtype="bfloat16"))
    with pytest.raises(ModelError, match=r"norm\.weight.*float16"):
        compressed_tensors_folder.write(Large(source, recipe(Grid(4, 32))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_ways_of_quantizing_are_named(llama: SourceFolder, tmp_path: Path) -> None:
    main = compressed_tensors_folder.write(Rounded(llama, recipe(Grid(4, 32))), tmp_path)
    config = json.loads((main.parent / "config.json").read_text(encoding="utf-8"))
    for change, words in (({"quant_method": "gptq"}, "gptq"), ({"config_groups": {"g": {"targets": ["Linear"], "weights": {}}}}, "type")):
        changed = {**config, "quantization_config": {**config["quantization_config"], **change}}
        (main.parent / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(ModelError, match=words):
            CompressedFolder.open(main.parent)


def test_the_writer_needs_neither_torch_nor_transformers() -> None:
    import subprocess

    code = (
        "import sys; import lowbit.llm.writers.compressed_tensors_folder; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
