"""What a run answers, for programs and in words: the command line and the service say the same. No torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from s3t.answers import CANDIDATE, answers, is_text
from s3t.contract import Receipt
from s3t.metrics import best, by_question
from s3t.records import SEPARATOR, Record


def shown(record_id: str) -> str:
    """Return an id as people read it: a group and the rest with a slash between."""
    return record_id.replace(SEPARATOR, "/")


def kind_of(classes: Sequence[str]) -> str:
    """Return the name under which a row's answer stands: ``class``, ``number`` or ``log_likelihood``."""
    return "log_likelihood" if is_text(classes) else "number" if len(classes) == 1 else "class"


def answered(scores: Any, records: Sequence[Record], classes: Sequence[str]) -> dict[str, Any]:
    """Return what ``scores`` (records, classes) say of ``records``, as plain JSON values.

    ``rows``: id, answer (:func:`kind_of`) and scores of each; ``questions``, where candidates are ranked: the best of each.
    """
    kind, found = kind_of(classes), answers(scores, classes)
    rows = [
        {"id": record.id, kind: classes[int(said)] if kind == "class" else said, "scores": numbers}
        for record, said, numbers in zip(records, found, scores.astype(float).round(6).tolist(), strict=True)
    ]
    result: dict[str, Any] = {"n": len(rows), "classes": list(classes), "rows": rows}
    if tuple(classes) == CANDIDATE:
        chosen = {name: best(each).name for name, each in by_question(scores, records).items()}
        result["questions"] = [{"id": question, "answer": said} for question, said in chosen.items()]
    return result


def acknowledged(receipt: Receipt, copies: Collection[str] = (), *, closure: bool = False) -> list[str]:
    """Say in words, a line each, what a deletion did. ``copies``: those of its records that nobody named."""
    gone = "nothing to do" + (", and its copies cannot be found, for its content is gone" if closure else "")
    lines = [f"record {shown(name)!r} was deleted before: {gone}" for name in receipt.already]
    lines += [f"record {shown(name)!r} is a copy and goes as well" for name in copies]
    if receipt.deleted:
        offline = ", ".join(map(str, receipt.offline)) or "none"
        dropped = f"{len(receipt.nodes_dropped)} trained nodes dropped, shards offline: {offline}"
        lines.append(f"deleted {len(receipt.deleted)} records (request {receipt.request}): {dropped}")
    return lines
