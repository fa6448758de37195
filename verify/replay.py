"""E1a: compare what is served, and what is stored, with a clean room that never saw a deleted row. 0 ULP.

The clean room runs in a fresh process with a clean environment. A node whose recorded environment (threads, torch,
instruction set, ...) is not to be had here is UNDECIDED.
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
from typing import TYPE_CHECKING

import numpy as np

from s3t import errors
from s3t.contract import Provenance, UnlearningSystem
from s3t.records import Record
from verify import derive, report
from verify.brief import Brief, Scope, make_brief, probes, write_brief
from verify.cleanroom import OUTCOME, retrain
from verify.compare import Difference, compare_tensors
from verify.evidence import Evidence
from verify.report import Finding, Verdict
from verify.state import Node, State, node_name

if TYPE_CHECKING:
    from torch import Tensor

CHECK = "E1a clean room"
PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "ATEN_CPU_CAPABILITY")
"""Environment variables that a clean room inherits, besides those that begin with S3T_ or HF_ (where models lie)."""


@dataclass(frozen=True)
class Outcome:
    """What a clean room made: tensors per node, why others are undecided, and the scores of the probes."""

    tensors: Mapping[Node, Mapping[str, Tensor]]
    undecided: Mapping[Node, str]
    scores: Tensor | None


def check_cleanroom(
    system: UnlearningSystem,
    provenance: Provenance,
    evidence: Evidence,
    state: State,
    *,
    isolate: bool = True,
    scope: Scope = "served",
) -> list[Finding]:
    """Retrain the nodes of ``scope`` apart and compare tensors, stored files and predictions bit for bit."""
    import torch

    if not state.chains:
        return [nothing_served(system, evidence, CHECK)]
    brief = make_brief(evidence, state, torch.get_num_threads(), scope)
    with tempfile.TemporaryDirectory(prefix="s3t-clean-room-") as name:
        failure = _run(brief, Path(name), isolate)
        if failure:
            return [Finding(CHECK, Verdict.UNDECIDED, f"the clean room failed: {failure}")]
        outcome = _outcome(brief, Path(name) / "out")
    found = [Finding(CHECK, Verdict.UNDECIDED, why, node_name(*node)) for node, why in outcome.undecided.items()]
    found += served_differences(system, provenance, state, outcome.tensors, CHECK)
    found += _stored(evidence, state, outcome)
    if outcome.scores is not None:
        found += prediction_differences(system, brief, outcome.scores)
    elif brief.probes and not outcome.undecided:
        found.append(Finding(CHECK, Verdict.UNDECIDED, "the clean room gave no predictions"))
    if not found:
        tensors = sum(len(named) for named in outcome.tensors.values())
        message = (
            f"{len(outcome.tensors)} nodes ({tensors} tensors) retrained on {len(brief.rows)} retained rows, "
            f"{len(brief.probes)} predictions: the same bits"
        )
        details = {"nodes": len(outcome.tensors), "tensors": tensors, "ulps": 0, "isolated": isolate}
        found.append(Finding(CHECK, Verdict.HOLDS, message, details=details))
    return found


def _run(brief: Brief, folder: Path, isolate: bool) -> str:
    """Run the clean room; return why it failed, or nothing."""
    if not isolate:
        try:
            retrain(brief, folder / "out")
        except errors.S3TError as error:
            return str(error)
        return ""
    write_brief(brief, folder / "brief")
    command = [sys.executable, "-P", "-m", "verify.cleanroom", str(folder / "brief"), str(folder / "out")]
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
    scores = load((out / "predictions.safetensors").read_bytes())["scores"] if told["predicted"] else None
    return Outcome(tensors, undecided, scores)


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


def _stored(evidence: Evidence, state: State, outcome: Outcome) -> Iterator[Finding]:
    """Compare the files of every retrained node: they are what the next start of the system will serve."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    for node, expected in outcome.tensors.items():
        survivor = state.survivors[node]
        folder = evidence.folder / "nodes" / survivor.key
        full = state.plan.stages[len(node[1]) - 1].kind == "full"
        actual: dict[str, Tensor] = {}
        adapter = "model" if full else "adapter_model"
        for part, file, recorded in (("adapter", adapter, survivor.tensors), ("head", "head", survivor.head)):
            try:
                read = load((folder / f"{file}.safetensors").read_bytes())
            except (OSError, SafetensorError) as error:
                message = f"{file}.safetensors cannot be read ({type(error).__name__})"
                yield Finding(CHECK, Verdict.UNDECIDED, message, node_name(*node))
                break
            if derive.tensors_digest(read) != recorded:
                message = f"the ledger's digest of its {part} is not that of the tensors in {file}.safetensors"
                yield Finding(CHECK, Verdict.VIOLATED, message, node_name(*node))
            actual |= {f"{part}.{name}": tensor for name, tensor in read.items()}
        else:
            yield from differing(compare_tensors(expected, actual), node_name(*node), CHECK, "on disk: ")


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
