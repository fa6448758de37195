"""Data sets by hub name (``owner/name``, ``owner/name:config``, ``glue/sst2``) through the ``datasets`` library.

``datasets`` keeps a copy of what it downloads in its own cache; that copy is outside every run folder and no deletion
erases it. A local folder in the hub's format (parquet files, a README.md with the features) is read without a copy.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3t.answers import CANDIDATE, Range
from s3t.data.image_folders import check_image, read_image
from s3t.data.instructions import COLUMNS as ALPACA
from s3t.data.instructions import as_prompt, is_alpaca, text_classes
from s3t.data.numbers import numbers, to_number
from s3t.data.questions import Form, check_alone, choice_columns, own, records
from s3t.data.splits import Split, carve_test, carve_validation, three_way
from s3t.data.tasks import Task, find_task
from s3t.errors import DataError, did_you_mean
from s3t.records import Dataset, Inputs, Record, grouped

_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_HIDDEN = (None, -1)
_TIMEOUT = 10.0


def is_hub_name(name: str) -> bool:
    """Say whether ``name`` has the form ``owner/name`` or ``owner/name:config``."""
    return _NAME.fullmatch(name) is not None


def load_hub(
    name: str,
    *,
    text: str | None = None,
    answer: str | None = None,
    choices: str | None = None,
    label: str | None = None,
    id: str | None = None,
    group: str | None = None,
    classes: Sequence[str] | None = None,
    number: str | None = None,
    validation: str | None = None,
    test: str | None = None,
) -> Dataset:
    """Return a hub data set, or that of a local folder in the hub's format.

    ``text`` (default "text") may name two columns, ``question,sentence``: inputs then are ``text`` and ``text_pair``. A
    column of images, named by ``text`` or the only one where there is no column "text", gives ``{"image": bytes}``.
    ``answer``: column of the texts to answer with, for language models; a set in the Alpaca format, without a column "label",
    is read so by itself (:mod:`s3t.data.instructions`). ``choices``: columns of candidate answers to the question in ``text``,
    as in :func:`s3t.data.local.load_local`; the rows of a task that has such become several records each. ``id``: column of
    the ids, else the split and position of the row. ``group``: column that says whose a row is, as in
    :func:`s3t.data.local.load_local`. Classes are the label feature's own names unless declared; ``number``: the labels are
    numbers in this range, LOW:HIGH. ``validation``, ``test``: the splits'
    names. A test split whose labels are hidden (-1) is not used: the validation split is the test then, and validation is a
    tenth of train by a hash of the id. Rows without text or label are left out. Raises DataError if the data cannot be
    reached or is not as declared.
    """
    path, _, config = name.partition(":")
    usual, named, form = "validation", label or "label", None
    task = find_task(name)
    asked = _questions(task, name, text=text, choices=choices, label=label, id=id, classes=classes, number=number)
    if task:
        path, config, usual = task.path, task.config, task.validation
        text, named = text or task.columns, label or task.label
        number = task.number if classes is None and number is None else number
        form = task.form if text == task.columns else None
    columns = [column.strip() for column in (text or "text").split(",")]
    if len(columns) > (1 if choices else 2) and form is None and not (task and asked):
        raise DataError(
            f"text={text!r} names {len(columns)} columns; give one"
            + (", the question's, beside the choices" if choices else ", or two separated by a comma")
        )
    with tempfile.TemporaryDirectory(prefix="s3t-hub-") as scratch:  # holds what is made of a local folder, for now
        tables = _load(name, path, config, scratch)
        if "train" not in tables:
            raise DataError(f"data {name!r} has no train split; it has {', '.join(map(str, tables))}")
        train = tables["train"]
        if text is None and not asked:
            columns = _images_in(train) or columns
        if alpaca := (text, label, answer) == (None, None, None) and not asked and is_alpaca(train.column_names):
            columns, form = [column for column in ALPACA[:2] if column in train.column_names], as_prompt
        named = answer or (ALPACA[2] if alpaca else named)
        more = choice_columns(choices) if choices else []
        _check_columns(name, train.column_names, [*columns, *more, named, *filter(None, (id, group))])
        hidden = _HIDDEN if number is None or Range.parse(number).low > -1 else _HIDDEN[:1]
        labelled = {source: _labelled(table, named, hidden) for source, table in tables.items()}
        chosen = _choose_splits(name, labelled, validation, test, usual)
        own_names = getattr(train.features[named], "names", None)
        if texts := alpaca or answer is not None:
            known = text_classes(repr(name), classes=classes, number=number, choices=choices)
        else:
            named_classes = tuple(classes or own_names or ()) if number is None else numbers(number, classes)
            known = CANDIDATE if asked else named_classes
        if len(known) < 2 and number is None and not texts:
            raise DataError(f"column {named!r} of {name!r} does not name its classes; declare them with --classes")
        parts: dict[Split, list[Record]] = {"train": [], "validation": [], "test": []}
        for split, source in chosen.items():
            for position, row in enumerate(_as_files(tables[source])):
                if _is_hidden(row[named], hidden):
                    continue
                whose = str(row[group] or "") if group else None
                if asked:
                    place = asked.question(row) if asked.question else f"{position:07d}"
                    question = str(row[id]) if id else f"{source}-{place}"
                    for record in records(asked, row, question, whose, repr(name)):
                        parts[_place(record.id, split, chosen)].append(record)
                    continue
                cells = [row[column] for column in columns]
                inputs = _inputs(cells if form is None else form(cells), Path(path))
                if not inputs:
                    continue
                record_id = str(row[id]) if id else f"{source}-{position:07d}"
                record_id = record_id if whose is None else grouped(whose, record_id)
                where = f"record {record_id!r} of {name!r}"
                if isinstance(shown := inputs.get("image"), bytes):
                    check_image(shown, where)
                cell = own_names[row[named]] if own_names else row[named]
                said: int | float = 0
                if texts:
                    inputs = {**inputs, "answer": str(cell)}
                else:
                    said = _index(known, str(cell), record_id) if number is None else to_number(cell, where)
                parts[_place(record_id, split, chosen)].append(Record(record_id, inputs, said))
    return Dataset(name, known, tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]), source=name)


def _questions(task: Task | None, name: str, *, text: str | None, choices: str | None, **more: Any) -> Form | None:
    """Return how rows are read as candidate answers, or None. DataError for options that do not go with that."""
    if task and task.questions:
        odd = [option for option, value in {"text": text, "choices": choices, **more}.items() if value is not None]
        if odd:
            raise DataError(f"task {name!r} has questions of a form of its own; leave out {', '.join(odd)}")
        return task.questions
    if choices is None:
        return None
    if task:
        raise DataError(f"task {name!r} has no questions with choices; leave out choices")
    check_alone(choices, classes=more["classes"], number=more["number"])
    return own(text or "text", choices, more["label"] or "label")


def _images_in(table: Any) -> list[str]:
    """Return the only column of images, in a list, of a table without a column "text"; else nothing."""
    import datasets

    found = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    return found if len(found) == 1 and "text" not in table.column_names else []


def _as_files(table: Any) -> Any:
    """Return the table with images as the bytes of their files, not decoded."""
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _inputs(cells: Sequence[Any], folder: Path) -> Inputs:
    """Return a row's inputs from its cells; nothing if the first is empty. Of a local ``folder`` no file outside it is read."""
    if isinstance(cells[0], Mapping):
        data, file = cells[0].get("bytes"), cells[0].get("path")
        if not data and file:
            data = read_image(Path(file), folder if folder.is_dir() else Path(file).parent)
        return {"image": data} if data else {}
    texts = ["" if cell is None else str(cell) for cell in cells]
    return dict(zip(("text", "text_pair"), texts, strict=False)) if texts[0].strip() else {}


