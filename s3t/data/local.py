"""Local CSV, JSONL and parquet files with named columns; nothing is cached anywhere.

The classes must not depend on deletable rows: they are declared, or taken from the validation and test splits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from s3t.answers import CANDIDATE, is_text
from s3t.data.image_folders import read_image
from s3t.data.instructions import has_instructions, prompts, text_classes
from s3t.data.numbers import numbers, to_number
from s3t.data.questions import check_alone, choice_columns, right_choice
from s3t.data.spec import write_spec
from s3t.data.splits import Split, carve_test, carve_validation, three_way
from s3t.data.tables import read_table
from s3t.errors import DataError, did_you_mean
from s3t.records import SEPARATOR, Dataset, Inputs, Record, candidate, grouped

Raw = tuple[str, tuple[str, ...], str]
"""(id; the text, a question and one of its choices, or the path of an image; class name or what else stands for the label)."""


def load_local(
    path: str | Path,
    *,
    text: str = "text",
    answer: str | None = None,
    image: str | None = None,
    choices: str | None = None,
    label: str = "label",
    id: str | None = None,
    group: str | None = None,
    classes: Sequence[str] | None = None,
    number: str | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    name: str | None = None,
) -> Dataset:
    """Return the records of ``path`` (.csv, .json, .jsonl or .parquet) as a data set; inputs are ``{"text": ...}``.

    ``answer``: column of the texts that a language model is to answer with (:mod:`s3t.language`); inputs then are ``{"text":
    ..., "answer": ...}``, and labels, classes and numbers mean nothing. A file in the Alpaca format, without a column "text",
    is read so by itself (:mod:`s3t.data.instructions`).
    ``image``: column with paths of images, relative to the file's folder and below it; inputs then are ``{"image": bytes}``.
    ``choices``: two or more columns, separated by commas, with candidate answers to the question in ``text``; each is a record
    of its own with the inputs ``text`` and ``text_pair``, right or wrong (:data:`s3t.answers.CANDIDATE`), its id made of the
    row's and the column (:func:`s3t.records.candidate`). ``label`` then says which is right, by its column, its position from
    0 or its words; an empty cell is a choice that the question does not have. ``id``: column with stable, unique ids; without
    it a row's id is its position in the file (``row-000001``), so that editing the file later would give other records the
    ids. ``group``: column that says whose a record is, a person say;
    ids then are grouped (:func:`s3t.records.grouped`), and a group lies in one split and one slot. ``validation``, ``test``:
    files of the never-deletable splits, read with the same columns; a split without a file is a tenth of ``path`` by a hash
    of the id. ``classes``: all labels in index order; without them the sorted labels of validation and test. ``number``:
    labels are numbers in this range, LOW:HIGH, declared for the same reason (:class:`s3t.records.Range`). ``source`` is
    a spec that loads the same again. Raises DataError, naming row or column and a remedy, for anything that cannot be read
    as declared.
    """
    if choices is not None:
        check_alone(choices, image=image, classes=classes, number=number)
    files: dict[Split, Path] = {"train": Path(path)}
    if validation is not None:
        files["validation"] = Path(validation)
    if test is not None:
        files["test"] = Path(test)
    _check_apart(files)
    usual = (text, label, answer, image, choices) == ("text", "label", None, None, None)
    alpaca = usual and has_instructions(read_table(files["train"]))
    named = (None if alpaca else image or text, "output" if alpaca else answer or label, id, group)
    given = {split: _rows(file, named=named, choices=choices, split=split) for split, file in files.items()}
    folders = {row[0]: files[split].parent for split, rows in given.items() for row in rows}
    assign = _assignment(validation is not None, test is not None)
    parts: dict[Split, list[Raw]] = {
        "train": [],
        "validation": given.get("validation", []),
        "test": given.get("test", []),
    }
    for row in given["train"]:
        parts[assign(row[0])].append(row)
    _check_ids(parts, files)
    if not parts["train"]:
        raise DataError(f"{path} leaves no records to train on after validation and test; give more rows")
    declared = classes if choices is None else CANDIDATE
    if alpaca or answer is not None:
        chosen = text_classes(str(path), classes=classes, number=number, image=image, choices=choices)
    else:
        chosen = _classes(parts, declared, str(path)) if number is None else numbers(number, classes)
    index = {known: position for position, known in enumerate(chosen)}

    def record(row_id: str, words: tuple[str, ...], cell: str) -> Record:
        if is_text(chosen):
            return Record(row_id, {"text": words[0], "answer": cell}, 0)
        inputs = _inputs(folders[row_id], words, image)
        return Record(
            row_id, inputs, index[cell] if number is None else to_number(cell, f"record {row_id!r} of {path}")
        )

    records = {split: tuple(record(*row) for row in rows) for split, rows in parts.items()}
    options = {
        "text": None if text == "text" else text,
        "answer": answer,
        "image": image,
        "choices": choices,
        "label": None if label == "label" else label,
        "id": id,
        "group": group,
        "number": number,
    }
    options |= {"validation": _word(validation), "test": _word(test), "name": name}
    source = write_spec(str(path), {**options, "classes": None if classes is None else list(classes)})
    title = name or Path(path).stem
    return Dataset(title, chosen, records["train"], records["validation"], records["test"], source)


def _inputs(folder: Path, cells: Sequence[str], image: str | None) -> Inputs:
    if image is None:
        return dict(zip(("text", "text_pair"), cells, strict=False))
    return {"image": read_image(folder / cells[0], folder)}


def _word(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _assignment(validation: bool, test: bool) -> Callable[[str], Split]:
    """Return how the main file's records are split, given which of the other splits have files of their own."""
    if validation and test:
        return lambda record_id: "train"
    return carve_test if validation else carve_validation if test else three_way


