"""E0, second part: every file in the run folder is accounted for, and nothing else is there.

Accounted for are the files of the declared layout and the files of surviving nodes with the SHA-256 that the ledger
holds. Any other file, folder or link is a violation: a dropped node that was not erased, a copy, a log, a leftover. So is a
half-made run beside the folder, the one place outside it where a run is ever written.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

from verify.binary import FILE as FEATURES
from verify.evidence import Evidence
from verify.report import Finding, Verdict
from verify.state import HEAD_NAME, Node, State, Survivor, node_name

CHECK = "E0 scan"
FIXED = ("run.json", "secret.key", "ledger.sqlite", "records.sqlite", "records.bin", "commitments")
SIDECARS = ("ledger.sqlite-journal", "ledger.sqlite-wal", "ledger.sqlite-shm")
"""Files that SQLite keeps beside a database that is being written, the first also after a transaction that was cut short
before it had changed anything; searched like every other file."""

TABLES = {"ledger.sqlite": {"entries", "hits", "tombstones"}, "records.sqlite": {"records"}}
COLUMNS = {"tag", "shard", "slice", "split", "commitment", "start", "length", "check"}
"""Columns of the index of records: nothing in it tells an id or a content."""

NODE_FILES = {
    "lora": {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "reads.json"},
    "full": {"model.safetensors", "head.safetensors", "reads.json"},
}


def check_scan(evidence: Evidence, state: State, serving: Collection[str] | None = None) -> list[Finding]:
    """Return what is in the folder without being accounted for, or differs from the ledger; one HOLDS if nothing is.

    ``serving``: the keys of the nodes that are said to serve. A file of another node that differs is damage, which decides
    nothing; of one that serves, or if they are not given, it is a violation.
    """
    found: list[Finding] = []
    expected = _expected(state)
    idle = {f"nodes/{node.key}" for node in state.survivors.values() if serving is not None and node.key not in serving}
    seen = 0
    for path, kind in walk(evidence.folder):
        name = path.relative_to(evidence.folder).as_posix()
        if kind == "link":
            found.append(_violated(f"{name} is a link; a run folder holds plain files", path=name))
        elif kind == "folder":
            if name != "nodes" and not any(known.startswith(name + "/") for known in expected):
                what = "a dropped or unknown node" if name.startswith("nodes/") else "an unknown folder"
                found.append(_violated(f"{name}/ is {what}: nothing declared or surviving accounts for it", path=name))
        elif name not in expected and name not in SIDECARS:
            found.append(_violated(f"{name} is unknown: no declared file or surviving node accounts for it", path=name))
        elif expected.get(name) is not None and file_digest(path) != expected[name]:
            message = f"{name} is not the file that the ledger recorded: its SHA-256 differs"
            if path.parent.relative_to(evidence.folder).as_posix() in idle:
                message += "; its node does not serve, and `s3t refresh` makes it anew"
                found.append(Finding(CHECK, Verdict.UNDECIDED, message, details={"path": name}))
            else:
                found.append(_violated(message, path=name))
        else:
            seen += 1
    staging = evidence.folder.parent / f".{evidence.folder.name}.partial"
    if staging.exists():
        found.append(
            _violated(f"{staging.name} beside the run is a half-made run, with all its records", path=staging.name)
        )
    missing = sorted(name for name in expected if name != FEATURES and not (evidence.folder / name).is_file())
    found += [Finding(CHECK, Verdict.UNDECIDED, f"{name} is missing", details={"path": name}) for name in missing]
    found += [*_declared_files(state), *_tables(evidence, state), *_features(evidence, state)]
    if not found:
        holds = f"{seen} files: all declared, of surviving nodes, and as recorded; nothing else is there"
        found.append(Finding(CHECK, Verdict.HOLDS, holds, details={"files": seen}))
    return found


def walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield all below ``folder`` in sorted order as (path, "file" | "folder" | "link"); links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.is_symlink():
            yield path, "link"
        elif entry.is_dir(follow_symlinks=False):
            yield path, "folder"
            yield from walk(path)
        else:
            yield path, "file"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _expected(state: State) -> dict[str, str | None]:
    """Return every accounted file with its recorded SHA-256, or None where none is recorded."""
    expected: dict[str, str | None] = dict.fromkeys(FIXED if state.plan.head is None else (*FIXED, FEATURES))
    for node in state.survivors.values():
        expected |= _files(node)
    return expected


def _files(node: Survivor) -> dict[str, str]:
    """Return the files of a node, below the run's folder, with their recorded SHA-256."""
    named = {f"nodes/{node.key}/{name}": digest for name, digest in node.files.items()}
    return named | {f"nodes/{node.key}/reads.json": node.reads}


