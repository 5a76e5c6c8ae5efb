"""Bounds on a difference of two arms that hold at every look at once. Pure math on counts; every function broadcasts over arrays.

A bound of error rate alpha here is wrong at any time, ever, with probability alpha at most: one may look after every request and stop
when one likes. Ordinary intervals promise no such thing: a z-test at 5 % that is looked at 60 times rejects a healthy candidate in
29.5 % of runs.

All but the means are exact for any number of samples. The idea is in all cases an e-process: a number that is 1 on average as long as the
hypothesis holds, and at 1/alpha with probability alpha at most (Ville's inequality; Ramdas, Grünwald, Vovk, Shafer, "Game-Theoretic
Statistics and Safe Anytime-Valid Inference", Statistical Science 38:576, 2023).
"""

from __future__ import annotations

import math

import numpy as np

from lowbit.types import Array

Number = float | Array

RISES = np.array([1.15, 1.3, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0])
RISE_WEIGHTS = np.array([1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0, 1.0, 1.0])
"""Ratios of the arms' rates that are bet on, and how much on each: most on what is worth finding soon."""
FALLS = np.array([0.85, 0.7, 0.5, 0.3, 0.1, 1e-3])
FALL_WEIGHTS = np.array([1.0, 2.0, 3.0, 2.0, 1.0, 2.0])
GROWTH = 1.5
"""A band is made for one stretch of sample sizes after the other, each so many times longer."""
_HALVINGS = 32


# ── rates: errors, disagreement, wrong answers ──────────────────────────────────────────────────────────────────────


def rise_low(baseline: Number, n_baseline: Number, canary: Number, n_canary: Number, alpha: float) -> Array:
    """Lower bound of (canary's rate - baseline's rate).

    For a hypothesis "the rise is delta at most" and a bet on the ratio rho of the rates, with theta the canary's share of the samples and
    D = 1 - theta + theta rho,

        exp(x_c ln(rho / D) - x_b ln D - n_c delta (rho / D - 1))

    is an e-process whatever the baseline's rate is: its terms cancel. At delta = 0 it asks of each event only whose it was, as the
    two-sample tests of Turner, Ly, Grünwald ("Generic E-variables for exact sequential k-sample tests that allow for optional stopping",
    Journal of Statistical Planning and Inference 230, 2024) do, so that events in bursts that hit both arms do no harm. Bets are mixed with
    fixed weights. The arms may be as unequal as they like; their ratio must be steady, as it is within a step.

    Args:
        baseline: Events of the baseline.
        n_baseline: Its samples. Infinity, with no events: the canary's rate alone is meant.
        canary: Events of the canary.
        n_canary: Its samples.
        alpha: Error rate.

    Returns:
        The bound, -1 to 1.
    """
    return _halved(baseline, n_baseline, canary, n_canary, alpha, RISES, RISE_WEIGHTS, sign=1.0)


def rise_high(baseline: Number, n_baseline: Number, canary: Number, n_canary: Number, alpha: float) -> Array:
    """Upper bound of (canary's rate - baseline's rate): as `rise_low`, with bets on ratios below 1."""
    return _halved(baseline, n_baseline, canary, n_canary, alpha, FALLS, FALL_WEIGHTS, sign=-1.0)


def rate_low(events: Number, n: Number, alpha: float) -> Array:
    """Lower bound of one arm's rate."""
    return np.maximum(rise_low(0.0, math.inf, events, n, alpha), 0.0)


def rate_high(events: Number, n: Number, alpha: float) -> Array:
    """Upper bound of one arm's rate."""
    return rise_high(0.0, math.inf, events, n, alpha)


def rise_log_e(baseline: Number, n_baseline: Number, canary: Number, n_canary: Number, delta: float) -> Array:
    """Logarithm of the e-process of `rise_low` against "the rise is delta at most": the bound is above delta where it is -ln(alpha)."""
    fixed, slope = _bets(baseline, n_baseline, canary, n_canary, RISES, RISE_WEIGHTS)
    return np.asarray(np.logaddexp.reduce(fixed - slope * delta, axis=-1))


