"""What waits comes back as it was given, whatever it is."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lowbit.compress import kept
from lowbit.compress.kept import Waiting
from lowbit.types import Feeds


@pytest.mark.parametrize("memory", [16, 1 << 22])
def test_batches_come_back_in_order_twice_and_unchanged(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "IN_MEMORY", memory)
    given: list[Feeds] = [
        {
            "x": np.arange(12, dtype=np.float32).reshape(2, 3, 2) + n,
            "ids": np.full((2, 1), n, np.int64),
            "none": np.zeros((2, 0), np.float32),
        }
        for n in range(3)
    ]
    with Waiting() as waiting:
        for feeds in given:
            waiting.add(feeds)
        assert len(waiting) == 3
        for _ in range(2):
            for found, feeds in zip(waiting, given, strict=True):
                assert list(found) == ["x", "ids", "none"]
                for name, values in feeds.items():
                    assert found[name].dtype == values.dtype
                    np.testing.assert_array_equal(found[name], values)


def test_strings_and_bfloat16_wait_too() -> None:
    half, words = np.array([[1.5, -2.0]], ml_dtypes.bfloat16), np.array([["a", "bc"]], object)
    with Waiting() as waiting:
        waiting.add({"half": half, "words": words})
        (found,) = waiting
        assert found["half"].dtype == half.dtype
        assert found["half"].astype(np.float32).tolist() == [[1.5, -2.0]]
        assert found["words"].tolist() == [["a", "bc"]]
