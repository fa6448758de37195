"""Chains of the fast engine scored together: equal to one pass per chain, shared work done once, bits from chains and rows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.methods import make_plan
from s3t.backbone import Backbone, Encoded, load
from s3t.blocks import ChainModel, ModelState, score
from s3t.engine import lora
from s3t.engine.encoder import Encoder
from s3t.engine.ensemble import FastChain, cut, score_together
from s3t.engine.layers import Layer
from s3t.engine.mode import Precision
from s3t.engine.numerics import Numerics
from s3t.plan import Plan, Stage
from s3t.records import Layout, Recipe

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""Relative to the largest logit; bfloat16 keeps 8 bits."""
RECIPE = Recipe(rank=4, targets=("query", "value", "output.dense"))
CLASSES = 3
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def _plan(tiny: Backbone, method: str = "s3t") -> Plan:
    return make_plan(method, Layout(4, 3, 1), RECIPE, tiny.layers)


def _state(tiny: Backbone, stages: Sequence[Stage], seed: int) -> ModelState:
    """Made-up tensors of the right shapes; nothing is trained."""
    generator, adapters = torch.Generator().manual_seed(seed), {}
    for stage in stages:
        shapes = lora.fresh(Encoder.of(tiny, "float32"), stage, RECIPE, 0)
        adapters[stage.adapter] = {n: torch.randn(t.shape, generator=generator) * 0.3 for n, t in shapes.items()}
    head = {"weight": torch.randn(CLASSES, tiny.hidden, generator=generator), "bias": torch.ones(CLASSES)}
    return ModelState(adapters, head)


def _chains(
    tiny: Backbone, lengths: Mapping[int, int], precision: Precision = "float32", method: str = "s3t"
) -> dict[int, FastChain]:
    plan = _plan(tiny, method)
    return {
        shard: FastChain(tiny, stages, _state(tiny, stages, shard), RECIPE, precision)
        for shard, n in lengths.items()
        for stages in [plan.stages[:n]]
    }


def _rows(lengths: Sequence[int]) -> list[Encoded]:
    return [Encoded({"input_ids": [2 + (7 * i + 3 * t) % 500 for t in range(n)]}, n) for i, n in enumerate(lengths)]


def _apart(chains: Mapping[int, FastChain], rows: Sequence[Encoded]) -> dict[int, Tensor]:
    return {shard: score_together({shard: chain}, rows)[shard] for shard, chain in chains.items()}


