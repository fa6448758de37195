"""Further systems drawn with seeds of their own, and what they serve as probabilities; for the levels that count.

A drawn system is asked after its fit as well as after its history: what is cached when a system first serves is part of
how it behaves (planted leak 19). It is closed and its folder deleted at once.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s3t.contract import Progress, UnlearningSystem
from s3t.errors import OfflineError, S3TError
from s3t.records import Record
from verify import derive
from verify.case import CannotPlayError, Case, Event, Variant, apply, play

Array = NDArray[np.float64]
LEAST = 1e-7
"""Probabilities are kept this far from 0 and 1 where their logarithm is taken: about one ULP of float32 at 1."""


@dataclass(frozen=True)
class Drawn:
    """What one system served: scores of shape (asked, classes) ``before`` the history and ``after``; None if unusable.

    ``why``: "offline" or "not finite" where ``after`` (else ``before``) is None; empty if both can be used.
    """

    before: Array | None
    after: Array | None
    why: str = ""


def derived_seed(*what: str | int) -> int:
    """Return a run seed in 0 .. 2^63 - 1, from SHA-256 of ``what``: fixed before any system is drawn."""
    return int.from_bytes(derive.digest(["s3t sample v1", *what])[:8], "big") % 2**63


@contextmanager
def workplace() -> Iterator[Path]:
    """Give a folder for the systems that are drawn; it goes when the body ends."""
    with tempfile.TemporaryDirectory(prefix="s3t-sample-") as name:
        yield Path(name)


def draw(
    case: Case,
    folder: Path,
    seed: int,
    records: Sequence[Record],
    history: Sequence[Event],
    asked: Sequence[Record],
    progress: Progress | None = None,
) -> Drawn:
    """Make a system with run seed ``seed`` in ``folder``, fit it on ``records``, repeat ``history``, and ask it.

    Raises CannotPlayError if it cannot be fitted or brought through the history.
    """
    system: UnlearningSystem | None = None
    try:
        system = case.lab.make(folder, Variant(seed=seed))
        play(system, records, (), progress)
        before, why_before = _ask(system, asked)
        present = {record.id for record in records}
        for event in history:
            apply(system, event, present, progress)
        after, why_after = _ask(system, asked)
        return Drawn(before, after, why_after or why_before)
    except CannotPlayError:
        raise
    except S3TError as error:
        raise CannotPlayError(f"a further system cannot be brought through the history: {error}") from error
    finally:
        getattr(system, "close", lambda: None)()
        shutil.rmtree(folder, ignore_errors=True)


def _ask(system: UnlearningSystem, asked: Sequence[Record]) -> tuple[Array | None, str]:
    try:
        scores = np.asarray(system.predict([record.inputs for record in asked]), dtype=np.float64)
    except OfflineError:
        return None, "offline"
    return (scores, "") if np.isfinite(scores).all() else (None, "not finite")


def log_probabilities(scores: Array) -> Array:
    """Return the logarithms of what is served as probabilities, shape (asked, classes), at least log(1e-7).

    Scores that are probabilities already (none negative, every row adds up to 1) are taken as they are, others are logits.
    """
    if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, rtol=0, atol=1e-5):
        return np.asarray(np.log(np.maximum(scores, LEAST)), dtype=np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.asarray(np.maximum(logs, np.log(LEAST)), dtype=np.float64)


def true_class(logs: Array, asked: Sequence[Record]) -> Array:
    """Return log p of the true class of each of ``asked``, shape (asked,)."""
    return logs[np.arange(len(asked)), [int(record.label) for record in asked]]


def confidences(logs: Array, asked: Sequence[Record]) -> Array:
    """Return log(p / (1 - p)) of the true class, shape (asked,). Carlini et al. 2022, section V-A ("logit scaling")."""
    own = true_class(logs, asked)
    others = logs.copy()
    others[np.arange(len(asked)), [int(record.label) for record in asked]] = -np.inf
    top = others.max(axis=1)
    rest = top + np.log(np.exp(others - top[:, None]).sum(axis=1))
    return np.asarray(own - np.maximum(rest, np.log(LEAST)), dtype=np.float64)
