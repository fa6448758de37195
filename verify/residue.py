"""E0, fourth part: search of the raw bytes of every file for what was deleted.

Structure alone (verify.scan) cannot see a deleted id inside a file that belongs there: a freed page, a log line in the
ledger. This search needs the deleted records themselves, which a run no longer holds. Policy: without them it is named
as not run and decides nothing, because the structural scan ran; with them a hit is a violation.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s3t.records import Record
from verify.evidence import Evidence
from verify.report import Finding, Verdict
from verify.rows import duplicates
from verify.scan import walk

CHECK = "E0 residue"
RAW_ID = 6
"""Ids of fewer bytes occur in weights by chance; they are searched in quotes, outside tensor files."""

RAW_INPUT = 12
"""Inputs of fewer bytes are common words; they are not searched (their record's id is)."""

HEX = b"0123456789abcdef."
"""Hexadecimal digits, and the point of a number."""

PEFT_WORDS = (
    "LORA",
    "IA3",
    "none",
    "megatron.core",
    "layer",
    "layers",
    "query",
    "value",
    "attn.q",
    "attn.v",
    "q_lin",
    "v_lin",
    "q_proj",
    "v_proj",
    "query_proj",
    "value_proj",
    "c_attn",
)
"""Words that PEFT's configuration of an adapter holds, whatever the data."""

CHUNK = 1 << 24
SEPARATOR = "\x1f"
"""Between the group and the rest of a grouped record's id (docs/DERIVATION.md, "Records")."""


@dataclass(frozen=True)
class Needle:
    """Bytes to search, at least 3. A hit inside an occurrence of one of ``excuses`` is of something retained.

    ``apart``: bytes that must not stand next to a hit. Ids of hexadecimal digits occur by chance inside digests and numbers.
    """

    victim: str
    what: str
    data: bytes
    excuses: tuple[bytes, ...] = ()
    tensors: bool = True
    apart: bytes = b""


def check_residue(evidence: Evidence, victims: Sequence[Record], *, known: bool = False) -> list[Finding]:
    """Search every file for ids and inputs of ``victims``. ``known``: retained ids were compared with the source."""
    gone = {victim.id for victim in victims}
    retained = [row.record for row in evidence.rows if row.record.id not in gone]
    found = search(evidence.folder, victims, retained, _declared(evidence))
    twins = [] if known else list(_twins(evidence, victims))
    return [*(f for f in found if not twins or f.verdict is not Verdict.HOLDS), *twins]


def search(
    folder: Path, victims: Sequence[Record], retained: Sequence[Record], declared: Sequence[bytes] = ()
) -> list[Finding]:
    """Search every file in ``folder`` for ids and inputs of ``victims``; one HOLDS if there is none.

    What is part of a retained record, or of a ``declared`` word, is not theirs.
    """
    ids = [form for record in retained for form in _forms(record.id)]  # files have them escaped, too
    kept = [*ids, *(record.content() for record in retained), *declared]
    needles = [needle for victim in victims for needle in _needles(victim, kept)]
    needles += _groups(victims, retained, kept)
    haystack = Search(needles)
    found, files = [], 0
    for path, kind in walk(folder):
        if kind != "file":
            continue
        files += 1
        name = path.relative_to(folder).as_posix()
        for needle in haystack.in_file(path):
            if needle.tensors or path.suffix != ".safetensors":
                message = f"{needle.what} of deleted record {needle.victim!r} is in {name}"
                found.append(Finding(CHECK, Verdict.VIOLATED, message, details={"path": name, "id": needle.victim}))
    if not found:
        message = f"no id or input of {len(victims)} deleted records in the bytes of {files} files"
        found.append(Finding(CHECK, Verdict.HOLDS, message, details={"victims": len(victims), "needles": len(needles)}))
    return found


def _twins(evidence: Evidence, victims: Sequence[Record]) -> Iterator[Finding]:
    for victim, twin in duplicates(evidence, victims):
        message = f"retained {twin!r} has the content of deleted {victim!r}; only the source records tell whose it is"
        yield Finding(CHECK, Verdict.UNDECIDED, message)


def _needles(victim: Record, kept: Sequence[bytes]) -> Iterator[Needle]:
    for name in _forms(victim.id):
        if len(name) >= RAW_ID:
            yield _raw(victim, "the id", name, kept)
        else:
            quoted = b'"' + name + b'"'
            excuses = (quoted + b":", *(k for k in kept if quoted in k))
            yield Needle(victim.id, "the id", quoted, excuses, tensors=False)
    for field, value in sorted(victim.inputs.items()):
        for data in _forms(value):
            if len(data) >= RAW_INPUT:
                yield Needle(victim.id, f"input {field!r}", data, tuple(k for k in kept if data in k))


def _groups(victims: Sequence[Record], retained: Sequence[Record], kept: Sequence[bytes]) -> Iterator[Needle]:
    """Yield the names of groups of which nothing is left, for one victim each; short ones would hit by chance."""
    gone = {victim.id.split(SEPARATOR)[0]: victim for victim in victims if SEPARATOR in victim.id}
    left = {record.id.split(SEPARATOR)[0] for record in retained}
    for group in gone.keys() - left:
        for name in _forms(group):
            if len(name) >= RAW_ID:
                yield _raw(gone[group], "the group", name, kept)


def _raw(victim: Record, what: str, name: bytes, kept: Sequence[bytes]) -> Needle:
    apart = HEX if set(name) <= set(HEX) else b""
    return Needle(victim.id, what, name, tuple(k for k in kept if name in k), apart=apart)


def _declared(evidence: Evidence) -> list[bytes]:
    """Return the declared words of run, ledger and adapters as they stand there: no record gave them.

    Only those of the documented keys; whatever else stands there is not excused.
    """
    run = evidence.run
    data, model, plan = run["data"], run["model"], run["plan"]
    words = [run["s3t"], run["kernel"], data["name"], data["source"], data["digest"], model["name"], model["digest"]]
    words += [
        *data["classes"],
        plan["method"],
        *(stage[name] for stage in plan["stages"] for name in ("adapter", "kind")),
    ]
    words += [*plan["head"]["poolings"], plan["head"]["form"]] if "head" in plan else []
    words += [value for value in run["recipe"].values() if isinstance(value, str)]
    words += [word for value in run["recipe"].values() if isinstance(value, list) for word in value]
    trained = [entry.body["environment"] for entry in evidence.entries if entry.kind in ("train", "head")]
    words += {value for environment in trained for value in environment.values() if isinstance(value, str)}
    words += PEFT_WORDS
    return [json.dumps(word, ensure_ascii=flag).encode() for word in words for flag in (False, True)]


def _forms(value: str | bytes) -> list[bytes]:
    """Return the byte forms in which an id or input may lie in a file: raw, in JSON (escaped or not), in base64."""
    if isinstance(value, bytes):
        return [value, base64.b64encode(value)]
    escaped = [json.dumps(value, ensure_ascii=flag)[1:-1].encode() for flag in (False, True)]
    return list(dict.fromkeys([value.encode(), *escaped]))


class Search:
    """Finds many needles in one pass: positions are filtered by the needles' first three bytes, then looked up."""

    def __init__(self, needles: Sequence[Needle]) -> None:
        self._by_data: dict[bytes, list[Needle]] = {}
        self._lengths: dict[bytes, set[int]] = {}
        self._margin = 4
        for needle in needles:
            self._by_data.setdefault(needle.data, []).append(needle)
            self._lengths.setdefault(needle.data[:3], set()).add(len(needle.data))
            self._margin = max(self._margin, len(needle.data), *map(len, needle.excuses))
        self._starts = np.unique(np.array([int.from_bytes(start, "big") for start in self._lengths], dtype=np.uint32))
        self._pairs = np.zeros(1 << 16, dtype=bool)
        self._pairs[self._starts >> 8] = True

    def in_file(self, path: Path) -> list[Needle]:
        """Return the needles that occur in the file without excuse, each once; it is read in overlapping windows."""
        found: dict[Needle, None] = {}
        if not self._by_data:
            return []
        margin = self._margin
        with path.open("rb") as stream:
            window, begin, more = stream.read(CHUNK), 0, b" "
            while window and more:
                more = stream.read(max(CHUNK, 4 * margin))
                end = len(window) - margin if more else len(window)
                found |= dict.fromkeys(self.in_bytes(window, begin, end))
                keep = max(0, end - margin)
                window, begin = window[keep:] + more, max(0, end) - keep
        return list(found)

    def in_bytes(self, raw: bytes, begin: int = 0, end: int | None = None) -> Iterator[Needle]:
        """Yield the needles with a hit that starts in ``raw[begin:end]`` and that no excuse covers."""
        if len(raw) < 3 or not self._by_data:
            return
        octets = np.frombuffer(raw, dtype=np.uint8)
        pairs = octets[:-2].astype(np.uint16) << 8 | octets[1:-1]
        near = np.flatnonzero(self._pairs[pairs])
        starts = pairs[near].astype(np.uint32) << 8 | octets[near + 2]
        for position in near[np.isin(starts, self._starts)].tolist():
            if position < begin or (end is not None and position >= end):
                continue
            for length in self._lengths[raw[position : position + 3]]:
                for needle in self._by_data.get(raw[position : position + length], ()):
                    if not _excused(raw, position, needle):
                        yield needle


def _excused(raw: bytes, start: int, needle: Needle) -> bool:
    stop = start + len(needle.data)
    beside = raw[max(0, start - 1) : start] + raw[stop : stop + 1]
    if any(byte in needle.apart for byte in beside):
        return True
    return any(raw.find(e, max(0, stop - len(e)), start + len(e)) >= 0 for e in needle.excuses)
