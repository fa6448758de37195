"""Judging what a run of a language model serves, by the tasks of lm-evaluation-harness (Gao et al. 2021): the extra ``judge``.

The harness makes the tasks' prompts, splits texts into a context and its continuation, and computes metrics; here is the model
that it asks. A continuation's score is the sum of its tokens' log-likelihoods, without an end of text, averaged over the live
shards' chains, as :meth:`s3t.system.System.predict` averages (a geometric mean of probabilities, which do not sum to 1);
with one chain that is what the harness finds for the exported adapter. Tokens are counted and cut as the harness's own
model class does, by the model's positions and not by the recipe's ``max_length``. All answers come from the chains that
serve when judging begins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from s3t.answers import in_words, is_text
from s3t.backbone import Encoded
from s3t.blocks import ChainModel
from s3t.engine.ensemble import cut
from s3t.errors import DataError, did_you_mean
from s3t.language import ASKED, LanguageBackbone

if TYPE_CHECKING:
    from s3t.contract import Progress
    from s3t.system import System

TOKENS = 2048
"""Most tokens of a batch, padding included; one text may be longer. Each scored one takes a row as wide as the vocabulary."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context, at least one, and of what continues it."""


@dataclass(frozen=True)
class Score:
    """A task's, or a group's, ``value`` of one metric; ``stderr`` and ``n`` (documents) as the harness gives them."""

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    shots: int | None


@dataclass(frozen=True)
class Judged:
    """What the chains of ``shards`` score together."""

    shards: tuple[int, ...]
    scores: tuple[Score, ...]


def judge(
    system: System,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include: Path | None = None,
    shots: int | None = None,
    progress: Progress | None = None,
) -> Judged:
    """Return what the chains that serve now score in ``tasks``: names of the harness, or of YAML files in ``include``.

    ``limit``: the first documents of each task alone. ``shots``: worked examples in the prompt, for tasks that do not fix it.
    Raises DataError for a run that predicts no texts, and for a task that is unknown, whose data cannot be loaded, or that
    needs generated text; OfflineError without any live shard.
    """
    if not is_text(system.classes):
        raise DataError(
            f"{system.path} answers with {in_words(system.classes)[0]}; only runs of language models can be judged"
        )
    models, weights = system.served().live()
    chains = [(cast(ChainModel, model), weights[shard]) for shard, (_, model) in models.items()]
    known = _known(tasks, include)
    model = Ensemble(chains, progress)
    found = simple_evaluate(
        model, tasks=list(tasks), task_manager=known, num_fewshot=shots, limit=limit, log_samples=False
    )
    return Judged(tuple(models), tuple(_scores(found)))


