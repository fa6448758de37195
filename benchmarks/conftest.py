"""One workbench per session; its rows are written after each benchmark, so that a session that is cut keeps what it has,
failed ones included, and shown as a table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.profiles import PROFILES
from benchmarks.workbench import Workbench

ROWS = pytest.StashKey[list[Path]]()
RESULTS = Path(__file__).resolve().parent.parent / "results" / "rows"


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest, profile: str, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Return the session's workbench."""
    return Workbench(PROFILES[profile], tmp_path_factory.mktemp("benchmarks"), request.config.getoption("--most-seeds"))


@pytest.fixture(autouse=True)
def _kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """Write the rows that there are after each benchmark."""
    yield
    if "bench" in request.fixturenames:
        workbench: Workbench = request.getfixturevalue("bench")
        if workbench.rows:
            folder = Path(request.config.getoption("--rows") or RESULTS)
            request.config.stash[ROWS] = workbench.write(folder)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the comparison table of what this session measured."""
    files = config.stash.get(ROWS, [])
    if files:
        from benchmarks.rows import read
        from benchmarks.table import render

        frame = read(files[0].parent)
        terminalreporter.write_line(render(frame[frame["file"].isin([path.name for path in files])]))
        terminalreporter.write_line(f"{len(files)} row sets written; figures: s3t plot")
