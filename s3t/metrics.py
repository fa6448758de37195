"""Official metrics of classification tasks, by scikit-learn: from predicted and true classes (indices), shape (rows,) each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s3t.errors import DataError, did_you_mean

Metric = Callable[[Any, Sequence[int], Sequence[int]], float]

METRICS: Mapping[str, Metric] = {
    "accuracy": lambda sk, true, predicted: sk.accuracy_score(true, predicted),
    "f1": lambda sk, true, predicted: sk.f1_score(true, predicted, pos_label=1, average="binary", zero_division=0.0),
    "macro_f1": lambda sk, true, predicted: sk.f1_score(true, predicted, average="macro", zero_division=0.0),
    "matthews": lambda sk, true, predicted: sk.matthews_corrcoef(true, predicted),
}
"""By name, from ``sklearn.metrics``: F1 is of class 1, macro F1 the mean over the classes that occur; Matthews' correlation is
0 where either side has one class alone."""


def measure(names: Sequence[str], predicted: Sequence[int], true: Sequence[int]) -> dict[str, float]:
    """Return every named metric of predictions for rows of classes ``true``. DataError for an unknown name or no rows."""
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
        return {name: float(METRICS[name](sklearn.metrics, true, predicted)) for name in names}
