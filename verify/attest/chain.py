"""The ledger read fast: one query, the hash chain over all entries, what survived at any length. No torch, no records."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from verify import derive
from verify.attest import AttestError


class BrokenError(AttestError):
    """The ledger can be read, but is not a chain: an entry was lost, moved or rewritten."""


@dataclass(frozen=True)
class Chain:
    """The entries of a ledger whose hash chain holds. Position i is entry i + 1; ``bodies`` as stored."""

    leaves: Sequence[bytes]
    kinds: Sequence[str]
    bodies: Sequence[str]

    def body(self, seq: int, kind: str) -> dict[str, Any]:
        """Return the body of entry ``seq``. BrokenError if it is not of ``kind`` or no object."""
        if not 1 <= seq <= len(self.kinds) or self.kinds[seq - 1] != kind:
            raise BrokenError(f"entry {seq} of the ledger is no {kind} entry")
        found = json.loads(self.bodies[seq - 1])
        if not isinstance(found, dict):
            raise BrokenError(f"the body of entry {seq} is no object")
        return found


def read_chain(path: Path) -> Chain:
    """Read and verify a ledger. AttestError if it cannot be read, BrokenError if an entry is not what follows."""
    if not path.is_file():
        raise AttestError(f"{path.name} is missing")
    try:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return _follow(database.execute("SELECT seq, kind, body, previous, digest FROM entries ORDER BY seq"))
        finally:
            database.close()
    except sqlite3.Error as error:
        raise AttestError(f"{path.name} cannot be read: {error}") from error


def _follow(rows: Iterable[tuple[Any, ...]]) -> Chain:
    """Return the entries in ``rows``, each digest computed from its content and the digest before it."""
    leaves, kinds, bodies = list[bytes](), list[str](), list[str]()
    before, sha, quoted = "", hashlib.sha256, encode_basestring
    for position, (seq, kind, body, previous, digest) in enumerate(rows, start=1):
        if not (isinstance(kind, str) and isinstance(body, str)) or seq != position or previous != before:
            raise BrokenError(f"the ledger's hash chain breaks at entry {position}")
        text = f'[{seq},{quoted(kind)},{quoted(body)},"{before}"]'
        leaf = sha(text.encode("utf-8", "surrogatepass"))
        before = leaf.hexdigest()
        if digest != before:
            raise BrokenError(f"the ledger's hash chain breaks at entry {position} ({kind})")
        leaves.append(leaf.digest())
        kinds.append(intern(kind))
        bodies.append(body)
    return Chain(leaves, kinds, bodies)


class Trained(NamedTuple):
    """A node as its train entry tells it; ``rows`` is how many it read, all retained for as long as it survives."""

    key: str
    parent: str | None
    seq: int
    rows: int


@dataclass(frozen=True)
class Survivors:
    """Of the first entries of a ledger: the surviving nodes by (shard, prefix), the orders in force, the tombstones."""

    nodes: Mapping[tuple[int, tuple[int, ...]], Trained]
    orders: tuple[tuple[int, ...], ...]
    tombstones: int

    def longest(self, shard: int, order: Sequence[int]) -> list[Trained]:
        """Return the chain of one order: surviving nodes from the first stage on, each on the node before."""
        found: list[Trained] = []
        for length in range(1, len(order) + 1):
            node = self.nodes.get((shard, tuple(order[:length])))
            if node is None or node.parent != (found[-1].key if found else None):
                break
            found.append(node)
        return found


def survivors(chain: Chain, size: int, orders: Sequence[Sequence[int]], slices: int) -> Survivors:
    """Return what survived after the first ``size`` entries (docs/DERIVATION.md, "What is served")."""
    last: dict[tuple[int, tuple[int, ...]], int] = {}
    hits: dict[tuple[int, int], int] = {}
    tombstones: set[str] = set()
    now = tuple(tuple(order) for order in orders)
    for position in range(size):
        kind = chain.kinds[position]
        if kind == "request":
            body = json.loads(chain.bodies[position])
            tombstones.update(body["tags"])
            for shard, piece in body["slots"]:
                hits[shard, piece] = position + 1
        elif kind == "train":
            last[_node(chain.bodies[position])] = position + 1
        elif kind == "extend":
            now = derive.cyclic(slices, int(json.loads(chain.bodies[position])["budget"]))
    alive = {}
    for (shard, prefix), seq in last.items():
        if all(hits.get((shard, piece), 0) < seq for piece in prefix):
            body = chain.body(seq, "train")
            alive[shard, prefix] = Trained(body["key"], body["parent"], seq, body["rows"])
    return Survivors(alive, now, len(tombstones))


_TAIL = re.compile(
    r'"prefix":\[([0-9,]+)\],"reads":"[0-9a-f]*","rows":[0-9]+,"shard":([0-9]+),"tensors":"[0-9a-f]*"\}\Z'
)
"""How the body of a train entry ends in its canonical form."""


def _node(text: str) -> tuple[int, tuple[int, ...]]:
    """Return (shard, prefix) of the body of a train entry, read from its end where that is as it is always written."""
    found = _TAIL.match(text, max(0, text.rfind('"prefix":[')))
    if found:
        return int(found[2]), tuple(map(int, found[1].split(",")))
    body = json.loads(text)
    return body["shard"], tuple(body["prefix"])
