"""NNCF's weight compression of a model (data-aware: AWQ and scale estimation), written as the plain weights that it stands for.

    python nncf_run.py FOLDER OUT --bits 4 --group 32 --calibration FILE... [--windows 128 --length 256]

Prints JSON: seconds, size of the quantized linear layers in bytes, version. 4 bits are symmetric in groups, 8 bits symmetric a row.
"""

from __future__ import annotations

import json
import os
import time

import peer_folder

os.environ["NNCF_TELEMETRY"] = "0"  # nothing leaves this machine
os.environ["OPENVINO_TELEMETRY"] = "0"

import torch


def main() -> None:
    given = peer_folder.arguments(__doc__)
    if given.threads:
        torch.set_num_threads(given.threads)
    import nncf
    from transformers import AutoModelForCausalLM

    rows = torch.from_numpy(peer_folder.windows(given.folder, given.calibration, given.windows, given.length))
    model = AutoModelForCausalLM.from_pretrained(given.folder, dtype=torch.float32).eval()
    model.config.use_cache = False
    dataset = nncf.Dataset([{"input_ids": row[None], "use_cache": False} for row in rows])
    began = time.perf_counter()
    options = {"mode": nncf.CompressWeightsMode.INT8_SYM} if given.bits == 8 else _int4(nncf, given, dataset)
    compressed = nncf.compress_weights(model, ignored_scope=nncf.IgnoredScope(patterns=[".*embed_tokens.*", ".*lm_head.*"]), **options)
    seconds = time.perf_counter() - began
    plain = nncf.strip(compressed, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE)
    state = plain.state_dict()
    changed = {name: state[name] for name in state if name.endswith(tuple(f"{each}.weight" for each in peer_folder.LINEAR))}
    if any(not value.is_floating_point() for value in changed.values()):
        raise SystemExit("NNCF kept integers where plain weights were asked for.")
    peer_folder.write(given.folder, given.out, changed)
    size = sum(_bytes(value.shape, given.bits, given.group) for value in changed.values())
    print(
        json.dumps(
            {"peer": "nncf", "version": nncf.__version__, "seconds": round(seconds, 1), "linear_bytes": size, "layers": len(changed)}
        )
    )


def _int4(nncf, given, dataset):  # type: ignore[no-untyped-def]  # a library that need not be there
    return {
        "mode": nncf.CompressWeightsMode.INT4_SYM,
        "group_size": given.group,
        "ratio": 1.0,
        "dataset": dataset,
        "awq": True,
        "scale_estimation": True,
        "subset_size": given.windows,
    }


def _bytes(shape: torch.Size, bits: int, group: int) -> int:
    rows, columns = shape
    return rows * columns * bits // 8 + rows * 2 * (1 if bits == 8 else -(-columns // group))


if __name__ == "__main__":
    main()
