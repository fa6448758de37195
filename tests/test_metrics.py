"""Metrics and the tasks that name them."""

from __future__ import annotations

import pytest

from s3t.answers import CANDIDATE
from s3t.data.tasks import TASKS, find_task, metrics_of
from s3t.errors import DataError
from s3t.metrics import BY_QUESTION, METRICS, OF_NUMBERS, OF_TEXTS, measure
from s3t.records import Dataset, Record


def test_metrics_of_a_table_worked_by_hand() -> None:
    """True positives 2, false positives 1, false negatives 1, true negatives 2."""
    found = measure(
        [name for name in METRICS if name not in (*OF_NUMBERS, *OF_TEXTS)], [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]
    )
    assert found == pytest.approx({"accuracy": 4 / 6, "f1": 2 / 3, "macro_f1": 2 / 3, "matthews": 3 / 9})


def test_classes_that_never_occur() -> None:
    assert measure(("f1", "matthews"), [0, 0], [0, 0]) == {"f1": 0.0, "matthews": 0.0}
    assert measure(("macro_f1",), [2, 2, 0], [2, 2, 2]) == pytest.approx({"macro_f1": 0.4})


def test_what_cannot_be_measured() -> None:
    with pytest.raises(DataError, match=r"metric 'acuracy' is unknown \(did you mean 'accuracy'"):
        measure(("acuracy",), [1], [1])
    for predicted, true in (([], []), ([1], [1, 0])):
        with pytest.raises(DataError, match=r"predictions for \d rows"):
            measure(("accuracy",), predicted, true)


def test_every_task_has_metrics_that_exist() -> None:
    assert {name for task in TASKS.values() for name in task.metrics} <= {*METRICS, *BY_QUESTION}
    assert not set(METRICS) & set(BY_QUESTION)
    two, range_ = ("a", "b"), ("0:5",)
    assert metrics_of("glue/mrpc", two) == ("f1", "accuracy") and metrics_of("trec6", two) == ("accuracy",)
    assert metrics_of("glue/stsb", range_) == ("pearson", "spearman") and metrics_of("own", range_) == OF_NUMBERS
    assert (
        metrics_of("own", CANDIDATE) == ("choice_accuracy",) and metrics_of("superglue/multirc", CANDIDATE)[0] == "f1a"
    )
    part = Dataset("glue/cola", ("0", "1"), (Record("a", {"text": "x"}, 0), Record("b", {"text": "y"}, 1)), (), ())
    assert metrics_of(part.subset(1, 0, 0).name, part.classes) == ("matthews",)


def test_names_of_tasks() -> None:
    assert find_task("owner/name") is None and find_task("nyu-mll/glue:cola") is None
    task = find_task("glue/mnli")
    assert task is not None and task.validation == "validation_matched"
    with pytest.raises(DataError, match=r"task 'superglue/bolq' is unknown \(did you mean 'boolq'"):
        find_task("superglue/bolq")
