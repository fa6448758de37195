"""Checking a certificate: signature, form, proofs, and the run it is about. No torch, no training data, no secret.

Findings are of level A. VIOLATED: signature, form, proof or run contradict the certificate. UNDECIDED: the signer is
unknown, the run cannot be read or has moved on, or the certificate itself states UNDECIDED.

An analytic head's tensors are the exception: against a run they are solved anew (:mod:`verify.attest.headed`), which takes
torch and the run's records; without either, that one finding is UNDECIDED.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verify.attest import PREDICATE, STATEMENT, AttestError, merkle
from verify.attest.envelope import Sealed, unseal
from verify.attest.keys import find_public
from verify.combining import among, share
from verify.plans import ANALYTIC, Plan
from verify.report import Finding, Report, Verdict, combine
from verify.state import HEAD, HEAD_NAME

LEVEL = "A"
FIELDS = frozenset(
    (
        *(
            "claim",
            "commitments",
            "deleted",
            "environments",
            "findings",
            "issued",
            "leaks",
            "ledger",
            "levels",
            "limits",
        ),
        *("notes", "offline", "request", "run", "selection", "served", "stores", "verdict"),
    )
)
HASH = re.compile(r"[0-9a-f]{64}")


def check(raw: bytes, run: Path | None, *, key: Any | None = None, keys: Path | None = None) -> Report:
    """Check the certificate file ``raw``, against ``run`` if given.

    ``key``: the signer's public key; without it, KEYID.pub is looked for in ``keys``. AttestError (bad input) if ``raw`` is
    no certificate at all.
    """
    began = time.monotonic()
    sealed = unseal(raw)
    found = [_signature(sealed, key, keys)]
    claim, system = "", ""
    try:
        found += form(sealed)
        predicate = sealed.statement["predicate"]
        claim, system = str(predicate["claim"]), str(predicate["run"]["method"])
        found += proofs(predicate)
        if run is not None and combine(f.verdict for f in found) is not Verdict.VIOLATED:
            from verify.attest.against import against

            found += against(sealed.statement, run)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        found.append(
            violated("form", f"the statement has not the form of {PREDICATE} ({type(error).__name__}: {error})")
        )
    notes = () if run is not None else ("not compared with a run: give its folder as well",)
    return Report(str(run or ""), system, claim, (LEVEL,), tuple(found), notes, time.monotonic() - began)


def violated(what: str, message: str) -> Finding:
    """Return a finding that rejects the certificate."""
    return Finding(f"{LEVEL} {what}", Verdict.VIOLATED, message)


def undecided(what: str, message: str) -> Finding:
    """Return a finding that leaves the certificate open."""
    return Finding(f"{LEVEL} {what}", Verdict.UNDECIDED, message)


def holds(what: str, message: str, **details: Any) -> Finding:
    """Return a finding that supports the certificate."""
    return Finding(f"{LEVEL} {what}", Verdict.HOLDS, message, details=details)


def _signature(sealed: Sealed, key: Any | None, keys: Path | None) -> Finding:
    if key is None and keys is not None:
        key = find_public(keys, sealed.keyid)
    if key is None:
        return undecided("signature", f"the signer {sealed.keyid[:16]} is unknown; give the public key with --key")
    if key.keyid != sealed.keyid:
        return violated("signature", f"it is signed by {sealed.keyid[:16]}, not by the given key {key.keyid[:16]}")
    if not sealed.signed_by(key):
        return violated("signature", "the signature is not that of this content: it was changed after signing")
    return holds("signature", f"signed by {key.keyid[:16]} (ed25519)")


def form(sealed: Sealed) -> list[Finding]:
    """Say whether the statement is canonical, of this type, and agrees with itself. KeyError and the like if ill-formed."""
    statement, predicate = sealed.statement, sealed.statement["predicate"]
    wrong = []
    if not sealed.canonical:
        wrong.append("the statement is not in the form of RFC 8785")
    if set(statement) != {"_type", "subject", "predicateType", "predicate"} or statement["_type"] != STATEMENT:
        wrong.append("it is no in-toto statement v1")
    if statement["predicateType"] != PREDICATE or set(predicate) != FIELDS:
        wrong.append(f"it is not a {PREDICATE}: {sorted(set(predicate) ^ FIELDS) or statement['predicateType']}")
    names = [subject["name"] for subject in statement["subject"]]
    if not names or len(set(names)) != len(names):
        wrong.append("it names no served tensor, or one twice")
    if any(not HASH.fullmatch(subject["digest"]["sha256"]) for subject in statement["subject"]):
        wrong.append("a served tensor has no SHA-256")
    wrong += [*_served(predicate, names), *_stated(predicate)]
    if wrong:
        return [violated("form", message) for message in wrong]
    said = holds("form", f"canonical, {len(names)} served tensors, agrees with itself")
    if predicate["verdict"] == "UNDECIDED":
        open_ = [level for level, verdict in predicate["levels"].items() if verdict == "UNDECIDED"]
        return [said, undecided("verdict", f"the certificate itself states UNDECIDED: {', '.join(open_)}")]
    if predicate["verdict"] != "HOLDS":
        return [said, violated("verdict", f"the certificate itself states {predicate['verdict']}")]
    return [said, holds("verdict", "certified: " + ", ".join(f"{n} {v}" for n, v in predicate["levels"].items()))]


def _stated(predicate: Mapping[str, Any]) -> list[str]:
    """The verdicts follow from the findings, as in a report."""
    wrong = []
    for level, verdict in predicate["levels"].items():
        of = [Verdict(f["verdict"]) for f in predicate["findings"] if f["check"].split()[0] in (level, "evidence")]
        if combine(of) != verdict:
            wrong.append(f"its findings do not give {verdict} for {level}")
    if combine(Verdict(verdict) for verdict in predicate["levels"].values()) != predicate["verdict"]:
        wrong.append(f"its levels do not give {predicate['verdict']}")
    if not predicate["limits"]:
        wrong.append("it states no limits")
    return wrong


def _served(predicate: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What serves and its weights follow from the selection's inputs; every subject is of a served node."""
    wrong = [*_head(predicate, names)]
    served = {chain["shard"]: chain for chain in chains_of(predicate)}
    choices = {choice["shard"]: choice for choice in predicate["selection"]["shards"]}
    if sorted(choices) != list(range(predicate["run"]["shards"])):
        wrong.append("its selection does not cover every shard")
    for shard, choice in choices.items():
        able = [(-c["length"], i) for i, c in enumerate(choice["considered"]) if c["rows"] and c["length"]]
        best = min(able)[1] if able else None
        chain = served.get(shard)
        if choice["chosen"] != best or (chain["order"] if chain else None) != best:
            wrong.append(f"the chain chosen for shard {shard} does not follow from what was considered")
        elif chain and (
            [c["key"] for c in chain["nodes"]][-1] != choice["considered"][best]["last"]
            or chain["nodes"][-1]["prefix"]
            != choice["considered"][best]["order"][: choice["considered"][best]["length"]]
        ):
            wrong.append(f"what serves for shard {shard} is not the chain that was chosen")
    offline = [] if predicate["run"]["method"] == ANALYTIC else sorted(set(choices) - set(served))
    if len(served) != len(chains_of(predicate)) or offline != predicate["offline"]:
        wrong.append("live and offline shards do not add up")
    if [chain["weight"] for chain in predicate["served"]] != _weights(predicate):
        wrong.append("the ensemble weights do not follow from what serves")
    nodes = [node["name"] for chain in predicate["served"] for node in chain["nodes"]]
    if {name.partition(":")[0] for name in names} - set(nodes) or len(set(nodes)) != len(nodes):
        wrong.append("a served tensor is of no served node")
    for chain in predicate["served"]:
        for node, parent in zip(chain["nodes"], [None, *chain["nodes"]], strict=False):
            if (
                node["parent"] != (parent["key"] if parent else None)
                or node["environment"] not in predicate["environments"]
            ):
                wrong.append(f"node {node['name']} has another parent or an unknown environment")
    return wrong


