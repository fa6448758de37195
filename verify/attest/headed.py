"""The analytic head in a certificate: what is said of it, and what the run says to that.

Its tensors are in no file: they are solved from the stored features, in whole numbers up to the sums and in float64 from
there. So they are solved anew to be certified, and anew to be checked, which takes torch and an environment like the signer's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s3t.errors import S3TError
from s3t.records import sha256
from verify import derive
from verify.analytic import solve, sums, tensor_digests
from verify.attest import AttestError, RefusedError
from verify.attest.chain import Chain
from verify.attest.check import head_of, holds, undecided, violated
from verify.attest.envelope import canonical
from verify.attest.tensors import Stored
from verify.binary import CHECK, FILE, HEADER, row_check
from verify.evidence import Evidence, Row, read_evidence
from verify.machine import on_threads, processor
from verify.plans import declared_plan
from verify.report import Finding, Report
from verify.state import HEAD, HEAD_NAME, State

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from verify.plans import Head

CONTRARY = "the analytic head is not as certified"
MOST_THREADS = 1024
"""A solution on more threads than these is not tried."""


def declared(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what run.json declares of an analytic head, None if nothing: itself, its share, how it is pooled."""
    plan = config["plan"]
    if "head" not in plan:
        return None
    return {"declared": plan["head"], "share": plan["share"], "pool": plan.get("pool", "linear")}


def made_at(kinds: Collection[str]) -> int | None:
    """Return the number of the last ledger entry that says that all features were made, None without one."""
    return max((seq for seq, kind in enumerate(kinds, start=1) if kind == "head"), default=None)


def certified(
    evidence: Evidence, state: State, report: Report
) -> tuple[dict[str, Any], dict[str, Any], list[Stored]] | None:
    """Return what a certificate says of the head that serves, the environments it names, and its tensors.

    None where no head serves. AttestError if the stored features are damaged; RefusedError if the tensors are not finite, or
    not those that the audit's clean room confirmed.
    """
    import torch

    if state.head is None:
        return None
    threads, confirmed = _confirmed(report) or (torch.get_num_threads(), None)
    here = solving(threads)
    found = solved(evidence, state.head.rows, threads)
    bad = next((tensor.name for tensor in found if not tensor.finite), None)
    if bad:
        raise RefusedError(f"the served tensor {bad} holds NaN or infinity, so nothing is certified")
    if confirmed is not None and confirmed != {tensor.name.partition(":")[2]: tensor.sha256 for tensor in found}:
        raise RefusedError(
            f"the tensors of the {HEAD_NAME}, solved here, are not those that the audit confirmed; audit the run where you "
            "certify it"
        )
    environments = [dict(state.head.environment), here]
    features, solver = (sha256(canonical(environment)) for environment in environments)
    node: dict[str, Any] = {
        "entry": made_at([entry.kind for entry in evidence.entries]),
        "name": HEAD_NAME,
        "prefix": [],
        "key": state.head.key,
        "parent": None,
        "reads": _reads([str(row.commitment) for row in state.head.rows]),
        "environment": features,
        "solved": solver,
    }
    entry = {"shard": HEAD[0], "order": 0, "weight": state.share, "nodes": [node]}
    return entry, dict(zip((features, solver), environments, strict=True)), found


def _confirmed(report: Report) -> tuple[int, Mapping[str, str]] | None:
    """Return on how many threads the audit's clean room solved the head, and the digests of its tensors; None if it did not."""
    told = next((f.details["solved"] for f in report.findings if "solved" in f.details), None)
    if told is None:
        return None
    try:
        threads, tensors = told["threads"], told["tensors"]
    except (KeyError, TypeError) as error:
        raise AttestError(f"the report does not say what its clean room solved ({error}); make one anew") from error
    if not _possible(threads):
        raise AttestError(f"the report says that its clean room used {threads!r} threads; make one anew")
    return threads, tensors


def _possible(threads: Any) -> bool:
    return isinstance(threads, int) and 1 <= threads <= MOST_THREADS


def _reads(commitments: Collection[str]) -> dict[str, Any]:
    return {"root": derive.root(sorted(commitments)), "rows": len(commitments)}


