"""E1a: compare what is served, and what is stored, with a clean room that never saw a deleted row. 0 ULP.

The clean room runs in a fresh process with a clean environment. A node whose recorded environment (threads, torch,
instruction set, ...) is not to be had here is UNDECIDED. Where a full replay is too dear, a random sample of nodes is
retrained instead (:mod:`verify.spot`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s3t import errors
from s3t.contract import Provenance, UnlearningSystem
from s3t.records import Record
from verify import derive, report
from verify.analytic import tensor_digests
from verify.brief import Brief, Scope, make_brief, probes, rooted, served, write_brief
from verify.cleanroom import OUTCOME, retrain
from verify.compare import Difference, compare_tensors
from verify.evidence import Evidence
from verify.numerics import Kernel
from verify.report import Finding, Verdict
from verify.spot import detections, draw_nodes
from verify.state import HEAD, HEAD_NAME, Node, State, node_name
from verify.stored import Stored, read_stored

if TYPE_CHECKING:
    from torch import Tensor

CHECK = "E1a clean room"
PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "ATEN_CPU_CAPABILITY")
"""Environment variables that a clean room inherits, besides those that begin with S3T_ or HF_ (where models lie)."""


@dataclass(frozen=True)
class Outcome:
    """What a clean room made: tensors per node, why others are undecided, the scores of the probes, and what each took.

    The analytic head stands among the nodes; ``features``: the digests of the features that it was solved from, by id.
    """

    tensors: Mapping[Node, Mapping[str, Tensor]]
    undecided: Mapping[Node, str]
    scores: Tensor | None
    spent: Mapping[Node, Mapping[str, float]]
    features: Mapping[str, str]


def check_cleanroom(
    system: UnlearningSystem,
    provenance: Provenance,
    evidence: Evidence,
    state: State,
    *,
    isolate: bool = True,
    scope: Scope = "served",
    kernel: Kernel = "shared",
    sample: int | None = None,
    sample_seed: int = 0,
) -> list[Finding]:
    """Retrain the nodes of ``scope`` apart and compare tensors, stored files and predictions bit for bit.

    ``kernel``: "oracle" shares no numeric code with the system. ``sample``: retrain that many random surviving nodes instead,
    each on top of its stored ancestors (:mod:`verify.spot` says what that is worth); they are drawn by the digest of the
    ledger's last entry and ``sample_seed``, which the auditor draws after that entry was shown. What serves is then compared
    with what is stored, for all served nodes, and predictions are only if all of these were drawn.
    """
    import torch

    if not state.chains and state.head is None:
        return [nothing_served(system, evidence, CHECK)]
    threads, stored = torch.get_num_threads(), dict[Node, Stored]()
    found: list[Finding] = []
    if sample is None:
        brief = make_brief(evidence, state, threads, scope)
    else:
        drawn = draw_nodes(rooted(state), sample, str(evidence.checked["head"]), sample_seed)
        above = [(shard, prefix[:i]) for shard, prefix in drawn for i in range(1, len(prefix))]
        for node in sorted({*above, *served(state)}):
            read, faults = read_stored(evidence.folder, state, node, CHECK)
            found += faults
            stored |= {node: read} if read else {}
        ready = [(shard, p) for shard, p in drawn if all((shard, p[:i]) in stored for i in range(1, len(p)))]
        ancestors = {node: (stored[node].adapter, stored[node].head) for node in sorted({*above} & {*stored})}
        brief = make_brief(evidence, state, threads, scope, sampled=ready, ancestors=ancestors)
    outcome = _made(brief, isolate, kernel)
    if isinstance(outcome, str):
        return [*found, Finding(CHECK, Verdict.UNDECIDED, f"the clean room failed: {outcome}")]
    found += [Finding(CHECK, Verdict.UNDECIDED, why, node_name(*node)) for node, why in outcome.undecided.items()]
    reference = {node: one.tensors for node, one in stored.items()} | dict(outcome.tensors)
    found += served_differences(system, provenance, state, reference, CHECK)
    found += [
        f for node in outcome.tensors if node != HEAD for f in _stored(evidence, state, outcome, node) if f not in found
    ]
    found += _features(evidence, outcome)
    if outcome.scores is not None:
        found += prediction_differences(system, brief, outcome.scores)
    elif brief.probes and not outcome.undecided and served(state) <= set(outcome.tensors):
        found.append(Finding(CHECK, Verdict.UNDECIDED, "the clean room gave no predictions"))
    if not found:
        details: dict[str, Any] = {"isolated": isolate, "kernel": kernel, **_cost(evidence, state, outcome)}
        if sample is not None:
            nodes = len(rooted(state))
            made = len(set(outcome.tensors) - {HEAD})
            details |= {"of": nodes, "sampled": made, "sample_seed": sample_seed, "detects": detections(nodes, made)}
            if outcome.scores is None:
                details["note"] = "predictions were not compared: not every served node was drawn"
        found.append(_holds(brief, outcome, details))
    return found


def _holds(brief: Brief, outcome: Outcome, details: Mapping[str, Any]) -> Finding:
    tensors = sum(len(named) for named in outcome.tensors.values())
    predictions, nodes = len(brief.probes) if outcome.scores is not None else 0, len(set(outcome.tensors) - {HEAD})
    drawn = f"{nodes} of {details['of']} nodes" if "of" in details else f"{nodes} nodes"
    solved = {"threads": brief.threads, "tensors": tensor_digests(outcome.tensors.get(HEAD, {}))}
    head = {"features": len(outcome.features), "solved": solved} if HEAD in outcome.tensors else {}
    rows, also = f"{len(brief.rows)} retained rows", " and the analytic head" if head else ""
    message = f"{drawn}{also} ({tensors} tensors) retrained on {rows}, {predictions} predictions: the same bits"
    counts = {"nodes": nodes, "tensors": tensors, "ulps": 0, **head, **details}
    return Finding(CHECK, Verdict.HOLDS, message, details=counts)


def _cost(evidence: Evidence, state: State, outcome: Outcome) -> dict[str, Any]:
    """Return what retraining took and what the ledger books for the same nodes; None where it books nothing."""
    bodies = {entry.seq: entry.body for entry in evidence.entries}
    booked = [bodies[state.survivors[node].seq].get("cost") or {} for node in outcome.spent]
    found: dict[str, Any] = {}
    for unit in ("record_passes", "layer_passes", "seconds"):
        spent = sum(cost[unit] for cost in outcome.spent.values())
        ledger = sum(cost[unit] for cost in booked) if all(unit in cost for cost in booked) else None
        found[unit], found[f"{unit}_booked"] = spent, ledger
        found[f"{unit}_ratio"] = spent / ledger if ledger else None
    return found


def _made(brief: Brief, isolate: bool, kernel: Kernel) -> Outcome | str:
    """Run the clean room; return what it made, or why it failed."""
    with tempfile.TemporaryDirectory(prefix="s3t-clean-room-") as name:
        failure = _run(brief, Path(name), isolate, kernel)
        return failure or _outcome(brief, Path(name) / "out")


def _run(brief: Brief, folder: Path, isolate: bool, kernel: Kernel) -> str:
    """Run the clean room; return why it failed, or nothing."""
    if not isolate:
        try:
            retrain(brief, folder / "out", kernel)
        except errors.S3TError as error:
            return str(error)
        return ""
    write_brief(brief, folder / "brief")
    place = [str(folder / "brief"), str(folder / "out"), "--kernel", kernel]
    command = [sys.executable, "-P", "-m", "verify.cleanroom", *place]
    done = subprocess.run(command, env=_clean(brief), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    last = done.stderr.strip().splitlines()[-1:] or [f"it exited with {done.returncode}"]
    return last[0]


def _clean(brief: Brief) -> dict[str, str]:
    homes = dict.fromkeys(str(Path(str(module.__file__)).resolve().parents[1]) for module in (report, errors))
    kept = {k: v for k, v in os.environ.items() if k in PASSED_ON or k.startswith(("S3T_", "HF_"))}
    return kept | {
        "PYTHONPATH": os.pathsep.join(homes),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(brief.threads),
    }


def _outcome(brief: Brief, out: Path) -> Outcome:
    from safetensors.torch import load

    told = json.loads((out / OUTCOME).read_text(encoding="utf-8"))
    undecided = {brief.nodes[int(number)][0]: str(why) for number, why in told["undecided"].items()}
    tensors = {
        node: load((out / f"{number}.safetensors").read_bytes())
        for number, (node, _) in enumerate(brief.nodes)
        if node not in undecided
    }
    head: Mapping[str, Any] = told["head"]
    if "undecided" in head:
        undecided[HEAD] = str(head["undecided"])
    elif head:
        tensors[HEAD] = load((out / "head.safetensors").read_bytes())
    scores = load((out / "predictions.safetensors").read_bytes())["scores"] if told["predicted"] else None
    spent = {brief.nodes[int(number)][0]: cost for number, cost in told["spent"].items()}
    return Outcome(tensors, undecided, scores, spent, head.get("features", {}))


def served_differences(
    system: UnlearningSystem,
    provenance: Provenance,
    state: State,
    reference: Mapping[Node, Mapping[str, Tensor]],
    check: str,
) -> Iterator[Finding]:
    """Yield how the tensors that serve differ from ``reference`` (node -> all tensors that its training gives).

    Required of a chain are the head of its last node and every adapter that no later stage continues. A system may show
    more of a node; what it shows must match.
    """
    live = serving(system)
    names = {(chain.shard, tuple(n.prefix)): n.name for chain in provenance.chains for n in chain.nodes}
    for odd in sorted(set(live) - set(names.values())):
        yield Finding(check, Verdict.VIOLATED, f"tensors of {odd!r} serve, but no served chain has this node")
    if HEAD in reference:
        yield from differing(compare_tensors(reference[HEAD], live.get(names.get(HEAD, ""), {})), HEAD_NAME, check)
    for chain in state.chains:
        adapters = [stage.adapter for stage in state.plan.stages[: len(chain.nodes)]]
        for position, node in enumerate(chain.nodes):
            key = (node.shard, node.prefix)
            if key not in reference:
                continue
            last = position == len(chain.nodes) - 1
            continued = adapters[position] in adapters[position + 1 :]
            actual = live.get(names.get(key, ""), {})
            required = {
                name: tensor
                for name, tensor in reference[key].items()
                if name in actual or (last if name.startswith("head.") else not continued)
            }
            yield from differing(compare_tensors(required, actual), node_name(*key), check)


def differing(differences: list[Difference], node: str, check: str, where: str = "") -> Iterator[Finding]:
    """Yield one finding for a node that differs: its first tensor, and how far over all of them."""
    if not differences:
        return
    first = differences[0]
    ulps = [d.ulps for d in differences if d.ulps is not None]
    message = f"{where}{first.message}" + (f"; {len(differences)} tensors differ" if len(differences) > 1 else "")
    details = {"tensors": len(differences), "max_ulps": max(ulps, default=None), "reason": first.reason}
    yield Finding(check, Verdict.VIOLATED, message, node, first.tensor, details)


def _stored(evidence: Evidence, state: State, outcome: Outcome, node: Node) -> Iterator[Finding]:
    """Compare the files of a retrained node: they are what the next start of the system will serve."""
    stored, faults = read_stored(evidence.folder, state, node, CHECK)
    yield from faults
    if stored is not None:
        differences = compare_tensors(outcome.tensors[node], stored.tensors)
        yield from differing(differences, node_name(*node), CHECK, "on disk: ")


def _features(evidence: Evidence, outcome: Outcome) -> Iterator[Finding]:
    """Compare the stored features of every retained record: what the next start of the system will sum up.

    What does not match its check is damaged, and the scan tells of it.
    """
    stored = {row.tag: row.digest for row in evidence.features if row.sound}
    tags = {name: derive.tag(evidence.key, name) for name in outcome.features}
    odd = sorted(name for name, digest in outcome.features.items() if stored.get(tags[name], digest) != digest)
    if odd:
        message = f"stored features of {len(odd)} records are not those that the frozen model makes of them"
        yield Finding(CHECK, Verdict.VIOLATED, f"{message}, first {odd[0]!r}", HEAD_NAME, details={"records": len(odd)})


def prediction_differences(system: UnlearningSystem, brief: Brief, expected: Tensor) -> Iterator[Finding]:
    """Yield how the system's predictions of the probes differ from ``expected``."""
    actual = predicted(system, brief.probes)
    yield from differing(compare_tensors({"scores": expected}, actual), "predictions", CHECK)


def serving(system: UnlearningSystem) -> Mapping[str, Mapping[str, Tensor]]:
    """Return the tensors that serve, or nothing where the system is offline."""
    try:
        return system.weights()
    except errors.OfflineError:
        return {}


def predicted(system: UnlearningSystem, asked: Sequence[Record]) -> dict[str, Tensor]:
    """Return the system's scores of ``asked``, or nothing where it is offline."""
    import torch

    try:
        return {"scores": torch.from_numpy(np.array(system.predict([record.inputs for record in asked])))}
    except errors.OfflineError:
        return {}


def nothing_served(system: UnlearningSystem, evidence: Evidence, check: str) -> Finding:
    """Return whether a system without any surviving chain indeed refuses to predict."""
    asked = probes(evidence, [row.record for row in evidence.train])
    if not predicted(system, asked):
        return Finding(check, Verdict.HOLDS, "no chain survives and nothing is served")
    return Finding(check, Verdict.VIOLATED, "no chain survives, yet the system predicts")
