"""SmoothQuant: move the difficulty of activations with outlier channels into the weights, X W = (X / s) (s W).

Xiao et al. 2023, arXiv 2211.10438: s = max|x|^a / max|w|^(1 - a) per input channel. Here the strength a is searched for
every group of matrix products that share an input, by the error of their outputs on sampled rows; no smoothing at all is
one of the choices, and so is the minimum of a bound on that error (see `_descend`).

The stronger the smoothing, the more it relies on the extremes of single channels, which other inputs exceed. So each
choice is fitted on one half of the rows and judged on the other, both ways round. (MiniLM, judged on its own rows instead: the
inputs of the attention's last projection got strengths of 0.95, and lost up to 3 dB on other sentences.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lowbit.errors import UsageError
from lowbit.quant.affine import from_range, from_values, levels, round_trip
from lowbit.types import Array

NONE = "none"

STRENGTHS = (0.5, 0.6, 0.7, 0.8)
"""Tried beside no smoothing at all."""

BOUND = "bound"
"""Name of the choice that minimises the bound."""

TIE = 1.1
"""Errors this close decide nothing; then the stronger smoothing is taken. Sampled rows hold few of the special tokens whose channels are
largest, and what those do to a range, attention carries to all others. (MiniLM on four calibration subsets: cosine 0.9980 to 0.9981; with
the least error alone 0.9965 to 0.9981.)"""

_JUDGED = 256  # rows of a half on which the error is computed; all of it tells the extremes
_START = 0.75
_STEPS = 30
_RATE = 0.05


@dataclass(frozen=True)
class Smoothing:
    """What the search chose.

    Attributes:
        choice: "none", a strength as text ("0.55"), or "bound".
        factors: float32 [K]; divide the activations by it, multiply the weights' input channels with it.
        errors: Choice -> relative squared error of the outputs on rows it was not fitted to, mean over the weights.
    """

    choice: str
    factors: Array
    errors: Mapping[str, float]


@dataclass(frozen=True)
class _Site:
    """What every choice is judged on: rows [R, K], weights each [K, N], range of each channel, types."""

    rows: Array
    weights: tuple[Array, ...]
    low: Array
    high: Array
    activation: str
    weight: str
    outputs: tuple[Array, ...]


def factors(activation_absmax: Array, weight_absmax: Array, strength: float) -> Array:
    """s = max|x|^a / max|w|^(1 - a) of each input channel, with geometric mean 1; channels that are always zero keep 1.

    Args:
        activation_absmax: [K].
        weight_absmax: [K], over all weights that share the input.
        strength: 0 to 1: how much of the difficulty goes into the weights.

    Returns:
        float32 [K].
    """
    alive = (activation_absmax > 0) & (weight_absmax > 0)
    logs = np.zeros(len(activation_absmax))
    logs[alive] = strength * np.log(activation_absmax[alive]) - (1 - strength) * np.log(weight_absmax[alive])
    return _from_logs(logs, alive)


def search(
    rows: Array,
    weights: Sequence[Array],
    *,
    low: Array | None = None,
    high: Array | None = None,
    strengths: Sequence[float] = STRENGTHS,
    bound: bool = False,
    activation: str = "uint8",
    weight: str = "int8",
) -> Smoothing:
    """The smoothing with the least output error of the quantized products X W_i, all of which share X.

    Activations are quantized asymmetrically per tensor, weights symmetrically per output channel.

    Args:
        rows: Sampled inputs [R, K], rows of a sample together: some thousands, because they must show how extremes vary.
        weights: Each [K, N_i], e.g. the projections Q, K and V.
        low: Lowest value of each channel over all calibration data, [K]; of the rows where None. The final factors follow from
            it; the choice among strengths is made on the rows alone.
        high: Highest, likewise.
        strengths: To try.
        bound: Try the minimum of the bound as well; that takes longer than all strengths together.
        activation: Type of the activations.
        weight: Type of the weights.

    Returns:
        The strongest choice that is within `TIE` of the best; no smoothing where nothing is better.

    Raises:
        UsageError: no rows, no weights, or shapes that do not fit.
    """
    if rows.ndim != 2 or not rows.size or not weights or any(w.ndim != 2 or len(w) != rows.shape[1] for w in weights):
        raise UsageError(f"Smoothing needs rows [R, K] and weights [K, N]; found {rows.shape} and {[w.shape for w in weights]}.")
    half = -(-len(rows) // 2)
    folds = [(rows[:half], rows[half:]), (rows[half:], rows[:half])] if len(rows) > 1 else [(rows, rows)]
    names = [NONE, *(f"{strength:.2f}" for strength in strengths), *([BOUND] if bound else [])]
    errors = dict.fromkeys(names, 0.0)
    for fit, judge in folds:
        extremes = fit.min(axis=0), fit.max(axis=0)
        fitted = _site(_some(fit), weights, *extremes, activation, weight)
        judged = _site(_some(judge), weights, *extremes, activation, weight)
        for name in names:
            errors[name] += _error(judged, _choice(fitted, name)) / len(folds)
    best = min(names, key=errors.__getitem__)
    if best != NONE:
        best = [name for name in names if errors[name] <= TIE * errors[best]][-1]
    lowest, highest = rows.min(axis=0) if low is None else low, rows.max(axis=0) if high is None else high
    return Smoothing(best, _choice(_site(_some(rows), weights, lowest, highest, activation, weight), best), errors)


def _some(rows: Array) -> Array:
    """Rows spread over all, as many as the error needs."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, _JUDGED).astype(int))]


