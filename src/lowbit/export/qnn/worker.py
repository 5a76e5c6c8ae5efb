"""QNN's libraries in a process of their own: `python -m lowbit.export.qnn.worker`, started by lowbit.export.qnn.session.

They are large, write to standard error as they please, register themselves for the whole process, and may end it on a graph that they
cannot compile. The first line in says what to load; every further line names a file of samples, and is answered with one of outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowbit.measure.talk import Turn, serve

PROVIDER = "lowbit-qnn"


def main() -> None:
    serve(_load, resting=False)


def _load(spec: dict[str, Any]) -> tuple[Turn, dict[str, Any]]:
    """Opens a model on the HTP: all of it, nothing on the CPU."""
    from lowbit.quiet import no_telemetry

    no_telemetry()
    import numpy as np
    import onnxruntime
    import onnxruntime_qnn

    onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_provider_for_devices(devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **spec["options"]})
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if spec["context"] is not None:
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_embed_mode", "0")
        options.add_session_config_entry("ep.context_file_path", spec["context"])
    session = onnxruntime.InferenceSession(spec["model"], options)
    names = [value.name for value in session.get_outputs()]
    size = int(session.get_inputs()[0].shape[0])

    def turn(request: dict[str, Any]) -> dict[str, Any]:
        with np.load(request["feeds"]) as arrays:
            feeds = {name: arrays[name] for name in arrays.files}
        samples = len(next(iter(feeds.values())))
        calls = range(0, samples, size)
        rows = [session.run(names, {name: values[row : row + size] for name, values in feeds.items()}) for row in calls]
        outputs = Path(request["outputs"])
        with outputs.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                **{name: np.concatenate(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)},
            )
        return {}

    return turn, {"outputs": names, "size": size}


if __name__ == "__main__":
    main()
