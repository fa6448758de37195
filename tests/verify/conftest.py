"""A forged run folder, written from docs/DERIVATION.md without the suite, and a real one on the tiny model."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from s3t.contract import NodeFacts, Provenance, ServedChain
from s3t.records import Layout, Recipe, Record, canonical_json, sha256
from verify import derive
from verify.evidence import Evidence, entry_digest, read_evidence
from verify.plans import documented_plan
from verify.state import State, derive_state

KEY = bytes(range(32))
ENVIRONMENT = {"threads": 1, "torch": "0"}
WORDS = ["amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty"]


def make_records(count: int, name: str = "row") -> list[Record]:
    return [
        Record(
            f"{name}-{i:03d}",
            {"text": f"{WORDS[i % 10]} {WORDS[(i * 7 + 3) % 10]} {name} sentence {i:03d}" + " more" * (i % 4)},
            i % 3,
        )
        for i in range(count)
    ]


@dataclass
class Forge:
    """Writes a run folder fact by fact; tests spoil one of them."""

    folder: Path
    shards: int = 2
    slices: int = 2
    budget: int = 2
    method: str = "s3t"
    records: Sequence[Record] = field(default_factory=lambda: make_records(16))
    test: Sequence[Record] = field(default_factory=lambda: make_records(3, "probe"))
    recipe: Recipe = field(default_factory=Recipe)
    head: Mapping[str, Any] | None = None
    share: float = 0.25
    entries: list[tuple[int, str, str, str, str]] = field(default_factory=list)

    def write(self) -> Forge:
        """Write a complete run: everything trained, nothing deleted."""
        plan = documented_plan(
            self.method,
            shards=self.shards,
            slices=self.slices,
            budget=self.budget,
            layers=4,
            epochs=self.recipe.epochs,
        )
        assert plan is not None
        self.run = {
            "format": 4,
            "s3t": "0",
            "kernel": "1",
            "plan": {
                "method": plan.method,
                "layout": {"shards": plan.shards, "slices": plan.slices, "budget": plan.budget},
                "orders": [list(order) for order in plan.orders],
                "stages": [
                    {"adapter": s.adapter, "kind": s.kind, "layers": list(s.layers), "epochs": s.epochs}
                    for s in plan.stages
                ],
                "cumulative": True,
                "eager": plan.eager,
            },
            "recipe": self.recipe.to_json(),
            "model": {"name": "none", "digest": "base", "layers": 4, "hidden": 8},
            "data": {"name": "forged", "source": "", "digest": "", "classes": ["a", "b", "c"]},
            "seed": 7,
        }
        if self.head is not None:
            self.run["plan"] |= {"head": dict(self.head), "share": self.share}
        self.folder.mkdir()
        (self.folder / "nodes").mkdir()
        raw = json.dumps(self.run).encode()
        (self.folder / "run.json").write_bytes(raw)
        (self.folder / "secret.key").write_text(KEY.hex())
        self._databases()
        commitments = sorted(row[6] for row in self.rows if row[4] == "train")
        (self.folder / "commitments").write_bytes(bytes.fromhex("".join(commitments)))
        committed = {"root": derive.root(commitments), "key": sha256(b"s3t slot key v1\x00" + KEY)}
        self.enter("create", {"run": sha256(raw), "rows": len(self.records), **committed})
        for shard in range(plan.shards):
            for order in plan.orders:
                for length in range(1, len(plan.stages) + 1):
                    if (shard, order[:length]) not in self.trained:
                        self.train(shard, order[:length])
        if self.head is not None:
            self.make_features()
        return self

    @property
    def features(self) -> Path:
        """The file of features."""
        return self.folder / "features.bin"

    @property
    def width(self) -> int:
        """Bytes of a record's features: those of 4 layers of 8, as often as there are poolings, and random ones."""
        assert self.head is not None
        return 2 * ((len(self.head["layers"]) or 4) * len(self.head["poolings"]) * 8 + self.head["random"])

    def make_features(self) -> None:
        """Write made-up features of all records, and the entry that says so."""
        rows = [row for row in self.rows if row[4] == "train"]
        header = b"s3t feat" + (self.width // 2).to_bytes(8, "big")
        self.features.write_bytes(header + b"".join(self.feature_row(row[1], row[6]) for row in rows))
        self.enter("head", {"features": self.width // 2, "rows": len(rows), "environment": ENVIRONMENT, "cost": {}})

    def feature_row(self, name: str, commitment: str) -> bytes:
        """Return a row of features.bin."""
        raw = (hashlib.sha256(name.encode()).digest() * self.width)[: self.width]
        about = canonical_json(ENVIRONMENT) + b"\x00" + bytes.fromhex(commitment)
        return raw + hashlib.sha256(b"s3t features v2\x00" + about + raw).digest()[:16]

    def put_features(self, name: str, raw: bytes, at: int = 0) -> None:
        """Write bytes into a record's row of features.bin."""
        number = [record.id for record in self.records].index(name)
        with self.features.open("r+b") as file:
            file.seek(16 + number * (self.width + 16) + at)
            file.write(raw)

    def _databases(self) -> None:
        self.ledger = sqlite3.connect(self.folder / "ledger.sqlite")
        self.ledger.execute(
            "CREATE TABLE entries(seq INTEGER PRIMARY KEY, kind TEXT, body TEXT, previous TEXT, digest TEXT)"
        )
        self.store = sqlite3.connect(self.folder / "records.sqlite")
        self.store.execute(
            "CREATE TABLE records(tag TEXT, shard INTEGER, slice INTEGER, split TEXT, commitment TEXT, start INTEGER,"
            ' length INTEGER, "check" TEXT)'
        )
        self.bin.write_bytes(b"s3t rows" + bytes(8))
        self.trained: dict[tuple[int, tuple[int, ...]], str] = {}
        self.rows = [self.row(record, "train") for record in self.records]
        self.rows += [self.row(record, "test") for record in self.test]
        for row in self.rows:
            self.put(row)

    def row(self, record: Record, split: str) -> tuple[Any, ...]:
        salt = sha256(record.id.encode()).encode()[:16]
        slot = derive.slot(KEY, record.id, self.shards, self.slices) if split == "train" else (None, None)
        committed = derive.commitment(salt, record.content())
        return (derive.tag(KEY, record.id), record.id, *slot, split, salt, committed, record.content())

    @property
    def bin(self) -> Path:
        """The file of contents."""
        return self.folder / "records.bin"

    def put(self, row: tuple[Any, ...]) -> None:
        """Store a row behind the others: salt and content, and where they lie."""
        tag, _, shard, slice_, split, salt, committed, content = row
        where = (self.bin.stat().st_size, len(salt + content))
        with self.bin.open("ab") as file:
            file.write(salt + content)
        fields = (tag, shard, slice_, split, committed, *where)
        self.store.execute("INSERT INTO records VALUES(?,?,?,?,?,?,?,?)", (*fields, derive.index_check(fields)))
        self.store.commit()

    def reseal(self) -> None:
        """Write the index's checks anew, as whoever changes it can."""
        columns = "tag, shard, slice, split, commitment, start, length"
        for number, *fields in self.store.execute(f"SELECT rowid, {columns} FROM records").fetchall():
            self.store.execute('UPDATE records SET "check"=? WHERE rowid=?', (derive.index_check(fields), number))
        self.store.commit()

    def span(self, name: str) -> tuple[int, int]:
        """Return start and length of a record in the file of contents."""
        query = "SELECT start, length FROM records WHERE tag=?"
        found: tuple[int, int] = self.store.execute(query, (derive.tag(KEY, name),)).fetchone()
        return found

    def overwrite(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Replace salt and content of a record; what follows moves."""
        start, length = self.span(name)
        raw = self.bin.read_bytes()
        new = change(raw[start : start + length])
        self.bin.write_bytes(raw[:start] + new + raw[start + length :])
        self.store.execute("UPDATE records SET start=start+? WHERE start>?", (len(new) - length, start))
        self.store.execute("UPDATE records SET length=? WHERE start=?", (len(new), start))
        self.reseal()

    def erase(self, name: str) -> None:
        """Overwrite a record with zeros, as a deletion does."""
        self.overwrite(name, lambda span: bytes(len(span)))

    def restore(self, record: Record) -> None:
        """Write an erased training record back to its place."""
        row = self.row(record, "train")
        self.overwrite(record.id, lambda _: row[5] + row[7])

    def update(self, assignment: str, *names: str) -> None:
        """Change the index's row of each record."""
        for name in names:
            self.store.execute(f"UPDATE records SET {assignment} WHERE tag=?", (derive.tag(KEY, name),))
        self.reseal()

    def unlink(self, *names: str) -> None:
        """Take records out of the index and leave their bytes."""
        for name in names:
            self.store.execute("DELETE FROM records WHERE tag=?", (derive.tag(KEY, name),))
        self.store.commit()

    def enter(self, kind: str, body: Mapping[str, Any]) -> None:
        seq, previous = len(self.entries) + 1, self.entries[-1][4] if self.entries else ""
        text = canonical_json(body).decode()
        self.entries.append((seq, kind, text, previous, entry_digest(seq, kind, text, previous)))
        self.ledger.execute("INSERT INTO entries VALUES(?,?,?,?,?)", self.entries[-1])
        self.ledger.commit()

    def train(self, shard: int, prefix: tuple[int, ...]) -> None:
        """Train a node on what is stored now, with made-up tensors."""
        wanted = {(shard, s) for s in prefix}
        rows = sorted((r for r in self.rows if r[4] == "train" and (r[2], r[3]) in wanted), key=lambda r: r[1])
        parent = self.trained.get((shard, prefix[:-1]))
        key = derive.node_key(
            self.run,
            shard=shard,
            prefix=prefix,
            parent=parent,
            commitments=[r[6] for r in rows],
            environment=ENVIRONMENT,
        )
        home = self.folder / "nodes" / key
        home.mkdir()
        reads = canonical_json([r[1] for r in rows])
        files = {"head.safetensors": b"head" + key.encode(), "adapter_model.safetensors": b"body" + key.encode()}
        files |= {"adapter_config.json": b"{}", "reads.json": reads}
        for name, content in files.items():
            (home / name).write_bytes(content)
        self.trained[shard, prefix] = key
        self.enter(
            "train",
            {
                "key": key,
                "shard": shard,
                "prefix": list(prefix),
                "parent": parent,
                "tensors": "t",
                "head": "h",
                "reads": sha256(reads),
                "files": {name: sha256(content) for name, content in files.items()},
                "environment": ENVIRONMENT,
            },
        )

    def delete(self, *names: str) -> None:
        """Delete records as documented: rows and nodes erased, a request entered."""
        slots = sorted({derive.slot(KEY, name, self.shards, self.slices) for name in names})
        for name in names:
            self.erase(name)
            if self.head is not None:
                self.put_features(name, bytes(self.width + 16))
        self.rows = [r for r in self.rows if r[1] not in names]
        for (shard, prefix), key in list(self.trained.items()):
            if any((shard, s) in slots for s in prefix):
                shutil.rmtree(self.folder / "nodes" / key)
                del self.trained[shard, prefix]
        tags = [derive.tag(KEY, name) for name in names]
        self.enter("request", {"request": "r", "tags": tags, "slots": [list(slot) for slot in slots]})

    def read(self) -> tuple[Evidence, State]:
        evidence = read_evidence(self.folder)
        return evidence, derive_state(evidence)

    def provenance(self, state: State | None = None, **changes: Any) -> Provenance:
        """Return what an honest system would say, in ``state`` or as the run is."""
        state = state or self.read()[1]
        chains = []
        for chain in state.chains:
            nodes = []
            for node in chain.nodes:
                reads = frozenset(row.record.id for row in state.rows(node.shard, node.prefix))
                name = f"shard-{node.shard:02d}/{'-'.join(map(str, node.prefix))}"
                nodes.append(NodeFacts(name, node.key, node.shard, node.prefix, node.parent, reads))
            share = self.share if self.head is not None else 0.0
            chains.append(ServedChain(chain.shard, chain.order, (1 - share) * (1 / len(state.chains)), tuple(nodes)))
        if self.head is not None:
            rows = [row for row in self.rows if row[4] == "train"]
            about = [self.head, 7, "base", ENVIRONMENT, sorted(row[6] for row in rows)]
            key = sha256(canonical_json(["s3t head v1", *about]))
            node = NodeFacts("analytic head", key, -1, (), None, frozenset(row[1] for row in rows))
            share = self.share if chains else 1.0
            chains += [ServedChain(-1, 0, share, (node,))] if rows else []
        said: dict[str, Any] = {"system": "s3t", "claim": "non-interference", "chains": tuple(chains)}
        return Provenance(**(said | {"offline": state.offline} | changes))

    def close(self) -> None:
        self.ledger.close()
        self.store.close()


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[Callable[..., Forge]]:
    """Make forged runs: ``forge(shards=2, ...)``."""
    made: list[Forge] = []

    def make(**facts: Any) -> Forge:
        made.append(Forge(tmp_path / f"forged-{len(made)}", **facts).write())
        return made[-1]

    yield make
    for one in made:
        one.close()


RECORDS = make_records(60)
EVALUATION = (make_records(4, "valid"), make_records(12, "probe"))
TINY = Recipe(epochs=2.0, batch_size=4, window=2, dropout=0.1, rank=2)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run on the tiny model, fitted once; tests work on copies."""
    from s3t import S3T

    folder = tmp_path_factory.mktemp("fitted") / "run"
    system = S3T(
        folder, Layout(2, 3, 3), classes=("a", "b", "c"), model="tiny", recipe=TINY, key=KEY, evaluation=EVALUATION
    )
    system.fit(RECORDS)
    system.close()
    return folder


@dataclass
class Live:
    """A real run in a folder of its own, and ways to audit it."""

    folder: Path
    system: Any
    records: Sequence[Record]
    evaluation: tuple[Sequence[Record], Sequence[Record]]

    @property
    def lab(self) -> Any:
        from verify.laboratory import RunLab

        return RunLab(read_evidence(self.folder))

    def make(self, folder: Path) -> Any:
        return self.lab.make(folder)

    def audit(self, *levels: str, **options: Any) -> Any:
        from verify.audit import audit

        given = {"isolate": False, "lab": self.lab, "records": self.records} | options
        return audit(self.system, self.folder, levels=levels or ("E0", "E1a", "E1b"), **given)


@pytest.fixture
def live(fitted: Path, tmp_path: Path) -> Iterator[Live]:
    from s3t.system import System

    folder = tmp_path / "run"
    shutil.copytree(fitted, folder)
    system = System.open(folder)
    yield Live(folder, system, RECORDS, EVALUATION)
    system.close()
