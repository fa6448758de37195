"""Who may import whom (STYLE, dependency direction), read from the source, and what importing costs."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import s3t

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("s3t", "baselines", "verify", "benchmarks")
HEAVY = ("torch", "peft", "transformers", "datasets", "accelerate")

# A module of s3t may import those of its own level and of the levels before it.
LEVELS = (
    ("s3t.errors", "s3t.reading", "s3t.durable", "s3t.unique"),
    ("s3t.exchange",),
    ("s3t.answers",),
    ("s3t.records",),
    ("s3t", "s3t.contract", "s3t.digests", "s3t.data", "s3t.metrics", "s3t.replies"),
    ("s3t.orders", "s3t.partition", "s3t.capacity", "s3t.streams", "s3t.design", "s3t.analytic.head", "s3t.plan"),
    (
        "s3t.packing",
        "s3t.graph",
        "s3t.ledger",
        "s3t.rows",
        "s3t.analytic.store",
        "s3t.observing",
        "s3t.store",
        "s3t.selection",
        "s3t.facts",
        "s3t.damage",
        "s3t.placing",
        "s3t.ensembling",
    ),
    (
        "s3t.engine.mode",
        "s3t.resources",
        "s3t.losses",
        "s3t.tiny",
        "s3t.backbone",
        "s3t.images",
        "s3t.language",
        "s3t.onnx_vit",
        "s3t.pretrained",
    ),
    ("s3t.blocks", "s3t.runs", "s3t.requests", "s3t.analytic.lacking", "s3t.status", "s3t.refreshing"),
    ("s3t.training", "s3t.engine", "s3t.duplicates", "s3t.analytic"),
    ("s3t.describing",),
    ("s3t.assignments",),
    ("s3t.executors",),
    ("s3t.building", "s3t.holding", "s3t.serving"),
    ("s3t.scheduling",),
    ("s3t.system",),
    ("s3t.method", "s3t.planner", "s3t.model_card", "s3t.exporting", "s3t.tuning", "s3t.floors", "s3t.judging"),
    ("s3t.service",),
    ("s3t.cli", "s3t.__main__"),
)
# Fine inside a function (loaded on first use), though of a later level.
LAZY = {("s3t", "s3t.method"), ("s3t.building", "s3t.scheduling")}

LIGHT = (
    *("s3t", "s3t.answers", "s3t.records", "s3t.errors", "s3t.contract", "s3t.digests", "s3t.data", "s3t.orders"),
    *(
        "s3t.partition",
        "s3t.capacity",
        "s3t.design",
        "s3t.analytic.head",
        "s3t.plan",
        "s3t.graph",
        "s3t.ledger",
        "s3t.rows",
        "s3t.store",
    ),
    *("s3t.selection", "s3t.facts", "s3t.refreshing", "s3t.damage", "s3t.packing", "s3t.resources", "s3t.placing"),
    *("s3t.runs", "s3t.requests", "s3t.status", "s3t.describing", "s3t.system", "s3t.method"),
    *("s3t.duplicates", "s3t.streams", "s3t.planner", "s3t.metrics", "s3t.model_card", "s3t.exporting"),
    *("s3t.tuning", "s3t.floors"),
    *("s3t.replies", "s3t.service", "s3t.observing", "s3t.analytic.store", "s3t.analytic.lacking"),
    *("s3t.cli", "s3t.__main__"),
    *("baselines", "verify", "verify.cli", "verify.__main__", "verify.report", "verify.derive"),
    *("benchmarks", "benchmarks.rows", "benchmarks.figures", "benchmarks.table"),
)
"""Modules whose import loads nothing heavy; those below them in dotted name are meant too."""

VERIFIER_MAY_USE = (
    "records",
    "contract",
    "errors",
    "reading",
    "digests",
    "durable",
    "unique",
    "data",
    "backbone",
    "images",
    "blocks",
    "training",
    "engine",
)
SYSTEM = ("s3t.system", "s3t.runs")
OPENS_SYSTEMS = {
    "verify.cli": SYSTEM,
    "verify.laboratory": (*SYSTEM, "s3t.building"),
    "verify.leaks": ("s3t", "baselines"),
    "verify.small": (*SYSTEM, "baselines", "s3t.analytic.head"),
    "verify.crashes": (*SYSTEM, "s3t.plan", "s3t.analytic.head", "s3t.exporting", "s3t.cli.attest", "s3t.resources"),
    "verify.ordering": ("s3t.orders",),
    "verify.fuzz_targets": ("s3t",),
}
"""Who may use more, and what: the command line opens the system under audit, the laboratory makes others of its
configuration, the planted faults alter the real one, the soak's small systems are there to be audited; rules for orders look
at no record and are shared, as the kernel is; what is fuzzed is all that reads."""
LONG: dict[str, str] = {}
"""Modules of more than 300 lines, each with its reason."""


@dataclass(frozen=True)
class Import:
    """``module`` (dotted; for ``from a import b`` both ``a`` and ``a.b`` if that is a module) and where it stands."""

    module: str
    line: int
    top: bool
    typing: bool


def _files() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


FILES = _files()


def _is_typing(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _walk(nodes: list[ast.stmt], top: bool, typing: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, top, typing
        inside = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, [])
            yield from _walk(body, inside, typing or (name == "body" and _is_typing(node)))
        for handler in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
            yield from _walk(handler.body, inside, typing)


def imports_of(module: str, source: str) -> list[Import]:
    """Return all imports of a module, function-level and typing-only ones included."""
    found = []
    for node, top, typing in _walk(ast.parse(source).body, top=True, typing=False):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{module}:{node.lineno} imports relatively; write the whole name"
            base = str(node.module)
            below = [f"{base}.{alias.name}" for alias in node.names]
            modules = [name for name in below if name in FILES]
            names = modules if len(modules) == len(below) else [base, *modules]
        found += [Import(name, node.lineno, top, typing) for name in names]
    return found


IMPORTS = {module: imports_of(module, path.read_text()) for module, path in FILES.items()}


def within(module: str, place: str) -> bool:
    """Say whether ``module`` is ``place`` or lies below it; a whole package stands for its ``__init__`` alone."""
    return module == place or (place not in PACKAGES and module.startswith(place + "."))


def _level(module: str) -> int | None:
    return next((i for i, level in enumerate(LEVELS) if any(within(module, place) for place in level)), None)


def _package(module: str) -> str:
    return module.split(".")[0]


def _faults(wrong: Callable[[str, Import], object], modules: list[str] | None = None) -> list[str]:
    chosen = FILES if modules is None else modules
    return [
        f"{module}:{found.line} imports {found.module}"
        for module in chosen
        for found in IMPORTS[module]
        if wrong(module, found)
    ]


def test_the_walk_sees_imports_wherever_they_stand() -> None:
    source = """
