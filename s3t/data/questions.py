"""Questions with candidate answers: rows of SuperGLUE and of own data as records that are ranked against one another.

A candidate is one record, right or wrong (:data:`s3t.answers.CANDIDATE`); a question's candidates share one group
(:func:`s3t.records.candidate`), so that they lie in one slot and one split, and one request deletes them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3t.errors import DataError, did_you_mean
from s3t.records import Record, candidate, grouped

Row = Mapping[str, Any]
"""Column name -> cell, as the hub has it."""

ASKED = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
"""COPA's two questions (Roemmele, Bejan and Gordon 2011)."""
PLACEHOLDER, HIGHLIGHT = "@placeholder", "@highlight"
"""Signs in ReCoRD's queries and passages (Zhang et al. 2018)."""


@dataclass(frozen=True)
class Candidate:
    """One candidate answer: its ``name`` among the question's, the two texts that a model reads, and whether it is right."""

    name: str
    text: str
    text_pair: str
    right: bool


@dataclass(frozen=True)
class Form:
    """How a row is read: its ``candidates``, and what names its ``question``; without that each row is a question of its own.

    Both raise DataError for a row that is not of the form. A row without text has no candidates.
    """

    candidates: Callable[[Row], Sequence[Candidate]]
    question: Callable[[Row], str] | None = None


def records(form: Form, row: Row, question: str, group: str | None, where: str) -> list[Record]:
    """Return the candidates of a ``row`` as records of ``question``, which is ``group``'s, a person's say, unless that is None.

    The inputs are ``text`` and ``text_pair``; the label is 1 for a right candidate. DataError, naming the row by ``where``, for
    one that is not of the form.
    """
    try:
        name = question if group is None else grouped(group, question)
        return [
            Record(candidate(name, each.name), {"text": each.text, "text_pair": each.text_pair}, int(each.right))
            for each in form.candidates(row)
        ]
    except DataError as error:
        raise DataError(f"row {question!r} of {where}: {error}") from error


def of_copa(row: Row) -> list[Candidate]:
    """Return COPA's two alternatives, for a premise followed by what is asked about it."""
    if row["question"] not in ASKED:
        raise DataError(f"question {row['question']!r} is neither cause nor effect; mend or drop the row")
    if row["label"] not in (0, 1):
        raise DataError(f"label {row['label']!r} is neither 0 nor 1; mend or drop the row")
    if not _said(row["premise"]):
        return []
    text = f"{row['premise']} {ASKED[row['question']]}"
    names = ("choice1", "choice2")
    return [Candidate(name, text, str(row[name]), row["label"] == place) for place, name in enumerate(names)]


def of_multirc(row: Row) -> list[Candidate]:
    """Return the one answer that a row of MultiRC is, after its question; any number of a question's answers are right."""
    if row["label"] not in (0, 1):
        raise DataError(f"label {row['label']!r} is neither 0 nor 1; mend or drop the row")
    if not _said(row["paragraph"]):
        return []
    pair = f"{row['question']} {row['answer']}"
    return [Candidate(str(row["idx"]["answer"]), str(row["paragraph"]), pair, row["label"] == 1)]


def question_of_multirc(row: Row) -> str:
    """Return what names the question that a row of MultiRC answers, among those of its split."""
    return f"{row['idx']['paragraph']:05d}-{row['idx']['question']:05d}"


def of_record(row: Row) -> list[Candidate]:
    """Return the distinct entities of ReCoRD's passage, each in the place that the query leaves open, by their own words.

    An entity is right if it is among the answers. An answer that is no entity is no candidate; a question without a right
    candidate counts as missed.
    """
    query = str(row["query"])
    if PLACEHOLDER not in query:
        raise DataError(f"the query {query!r} has no {PLACEHOLDER}; mend or drop the row")
    text = " ".join(" ".join(part.split()) for part in str(row["passage"] or "").split(HIGHLIGHT)).strip()
    if not text:
        return []
    entities = dict.fromkeys(str(entity) for entity in row["entities"] or ())
    return [Candidate(name, text, query.replace(PLACEHOLDER, name), name in row["answers"]) for name in entities]


def own(text: str, choices: str, label: str) -> Form:
    """Return the form of own rows: a column with the question's ``text``, those of the ``choices``, separated by commas, and a
    ``label`` that says which is right, as :func:`right_choice` reads it.

    An empty cell is a choice that this question does not have. DataError unless two or more distinct columns are named.
    """
    columns = choice_columns(choices)

    def candidates(row: Row) -> list[Candidate]:
        for column in (text, *columns):
            if not isinstance(row[column], str | int | float | None):
                raise DataError(f"column {column!r} holds no plain text; name columns with one text in each row")
        if not _said(row[text]):
            return []
        cells = ["" if row[column] is None else str(row[column]) for column in columns]
        right = right_choice(str(row[label]), columns, cells)
        named = [(column, cell) for column, cell in zip(columns, cells, strict=True) if cell.strip()]
        return [Candidate(column, str(row[text]), cell, column == right) for column, cell in named]

    return Form(candidates)


def choice_columns(choices: str) -> list[str]:
    """Return the columns named in ``choices``, separated by commas. DataError unless there are two or more distinct ones."""
    columns = [column.strip() for column in choices.split(",")]
    if len(columns) < 2 or "" in columns or len(set(columns)) < len(columns):
        raise DataError(
            f"choices={choices!r} does not name two or more distinct columns; write for example choice1,choice2"
        )
    return columns


def check_alone(choices: str, **others: object) -> None:
    """Raise DataError for options that are given and do not go with ``choices``."""
    for option, value in others.items():
        if value is not None:
            raise DataError(
                f"choices={choices!r} and {option} do not go together: each choice is right or wrong; leave out {option}"
            )


def right_choice(label: str, columns: Sequence[str], cells: Sequence[str]) -> str:
    """Return the column of the right one of a row's choices, ``cells``; an empty one is none.

    ``label`` is its column, its position from 0, or its words. DataError where that is none of the choices, where it can be
    read as more than one, and where fewer than two choices are there.
    """
    there = [column for column, cell in zip(columns, cells, strict=True) if cell.strip()]
    if len(there) < 2:
        raise DataError(f"only {len(there)} of the choices {', '.join(columns)} are filled in; give two or more")
    meant = {
        column
        for place, (column, cell) in enumerate(zip(columns, cells, strict=True))
        if label.strip() in (column, str(place), cell.strip() or None)
    }
    if len(meant) > 1:
        both = " and ".join(sorted(meant, key=columns.index))
        raise DataError(
            f"label {label!r} can mean each of {both}; give the right choice's column name, used by no other"
        )
    chosen = next(iter(meant), None)
    if chosen not in there:
        raise DataError(
            f"label {label!r} is none of the choices{did_you_mean(label, (*there, *cells))}; give the right one's column "
            f"({', '.join(there)}), its position from 0, or its words"
        )
    return chosen


def _said(cell: Any) -> bool:
    return cell is not None and bool(str(cell).strip())
