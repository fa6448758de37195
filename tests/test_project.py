"""README, tox.ini, .ci/run, CITATION.cff and the package agree with each other."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

import s3t

TOX = re.compile(r"^python -m pip install tox && python -m tox run -e (\S+)$", re.MULTILINE)


def _environments(root: Path) -> set[str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(root / "tox.ini")
    return {section.partition(":")[2] for section in parser.sections() if section.startswith("testenv:")}


def test_the_readme_names_the_main_and_the_test_command(root: Path) -> None:
    commands = TOX.findall((root / "README.md").read_text())
    assert commands == ["main", "checks,tests,slow,benchmark,audit,verifier"]
    assert {name for command in commands for name in command.split(",")} <= _environments(root)


def test_ci_runs_the_readmes_test_command(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    pattern = re.search(r"grep -E '(.+)' README.md", script.read_text())
    assert pattern is not None
    matching = [line for line in (root / "README.md").read_text().splitlines() if re.search(pattern[1], line)]
    assert len(matching) == 1
    assert TOX.fullmatch(matching[0])


def test_constraints_name_versions_alone(root: Path) -> None:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
    assert "torch==2.13.0" in lines


def test_the_audit_of_dependencies_is_strict_and_asked_for_alone(root: Path) -> None:
    """Without --strict an index that has no advisories makes every package pass unaudited."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(root / "tox.ini")
    command = parser["testenv:dependencies"]["commands"]
    assert command.startswith("pip-audit --strict ") and "{tox_root}/constraints.txt" in command
    assert "dependencies" not in parser["tox"]["env_list"]
    assert "python -m tox run -e dependencies" in (root / "docs" / "SECURITY.md").read_text()


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    documents = [root / "README.md", *(root / "docs").glob("*.md"), *(root / "results").rglob("*.md")]
    links = [(page, link) for page in documents for link in re.findall(r"\]\(([^)#]+)", page.read_text())]
    ours = [(page, link) for page, link in links if "://" not in link]
    assert len(ours) > 30
    assert [(page.name, link) for page, link in ours if not (page.parent / link).exists()] == []


def test_the_citation_has_the_packages_version(root: Path) -> None:
    assert f"version: {s3t.__version__}\n" in (root / "CITATION.cff").read_text()