def _assert_near(found: Mapping[int, Tensor], wanted: Mapping[int, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for shard, logits in wanted.items():
        assert float((found[shard] - logits).abs().max()) <= tolerance * float(logits.abs().max())


ROWS = {"mixed": (5, 3, 9, 9, 1, 17, 4), "lone": (6,), "equal": (8, 8, 8), "two batches": (4,) * 40 + (7,) * 40}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_one_pass_equals_a_pass_per_chain_for_every_mix(
    tiny: Backbone, precision: Precision, rows: tuple[int, ...]
) -> None:
    batch = _rows(rows)
    for mix in itertools.combinations_with_replacement((1, 2, 3), 3):
        chains = _chains(tiny, dict(enumerate(mix)), precision)
        apart = _apart(chains, batch)
        _assert_near(score_together(chains, batch), apart, TOLERANCE[precision])
        narrow = score_together(chains, batch, tokens=1)
        for shard, chain in chains.items():
            alone = score_together({shard: chain}, batch, tokens=1)[shard]
            assert torch.equal(narrow[shard], alone), "what is not stacked is the same arithmetic"


@pytest.mark.parametrize("tokens", [1, 15, 30, 10_000])
def test_batches_and_stacks_of_any_size_agree(tiny: Backbone, tokens: int) -> None:
    chains, rows = _chains(tiny, {0: 3, 1: 1, 2: 2, 3: 1, 6: 3}), _rows((4, 5, 3))
    _assert_near(score_together(chains, rows, tokens=tokens), _apart(chains, rows), TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("lengths", "tokens", "expected"),
    [
        ([], 10, []),
        ([3, 1, 2], 10, [[1, 2, 0]]),
        ([3, 1, 2], 8, [[1, 2], [0]]),
        ([30, 1, 30], 8, [[1], [0], [2]]),
        ([1] * 65, 1000, [list(range(64)), [64]]),
        ([2, 2, 2, 2], 4, [[0, 1], [2, 3]]),
    ],
)
def test_batches_keep_to_rows_and_tokens(lengths: list[int], tokens: int, expected: list[list[int]]) -> None:
    assert list(cut(lengths, tokens)) == expected


@pytest.mark.parametrize("method", ["sequential", "sisa-lora"])
def test_adapters_on_every_layer(tiny: Backbone, method: str) -> None:
    chains, rows = _chains(tiny, {0: 3, 1: 1, 4: 2}, method=method), _rows((4, 9, 3))
    _assert_near(score_together(chains, rows), _apart(chains, rows), TOLERANCE["float32"])


def test_layers_that_only_some_chains_adapt(tiny: Backbone) -> None:
    plan = _plan(tiny)
    upward = tuple(dataclasses.replace(s, layers=o.layers) for s, o in zip(plan.stages, plan.stages[::-1], strict=True))
    chains = {n: FastChain(tiny, upward[:n], _state(tiny, upward[:n], n), RECIPE, "float32") for n in (1, 2, 3)}
    rows = _rows((4, 9, 3))
    _assert_near(score_together(chains, rows), _apart(chains, rows), TOLERANCE["float32"])


def test_the_reference_engine_gives_the_same(tiny: Backbone) -> None:
    lengths, rows, plan = {0: 3, 1: 1, 2: 2}, _rows((4, 9, 3, 1)), _plan(tiny)
    wanted = {}
    for shard, n in lengths.items():
        model = ChainModel(tiny, plan.stages[:n], RECIPE, CLASSES)
        model.mount(_state(tiny, plan.stages[:n], shard))
        wanted[shard] = score(model, rows)
    _assert_near(score_together(_chains(tiny, lengths), rows), wanted, TOLERANCE["float32"])


def test_layers_left_over_belong_to_the_trunk() -> None:
    odd = load("tiny-5", torch.device("cpu"))
    chains, rows = _chains(odd, {0: 3, 1: 1}), _rows((4, 9, 3))
    assert chains[0].lowest == 2
    _assert_near(score_together(chains, rows), _apart(chains, rows), TOLERANCE["float32"])


@pytest.mark.parametrize("lengths", [(4, 9, 3), (5, 5), (7,)], ids=["padded", "equal", "lone"])
def test_a_bias_that_all_rows_share_is_not_repeated(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    plain = Encoder.bias

    def by_distance(self: Encoder, given: Sequence[int]) -> Tensor:
        near = torch.arange(2.0 * max(given) ** 2).view(1, 2, max(given), max(given)).sin()
        bias = plain(self, given)
        return near if bias is None else near + bias

    monkeypatch.setattr(Encoder, "bias", by_distance)
    chains, rows = _chains(tiny, {0: 3, 1: 1, 2: 1}), _rows(lengths)
    _assert_near(score_together(chains, rows), _apart(chains, rows), TOLERANCE["float32"])


def test_no_rows_and_no_chains(tiny: Backbone) -> None:
    chains = _chains(tiny, {0: 2, 3: 1})
    assert {shard: tuple(t.shape) for shard, t in score_together(chains, []).items()} == {0: (0, 3), 3: (0, 3)}
    assert score_together({}, _rows((3, 4))) == {}
    assert Numerics.of("fast-2:float32").score({}, _rows((3,))) == {}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows (of a batch, or of a stack of chains) that each call of a layer was given."""
    seen: list[int] = []
    real = Layer.__call__

    def counting(self: Layer, x: Tensor, *given: Any) -> Tensor:
        seen.append(len(x))
        return real(self, x, *given)

    monkeypatch.setattr(Layer, "__call__", counting)
    return seen


@pytest.mark.parametrize(
    ("lengths", "tokens", "expected"),
    [
        ({0: 1, 1: 1, 2: 1}, None, [2, 2, 2, 2, 6, 6]),
        ({0: 1, 1: 1, 2: 1}, 2 * 5, [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]),
        ({0: 2, 1: 1}, None, [2, 2, 2, 2, 2, 2, 4, 4]),
        ({0: 3, 1: 3}, None, [4, 4, 4, 4, 4, 4]),
        ({0: 3, 1: 3}, 2 * 5, [2] * 12),
        ({4: 2}, None, [2] * 6),
    ],
)
def test_the_trunk_is_computed_once_and_stacks_are_one_product(
    tiny: Backbone, calls: list[int], lengths: dict[int, int], tokens: int | None, expected: list[int]
) -> None:
    chains = _chains(tiny, lengths)
    score_together(chains, _rows((5, 4)), tokens=tokens)
    assert calls == expected


def test_bits_depend_on_chains_and_rows_alone(tiny: Backbone) -> None:
    lengths, rows = {0: 2, 1: 1, 2: 3, 3: 1}, _rows((4, 9, 3, 3))
    wanted = score_together(_chains(tiny, lengths), rows)
    chains = _chains(tiny, dict(reversed(lengths.items())))
    score_together(_chains(tiny, {0: 3, 5: 1}), rows)
    again = score_together(chains, rows)
    assert list(again) == sorted(again)
    assert all(torch.equal(again[shard], wanted[shard]) for shard in wanted)


def test_chains_hold_tensors_of_their_own(tiny: Backbone) -> None:
    stages = _plan(tiny).stages[:1]
    state = _state(tiny, stages, 0)
    chain = FastChain(tiny, stages, state, RECIPE, "float32")
    before = score_together({0: chain}, _rows((4,)))[0]
    for tensor in (*state.adapters[stages[0].adapter].values(), *state.head.values()):
        tensor.zero_()
    assert torch.equal(score_together({0: chain}, _rows((4,)))[0], before)
    assert all(t.any() for t in (*chain.adapter_tensors(stages[0].adapter).values(), *chain.head_tensors().values()))
