"""A language model larger than what it may take in memory: 7 billion weights to INT4, block by block.

    python benchmarks/llm_large.py                       rounding and GPTQ, one to two hours on two cores, 18 GB of disk
    python benchmarks/llm_large.py --methods rtn
    python benchmarks/llm_large.py --small               the same steps on a model of 60 M weights, a minute

The model has the shape of Llama 7 B (32 blocks of width 4096, 11008 within, 32 heads, 32,000 tokens) and random weights in
16 bit; neither time nor memory depends on their values. Each method runs in a process of its own. Its anonymous memory (RssAnon,
what no file backs) is read from /proc every 50 ms: pages of the mapped model are the system's to take back and are told apart (RssFile).
Seconds are wall time, and cpu_seconds those of all threads, which other load on the machine disturbs less.
GPTQ calibrates with 8 windows of 256 tokens. Limit: 12 GiB of anonymous memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "llm_large.json"
LIMIT_BYTES = 12 << 30
WINDOWS, LENGTH = 8, 256
SHAPES = {
    "7b": {"layers": 32, "width": 4096, "heads": 32, "inner": 11008, "vocabulary": 32000},
    "small": {"layers": 4, "width": 1024, "heads": 8, "inner": 2816, "vocabulary": 4096},
}
FIELDS = ("RssAnon", "RssShmem", "RssFile")


# The model ------------------------------------------------------------------------------------------------------------


def generate(folder: Path, layers: int, width: int, heads: int, inner: int, vocabulary: int) -> None:
    """Writes the folder, a block at a time."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width, width), "self_attn.v_proj": (width, width)}
    shapes |= {
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    index: dict[str, str] = {}

    def write(number: int, tensors: dict[str, Any]) -> None:
        name = f"model-{number:05d}-of-{layers + 1:05d}.safetensors"
        save_file(tensors, folder / name)
        index.update(dict.fromkeys(tensors, name))

    def weights(rows: int, columns: int) -> Any:
        return (random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)).astype(np.float16)

    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors = {f"{prefix}{name}.weight": weights(*shape) for name, shape in shapes.items()}
        tensors |= {f"{prefix}{norm}.weight": np.ones(width, np.float16) for norm in ("input_layernorm", "post_attention_layernorm")}
        write(layer + 1, tensors)
    rest = {"model.embed_tokens.weight": weights(vocabulary, width), "lm_head.weight": weights(vocabulary, width)}
    write(layers + 1, {**rest, "model.norm.weight": np.ones(width, np.float16)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _tokenizer(folder)


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = {each: number for number, each in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))


# What runs in the fresh process ---------------------------------------------------------------------------------------


def quantize(folder: Path, method: str, out: Path, threads: int) -> None:
    """Quantizes, and tells each block's time."""
    from lowbit.llm.folder import SourceFolder
    from lowbit.llm.linear import Grid
    from lowbit.llm.recipe import LanguageRecipe
    from lowbit.llm.walk import quantize_folder

    source = SourceFolder.open(folder)
    tokens = np.random.default_rng(1).integers(0, source.decoder.vocabulary, (WINDOWS, LENGTH)).astype(np.int32)
    start = time.perf_counter()
    print(json.dumps({"digest_s": (len(source.sha256) and time.perf_counter() - start)}), flush=True)
    name, _, candidates = method.partition(":")
    options = {"candidates": float(candidates)} if candidates else {}
    recipe = LanguageRecipe(f"int4-{name}-g128", name, Grid(4, 128), options=options)  # type: ignore[arg-type]

    def told(done: int, total: int) -> None:
        print(json.dumps({"block": done, "of": total, "s": round(time.perf_counter() - start, 1)}), flush=True)

    table = quantize_folder(source, recipe, tokens, out, progress=told, threads=threads)
    facts = {"size_bytes": table.size_bytes, "source_bytes": source.size_bytes, "parameters": source.parameters}
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time()}
    print(json.dumps(facts | {"bits_per_weight": table.bits_per_weight} | seconds), flush=True)


# The parent -----------------------------------------------------------------------------------------------------------


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process by kind; empty where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {field: int(match[1]) * 1024 for field in FIELDS if (match := re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE))}


def run(folder: Path, method: str, out: Path, threads: int) -> dict[str, Any]:
    """Quantizes in a process of its own, watched."""
    command = [sys.executable, __file__, "--child", str(folder), method, str(out), str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    peaks = dict.fromkeys(FIELDS, 0)
    with tempfile.TemporaryFile("w+") as told:
        child = subprocess.Popen(command, stdout=told, env=environment)
        while child.poll() is None:
            for field, value in memory(child.pid).items():
                peaks[field] = max(peaks[field], value)
            time.sleep(0.05)
        told.seek(0)
        lines = [json.loads(line) for line in told.read().splitlines()]
    if child.returncode:
        raise SystemExit(f"{method}: the process ended with {child.returncode}")
    calibration = {} if method.startswith("rtn") else {"windows": WINDOWS, "length": LENGTH}
    result = {"method": method, "threads": threads, **calibration, **lines[0], **lines[-1]}
    result |= {f"peak_{field}_bytes": value for field, value in peaks.items()}
    result["within_limit"] = peaks["RssAnon"] + peaks["RssShmem"] <= LIMIT_BYTES
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", default="rtn:0,gptq", help="rtn:0 has the scales that reach the largest weight of each group; rtn searches them"
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--layers", type=int, help="blocks, where not all: time is in proportion to them, memory is not")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder otherwise; what is made there is deleted")
    parser.add_argument("--keep", action="store_true", help="keep the model, to run again")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, method, out, threads = arguments.child
        return quantize(Path(folder), method, Path(out), int(threads))
    shape = SHAPES["small" if arguments.small else "7b"]
    shape = shape | {"layers": arguments.layers or shape["layers"]}
    base = arguments.folder or Path(tempfile.mkdtemp(prefix="llm-large-"))
    model, table = base / "model", base / "table"
    try:
        if not (model / "config.json").is_file():
            start = time.perf_counter()
            generate(model, **shape)
            print(f"generated in {time.perf_counter() - start:.0f} s", flush=True)
        for method in arguments.methods.split(","):
            shutil.rmtree(table, ignore_errors=True)
            result = run(model, method, table, arguments.threads)
            print(json.dumps(result, indent=1), flush=True)
            record(arguments.results, shape, result)
    finally:
        shutil.rmtree(table, ignore_errors=True)
        if not arguments.keep:
            shutil.rmtree(model, ignore_errors=True)


def record(path: Path, shape: dict[str, int], result: dict[str, Any]) -> None:
    """Adds a run to the results; one of the same method and as many blocks is replaced."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    result = {"layers": shape["layers"], **result}
    shape = {key: value for key, value in shape.items() if key != "layers"}
    same = before.get("model") == shape
    runs = [each for each in before.get("runs", []) if same and (each["method"], each["layers"]) != (result["method"], result["layers"])]
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    facts = {"model": shape, "machine": machine, "limit_bytes": LIMIT_BYTES, "runs": [*runs, result]}
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
