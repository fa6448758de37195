"""Official metrics: of predicted and true classes (indices) or numbers, shape (rows,) each, by scikit-learn and SciPy; and of
questions whose candidate answers are scored one by one and ranked against one another.
"""

from __future__ import annotations

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3t.answers import answers
from s3t.errors import DataError, did_you_mean
from s3t.records import Record, question_of

Answers = Sequence[int] | Sequence[float]
Metric = Callable[[Any, Any, Answers, Answers], float]


@dataclass(frozen=True)
class Scored:
    """A candidate answer: its ``name``, by how much its score of being right exceeds that of being wrong, and whether it is."""

    name: str
    margin: float
    right: bool


METRICS: Mapping[str, Metric] = {
    "accuracy": lambda sk, sp, true, predicted: sk.accuracy_score(true, predicted),
    "f1": lambda sk, sp, true, predicted: sk.f1_score(
        true, predicted, average="binary", pos_label=1, zero_division=0.0
    ),
    "macro_f1": lambda sk, sp, true, predicted: sk.f1_score(true, predicted, average="macro", zero_division=0.0),
    "matthews": lambda sk, sp, true, predicted: sk.matthews_corrcoef(true, predicted),
    "pearson": lambda sk, sp, true, predicted: _or_zero(sp.pearsonr, true, predicted),
    "spearman": lambda sk, sp, true, predicted: _or_zero(sp.spearmanr, true, predicted),
    "log_likelihood": lambda sk, sp, true, predicted: sum(predicted) / len(predicted),
    "perplexity": lambda sk, sp, true, predicted: math.exp(-sum(predicted) / len(predicted)),
    "rmse": lambda sk, sp, true, predicted: sk.root_mean_squared_error(true, predicted),
}
"""By name, from ``sklearn.metrics`` and ``scipy.stats``: F1 is of class 1, macro F1 the mean over the classes that occur; a
correlation is 0 where either side has one value alone."""
OF_NUMBERS = ("pearson", "spearman", "rmse")
"""Those for tasks whose answers are numbers."""
OF_TEXTS = ("log_likelihood", "perplexity")
"""Those for tasks whose answers are texts: of the mean log-likelihoods of the true ones, each record weighing the same."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _or_zero(correlate: Callable[[Answers, Answers], Any], true: Answers, predicted: Answers) -> float:
    return 0.0 if len(set(true)) < 2 or len(set(predicted)) < 2 else float(correlate(true, predicted).statistic)


def measure(names: Sequence[str], predicted: Answers, true: Answers) -> dict[str, float]:
    """Return every named metric of predictions for rows of answers ``true``. DataError for an unknown name or no rows."""
    import scipy.stats
    import sklearn.metrics

    _check(names, list(METRICS))
    if not true or len(predicted) != len(true):
        raise DataError(f"{len(predicted)} predictions for {len(true)} rows; give one for each of at least one row")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found")  # what comes of that is stated above
        return {name: float(METRICS[name](sklearn.metrics, scipy.stats, true, predicted)) for name in names}


def _check(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise DataError(f"metric {name!r} is unknown{did_you_mean(name, known)}; choose from {', '.join(known)}")


def evaluate(names: Sequence[str], scores: Any, records: Sequence[Record], classes: Sequence[str]) -> dict[str, float]:
    """Return every named metric of ``scores``, an array (records, classes), for ``records``.

    Those of BY_QUESTION rank the candidates of a question against one another; all others are :func:`measure`'s, of the
    records' answers. Raises DataError as :func:`measure`, and for metrics by question where the classes are not two.
    """
    _check(names, [*METRICS, *BY_QUESTION])
    asked = [name for name in names if name in BY_QUESTION]
    others = [name for name in names if name not in BY_QUESTION]
    found = measure(others, answers(scores, classes), [record.label for record in records]) if others else {}
    if asked:
        questions = list(by_question(scores, records).values())
        found |= {name: BY_QUESTION[name](questions) for name in asked}
    return {name: found[name] for name in names}


def by_question(scores: Any, records: Sequence[Record]) -> dict[str, list[Scored]]:
    """Return each question's candidates in the order of ``records``, by the question's id; ``scores``: shape (records, 2).

    A candidate's margin is its log-odds of being right where an ensemble's scores are logits, and a difference of
    probabilities or votes where they are those. DataError for no records, and for scores of another shape.
    """
    if not records or tuple(scores.shape) != (len(records), 2):
        shape = tuple(scores.shape)
        raise DataError(f"scores of shape {shape} for {len(records)} candidates; give two for each of at least one")
    questions: dict[str, list[Scored]] = {}
    for record, (wrong, right) in zip(records, scores.tolist(), strict=True):
        question, name = question_of(record.id)
        questions.setdefault(question, []).append(Scored(name, right - wrong, record.label == 1))
    return questions


def best(candidates: Sequence[Scored]) -> Scored:
    """Return the candidate that answers a question: that of the largest margin, the first of several."""
    return max(candidates, key=lambda candidate: candidate.margin)


def normalised(answer: str) -> str:
    """Return an answer as SQuAD compares it (Rajpurkar et al. 2016, section 6.1): in lower case, without punctuation, the
    articles a, an and the, and white space beyond one blank between words.
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, true: str) -> float:
    """Return the F1 of an answer's words, as a bag, against a true one's, both :func:`normalised`; 0 if they share none."""
    given, wanted = normalised(answer).split(), normalised(true).split()
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted)) if shared else 0.0


def _choice_accuracy(questions: Sequence[Sequence[Scored]]) -> float:
    return sum(best(candidates).right for candidates in questions) / len(questions)


def _f1a(questions: Sequence[Sequence[Scored]]) -> float:
    said = [(candidate.margin > 0, candidate.right) for candidates in questions for candidate in candidates]
    counted = Counter(said)
    hits, misses = counted[True, True], counted[True, False] + counted[False, True]
    return 2 * hits / (2 * hits + misses) if hits else 0.0


def _question_em(questions: Sequence[Sequence[Scored]]) -> float:
    return sum(all((each.margin > 0) == each.right for each in candidates) for candidates in questions) / len(questions)


def _over_true_answers(
    compare: Callable[[str, str], float],
) -> Callable[[Sequence[Sequence[Scored]]], float]:
    def mean(questions: Sequence[Sequence[Scored]]) -> float:
        total = 0.0
        for candidates in questions:
            answer = best(candidates).name
            total += max((compare(answer, each.name) for each in candidates if each.right), default=0.0)
        return total / len(questions)

    return mean


BY_QUESTION: Mapping[str, Callable[[Sequence[Sequence[Scored]]], float]] = {
    "choice_accuracy": _choice_accuracy,
    "f1a": _f1a,
    "question_em": _question_em,
    "answer_f1": _over_true_answers(token_f1),
    "answer_em": _over_true_answers(lambda answer, true: float(normalised(answer) == normalised(true))),
}
"""Metrics of questions with candidates, by name. ``choice_accuracy``: the share of questions whose best candidate is right
(COPA; Roemmele et al. 2011). ``f1a``: F1 of right over all candidates, each by itself, and ``question_em``: the share of
questions all of whose candidates are judged rightly (MultiRC; Khashabi et al. 2018). ``answer_f1``, ``answer_em``: the best
candidate's words against the right ones', the closest of them counting, averaged over questions (ReCoRD; Zhang et al. 2018,
after SQuAD)."""
