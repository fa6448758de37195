"""What the layers below every adapter make of a slice's rows: computed once per slice, used by all epochs, stages and orders.

The rows of one slice are put through the frozen prefix in batches formed from that slice alone, so their activations are a
function of the slice's retained rows and of nothing else; whether they come from memory, from a mapped file, or are computed
again cannot change a bit. They are as personal as the rows: they live in memory, or in files that are erased with the slice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from s3t.backbone import Encoded
from s3t.engine.encoder import Encoder

BATCH = 64
"""Rows per batch in which a slice passes the frozen prefix."""


@dataclass(frozen=True)
class Piece:
    """A slice's rows at one depth: ``flat`` (tokens of all rows, hidden), row ``i`` at ``starts[i]``, ``lengths[i]`` long."""

    flat: Tensor
    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    @cached_property
    def length(self) -> int | None:
        """How long every row is, or None if they differ."""
        found = set(self.lengths)
        return found.pop() if len(found) == 1 else None

    def row(self, i: int) -> Tensor:
        """Return row ``i``: (tokens, hidden)."""
        return self.flat[self.starts[i] : self.starts[i] + self.lengths[i]]


def activate(encoder: Encoder, rows: Sequence[Encoded], depths: Iterable[int]) -> dict[int, Piece]:
    """Put ``rows`` (of one slice, in order of id) through the layers below the largest of ``depths``.

    Batches of 64 rows of similar length (stable sort), each padded to its own longest.
    """
    wanted = sorted(set(depths))
    lengths = tuple(row.length for row in rows)
    starts = tuple(accumulate(lengths, initial=0))[:-1]
    backbone = encoder.backbone
    flat = {
        depth: torch.empty(sum(lengths), backbone.hidden, dtype=encoder.dtype, device=backbone.device)
        for depth in wanted
    }
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    with torch.no_grad():
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            hidden = encoder.embed([rows[i] for i in batch])
            bias = encoder.bias([lengths[i] for i in batch])
            for depth in range(wanted[-1] + 1):
                if depth:
                    hidden = encoder.layers[depth - 1](hidden, bias)
                if depth in flat:
                    for at, i in enumerate(batch):
                        flat[depth][starts[i] : starts[i] + lengths[i]] = hidden[at, : lengths[i]]
    return {depth: Piece(flat[depth], starts, lengths) for depth in wanted}


def gather(
    pieces: Sequence[Piece], where: Sequence[tuple[int, int]], device: torch.device | None = None
) -> tuple[Tensor, list[int]]:
    """Return a padded batch (rows, longest, hidden) of the rows ``where`` (piece, row in it), and their lengths.

    It is made on ``device``, or where the first piece is; pieces that were spilled are on the CPU.
    """
    lengths = [pieces[piece].lengths[i] for piece, i in where]
    flat = pieces[0].flat
    device = device or flat.device
    used = {piece for piece, _ in where}
    if len({pieces[piece].length for piece in used} | set(lengths)) == 1:
        return _gather_alike(pieces, where, lengths[0], device), lengths
    out = torch.zeros(len(where), max(lengths), flat.shape[1], dtype=flat.dtype, device=device)
    for at, (piece, i) in enumerate(where):
        out[at, : lengths[at]] = pieces[piece].row(i)
    return out, lengths


def _gather_alike(
    pieces: Sequence[Piece], where: Sequence[tuple[int, int]], length: int, device: torch.device
) -> Tensor:
    """Return a batch of rows that are all ``length`` long, with one copy per piece instead of one per row."""
    width = pieces[0].flat.shape[1]
    out = torch.empty(len(where), length, width, dtype=pieces[0].flat.dtype, device=device)
    for piece in sorted({piece for piece, _ in where}):
        flat = pieces[piece].flat
        places = torch.tensor([at for at, (there, _) in enumerate(where) if there == piece], device=device)
        rows = torch.tensor([i for there, i in where if there == piece], device=flat.device)
        out.index_copy_(0, places, flat.view(-1, length, width).index_select(0, rows).to(device))
    return out


class Activations:
    """Keeps slices' activations for one build: up to ``budget`` bytes in memory, the rest in files without a name that
    were made below ``folder``.

    Entries go by a key that covers the slice's retained rows and everything that the prefix depends on: after a deletion
    the key is another one, and what was kept under the old one stays in this process until the build ends. ``folder`` None:
    what does not fit is computed again. :meth:`close` erases everything.
    """

    def __init__(self, budget: int, folder: Path | None = None) -> None:
        self._budget = budget
        self._folder = folder
        self._kept: dict[str, dict[int, Piece]] = {}
        self._bytes = 0
        self.computed = 0
        self.spilled = 0

    def get(self, key: str, depth: int, make: Callable[[], dict[int, Piece]]) -> Piece:
        """Return the slice at ``depth``; ``make`` computes all its depths if they are not here."""
        if key in self._kept:
            return self._kept[key][depth]
        made = make()
        self.computed += 1
        size = sum(piece.flat.numel() * piece.flat.element_size() for piece in made.values())
        if self._bytes + size <= self._budget:
            self._bytes += size
            self._kept[key] = made
        elif self._folder is not None:
            made = self._spill(self._folder / key, made)
            self._kept[key] = made
        return made[depth]

    def close(self) -> None:
        """Forget all and erase the files."""
        self._kept.clear()
        self._bytes = 0
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _spill(self, folder: Path, made: Mapping[int, Piece]) -> dict[int, Piece]:
        folder.mkdir(parents=True, exist_ok=True)
        out = {}
        for depth, piece in made.items():
            path = folder / f"{depth:03d}"
            count = piece.flat.numel()
            mapped = torch.from_file(str(path), shared=True, size=count, dtype=piece.flat.dtype)
            path.unlink()  # it lives as long as the mapping does, and nothing on the disk has its name
            mapped.copy_(piece.flat.reshape(-1))
            self.spilled += count * piece.flat.element_size()
            out[depth] = Piece(mapped.view(piece.flat.shape), piece.starts, piece.lengths)
        return out
