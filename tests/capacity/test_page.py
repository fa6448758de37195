"""Every number in the tables of docs/CAPACITY.md, computed again; and its examples run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from s3t.capacity import (
    Demand,
    deletion_rate,
    deviation_to_dead,
    expected_live_shards,
    expected_share,
    gap,
    gap_of_the_paper,
    growth_of_the_paper,
    probability_dead,
    requests_to_dead,
    requests_until,
)
from s3t.orders import cyclic

Row = Callable[..., list[float]]


def growth(shards: int, slices: int, budget: int) -> list[float]:
    paper, exact = growth_of_the_paper(shards, slices, budget), deletion_rate(shards, slices, budget)
    return [paper, exact, exact - paper, exact / paper if paper else np.inf]


def gaps(slices: int, budget: int, j: int, requests: int) -> list[float]:
    paper, exact = gap_of_the_paper(slices, j, budget, requests), gap(cyclic(slices, budget), j, requests)
    return [paper, exact, exact - paper]


def records(records: float, budget: int) -> list[float]:
    demand = Demand.uniform(5, 6) if records == np.inf else Demand.once(np.full((5, 6), int(records)))
    return [requests_to_dead(demand, cyclic(6, budget), dead) for dead in (1, 3, 5)]


def spread(shards: int, slices: int, budget: int) -> list[float]:
    demand, orders = Demand.uniform(shards, slices), cyclic(slices, budget)
    mean = requests_to_dead(demand, orders)
    first = [requests_until(demand, orders, 0.05, dead) for dead in (1, shards)]
    return [mean, deviation_to_dead(demand, orders), *first, probability_dead(demand, orders, round(mean))]


def left(budget: int, requests: int) -> list[float]:
    demand, orders = Demand.once([[20, 40, 60, 80]] * 5), cyclic(4, budget)
    live = expected_live_shards(demand, orders, requests)
    return [live, *(expected_share(demand, orders, requests, of) for of in ("slices", "records", "retained"))]


TABLES: dict[str, tuple[int, Row]] = {
    "shards": (3, growth),
    "slices": (4, gaps),
    "records per slot": (2, records),
    "layout": (3, spread),
    "budget": (2, left),
}
"""By the first word of their heads: how many columns are given, and what computes the rest."""


def tables(page: str) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines())
        found[head[0]] = rows
    return found


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "CAPACITY.md").read_text()


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_what_the_functions_return(name: str, page: str) -> None:
    given, compute = TABLES[name]
    rows = tables(page)[name]
    assert len(rows) >= 4
    for cells in rows:
        arguments = [np.inf if cell == "∞" else int(cell) for cell in cells[:given]]
        for cell, value in zip(cells[given:], compute(*arguments), strict=True):
            decimals = len(cell.partition(".")[2])
            written = "∞" if value == np.inf else f"{value:.{decimals}f}"
            assert cell == written, f"{name} {cells[:given]}"


def test_every_table_of_numbers_is_checked(page: str) -> None:
    numeric = {name for name, rows in tables(page).items() if re.fullmatch(r"[\d∞]+", rows[0][0])}
    assert numeric == set(TABLES)


def test_examples_print_what_they_say(page: str) -> None:
    lines = [line for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    names: dict[str, object] = {}
    compared = 0
    for line in lines:
        code, _, said = line.partition("  # ")
        if said and not code.startswith(("from", "import")) and "=" not in code.split("(")[0]:
            value = eval(code, names)
            digits = len(said.partition(".")[2])
            assert said == (f"{value:.{digits}f}" if isinstance(value, float) else str(value)), code
            compared += 1
        else:
            exec(code, names)
    assert compared >= 6