def solving(threads: int) -> dict[str, Any]:
    """Return what the bits of the map from sums to tensors depend on, of the machine here and of ``threads`` threads."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "capability": capability, "processor": processor(), "threads": threads}


def solved(evidence: Evidence, rows: Collection[Row], threads: int) -> list[Stored]:
    """Return the tensors of the head over ``rows``, solved from the run's stored features on ``threads`` threads.

    AttestError for features that are missing or do not match their checks.
    """
    head, run = declared_plan(evidence.run).head, evidence.run
    assert head is not None
    classes, model = run["data"]["classes"], run["model"]
    size = head.features(int(model["layers"]), int(model["hidden"]))
    targets = {row.tag: derive.target(row.record.label, classes) for row in rows}
    read = ((features, targets[tag]) for tag, features in _features(evidence, targets, size))
    return _solved(head, sums(read, size, len(classes)), threads)


def _solved(head: Head, at: Any, threads: int) -> list[Stored]:
    with on_threads(threads):
        tensors = solve(at, head)
    digests = tensor_digests(tensors)
    return [
        Stored(
            f"{HEAD_NAME}:{name}",
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            digests[name],
            bool(tensor.isfinite().all()),
        )
        for name, tensor in sorted(tensors.items())
    ]


def _features(evidence: Evidence, tags: Collection[str], size: int) -> Iterator[tuple[str, NDArray[np.int16]]]:
    """Yield (tag, features) of the records ``tags``, one row of the file in memory at a time."""
    stride = 2 * size + CHECK
    with (evidence.folder / FILE).open("rb") as file:
        file.seek(HEADER)
        for span in (span for span in evidence.spans if span.split == "train"):
            raw = file.read(stride)
            if span.tag not in tags:
                continue
            features, check = raw[:-CHECK], raw[-CHECK:]
            if row_check(str(span.commitment), features) != check:
                raise AttestError(
                    f"features of a retained record are missing from {FILE} or do not match their check; `s3t refresh` makes "
                    "them anew"
                )
            yield span.tag, np.frombuffer(features, dtype="<i2").astype(np.int16)


def facts(chain: Chain, config: Mapping[str, Any], predicate: Mapping[str, Any]) -> Iterator[str]:
    """Yield what configuration and ledger say against what is certified of a head: whether one serves, and which."""
    told, kinds = predicate["run"].get("head"), chain.kinds[: predicate["ledger"]["entries"]]
    real, made = declared(config), made_at(kinds)
    serves = real is not None and made is not None and predicate["commitments"]["rows"] > predicate["deleted"]
    entry = head_of(predicate)
    if serves != (entry is not None):
        yield f"an analytic head {'must serve' if serves else 'cannot serve'}, and the certificate says otherwise"
    elif told is not None and told != (None if real is None else real | {"made": made}):
        yield "the declared analytic head is not that of run.json and the ledger"
    elif entry is not None and made is not None:
        (node,) = entry["nodes"]
        environments = predicate["environments"]
        if environments[node["environment"]] != chain.body(made, "head")["environment"]:
            yield "the features of the analytic head were made in another environment"
        if any(sha256(canonical(environments[node[name]])) != node[name] for name in ("environment", "solved")):
            yield "an environment of the analytic head is not the one that it names"
        elif not _possible(environments[node["solved"]]["threads"]):
            yield "the analytic head cannot have been solved on that many threads"


def compare(statement: Mapping[str, Any], run: Path, chain: Chain) -> list[Finding]:
    """Derive the head's key and reads from the run, check the features, and solve its tensors anew where that can be done."""
    predicate = statement["predicate"]
    entry, size = head_of(predicate), predicate["ledger"]["entries"]
    if entry is None:
        return []
    try:
        evidence = read_evidence(run)
    except S3TError as error:
        return [undecided("head", str(error))]
    problem = next((text for text in evidence.problems if not text.startswith("secret.key")), None)
    if problem:
        return [undecided("head", f"what the {HEAD_NAME} was solved from cannot be read: {problem}")]
    (node,) = entry["nodes"]
    then, since = _tags(chain, 0, size), _tags(chain, size, len(chain.kinds))
    spans = [span for span in evidence.spans if span.split == "train"]
    if derive.root([str(span.commitment) for span in spans]) != predicate["commitments"]["root"]:
        return [violated("head", f"{CONTRARY}: the index of records names other commitments than the ledger")]
    kept = [str(span.commitment) for span in spans if span.tag not in then]
    environment = predicate["environments"][node["environment"]]
    if node["key"] != derive.head_key(evidence.run, commitments=kept, environment=environment):
        return [violated("head", f"{CONTRARY}: its key is not the derived one (rows, head, environment)")]
    if node["reads"] != _reads(kept):
        return [violated("head", f"{CONTRARY}: it read {len(kept)} records, all that were retained")]
    found = [holds("head", f"key and reads are those of {len(kept)} retained records", rows=len(kept))]
    if since or "head" in chain.kinds[size:]:
        return found
    rows = [row for row in evidence.rows if row.split == "train" and row.tag not in then]
    if len(rows) != len(kept) or any(derive.commitment(row.salt, row.content) != row.commitment for row in rows):
        return [*found, violated("head", "a retained record is not the one that was committed to")]
    return [*found, _tensors(statement, evidence, rows, predicate["environments"][node["solved"]])]


def _tags(chain: Chain, start: int, stop: int) -> set[str]:
    """Return the tags that requests after the first ``start`` entries and up to entry ``stop`` have deleted."""
    bodies = (json.loads(chain.bodies[i]) for i in range(start, stop) if chain.kinds[i] == "request")
    return {tag for body in bodies for tag in body["tags"]}


def _tensors(
    statement: Mapping[str, Any], evidence: Evidence, rows: Collection[Row], told: Mapping[str, Any]
) -> Finding:
    name = "head tensors"
    try:
        here = solving(told["threads"])
    except ImportError:
        return undecided(name, f"the tensors of the {HEAD_NAME} can only be solved anew with torch, which is not here")
    odd = sorted(key for key in {*here, *told} if here.get(key) != told.get(key))
    if odd:
        message = (
            f"was solved with {odd[0]} {told.get(odd[0])!r}, here is {here.get(odd[0])!r}: its bits cannot be compared"
        )
        return undecided(name, f"the {HEAD_NAME} {message}")
    try:
        found = solved(evidence, rows, here["threads"])
    except (AttestError, RuntimeError) as error:  # damaged features; features that have no solution, too little memory
        return undecided(name, f"the {HEAD_NAME} cannot be solved anew: {error}")
    real = {tensor.name: tensor.subject() for tensor in found}
    signed = {s["name"]: s for s in statement["subject"] if s["name"].partition(":")[0] == HEAD_NAME}
    if real != signed:
        first = min(key for key in {*real, *signed} if real.get(key) != signed.get(key))
        return violated(name, f"{first}, solved anew from the stored features, is not the tensor that was certified")
    return holds(name, f"{len(found)} tensors, solved anew from the stored features, have the certified bytes")