def _bets(baseline: Number, n_baseline: Number, canary: Number, n_canary: Number, ratios: Array, weights: Array) -> tuple[Array, Array]:
    """For each bet [..., bets] the logarithm of its part of the e-process at delta = 0, and how that falls with delta."""
    arrays = (np.asarray(each, np.float64) for each in (baseline, n_baseline, canary, n_canary))
    x_b, n_b, x_c, n_c = (each[..., None] for each in np.broadcast_arrays(*arrays))
    with np.errstate(invalid="ignore"):
        theta = np.nan_to_num(n_c / (n_c + n_b), nan=1.0)  # no samples at all: every bet is off
    scale = 1 - theta + theta * ratios
    fixed = x_c * np.log(ratios / scale) - x_b * np.log(scale) + np.log(weights / weights.sum())
    return fixed, n_c * (ratios / scale - 1)


def _halved(
    baseline: Number, n_baseline: Number, canary: Number, n_canary: Number, alpha: float, ratios: Array, weights: Array, sign: float
) -> Array:
    """The delta at which the e-process is 1/alpha, from the side where the bound stays true."""
    fixed, slope = _bets(baseline, n_baseline, canary, n_canary, ratios, weights)
    low, high = np.full(fixed.shape[:-1], -1.0), np.full(fixed.shape[:-1], 1.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rejected = np.logaddexp.reduce(fixed - slope * middle[..., None], axis=-1) >= -math.log(alpha)
        up = rejected if sign > 0 else ~rejected
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    return low if sign > 0 else high


# ── quantiles of latency ────────────────────────────────────────────────────────────────────────────────────────────


def quantile_bounds(counts: Array, edges: Array, q: float, alpha_low: float, alpha_high: float) -> tuple[Array, Array]:
    """Bounds of a quantile, from counts in bins.

    An edge lies below the quantile if more than 1 - q of all samples are above it; how many of them were is a count with a known rate at
    the quantile itself, whichever edge that is, so one e-process for a rate bounds the quantile at all looks (Howard, Ramdas, "Sequential
    estimation of quantiles with applications to A/B testing and best-arm identification", Bernoulli 28:1704, 2022, theorem 1).

    Args:
        counts: [..., bins]; bin i holds edges[i - 1] <= x < edges[i].
        edges: [bins - 1], rising.
        q: Which quantile, e.g. 0.99.
        alpha_low: Error rate of the lower bound.
        alpha_high: Error rate of the upper bound.

    Returns:
        Lower and upper bounds [...]; 0 and infinity where there are too few samples to say.
    """
    counts = np.asarray(counts, np.float64)
    above = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1][..., 1:]  # samples at or above each edge
    n = counts.sum(axis=-1)
    needed, allowed = _counts_needed(n, 1 - q, alpha_low), _counts_allowed(n, 1 - q, alpha_high)
    lower = (above >= needed[..., None]).sum(axis=-1)  # `above` falls: so many edges from the first one on
    upper = (above > allowed[..., None]).sum(axis=-1)
    return np.concatenate([[0.0], edges])[lower], np.concatenate([edges, [np.inf]])[upper]


def _counts_needed(n: Array, rate: float, alpha: float) -> Array:
    """Fewest of n samples that show a rate above this one."""
    ratios = np.array([1.3, 1.6, 2.0, 3.0, 5.0, 10.0])
    ratios = ratios[ratios * rate < 1]
    low, high = n * rate, n + 1.0  # at the rate itself nothing is shown
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        shown = _rate_log_e(middle, n, rate, ratios) >= -math.log(alpha)
        low, high = np.where(shown, low, middle), np.where(shown, middle, high)
    return np.ceil(high - 1e-6)


def _counts_allowed(n: Array, rate: float, alpha: float) -> Array:
    """Most of n samples that still show a rate below this one; -1 where none do."""
    ratios = np.array([0.8, 0.65, 0.5, 0.3, 0.1, 1e-3])
    low, high = np.full(np.shape(n), -1.0), n * rate
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        shown = _rate_log_e(middle, n, rate, ratios) >= -math.log(alpha)
        low, high = np.where(shown, middle, low), np.where(shown, high, middle)
    found = np.floor(low + 1e-6)
    return np.where(_rate_log_e(found, n, rate, ratios) >= -math.log(alpha) - 1e-6, np.where(found >= 0, found, -1.0), -1.0)


