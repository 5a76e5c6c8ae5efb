"""What all whole runs in tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lowbit.pipeline import finish, lengths, screen, tune


@pytest.fixture(scope="module")
def short_timing() -> Iterator[None]:
    """Real races, but short ones: for tests about what is done with times, not about the times."""
    short = {"rounds": 3, "seconds_per_round": 0.01}
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((screen, "QUICK"), (tune, "QUICK"), (finish, "FINAL"), (lengths, "FINAL")):
            patch.setattr(module, name, short)
        yield
