"""Judging language models without generating: the likelihood of held-out answers, and which of several is the likeliest.

A question's choices are its own answer and those of other held-out records; the model's choice is the one of the largest mean
log-likelihood per token, as lm-evaluation-harness's ``acc_norm`` ranks them (Gao et al. 2021).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s3t.contract import UnlearningSystem
from s3t.errors import OfflineError
from s3t.records import Dataset, Inputs, Record

CHOICES = 4
"""Answers that a question is given, its own among them."""


@dataclass(frozen=True)
class Judged:
    """What held-out records say of a system: their mean log-likelihood, and the share ranked rightly.

    An offline system answers none: no likelihood, and 0 ranked rightly.
    """

    log_likelihood: float | None
    ranked: float


def judge(system: UnlearningSystem, records: Sequence[Record]) -> Judged:
    """Return how ``system`` does on held-out ``records``, of which there are at least CHOICES."""
    asked = [choice for choices in ranked_choices(records) for choice in choices]
    try:
        scores = np.asarray(system.predict(asked))[:, 0].reshape(len(records), CHOICES)
    except OfflineError:
        return Judged(None, 0.0)
    return Judged(float(scores[:, 0].mean()), float(np.mean(scores.argmax(axis=1) == 0)))


def ranked_choices(records: Sequence[Record]) -> list[list[Inputs]]:
    """Return each record's choices, its own answer first, then those of others, drawn by the record's id: always the same.

    ValueError for fewer than CHOICES records.
    """
    if len(records) < CHOICES:
        raise ValueError(f"{len(records)} records give no {CHOICES} choices; hold out at least {CHOICES}")
    out = []
    for record in records:
        others = [other for other in records if other.inputs["answer"] != record.inputs["answer"]]
        drawn = random.Random(f"s3t choices v1 {record.id}").sample(others, CHOICES - 1)
        out.append([record.inputs, *({**record.inputs, "answer": other.inputs["answer"]} for other in drawn)])
    return out


def made_instructions(count: int) -> Dataset:
    """Return made-up instructions for the smoke profile: say a word and another. They show nothing about quality."""
    words = ["amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath", "islet", "jetty"]
    records = []
    for i in range(count):
        first, second = words[i % 10], words[(3 * i + 1 + i // 10) % 10]
        records.append(
            Record(f"made-{i:04d}", {"text": f"say {first} and {second}", "answer": f"{first} {second} {i}"}, 0)
        )
    cut = count * 3 // 4
    return Dataset("made instructions", ("text",), tuple(records[:cut]), (), tuple(records[cut:]))
