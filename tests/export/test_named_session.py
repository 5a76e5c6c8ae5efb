"""What stands around a runtime: names and grids of the source, and as many samples a call as the artifact takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lowbit.errors import RunError
from lowbit.export.named_session import NamedSession, fixed_size, in_calls
from lowbit.types import Array, TensorInfo


def doubled(size: int) -> Callable[[Any], dict[str, Array]]:
    """A model of so many samples a call, no other number."""

    def ask(feeds: dict[str, Array]) -> dict[str, Array]:
        assert all(len(values) == size for values in feeds.values())
        return {"y": 2 * feeds["x"]}

    return ask


@pytest.mark.parametrize("size", [1, 3, 4, 8])
@pytest.mark.parametrize("n", [1, 4, 5, 8, 9])
def test_any_number_of_samples_is_answered_in_order(size: int, n: int) -> None:
    x = np.arange(2.0 * n).reshape(n, 2)
    assert np.array_equal(in_calls(doubled(size), {"x": x}, size)["y"], 2 * x)


def test_several_rows_a_sample_stay_together() -> None:
    def pairs(feeds: dict[str, Array]) -> dict[str, Array]:
        return {"y": feeds["x"].repeat(2, 0)}

    assert np.array_equal(in_calls(pairs, {"x": np.arange(5.0)}, 4)["y"], np.arange(5.0).repeat(2))


@pytest.mark.parametrize("feeds", [{"x": np.zeros(0)}, {"x": np.zeros(2), "mask": np.zeros(3)}])
def test_no_samples_and_unequal_ones_are_refused(feeds: dict[str, Array]) -> None:
    with pytest.raises(RunError, match="equal numbers"):
        in_calls(lambda given: dict(given), feeds, 1)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_an_output_without_rows_of_samples_is_no_guesswork(shape: tuple[int, ...]) -> None:
    def ask(_: Any) -> dict[str, Array]:
        return {"y": np.zeros(shape)}

    with pytest.raises(RunError, match="'y' has no rows for each of 4 samples"):
        in_calls(ask, {"x": np.zeros(5)}, 4)
    assert in_calls(ask, {"x": np.zeros(4)}, 4)["y"].shape == shape


def test_calls_with_another_number_of_rows_each_cannot_be_told_apart() -> None:
    rows = iter((4, 8))
    with pytest.raises(RunError, match="another number of rows in each call"):
        in_calls(lambda _: {"y": np.zeros(next(rows))}, {"x": np.zeros(5)}, 4)


def info(*shape: Any) -> TensorInfo:
    return TensorInfo("x", shape, "float32")


def test_the_inputs_say_how_many_samples_a_call_takes() -> None:
    assert fixed_size([info(8, 3), info(8)]) == 8
    assert fixed_size([info(1, 3)]) == 1
    assert fixed_size([info("N", 3)]) is None
    assert fixed_size([info(None, 3), info(4, 3)]) == 4
    assert fixed_size([info(4, 3), info(1, 3)]) is None
    assert fixed_size([info()]) is None


def test_a_session_asks_in_the_artifacts_names_and_sizes() -> None:
    session = NamedSession(doubled(3), lambda: None, {}, {"image": "x", "logits": "y"}, 3)
    found = session.run({"image": np.arange(4.0)})
    assert np.array_equal(found["logits"], 2 * np.arange(4.0))
    assert session.integers({"image": np.arange(4.0)}) is None
