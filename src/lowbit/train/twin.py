"""The torch twin of an ONNX graph: the same nodes in the same order, with weights and scales that can be trained.

What is trained is what ships. A twin of the FP32 graph teaches, a twin of the QDQ graph learns; `write_back` puts what it has learned
into the file it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lowbit.errors import DataError, ModelError, UsageError, unknown
from lowbit.graph import ir_files
from lowbit.quant.affine import from_values, levels
from lowbit.recipe import Recipe
from lowbit.train.fake_quantize import FakeQuantize
from lowbit.train.operators import OPERATORS
from lowbit.train.parts import Compute, Grid, Plan, Rounding
from lowbit.train.plan import plan
from lowbit.types import Array


class Twin(nn.Module):
    """An ONNX graph as a torch module. It computes as in inference, whether it is in training mode or not.

    Attributes:
        path: The file it was read from.
        plan: What it holds and does.
        trained: Weights and biases, by `weight` in ONNX's names.
        quantizers: Where it rounds, by `quantizer` in ONNX's names.
        tensors: Names of everything that is computed: what `watch` can ask for.
    """

    def __init__(self, path: Path, *, recipe: Recipe | None = None) -> None:
        """Reads an ONNX file, FP32 or QDQ.

        Args:
            path: The file; not changed.
            recipe: What it was made by, if known: it says how many bits weights have that are stored in bytes.

        Raises:
            ModelError: the file has operators that the twin does not know, or quantization in a form that cannot be trained.
        """
        super().__init__()
        self.path, self.plan = path, plan(ir_files.read(path), path.name, recipe)
        self.trained, self.quantizers, self._fixed = nn.ParameterDict(), nn.ModuleDict(), nn.Module()
        self._keys: dict[str, str] = {}
        self._integers: dict[str, Tensor] = {}
        for name, array in self.plan.trained.items():
            self.trained[self._key(name)] = nn.Parameter(_tensor(array))
        for name, array in sorted(self.plan.constants.items()):
            self._hold(name, _tensor(array))
        for grid in self.plan.grids.values():
            self._add_quantizer(grid)
        self._last = _last_uses(self.plan)
        outputs = [name for step in self.plan.steps for name in (step.outputs if isinstance(step, Compute) else (step.output,)) if name]
        self.tensors = tuple(dict.fromkeys([*self.plan.inputs, *outputs, *self.plan.aliases]))

    def _key(self, name: str) -> str:
        """A name that torch allows: without dots, and unlike any attribute."""
        return self._keys.setdefault(name, f"{len(self._keys)}:{name.replace('.', '/')}")

    def _hold(self, name: str, value: Tensor) -> None:
        """Floats follow the module to its device; integers are shapes and positions, and stay."""
        if value.is_floating_point():
            self._fixed.register_buffer(self._key(name), value, persistent=False)
        else:
            self._integers[name] = value

    def _add_quantizer(self, grid: Grid) -> None:
        scale, zero = _tensor(self.plan.parameters[grid.scale]), _tensor(self.plan.zeros(grid))
        made = FakeQuantize(scale, zero, grid.low, grid.high, axis=grid.axis, block=grid.block, batched=not grid.is_weight)
        if grid.leader != grid.key:
            made.scale = self.quantizer(grid.leader).scale  # one parameter: it stays shared
        self.quantizers[self._key(f"{grid.key}:grid")] = made

    def weight(self, name: str) -> nn.Parameter:
        """A trained constant by its name in the file.

        Raises:
            UsageError: there is none of that name.
        """
        if name not in self.plan.trained:
            raise unknown("weight", name, self.plan.trained)
        return self.trained[self._keys[name]]

    def quantizer(self, key: str) -> FakeQuantize:
        """Where a tensor is rounded, by the name of its integers in the file.

        Raises:
            UsageError: there is none of that name.
        """
        if key not in self.plan.grids:
            raise unknown("grid", key, self.plan.grids)
        found = self.quantizers[self._keys[f"{key}:grid"]]
        assert isinstance(found, FakeQuantize)
        return found

    def forward(self, feeds: Mapping[str, Tensor], watch: Sequence[str] = (), *, outputs: bool = True) -> dict[str, Tensor]:
        """Runs the graph.

        Args:
            feeds: Input name -> [N, ...].
            watch: Tensors inside the graph to return as well; rounded ones come in real units.
            outputs: The graph's outputs are wanted; without them it runs no further than what is watched.

        Returns:
            Outputs and watched tensors by name.

        Raises:
            DataError: an input is missing.
            UsageError: a watched tensor that there is none of.
            ModelError: an operator failed: the feeds do not fit the model, or memory ran out.
        """
        wanted = {**(self.plan.outputs if outputs else {}), **{name: self._watched(name) for name in watch}}
        if missing := [name for name in self.plan.inputs if name not in feeds]:
            raise DataError(f"The model's inputs {', '.join(missing)} are not fed.", f"It takes {', '.join(self.plan.inputs)}.")
        kept = set(wanted.values())
        values = self._held() | {name: feeds[name] for name in self.plan.inputs}
        for step, done in zip(self.plan.steps, self._last, strict=True):
            if kept <= values.keys():
                break
            self._run(step, values)
            for name in done:
                if name not in kept:
                    values.pop(name, None)
        return {name: values[source] for name, source in wanted.items()}

    def _watched(self, name: str) -> str:
        if name not in self.tensors:
            raise unknown("tensor", name, self.tensors)
        return self.plan.aliases.get(name, name)

    def _held(self) -> dict[str, Tensor]:
        """All constants, where they are now."""
        fixed = {name: getattr(self._fixed, self._keys[name]) for name in self.plan.constants if name not in self._integers}
        return self._integers | fixed | {name: self.trained[self._keys[name]] for name in self.plan.trained}

    def _run(self, step: Compute | Rounding, values: dict[str, Tensor]) -> None:
        if isinstance(step, Rounding):
            values[step.output] = self.quantizer(step.grid)(values[step.source])
            return
        given = step.attributes
        try:
            found = OPERATORS[given.op](given, *(None if name is None else values[name] for name in step.inputs))
        except (RuntimeError, IndexError, ValueError) as error:
            raise ModelError(
                f"{given.op} '{given.name}' failed in the torch twin: {str(error).splitlines()[0]}",
                "Check that the feeds have the shapes and types that the model takes.",
            ) from error
        values.update(zip(step.outputs, found if isinstance(found, tuple) else (found,), strict=False))

    @torch.no_grad()
    def regrid_weights(self, bits: int, keys: Iterable[str] | None = None) -> None:
        """Puts stored weights on grids of fewer bits, which span the weights' min-max; the file's integers hold them all the same.

        Args:
            bits: From 1 (binary: -1 and +1 times the mean size) and 2 (with zero in the middle: ternary) to what the file stores.
            keys: Of `plan.stored`; None means all.

        Raises:
            UsageError: a key that is no stored weight's, or bits that the file cannot store.
        """
        weights = {key: self.plan.grids[key] for key in self.plan.stored}
        for key in weights if keys is None else keys:
            if key not in weights:
                raise unknown("stored weight", key, weights)
            stored, made = weights[key], self.quantizer(key)
            signed, symmetric = stored.stored_as[0] < 0, stored.stored_as[0] < 0 and not bool(made.zero_point.any())
            if bits == 1 and symmetric and stored.block is None:
                made.binarize(self.weight(stored.tensor))
                continue
            dtype = f"{'' if signed else 'u'}int{bits}"
            low, high = levels(dtype, symmetric)
            if low < stored.stored_as[0] or high > stored.stored_as[1]:
                raise UsageError(f"'{key}' is stored with levels {stored.stored_as[0]} to {stored.stored_as[1]}; {bits} bits do not fit.")
            values = self.weight(stored.tensor).detach().cpu().numpy()
            grid = from_values(values, dtype, symmetric=symmetric, axis=stored.axis, block=stored.block)
            made.regrid(grid.scale, grid.zero_point, low, high)


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array))


def _last_uses(found: Plan) -> list[list[str]]:
    """The computed tensors that nobody reads after each step."""
    last: dict[str, int] = {}
    for number, step in enumerate(found.steps):
        names = (*step.inputs, *step.outputs) if isinstance(step, Compute) else (step.source, step.output)
        last.update({name: number for name in names if name})
    done: list[list[str]] = [[] for _ in found.steps]
    for name, number in last.items():
        done[number].append(name)
    return done
