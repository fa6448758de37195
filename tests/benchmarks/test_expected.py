"""Expected accuracy: what is combined from chains asked once is what the system itself serves after the same deletions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baselines.methods import make_plan
from benchmarks.expected import METRIC, main, rows_of
from benchmarks.life import accuracy, stream
from benchmarks.profiles import PROFILES
from benchmarks.rows import Row, RowSet, header, read, write
from benchmarks.spoken import Spoken, speak
from benchmarks.workbench import Workbench, describe, slot_key
from s3t.backbone import Backbone
from s3t.partition import slot
from s3t.records import Layout, Recipe
from s3t.system import System

SAID = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)


@pytest.mark.parametrize(("method", "budget"), [("s3t", 3), ("s3t", 1), ("sisa-lora-lazy", 1), ("sequential", 1)])
def test_every_point_is_what_the_system_serves(tmp_path: Path, tiny: Backbone, method: str, budget: int) -> None:
    bench = Workbench(PROFILES["smoke"], tmp_path / "bench")
    data = bench.dataset("synthetic")
    bench.trained(method, budget, "synthetic", 0).close()
    home = bench.scratch / f"synthetic-0-{method}-b{budget}"
    spoken = speak(home, tiny, data.train, data.test)
    for seed in range(2):
        requests = stream([record.id for record in data.train], 25, seed)
        values, dead = spoken.curve(requests)
        with_run = shutil.copytree(home, tmp_path / f"run-{seed}")
        system = System.open(with_run, tiny)
        served = [accuracy(system, data.test)]
        for name in requests:
            system.delete([name])
            served.append(accuracy(system, data.test))
        system.close()
        assert values == [value for value, _ in served]
        offline = [at for at, (_, gone) in enumerate(served) if gone]
        assert dead == (offline[0] if offline else 26)
    assert len({tuple(spoken.curve(stream(list(spoken.slots), 25, seed))[0]) for seed in range(9)}) > 1


def test_a_chain_that_has_read_no_record_serves_nothing(tmp_path: Path, tiny: Backbone) -> None:
    """The first slice of the first order of shard 0 holds no record: cut to it, the chain says nothing, as in the system."""
    bench = Workbench(PROFILES["smoke"], tmp_path / "bench")
    whole, layout = bench.dataset("synthetic"), Layout(2, 3, 1)
    plan = make_plan("s3t", layout, Recipe(), tiny.layers)
    first, second = plan.orders[0][:2]
    data = replace(whole, train=tuple(r for r in whole.train if slot(slot_key(0), r.id, layout) != (0, first)))
    describe(tmp_path / "run", "s3t", layout, Recipe(epochs=1), tiny, data, 0).fit(data.train)
    spoken = speak(tmp_path / "run", tiny, data.train, data.test)
    assert (0, 0, 1) not in spoken.logits and (0, 0, 2) in spoken.logits and (1, 0, 1) in spoken.logits
    victim = next(name for name, where in spoken.slots.items() if where == (0, second))
    values, _ = spoken.curve([victim])
    system = System.open(tmp_path / "run", tiny)
    system.delete([victim])
    assert accuracy(system, data.test) == (values[1], False) and set(spoken.serves([(0, second)])) == {1}
    system.close()


def test_the_longest_chain_serves_and_of_equals_the_first_orders() -> None:
    plan = make_plan("s3t", Layout(1, 3, 3), Recipe(), 3)
    logits = {(0, order, length): SAID for order in range(3) for length in (1, 2, 3)}
    spoken = Spoken(logits, np.array([0, 1]), plan, "mean-logits", {"a": (0, plan.orders[0][0]), "b": (0, 1)})
    assert spoken.serves([]) == {0: (0, 3)}
    best = spoken.serves([(0, plan.orders[0][2])])
    assert best == {0: (0, 2)}, "both other orders are cut to fewer"
    gone = spoken.serves([(0, plan.orders[0][0])])
    assert gone[0][1] == max(pieces.index(plan.orders[0][0]) for pieces in plan.orders)
    assert spoken.serves([(0, 0), (0, 1), (0, 2)]) == {}
    without = replace(spoken, logits={key: value for key, value in logits.items() if key[1] != 0}, _known={})
    assert without.serves([]) == {0: (1, 3)}, "a chain that has read no record serves nothing"
    assert spoken.accuracy({}) == 0.0 and spoken.accuracy({0: (0, 3)}) == 1.0


def test_rows_are_means_over_streams() -> None:
    short, long = rows_of([[0.8, 0.6, 0.0], [0.8, 0.8, 0.4]], [2, 3], [1, 2])
    assert (short["deletions"], short["value"]) == (1, pytest.approx(0.75))
    assert (long["deletions"], long["value"], long["n"]) == (2, pytest.approx((0.8 + 0.7) / 4 + (0.7 + 0.2) / 4), 2)
    assert long["extra"] == {"curve": [0.8, 0.7, 0.2], "dead": [0.0, 0.0, 0.5]} and long["metric"] == METRIC


def rowset(curves: dict[tuple[str, int], list[list[float]]]) -> RowSet:
    """Return rows of runs: by method and budget a curve for each seed."""
    rows = []
    about: dict[str, Any] = {"question": "expected", "profile": "pairs", "data": "trec6", "model": "minilm"}
    about |= {"shards": 4, "slices": 3, "kind": "measured"}
    for (method, budget), seeds in curves.items():
        for seed, curve in enumerate(seeds):
            found = rows_of([curve], [9], [len(curve) - 1])
            rows += [Row(**about, method=method, budget=budget, seed=seed, **fields) for fields in found]
    return RowSet(replace(header(), dirty=False), tuple(rows))


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and "python -m benchmarks.expected results/rows" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2 and "has no clean rows of expected" in capsys.readouterr().err
    lazy = {("sisa-lora-lazy", 1): [[0.8, 0.4], [0.8, 0.2]]}
    alone = [[0.8, 0.4], [0.8, 0.4], [0.1, 0.1]]  # of a third seed, which lazy SISA does not have
    write(rowset({("s3t", 1): alone, ("s3t", 3): [[0.8, 0.6], [0.8, 0.4]], **lazy}), tmp_path)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "## trec6" in said
    assert "| s3t, 3 orders | 2 | 0.800 [0.800, 0.800] | 0.650 [0.015, 1.285] | 0% |" in said
    assert "| s3t, 3 orders | 2 | +10.0 [+10.0, +10.0] |" in said, "in pairs: the interval is that of the differences"
    assert "| s3t | 2 | +5.0 [-58.5, +68.5] |" in said and "| sisa-lora-lazy | 2 | +" not in said
    assert "seed" in read(tmp_path)
