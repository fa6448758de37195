"""A tiny run that is served, in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from serving_http import KEY, LAYOUT, RECIPE, RECORDS, TOKEN, Served

from baselines.methods import make_plan
from s3t.backbone import Backbone
from s3t.records import Record
from s3t.service.app import Limits, application
from s3t.service.tokens import Token
from s3t.service.working import Service
from s3t.system import System

TEST = [Record("held-out", {"text": "never trained on"}, 0)]


@pytest.fixture(scope="session")
def fitted(tiny: Backbone) -> Callable[[Path, Sequence[Record]], Path]:
    """Trains a run at a path from scratch, on given records, and returns the path."""

    def fit(path: Path, records: Sequence[Record]) -> Path:
        plan = make_plan("s3t", LAYOUT, RECIPE, tiny.layers)
        more = {"engine": "fast", "precision": "float32", "evaluation": ((), TEST)}
        system = System.create(path, plan, RECIPE, model=tiny, classes=("a", "b", "c"), key=KEY, **more)  # type: ignore[arg-type]
        system.fit(records)
        system.close()
        return path

    return fit


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, fitted: Callable[[Path, Sequence[Record]], Path]) -> Path:
    """A fitted run, trained once; take a copy."""
    return fitted(tmp_path_factory.mktemp("service") / "run", RECORDS)


@pytest.fixture
def copied(home: Path, tmp_path: Path) -> Callable[[], Path]:
    """Gives copies of the fitted run."""
    made: list[Path] = []

    def copy() -> Path:
        made.append(tmp_path / f"run-{len(made)}")
        shutil.copytree(home, made[-1])
        return made[-1]

    return copy


@pytest.fixture
def serve(copied: Callable[[], Path], tiny: Backbone) -> Iterator[Callable[..., Served]]:
    """Opens services, each on a copy of the run, or on a given run; closed at the end."""
    opened: list[Service] = []

    def open_one(path: Path | None = None, limits: Limits | None = None, **how: Any) -> Served:
        service = Service(path or copied(), backbone=tiny, **how)
        opened.append(service)
        log: list[str] = []
        app = application(service, Token(TOKEN), limits, log=log.append, access=log.append)
        return Served(service.run, service, app, log)

    yield open_one
    for service in opened:
        service.close()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """One service on a copy of the run."""
    return serve()
