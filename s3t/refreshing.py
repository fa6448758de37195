"""When a served run is refreshed by itself: a policy is a pure function of how the run stands (docs/SERVICE.md). No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from s3t.errors import ServiceError
from s3t.facts import Facts

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
"""Seconds of a second, a minute, an hour, a day."""
_VALUE = "([1-9][0-9]{0,8})"


@dataclass(frozen=True)
class Standing:
    """How a run stands. ``lengths``: stages served by each live shard; ``offline``: shards that serve nothing and that a
    refresh would train, and an analytic head that is left out counts as one; ``missing``: whether it would make anything at
    all; ``since``: seconds since the last one."""

    lengths: tuple[int, ...]
    offline: int
    missing: bool
    since: float


@dataclass(frozen=True)
class Policy:
    """``below``: refresh when some shard serves fewer stages (a shard that is offline serves none); ``every``: when so many
    seconds have passed. Zero: for no such reason. ``name``: what a user writes."""

    name: str = "never"
    below: int = 0
    every: int = 0

    @staticmethod
    def of(text: str, slices: int | None = None) -> Policy:
        """Read ``never``, ``when-dead``, ``below:K`` or ``every:T``. ServiceError for anything else.

        ``slices``: of the run, the most that K may be.
        """
        if text in ("never", "when-dead"):
            return Policy(text, below=int(text == "when-dead"))
        if found := re.fullmatch(f"below:{_VALUE}", text, re.ASCII):
            if slices is not None and int(found[1]) > slices:
                raise ServiceError(
                    f"refresh={text!r} is not possible: the run has {slices} slices; give below:1..{slices}"
                )
            return Policy(text, below=int(found[1]))
        if found := re.fullmatch(f"every:{_VALUE}([{''.join(UNITS)}])", text, re.ASCII):
            return Policy(text, every=int(found[1]) * UNITS[found[2]])
        raise ServiceError(
            f"refresh={text!r} is no policy; give never, when-dead, below:K (K stages, from 1) or every:T (as 30m, 6h, 1d)"
        )


NEVER = Policy()


def due(policy: Policy, stands: Standing) -> bool:
    """Say whether ``policy`` wants a refresh now. Never where it would train nothing."""
    if not stands.missing:
        return False
    shortest = 0 if stands.offline else min(stands.lengths, default=0)
    return shortest < policy.below or 0 < policy.every <= stands.since


def standing(
    facts: Facts, lost: frozenset[int] = frozenset(), since: float = 0.0, *, headless: bool = False
) -> Standing:
    """Return how a run stands, by facts that are up to date; ``lost``: ledger entries of nodes that are known to be damaged,
    which serve nothing and are missing; ``headless``: whether its analytic head is known to lack features.

    A shard of which all records are deleted serves nothing whatever is trained, so once that is done it counts for nothing.
    """
    chains = facts.chains(lost)
    missing = facts.missing([node for node, fact in facts.alive.items() if fact.seq in lost])
    offline = len({node.shard for node in missing} - chains.keys()) + headless
    return Standing(tuple(len(chain.nodes) for chain in chains.values()), offline, bool(missing) or headless, since)
