"""Instructions and answers as files of instruction tuning have them: the Alpaca format (Taori et al. 2023).

A row has ``instruction``, ``output``, and ``input``, which may be missing or empty. The prompt is written in that project's
short form: a heading for each part, and one for the response that follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from s3t.answers import TEXT
from s3t.data.pack import Pack
from s3t.data.splits import Split, dataset_of, three_way
from s3t.data.tables import Table, read_table
from s3t.errors import DataError
from s3t.records import Dataset, Record

COLUMNS = ("instruction", "input", "output")


def prompt(instruction: str, given: str = "") -> str:
    """Return the prompt of an instruction and what it is ``given``, up to where the response begins."""
    parts = [("Instruction", instruction), ("Input", given)]
    return "".join(f"### {name}:\n{text.strip()}\n\n" for name, text in parts if text.strip()) + "### Response:\n"


def has_instructions(table: Table) -> bool:
    """Say whether a table is in the Alpaca format and has no column "text" that would be read instead."""
    return is_alpaca(table.names) and "text" not in table.names


def is_alpaca(names: Sequence[str]) -> bool:
    """Say whether columns of these names are those of the Alpaca format, and none is a label."""
    return {"instruction", "output"} <= set(names) and "label" not in names


def as_prompt(cells: Sequence[object]) -> tuple[str]:
    """Return the prompt of a row's cells, instruction and input, in a tuple: an empty one without an instruction."""
    instruction, *given = ("" if cell is None else str(cell) for cell in cells)
    return (prompt(instruction, *given) if instruction.strip() else "",)


def prompts(table: Table) -> list[str]:
    """Return the prompts of a table in the Alpaca format; a row without an instruction gets an empty one."""
    columns = [table.column(name) for name in ("instruction", "input") if name in table.names]
    return [as_prompt(cells)[0] for cells in zip(*columns, strict=True)]


def parse(pack: Pack, folder: Path) -> Dataset:
    """Return the data set of a fetched pack in the Alpaca format: of equal prompts the first, split by a hash of the id."""
    return dataset_of(pack, _records(pack, folder))


def _records(pack: Pack, folder: Path) -> Iterator[tuple[Split, Record]]:
    table = read_table(folder / pack.files[0].file)
    seen: set[str] = set()
    for position, (text, answer) in enumerate(zip(prompts(table), table.column("output"), strict=True)):
        if text and answer.strip() and text not in seen:
            seen.add(text)
            record_id = f"{pack.name}-{position:05d}"
            yield three_way(record_id), Record(record_id, {"text": text, "answer": answer}, 0)


def text_classes(where: str, **said: object) -> tuple[str, ...]:
    """Return the "class" of a task whose answers are texts. DataError if labels of another kind are ``said`` too."""
    for name, value in said.items():
        if value is not None:
            raise DataError(f"the answers of {where} are texts, so {name}={value!r} means nothing; leave it out")
    return TEXT
