"""Reading a run folder as evidence, by our own code and read-only (docs/DERIVATION.md, "Run folder" and "Ledger").

A folder that is not a run of this format raises RunError. Damage inside a run becomes a problem: the evidence is then
incomplete, and an audit of it ends UNDECIDED.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3t.errors import DataError, RunError
from s3t.reading import parse_json
from s3t.records import Record, canonical_json, sha256
from verify import derive
from verify.binary import FeatureRow, read_features, read_leaves

FORMAT = 4
MAGIC = b"s3t rows"
HEADER = 16
"""Bytes of records.bin before the first row: the magic, then a ledger entry's number (big-endian)."""
SALT = 16
RUN_KEYS = ("format", "s3t", "kernel", "plan", "recipe", "model", "data", "seed")
KINDS = {
    "create": ("run", "rows", "root", "key"),
    "train": ("key", "shard", "prefix", "parent", "tensors", "head", "reads", "files", "environment"),
    "request": ("tags", "slots"),
    "extend": ("budget",),
    "head": ("features", "rows", "environment"),
    "stray": ("tags",),
}
"""Kinds of ledger entries and the keys that their bodies must have."""


@dataclass(frozen=True)
class Entry:
    """One fact of the ledger. ``digest`` chains it to all facts before it."""

    seq: int
    kind: str
    body: Mapping[str, Any]
    digest: str = ""


@dataclass(frozen=True)
class Row:
    """One row of the index with what records.bin holds of it. ``shard`` and ``slice`` are None outside the train split."""

    tag: str
    shard: int | None
    slice: int | None
    split: str
    salt: bytes
    commitment: str | None
    content: bytes
    record: Record


@dataclass(frozen=True)
class Span:
    """Bytes ``start`` up to ``stop`` of records.bin, the place of the row ``tag``. ``zero``: nothing is left there."""

    tag: str
    start: int
    stop: int
    zero: bool
    split: str
    commitment: str | None


@dataclass(frozen=True)
class Evidence:
    """What a run folder says. ``problems`` name what is missing or damaged; then nothing may be concluded.

    ``leaves``: the commitments (32 bytes each) of all rows that were ingested for training, the deleted ones included.
    ``spans``: the places of all rows in records.bin, erased or not; ``loose``: (start, stop) of bytes there, not all zero,
    that are no row's. ``features``: the places of all training rows in features.bin, where the run has an analytic head.
    """

    folder: Path
    run: Mapping[str, Any]
    run_digest: str
    key: bytes
    entries: tuple[Entry, ...]
    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    leaves: tuple[bytes, ...] = ()
    spans: tuple[Span, ...] = ()
    loose: tuple[tuple[int, int], ...] = ()
    features: tuple[FeatureRow, ...] = ()

    @property
    def checked(self) -> dict[str, Any]:
        """What a report on this evidence is about: the run's configuration and the ledger up to its last entry."""
        head = self.entries[-1].digest if self.entries else ""
        return {"run": self.run_digest, "entries": len(self.entries), "head": head}

    @property
    def train(self) -> tuple[Row, ...]:
        """The rows that may be trained on, sorted by id."""
        return tuple(sorted((r for r in self.rows if r.split == "train"), key=lambda r: r.record.id))

    def split(self, name: str) -> tuple[Record, ...]:
        """The records of one split, sorted by id."""
        return tuple(sorted((r.record for r in self.rows if r.split == name), key=lambda r: r.id))


def read_evidence(folder: Path | str) -> Evidence:
    """Read the run in ``folder``. Raises RunError if it is no run folder of this format."""
    folder = Path(folder)
    raw, run = _read_run(folder)
    problems: list[str] = []
    key = _read_key(folder / "secret.key", problems)
    entries = _read_ledger(folder / "ledger.sqlite", sha256(raw), problems)
    rows, spans, loose = _read_records(folder, entries, problems)
    leaves = read_leaves(folder / "commitments", entries[0].body.get("rows") if entries else None, problems)
    places = [(span.tag, span.commitment) for span in spans if span.split == "train"]
    made = next((entry.body.get("environment", {}) for entry in reversed(entries) if entry.kind == "head"), None)
    features = read_features(folder, run, places, made, problems) if spans else ()
    return Evidence(folder, run, sha256(raw), key, entries, rows, tuple(problems), leaves, spans, loose, features)


def _read_run(folder: Path) -> tuple[bytes, Mapping[str, Any]]:
    path = folder / "run.json"
    if not folder.is_dir():
        raise RunError(f"there is no run folder {str(folder)!r}; give the folder that `s3t train` wrote")
    if not path.is_file():
        raise RunError(
            f"{str(folder)!r} holds no run.json, so it is no run folder; give the one that `s3t train` wrote"
        )
    raw = path.read_bytes()
    try:
        run = parse_json(raw)
    except (ValueError, UnicodeDecodeError) as error:
        raise RunError(f"{str(path)!r} is not JSON ({error}); restore it from a backup") from error
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        found = run.get("format") if isinstance(run, dict) else type(run).__name__
        raise RunError(f"{str(path)!r} has format {found!r}; this verifier reads format {FORMAT}. Train anew")
    missing = [key for key in RUN_KEYS if key not in run]
    if missing:
        raise RunError(f"{str(path)!r} lacks the key {missing[0]!r}; a run has {', '.join(RUN_KEYS)}")
    return raw, run


