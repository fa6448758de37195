"""What plain ``pytest``, ``--benchmark``, ``--profile`` and ``--slow`` run, in a small project with our conftest."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.profiles import PROFILES

TESTS = """
import os
import pytest

def test_fast(): assert os.environ["OMP_NUM_THREADS"] == "1"

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.packs
def test_packs(): pass
"""
BENCHMARKS = """
import os

def test_benchmark(profile, benchmark):
    assert os.environ["OMP_NUM_THREADS"] == "2"
    benchmark.extra_info["profile"] = profile
    benchmark.pedantic(lambda: None)
"""


@pytest.fixture
def project(tmp_path: Path, root: Path) -> Path:
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(root / name, tmp_path / name)
    for folder, content in (("tests", TESTS), ("benchmarks", BENCHMARKS)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test_it.py").write_text(content)
    return tmp_path


@pytest.fixture
def ran(project: Path, python: Callable[..., object]) -> Callable[..., list[str]]:
    """Runs pytest in the project, on two threads as it finds them, and returns the names of what passed, sorted."""

    def run(*options: str) -> list[str]:
        done = python(
            "-m",
            "pytest",
            "-v",
            "-p",
            "no:cacheprovider",
            *options,
            cwd=project,
            PYTHONSAFEPATH="",
            OMP_NUM_THREADS="2",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return sorted(re.findall(r"::(\w+) PASSED", done.stdout))

    return run


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["test_fast"]),
        (["--slow"], ["test_fast", "test_packs", "test_slow"]),
        (["-m", "slow"], ["test_slow"]),
        (["-m", "slow or packs"], ["test_packs", "test_slow"]),
        (["--benchmark"], ["test_benchmark"]),
    ],
)
def test_what_is_run(ran: Callable[..., list[str]], options: list[str], expected: list[str]) -> None:
    assert ran(*options) == expected


def test_profile_and_machine_reach_the_benchmarks(ran: Callable[..., list[str]], project: Path) -> None:
    assert ran("--benchmark", "--profile", "smoke", "--benchmark-json=out.json") == ["test_benchmark"]
    written = json.loads((project / "out.json").read_text())
    assert written["benchmarks"][0]["extra_info"] == {"profile": "smoke"}
    assert {"gpu", "torch", "threads", "dtype"} <= written["machine_info"].keys()


def test_every_profile_of_the_benchmarks_can_be_asked_for(pytestconfig: pytest.Config) -> None:
    named = pytestconfig.pluginmanager.get_plugin(str(pytestconfig.rootpath / "conftest.py"))
    assert set(named.PROFILES) == set(PROFILES)


def test_fewer_seeds_are_fewer_lives(root: Path, python: Callable[..., Any]) -> None:
    listed = [
        "--benchmark",
        "--profile",
        "smoke",
        "-q",
        "--collect-only",
        "-p",
        "no:cacheprovider",
        "benchmarks/test_life.py",
    ]
    counts = [
        python("-m", "pytest", *listed, *seeds, cwd=root).stdout.count("test_life[")
        for seeds in ([], ["--most-seeds", "1"])
    ]
    assert counts[0] == len(PROFILES["smoke"].seeds) * counts[1] > counts[1] > 0


def test_no_seeds_are_refused(project: Path, python: Callable[..., Any]) -> None:
    done = python("-m", "pytest", "--benchmark", "--most-seeds", "0", cwd=project)
    assert done.returncode == 4 and "'0' is not possible: give a whole number of at least 1" in done.stderr


def test_an_unknown_profile_is_refused(project: Path, python: Callable[..., object]) -> None:
    done = python("-m", "pytest", "--benchmark", "--profile", "huge", cwd=project)
    assert done.returncode == 4
    assert "invalid choice: 'huge'" in done.stderr


def test_an_option_that_a_plugin_has_taken_is_left_to_it(project: Path, ran: Callable[..., list[str]]) -> None:
    (project / "taken.py").write_text(
        "def pytest_addoption(parser): parser.addoption('--benchmark', action='store_true', default=False)"
    )
    assert ran("-p", "taken", "--benchmark") == ["test_benchmark"]


def test_torchvision_beside_a_cpu_build_of_torch_stops_the_run(project: Path, python: Callable[..., object]) -> None:
    (project / "torchvision.py").touch()
    metadata = project / "torch-9.0+cpu.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.0+cpu\n")
    done = python("-c", "import pytest, sys; sys.path.insert(0, '.'); sys.exit(pytest.main([]))", cwd=project)
    assert done.returncode == 4
    assert "torchvision is installed, and no build of it matches" in done.stderr
