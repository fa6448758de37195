"""Latin squares of slices by one assignment per position: the paper's, and ours that counts equal sets of slices once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from s3t.orders.checks import Floats
from s3t.orders.value import Unhit, powers
from s3t.records import Order

Places = NDArray[np.intp]

TIE_BREAK = 1e-10
"""Most that preferences among equals add up to, beside a largest score of 1."""
SETTLED = 1e-4
"""Scores smaller than this share of the largest are weighed again once those above it are assigned."""
GAIN = 1e-9
"""An exchange must add more than this share of what it adds on one side and takes on the other."""


def square(p: Floats, items: Order, before: Order, horizon: int, law: Unhit | None) -> list[Order]:
    """Return a Latin square of ``items``, one row per item in first place, to follow the slices ``before``.

    At each position every row gets one item that it lacks, each item once. Such an assignment always exists: after i
    positions every row lacks n - i items and every item is lacking in n - i rows, and a regular bipartite graph has a
    perfect matching (Hall). It has the largest sum of (1 - c)^horizon, c the request probability of the extended row. With
    a ``law``, rows then exchange items while that raises the probability that some extended row is unhit, where equal
    sets of slices count once.
    """
    here, n = p[list(items)], len(items)
    taken = np.eye(n, dtype=bool)
    rows = np.arange(n)[:, None]
    total = float(p[list(before)].sum()) + here
    bits = np.array([1 << item for item in items])
    sets = sum(1 << item for item in before) + bits
    for _ in range(n - 1):
        following = assigned(powers(total[:, None] + here, horizon), taken, rows[:, -1])
        if law is not None:
            following = _exchanged(following, taken, sets[:, None] | bits, law)
        taken[np.arange(n), following] = True
        rows = np.column_stack([rows, following])
        total, sets = total + here[following], sets | bits[following]
    return [tuple(items[i] for i in row) for row in rows.tolist()]


def assigned(logs: Floats, taken: NDArray[np.bool_], last: Places) -> Places:
    """Return the column for each row: the largest sum of exp(logs), never a ``taken`` pair; ties go to rotations.

    ``last``: the column that each row had before; a rotation takes the next one. Scores span more orders of magnitude than
    floats hold beside each other, so rows with scores near the largest are assigned first; the others are weighed again on
    their own scale, in the columns that are left.
    """
    from scipy.optimize import linear_sum_assignment

    size = len(last)
    steps = (np.arange(size) - last[:, None] - 1) % size
    preferred = TIE_BREAK * (1.0 - steps / size) / size
    logs = np.where(taken, -np.inf, logs)
    usable = ~taken
    found = np.full(size, -1)
    while (found < 0).any():
        rows, columns = np.flatnonzero(found < 0), np.setdiff1d(np.arange(size), found)
        part = np.ix_(rows, columns)
        top = float(np.where(usable[part], logs[part], -np.inf).max())
        weights = np.exp(np.minimum(logs[part] - top, 0.0)) if np.isfinite(top) else np.zeros(usable[part].shape)
        at, to = linear_sum_assignment(np.where(usable[part], weights + preferred[part], -np.inf), maximize=True)
        settled = weights[at, to] >= SETTLED if np.isfinite(top) else np.ones(rows.size, dtype=bool)
        if settled.any():
            found[rows[at[settled]]] = columns[to[settled]]
        else:  # the largest scores are in no perfect matching of what is left
            usable[part] &= weights <= weights[at, to].sum() + TIE_BREAK
    return found


def _exchanged(following: Places, taken: NDArray[np.bool_], sets: NDArray[np.int64], law: Unhit) -> Places:
    """Let pairs of rows exchange columns, the best exchange first, while P(some row's set is unhit) grows.

    ``sets``: the slices of row r extended by column s as a bit mask, shape (rows, columns). Every exchange raises the
    probability, so it ends.
    """
    size = len(following)
    every = np.arange(law.chances.size)
    inside = ((every & sets[:, :, None]) == sets[:, :, None]).astype(np.int8)
    first, second = np.triu_indices(size, 1)
    following = following.copy()
    while True:
        a, b = following[first], following[second]
        allowed = ~(taken[first, b] | taken[second, a])
        i, j, a, b = first[allowed], second[allowed], a[allowed], b[allowed]
        cover = inside[np.arange(size), following].sum(axis=0, dtype=np.int8)
        after = cover - inside[i, a] - inside[j, b] + inside[i, b] + inside[j, a]
        gained, lost = law.mean((after > 0) & (cover == 0)), law.mean((after == 0) & (cover > 0))
        better = (gained - lost) * (gained - lost > GAIN * (gained + lost))
        if not better.any():
            return following
        k = int(better.argmax())
        following[[i[k], j[k]]] = b[k], a[k]
