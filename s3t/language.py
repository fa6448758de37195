"""Causal language models whose answers are texts: instruction tuning, with the loss on the answer alone.

A record is a prompt (``text``) and an answer (``answer``), or a text alone, all of which is the answer. The model reads the
prompt's tokens, then the answer's and the end of text; only the latter two are predicted. A record's score is the mean
log-likelihood of its answer's tokens, so scores of answers of different lengths can be compared, and an ensemble of chains is
the mean of their scores. There is no trained head: the output layer is the base model's own, frozen. Batches are formed of
records of similar length (the recipe's ``window``); with the recipe's ``packing`` the records of a batch are laid end to end
into fewer rows, where none sees another, so that the loss is the same and padding is saved. Only training packs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from s3t.backbone import Backbone, Encoded, Encoder, padded
from s3t.errors import DataError, ModelError, RecipeError
from s3t.packing import packs
from s3t.records import Inputs

ASKED = "answers"
"""The field of encoded rows that says which tokens are predicted: 1, or 0 for the prompt's."""

_PLACE, _RECORD = "position_ids", "record"
"""Fields of packed rows: a token's position in its record, and which record of the row it is of, from 1; padding is 0."""


@dataclass(frozen=True)
class Words:
    """How a language model's texts become ids: ``ids`` gives a text's without special tokens, ``begin`` stand before every row.

    Rows to train on or to predict have ``end`` behind and ``limit`` tokens at most. ``first``: what the first token is
    predicted from where a text has no context.
    """

    ids: Callable[[str], list[int]]
    begin: tuple[int, ...]
    end: int
    first: int
    limit: int


