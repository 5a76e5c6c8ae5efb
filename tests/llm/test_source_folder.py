"""A folder is opened without loading it, tensors are views of the file, and what is wrong with it is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_case import need, random_decoder

from lowbit.errors import ModelError
from lowbit.llm.decoder import Weights
from lowbit.llm.folder import INDEX, SINGLE, SourceFolder
from lowbit.llm.mapped import MappedFile


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("folders")
    return {
        "llama": random_decoder("llama", base / "llama"),
        "shards": random_decoder("llama", base / "shards", shards=3, dtype="bfloat16"),
        "phi3": random_decoder("phi3", base / "phi3"),
        "gpt2": random_decoder("gpt2", base / "gpt2"),
    }


@pytest.fixture
def llama(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["llama"], tmp_path / "llama"))


@pytest.fixture
def shards(made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["shards"], tmp_path / "shards"))


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The folder's one file of weights with its tensors changed."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


def configured(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_tensors_are_views_of_the_file_and_what_transformers_stored(made: dict[str, Path]) -> None:
    from safetensors.numpy import load_file

    source = SourceFolder.open(made["llama"])
    assert isinstance(source, Weights)
    stored = load_file(made["llama"] / SINGLE)
    found = source.get("blocks.1.attention.k.weight")
    np.testing.assert_array_equal(found, stored["model.layers.1.self_attn.k_proj.weight"])
    assert found.dtype == np.float16
    assert not found.flags.owndata
    assert not found.flags.writeable
    assert source.parameters == sum(each.size for each in stored.values())
    assert source.size_bytes == (made["llama"] / SINGLE).stat().st_size
    assert source.dtype == "float16"
    with pytest.raises(KeyError):
        source.get("blocks.9.mlp.up.weight")


def test_fused_and_transposed_tensors_are_cut_and_turned_without_a_copy(made: dict[str, Path]) -> None:
    from safetensors.numpy import load_file

    phi, stored = SourceFolder.open(made["phi3"]), load_file(made["phi3"] / SINGLE)
    fused = stored["model.layers.0.self_attn.qkv_proj.weight"]
    np.testing.assert_array_equal(phi.get("blocks.0.attention.k.weight"), fused[64:96])
    np.testing.assert_array_equal(phi.get("blocks.0.mlp.up.weight"), stored["model.layers.0.mlp.gate_up_proj.weight"][96:])
    gpt, stored = SourceFolder.open(made["gpt2"]), load_file(made["gpt2"] / SINGLE)
    value = gpt.get("blocks.1.attention.v.weight")
    np.testing.assert_array_equal(value, stored["transformer.h.1.attn.c_attn.weight"][:, 128:].T)
    np.testing.assert_array_equal(gpt.get("blocks.1.attention.q.bias"), stored["transformer.h.1.attn.c_attn.bias"][:64])
    assert not value.flags.owndata


def test_shards_and_bfloat16(made: dict[str, Path]) -> None:
    assert len(list(made["shards"].glob("*.safetensors"))) >= 3
    source, single = SourceFolder.open(made["shards"]), SourceFolder.open(made["llama"])
    assert source.names() == single.names()
    assert source.dtype == "bfloat16"
    for name in source.names():
        np.testing.assert_allclose(source.get(name).astype(np.float32), single.get(name).astype(np.float32), rtol=0.01, atol=1e-4)
    assert source.parameters == single.parameters
    assert source.sha256 != single.sha256
    assert len(source.sha256) == 64


def test_the_digest_is_of_contents(llama: Path, made: dict[str, Path]) -> None:
    assert SourceFolder.open(llama).sha256 == SourceFolder.open(made["llama"]).sha256
    data = bytearray((llama / SINGLE).read_bytes())
    data[-1] ^= 1
    (llama / SINGLE).write_bytes(data)
    assert SourceFolder.open(llama).sha256 != SourceFolder.open(made["llama"]).sha256


def test_gpt2_saved_without_its_head_opens(made: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["gpt2"], tmp_path / "gpt2"))

    def bare(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.uint8)  # the mask that older folders hold

    rewritten(folder, bare)
    np.testing.assert_array_equal(SourceFolder.open(folder).get("embed.weight"), SourceFolder.open(made["gpt2"]).get("embed.weight"))


def test_a_tied_model_has_no_head_and_an_untied_one_needs_it(llama: Path) -> None:
    rewritten(llama, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ModelError, match=r"lack 'lm_head.weight'(.|\n)*tie_word_embeddings"):
        SourceFolder.open(llama)
    configured(llama, tie_word_embeddings=True)
    source = SourceFolder.open(llama)
    assert source.decoder.tied
    assert "head.weight" not in source.names()


def test_end_tokens_of_generation_count(llama: Path) -> None:
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    assert SourceFolder.open(llama).decoder.eos == (1, 7)


def test_missing_files_are_named(llama: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no folder"):
        SourceFolder.open(tmp_path / "nowhere")
    first = sorted(shards.glob("*.safetensors"))[0]
    first.unlink()
    with pytest.raises(ModelError, match=rf"1 of \d files of weights are missing: {first.name}"):
        SourceFolder.open(shards)
    (llama / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer .tokenizer\.json"):
        SourceFolder.open(llama)
    (llama / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"only as tokenizer\.model(.|\n)*AutoTokenizer"):
        SourceFolder.open(llama)
    (llama / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        SourceFolder.open(llama)


def test_weights_of_another_format_are_to_be_converted(llama: Path) -> None:
    (llama / SINGLE).rename(llama / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only as pytorch_model\.bin; safetensors is needed(.|\n)*save_pretrained"):
        SourceFolder.open(llama)
    (llama / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="no weights"):
        SourceFolder.open(llama)


@pytest.mark.parametrize("left", [0, 7, 60, 3000, -100])
def test_a_file_that_is_cut_short_is_damaged(llama: Path, left: int) -> None:
    data = (llama / SINGLE).read_bytes()
    (llama / SINGLE).write_bytes(data[:left])
    with pytest.raises(ModelError, match=r"cut short|ends before its tensor|cannot be read"):
        SourceFolder.open(llama)


def test_damaged_headers_are_refused(llama: Path) -> None:
    data = (llama / SINGLE).read_bytes()
    (llama / SINGLE).write_bytes(data[:8] + b"!" + data[9:])
    with pytest.raises(ModelError, match="header that cannot be read"):
        SourceFolder.open(llama)
    for header, said in (
        (b"[1, 2]", "no safetensors file"),
        (b'{"a": {"dtype": "F16", "shape": [2]}}', "damaged at 'a'"),
        (b'{"a": {"dtype": "F16", "shape": [3], "data_offsets": [0, 4]}}', "do not fit its shape"),
    ):
        (llama / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
        with pytest.raises(ModelError, match=said):
            MappedFile(llama / SINGLE)


def test_tensors_that_do_not_fit_are_named(llama: Path) -> None:
    rewritten(llama, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.zeros((5, 64), np.float16)}))
    with pytest.raises(
        ModelError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' has the shape \[5, 64\]; config\.json asks for \[96, 64\]"
    ):
        SourceFolder.open(llama)
    rewritten(llama, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.zeros((96, 64), np.int8)}))
    with pytest.raises(ModelError, match="stored as I8; float16, bfloat16 or float32"):
        SourceFolder.open(llama)
    rewritten(llama, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lack 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        SourceFolder.open(llama)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {"x": "../../elsewhere.safetensors"}}, "outside its folder"),
        ("not json", "cannot be read"),
        ([1], "object"),
    ],
)
def test_damaged_indexes_are_refused(shards: Path, index: Any, said: str) -> None:
    (shards / INDEX).write_text(index if isinstance(index, str) else json.dumps(index))
    with pytest.raises(ModelError, match=said):
        SourceFolder.open(shards)


def test_an_index_that_names_the_wrong_shard_is_refused(shards: Path) -> None:
    raw = json.loads((shards / INDEX).read_text())
    names = sorted(set(raw["weight_map"].values()))
    tensor = next(each for each, file in raw["weight_map"].items() if file == names[0])
    raw["weight_map"][tensor] = names[1]
    (shards / INDEX).write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=f"says that '{tensor}' is in '{names[1]}', which does not have it"):
        SourceFolder.open(shards)


def test_quantized_folders_are_refused(llama: Path) -> None:
    configured(llama, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(ModelError, match=r"quantized already .method 'awq'"):
        SourceFolder.open(llama)


def test_reading_a_large_folder_takes_no_memory(tmp_path: Path) -> None:
    """Anonymous memory while every tensor of a folder of 24 MB is touched: nothing of the files counts."""
    need("psutil")
    from lowbit.measure.memory import anonymous_bytes

    if anonymous_bytes() is None:
        pytest.skip("the system does not tell")
    source = SourceFolder.open(random_decoder("llama", tmp_path, layers=8, width=256, inner=1024))
    assert source.size_bytes > 16e6
    before = anonymous_bytes()
    total = sum(int(source.get(name).view(np.uint16).max()) for name in source.names())
    after = anonymous_bytes()
    assert total > 0
    assert before is not None
    assert after is not None
    assert after - before < 4e6