def _rate_log_e(events: Array, n: Array, rate: float, ratios: Array) -> Array:
    """Logarithm of the e-process against "events have this rate", bets mixed equally."""
    others = ratios * rate
    win = np.log(others / rate) - np.log((1 - others) / (1 - rate))
    loss = np.log((1 - others) / (1 - rate))
    terms = events[..., None] * win + n[..., None] * loss - math.log(len(ratios))
    return np.asarray(np.logaddexp.reduce(terms, axis=-1))


# ── distributions ───────────────────────────────────────────────────────────────────────────────────────────────────


def band(n: Number, alpha: float, start: int) -> Array:
    """Half-width of a band around an empirical distribution that holds it at all sizes from `start` on.

    The largest distance from the truth is a reverse submartingale, so that the inequality of Dvoretzky, Kiefer and Wolfowitz with Massart's
    constant bounds its maximum over all sizes from m on, too (as in Manole, Ramdas, "Martingale Methods for Sequential Estimation of Convex
    Functionals and Divergences", IEEE Transactions on Information Theory 69:4641, 2023):
    P(sup_{n >= m} D_n >= x / sqrt(m)) <= exp(-4 x^2) + 8 x sqrt(pi / 2) exp(-2 x^2). Stretches of sizes share alpha as 1/2, 1/6, 1/12, ...

    Returns:
        The half-width; infinity below `start`.
    """
    n = np.asarray(n, np.float64)
    stretch = np.maximum(np.floor(np.log(np.maximum(n, 1) / start) / math.log(GROWTH) + 1e-12), 0)
    begins = start * GROWTH**stretch
    share = alpha / ((stretch + 1) * (stretch + 2))
    low, high = np.full(n.shape, 0.6), np.full(n.shape, 10.0)
    for _ in range(_HALVINGS):
        x = (low + high) / 2
        enough = np.exp(-4 * x * x) + 8 * x * math.sqrt(math.pi / 2) * np.exp(-2 * x * x) <= share
        low, high = np.where(enough, low, x), np.where(enough, x, high)
    return np.where(n >= start, high / np.sqrt(begins), np.inf)


def distance(baseline: Array, canary: Array) -> Array:
    """Kolmogorov-Smirnov distance of two histograms [..., bins]; 0 where one of them is empty."""
    ours, theirs = np.cumsum(baseline, axis=-1, dtype=np.float64), np.cumsum(canary, axis=-1, dtype=np.float64)
    apart = ours / np.maximum(ours[..., -1:], 1) - theirs / np.maximum(theirs[..., -1:], 1)
    both = (ours[..., -1] > 0) & (theirs[..., -1] > 0)
    return np.where(both, np.abs(apart).max(axis=-1), 0.0)


# ── means ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def deviations(n: Number, start: int, alpha: float) -> Array:
    """How many standard errors a mean may be off at any size from `start` on, both sides together.

    Robbins' normal mixture, with the variance estimated: an asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas,
    "Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 52:2613, 2024). Made narrowest at `start`.
    """
    ratio = start / 10 / np.maximum(np.asarray(n, np.float64), 1)
    return np.where(np.asarray(n) >= start, np.sqrt((1 + ratio) * (np.log1p(1 / ratio) - 2 * math.log(alpha))), np.inf)


def ratio_bounds(ours: Number, variance_ours: Number, theirs: Number, variance_theirs: Number, off: Number) -> tuple[Array, Array]:
    """Bounds of theirs / ours, two positive means, when each combination may be `off` standard errors from the truth (Fieller's).

    Args:
        ours: Mean of the baseline, above 0.
        variance_ours: Of that mean.
        theirs: Mean of the canary.
        variance_theirs: Of that mean.
        off: Standard errors, as `deviations` gives them; infinity bounds nothing.
    """
    ours, theirs, off = (np.asarray(each, np.float64) for each in (ours, theirs, off))
    known = np.isfinite(off) & (ours > 0)
    z = np.where(known, off, 0.0) ** 2
    a = ours**2 - z * variance_ours
    b = ours * theirs
    c = theirs**2 - z * variance_theirs
    known &= a > 0
    root = np.sqrt(np.maximum(b * b - a * c, 0.0))
    safe = np.where(known, a, 1.0)
    return np.where(known, np.maximum((b - root) / safe, 0.0), 0.0), np.where(known, (b + root) / safe, np.inf)
