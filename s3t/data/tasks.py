"""Tasks of published benchmarks by name: where the hub has them, their columns, and their official metrics.

GLUE (Wang et al. 2018) and SuperGLUE (Wang et al. 2019), and image sets (MNIST, LeCun et al. 1998; Fashion-MNIST, Xiao et al.
2017; CIFAR, Krizhevsky 2009; Tiny ImageNet, Le and Yang 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3t.answers import CANDIDATE, is_text
from s3t.data.questions import Form, of_copa, of_multirc, of_record, question_of_multirc
from s3t.errors import DataError, did_you_mean
from s3t.metrics import OF_NUMBERS, OF_TEXTS

GLUE, SUPERGLUE = "nyu-mll/glue", "aps/super_glue"


@dataclass(frozen=True)
class Task:
    """``path`` and ``config`` on the hub, one or two text ``columns`` or one of images, names in :mod:`s3t.metrics`,
    validation's split, the ``label`` column; ``number``: the range of a task whose answers are numbers. ``form``: makes one or
    two texts of the cells of ``columns``, where a task has more of them. ``questions``: reads candidate answers from
    a row, which then is several records, or one of those of a question (:mod:`s3t.data.questions`).
    """

    path: str
    config: str
    columns: str
    metrics: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"
    label: str = "label"
    number: str | None = None
    form: Callable[[Sequence[Any]], Sequence[str]] | None = None
    questions: Form | None = None


def word_in_two_sentences(cells: Sequence[Any]) -> tuple[str, str]:
    """Return WiC's row (word, sentence, sentence) as two texts, the word before the first."""
    word, first, second = map(str, cells)
    return f"{word}: {first}", second


def marked_spans(cells: Sequence[Any]) -> tuple[str]:
    """Return WSC's row (text, span, its first word's index, span, index) as one text with *one* and #the other# span marked.

    Both are marked as in Raffel et al. 2020, appendix B. DataError for an index that the text has no word at.
    """
    text, *spans = cells
    words = str(text).split(" ")
    for (span, at), sign in zip((spans[:2], spans[2:]), "*#", strict=True):
        last = int(at) + len(str(span).split(" ")) - 1
        if not 0 <= int(at) <= last < len(words):
            raise DataError(f"the span {span!r} at word {at} lies outside the text {str(text)!r}; mend or drop the row")
        words[int(at)] = sign + words[int(at)]
        words[last] += sign
    return (" ".join(words),)


TASKS: Mapping[str, Task] = {
    "glue/cola": Task(GLUE, "cola", "sentence", ("matthews",)),
    "glue/mnli": Task(GLUE, "mnli", "premise,hypothesis", validation="validation_matched"),
    "glue/mrpc": Task(GLUE, "mrpc", "sentence1,sentence2", ("f1", "accuracy")),
    "glue/qnli": Task(GLUE, "qnli", "question,sentence"),
    "glue/qqp": Task(GLUE, "qqp", "question1,question2", ("f1", "accuracy")),
    "glue/rte": Task(GLUE, "rte", "sentence1,sentence2"),
    "glue/sst2": Task(GLUE, "sst2", "sentence"),
    "glue/stsb": Task(GLUE, "stsb", "sentence1,sentence2", ("pearson", "spearman"), number="0:5"),
    "glue/wnli": Task(GLUE, "wnli", "sentence1,sentence2"),
    "superglue/boolq": Task(SUPERGLUE, "boolq", "question,passage"),
    "superglue/cb": Task(SUPERGLUE, "cb", "premise,hypothesis", ("macro_f1", "accuracy")),
    "superglue/copa": Task(
        SUPERGLUE, "copa", "premise,question,choice1,choice2", ("choice_accuracy",), questions=Form(of_copa)
    ),
    "superglue/multirc": Task(
        SUPERGLUE,
        "multirc",
        "paragraph,question,answer,idx",
        ("f1a", "question_em"),
        questions=Form(of_multirc, question_of_multirc),
    ),
    "superglue/record": Task(
        SUPERGLUE,
        "record",
        "passage,query,entities",
        ("answer_f1", "answer_em"),
        label="answers",
        questions=Form(of_record),
    ),
    "superglue/rte": Task(SUPERGLUE, "rte", "premise,hypothesis"),
    "superglue/wic": Task(SUPERGLUE, "wic", "word,sentence1,sentence2", form=word_in_two_sentences),
    "superglue/wsc": Task(SUPERGLUE, "wsc", "text,span1_text,span1_index,span2_text,span2_index", form=marked_spans),
    "images/mnist": Task("ylecun/mnist", "", "image"),
    "images/fashion-mnist": Task("zalando-datasets/fashion_mnist", "", "image"),
    "images/cifar10": Task("uoft-cs/cifar10", "", "img"),
    "images/cifar100": Task("uoft-cs/cifar100", "", "img", label="fine_label"),
    "images/tiny-imagenet": Task("zh-plus/tiny-imagenet", "", "image", validation="valid"),
}


def find_task(name: str) -> Task | None:
    """Return the task of this name, None if it names no benchmark. DataError for an unknown task."""
    benchmark, _, task = name.partition("/")
    if benchmark not in ("glue", "superglue", "images") or ":" in name:
        return None
    known = [known.partition("/")[2] for known in TASKS if known.startswith(f"{benchmark}/")]
    if name not in TASKS:
        raise DataError(f"task {name!r} is unknown{did_you_mean(task, known)}; {benchmark} has {', '.join(known)}")
    return TASKS[name]


def metrics_of(data: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the official metrics of a data set, or of a part of it, by name.

    For what belongs to no benchmark accuracy; where its ``classes`` say numbers or texts, those of numbers or of texts, and
    where they are those of candidate answers, accuracy over questions.
    """
    whole = data.partition("[")[0]  # a part is called glue/mrpc[800]
    if whole in TASKS:
        return TASKS[whole].metrics
    if is_text(classes):
        return OF_TEXTS
    if tuple(classes) == CANDIDATE:
        return ("choice_accuracy",)
    return OF_NUMBERS if len(classes) == 1 else ("accuracy",)
