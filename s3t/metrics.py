"""Official metrics, by scikit-learn and SciPy: from predicted and true classes (indices) or numbers, shape (rows,) each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s3t.errors import DataError, did_you_mean

Answers = Sequence[int] | Sequence[float]
Metric = Callable[[Any, Any, Answers, Answers], float]

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


def _or_zero(correlate: Callable[[Answers, Answers], Any], true: Answers, predicted: Answers) -> float:
    return 0.0 if len(set(true)) < 2 or len(set(predicted)) < 2 else float(correlate(true, predicted).statistic)


def measure(names: Sequence[str], predicted: Answers, true: Answers) -> dict[str, float]:
    """Return every named metric of predictions for rows of answers ``true``. DataError for an unknown name or no rows."""
    import scipy.stats
    import sklearn.metrics

    for name in names:
        if name not in METRICS:
            raise DataError(
                f"metric {name!r} is unknown{did_you_mean(name, METRICS)}; choose from {', '.join(METRICS)}"
            )
    if not true or len(predicted) != len(true):
        raise DataError(f"{len(predicted)} predictions for {len(true)} rows; give one for each of at least one row")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found")  # what comes of that is stated above
        return {name: float(METRICS[name](sklearn.metrics, scipy.stats, true, predicted)) for name in names}
