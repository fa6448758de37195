"""How a run stands, from the ledger and the stores alone. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from s3t import exchange, runs
from s3t.analytic.head import NAME
from s3t.analytic.lacking import survey
from s3t.analytic.store import FEATURES
from s3t.contract import Cost
from s3t.facts import Facts
from s3t.records import Layout
from s3t.requests import retained
from s3t.rows import CONTENTS, INDEX
from s3t.runs import Run


@dataclass(frozen=True)
class Status:
    """What a run is and how it stands. ``chain_lengths``: stages served per live shard; ``bytes``: of trained nodes.

    ``damaged``: nodes that were found to be damaged, by name with the reason, and an analytic head whose features were; what
    serves is told without them, and they are missing. ``orders``: the rule that chose them; ``design``: how blocks lie;
    ``head``: the analytic head, if there is one; ``ensembling``: how what serves becomes one answer. ``stores``: every place
    below the run folder where data or what was trained on it is kept, and a build's exchange.
    """

    method: str
    model: str
    data: str
    layout: Layout
    orders: str
    design: str
    head: str
    ensembling: str
    requests: int
    deleted: int
    retained: int
    live: tuple[int, ...]
    offline: tuple[int, ...]
    chain_lengths: dict[int, int]
    surviving_nodes: int
    missing_nodes: int
    damaged: dict[str, str]
    bytes: int
    cost: Cost
    stores: tuple[str, ...]


def offline(run: Run, facts: Facts) -> tuple[int, ...]:
    """Return the shards without any chain that can serve now: none survives, or none that is intact, as far as is known."""
    facts.update()
    live = facts.chains(run.damage.lost(facts))
    return tuple(shard for shard in range(facts.plan.layout.shards) if shard not in live and facts.plan.stages)


def describe_status(run: Run, facts: Facts, *, check: bool = False) -> Status:
    """Return the status of ``run`` as of now; ``check``: first read the files of all surviving nodes, and all features."""
    facts.update()
    if check:
        run.damage.survey(facts, list(facts.alive.values()))
        survey(run, facts)
    chains = facts.chains(run.damage.lost(facts))
    spoilt = run.damage.features(facts)
    fixed = (
        runs.LEDGER,
        CONTENTS,
        INDEX,
        f"{runs.NODES}/",
        f"{runs.ACTIVATIONS}/",
        *((FEATURES,) if run.features else ()),
    )
    return Status(
        method=run.config.plan.method,
        model=run.config.model["name"],
        data=run.config.data["name"],
        layout=facts.plan.layout,
        orders=str(facts.plan.rule),
        design=str(facts.plan.design) or "as in the paper",
        head=_head(facts),
        ensembling=f"{facts.plan.weights} weights" + (f", {facts.plan.pool} pool" if facts.plan.head else ""),
        requests=run.ledger.requests(),
        deleted=run.ledger.tombstones(),
        retained=retained(run),
        live=tuple(sorted(chains)),
        offline=offline(run, facts),
        chain_lengths={shard: len(chain.nodes) for shard, chain in sorted(chains.items())},
        surviving_nodes=len(facts.alive),
        missing_nodes=len(facts.missing(run.damage.nodes(facts))),
        damaged=run.damage.told(facts) | ({NAME: spoilt} if spoilt else {}),
        bytes=run.nodes.bytes(),
        cost=facts.cost,
        stores=(*fixed, *exchange.noted(run.path)),
    )


def _head(facts: Facts) -> str:
    head = facts.plan.head
    if head is None:
        return "none"
    said = f"{head.form} on {'+'.join(head.poolings)} of {len(head.layers) or 'all'} layers, share {facts.plan.share:g}"
    return said if facts.has_head else f"{said}, not finished"
