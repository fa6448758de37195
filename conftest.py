"""What a run of pytest is: tests by default, benchmarks with ``--benchmark``, the slow tier with ``--slow``.

The installed package is tested where one is installed; otherwise the source tree beside this file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent
PROFILES = ("smoke", "quick", "health", "pairs", "larger", "vision", "paper", "full")
SLOW_TIER = ("slow", "packs")

if importlib.util.find_spec("s3t") is None:
    sys.path.insert(0, str(ROOT))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible: give a whole number of at least 1")
    return int(text)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("s3t")

    def add(name: str, **attributes: Any) -> None:
        try:
            group.addoption(name, **attributes)
        except ValueError:  # a plugin has taken the name by now: its option serves as well
            return

    add("--benchmark", action="store_true", default=False, help="run the benchmarks instead of the tests")
    add("--profile", choices=PROFILES, default="quick", help="size of the benchmarks (default: quick)")
    add("--most-seeds", type=_positive, default=None, help="of more seeds in the profile take the first so many")
    add("--rows", default="", help="folder for the benchmarks' rows (default: results/rows)")
    add(
        "--lives",
        default="",
        help="folder in which benchmarks/test_floors.py keeps the lives it has played, and finds them",
    )
    add("--slow", action="store_true", default=False, help="run the slow tier (marks slow and packs) as well")


def pytest_configure(config: pytest.Config) -> None:
    """Tests run on one thread, set before torch is imported; benchmarks on as many as there are.

    Tiny models gain nothing from more threads and lose much to a busy machine, bits depend on their number, and a fork
    does not take a pool of them along.
    """
    if not config.getoption("--benchmark"):
        os.environ["OMP_NUM_THREADS"] = "1"
    _refuse_torchvision()


def pytest_report_header(config: pytest.Config) -> str:
    if config.getoption("--benchmark"):
        return f"s3t: benchmarks alone, profile {config.getoption('--profile')}"
    return "s3t: tests alone (benchmarks: --benchmark; slow tier: --slow)"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Tests or benchmarks, never both; the paper's cases in a profile of their own."""
    left_out = "tests" if config.getoption("--benchmark") else "benchmarks"
    if collection_path.is_relative_to(config.rootpath / left_out):
        return True
    if collection_path.parent != config.rootpath / "benchmarks" or not collection_path.name.startswith("test_"):
        return None
    wanted = config.getoption("--profile") == "paper"
    return True if (collection_path.name == "test_paper.py") is not wanted else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the slow tier, unless it, or one of its marks, is asked for."""
    expression = str(config.getoption("-m") or "")
    if config.getoption("--slow") or any(mark in expression for mark in SLOW_TIER):
        return
    slow = [item for item in items if any(item.get_closest_marker(mark) for mark in SLOW_TIER)]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add what a time depends on and pytest-benchmark does not know."""
    import torch

    machine_info["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["dtype"] = str(torch.get_default_dtype()).removeprefix("torch.")


@pytest.fixture(scope="session")
def profile(request: pytest.FixtureRequest) -> str:
    """``smoke``, ``quick`` or ``full``: how large the benchmarks are."""
    return str(request.config.getoption("--profile"))


def _refuse_torchvision() -> None:
    """Stop where torchvision sits beside a CPU build of torch: none matches, and transformers then fails to import."""
    if importlib.util.find_spec("torchvision") and importlib.metadata.version("torch").endswith("+cpu"):
        raise pytest.UsageError(
            "torchvision is installed, and no build of it matches this CPU build of torch, so that transformers "
            "cannot import its models: python -m pip uninstall torchvision"
        )
