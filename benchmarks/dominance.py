"""Whether a system is at least as accurate as others at every point of a stream of deletions: tables from rows of `floors`.

``python -m benchmarks.dominance results/rows`` prints, for each data set, accuracy after each number of deletions, before and
over all of them, work and storage of every system; how every system with an analytic head compares with its opponents point by
point; and what layer-wise chains gain or lose against SISA and retraining, before deletions and over them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.area import area
from benchmarks.floors import AREA, HEAD, RETRAINED, SHOWN
from benchmarks.rows import interval
from benchmarks.summary import readable_bytes
from benchmarks.tables import bounded, command, points, share
from s3t.errors import DataError

OPPONENTS = (("s3t", 1), ("sisa-lora-lazy", 1), (HEAD, 1))
"""Systems (method, budget) that a named variant has to match at every point: S3T, lazy SISA, the head alone."""
BASELINES = (("sisa-lora-lazy", 1), *((name, 1) for name in RETRAINED))
"""Systems that S3T's chains, with and without a head, are held against: what SISA and retraining give over the same stream."""
EARLY = 24
"""Deletions that most measurements of this project go through."""
PLAIN = (0.0, "equal", "linear")
"""The mixture of chains without a head."""

System = tuple[str, int, float, str, str]
"""Method, budget, share of the head, weights, pool."""


@dataclass(frozen=True)
class Gap:
    """A system's accuracy minus an opponent's, in points: the mean over seeds with its 95 % interval (None for one seed)."""

    opponent: str
    deletions: int
    mean: float
    low: float | None
    high: float | None
    n: int


def curves(rows: pd.DataFrame, data: str) -> dict[System, dict[int, list[tuple[int, float]]]]:
    """Return (deletions, accuracy) of every system on ``data``, by seed. DataError if a seed has two curves of a system."""
    found: dict[System, dict[int, list[tuple[int, float]]]] = {}
    told = rows[
        (rows["question"] == "floors") & (rows["status"] == "ok") & (rows["metric"] == AREA) & (rows["data"] == data)
    ]
    for method, budget, seed, extra in zip(told["method"], told["budget"], told["seed"], told["extra"], strict=True):
        system = (str(method), int(budget), float(extra["share"]), str(extra["weights"]), str(extra["pool"]))
        mine = found.setdefault(system, {})
        if int(seed) in mine:
            raise DataError(f"{data}: two curves of {name(system)} for seed {seed}; give the rows of one machine")
        mine[int(seed)] = [(int(deletions), float(value)) for deletions, value in extra["curve"]]
    return found


def name(system: System) -> str:
    """Return a system in words."""
    method, budget, share, weights, pool = system
    parts = [method, f"{budget} orders" if budget > 1 else "", f"share {share:g}" if 0 < share < 1 else ""]
    parts += [f"weights by {weights}" if weights != "equal" else "", pool if pool != "linear" else ""]
    return ", ".join(filter(None, parts))


def opponent(method: str, budget: int) -> System:
    """Return the system that stands for an opponent."""
    return (method, budget, 1.0 if method == HEAD else 0.0, *PLAIN[1:])


def gaps(
    found: dict[System, dict[int, list[tuple[int, float]]]], system: System, others: Sequence[System]
) -> Iterator[Gap]:
    """Yield the gap to each of ``others`` at each point, over the seeds that both have. DataError where they have none."""
    for other in others:
        seeds = sorted(set(found[system]) & set(found.get(other, {})))
        if not seeds:
            raise DataError(f"{name(system)} and {name(other)} have no seed in common")
        for at, (deletions, _) in enumerate(found[system][seeds[0]]):
            differences = []
            for seed in seeds:
                (mine, value), (theirs, against) = found[system][seed][at], found[other][seed][at]
                if mine != theirs or mine != deletions:
                    raise DataError(f"{name(system)} and {name(other)} were not measured after the same deletions")
                differences.append(100 * (value - against))
            yield Gap(name(other), deletions, *interval(differences), len(seeds))


