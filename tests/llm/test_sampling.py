from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.llm.engines.base import Sampling
from lowbit.llm.engines.sampling import choose, generator

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32))


def drawn(sampling: Sampling, logits: np.ndarray = LOGITS, times: int = 4000) -> np.ndarray:
    """How often each token comes."""
    rng = generator(sampling)
    tokens = [choose(logits, sampling, rng)[0] for _ in range(times)]
    return np.bincount(tokens, minlength=len(logits)) / times


def test_greedy_takes_the_likeliest_and_tells_its_logarithm() -> None:
    token, logprob = choose(LOGITS + 7, Sampling(1), np.random.default_rng(0))
    assert token == 1
    assert logprob == pytest.approx(np.log(0.4), abs=1e-6)


def test_greedy_takes_the_lower_of_two_equals_and_does_not_advance_the_generator() -> None:
    rng = np.random.default_rng(3)
    assert choose(np.array([0, 2, 2], np.float32), Sampling(1), rng)[0] == 1
    assert rng.random() == np.random.default_rng(3).random()


def test_draws_follow_the_probabilities() -> None:
    assert drawn(Sampling(1, temperature=1.0, seed=5)) == pytest.approx([0.1, 0.4, 0.05, 0.25, 0.2], abs=0.03)


def test_temperature_sharpens() -> None:
    squared = np.array([0.1, 0.4, 0.05, 0.25, 0.2]) ** 2
    assert drawn(Sampling(1, temperature=0.5, seed=5)) == pytest.approx(squared / squared.sum(), abs=0.03)


def test_top_k_keeps_k_with_their_ratios() -> None:
    assert drawn(Sampling(1, temperature=1.0, top_k=2, seed=5)) == pytest.approx([0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], abs=0.03)


def test_top_k_among_equals_keeps_the_lower_ones() -> None:
    found = drawn(Sampling(1, temperature=1.0, top_k=2, seed=5), np.zeros(4, np.float32), 500)
    assert (found > 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize(("mass", "kept"), [(0.39, [1]), (0.41, [1, 3]), (0.7, [1, 3, 4]), (0.99, [0, 1, 2, 3, 4]), (0.0, [1])])
def test_top_p_keeps_the_fewest_that_hold_the_mass(mass: float, kept: list[int]) -> None:
    found = drawn(Sampling(1, temperature=1.0, top_p=mass, seed=5), times=800)
    assert np.flatnonzero(found).tolist() == kept


def test_top_p_is_over_what_top_k_left() -> None:
    found = drawn(Sampling(1, temperature=1.0, top_k=2, top_p=0.6, seed=5), times=500)  # 0.4 of 0.65 is 0.615
    assert np.flatnonzero(found).tolist() == [1]


def test_logprob_is_before_temperature_and_cuts() -> None:
    sampling = Sampling(1, temperature=0.3, top_k=2, top_p=0.9, seed=1)
    token, logprob = choose(LOGITS, sampling, generator(sampling))
    assert logprob == pytest.approx(float(LOGITS[token]), abs=1e-6)


def test_a_seed_gives_the_same_tokens_again_and_none_gives_others() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampling = Sampling(1, temperature=1.0, seed=seed)
        rng = generator(sampling)
        return [choose(LOGITS, sampling, rng)[0] for _ in range(60)]

    assert tokens(4) == tokens(4)
    assert tokens(None) != tokens(None)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    assert drawn(Sampling(1, temperature=2.0, seed=0), logits, 300)[[0, 2]].sum() == 0


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_model_is_told(broken: float) -> None:
    with pytest.raises(FloatingPointError):
        choose(np.array([0, broken], np.float32), Sampling(1), np.random.default_rng(0))


@given(
    logits=arrays(np.float32, st.integers(1, 40), elements=st.floats(-60, 60, width=32)),
    temperature=st.floats(0.01, 5),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1),
)
def test_what_is_drawn_is_within_both_cuts(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> None:
    sampling = Sampling(1, temperature=temperature, top_k=top_k, top_p=top_p, seed=0)
    token, logprob = choose(logits, sampling, generator(sampling))
    order = np.argsort(-logits, kind="stable")
    order = order[: top_k or None]
    assert token in order
    scaled = (logits[order].astype(np.float64) - float(logits.max())) / temperature
    before = np.exp(scaled).cumsum() / np.exp(scaled).sum()
    place = int(np.flatnonzero(order == token)[0])
    assert place == 0 or before[place - 1] < top_p + 1e-9
    assert logprob <= 1e-6
