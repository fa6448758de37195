"""Expected times by quadrature: adaptive Gauss-Legendre panels in the logarithm of time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Function = Callable[[Floats], Floats]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PANELS = 16
_TOLERANCE = 1e-11
"""Of a panel against its two halves, as a share of the integral. The halves are better by many digits."""


def integral(function: Function, start: float, end: float) -> float:
    """Return the integral of a smooth, non-negative ``function`` of arrays over 0 < start..end, both far apart or not.

    Panels are halved until their halves agree with them to 1e-11 of the whole integral, so about 1e-13 is reached.
    """

    def sums(left: Floats, right: Floats) -> Floats:
        """Gauss-Legendre sums over panels in x = log t."""
        half = (right - left) / 2
        x = (left + right)[:, None] / 2 + half[:, None] * _NODES
        t = np.exp(x)
        return np.asarray(half * ((function(t.ravel()).reshape(t.shape) * t) @ _WEIGHTS))

    edges = np.linspace(np.log(start), np.log(end), _PANELS + 1)
    left, right = edges[:-1], edges[1:]
    whole = sums(left, right)
    total = 0.0
    while left.size:
        middle = (left + right) / 2
        lower, upper = sums(left, middle), sums(middle, right)
        better = lower + upper
        scale = total + better.sum()
        done = (np.abs(better - whole) <= _TOLERANCE * scale) | (right - left < 1e-9)
        total += float(better[done].sum())
        todo = ~done
        left, right = np.concatenate([left[todo], middle[todo]]), np.concatenate([middle[todo], right[todo]])
        whole = np.concatenate([lower[todo], upper[todo]])
    return total


def first_time(rises: Callable[[float], float], latest: float, level: float) -> float:
    """Return a time at which the increasing function ``rises`` is still below ``level``, near the last such time."""
    low, high = np.log(latest) - 800.0, np.log(latest)
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (middle, high) if rises(float(np.exp(middle))) < level else (low, middle)
    return float(np.exp(low))
