"""Designs of S3T: where blocks lie, what is declared and stored, and lives of every variant under audit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from command_line import said

from baselines.methods import make_plan
from s3t import S3T
from s3t.backbone import Backbone
from s3t.building import Builder
from s3t.design import PAPER, Design
from s3t.errors import LayoutError, RecipeError
from s3t.graph import Node, node_key
from s3t.plan import Plan, s3t_plan, shared_rank, top_down_blocks
from s3t.records import Layout, Recipe, Record
from s3t.system import System
from verify.audit import audit
from verify.evidence import read_evidence
from verify.laboratory import RunLab
from verify.report import Verdict
from verify.state import derive_state

RECIPE = Recipe(epochs=1, rank=2, batch_size=8, max_length=16)
DESIGNS = {
    "blocks": Design(block_layers=(1, 3, 1)),
    "bottom-up": Design(bottom_up=True),
    "last slice": Design(cumulative=False),
    "fresh head": Design(fresh_head=True),
    "stacked": Design(stacked=True),
    "all": Design(1, bottom_up=True, cumulative=False, fresh_head=True),
}


@pytest.mark.parametrize(
    ("design", "layers", "slices", "expected"),
    [
        (Design(2), 12, 3, [(10, 11), (8, 9), (6, 7)]),
        (Design((3, 1, 2)), 12, 3, [(9, 10, 11), (8,), (6, 7)]),
        (Design((3, 1, 2), bottom_up=True), 12, 3, [(6, 7, 8), (9,), (10, 11)]),
        (Design(bottom_up=True), 7, 3, [(1, 2), (3, 4), (5, 6)]),
        (Design((3, 2, 2, 2, 2, 2, 2)), 24, 7, [(21, 22, 23), *((i, i + 1) for i in range(19, 8, -2))]),
    ],
)
def test_where_blocks_lie(design: Design, layers: int, slices: int, expected: list[tuple[int, ...]]) -> None:
    assert design.blocks(layers, slices) == expected


def test_blocks_in_either_direction_adapt_the_same_top_layers() -> None:
    for layers in range(1, 13):
        for slices in range(1, layers + 1):
            down, up = PAPER.blocks(layers, slices), Design(bottom_up=True).blocks(layers, slices)
            assert down == top_down_blocks(layers, slices) == up[::-1]
            assert Design(layers // slices).blocks(layers, slices) == down


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0, "block_layers=0 leaves a block without a layer; give at least 1 for each"),
        ((2, 0, 1), r"block_layers=\(2, 0, 1\) leaves a block without a layer"),
        ((), r"block_layers=\(\) leaves a block without a layer"),
        ((2, 2), "2 numbers of block layers for 3 slices; give one, or one per slice"),
        (3, r"blocks of 3 \+ 3 \+ 3 layers exceed the model's 6; give smaller ones"),
        ((4, 2, 1), r"blocks of 4 \+ 2 \+ 1 layers exceed the model's 6"),
    ],
)
def test_blocks_that_cannot_be(given: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        s3t_plan(Layout(1, 3, 1), RECIPE, 6, Design(given))


def test_stacked_blocks_are_on_all_layers() -> None:
    assert Design(stacked=True).blocks(2, 3) == [(0, 1)] * 3
    assert Design.from_json({"stacked": True}) == Design(stacked=True) and str(Design(stacked=True)) == "stacked"
    for given in ({"block_layers": 2}, {"bottom_up": True}):
        with pytest.raises(LayoutError, match="stacked blocks are on all layers"):
            Design(stacked=True, **given)  # type: ignore[arg-type]


STACKED = Design(stacked=True)


@pytest.mark.parametrize(
    ("method", "design", "layers", "slices", "rank", "expected"),
    [
        ("s3t", STACKED, 6, 3, 12, 4),
        ("s3t", STACKED, 6, 3, 8, 3),
        ("s3t", STACKED, 7, 3, 12, 3),  # the paper's blocks leave a layer out: 6 of 7, 12 * 6 / 21 = 3.4
        ("s3t", STACKED, 6, 6, 2, 1),
        ("s3t", Design(1), 6, 3, 8, 16),
        ("s3t", Design((3, 1, 1)), 6, 3, 10, 12),
        ("sequential", None, 6, 3, 12, 4),
        ("sisa-lora-lazy", None, 12, 4, 8, 2),
    ],
)
def test_a_shared_rank_makes_a_chain_store_as_much_as_the_papers(
    method: str, design: Design | None, layers: int, slices: int, rank: int, expected: int
) -> None:
    recipe = Recipe(rank=rank, alpha=24.0, lr=1e-3)
    layout = Layout(2, slices, 1)
    plan = make_plan(method, layout, recipe, layers, design=design)
    found = shared_rank(recipe, plan, layers)
    assert found == dataclasses.replace(recipe, rank=expected, alpha=24.0 * expected / rank)
    kept = dataclasses.replace(recipe, rslora=True)
    assert shared_rank(kept, plan, layers).alpha / expected**0.5 == pytest.approx(24.0 / rank**0.5)
    stored = sum(len(stage.layers) for stage in plan.stages)
    paper = sum(len(stage.layers) for stage in s3t_plan(layout, recipe, layers).stages)
    others = [abs(other * stored - rank * paper) for other in range(1, 2 * rank + 1)]
    assert abs(expected * stored - rank * paper) == min(others), "no other rank is nearer"


@pytest.mark.parametrize(
    ("method", "design", "slices", "changes", "message"),
    [
        (
            "s3t",
            None,
            3,
            {},
            "stores adapters on 6 layers, as many as the paper's blocks, so there is no rank to share",
        ),
        ("s3t", Design(bottom_up=True), 3, {}, "as many as the paper's blocks"),
        ("s3t", STACKED, 1, {}, "as many as the paper's blocks"),
        ("s3t", STACKED, 7, {}, "slices=7 exceeds the model's 6 layers"),
        ("retrain-lora", None, 1, {}, "as many as the paper's blocks"),
        ("sisa-full", None, 3, {}, "sisa-full stores no LoRA adapters, so there is no rank to share; leave it out"),
        ("analytic", None, 1, {}, "analytic stores no LoRA adapters"),
        ("s3t", STACKED, 3, {"adapter": "ia3"}, "adapter='ia3' has no rank to share"),
        ("s3t", Design(1), 3, {"rank": 1000}, "rank=2000 is out of range: give 1 to 1024"),
    ],
)
def test_a_rank_that_cannot_be_shared(
    method: str, design: Design | None, slices: int, changes: dict[str, Any], message: str
) -> None:
    recipe = Recipe(**changes)
    plan = make_plan(method, Layout(1, slices, 1), recipe, 6, design=design)
    with pytest.raises((LayoutError, RecipeError), match=message):
        shared_rank(recipe, plan, 6)


def test_more_slices_than_layers_are_refused_by_every_design_that_deals_out_layers() -> None:
    for design in [design for design in DESIGNS.values() if not design.stacked]:
        with pytest.raises(LayoutError, match="slices=7 exceeds the model's 6 layers"):
            design.blocks(6, 7)


def test_only_s3t_has_a_design() -> None:
    with pytest.raises(LayoutError, match=r"sisa-lora has no blocks to lay out \(bottom-up, fresh heads\)"):
        make_plan("sisa-lora", Layout(1, 2, 1), RECIPE, 6, design=Design(bottom_up=True, fresh_head=True))
    assert make_plan("s3t", Layout(1, 2, 1), RECIPE, 6, design=PAPER) == s3t_plan(Layout(1, 2, 1), RECIPE, 6)


def test_the_default_is_stored_as_ever() -> None:
    raw = s3t_plan(Layout(1, 2, 1), Recipe(epochs=3), 4).to_json()
    stages = [
        {"adapter": "block-00", "kind": "lora", "layers": [2, 3], "epochs": 3.0},
        {"adapter": "block-01", "kind": "lora", "layers": [0, 1], "epochs": 3.0},
    ]
    assert raw == {
        "method": "s3t",
        "layout": {"shards": 1, "slices": 2, "budget": 1},
        "orders": [[0, 1]],
        "stages": stages,
        "eager": False,
        "cumulative": True,
    }


def test_a_declared_design_is_stored_and_no_more() -> None:
    raw = s3t_plan(Layout(1, 2, 1), RECIPE, 6, Design(2, bottom_up=True, cumulative=False, fresh_head=True)).to_json()
    assert raw["design"] == {"block_layers": [2, 2], "bottom_up": True, "fresh_head": True}
    assert raw["cumulative"] is False
    assert [stage.get("fresh_head") for stage in raw["stages"]] == [None, True]
    assert "design" not in s3t_plan(Layout(1, 2, 1), RECIPE, 6, Design(cumulative=False)).to_json()


@pytest.mark.parametrize("name", DESIGNS)
def test_a_plan_comes_back_whole(name: str) -> None:
    plan = s3t_plan(Layout(2, 3, 2), RECIPE, 6, DESIGNS[name])
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.with_budget(4).design == plan.design


def test_a_key_covers_the_head_that_a_stage_begins_with() -> None:
    plain = s3t_plan(Layout(1, 2, 1), RECIPE, 6).stages[1]
    rest: Any = (["row"], RECIPE, 0, "base", "2", {})

    def key(stage: Any) -> str:
        return node_key(Node(0, (0, 1)), "parent", rest[0], stage, *rest[1:])

    assert key(dataclasses.replace(plain, fresh_head=True)) != key(plain)


def test_designs_in_words() -> None:
    told = {name: str(design) for name, design in DESIGNS.items()}
    assert told == {
        "blocks": "blocks of 1, 3, 1",
        "bottom-up": "bottom-up",
        "last slice": "not cumulative",
        "fresh head": "fresh heads",
        "stacked": "stacked",
        "all": "blocks of 1, bottom-up, not cumulative, fresh heads",
    }
    assert str(PAPER) == ""


def _records() -> list[Record]:
    words = ("amber", "birch", "cedar", "dune")
    return [Record(f"row-{i:03d}", {"text": " ".join([words[i % 4]] * (1 + i % 5))}, i % 3) for i in range(36)]


def _system(folder: Path, tiny: Backbone, design: Design, **how: Any) -> S3T:
    probes = tuple(Record(f"probe-{i}", {"text": "amber dune " * i}, 0) for i in range(1, 4))
    given: dict[str, Any] = {"classes": ("a", "b", "c"), "model": tiny, "recipe": RECIPE, "key": bytes(range(32))}
    return S3T(folder, Layout(2, 3, 2), design=design, evaluation=((), probes), allow_empty=True, **given, **how)


def _holds(system: System, records: list[Record], levels: tuple[str, ...], **how: Any) -> None:
    lab = RunLab(read_evidence(system.path))
    report = audit(system, system.path, levels=levels, records=records, lab=lab, isolate=False, **how)
    assert report.verdict is Verdict.HOLDS, report.dumps()


@pytest.mark.parametrize("engine", ["reference", "fast"])
@pytest.mark.parametrize("name", DESIGNS)
def test_a_life_of_every_design_holds(name: str, engine: str, tiny: Backbone, tmp_path: Path) -> None:
    records = _records()
    system = _system(tmp_path / "run", tiny, DESIGNS[name], engine=engine, precision="float32")
    system.fit(records)
    before = system.status()
    system.delete(["row-003", "row-017"])
    assert system.status().surviving_nodes < before.surviving_nodes
    _holds(system, records, ("E0", "E1a", "E1b", "E1c"), scope="surviving")
    if engine == "reference":
        _holds(system, records, ("E1a",), scope="surviving", kernel="oracle")
    system.refresh()
    assert system.status().surviving_nodes == before.surviving_nodes
    _holds(system, records, ("E0", "E1a", "E1b"), scope="surviving")
    system.close()


def test_what_each_design_trains(tiny: Backbone, tmp_path: Path) -> None:
    """Every variant departs from the default where it must, and nowhere before."""
    trained: dict[str, dict[Any, tuple[str, str]]] = {}
    passes: dict[str, int] = {}
    for name, design in {"paper": PAPER, **DESIGNS}.items():
        system = _system(tmp_path / name, tiny, design)
        passes[name] = system.fit(_records()).record_passes
        system.close()
        survivors = derive_state(read_evidence(tmp_path / name)).survivors
        trained[name] = {node: (fact.tensors, fact.head) for node, fact in survivors.items()}
    paper = trained["paper"]
    for name in DESIGNS:
        same = {node for node, tensors in trained[name].items() if tensors == paper[node]}
        first = {node for node in paper if len(node[1]) == 1}
        assert same == (first if name in ("last slice", "fresh head") else set()), name
    assert passes["blocks"] == passes["bottom-up"] == passes["fresh head"] == passes["paper"]
    assert passes["last slice"] == passes["all"] < passes["paper"]


def test_empty_slices_of_a_plan_that_is_not_cumulative(tiny: Backbone, tmp_path: Path) -> None:
    """A chain serves if any of its nodes read a row, whichever it was."""
    system = _system(tmp_path / "run", tiny, Design(cumulative=False))
    records = _records()[:4]
    system.fit(records)
    status = system.status()
    assert status.live and set(status.chain_lengths.values()) == {3}
    _holds(system, records, ("E0", "E1a"), scope="surviving")
    system.delete([records[0].id])
    _holds(system, records, ("E0", "E1a", "E1b"), scope="surviving")
    system.close()


def _violated(system: System, level: str) -> str:
    lab = RunLab(read_evidence(system.path))
    report = audit(system, system.path, levels=(level,), records=_records(), lab=lab, isolate=False, scope="surviving")
    assert report.verdict is Verdict.VIOLATED, report.dumps()
    return "\n".join(finding.message for finding in report.findings if finding.verdict is Verdict.VIOLATED)


def test_rows_of_earlier_slices_are_found_where_none_are_declared(tiny: Backbone, tmp_path: Path) -> None:
    """The planner reads the whole prefix in spite of what the plan says."""
    system = _system(tmp_path / "run", tiny, Design(cumulative=False))
    with patch.object(Plan, "pieces", lambda plan, prefix: prefix):
        system.fit(_records())
    assert "records were read that are not its own" in _violated(system, "E0")
    system.close()


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_a_head_that_goes_on_in_spite_of_the_plan_is_found(tiny: Backbone, tmp_path: Path, engine: str) -> None:
    system = _system(tmp_path / "run", tiny, Design(fresh_head=True), engine=engine, precision="float32")
    real = Builder.assignment

    def stale(self: Any, plan: Plan, node: Node, stored: Any) -> Any:
        given = real(self, plan, node, stored)
        stages = [dataclasses.replace(stage, fresh_head=False) for stage in given.task.stages]
        return dataclasses.replace(given, task=dataclasses.replace(given.task, stages=stages))

    with patch.object(Builder, "assignment", stale):
        system.fit(_records())
    _holds(system, _records(), ("E0",), scope="surviving")
    assert "differ" in _violated(system, "E1a")
    system.close()


@pytest.mark.parametrize(
    "declared", [Design(bottom_up=True), Design((1, 3, 1)), Design(fresh_head=True), Design(stacked=True)]
)
def test_stages_that_the_declared_design_does_not_give_are_found(
    declared: Design, tiny: Backbone, tmp_path: Path
) -> None:
    plan = dataclasses.replace(s3t_plan(Layout(2, 3, 2), RECIPE, tiny.layers), design=declared)
    about: dict[str, Any] = {"model": tiny, "classes": ("a", "b", "c"), "allow_empty": True}
    system = System.create(tmp_path / "run", plan, RECIPE, **about)
    system.fit(_records())
    assert "plan: stage " in _violated(system, "E0")
    system.close()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    lines = [f"the cat {'sat ' * (i % 4)}on number {i},{'ab'[i % 2]}" for i in range(60)]
    path.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return path


def test_the_command_line_declares_and_audits_a_design(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    size = ("--data", table, "--classes", "a,b", "--model", "tiny", "--epochs", 1, "--rank", 2, "--no-duplicates")
    layout = ("--shards", 1, "--slices", 2, "--block-layers", "2,1", "--bottom-up", "--last-slice-only", "--fresh-head")
    code, _, err = said("train", run, *size, *layout)
    assert code == 0, err
    plan = json.loads((run / "run.json").read_text())["plan"]
    assert [stage["layers"] for stage in plan["stages"]] == [[3, 4], [5]]
    assert plan["design"] == {"block_layers": [2, 1], "bottom_up": True, "fresh_head": True}
    assert plan["cumulative"] is False
    assert (
        json.loads(said("status", run, "--json")[1])["design"]
        == "blocks of 2, 1, bottom-up, not cumulative, fresh heads"
    )
    assert said("delete", run, "--any", 1)[0] == 0
    code, out, _ = said("verify", run, "--level", "E0", "--level", "E1a", "--no-isolate")
    assert code == 0, out


def test_the_command_line_shares_the_rank(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--data", table, "--classes", "a,b", "--model", "tiny", "--epochs", 1, "--rank", 4, "--no-duplicates")
    options += ("--shards", 1, "--slices", 2, "--stacked", "--share-rank")
    code, _, err = said("train", run, *options)
    assert code == 0, err
    config = json.loads((run / "run.json").read_text())
    assert (config["recipe"]["rank"], config["recipe"]["alpha"]) == (2, 8.0)
    assert config["plan"]["design"] == {"stacked": True}
    assert said("train", run, *options)[0] == 0, "the same command continues it"
    code, out, _ = said("verify", run, "--level", "E0", "--level", "E1a", "--no-isolate")
    assert code == 0, out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--share-rank",), "a chain stores adapters on 6 layers, as many as the paper's blocks"),
        (("--method", "sisa-full", "--share-rank"), "sisa-full stores no LoRA adapters"),
        (("--block-layers", "two"), "--block-layers 'two' are no numbers of layers; write 2, or 3,2,2"),
        (("--block-layers", "2,,1"), "--block-layers '2,,1' are no numbers of layers"),
        (("--block-layers", "0"), "block_layers=0 leaves a block without a layer"),
        (("--block-layers", "4"), "blocks of 4 + 4 layers exceed the model's 6"),
        (("--block-layers", "1,1,1"), "3 numbers of block layers for 2 slices"),
        (("--method", "sequential", "--bottom-up"), "sequential has no blocks to lay out (bottom-up)"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    table: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    size = ("--data", table, "--classes", "a,b", "--model", "tiny", "--slices", 2)
    code, out, err = said("train", tmp_path / "run", *size, *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
