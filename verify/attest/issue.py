"""Writing a certificate: what serves now, as derived from the run folder, with what an audit of just that found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.errors import RunError
from s3t.records import sha256
from verify import derive
from verify.attest import PREDICATE, STATEMENT, AttestError, RefusedError, headed, merkle, need, tensors, told
from verify.attest.envelope import canonical, seal
from verify.binary import FILE as FEATURES
from verify.evidence import Entry, Evidence, read_evidence
from verify.report import LIMITS, Report, Verdict
from verify.scan import FIXED, NODE_FILES
from verify.state import State, Survivor, derive_state, longest

if TYPE_CHECKING:
    from datetime import datetime

PURPOSES = ("adapter", "head", "dropout", "batches")
RULE = "per shard the longest chain that has read a row, ties by the lowest order"
HEAD_RULE = "; the analytic head, if one is declared, its features were made and a record is retained"


def certify(
    run: Path,
    request: str,
    report: Report,
    signer: Any,
    *,
    issued: datetime,
    by: str = "",
    undecided: bool = False,
    leaks: Path | None = None,
) -> bytes:
    """Return the signed certificate about ``request`` and what ``run`` serves now.

    RefusedError if ``report`` is VIOLATED, or UNDECIDED without ``undecided``; AttestError if it is about another state of
    the run; RunError if the run is incomplete, serves nothing, or is changed meanwhile.
    """
    evidence = read_evidence(run)
    if evidence.problems:
        raise RunError(f"the run cannot be certified: {evidence.problems[0]}")
    if dict(report.checked) != evidence.checked:
        raise AttestError("the report is about another run or another state of it; audit the run again")
    if report.verdict is Verdict.VIOLATED:
        first = report.first(Verdict.VIOLATED)
        raise RefusedError(f"the audit says VIOLATED, so nothing is certified: {first.message if first else ''}")
    if report.verdict is Verdict.UNDECIDED and not undecided:
        first = report.first(Verdict.UNDECIDED)
        why = first.message if first else "a level found nothing"
        raise RefusedError(f"the audit is UNDECIDED ({why}); --allow-undecided certifies it as that")
    state = derive_state(evidence)
    if not state.chains and state.head is None:
        raise RunError(
            "every shard is offline and no analytic head serves: nothing is served that could be certified; refresh the run"
        )
    statement = make_statement(evidence, state, find_request(evidence.entries, request), report)
    statement["predicate"]["issued"] = {"at": issued.strftime("%Y-%m-%dT%H:%M:%SZ"), "by": by}
    statement["predicate"]["leaks"] = leak_matrix(leaks) if leaks else None
    validate(statement)
    raw = seal(statement, signer)
    if read_evidence(run).checked != evidence.checked:
        raise RunError("the run was changed while it was certified; give the same command again")
    return raw


def find_request(entries: Sequence[Entry], request: str) -> Entry:
    """Return the entry of ``request``. AttestError if the ledger has none."""
    known = {str(entry.body.get("request")): entry for entry in entries if entry.kind == "request"}
    if request not in known:
        last = f"the last is {list(known)[-1]!r}" if known else "it has none"
        raise AttestError(f"the run has no request {request!r} ({last}); `s3t delete` prints a request's name")
    return known[request]


def make_statement(evidence: Evidence, state: State, request: Entry, report: Report) -> dict[str, Any]:
    """Return the in-toto statement, without who issued it."""
    run, create = evidence.run, evidence.entries[0].body
    commitments = {row.record.id: str(row.commitment) for row in evidence.train}
    environments = {sha256(canonical(dict(n.environment))): dict(n.environment) for c in state.chains for n in c.nodes}
    subjects, served = [], []
    for chain in state.chains:
        named = [(node.key, tensors.node_name(node.shard, node.prefix)) for node in chain.nodes]
        for part, node in zip(tensors.served_parts(run["plan"]["stages"], named), chain.nodes, strict=True):
            found = tensors.read_part(evidence.folder / "nodes", part, node.files)
            bad = next((tensor.name for tensor in found if not tensor.finite), None)
            if bad:
                raise RefusedError(f"the served tensor {bad} holds NaN or infinity, so nothing is certified")
            subjects += [tensor.subject() for tensor in found]
        nodes = [_node(evidence, commitments, node) for node in chain.nodes]
        served.append(
            {"shard": chain.shard, "order": chain.order, "weight": state.weights[chain.shard], "nodes": nodes}
        )
    head, declared = headed.certified(evidence, state, report), state.plan.head is not None
    if head is not None:
        served.append(head[0])
        environments |= head[1]
        subjects += [tensor.subject() for tensor in head[2]]
    return {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {
            "claim": report.claim,
            "verdict": report.verdict.value,
            "levels": {level: report.of(level).value for level in report.levels},
            "findings": [told.publish(finding) for finding in report.findings],
            "notes": [told.scrub(note) for note in report.notes],
            "run": _facts(evidence),
            "commitments": {"root": create["root"], "rows": create["rows"], "slotKey": create["key"]},
            "request": _request(evidence.entries, request),
            "ledger": _position(evidence.entries),
            "deleted": len(state.tombstones),
            "served": served,
            "offline": list(state.offline),
            "selection": {"rule": RULE + HEAD_RULE * declared, "shards": selection(state)},
            "environments": environments,
            "stores": [
                *FIXED,
                *[FEATURES] * declared,
                *(f"nodes/*/{name}" for name in sorted(set.union(*NODE_FILES.values()))),
            ],
            "limits": list(LIMITS),
        },
    }


def _facts(evidence: Evidence) -> dict[str, Any]:
    run = evidence.run
    name, head = str(run["model"]["name"]), headed.declared(run)
    made = headed.made_at([entry.kind for entry in evidence.entries])
    return {
        **({} if head is None else {"head": head | {"made": made}}),
        "config": evidence.run_digest,
        "method": run["plan"]["method"],
        "shards": run["plan"]["layout"]["shards"],
        "slices": run["plan"]["layout"]["slices"],
        "ensemble": run["recipe"]["ensemble"],
        "weights": run["plan"].get("weights", "equal"),
        "base": {
            "name": Path(name).name if Path(name).is_absolute() else told.scrub(name),
            "digest": run["model"]["digest"],
        },
        "recipe": derive.digest(run["recipe"]).hex(),
        "seed": str(run["seed"]),
        "code": {"kernel": run["kernel"], "s3t": run["s3t"]},
    }


def _node(evidence: Evidence, commitments: Mapping[str, str], node: Survivor) -> dict[str, Any]:
    """Return what a certificate says of a served node; its read-set is told by salted commitments alone."""
    name = tensors.node_name(node.shard, node.prefix)
    raw = (evidence.folder / "nodes" / node.key / "reads.json").read_bytes()
    if sha256(raw) != node.reads:
        raise RunError(f"reads.json of node {name} is not the file that the ledger recorded; audit the run")
    reads = json.loads(raw)
    if set(reads) - set(commitments):
        raise RefusedError(f"node {name} has read a record that is not retained, so nothing is certified")
    seed = int(evidence.run["seed"])
    return {
        "entry": node.seq,
        "name": name,
        "prefix": list(node.prefix),
        "key": node.key,
        "parent": node.parent,
        "reads": {"root": derive.root([commitments[read] for read in reads]), "rows": len(reads)},
        "seeds": {purpose: str(derive.seed(seed, node.shard, node.prefix, purpose)) for purpose in PURPOSES},
        "environment": sha256(canonical(dict(node.environment))),
    }


def _leaves(entries: Sequence[Entry]) -> list[bytes]:
    return [bytes.fromhex(entry.digest) for entry in entries]


def _position(entries: Sequence[Entry]) -> dict[str, Any]:
    leaves = _leaves(entries)
    tree = need("pymerkle").InmemoryTree(algorithm="sha256")
    tree.append_entries(leaves)
    root = derive.merkle_root(leaves)
    if tree.get_root().hex() != root:
        raise AttestError("two implementations of the ledger's Merkle root disagree; nothing can be certified here")
    return {"entries": len(leaves), "root": root, "head": entries[-1].digest}


def _request(entries: Sequence[Entry], request: Entry) -> dict[str, Any]:
    """Return the request with proofs that its entry is in the tree, which begins with that of its own time."""
    leaves = _leaves(entries)
    return {
        "id": request.body["request"],
        "tombstones": list(request.body["tags"]),
        "slots": [list(slot) for slot in request.body["slots"]],
        "entry": request.seq,
        "digest": request.digest,
        "root": derive.merkle_root(leaves[: request.seq]),
        "inclusion": merkle.prove_inclusion(leaves, request.seq - 1),
        "consistency": merkle.prove_consistency(leaves, request.seq),
    }


def selection(state: State) -> list[dict[str, Any]]:
    """Return per shard which chain each order has, and whose was chosen (null: the shard is offline)."""
    chosen = {chain.shard: chain.order for chain in state.chains}
    found = []
    for shard in range(state.plan.shards):
        considered = []
        for order in state.orders:
            chain = longest(shard, order, state.survivors)
            occupied = bool(chain) and any((shard, s) in state.by_slot for s in chain[-1].prefix)
            considered.append(
                {"order": list(order), "last": chain[-1].key if chain else None}
                | {"length": len(chain), "rows": occupied}
            )
        found.append({"shard": shard, "considered": considered, "chosen": chosen.get(shard)})
    return found


def leak_matrix(path: Path) -> dict[str, Any]:
    """Return digest and sums of the matrix of planted faults that `python -m verify leaks` wrote."""
    try:
        raw = path.read_bytes()
        table = json.loads(raw)
        at = {name: i for i, name in enumerate(table["columns"])}
        rows = table["rows"]
        caught = {row[at["leak"]] for row in rows if row[at["leak"]] and row[at["verdict"]] == "VIOLATED"}
        due = [row for row in rows if row[at["leak"]] and row[at["due"]]]
        summary = {
            "planted": len({row[at["leak"]] for row in rows if row[at["leak"]]}),
            "caught": len(caught),
            "due": len(due),
            "dueCaught": sum(row[at["verdict"]] == "VIOLATED" for row in due),
            "alarms": sum(row[at["verdict"]] != "HOLDS" for row in rows if not row[at["leak"]]),
            "settings": len({row[at["setting"]] for row in rows}),
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise AttestError(
            f"{path} is no matrix of `python -m verify leaks` ({type(error).__name__}: {error})"
        ) from error
    return {"sha256": sha256(raw), "summary": summary}


def validate(statement: Mapping[str, Any]) -> None:
    """Raise AttestError unless in-toto's own classes accept the statement."""
    kinds = need("in_toto_attestation.v1.statement"), need("in_toto_attestation.v1.resource_descriptor")
    try:
        subjects = [
            kinds[1].ResourceDescriptor(s["name"], digest=s["digest"], annotations=s["annotations"]).pb
            for s in statement["subject"]
        ]
        kinds[0].Statement(subjects, statement["predicateType"], dict(statement["predicate"])).validate()
    except (ValueError, TypeError) as error:
        raise AttestError(f"the statement is no in-toto statement ({error})") from error
