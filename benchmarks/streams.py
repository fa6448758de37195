"""One life of a real system under a stream of requests, through the contract: what is in service, and until when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.life import accuracy
from s3t.partition import slot
from s3t.records import Layout, Record
from s3t.streams import Population, Stream, View, named

RECORDS_PER_USER = 3


@dataclass(frozen=True)
class Stand:
    """How a system stands after ``requests`` of a stream. ``share``: slices behind served chains, of all slices;
    ``accuracy``: on the test records, None if there were none to ask for."""

    requests: int
    share: float
    live: int
    accuracy: float | None


@dataclass(frozen=True)
class Played:
    """A life: its stands, and the request after which no shard was live (None if that did not come)."""

    stands: tuple[Stand, ...]
    death: int | None


def population(system: Any, records: Sequence[Record]) -> Population:
    """Return the records of a run with the slots that its key gives them; users own RECORDS_PER_USER of them each."""
    layout: Layout = system.config.plan.layout
    owners = {record.id: number // RECORDS_PER_USER for number, record in enumerate(records)}
    return Population.of(
        [r.id for r in records], lambda name: slot(system.key, name, layout), layout, owners.__getitem__
    )


def play(
    system: Any,
    stream: Stream,
    people: Population,
    records: Sequence[Record],
    rng: np.random.Generator,
    *,
    checkpoints: Sequence[int],
    horizon: int,
    test: Sequence[Record] = (),
) -> Played:
    """Send the requests of ``stream`` to ``system``, one by one, and note how it stands after each of ``checkpoints``.

    Ends when no shard is live and all checkpoints are passed, when the stream ends, or after ``horizon`` requests. A record
    that was deleted before may be asked for again, as a user may; the system says so and nothing changes.
    """
    layout: Layout = system.config.plan.layout
    view = View(lambda: chains(system), (lambda: own_scores(system, records)) if records else None)
    stands: list[Stand] = []
    death: int | None = None
    number = 0
    if 0 in checkpoints:
        stands.append(_stand(system, 0, test))
    for number, ids in enumerate(named(stream.requests(people, rng, view), people), start=1):
        offline = system.delete(ids).offline
        if death is None and len(offline) == layout.shards:
            death = number
        if number in checkpoints:
            stands.append(_stand(system, number, test))
        if number >= horizon or (death is not None and number >= max(checkpoints, default=0)):
            break
    missed = [point for point in checkpoints if point > number]
    stands += [_stand(system, point, test) for point in missed]  # the stream ended: nothing changes any more
    return Played(tuple(stands), death)


def chains(system: Any) -> list[tuple[int, ...]]:
    """Return the slices that each shard serves now, () for a dead one, as its provenance says."""
    served: list[tuple[int, ...]] = [()] * system.config.plan.layout.shards
    for chain in system.provenance().chains:
        served[chain.shard] = chain.nodes[-1].prefix
    return served


def own_scores(system: Any, records: Sequence[Record]) -> NDArray[np.floating[Any]]:
    """Return the served score of every record for its own label, deleted ones included: the attacker knows them."""
    scores = np.asarray(system.predict([record.inputs for record in records]))
    return np.asarray(scores[np.arange(len(records)), [int(record.label) for record in records]])


def _stand(system: Any, requests: int, test: Sequence[Record]) -> Stand:
    served = chains(system)
    share = sum(map(len, served)) / (len(served) * system.config.plan.layout.slices)
    told = accuracy(system, test)[0] if test else None
    return Stand(requests, share, sum(map(bool, served)), told)
