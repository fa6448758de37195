"""Runs trained with chosen orders, through the command line: what is stored, continued, refused, served and audited."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import said

from s3t.cli.inputs import read_prior
from s3t.errors import DataError, LayoutError, S3TError
from s3t.orders import conditional, matching
from s3t.system import System

SMALL = ("--model", "tiny", "--epochs", "0.2", "--rank", "1", "--batch-size", "8", "--no-duplicates", "--json")
LAYOUT = ("--shards", "2", "--slices", "3", "--budget", "2")
PRIOR = [0.7, 0.1, 0.2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    lines = [f"r{i:02d},cat number {i} of many,{'ab'[i % 2]}" for i in range(60)]
    path.write_text("\n".join(["id,text,label", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prior") / "prior.json"
    path.write_text(json.dumps(PRIOR))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path, prior: Path) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    code, _, error = said(*command(run, data, "--orders", "matching", "--prior", prior, "--horizon", 20))
    assert code == 0, error
    return run


def command(run: Path, data: Path, *more: object) -> tuple[object, ...]:
    return ("train", run, "--data", data, "--text", "text", "--label", "label", "--id", "id", *SMALL, *LAYOUT, *more)


def test_the_chosen_orders_are_trained_stored_and_shown(trained: Path) -> None:
    raw = json.loads((trained / "run.json").read_text())["plan"]
    assert [tuple(order) for order in raw["orders"]] == matching(PRIOR, 20, "expected_length", 2)
    assert raw["rule"] == {"name": "matching", "prior": PRIOR, "horizon": 20, "score": "expected_length"}
    code, out, _ = said("status", trained)
    assert code == 0
    assert "orders           matching (horizon 20, score expected_length, prior 0.7 0.1 0.2)" in out


def test_the_same_command_continues_and_another_prior_does_not(trained: Path, data: Path, prior: Path) -> None:
    code, out, error = said(*command(trained, data, "--orders", "matching", "--prior", prior, "--horizon", 20))
    assert code == 0, error
    assert json.loads(out)["cost"]["nodes"] == 0
    code, out, error = said(*command(trained, data, "--orders", "matching", "--prior", prior, "--horizon", 21))
    assert (code, out) == (2, "")
    assert re.search("was made with another plan", error)
    assert said(*command(trained, data))[0] == 2


def test_a_run_with_chosen_orders_is_not_extended(trained: Path) -> None:
    with closing(System.open(trained)) as system:
        entries = system.status()
        with pytest.raises(LayoutError, match="matching orders cannot be extended to budget 3"):
            system.extend(3)
        assert system.status() == entries


def test_deletions_cut_the_chosen_orders(tmp_path: Path, data: Path) -> None:
    prior = tmp_path / "prior.txt"
    prior.write_text("0.7, 0.1\n0.2\n")
    run = tmp_path / "run"
    code, _, error = said(*command(run, data, "--orders", "conditional", "--prior", prior, "--seed", 5))
    assert code == 0, error
    with closing(System.open(run)) as system:
        orders = conditional(PRIOR, 2, 5)
        assert list(system.config.plan.orders) == orders
        hit = orders[0][1]
        system.retire([(0, hit)])
        kept = max(order.index(hit) for order in orders)
        expected = {0: kept, 1: 3} if kept else {1: 3}
        assert system.status().chain_lengths == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--orders", "matchng", "--prior", "P"), r"orders 'matchng' are unknown \(did you mean 'matching'\?\)"),
        (("--orders", "matching"), "matching orders need a prior"),
        (("--orders", "random", "--prior", "P"), "random orders use no prior"),
        (("--orders", "random", "--horizon", "5"), "random orders use no horizon"),
        (("--prior", "P"), "--prior and --horizon go with --orders"),
        (("--orders", "best", "--prior", "P", "--horizon", "-1"), "horizon=-1 is not possible"),
        (("--orders", "matching", "--prior", "P", "--slices", "4"), "the prior has 3 numbers for 4 slices"),
        (("--orders", "matching", "--prior", "missing.json"), "missing.json cannot be read as a prior"),
    ],
)
def test_bad_options_end_in_one_line(tmp_path: Path, data: Path, prior: Path, options: Any, message: str) -> None:
    given = [prior if option == "P" else option for option in options]
    code, out, error = said(*command(tmp_path / "run", data, *given))
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .+\n", error), error
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_undivided_methods_have_no_orders(tmp_path: Path, data: Path) -> None:
    more = ("--model", "tiny", "--method", "retrain-lora", "--orders", "random")
    code, _, error = said("train", tmp_path / "run", "--data", data, *more)
    assert code == 2
    assert "do not apply to retrain-lora" in error


@pytest.mark.parametrize(
    "text", ["[0.5, 0.25, 0]", "0.5,0.25,0", "0.5\n0.25\n0\n", " 0.5; 0.25 ; 0 ", "\ufeff0.5 0.25 0"]
)
def test_priors_in_every_form(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prior"
    path.write_text(text, encoding="utf-8")
    assert read_prior(path) == (0.5, 0.25, 0.0)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", LayoutError, "does not do: .*at least one"),
        (b"[]", LayoutError, "at least one"),
        (b"0.5, many", DataError, "cannot be read as a prior .*many"),
        (b"[0.5, ", DataError, "cannot be read as a prior"),
        (b'{"0": 0.5}', DataError, "not a list of numbers"),
        (b'["0.5"]', DataError, "not a list of numbers"),
        (b"[true]", DataError, "not a list of numbers"),
        (b"[[0.5]]", DataError, "not a list of numbers"),
        (b"\xff\xfe0", DataError, "cannot be read as a prior"),
        (b"[" * 100_000, DataError, "cannot be read as a prior"),
        (b"[NaN]", LayoutError, "probability nan is out of range"),
        (b"0.9 0.9", LayoutError, "sum to 1.8"),
        (b"-0.1", LayoutError, "probability -0.1 is out of range"),
    ],
)
def test_files_that_are_no_prior(tmp_path: Path, content: bytes, kind: type[S3TError], message: str) -> None:
    path = tmp_path / "prior"
    path.write_bytes(content)
    with pytest.raises(kind, match=message) as error:
        read_prior(path)
    assert str(path) in str(error.value)
