"""E0, first part: no recorded path leads from a deleted record to what is served.

The reads that the system OBSERVED while training, carried through the chain, against rows derived here; and selection,
parents, keys and ensemble weights against what the ledger's facts imply.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace

from s3t.contract import NodeFacts, Provenance, ServedChain
from s3t.records import sha256
from verify import derive
from verify.evidence import Evidence
from verify.ordering import chosen
from verify.plans import documented_plan, plan_faults
from verify.report import Finding, Verdict
from verify.scan import broken_features, damaged
from verify.state import HEAD, HEAD_NAME, Chain, ServedHead, State, Survivor, node_name, without

CHECK = "E0 lineage"


def check_lineage(provenance: Provenance, evidence: Evidence, state: State) -> list[Finding]:
    """Return what is wrong with plan, selection, keys or reads of any served or surviving node; else one HOLDS."""
    found = [*_plan(evidence, state), *_selection(provenance, state), *_claim(provenance, state)]
    found += _stray(provenance, evidence)
    found += _head(provenance, evidence, state)
    derived = {chain.shard: chain for chain in state.chains}
    nodes = 0
    for chain in _chains(provenance):
        if chain.shard in derived:
            found += _chain(chain, derived[chain.shard], evidence, state)
            nodes += len(chain.nodes)
    found += _survivors(evidence, state, serving_keys(provenance))
    if not found:
        chains, head = len(state.chains), ", the analytic head" if state.head else ""
        served = f"{chains} chains, {nodes} nodes{head}: selection, parents, keys, observed reads as derived"
        found.append(Finding(CHECK, Verdict.HOLDS, served, details={"chains": chains, "nodes": nodes}))
    return found


def _chains(provenance: Provenance) -> list[ServedChain]:
    """Return what serves but the analytic head."""
    return [chain for chain in provenance.chains if chain.shard != HEAD[0]]


def as_served(provenance: Provenance, evidence: Evidence, state: State) -> tuple[State, list[Finding]]:
    """Return ``state`` with what must serve now that nodes are damaged, and a finding on each that is therefore left out.

    Where what is said to serve is not what survives, the damaged nodes that do not serve are taken away, and what is left must
    serve (docs/DERIVATION.md, "What is served"). Nothing is concluded from a run in that state, hence UNDECIDED at every level.
    """
    if (
        state.head
        and len(_chains(provenance)) == len(provenance.chains)
        and (broken := broken_features(evidence, state))
    ):
        state, found = as_served(provenance, evidence, replace(state, head=None))
        return state, [*found, *(replace(f, check="evidence", message=f"{f.message}: it is left out") for f in broken)]
    shown = {(c.shard, c.order, tuple(c.nodes[-1].prefix) if c.nodes else ()) for c in _chains(provenance)}
    if shown == {(chain.shard, chain.order, chain.prefix) for chain in state.chains}:
        return state, []
    serving = serving_keys(provenance)
    lost = {where: why for where, why in damaged(evidence, state).items() if state.survivors[where].key not in serving}
    left = without(state, lost)
    shorter = {chain.shard for chain in state.chains if chain not in left.chains}
    advice = "it is damaged and left out of what serves; run `s3t refresh` and audit again"
    return left, [
        Finding("evidence", Verdict.UNDECIDED, f"{why}: {advice}", node_name(*where))
        for where, why in lost.items()
        if where[0] in shorter
    ]


def serving_keys(provenance: Provenance) -> frozenset[str]:
    """Return the keys of the nodes that are said to serve."""
    return frozenset(node.key for chain in provenance.chains for node in chain.nodes)


def _violated(message: str, node: str = "", **details: object) -> Finding:
    return Finding(CHECK, Verdict.VIOLATED, message, node, details=details)


def _undecided(message: str, node: str = "") -> Finding:
    return Finding(CHECK, Verdict.UNDECIDED, message, node)


def _plan(evidence: Evidence, state: State) -> list[Finding]:
    plan = state.plan
    documented = documented_plan(
        plan.method,
        shards=plan.shards,
        slices=plan.slices,
        budget=plan.budget,
        layers=int(evidence.run["model"]["layers"]),
        epochs=state.recipe.epochs,
        design=plan.design,
    )
    if documented is None:
        return [_undecided(f"method {plan.method!r} has no documented plan for this layout; stages cannot be derived")]
    faults = [_violated(f"plan: {fault}") for fault in plan_faults(plan, documented)]
    rule = evidence.run["plan"].get("rule")
    if plan.orders != (documented.orders if rule is None else chosen(rule, plan.slices, plan.budget)):
        which = "the cyclic ones" if rule is None else f"those of the declared rule {rule!r}"
        faults.append(_undecided(f"the orders are not {which}: how they were chosen cannot be derived"))
    return faults


def _selection(provenance: Provenance, state: State) -> list[Finding]:
    found = []
    chains = _chains(provenance)
    shown = [chain.shard for chain in chains]
    derived = {chain.shard: chain for chain in state.chains}
    if len(set(shown)) != len(shown):
        found.append(_violated(f"a shard serves more than one chain: {shown}"))
    if set(shown) != set(derived):
        found.append(_violated(f"shards {sorted(set(shown))} serve, but {sorted(derived)} have a surviving chain"))
    if tuple(sorted(provenance.offline)) != state.offline:
        found.append(_violated(f"offline are said to be {list(provenance.offline)}, derived {list(state.offline)}"))
    for chain in chains:
        if chain.shard in derived and chain.weight != state.weights[chain.shard]:
            how = f"{state.weights[chain.shard]}: {len(derived)} shards are live, weights {state.plan.weights!r}"
            message = f"its weight in the ensemble is {chain.weight}; it must be {how}"
            found.append(_violated(message, f"shard {chain.shard}"))
    for chain in chains:
        wanted = derived.get(chain.shard)
        prefix = chain.nodes[-1].prefix if chain.nodes else ()
        if wanted is not None and (chain.order, tuple(prefix)) != (wanted.order, wanted.prefix):
            found.append(
                _violated(
                    f"serves order {chain.order}, slices {list(prefix)}; "
                    f"the longest surviving chain is order {wanted.order}, slices {list(wanted.prefix)}",
                    f"shard {chain.shard}",
                )
            )
    return found


def _head(provenance: Provenance, evidence: Evidence, state: State) -> list[Finding]:
    """Check what is said of the analytic head: whether it serves, its weight, its key, and that it read what is retained."""
    said = [chain for chain in provenance.chains if chain.shard == HEAD[0]]
    if len(said) != (state.head is not None):
        what = "an analytic head must serve" if state.head else "no analytic head can serve"
        return [_violated(f"{what}, and {len(said)} are said to", HEAD_NAME)]
    if state.head is None:
        return []
    (chain,) = said
    if len(chain.nodes) != 1 or chain.order != 0:
        return [
            _violated(f"it has {len(chain.nodes)} nodes and order {chain.order}, not one node and order 0", HEAD_NAME)
        ]
    (node,), found = chain.nodes, list[Finding]()
    if chain.weight != state.share:
        found.append(_violated(f"its weight in the ensemble is {chain.weight}; it must be {state.share}", HEAD_NAME))
    named = (node.name, node.shard, tuple(node.prefix), node.parent)
    if named != (HEAD_NAME, *HEAD, None):
        found.append(_violated(f"it is said to be the node {named}", HEAD_NAME))
    if node.key != state.head.key:
        message = f"its key {_short(node.key)} is not the derived {_short(state.head.key)} (rows, head, environment)"
        found.append(_violated(message, HEAD_NAME))
    return [*found, *(_observed(node, evidence, state, HEAD_NAME) or _all_read(node, state.head))]


def _all_read(node: NodeFacts, head: ServedHead) -> list[Finding]:
    """The analytic head reads every retained record and no other."""
    ids, reads = {row.record.id for row in head.rows}, node.reads or frozenset()
    told = {"records were read that are not retained": reads - ids, "retained records were not read": ids - reads}
    return [_violated(f"{len(odd)} {what}, first {min(odd)!r}", HEAD_NAME) for what, odd in told.items() if odd]


def _claim(provenance: Provenance, state: State) -> list[Finding]:
    if provenance.claim != "retrained":
        return []
    full = all(chain.order == 0 and len(chain.nodes) == state.plan.slices for chain in state.chains)
    occupied = {shard for shard, _ in state.by_slot}
    if not full or occupied & set(state.offline):
        return [_violated("claims 'retrained' while a shard does not serve the chain that a fresh fit would serve")]
    if state.plan.head and occupied and state.head is None:
        return [_violated("claims 'retrained' while no analytic head serves, and with a fresh fit one would")]
    return []


def _stray(provenance: Provenance, evidence: Evidence) -> list[Finding]:
    found = []
    if provenance.stray is None:
        found.append(_undecided("reads outside any node were not observed"))
    elif provenance.stray:
        found.append(_violated(f"{len(provenance.stray)} records were read outside any node while training"))
    written = {tag for entry in evidence.entries if entry.kind == "stray" for tag in entry.body["tags"]}
    if written:
        found.append(_violated(f"the ledger records {len(written)} records read outside any node"))
    return found


def _chain(chain: ServedChain, derived: Chain, evidence: Evidence, state: State) -> list[Finding]:
    found: list[Finding] = []
    before: str | None = None
    for position, node in enumerate(chain.nodes):
        name = node_name(chain.shard, tuple(node.prefix))
        ledger = derived.nodes[position] if position < len(derived.nodes) else None
        if node.shard != chain.shard or len(node.prefix) != position + 1:
            found.append(_violated(f"stage {position} of the chain is node (shard {node.shard}, {node.prefix})", name))
        if node.parent != before:
            found.append(_violated(f"its parent is {_short(node.parent)}, the stage before is {_short(before)}", name))
        before = node.key
        if ledger is not None and ledger.prefix == tuple(node.prefix) and node.key != ledger.key:
            message = f"its key is {_short(node.key)}, the ledger's surviving node is {_short(ledger.key)}"
            found.append(_violated(message, name))
        found += _reads(node, evidence, state, name)
    return found


def _key(node: Survivor, evidence: Evidence, state: State, name: str) -> list[Finding]:
    rows = state.rows(node.shard, node.prefix)
    key = derive.node_key(
        evidence.run,
        shard=node.shard,
        prefix=node.prefix,
        parent=node.parent,
        commitments=[str(row.commitment) for row in rows],
        environment=node.environment,
    )
    if key == node.key:
        return []
    return [_violated(f"its key {_short(node.key)} is not the derived {_short(key)} (rows, recipe, parent)", name)]


def _reads(node: NodeFacts, evidence: Evidence, state: State, name: str) -> list[Finding]:
    where = (node.shard, tuple(node.prefix))
    return _observed(node, evidence, state, name) or _against_rows(
        node.reads or frozenset(), *where, evidence, state, name
    )


def _observed(node: NodeFacts, evidence: Evidence, state: State, name: str) -> list[Finding]:
    """Return why nothing more is to be said of what a node read: it was not observed, or a deleted record is among it."""
    if node.reads is None:
        return [_undecided("the system did not observe which records it read", name)]
    tags = {derive.tag(evidence.key, read): read for read in node.reads}
    deleted = set(tags) & state.tombstones
    if deleted:
        return [_violated(f"{len(deleted)} deleted records are in its read set", name, tags=sorted(deleted))]
    return []


def _against_rows(
    reads: frozenset[str], shard: int, prefix: tuple[int, ...], evidence: Evidence, state: State, name: str
) -> list[Finding]:
    ids = [row.record.id for row in state.rows(shard, prefix)]
    epochs = state.plan.stages[len(prefix) - 1].epochs
    batch_seed = derive.seed(int(evidence.run["seed"]), shard, prefix, "batches")
    foreign, unread = reads - set(ids), derive.visited(ids, batch_seed, epochs) - reads
    found = []
    if foreign:
        found.append(_violated(f"{len(foreign)} records were read that are not its own, first {min(foreign)!r}", name))
    if unread:
        found.append(_violated(f"{len(unread)} of its rows were never read, first {min(unread)!r}", name))
    return found


def _survivors(evidence: Evidence, state: State, serving: Collection[str]) -> list[Finding]:
    """Check key and reads.json of every surviving node: those not served now may serve after the next deletion."""
    found: list[Finding] = []
    planned = set(state.nodes())
    for (shard, prefix), node in sorted(state.survivors.items()):
        name = node_name(shard, prefix)
        if (shard, prefix) not in planned:
            found.append(_violated("it survives in the ledger but no order of the plan has this prefix", name))
            continue
        found += _key(node, evidence, state, name)
        path = evidence.folder / "nodes" / node.key / "reads.json"
        try:
            raw = path.read_bytes()
            reads = json.loads(raw)
        except (OSError, ValueError):
            found.append(_undecided("its reads.json cannot be read", name))
            continue
        if not isinstance(reads, list) or not all(isinstance(read, str) for read in reads):
            found.append(_undecided("its reads.json is not a list of ids", name))
        elif node.key not in serving and sha256(raw) != node.reads:
            found.append(_undecided("its reads.json is not the file that the ledger recorded", name))
        else:
            found += _against_rows(frozenset(reads), shard, prefix, evidence, state, name)
    return found


def _short(key: str | None) -> str:
    return "none" if key is None else key[:12]