def _load(name: str, path: str, config: str, scratch: str) -> Mapping[str, Any]:
    """Return the splits. Without a connection this fails at once, where ``datasets`` would try five times over."""
    import datasets
    from huggingface_hub import HfApi, constants

    datasets.disable_progress_bars()
    local = Path(path).is_dir()
    try:
        if not local and not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(path, timeout=_TIMEOUT)
        loaded: Mapping[str, Any] = datasets.load_dataset(path, config or None, cache_dir=scratch if local else None)
    except Exception as error:  # the libraries raise many kinds for one fault: not reachable, or not a data set
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"data {name!r} is no pack and no file here, and cannot be loaded from the hub: {reason}. Check the name and the "
            "connection; with HF_HUB_OFFLINE=1 only what an earlier run left in the hub's cache is used"
        ) from error
    return loaded


def _choose_splits(
    name: str, labelled: Mapping[str, bool], validation: str | None, test: str | None, usual: str
) -> dict[Split, str]:
    """Return our split -> the hub's, for those that have one of their own; ``usual`` is validation's common name.

    ``labelled``: whether each of the hub's splits shows labels.
    """
    chosen: dict[Split, str] = {"train": "train"}
    wishes: tuple[tuple[Split, str | None, str], ...] = (("validation", validation, usual), ("test", test, "test"))
    for split, asked, common in wishes:
        source = asked or common
        if labelled.get(source):
            chosen[split] = source
        elif asked is not None and asked in labelled:
            raise DataError(f"split {asked!r} of {name!r} hides its labels; name another one for {split}")
        elif asked is not None:
            known = [str(split) for split in labelled]
            raise DataError(
                f"data {name!r} has no split {asked!r} for {split}{did_you_mean(asked, known)}; it has {', '.join(known)}"
            )
    if "test" not in chosen and "validation" in chosen and validation is None:
        chosen["test"] = chosen.pop("validation")
    if len(set(chosen.values())) < len(chosen):
        raise DataError(f"data {name!r}: the splits {chosen} are not apart; a record in two could not be deleted")
    return chosen


def _place(record_id: str, split: Split, chosen: Mapping[Split, str]) -> Split:
    if split != "train":
        return split
    if "test" in chosen:
        return "train" if "validation" in chosen else carve_validation(record_id)
    return carve_test(record_id) if "validation" in chosen else three_way(record_id)


def _check_columns(name: str, known: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in known:
            raise DataError(
                f"data {name!r} has no column {column!r}{did_you_mean(column, known)}; it has {', '.join(known)}"
            )


def _labelled(table: Any, label: str, hidden: Sequence[Any]) -> bool:
    return label in table.column_names and any(not _is_hidden(value, hidden) for value in table[label])


def _is_hidden(value: Any, hidden: Sequence[Any]) -> bool:
    """Say whether a label is one of ``hidden``, or the empty list of a question's answers."""
    return value in hidden or value == []


def _index(known: tuple[str, ...], answer: str, record_id: str) -> int:
    if answer not in known:
        raise DataError(f"record {record_id!r} has label {answer!r}, which is not among {list(known)}; see --classes")
    return known.index(answer)