def chains_of(predicate: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what the certificate says of the chains that serve: all that serves but the analytic head."""
    return [chain for chain in predicate["served"] if chain["shard"] != HEAD[0]]


def head_of(predicate: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what the certificate says of the analytic head that serves, None if none does."""
    return next((entry for entry in predicate["served"] if entry["shard"] == HEAD[0]), None)


def _weights(predicate: Mapping[str, Any]) -> list[float]:
    """Return what everything that serves weighs, chains in their order and the head behind them."""
    run, lengths = predicate["run"], [len(chain["nodes"]) for chain in chains_of(predicate)]
    told, weights = run.get("head"), run.get("weights", "equal")
    part = told["share"] if told else 0.0
    plan = Plan(run["method"], run["shards"], run["slices"], 1, (), (), eager=False, share=part, weights=weights)
    own = [share(plan, lengths)] if head_of(predicate) else []
    return [(1 - sum(own)) * weight for weight in among(plan, lengths)] + own


def _head(predicate: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """An analytic head serves if one is declared, its features were made and a record is retained; it read all that are."""
    told, entry = predicate["run"].get("head"), head_of(predicate)
    retained = predicate["commitments"]["rows"] - predicate["deleted"]
    if (entry is not None) != (told is not None and told["made"] is not None and retained > 0):
        return ["whether an analytic head serves does not follow from what is declared, made and retained"]
    if entry is None or told is None:
        return []
    node, wrong = entry["nodes"][0], []
    if (len(entry["nodes"]), entry["order"]) != (1, 0):
        wrong.append("the analytic head is not one node of order 0")
    if (node["name"], node["prefix"], node["parent"], node["entry"]) != (HEAD_NAME, [], None, told["made"]):
        wrong.append("the analytic head bears another node's name or place, or other features than those made")
    if node["reads"]["rows"] != retained:
        wrong.append(f"the analytic head read {node['reads']['rows']} records, and {retained} are retained")
    if node["solved"] not in predicate["environments"]:
        wrong.append("the analytic head was solved in an unknown environment")
    if {f"{HEAD_NAME}:weights", f"{HEAD_NAME}:bias"} != {n for n in names if n.partition(":")[0] == HEAD_NAME}:
        wrong.append("the served tensors of the analytic head are not weights and bias")
    return wrong


def proofs(predicate: Mapping[str, Any]) -> list[Finding]:
    """Verify that the request's entry is in the certified tree, and that this begins with the tree of the request's time."""
    request, ledger = predicate["request"], predicate["ledger"]
    entry, size = request["entry"], ledger["entries"]
    if not merkle.includes(bytes.fromhex(request["digest"]), entry - 1, size, request["inclusion"], ledger["root"]):
        return [violated("proofs", f"the inclusion proof of request {request['id']} does not give the ledger's root")]
    if not merkle.extends(entry, size, request["consistency"], request["root"], ledger["root"]):
        return [violated("proofs", "the ledger is not proven to continue the one at the time of the request")]
    message = f"request {request['id']} is entry {entry} of {size}, and the ledger continues that of its time"
    return [holds("proofs", message, entries=size)]


__all__ = ["AttestError", "check"]
