"""Models that predict text, for the oracle, from docs/DERIVATION.md: log-likelihoods, and packed batches, every width tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from s3t.backbone import Encoded


def likelihoods(backbone: Any, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return sums and numbers of log-likelihoods, (rows, 2): each token that is asked for, from the state before it."""
    given = {name: tensor.to(backbone.device) for name, tensor in batch.items()}
    asked, ids = given.pop("answers"), given["input_ids"]
    hidden = model(**given).last_hidden_state
    places = [(row, at) for row in range(len(ids)) for at in range(1, ids.shape[1]) if asked[row, at]]
    rows, at = (torch.tensor(part) for part in zip(*places, strict=True))
    logits = hidden[rows, at - 1] @ backbone.output.T
    table = torch.log_softmax(logits.float(), dim=1)[torch.arange(len(rows)), ids[rows, at]]
    spread = torch.zeros(len(ids), ids.shape[1] - 1, device=hidden.device).index_put((rows, at - 1), table)
    return torch.stack([spread.sum(1), asked[:, 1:].sum(1).float()], dim=1)


def rows_of_packs(lengths: Sequence[int], pieces: Sequence[int], limit: int) -> list[list[int]]:
    """Return the rows of a batch of records of these lengths and slices, as positions in the batch."""
    tried = [_laid(lengths, pieces, width) for width in range(max(lengths), min(limit, sum(lengths)) + 1)]
    return min(tried, key=lambda rows: len(rows) * _longest(rows, lengths))  # the first of several is the narrowest


def packed_batch(
    records: Sequence[Encoded], pieces: Sequence[int], limit: int, pad: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return what the model reads of ``records`` in packed rows, and ``answers``: which tokens are asked for."""
    lengths = [record.length for record in records]
    rows = rows_of_packs(lengths, pieces, limit)
    tokens = _longest(rows, lengths)
    batch = {name: torch.full((len(rows), tokens), value) for name, value in pad.items()}
    places = torch.zeros(len(rows), tokens, dtype=torch.int64)
    mask = torch.full((len(rows), 1, tokens, tokens), torch.finfo(torch.float32).min)
    for number, row in enumerate(rows):
        begin = 0
        for i in row:
            for at in range(lengths[i]):
                for name in pad:
                    batch[name][number, begin + at] = records[i].fields[name][at]
                places[number, begin + at] = at
                mask[number, 0, begin + at, begin : begin + at + 1] = 0
            batch["answers"][number, begin] = 0
            begin += lengths[i]
        for at in range(begin, tokens):
            mask[number, 0, at, begin : at + 1] = 0
    return {**batch, "position_ids": places, "attention_mask": mask}


def _laid(lengths: Sequence[int], pieces: Sequence[int], width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row in rows:
            if pieces[row[0]] == pieces[i] and sum(lengths[j] for j in [*row, i]) <= width:
                row.append(i)
                break
        else:
            rows.append([i])
    return rows


def _longest(rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    return max(sum(lengths[i] for i in row) for row in rows)
