"""How a run stands, from the ledger and the stores alone. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from s3t import runs
from s3t.contract import Cost
from s3t.facts import Facts
from s3t.records import Layout
from s3t.requests import retained
from s3t.rows import CONTENTS, INDEX
from s3t.runs import Run


@dataclass(frozen=True)
class Status:
    """What a run is and how it stands. ``chain_lengths``: stages served per live shard; ``bytes``: of trained nodes.

    ``orders``: the rule that chose them; ``design``: how blocks lie.
    ``stores``: every place below the run folder where data or what was trained on it is kept.
    """

    method: str
    model: str
    data: str
    layout: Layout
    orders: str
    design: str
    requests: int
    deleted: int
    retained: int
    live: tuple[int, ...]
    offline: tuple[int, ...]
    chain_lengths: dict[int, int]
    surviving_nodes: int
    missing_nodes: int
    bytes: int
    cost: Cost
    stores: tuple[str, ...]


def describe_status(run: Run, facts: Facts) -> Status:
    """Return the status of ``run`` as of now."""
    facts.update()
    chains = facts.chains()
    return Status(
        method=run.config.plan.method,
        model=run.config.model["name"],
        data=run.config.data["name"],
        layout=facts.plan.layout,
        orders=str(facts.plan.rule),
        design=str(facts.plan.design) or "as in the paper",
        requests=run.ledger.requests(),
        deleted=run.ledger.tombstones(),
        retained=retained(run),
        live=tuple(sorted(chains)),
        offline=tuple(shard for shard in range(facts.plan.layout.shards) if shard not in chains),
        chain_lengths={shard: len(chain.nodes) for shard, chain in sorted(chains.items())},
        surviving_nodes=len(facts.alive),
        missing_nodes=len(facts.missing()),
        bytes=run.nodes.bytes(),
        cost=facts.cost,
        stores=(runs.LEDGER, CONTENTS, INDEX, f"{runs.NODES}/", f"{runs.ACTIVATIONS}/"),
    )
