"""Build an engine and run it: used where TensorRT, a CUDA GPU and torch (whose tensors lie on it) are there.

Written against the documented Python API of TensorRT 10 and 11
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.errors import RunError
from lowbit.export.named_session import fixed_size
from lowbit.plugins import installed_version
from lowbit.types import Array, Feeds, TensorInfo

_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_WORKSPACE = 1 << 32
_OLDEST = 10


def tensorrt_version() -> str | None:
    """Of TensorRT's Python package, None where it is not installed."""
    return installed_version("tensorrt", *_PACKAGES)


def ready() -> bool:
    """Whether an engine can be built and run here. Imports torch where TensorRT is installed, nothing elsewhere."""
    if tensorrt_version() is None or importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


class Engine:
    """An engine on the GPU, built from an ONNX file."""

    def __init__(self, path: Path, inputs: Mapping[str, TensorInfo], most: int) -> None:
        """Builds an engine.

        Args:
            path: A QDQ file by TensorRT's rules.
            inputs: Of the model, by name.
            most: Largest batch; 1 means that it is fixed, at one or at what the inputs say.

        Raises:
            RunError: TensorRT does not read or build the model, or is too old.
        """
        import tensorrt

        if int(tensorrt.__version__.split(".")[0]) < _OLDEST:
            raise RunError(f"TensorRT {tensorrt.__version__} is too old.", f"Install TensorRT {_OLDEST} or later.")
        self._name, self._most = path.name, fixed_size(list(inputs.values())) or most
        self._logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        plan = _build(tensorrt, self._logger, path, inputs, most)
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise RunError(
                f"TensorRT built an engine of '{path.name}' and cannot load it.", "See build.sh, which shows TensorRT's own messages."
            )
        self._context: Any = self._engine.create_execution_context()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Answers samples, in batches of what the engine takes."""
        if self._context is None:
            raise RunError(f"The engine of '{self._name}' is closed.", "Open it again.")
        count = len(next(iter(feeds.values()), ()))
        if count == 0:
            raise RunError("There are no samples to run.", "Feed at least one.")
        cuts = range(0, count, self._most)
        parts = [self._batch({name: values[start : start + self._most] for name, values in feeds.items()}) for start in cuts]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Frees the engine; closing twice is fine."""
        self._context = self._engine = None

    def _batch(self, feeds: Feeds) -> dict[str, Array]:
        """One call: what goes in and comes out lies in torch's tensors on the GPU."""
        import tensorrt
        import torch

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            held = {name: torch.from_numpy(np.ascontiguousarray(values)).cuda() for name, values in feeds.items()}
            for name, tensor in held.items():
                self._context.set_input_shape(name, tuple(tensor.shape))
            outputs = {}
            for name in (self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)):
                if self._engine.get_tensor_mode(name) == tensorrt.TensorIOMode.OUTPUT:
                    kind = torch.from_numpy(np.empty(0, tensorrt.nptype(self._engine.get_tensor_dtype(name)))).dtype
                    held[name] = outputs[name] = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=kind, device="cuda")
            for name, tensor in held.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            done = self._context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        if not done:
            raise RunError(f"TensorRT failed on '{self._name}'.", "See build.sh, which shows TensorRT's own messages.")
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}


def _build(tensorrt: Any, logger: Any, path: Path, inputs: Mapping[str, TensorInfo], most: int) -> Any:
    """A serialized engine.

    Raises:
        RunError: TensorRT does not read or build the model.
    """
    builder = tensorrt.Builder(logger)
    kinds = tensorrt.NetworkDefinitionCreationFlag
    wanted = [getattr(kinds, name, None) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED")]  # 11 has no other batch, 10 ignores the flag
    network = builder.create_network(sum(1 << int(flag) for flag in wanted if flag is not None))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        said = "; ".join(str(parser.get_error(index)) for index in range(min(parser.num_errors, 3)))
        raise RunError(f"TensorRT does not read '{path.name}': {said}.", "Export another candidate.")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, _WORKSPACE)
    if most > 1:
        profile = builder.create_optimization_profile()
        for name, info in inputs.items():
            rest = info.shape[1:]
            profile.set_shape(name, (1, *rest), (most, *rest), (most, *rest))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RunError(f"TensorRT cannot build '{path.name}'.", "See build.sh, which shows TensorRT's own messages.")
    return plan