def _choice(site: _Site, name: str) -> Array:
    """The factors [K] that a choice means for what was seen."""
    if name == NONE:
        return np.ones(len(site.low), np.float32)
    reach, weight_absmax = np.maximum(np.abs(site.low), np.abs(site.high)), np.max([np.abs(w).max(axis=1) for w in site.weights], axis=0)
    if name == BOUND:
        return _descend(site, factors(reach, weight_absmax, _START))
    return factors(reach, weight_absmax, float(name))


def output_error(
    rows: Array,
    weights: Sequence[Array],
    scaling: Array,
    *,
    low: Array | None = None,
    high: Array | None = None,
    activation: str = "uint8",
    weight: str = "int8",
) -> float:
    """Relative squared error of the quantized products with given factors [K]; arguments as in `search`."""
    return _error(_site(rows, weights, low, high, activation, weight), scaling)


def _site(rows: Array, weights: Sequence[Array], low: Array | None, high: Array | None, activation: str, weight: str) -> _Site:
    x, ws = np.asarray(rows, np.float32), tuple(np.asarray(w, np.float32) for w in weights)
    least = x.min(axis=0) if low is None else np.asarray(low, np.float32)
    most = x.max(axis=0) if high is None else np.asarray(high, np.float32)
    return _Site(x, ws, least, most, activation, weight, tuple(x @ w for w in ws))


def _error(site: _Site, scaling: Array) -> float:
    params = from_range((site.low / scaling).min(), (site.high / scaling).max(), site.activation, symmetric=False)
    x = round_trip(site.rows / scaling, params)
    shares = []
    for w, exact in zip(site.weights, site.outputs, strict=True):
        smoothed = w * scaling[:, None]
        quantized = round_trip(smoothed, from_values(smoothed, site.weight, symmetric=True, axis=1))
        shares.append(float(np.sum((x @ quantized - exact) ** 2)) / max(float(np.sum(exact**2)), 1e-30))
    return float(np.mean(shares))


def _descend(site: _Site, start: Array) -> Array:
    """Factors that lower `_bound`, a few steps along its subgradient from `start`; the error itself is too jagged to follow.

    Few steps on purpose: twenty times as many lowered the bound by 3 to 22 %, the error on other rows mostly by next to nothing.
    """
    best = logs = np.log(start.astype(np.float64))
    least, slope = _bound(site, logs)
    for step in range(_STEPS):
        norm = float(np.linalg.norm(slope))
        if norm == 0.0:
            break
        logs = logs - _RATE * np.sqrt(len(logs)) * slope / norm / np.sqrt(1 + step)
        bound, slope = _bound(site, logs)
        if bound < least:
            best, least = logs, bound
    return np.exp(best).astype(np.float32)


def _bound(site: _Site, logs: Array) -> tuple[float, Array]:
    """What the expected error of the outputs is with uniform rounding noise, and its subgradient [K] in log s.

    The squared error of output n is about

        step_x^2 / 12 * sum_k (s_k w_kn)^2  +  step_n^2 / 12 * sum_k E[x_k^2] / s_k^2,

    where step_x is the joint range of all x_k / s_k over the levels and step_n that of column n of s W. Steps are maxima of
    exponentials in log s, so the bound is convex in it (a geometric program). The 12 is left out.
    """
    bottom, top = levels(site.activation, False)
    columns = levels(site.weight, True)
    s, low, high = np.exp(logs), np.minimum(site.low, 0).astype(np.float64), np.maximum(site.high, 0).astype(np.float64)
    power = np.mean(site.rows**2, axis=0, dtype=np.float64) / s**2
    bound, slope = 0.0, np.zeros(len(s))
    upper, lower = int(np.argmax(high / s)), int(np.argmin(low / s))
    reach = high[upper] / s[upper] - low[lower] / s[lower]
    for w, exact in zip(site.weights, site.outputs, strict=True):
        share = len(site.rows) / max(float(np.sum(exact**2)), 1e-30)
        scaled = w * s[:, None].astype(np.float32)
        noise = share * (reach / (top - bottom)) ** 2 * np.sum(scaled**2, axis=1, dtype=np.float64)  # of the activations, by channel
        slope += 2 * noise
        slope[upper] -= 2 * noise.sum() * high[upper] / s[upper] / max(reach, 1e-30)
        slope[lower] += 2 * noise.sum() * low[lower] / s[lower] / max(reach, 1e-30)
        np.abs(scaled, out=scaled)
        peak = np.argmax(scaled, axis=0)
        steps = share * (2 * scaled[peak, np.arange(len(peak))].astype(np.float64) / (columns[1] - columns[0])) ** 2
        slope += 2 * power.sum() * np.bincount(peak, weights=steps, minlength=len(s)) - 2 * steps.sum() * power
        bound += float(noise.sum() + steps.sum() * power.sum())
    return bound, slope


def _from_logs(logs: Array, alive: Array) -> Array:
    if np.any(alive):
        logs = np.where(alive, logs - logs[alive].mean(), 0.0)
    return np.exp(logs).astype(np.float32)
