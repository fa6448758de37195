"""A certificate against the run it is about: ledger, configuration, commitments, nodes, served tensors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s3t.records import sha256
from verify import derive
from verify.attest import AttestError, headed, tensors
from verify.attest.chain import BrokenError, Chain, Survivors, read_chain, survivors
from verify.attest.check import chains_of, holds, undecided, violated
from verify.attest.envelope import canonical
from verify.report import Finding
from verify.state import HEAD_NAME

LEAF = 32


def against(statement: Mapping[str, Any], run: Path) -> list[Finding]:
    """Return what the run says to the certificate. Missing evidence is UNDECIDED, contradicting evidence VIOLATED."""
    predicate = statement["predicate"]
    try:
        chain = read_chain(run / "ledger.sqlite")
    except BrokenError as error:
        return [violated("ledger", str(error))]
    except AttestError as error:
        return [undecided("ledger", f"the ledger cannot be read: {error}")]
    found = _ledger(chain, predicate)
    if found:
        return found
    try:
        raw = (run / "run.json").read_bytes()
    except OSError as error:
        return [undecided("run", f"run.json cannot be read ({error.strerror})")]
    if sha256(raw) != predicate["run"]["config"]:
        return [violated("run", "run.json is not that of the certificate: it is of another run, or was edited")]
    try:
        config = json.loads(raw)
        now = survivors(chain, predicate["ledger"]["entries"], config["plan"]["orders"], predicate["run"]["slices"])
        entries = {
            node["entry"]: chain.body(node["entry"], "train") for c in chains_of(predicate) for node in c["nodes"]
        }
        wrong = [
            *_created(chain, predicate),
            *_configured(config, predicate),
            *_selected(now, predicate),
            *_nodes(entries, config, predicate),
            *headed.facts(chain, config, predicate),
        ]
    except BrokenError as error:
        wrong = [str(error)]
    if wrong:
        return [violated("run", message) for message in wrong]
    size, present = predicate["ledger"]["entries"], len(chain.leaves)
    said = f"{size} entries chained, with the certified root" + (
        f"; {present - size} more since" if present > size else ""
    )
    found = [
        holds("ledger", said, entries=present),
        holds("run", "configuration, selection and nodes are as certified"),
    ]
    found += [_leaves(run, predicate), *_tensors(statement, run, config, entries, chain)]
    found += headed.compare(statement, run, chain)
    return found + _moved(chain, size)


def _ledger(chain: Chain, predicate: Mapping[str, Any]) -> list[Finding]:
    size = predicate["ledger"]["entries"]
    if len(chain.leaves) < size:
        return [
            violated(
                "ledger", f"the ledger has {len(chain.leaves)} entries, {size} were certified: it was cut or forked"
            )
        ]
    if derive.merkle_root(chain.leaves[:size]) != predicate["ledger"]["root"]:
        return [violated("ledger", f"the first {size} entries are not those certified: a fork, or another run")]
    if chain.leaves[size - 1].hex() != predicate["ledger"]["head"]:
        return [violated("ledger", "the certified head is not the last certified entry")]
    return []


def _created(chain: Chain, predicate: Mapping[str, Any]) -> Iterator[str]:
    create, committed = chain.body(1, "create"), predicate["commitments"]
    if (create["root"], create["rows"], create["key"]) != (committed["root"], committed["rows"], committed["slotKey"]):
        yield "the commitments are not those of the ledger's first entry"
    if create["run"] != predicate["run"]["config"]:
        yield "run.json is not the one that the ledger was created for"
    told = predicate["request"]
    body = chain.body(told["entry"], "request")
    if (body["request"], body["tags"], body["slots"]) != (told["id"], told["tombstones"], told["slots"]):
        yield f"entry {told['entry']} of the ledger says something else about request {told['id']}"
    if chain.leaves[told["entry"] - 1].hex() != told["digest"]:
        yield f"entry {told['entry']} of the ledger has another digest than the certified request"


def _configured(config: Mapping[str, Any], predicate: Mapping[str, Any]) -> Iterator[str]:
    told, layout = predicate["run"], config["plan"]["layout"]
    real = {
        "method": config["plan"]["method"],
        "shards": layout["shards"],
        "slices": layout["slices"],
        "ensemble": config["recipe"]["ensemble"],
        "weights": config["plan"].get("weights", "equal"),
        "recipe": derive.digest(config["recipe"]).hex(),
        "seed": str(config["seed"]),
        "code": {"kernel": config["kernel"], "s3t": config["s3t"]},
    }
    yield from (f"{name} is not that of run.json" for name, value in real.items() if told.get(name, "equal") != value)
    if told["base"]["digest"] != config["model"]["digest"]:
        yield "the base model is not that of run.json"


def _selected(now: Survivors, predicate: Mapping[str, Any]) -> Iterator[str]:
    """The chains that were considered are those that the ledger gives, and so is which of them read rows."""
    if now.tombstones != predicate["deleted"]:
        yield f"{predicate['deleted']} deleted rows were certified, the ledger names {now.tombstones}"
    for choice in predicate["selection"]["shards"]:
        told = [(c["order"], c["length"], c["last"], c["rows"]) for c in choice["considered"]]
        real = []
        for order in now.orders:
            nodes = now.longest(choice["shard"], order)
            real.append((list(order), len(nodes), nodes[-1].key if nodes else None, any(node.rows for node in nodes)))
        if told != real:
            yield f"the chains considered for shard {choice['shard']} are not those of the ledger"


def _nodes(
    entries: Mapping[int, Mapping[str, Any]], config: Mapping[str, Any], predicate: Mapping[str, Any]
) -> Iterator[str]:
    for chain in chains_of(predicate):
        for node in chain["nodes"]:
            entry, prefix = entries[node["entry"]], node["prefix"]
            told = (node["key"], node["parent"], chain["shard"], prefix, node["reads"]["rows"])
            if told != tuple(entry.get(name) for name in ("key", "parent", "shard", "prefix", "rows")):
                yield f"entry {node['entry']} of the ledger is not the training of node {node['name']}"
            if node["name"] != tensors.node_name(chain["shard"], prefix):
                yield f"node {node['name']} bears another node's name"
            environment = predicate["environments"][node["environment"]]
            if entry["environment"] != environment or sha256(canonical(environment)) != node["environment"]:
                yield f"node {node['name']} was trained in another environment"
            seeds = {p: str(derive.seed(int(config["seed"]), chain["shard"], tuple(prefix), p)) for p in node["seeds"]}
            if node["seeds"] != seeds or not seeds:
                yield f"node {node['name']} has other seeds"


def _leaves(run: Path, predicate: Mapping[str, Any]) -> Finding:
    path = run / "commitments"
    raw = path.read_bytes() if path.is_file() else b""
    told = predicate["commitments"]
    if len(raw) != LEAF * told["rows"]:
        return undecided(
            "commitments", f"commitments holds {len(raw)} bytes, not {LEAF} for each of {told['rows']} rows"
        )
    if derive.merkle_root([raw[i : i + LEAF] for i in range(0, len(raw), LEAF)]) != told["root"]:
        return violated("commitments", "the leaves do not give the root that was committed to before training")
    return holds("commitments", f"{told['rows']} leaves give the root that was committed to before training")


def _tensors(
    statement: Mapping[str, Any],
    run: Path,
    config: Mapping[str, Any],
    entries: Mapping[int, Mapping[str, Any]],
    chain: Chain,
) -> list[Finding]:
    """Recompute the digests of all served tensors of nodes, save of those that a later request dropped."""
    predicate, stages = statement["predicate"], config["plan"]["stages"]
    hit = {tuple(slot) for seq in _later(chain, predicate, "request") for slot in chain.body(seq, "request")["slots"]}
    found, seen, dropped = list[Finding](), list[tensors.Stored](), {HEAD_NAME}
    for told in chains_of(predicate):
        named = [(node["key"], node["name"]) for node in told["nodes"]]
        for part, node in zip(tensors.served_parts(stages, named), told["nodes"], strict=True):
            if any((told["shard"], piece) in hit for piece in node["prefix"]):
                dropped.add(part.name)
                continue
            if not (run / "nodes" / part.key).is_dir():
                found.append(undecided("tensors", f"node {part.name} is missing from the run"))
                continue
            try:
                seen += tensors.read_part(run / "nodes", part, entries[node["entry"]]["files"])
            except AttestError as error:
                found.append(violated("tensors", str(error)))
    found += [violated("tensors", f"{tensor.name} holds NaN or infinity") for tensor in seen if not tensor.finite]
    if found:
        return found
    real = Counter(json.dumps(tensor.subject(), sort_keys=True) for tensor in seen)
    signed = Counter(
        json.dumps(s, sort_keys=True) for s in statement["subject"] if s["name"].partition(":")[0] not in dropped
    )
    if real != signed:
        first = min(json.loads(text)["name"] for text in (real - signed) + (signed - real))
        return [violated("tensors", f"{first} is not the tensor that was certified")]
    return [holds("tensors", f"{len(seen)} served tensors have the certified bytes", tensors=len(seen))] if seen else []


def _later(chain: Chain, predicate: Mapping[str, Any], kind: str) -> list[int]:
    size = predicate["ledger"]["entries"]
    return [seq for seq, found in enumerate(chain.kinds[size:], start=size + 1) if found == kind]


def _moved(chain: Chain, size: int) -> list[Finding]:
    since = Counter(chain.kinds[size:])
    if not since:
        return []
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(since.items()))
    return [undecided("present", f"the run has moved on: {told} since; certify it again for what serves now")]
