"""The brief of a clean room: a folder with everything that may be known there, and no deleted row.

It holds run.json's content, the slot key, the retained rows, the probe inputs and which chains survive. The clean room
derives rows, seeds and batches from that again; it never sees the run folder. Only where nodes are to be checked by themselves
(:mod:`verify.spot`) is it given tensors: those that the run stores of their ancestors.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from s3t.records import Record
from verify.derive import Prefix
from verify.evidence import Evidence
from verify.state import Node, State

PROBES = 64
PARTS = ("adapter", "head")
Scope = Literal["served", "surviving"]
"""Which nodes a clean room retrains: those behind what is served now, or every surviving one (they may serve next)."""


@dataclass(frozen=True)
class Brief:
    """What a clean room is given. ``threads`` are those of the process whose predictions are compared.

    ``nodes`` maps a node to the environment it was trained in, parents first; ``chains`` lists (shard, prefix) served.
    ``ancestors``: for nodes that are each retrained on stored tensors, these as safetensors bytes (adapter, head) by node;
    None where nodes are retrained on top of each other. ``head``: the environment of the analytic head's features, where one
    serves; it is solved from ``rows``.
    """

    run: Mapping[str, Any]
    key: bytes
    nodes: tuple[tuple[Node, Mapping[str, Any]], ...]
    chains: tuple[Node, ...]
    threads: int
    rows: tuple[Record, ...]
    probes: tuple[Record, ...]
    ancestors: Mapping[Node, tuple[bytes, bytes]] | None = None
    head: Mapping[str, Any] | None = None


def make_brief(
    evidence: Evidence,
    state: State,
    threads: int,
    scope: Scope,
    *,
    sampled: Collection[Node] = (),
    ancestors: Mapping[Node, tuple[bytes, bytes]] | None = None,
) -> Brief:
    """Return the brief for ``state``: retained rows only, whatever records.bin may still hold.

    With ``ancestors`` the ``sampled`` nodes take the place of those of ``scope``, each to be retrained on top of these.
    """
    wanted = set(sampled) if ancestors is not None else served(state) if scope == "served" else rooted(state)
    nodes = sorted(wanted, key=lambda node: (node[0], len(node[1]), node[1]))
    rows = [row.record for row in state.retained]
    return Brief(
        evidence.run,
        evidence.key,
        tuple((node, state.survivors[node].environment) for node in nodes),
        tuple((chain.shard, chain.prefix) for chain in state.chains),
        threads,
        tuple(rows),
        tuple(probes(evidence, rows)),
        ancestors,
        state.head.environment if state.head else None,
    )


def served(state: State) -> set[Node]:
    """Return the nodes of the chains that serve."""
    return {(chain.shard, chain.prefix[:i]) for chain in state.chains for i in range(1, len(chain.nodes) + 1)}


def rooted(state: State) -> set[Node]:
    """Return surviving nodes of the plan whose ancestors survive as well."""
    planned = set(state.nodes())
    return {
        (shard, prefix)
        for shard, prefix in state.survivors
        if all((shard, prefix[:i]) in state.survivors for i in range(1, len(prefix))) and (shard, prefix) in planned
    }


def probes(evidence: Evidence, retained: Sequence[Record]) -> list[Record]:
    """Return up to 64 records whose predictions are compared: test rows, else validation rows, else retained ones."""
    return list(evidence.split("test") or evidence.split("validation") or retained)[:PROBES]


def write_brief(brief: Brief, folder: Path) -> None:
    """Write ``brief`` into the new ``folder``, readable by the owner only (it holds the slot key)."""
    folder.mkdir(mode=0o700)
    facts = {
        "run": brief.run,
        "key": brief.key.hex(),
        "nodes": [[shard, list(prefix), environment] for (shard, prefix), environment in brief.nodes],
        "chains": [[shard, list(prefix)] for shard, prefix in brief.chains],
        "threads": brief.threads,
        "head": brief.head,
        "ancestors": None if brief.ancestors is None else [[shard, list(prefix)] for shard, prefix in brief.ancestors],
    }
    for number, files in enumerate((brief.ancestors or {}).values()):
        for part, raw in zip(PARTS, files, strict=True):
            (folder / f"{number}.{part}.safetensors").write_bytes(raw)
    (folder / "brief.json").write_text(json.dumps(facts), encoding="utf-8")
    for name, records in (("rows", brief.rows), ("probes", brief.probes)):
        (folder / f"{name}.jsonl").write_bytes(b"".join(record.content() + b"\n" for record in records))


def read_brief(folder: Path) -> Brief:
    """Read what :func:`write_brief` wrote."""
    facts = json.loads((folder / "brief.json").read_text(encoding="utf-8"))
    rows, asked = (
        tuple(Record.from_content(line) for line in (folder / f"{name}.jsonl").read_bytes().split(b"\n") if line)
        for name in ("rows", "probes")
    )
    ancestors = None
    if facts["ancestors"] is not None:
        ancestors = {(shard, _prefix(p)): _files(folder, i) for i, (shard, p) in enumerate(facts["ancestors"])}
    return Brief(
        facts["run"],
        bytes.fromhex(facts["key"]),
        tuple(((shard, _prefix(prefix)), environment) for shard, prefix, environment in facts["nodes"]),
        tuple((shard, _prefix(prefix)) for shard, prefix in facts["chains"]),
        facts["threads"],
        rows,
        asked,
        ancestors,
        facts["head"],
    )


def _files(folder: Path, number: int) -> tuple[bytes, bytes]:
    adapter, head = ((folder / f"{number}.{part}.safetensors").read_bytes() for part in PARTS)
    return adapter, head


def _prefix(values: Sequence[int]) -> Prefix:
    return tuple(int(value) for value in values)
