"""Dead shards in continuous time: independent slots, and the number of dead shards from their probabilities.

With replacement let requests arrive as a Poisson process of rate one: slot f is unhit at time t with probability
exp(-q_f t), independently of the others. Without replacement let every record be requested at an independent uniform time u
in [0, 1]: slot f with n_f records is unhit at u with probability (1 - u)^n_f = exp(-n_f t) on the clock u = 1 - exp(-t). So
both are exp(-weight * t). Times may be complex here; :mod:`~s3t.capacity.counting` returns to whole numbers of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincc, expm1, gammaln, log1p

from s3t.capacity.checks import check_shards_dead, check_some_orders
from s3t.capacity.demand import Demand
from s3t.records import Order

Numbers = NDArray[Any]
"""Real or complex."""

_DIRECT = 32
"""Polynomials up to this length are multiplied term by term, longer ones by Fourier transforms."""
_CHUNK = 2_000_000
"""How many numbers are held at a time."""


@dataclass(frozen=True, eq=False)
class Shards:
    """The shards that can die, and how many are to be dead. ``weights``: of their first slices, shape (shards, firsts).

    Every weight is positive. ``total``: of all slots of the demand.
    """

    weights: NDArray[np.float64]
    dead: int

    @property
    def count(self) -> int:
        """How many shards can die."""
        return int(self.weights.shape[0])

    @property
    def firsts(self) -> int:
        """How many first slices a shard has."""
        return int(self.weights.shape[1])

    @property
    def graded(self) -> bool:
        """Whether small probabilities keep their relative accuracy too: no Fourier transform is needed."""
        equal = bool((self.weights == self.weights[0]).all())
        return equal or self.dead in (1, self.count) or self.count <= _DIRECT

    def latest(self) -> float:
        """Return a time after which the probability that fewer than ``dead`` are dead is below 1e-19 for good.

        Then some j = shards - dead + 1 shards have an unhit first slice each: at most C(shards, j) firsts^j ways, each of
        probability at most exp(-time * the sum of the j smallest of the shards' rarest weights).
        """
        alive = self.count - self.dead + 1
        rate = float(np.sort(self.weights.min(axis=1))[:alive].sum())
        ways = gammaln(self.count + 1) - gammaln(alive + 1) - gammaln(self.dead) + alive * np.log(self.firsts)
        return float((ways + 45.0) / rate)

    def log_dead(self, times: Numbers) -> Numbers:
        """Return the log of the probability that at least ``dead`` shards are dead, at each of ``times``."""
        return self._over(times, at_least=True)

    def log_short(self, times: Numbers) -> Numbers:
        """Return the log of the probability that fewer than ``dead`` shards are dead, at each of ``times``."""
        return self._over(times, at_least=False)

    def _over(self, times: Numbers, *, at_least: bool) -> Numbers:
        step = max(1, _CHUNK // self.weights.size)
        parts = [self._counted(times[i : i + step], at_least) for i in range(0, len(times), step)]
        return np.concatenate(parts)

    def _counted(self, times: Numbers, at_least: bool) -> Numbers:
        distinct, copies = np.unique(self.weights, axis=0, return_counts=True)
        log_dead, log_live = log_dead_and_live(distinct, times)
        with np.errstate(divide="ignore"):
            if self.dead == self.count:
                every = (copies * log_dead).sum(axis=1)
                return every if at_least else _log_rest(every)
            if self.dead == 1:
                none = (copies * log_live).sum(axis=1)
                return _log_rest(none) if at_least else none
            if len(distinct) == 1:
                return _log_binomial_tail(log_dead[:, 0], log_live[:, 0], self.count, self.dead, at_least)
            dead, live = (np.repeat(x, copies, axis=1) for x in (log_dead, log_live))
            if at_least:  # fewer than (count - dead + 1) live
                return _log_fewer(self.count - self.dead + 1, live, dead)
            return _log_fewer(self.dead, dead, live)


def mortal_shards(demand: Demand, orders: Sequence[Order], shards_dead: int | None) -> Shards | None:
    """Return the shards that can die, or None where fewer than ``shards_dead`` can: some first slice is never hit.

    A shard is dead when the first slices of all its orders are hit; every shard trains the same ``orders``. Raises
    LayoutError for impossible orders, or ``shards_dead`` outside 1..shards.
    """
    check_some_orders(orders, demand.slices)
    dead = check_shards_dead(shards_dead, demand.shards)
    firsts = demand.weights[:, sorted({order[0] for order in orders})]
    mortal = firsts[(firsts > 0).all(axis=1)]
    return Shards(np.sort(mortal, axis=1), dead) if len(mortal) >= dead else None


def log_dead_and_live(weights: NDArray[np.float64], times: Numbers) -> tuple[Numbers, Numbers]:
    """Return the logs of the probabilities that each shard is dead, and live: two arrays of shape (times, shards).

    dead = product over first slices of (1 - exp(-weight * time)); live = 1 - dead. Both keep their relative accuracy.
    """
    log_dead = _log_rest(-times[:, None, None] * weights).sum(axis=2)
    return log_dead, _log_rest(log_dead)


def _log_rest(log_probability: Numbers) -> Numbers:
    """Return log(1 - exp(log_probability)), with full relative accuracy at both ends."""
    real = log_probability.real
    near_one, beyond = (real > -0.7) & (real < 0.7), real >= 0.7  # beyond 1: at complex times alone
    with np.errstate(divide="ignore"):
        small = np.log(-expm1(np.where(near_one, log_probability, -1.0)))
        large = log1p(-np.exp(np.where(near_one | beyond, -1.0, log_probability)))
        rest = np.where(near_one, small, large)
        if beyond.any():
            huge = np.where(beyond, log_probability, 1.0)
            rest = np.where(beyond, huge + np.log(expm1(-huge)), rest)
    return np.asarray(rest)


def _log_binomial_tail(log_dead: Numbers, log_live: Numbers, count: int, dead: int, at_least: bool) -> Numbers:
    """Return the log of P(at least ``dead`` of ``count`` equal shards are dead), or of the complement."""
    if not np.iscomplexobj(log_dead):
        if at_least:
            return np.log(betaincc(count - dead + 1, dead, np.exp(log_live)))
        return np.log(betaincc(dead, count - dead + 1, np.exp(log_dead)))
    i = np.arange(dead, count + 1) if at_least else np.arange(dead)
    ways = gammaln(count + 1) - gammaln(i + 1) - gammaln(count - i + 1)
    terms = ways + i * log_dead[:, None] + (count - i) * log_live[:, None]
    largest = terms.real.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(terms - largest).sum(axis=1)) + largest[:, 0])


def _log_fewer(bound: int, hit: Numbers, missed: Numbers) -> Numbers:
    """Return the log of P(fewer than ``bound`` of independent events); logs ``hit`` and ``missed`` of shape (times, events).

    The coefficients of the product of all (missed + hit x) below x^bound, multiplied up a binary tree.
    """
    scale = np.logaddexp(hit.real, missed.real)
    shift = scale.sum(axis=1)
    factors = np.stack([np.exp(missed - scale), np.exp(hit - scale)], axis=2)
    while factors.shape[1] > 1:
        if factors.shape[1] % 2:
            one = np.zeros_like(factors[:, :1])
            one[..., 0] = 1.0
            factors = np.concatenate([factors, one], axis=1)
        factors = _product(factors[:, 0::2], factors[:, 1::2])[..., :bound]
    total = factors[:, 0].sum(axis=1)
    return np.asarray(np.log(total if np.iscomplexobj(total) else np.maximum(total, 0.0)) + shift)


def _product(a: Numbers, b: Numbers) -> Numbers:
    """Return the products of polynomials along the last axis."""
    size = a.shape[-1] + b.shape[-1] - 1
    if b.shape[-1] <= _DIRECT:
        out = np.zeros((*a.shape[:-1], size), dtype=a.dtype)
        for power in range(b.shape[-1]):
            out[..., power : power + a.shape[-1]] += a * b[..., power : power + 1]
        return out
    if np.iscomplexobj(a):
        return np.asarray(np.fft.ifft(np.fft.fft(a, size) * np.fft.fft(b, size))[..., :size])
    return np.asarray(np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size), size))
