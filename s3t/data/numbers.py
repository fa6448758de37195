"""Labels that are numbers, as tables hold them: the declared range in the place of classes, and a cell as a number."""

from __future__ import annotations

from collections.abc import Sequence

from s3t.answers import Range
from s3t.errors import DataError


def numbers(wanted: str, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Return the only "class" of a task whose answers are in the range ``wanted``. DataError if there are classes too."""
    if classes is not None:
        raise DataError(f"the labels are either numbers, {wanted!r}, or the classes {list(classes)}; give one of them")
    return (Range.parse(wanted).name,)


def to_number(cell: object, where: str) -> float:
    """Return a cell as a number. DataError, naming ``where``, if it is none."""
    try:
        return float(str(cell))
    except ValueError as error:
        raise DataError(f"{where} has the label {cell!r}, which is no number; mend or drop it") from error