def _check_apart(files: Mapping[Split, Path]) -> None:
    seen: dict[Path, Split] = {}
    for split, file in files.items():
        place = file.resolve()
        if place in seen:
            raise DataError(
                f"{file} is given as {seen[place]} and as {split}; a record that is in both could not be deleted"
            )
        seen[place] = split


def _check_ids(parts: Mapping[Split, Sequence[Raw]], files: Mapping[Split, Path]) -> None:
    """Raise DataError for an id that two files share; each file by itself was checked row by row."""
    seen: dict[str, Split] = {}
    for split, rows in parts.items():
        for row_id, _, _ in rows:
            if row_id in seen:
                both = " and ".join(str(files.get(each, files["train"])) for each in (seen[row_id], split))
                raise DataError(f"record id {row_id!r} occurs twice, in {both}; ids must be unique over all splits")
            seen[row_id] = split


def _classes(parts: Mapping[Split, Sequence[Raw]], declared: Sequence[str] | None, where: str) -> tuple[str, ...]:
    if declared is None:
        chosen = tuple(sorted({answer for split in ("validation", "test") for _, _, answer in parts[split]}))
        origin = f"the classes {list(chosen)} of its validation and test records"
    else:
        chosen = tuple(declared)
        origin = f"the declared classes {list(chosen)}"
    if len(chosen) < 2 or len(set(chosen)) != len(chosen):
        raise DataError(
            f"{where} is left with the classes {list(chosen)}; declare at least 2 distinct ones with --classes"
        )
    for rows in parts.values():
        for row_id, _, answer in rows:
            if answer not in chosen:
                raise DataError(
                    f"record {row_id!r} of {where} has label {answer!r}, which is not among {origin}"
                    f"{did_you_mean(answer, chosen)}; declare all classes with --classes"
                )
    return chosen


def _rows(
    path: Path, *, named: tuple[str | None, str, str | None, str | None], choices: str | None, split: Split
) -> list[Raw]:
    """Return a file's rows. The first of the columns ``named`` is None for prompts made of instructions."""
    text, label, id_column, group = named
    table = read_table(path)
    columns = [prompts(table) if text is None else table.column(text), table.column(label)]
    prefix = "row" if split == "train" else split
    ids = [f"{prefix}-{number:06d}" for number in range(1, len(columns[0]) + 1)]
    if id_column is not None:
        ids = table.column(id_column)
    if not ids:
        raise DataError(f"{path} has no rows; give a file with records")
    if group is not None:
        ids = _grouped(path, table.column(group), group, ids)
    seen: dict[str, int] = {}
    for number, (row_id, words, answer) in enumerate(zip(ids, *columns, strict=True), start=1):
        if not row_id or row_id.endswith(SEPARATOR):
            raise DataError(f"{path}: row {number} has no {id_column!r}; every record needs an id")
        if row_id in seen:
            raise DataError(
                f"{path}: record id {row_id!r} occurs twice, in rows {seen[row_id]} and {number}; make ids unique"
            )
        seen[row_id] = number
        for column, cell in ((text or "instruction", words.strip()), (label, answer.strip())):
            if not cell:
                raise DataError(f"{path}: row {number} ({row_id!r}) has no {column!r}; drop it or fill it in")
    if choices is not None:
        return _candidates(path, ids, columns, choices)
    return [(row_id, (words,), answer) for row_id, words, answer in zip(ids, *columns, strict=True)]


def _candidates(path: Path, ids: Sequence[str], columns: Sequence[Sequence[str]], choices: str) -> list[Raw]:
    """Return every row's choices as records of their own; ``columns``: the questions, and what says which choice is right."""
    names, table = choice_columns(choices), read_table(path)
    found: list[Raw] = []
    options = zip(*(table.column(name) for name in names), strict=True)
    for number, (row_id, question, label, cells) in enumerate(zip(ids, *columns, options, strict=True), start=1):
        try:
            right = right_choice(label, names, cells)
        except DataError as error:
            raise DataError(f"{path}: row {number} ({row_id!r}): {error}") from error
        for name, cell in zip(names, cells, strict=True):
            if cell.strip():
                found.append((candidate(row_id, name), (question, cell), CANDIDATE[name == right]))
    return found


def _grouped(path: Path, groups: Sequence[str], column: str, ids: Sequence[str]) -> list[str]:
    found = []
    for number, (group, row_id) in enumerate(zip(groups, ids, strict=True), start=1):
        try:
            found.append(grouped(group, row_id))
        except DataError as error:
            raise DataError(f"{path}: row {number}, column {column!r}: {error}") from error
    return found