def damaged(evidence: Evidence, state: State) -> dict[Node, str]:
    """Return the surviving nodes with a file that is missing or not the recorded one, each with the first such file."""
    found: dict[Node, str] = {}
    for where, node in sorted(state.survivors.items()):
        for name, digest in sorted(_files(node).items()):
            path = evidence.folder / name
            if not path.is_file():
                found.setdefault(where, f"{name} is missing")
            elif file_digest(path) != digest:
                found.setdefault(where, f"{name} is not the file that the ledger recorded: its SHA-256 differs")
    return found


def _declared_files(state: State) -> list[Finding]:
    """A node owns the files of its kind and no others, whatever the ledger says."""
    found = []
    for (shard, prefix), node in sorted(state.survivors.items()):
        if len(prefix) > len(state.plan.stages):
            continue
        odd = sorted(set(node.files) - NODE_FILES[state.plan.stages[len(prefix) - 1].kind])
        if odd:
            message = f"the ledger gives it the file {odd[0]!r}, which no node has"
            found.append(Finding(CHECK, Verdict.VIOLATED, message, node_name(shard, prefix)))
    return found


def _tables(evidence: Evidence, state: State) -> list[Finding]:
    """The databases hold the declared tables alone, and the ledger's index of tombstones says what its entries say."""
    found = []
    for name, known in TABLES.items():
        uri = f"{(evidence.folder / name).resolve().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True)
        try:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
            tables = {str(row[0]) for row in rows if not str(row[0]).startswith("sqlite_")}
            stored = set()
            columns = {str(row[1]) for row in connection.execute("PRAGMA table_info(records)")}
            if "tombstones" in tables and name == "ledger.sqlite":
                stored = {row[0] for row in connection.execute("SELECT tag FROM tombstones")}
        finally:
            connection.close()
        found += [_violated(f"{name} holds an unknown table {odd!r}", path=name) for odd in sorted(tables - known)]
        odd_columns = sorted(columns - COLUMNS) if name == "records.sqlite" else []
        found += [_violated(f"{name} holds an unknown column {odd!r}", path=name) for odd in odd_columns]
        if "tombstones" in tables and stored != state.tombstones:
            message = f"the ledger's table of tombstones holds {len(stored)}, its requests name {len(state.tombstones)}"
            found.append(_violated(message, path=name))
    return found


def _features(evidence: Evidence, state: State) -> list[Finding]:
    """Nothing is left in features.bin of a deleted record, and those of retained records are there and intact."""
    left = sum(row.tag in state.tombstones and not row.zero for row in evidence.features)
    found = [_violated(f"features of {left} deleted records remain in {FEATURES}", path=FEATURES)] if left else []
    return found + broken_features(evidence, state)


def broken_features(evidence: Evidence, state: State) -> list[Finding]:
    """Return what of retained records' features is damaged or missing, though the ledger says that all were made."""
    made = any(entry.kind == "head" for entry in evidence.entries)
    rows = [row for row in evidence.features if made and row.tag not in state.tombstones]
    missing, odd = sum(row.zero for row in rows), sum(not row.zero and not row.sound for row in rows)
    return [
        Finding(CHECK, Verdict.UNDECIDED, message, HEAD_NAME, details={"path": FEATURES})
        for count, message in (
            (missing, f"{missing} retained records have no features in {FEATURES}; `s3t refresh` makes them anew"),
            (odd, f"features of {odd} retained records do not match their checks; `s3t refresh` makes them anew"),
        )
        if count
    ]


def _violated(message: str, **details: object) -> Finding:
    return Finding(CHECK, Verdict.VIOLATED, message, details=details)