def _read_key(path: Path, problems: list[str]) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        problems.append("secret.key is missing: slots and tags cannot be derived")
        return b""
    except ValueError:
        problems.append("secret.key is not hex: slots and tags cannot be derived")
        return b""
    if len(key) != 32:
        problems.append(f"secret.key has {len(key)} bytes, not 32: slots and tags cannot be derived")
        return b""
    return key


@contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        yield connection
    finally:
        connection.close()


def _select(path: Path, query: str, problems: list[str]) -> list[tuple[Any, ...]] | None:
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return None
    try:
        with _connect(path) as connection:
            found: list[tuple[Any, ...]] = connection.execute(query).fetchall()
            return found
    except sqlite3.Error as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None


def _read_ledger(path: Path, run_digest: str, problems: list[str]) -> tuple[Entry, ...]:
    stored = _select(path, "SELECT seq, kind, body, previous, digest FROM entries ORDER BY seq", problems)
    if stored is None:
        return ()
    entries: list[Entry] = []
    before = ""
    for position, (seq, kind, body, previous, digest) in enumerate(stored, start=1):
        if seq != position:
            problems.append(f"ledger.sqlite: entry {position} is missing (found {seq})")
            return tuple(entries)
        if previous != before or digest != entry_digest(seq, kind, body, previous):
            problems.append(f"ledger.sqlite: the hash chain breaks at entry {seq} ({kind})")
            return tuple(entries)
        before = digest
        entry = _entry(seq, kind, body, digest, problems)
        if entry is None:
            return tuple(entries)
        entries.append(entry)
    if not entries or entries[0].kind != "create":
        problems.append("ledger.sqlite does not begin with a create entry")
    elif entries[0].body["run"] != run_digest:
        problems.append("run.json is not the one that the ledger was created for: its SHA-256 differs")
    if sum(entry.kind == "create" for entry in entries) > 1:
        problems.append("ledger.sqlite has more than one create entry")
    return tuple(entries)


def entry_digest(seq: int, kind: str, body: str, previous: str) -> str:
    """Return the digest of a ledger entry; ``body`` is the text as stored."""
    return sha256(canonical_json([seq, kind, body, previous]))


def _entry(seq: int, kind: str, text: str, digest: str, problems: list[str]) -> Entry | None:
    try:
        body = parse_json(text)
    except ValueError:
        problems.append(f"ledger.sqlite: the body of entry {seq} is not JSON")
        return None
    if kind not in KINDS:
        problems.append(f"ledger.sqlite: entry {seq} is of unknown kind {kind!r}")
        return None
    missing = [key for key in KINDS[kind] if not isinstance(body, dict) or key not in body]
    if missing:
        problems.append(f"ledger.sqlite: entry {seq} ({kind}) lacks {missing[0]!r}")
        return None
    return Entry(seq, kind, body, digest)


def _read_records(
    folder: Path, entries: Sequence[Entry], problems: list[str]
) -> tuple[tuple[Row, ...], tuple[Span, ...], tuple[tuple[int, int], ...]]:
    query = 'SELECT tag, shard, slice, split, commitment, start, length, "check" FROM records ORDER BY start'
    index = _select(folder / "records.sqlite", query, problems)
    raw = _read_contents(folder / "records.bin", entries, problems)
    if index is None or raw is None:
        return (), (), ()
    gone = {tag for entry in entries if entry.kind == "request" for tag in entry.body["tags"]}
    rows: list[Row] = []
    spans: list[Span] = []
    loose: list[tuple[int, int]] = []
    end = HEADER
    for *fields, check in index:
        tag, shard, slice_, split, commitment, start, length = fields
        if any(isinstance(field, bytes) for field in fields) or derive.index_check(fields) != check:
            problems.append(f"records.sqlite: the row of tag {tag!r} does not match its check")
            return (), (), ()
        if type(start) is not int or type(length) is not int or start < end or not SALT < length <= len(raw) - start:
            problems.append(f"records.sqlite: a row of {length!r} bytes cannot lie at byte {start!r} of records.bin")
            return (), (), ()
        if any(raw[end:start]):
            loose.append((end, start))
        end = start + length
        salt, content = raw[start : start + SALT], raw[start + SALT : end]
        spans.append(Span(tag, start, end, not any(salt) and not any(content), split, commitment))
        if spans[-1].zero:
            continue
        try:
            record = Record.from_content(content)
        except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
            if tag not in gone:
                problems.append(f"records.bin: the row at byte {start} cannot be read ({type(error).__name__})")
            continue
        if record.content() != content:
            problems.append(f"records.bin: the content of record {record.id!r} is not its canonical form")
            continue
        rows.append(Row(tag, shard, slice_, split, salt, commitment, content, record))
    if any(raw[end:]):
        loose.append((end, len(raw)))
    return tuple(sorted(rows, key=lambda row: row.record.id)), tuple(spans), tuple(loose)


def _read_contents(path: Path, entries: Sequence[Entry], problems: list[str]) -> bytes | None:
    if not path.is_file():
        problems.append("records.bin is missing")
        return None
    raw = path.read_bytes()
    if len(raw) < HEADER or not raw.startswith(MAGIC):
        problems.append("records.bin does not begin as it must")
        return None
    through = int.from_bytes(raw[len(MAGIC) : HEADER], "big")
    if entries and through > entries[-1].seq:
        problems.append(
            f"records.bin was erased for requests up to entry {through}, the ledger ends at entry {entries[-1].seq}: "
            "it is an older one"
        )
    return raw
