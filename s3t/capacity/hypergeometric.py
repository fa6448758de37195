"""Probabilities of drawing without replacement and of counts, accurate to the last digits for any number of records.

Differences of log-gamma lose digits as their arguments grow (seven of them at 10^9 records). Here the large parts of
Stirling's formula are cancelled by hand, and only small terms are added.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

Floats = NDArray[np.float64]


def stirling_error(x: ArrayLike) -> Floats:
    """Return log(x!) - (x log x - x + log(2 pi x) / 2) for x > 0, to about 1e-15. Source: Stirling's series."""
    x = np.asarray(x, dtype=np.float64)
    near = np.where(x < 16, x, 1.0)
    exact = gammaln(near + 1) - ((near + 0.5) * np.log(near) - near + 0.5 * np.log(2 * np.pi))
    far = np.where(x < 16, 16.0, x)
    square = far * far
    series = (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / 1188 / square) / square) / square) / square) / far
    return np.asarray(np.where(x < 16, exact, series))


def log_miss(records: ArrayLike, weight: ArrayLike, draws: ArrayLike) -> Floats:
    """Return log(C(N - w, r) / C(N, r)): r draws out of N records miss all of w given ones. -inf where they cannot.

    With a = w/N, b = r/N and rho = ab / ((1-a)(1-b)), Stirling's formula gives
    N (b log(1-a) + a log(1-b) - (1-a-b) log(1-rho)) - log(1-rho) / 2 plus four small terms; every term is of the size of
    the result. One record more than there are (and the exact ratio for it) keeps 1-a-b away from 0.
    """
    n, w, r = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (records, weight, draws)))
    possible = (w >= 0) & (r >= 0) & (w + r <= n)
    w, r = np.where(possible, w, 0.0), np.where(possible, r, 0.0)
    n = n + 1
    left = n - w - r
    ratio = left * n / ((n - w) * (n - r))
    rho = w * r / ((n - w) * (n - r))
    keep = np.where(rho < 0.5, np.log1p(-np.minimum(rho, 0.5)), np.log(ratio))
    bulk = r * _log_rest(w, n) + w * _log_rest(r, n) - left * keep
    small = stirling_error(n - w) - stirling_error(left) - stirling_error(n) + stirling_error(n - r)
    return np.asarray(np.where(possible, np.minimum(bulk - 0.5 * keep + small + np.log(ratio), 0.0), -np.inf))


def _log_rest(part: Floats, whole: Floats) -> Floats:
    """Return log(1 - part / whole), exact in its last digits at both ends."""
    share = part / whole
    return np.asarray(np.where(share < 0.5, np.log1p(-np.minimum(share, 0.5)), np.log((whole - part) / whole)))


def log_poisson(count: float, mean: float) -> float:
    """Return the log of the Poisson probability of ``count`` >= 1, ``mean`` > 0 (Loader's saddle-point form)."""
    return float(-stirling_error(count) - 0.5 * np.log(2 * np.pi * count) - _deviance(count, mean))


def log_binomial(count: float, trials: float, odds: float) -> float:
    """Return the log of the binomial probability of ``count``, 1 <= count < trials, at success odds ``odds`` (Loader)."""
    rest = trials - count
    success, failure = odds / (1 + odds), 1 / (1 + odds)
    small = stirling_error(trials) - stirling_error(count) - stirling_error(rest)
    bulk = _deviance(count, trials * success) + _deviance(rest, trials * failure)
    return float(small - bulk + 0.5 * np.log(trials / (2 * np.pi * count * rest)))


def _deviance(x: float, mean: float) -> float:
    """Return x log(x / mean) + mean - x, without cancellation near x = mean."""
    delta = (mean - x) / x
    if abs(delta) > 0.01:
        return float(x * (delta - np.log1p(delta)))
    return float(x * sum((-delta) ** power / power for power in range(9, 1, -1)))
