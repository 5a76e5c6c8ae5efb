"""A local Hugging Face folder of a decoder, as it is on disk: nothing is loaded before it is asked for, nothing is fetched."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lowbit.errors import ModelError
from lowbit.llm.decoder import Decoder
from lowbit.llm.families import Place, end_tokens, places, read_decoder
from lowbit.llm.mapped import MappedFile, file_sha256
from lowbit.types import Array

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
COPIED = ("config.json", "generation_config.json", *TOKENIZER_FILES)
"""Files beside the weights that a model made from the folder needs as well."""

RESAVE = "Convert once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other), and the tokenizer likewise."
_FLOATS = ("F16", "BF16", "F32")


class SourceFolder:
    """The weights of a decoder in a Hugging Face folder, under canonical names (lowbit.llm.decoder), memory-mapped.

    Attributes:
        decoder: The architecture.
        path: The folder.
        config: config.json.
    """

    decoder: Decoder
    path: Path

    def __init__(self, path: Path, decoder: Decoder, config: Mapping[str, Any], files: Mapping[str, MappedFile]) -> None:
        self.path, self.decoder, self.config = path, decoder, config
        self._files = files
        self._places = _found(places(decoder, config), files)

    @classmethod
    def open(cls, path: Path | str) -> SourceFolder:
        """Reads and checks what describes the weights, not the weights: a folder of any size opens at once.

        Args:
            path: With config.json, safetensors and tokenizer.json.

        Returns:
            The weights, to be read one by one.

        Raises:
            ModelError: a file is missing or damaged, the architecture is not supported, or a tensor is missing or of another shape.
        """
        path = Path(path)
        if not path.is_dir():
            raise ModelError(
                f"'{path}' is no folder; a language model is a Hugging Face folder with config.json, safetensors and tokenizer.json."
            )
        config = read_json(path, "config.json")
        decoder = read_decoder(config)
        if (path / "generation_config.json").is_file() and (
            ends := end_tokens(read_json(path, "generation_config.json").get("eos_token_id"))
        ):
            decoder = dataclasses.replace(decoder, eos=ends)
        _check_tokenizer(path)
        return cls(path, decoder, config, _files(path))

    def names(self) -> tuple[str, ...]:
        """Of all tensors, in canonical names."""
        return tuple(self._places)

    def get(self, name: str) -> Array:
        """One tensor as stored; a read-only view of the file, turned or cut where the family fuses.

        Raises:
            KeyError: there is none of that name.
        """
        place = self._places[name]
        stored = self._files[place.name].get(place.name)
        tensor = stored.T if place.turned else stored
        return tensor if place.rows is None else tensor[place.start : place.start + place.shape[0]]

    @cached_property
    def sha256(self) -> str:
        """Of config.json, tokenizer.json and the weights' files, names and contents: what any result was made from."""
        digest = hashlib.sha256()
        for path in [self.path / "config.json", self.path / "tokenizer.json", *self.files]:
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
        return digest.hexdigest()

    @property
    def files(self) -> tuple[Path, ...]:
        """That the weights are in; others in the folder (the same weights saved another way) are not looked at."""
        return tuple(sorted({file.path for file in self._files.values()}))

    @property
    def size_bytes(self) -> int:
        """Of the weights' files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def parameters(self) -> int:
        """Weights, each counted once."""
        return sum(math.prod(place.shape) for place in self._places.values())

    @property
    def dtype(self) -> str:
        """Of the blocks' weights, in numpy's words: "float16", "bfloat16", "float32"."""
        name = self._places["blocks.0.attention.q.weight"].name
        return {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[self._files[name].dtype(name)]


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a model's folder.

    Raises:
        ModelError: it is missing, no JSON, or not an object.
    """
    try:
        raw = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"'{folder}' has no {name}.", "A language model's folder has config.json, safetensors and tokenizer.json."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"'{name}' in '{folder}' cannot be read: {error}.") from error
    if not isinstance(raw, dict):
        raise ModelError(f"'{name}' in '{folder}' must be a JSON object.")
    return raw


def _check_tokenizer(path: Path) -> None:
    if (path / "tokenizer.json").is_file():
        return
    others = [name for name in ("tokenizer.model", "vocab.json", "merges.txt") if (path / name).is_file()]
    if others:
        raise ModelError(
            f"'{path}' has its tokenizer only as {', '.join(others)}; tokenizer.json is needed.",
            "Convert it once: AutoTokenizer.from_pretrained(folder).save_pretrained(folder).",
        )
    raise ModelError(f"'{path}' has no tokenizer (tokenizer.json).", "Copy it from where the model comes from; it belongs to the weights.")


def _files(path: Path) -> dict[str, MappedFile]:
    """Tensor name -> the file that has it."""
    if (path / INDEX).is_file():
        return _sharded(path)
    if (path / SINGLE).is_file():
        file = MappedFile(path / SINGLE)
        return dict.fromkeys(file.names(), file)
    if others := sorted(each.name for each in (*path.glob("pytorch_model*.bin"), *path.glob("*.pth"), *path.glob("*.gguf"))):
        raise ModelError(f"'{path}' has its weights only as {others[0]}; safetensors is needed.", RESAVE)
    raise ModelError(f"'{path}' has no weights: neither {SINGLE} nor {INDEX}.")


def _sharded(path: Path) -> dict[str, MappedFile]:
    weights = read_json(path, INDEX).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise ModelError(f"'{INDEX}' in '{path}' has no weight_map.")
    shards: dict[str, MappedFile] = {}
    names = sorted({str(each) for each in weights.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise ModelError(f"'{INDEX}' points outside its folder: '{outside[0]}'.")
    if absent := [name for name in names if not (path / name).is_file()]:
        raise ModelError(
            f"{len(absent)} of {len(names)} files of weights are missing: {', '.join(absent[:3])}.",
            "Copy the missing files into the folder.",
        )
    for name in names:
        shards[name] = MappedFile(path / name)
    for tensor, name in weights.items():
        if tensor not in shards[name].names():
            raise ModelError(f"'{INDEX}' says that '{tensor}' is in '{name}', which does not have it.")
    return {tensor: shards[name] for tensor, name in weights.items()}


def _found(wanted: Mapping[str, Place], files: Mapping[str, MappedFile]) -> dict[str, Place]:
    """Checks that each tensor is there, in the shape that config.json says.

    Raises:
        ModelError: naming the first that is not.
    """
    found = {}
    for canonical, place in wanted.items():
        name = place.name
        if name not in files and (short := name.partition(".")[2]) in files:
            name = short  # saved from the bare decoder, without its head (GPT-2's first folders)
        if name not in files:
            hint = "config.json says that the head is not the embedding (tie_word_embeddings)." if canonical == "head.weight" else None
            raise ModelError(f"The weights lack '{place.name}'.", hint)
        file = files[name]
        if file.shape(name) != place.stored:
            raise ModelError(f"'{name}' has the shape {list(file.shape(name))}; config.json asks for {list(place.stored)}.")
        if file.dtype(name) not in _FLOATS:
            raise ModelError(f"'{name}' is stored as {file.dtype(name)}; float16, bfloat16 or float32 is needed.")
        found[canonical] = dataclasses.replace(place, name=name)
    return found
