"""What the command line shows: results on stdout, one progress bar on stderr."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from s3t.contract import Cost, Progress


class _OnStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo("warning: " + " ".join(record.getMessage().split()), err=True)


@contextmanager
def warnings_shown() -> Iterator[None]:
    """Show what the package warns of, one line each on stderr, while the body works."""
    log, handler = logging.getLogger("s3t"), _OnStderr(logging.WARNING)
    before, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show one bar on stderr while the body works, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("preparing", total=None)
        yield lambda done, total, doing: bars.update(bar, completed=done, total=total, description=doing)


def print_result(as_json: bool, value: dict[str, Any], text: str) -> None:
    """Print ``value`` as one JSON object, or else ``text``."""
    typer.echo(json.dumps(value, ensure_ascii=False) if as_json else text)


def spent(cost: Cost) -> str:
    """Say in words what training took."""
    return (
        f"{cost.nodes} nodes trained, {cost.optimizer_steps} optimizer steps, {cost.record_passes} record passes, "
        f"{cost.bytes / 1e6:.1f} MB, {cost.seconds:.1f} s"
    )


def plain(value: Any) -> str:
    """Say a JSON-like value in words, on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
