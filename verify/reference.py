"""A reference beside the audited system: fitted through the contract, brought to the same state, compared bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.contract import Progress, Provenance, UnlearningSystem
from s3t.records import Record
from verify.case import SAME, CannotPlayError, Event, Lab, Variant, play
from verify.compare import compare_tensors
from verify.replay import differing, predicted, serving
from verify.report import Finding, Verdict
from verify.state import HEAD, HEAD_NAME, Node, State, node_name

if TYPE_CHECKING:
    from torch import Tensor


def elsewhere(state: State) -> str:
    """Return why references made here cannot have the bits of what survives in ``state``, or nothing.

    Bits are a function of the environment too (docs/DERIVATION.md, "Digests": it is part of every node's key).
    """
    from s3t.backbone import default_device, environment
    from s3t.engine.mode import Mode

    recorded = {where: node.environment for where, node in sorted(state.survivors.items())}
    for where, then in (recorded | ({HEAD: state.head.environment} if state.head else {})).items():
        here = environment(default_device(), Mode.recorded(then))
        odd = sorted(name for name in {*here, *then} if here.get(name) != then.get(name))
        if odd:
            was, now = then.get(odd[0]), here.get(odd[0])
            return f"{node_name(*where)} was trained with {odd[0]} {was!r}, references are with {now!r}"
    return ""


def against_reference(
    system: UnlearningSystem,
    lab: Lab,
    records: Sequence[Record],
    history: Sequence[Event],
    asked: Sequence[Record],
    check: str,
    *,
    variant: Variant = SAME,
    survivors: Collection[Node] | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Fit a reference on ``records``, repeat ``history``, and return how ``system`` differs; empty means the same bits.

    ``survivors``: the nodes that must survive in the reference too, where the laboratory can tell; otherwise the history
    cannot be repeated (an unfinished refresh), which is UNDECIDED, as is a reference that cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix="s3t-reference-") as name:
        folder = Path(name) / "run"
        reference: Any = lab.make(folder, variant)
        try:
            play(reference, records, history, progress)
            if survivors is not None and hasattr(lab, "survivors") and lab.survivors(folder) != frozenset(survivors):
                message = "the run's history (an unfinished refresh) cannot be repeated: refresh it and audit again"
                return [Finding(check, Verdict.UNDECIDED, message)]
            return list(differences(system, system.provenance(), reference, asked, check))
        except CannotPlayError as error:
            return [Finding(check, Verdict.UNDECIDED, str(error))]
        finally:
            getattr(reference, "close", lambda: None)()


def differences(
    system: UnlearningSystem, provenance: Provenance, reference: UnlearningSystem, asked: Sequence[Record], check: str
) -> Iterator[Finding]:
    """Yield how ``system`` differs from ``reference`` in selection, offline shards, served tensors and predictions."""
    other = reference.provenance()
    ours, theirs = _selection(provenance), _selection(other)
    for shard in sorted({*ours, *theirs}):
        if ours.get(shard) != theirs.get(shard):
            message = f"serves {_chain(ours.get(shard))}; the reference {_chain(theirs.get(shard))}"
            yield Finding(check, Verdict.VIOLATED, message, HEAD_NAME if shard == HEAD[0] else f"shard {shard}")
    if tuple(sorted(provenance.offline)) != tuple(sorted(other.offline)):
        message = f"offline are {list(provenance.offline)}, in the reference {list(other.offline)}"
        yield Finding(check, Verdict.VIOLATED, message)
    live, expected = _weights(system, provenance), _weights(reference, other)
    for node in sorted({*live, *expected}):
        yield from differing(compare_tensors(expected.get(node, {}), live.get(node, {})), node_name(*node), check)
    if asked:
        both = compare_tensors(predicted(reference, asked), predicted(system, asked))
        yield from differing(both, "predictions", check)


Selected = tuple[int, tuple[int, ...], float]


def _selection(provenance: Provenance) -> dict[int, Selected]:
    return {c.shard: (c.order, tuple(c.nodes[-1].prefix) if c.nodes else (), c.weight) for c in provenance.chains}


def _chain(selected: Selected | None) -> str:
    if selected is None:
        return "nothing"
    order, prefix, weight = selected
    return f"order {order}, slices {list(prefix)}, weight {weight}"


def _weights(system: UnlearningSystem, provenance: Provenance) -> dict[Node, Mapping[str, Tensor]]:
    """Return tensors by node; a name that no served node has is kept apart, as shard -2."""
    nodes = {n.name: (chain.shard, tuple(n.prefix)) for chain in provenance.chains for n in chain.nodes}
    live = serving(system)
    odd = {f"{name}: {tensor}": value for name in live if name not in nodes for tensor, value in live[name].items()}
    named: dict[Node, Mapping[str, Tensor]] = {nodes[name]: live[name] for name in live if name in nodes}
    return named | ({(-2, ()): odd} if odd else {})