def table(rows: pd.DataFrame, data: str) -> str:
    """Return a Markdown table of every system on ``data``: means over seeds with 95 % intervals."""
    found = curves(rows, data)
    areas = rows[(rows["question"] == "floors") & (rows["data"] == data)]
    lines = ["| system | seeds | before deletions | over all deletions | record passes | stored |", "| --- " * 6 + "|"]
    for system, by_seed in sorted(found.items()):
        health = [curve[0][1] for curve in by_seed.values()]
        mine = areas[(areas["method"] == system[0]) & (areas["budget"] == system[1])]
        same = mine[mine["extra"].map(lambda extra, to=system: _mixture(extra) == to[2:])]
        over = same[same["metric"] == AREA]["value"].tolist()
        work, stored = (same[same["metric"] == metric]["value"] for metric in ("record passes", "bytes stored"))
        told = [f"{work.mean():.0f}" if len(work) else "", readable_bytes(stored.mean()) if len(stored) else ""]
        lines.append(f"| {name(system)} | {len(by_seed)} | {share(health)} | {share(over)} | {' | '.join(told)} |")
    return "\n".join(lines)


def by_point(rows: pd.DataFrame, data: str) -> str:
    """Return a Markdown table of the shown systems with one order: mean accuracy over seeds after each number of deletions."""
    found, shown = curves(rows, data), {(one.share, one.weights, one.pool) for one in SHOWN}
    systems = sorted(one for one in found if one[1] == 1 and one[2:] in shown)
    if not systems:
        return "(none of the systems that are shown was measured with one order)"
    places = [deletions for deletions, _ in next(iter(found[systems[0]].values()))]
    lines = [f"| system, deleted | {' | '.join(map(str, places))} | seeds |", "| --- " * (len(places) + 2) + "|"]
    for system in systems:
        means = [sum(value for _, value in at) / len(at) for at in zip(*found[system].values(), strict=True)]
        told = " | ".join(f"{mean:.3f}" if mean else "0" for mean in means)
        lines.append(f"| {name(system)} | {told} | {len(found[system])} |")
    return "\n".join(lines)


def verdicts(rows: pd.DataFrame, data: str) -> str:
    """Return a Markdown table of every system with a head beside chains: its worst point against each opponent."""
    found = curves(rows, data)
    others = [opponent(*one) for one in OPPONENTS]
    lines = [
        "| system | points below an opponent | clearly below | worst | against, after | best over an opponent |",
        "| --- " * 6 + "|",
    ]
    for system in sorted(one for one in found if 0 < one[2] < 1):
        all_ = list(gaps(found, system, others))
        below = [gap for gap in all_ if gap.mean < -1e-9]
        clearly = [gap for gap in below if gap.high is not None and gap.high < 0]
        worst, best = min(all_, key=lambda gap: gap.mean), max(all_, key=lambda gap: gap.mean)
        lines.append(
            f"| {name(system)} | {len(below)} of {len(all_)} | {len(clearly)} | {bounded(worst.mean, worst.low, worst.high)} | "
            f"{worst.opponent}, {worst.deletions} | {best.mean:+.1f} ({best.opponent}) |"
        )
    return "\n".join(lines)


def held_against(rows: pd.DataFrame, data: str) -> str:
    """Return a Markdown table of S3T's chains minus each baseline that was measured, in points, in pairs by seed (95 %).

    Before deletions, in the mean up to the point nearest to EARLY deletions, and in the mean over all."""
    found, shown = curves(rows, data), {(one.share, one.weights, one.pool) for one in SHOWN}
    lines = ["| system | against | seeds | before deletions | up to {} | over all {} |", "| --- " * 6 + "|"]
    for system in sorted(one for one in found if one[0].startswith("s3t") and one[2:] in shown):
        for other in (opponent(*one) for one in BASELINES if opponent(*one) in found):
            seeds = sorted(set(found[system]) & set(found[other]))
            if not seeds:
                continue
            places = [deletions for deletions, _ in found[system][seeds[0]]]
            early = min(places[1:], key=lambda deletions: abs(deletions - EARLY))
            lines[0] = lines[0].format(early, places[-1])
            pairs = [(found[system][seed], found[other][seed]) for seed in seeds]
            told = [[100 * (mine[0][1] - theirs[0][1]) for mine, theirs in pairs]]
            told += [[100 * (area(m, 0, last) - area(t, 0, last)) for m, t in pairs] for last in (early, places[-1])]
            columns = " | ".join(points(values) for values in told)
            lines.append(f"| {name(system)} | {name(other)} | {len(seeds)} | {columns} |")
    return "\n".join(lines) if len(lines) > 2 else "(no baseline was measured over the same stream)"


def _mixture(extra: dict[str, object]) -> tuple[object, ...]:
    return (extra.get("share"), extra.get("weights"), extra.get("pool"))


def main(arguments: Sequence[str]) -> int:
    """Print the tables of every data set in a folder of rows; 2 for bad input."""
    return command(arguments, "floors", [by_point, table, verdicts, held_against], "benchmarks.dominance")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