@dataclass(frozen=True)
class LanguageBackbone(Backbone):
    """A decoder with its frozen ``output`` layer, (vocabulary, hidden), and its ``words``."""

    output: Tensor
    words: Words
    predicts_text: ClassVar[bool] = True

    def encode(self, inputs: Sequence[Inputs], max_length: int) -> list[Encoded]:
        """Tokenize prompts and answers. One with more than ``max_length`` tokens loses the end of the answer, and the beginning
        of the prompt, which keeps half of the tokens at least. DataError for an empty text or answer."""
        for position, fields in enumerate(inputs):
            answer = fields.get("answer", "an answer")
            if not isinstance(answer, str) or not answer.strip():
                raise DataError(f"input {position} has an empty field 'answer'; fill it in, or drop the row")
        return super().encode(inputs, max_length)

    def check_packing(self, limit: int) -> None:
        """Raise RecipeError if some layers see less than ``limit`` tokens back: one mask would not do for all layers."""
        config: Any = self.model.config
        window = getattr(config, "sliding_window", None)
        if (
            window is not None
            and window < limit
            and "sliding_attention" in (getattr(config, "layer_types", None) or ())
        ):
            raise RecipeError(
                f"packing=True needs layers that see a whole record, and some of {self.name!r} see {window} tokens; leave it "
                f"out, or give max_length={window} at most"
            )

    def pack(self, rows: Sequence[Encoded], pieces: Sequence[int], limit: int) -> dict[str, Tensor]:
        """Return a batch for :meth:`outputs` with ``rows``, of these slices, laid end to end (:func:`s3t.packing.packs`).

        ``position_ids`` begin at 0 with each record. ``attention_mask`` (rows, 1, tokens, tokens), float32, is added to the
        scores of attention: 0 for tokens of the same record that are not later, the least number for all others. Of padding
        no record sees anything. A record's first token has nothing before it and is never asked for.
        """
        joined = [_joined([rows[i] for i in row]) for row in packs([row.length for row in rows], pieces, limit)]
        batch = padded(joined, {**self.pad, _PLACE: 0, _RECORD: 0}, self.device)
        record = batch.pop(_RECORD)
        seen = (record[:, :, None] == record[:, None, :]).tril()
        mask = torch.zeros(seen.shape, device=self.device).masked_fill_(~seen, torch.finfo(torch.float32).min)
        return {**batch, "attention_mask": mask[:, None]}

    def outputs(self, body: Callable[..., Any], head: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return for each row the sum of its answers' log-likelihoods, and how many tokens that are: (rows, 2), float32."""
        fields = dict(batch)
        asked = fields.pop(ASKED)[:, 1:].bool()
        hidden: Tensor = body(**fields).last_hidden_state[:, :-1]
        logits = nn.functional.linear(hidden[asked], self.output).float()
        found = -nn.functional.cross_entropy(logits, fields["input_ids"][:, 1:][asked], reduction="none")
        sums = torch.zeros(asked.shape, device=found.device).masked_scatter(asked, found).sum(1)
        return torch.stack([sums, asked.sum(1).float()], dim=1)

    def loss(self, outputs: Tensor, answers: Tensor) -> Tensor:
        """Return the mean loss over all predicted tokens of a batch; ``answers`` say nothing here."""
        return -outputs[:, 0].sum() / outputs[:, 1].sum()

    def scores(self, outputs: Tensor) -> Tensor:
        """Return the mean log-likelihood of each row's answer, (rows, 1)."""
        return outputs[:, :1] / outputs[:, 1:]

    def next_tokens(self, body: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
        """Return the log-likelihood of every token of the vocabulary as the next one: (marked tokens, vocabulary), float32.

        ``batch``: here ``answers`` marks the tokens after which the next one is asked for, in the order of the rows.
        """
        fields = dict(batch)
        asked = fields.pop(ASKED).bool()
        hidden: Tensor = body(**fields).last_hidden_state[asked]
        return nn.functional.linear(hidden, self.output).float().log_softmax(-1)


def encoder(words: Words) -> Encoder:
    """Return what encodes inputs, as rows to train on and to predict."""

    def encode(inputs: Sequence[Inputs], max_length: int) -> list[Encoded]:
        most = min(max_length, words.limit) - len(words.begin)
        if most < 4:
            raise DataError(f"max_length={max_length} leaves no room for a prompt and an answer; give at least 8")
        return [_row(fields, most) for fields in inputs]

    def _row(fields: Inputs, most: int) -> Encoded:
        prompt = words.ids(str(fields["text"])) if "answer" in fields else []
        answer = [*words.ids(str(fields["answer"] if "answer" in fields else fields["text"])), words.end]
        room = max(most - len(prompt), most - most // 2)  # for the answer
        answer = answer[:room]
        prompt = prompt[len(prompt) - min(len(prompt), most - len(answer)) :]
        ids = [*words.begin, *prompt, *answer]
        unasked = len(words.begin) + len(prompt)
        return Encoded({"input_ids": ids, ASKED: [0] * unasked + [1] * len(answer)}, len(ids))

    return encode


def _joined(records: Sequence[Encoded]) -> Encoded:
    """Return the row that holds ``records`` end to end."""
    fields = {name: [value for one in records for value in one.fields[name]] for name in records[0].fields}
    fields[ASKED] = [value for one in records for value in (0, *one.fields[ASKED][1:])]
    fields[_PLACE] = [place for one in records for place in range(one.length)]
    fields[_RECORD] = [number for number, one in enumerate(records, 1) for _ in range(one.length)]
    return Encoded(fields, sum(one.length for one in records))


def output_layer(model: nn.Module, given: Tensor | None, name: str) -> Tensor:
    """Return the frozen output layer: ``given``, or the input embeddings where the model ties the two. ModelError if it has
    neither."""
    config: Any = cast(Any, model).config
    if given is not None:
        return given.detach()
    if not getattr(config, "tie_word_embeddings", False):
        raise ModelError(f"model {name!r} has no output layer, so it predicts no text; give a causal language model")
    embedding: Any = cast(Any, model).get_input_embeddings()
    return cast(Tensor, embedding.weight.detach())