import a
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import b
try:
    import c
except ImportError:
    import d
class C:
    import e
    def f(self):
        from s3t import errors, records
        with x:
            import g
"""
    found = {i.module: (i.top, i.typing) for i in imports_of("m", source)}
    assert found["a"] == found["c"] == found["d"] == found["e"] == (True, False)
    assert found["b"] == (True, True)
    assert found["s3t.errors"] == found["s3t.records"] == found["g"] == (False, False)
    assert "s3t" not in found


def test_every_module_of_s3t_has_a_level() -> None:
    homeless = [module for module in FILES if _package(module) == "s3t" and _level(module) is None]
    assert not homeless, "give each a level in LEVELS"


def test_s3t_imports_downward_only() -> None:
    def upward(module: str, found: Import) -> bool:
        theirs, ours = _level(found.module), _level(module)
        if theirs is None or ours is None or found.typing or (not found.top and (module, found.module) in LAZY):
            return False
        return theirs > ours

    assert not _faults(upward)


def test_no_cycles_among_imports_at_module_level() -> None:
    edges = {
        module: {i.module for i in found if i.top and not i.typing and i.module in FILES} - {module}
        for module, found in IMPORTS.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' -> '.join((*path, module))}"
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_s3t_knows_neither_baselines_nor_verifier_nor_benchmarks() -> None:
    def outward(module: str, found: Import) -> bool:
        return (
            _package(module) == "s3t"
            and not within(module, "s3t.cli")
            and _package(found.module) in ("baselines", "verify", "benchmarks")
        )

    assert not _faults(outward)


def test_nothing_imports_benchmarks() -> None:
    def wrong(module: str, found: Import) -> bool:
        ours = _package(module) == "benchmarks" or within(module, "s3t.cli")
        return _package(found.module) == "benchmarks" and not ours

    assert not _faults(wrong)


def test_baselines_know_neither_the_command_line_nor_the_verifier() -> None:
    def wrong(module: str, found: Import) -> bool:
        return _package(module) == "baselines" and (
            within(found.module, "s3t.cli") or _package(found.module) in ("verify", "benchmarks")
        )

    assert not _faults(wrong)


def test_the_verifier_shares_nothing_with_the_planner() -> None:
    allowed = [f"s3t.{name}" for name in VERIFIER_MAY_USE]

    def wrong(module: str, found: Import) -> bool:
        if _package(module) != "verify" or found.typing or _package(found.module) not in ("s3t", "baselines"):
            return False
        more = [place for owner, places in OPENS_SYSTEMS.items() if within(module, owner) for place in places]
        if any(found.module == place or found.module.startswith(place + ".") for place in more):
            return False
        return not any(within(found.module, place) for place in allowed)

    assert not _faults(wrong)


def test_the_verifiers_command_line_opens_systems_lazily() -> None:
    assert not _faults(lambda module, i: module == "verify.cli" and i.top and not i.typing and i.module in SYSTEM)


def test_figures_need_neither_torch_nor_the_system() -> None:
    readers = [name for name in ("benchmarks.figures", "benchmarks.rows", "benchmarks.table") if name in FILES]
    assert not _faults(lambda _, i: i.module.split(".")[0] in HEAVY or within(i.module, "s3t.system"), readers)


def test_torchvision_is_imported_nowhere() -> None:
    assert not _faults(lambda _, i: _package(i.module) in ("torchvision", "timm"))


def test_light_modules_import_nothing_heavy_at_module_level() -> None:
    light = [module for module in FILES if any(within(module, place) for place in LIGHT)]
    assert not _faults(lambda _, i: i.top and not i.typing and _package(i.module) in HEAVY, light)


def test_no_module_is_longer_than_300_lines_without_a_reason() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert {module: length for module, length in lengths.items() if length > 300 and module not in LONG} == {}
    assert not [module for module in LONG if lengths.get(module, 0) <= 300], "no longer needs its reason"


@pytest.mark.parametrize(
    "code",
    [
        "import s3t, s3t.orders, s3t.capacity; s3t.orders.cyclic(4, 6); s3t.capacity.deletion_rate(5, 4, 2)",
        "from s3t.cli import app; app(['--help'], standalone_mode=False)",
        "import s3t.system",
        "import verify",
        "import benchmarks.rows",
    ],
)
def test_importing_costs_no_torch(python: Callable[..., object], code: str) -> None:
    heavy = f"import sys; loaded = sorted({set(HEAVY)!r} & sys.modules.keys()); sys.exit(str(loaded) if loaded else 0)"
    done = python("-c", f"{code}\n{heavy}")
    assert done.returncode == 0, done.stderr


def test_torchvision_is_not_installed() -> None:
    if not importlib.metadata.version("torch").endswith("+cpu"):
        pytest.skip("another build of torch may have a torchvision to match")
    assert importlib.util.find_spec("torchvision") is None


@pytest.mark.skipif("S3T_INSTALLED" not in os.environ, reason="tox sets it: the installed package is under test")
def test_the_installed_package_is_under_test() -> None:
    assert not Path(str(s3t.__file__)).is_relative_to(ROOT / "s3t")
    assert importlib.metadata.version("s3t") == s3t.__version__
