"""Packing: which records of a batch share a row of tokens (docs/DERIVATION.md, "Rows and batches of a node"). No torch."""

from __future__ import annotations

from collections.abc import Sequence

from s3t.errors import DataError


def packs(lengths: Sequence[int], pieces: Sequence[int], limit: int) -> list[list[int]]:
    """Return rows of positions in a batch: each position once, none of two slices in one row, no row over ``limit`` tokens.

    ``lengths`` are in tokens, ``pieces`` the records' slices. For a width, records are laid first-fit, the longest first, ties
    in batch order (Johnson 1973). The width is the one, from the longest record up to ``limit``, whose rows padded to their
    longest hold the fewest tokens, the narrowest of several. So they never hold more than the batch without packing, whose
    rows are as many as its records. DataError if a record is longer than ``limit``.
    """
    if not lengths:
        return []
    if max(lengths) > limit:
        raise DataError(f"a record of {max(lengths)} tokens does not fit into a row of {limit}; cut it to that")
    best: tuple[int, list[list[int]]] | None = None
    width = limit
    while width >= max(lengths):
        rows = _laid(lengths, pieces, width)
        width = max(sum(lengths[i] for i in row) for row in rows)  # every width down to this one gives the same rows
        if best is None or len(rows) * width <= best[0]:
            best = len(rows) * width, rows
        width -= 1
    assert best is not None, "the longest record has a row"
    return best[1]


def _laid(lengths: Sequence[int], pieces: Sequence[int], width: int) -> list[list[int]]:
    """Return the rows of one width: each record goes into the first row of its slice with room for it, else into a new one."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = (at for at, row in enumerate(rows) if room[at] >= lengths[i] and pieces[row[0]] == pieces[i])
        at = next(fits, len(rows))
        if at == len(rows):
            rows.append([])
            room.append(width)
        rows[at].append(i)
        room[at] -= lengths[i]
    return rows