class Ensemble(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """Chains over one language model with their weights, as a model of the harness."""

    def __init__(self, chains: Sequence[tuple[ChainModel, float]], progress: Progress | None = None) -> None:
        super().__init__()
        self._chains = chains
        self._progress = progress
        self.backbone = cast(LanguageBackbone, chains[0][0].backbone)
        self.max_length = int(cast(Any, self.backbone.model.config).max_position_embeddings)

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return self.backbone.words.end

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text without a context is predicted from."""
        return self.backbone.words.first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return a text's ids, by default with the beginning that the tokenizer puts there, once."""
        words = self.backbone.words
        ids = words.ids(string)
        begin = () if add_special_tokens is False or tuple(ids[: len(words.begin)]) == words.begin else words.begin
        return [*begin, *ids]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows of the model's length, as the harness cuts them."""
        owner, pairs = [], []
        for at, (text,) in enumerate(request.args for request in requests):
            ids = self.tok_encode(text)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                owner.append(at)
                pairs.append(make_disjoint_window(window))
        out = [0.0] * len(requests)
        for at, (total, _) in zip(owner, self.likelihoods(pairs), strict=True):
            out[at] += total
        return out

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Raise DataError: a run scores texts and writes none."""
        raise _needs_generation(sorted({request.task_name for request in requests}))

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        for (context, continuation), _ids, answer in requests:
            if not 0 < len(answer) <= self.max_length:
                raise DataError(
                    f"the continuation {continuation[:40]!r} of {context[-40:]!r} has {len(answer)} tokens; "
                    f"this model scores 1..{self.max_length}"
                )
        return self.likelihoods([(context, answer) for _, context, answer in requests])

    def likelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Return for each pair the continuation's log-likelihood in nats, and whether each of its tokens is the likeliest.

        The tokens before the last ``max_length`` that the model reads are left out. Continuations that differ in their last
        token alone are scored in one pass.
        """
        same: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for at, (context, answer) in enumerate(pairs):
            same[tuple([*context, *answer][-(self.max_length + 1) : -1])].append(at)
        read, asking = list(same), list(same.values())
        most = [max(len(pairs[at][1]) for at in group) for group in asking]
        rows = [_row(ids, count) for ids, count in zip(read, most, strict=True)]
        out, done = [(0.0, False)] * len(pairs), 0
        for chosen in cut([row.length for row in rows], TOKENS):
            blocks = torch.split(self._next([rows[i] for i in chosen]), [most[i] for i in chosen])
            for i, block in zip(chosen, blocks, strict=True):
                for at in asking[i]:
                    out[at] = _said(block, pairs[at][1])
            done += sum(len(asking[i]) for i in chosen)
            if self._progress:
                self._progress(done, len(pairs), "judging")
        return out

    @torch.no_grad()
    def _next(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """Return the chains' mean log-likelihood of every next token: (marked tokens of all rows, vocabulary)."""
        batch, mean = self.backbone.collate(rows), torch.zeros((), device=self.backbone.device)
        for chain, weight in self._chains:
            mean = mean + self.backbone.next_tokens(chain.body, batch) * weight
        return mean


def _row(ids: Sequence[int], asked: int) -> Encoded:
    return Encoded({"input_ids": list(ids), ASKED: [0] * (len(ids) - asked) + [1] * asked}, len(ids))


def _said(likely: torch.Tensor, answer: Sequence[int]) -> tuple[float, bool]:
    """Return the score of ``answer`` by the last of the rows ``likely`` (tokens, vocabulary), and whether it is greedy."""
    last, ids = likely[-len(answer) :], torch.tensor(answer, device=likely.device)
    total = last.gather(1, ids[:, None]).double().sum()
    return float(total), bool((last.argmax(1) == ids).all())


class _Tasks(TaskManager):  # type: ignore[misc]
    """The harness's tasks; what cannot be judged is one error of ours, before anything is computed."""

    def load(self, task_list: Sequence[str]) -> dict[str, Any]:
        """Return tasks, groups and the groups' members by name. DataError for what cannot be judged."""
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in task_list:
            try:
                found = super().load(name)
            except Exception as error:  # whatever the task's own code, its files or the hub raise
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise DataError(
                    f"task {name!r} or its data cannot be loaded: {reason}. Give tasks that can be reached here, or --include"
                ) from error
            if twice := sorted(loaded["tasks"].keys() & found["tasks"].keys()):
                raise DataError(f"task {twice[0]!r} is asked for twice; name it once, or its group alone")
            for part, members in loaded.items():
                members.update(found[part])
        if written := [name for name, task in loaded["tasks"].items() if task.OUTPUT_TYPE == "generate_until"]:
            raise _needs_generation(written)
        return loaded


def _needs_generation(names: Sequence[str]) -> DataError:
    return DataError(f"a run scores texts and writes none, which tasks {', '.join(names)} ask for; leave them out")


def _known(names: Sequence[str], include: Path | None) -> _Tasks:
    """Return the tasks to choose from. The harness's own, which take long to list, are left out where nothing needs them.

    DataError for a folder that is not there, and for a name that is not known.
    """
    if include is not None and not include.is_dir():
        raise DataError(f"{include} is no folder; --include takes one with the harness's YAML files")
    if include is not None:
        alone = _Tasks(include_path=str(include), include_defaults=False)
        if set(names) <= set(alone.all_subtasks):
            return alone
    known = _Tasks(include_path=None if include is None else str(include))
    for name in names:
        if name not in known.all_tasks:
            hint = did_you_mean(name, known.all_tasks)
            raise DataError(f"task {name!r} is not known{hint}; lm_eval ls tasks lists the harness's own")
    return known


def _scores(found: Any) -> list[Score]:
    """Return the harness's results as rows; what it could not compute is left out."""
    out = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            out.append(
                Score(
                    task,
                    metric if kind == "none" else f"{metric} ({kind})",
                    float(value),
                    float(error) if isinstance(error, int | float) else None,
                    int(values.get("sample_count", {}).get(key, values["sample_len"])),
                    found["n-shot"].get(task),
                )
            )
    return out
