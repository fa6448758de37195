"""The request process as a plain Python loop: slow and obvious. Fast simulation is tested, and timed, against it."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from s3t.capacity.demand import Demand


@dataclass(frozen=True)
class PlainLife:
    """Requests until the first shard, half of the shards and the last are dead (infinity: never), and best lengths.

    ``lengths``: for each number of requests asked about, the length of every shard's best chain then.
    """

    deaths: tuple[float, float, float]
    lengths: tuple[tuple[int, ...], ...]


def play(
    shards: int, orders: Sequence[Sequence[int]], requests: Iterable[Sequence[int]], after: Sequence[int] = ()
) -> PlainLife:
    """Play ``requests``, each the slots (shard * slices + slice) that it hits, until all shards are dead.

    ``after``: ascending numbers of requests after which the best chains are noted; the life then lasts at least so long.
    """
    slices, coming = len(orders[0]), iter(requests)
    position = [[list(order).index(piece) for order in orders] for piece in range(slices)]
    kept = [[slices] * len(orders) for _ in range(shards)]
    dead: list[float] = []
    lengths: list[tuple[int, ...]] = []
    horizon, count = max(after, default=0), 0
    while len(dead) < shards or count < horizon:
        while len(lengths) < len(after) and after[len(lengths)] == count:
            lengths.append(tuple(max(one) for one in kept))
        slots = next(coming, None)
        if slots is None:
            break
        count += 1
        for slot in slots:
            shard, piece = divmod(slot, slices)
            own = kept[shard]
            live = any(own)
            for order, where in enumerate(position[piece]):
                if where < own[order]:
                    own[order] = where
            if live and not any(own):
                dead.append(count)
    while len(lengths) < len(after):
        lengths.append(tuple(max(one) for one in kept))
    dead += [float("inf")] * (shards - len(dead))
    return PlainLife((dead[0], dead[(shards + 1) // 2 - 1], dead[-1]), tuple(lengths))


def plain_requests(demand: Demand, rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Yield the slots of requests under ``demand``, one by one; where it falls short of 1, a request may fail to hit any.

    Without replacement records are shuffled as far as they are asked for, holding only those that have moved.
    """
    weights = demand.weights.reshape(-1).tolist()
    if not demand.replacement:
        starts = list(itertools.accumulate(int(count) for count in weights))
        moved: dict[int, int] = {}
        for left in range(starts[-1], 0, -1):
            pick = int(rng.random() * left)
            record = moved.get(pick, pick)
            moved[pick] = moved.pop(left - 1, left - 1)
            yield (bisect.bisect_right(starts, record),)
    elif min(weights) == max(weights) and abs(sum(weights) - 1.0) < 1e-9:
        slots, draw = len(weights), rng.random
        while True:
            yield (int(draw() * slots),)
    else:
        ends = list(itertools.accumulate(weights))
        last = len(weights) - 1 if sum(weights) > 1.0 - 1e-9 else len(weights)
        while True:
            slot = min(bisect.bisect_right(ends, rng.random()), last)
            yield (slot,) if slot < len(weights) else ()
