"""The kill matrix as tables: JSON with one row per cell and check, Markdown, and the terminal's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from s3t.engine.mode import Mode
from verify.leaks.leak import CHECKS, Leak, not_planted
from verify.leaks.matrix import FORMAT, Cell, code
from verify.leaks.settings import Setting, find_setting, in_every_mode
from verify.report import Verdict

if TYPE_CHECKING:
    from rich.table import Table

SIGNS = {Verdict.VIOLATED: "X", Verdict.UNDECIDED: "?", Verdict.HOLDS: "."}
COLUMNS = ("leak", "setting", "victim", "check", "verdict", "due")


def table(cells: Sequence[Cell], leaks: Sequence[Leak]) -> str:
    """Return the matrix as JSON, one line per row; ``due`` is 1 where the check must catch the fault."""
    named = {leak.number: leak for leak in leaks}
    rows = [
        [
            cell.leak,
            cell.place.setting,
            cell.place.victim,
            check,
            verdict.value,
            int(check in named[cell.leak].due(find_setting(cell.place.setting))),
        ]
        for cell in cells
        for check, verdict in cell.verdicts.items()
    ]
    head = {
        "schema": FORMAT,
        "code": code(),
        "settings": {setting.label: describe(setting) for setting in _settings(cells)},
        "leaks": {str(leak.number): {"name": leak.name, "channel": leak.channel} for leak in _played(cells, leaks)},
        "columns": list(COLUMNS),
    }
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n]}}\n'


def describe(setting: Setting) -> str:
    """Return what a setting is, in one line."""
    layout, recipe = setting.layout, setting.recipe
    return (
        f"{setting.method}, {layout.shards} shards x {layout.slices} slices, {layout.budget} orders, {setting.model}, "
        f"rank {recipe.rank}, dropout {recipe.dropout:g}, batches of {recipe.batch_size}, {recipe.epochs:g} epochs, "
        f"{recipe.ensemble}, seed {setting.seed}, kernel {setting.mode.kernel}"
    )


def _settings(cells: Sequence[Cell]) -> list[Setting]:
    used = {cell.place.setting for cell in cells}
    return [setting for setting in in_every_mode() if setting.label in used]


def _played(cells: Sequence[Cell], leaks: Sequence[Leak]) -> list[Leak]:
    played = {cell.leak for cell in cells}
    return [leak for leak in leaks if leak.number in played]


def share(leak: Leak, cells: Sequence[Cell], check: str) -> str:
    """Return X if ``check`` caught the fault in all its cells, n/m if in some, "!" added where it had to in all."""
    mine = [cell for cell in cells if cell.leak == leak.number and check in cell.verdicts]
    said = [cell.verdicts[check] for cell in mine]
    caught = sum(verdict is Verdict.VIOLATED for verdict in said)
    if not said:
        return ""
    sign = "X" if caught == len(said) else f"{caught}/{len(said)}" if caught else ""
    undecided = "?" if not caught and Verdict.UNDECIDED in said else ""
    return sign + undecided + ("!" if any(check in cell.missed(leak) for cell in mine) else "")


def pattern(leak: Leak, cells: Sequence[Cell], check: str) -> str:
    """Return one sign per victim, settings apart: X caught, . held, ? undecided."""
    groups = []
    for setting in _settings(cells):
        mine = [c for c in cells if c.leak == leak.number and c.place.setting == setting.label and check in c.verdicts]
        groups.append("".join(SIGNS[c.verdicts[check]] for c in sorted(mine, key=lambda cell: cell.place)))
    return " ".join(group for group in groups if group)


def markdown(cells: Sequence[Cell], leaks: Sequence[Leak]) -> str:
    """Return the matrix as Markdown: shares per fault and check, every cell, and what to know about each fault."""
    played, settings = _played(cells, leaks), _settings(cells)
    places = len({cell.place for cell in cells})
    lines = [
        "# Planted leaks: which check catches which",
        "",
        f"{len([leak for leak in played if leak.number])} faults, {len(settings)} settings, {places} places (a setting "
        f"and a victim), {len(cells)} audits. Made by `python -m verify leaks`.",
        "",
        *(f"- `{setting.label}`: {describe(setting)}" for setting in settings),
        "",
        "X: caught in every place. n/m: in n of m. !: had to be caught and was not. ?: undecided.",
        "",
        *_grid(played, lambda leak, check: share(leak, cells, check)),
        "",
        "## Every cell",
        "",
        "One sign per victim, settings in the order above: X caught, `.` held, ? undecided.",
        "",
        *_grid(played, lambda leak, check: f"`{said}`" if (said := pattern(leak, cells, check)) else ""),
        "",
        "## About the faults",
        "",
        *(line for leak in played if leak.number for line in _about(leak)),
        *(f"- **{number}, not planted:** {why}." for number, why in _apart(leaks, settings).items()),
    ]
    return "\n".join(lines) + "\n"


def _grid(leaks: Sequence[Leak], cell: Callable[[Leak, str], str]) -> list[str]:
    head = f"| fault | channel | {' | '.join(CHECKS)} |"
    rule = "|---" * (len(CHECKS) + 2) + "|"
    rows = [f"| {_name(leak)} | {_channel(leak)} | {' | '.join(cell(leak, c) for c in CHECKS)} |" for leak in leaks]
    return [head, rule, *rows]


def _name(leak: Leak) -> str:
    return f"{leak.number} {leak.name}" if leak.number else leak.name


def _channel(leak: Leak) -> str:
    return leak.channel if leak.number else ""


def _about(leak: Leak) -> list[str]:
    said = [f"- **{leak.number} {leak.name}.** {leak.why}"]
    if leak.needs:
        said.append(f"  Needs: {(leak.needs.__doc__ or '').strip()}")
    said += [f"  {check} in some places alone: {why}." for check, why in leak.sometimes.items()]
    if leak.blind:
        said.append(f"  Blind: {leak.blind}.")
    return said


def _apart(leaks: Sequence[Leak], settings: Sequence[Setting]) -> dict[int, str]:
    engines = {setting.mode.name for setting in settings} or {Mode().name}
    return {number: why for engine in sorted(engines) for number, why in not_planted(leaks, engine).items()}


def terminal(cells: Sequence[Cell], leaks: Sequence[Leak]) -> Table:
    """Return the shares per fault and check as a table for the terminal."""
    from rich import box
    from rich.table import Table

    made = Table(title="planted leaks: where each check catches each fault", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("fault", overflow="fold")
    for check in CHECKS:
        made.add_column(check.replace(" ", "\n"), justify="center", no_wrap=True)
    for leak in _played(cells, leaks):
        made.add_row(_name(leak), *(share(leak, cells, check) for check in CHECKS))
    return made
