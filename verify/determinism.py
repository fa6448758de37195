"""Which conditions keep bits on this machine and which do not: ``python -m verify.determinism [--out FILE]``.

Each row trains or asks the same small model twice, the second time under one changed condition, and compares every tensor
bit for bit. What cannot be tried here is a row as well, "not run" with the reason. A table of one machine says nothing of
another: that is why the environment is part of every node's key and why E2 exists (VERIFICATION, "Determinism").
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from s3t.errors import S3TError
from verify.compare import compare_tensors
from verify.machine import on_threads

if TYPE_CHECKING:
    from torch import Tensor

    from verify.conditions import Bench

Outcome = Literal["yes", "no", "not run"]


@dataclass(frozen=True)
class Row:
    """One condition on one model. ``same``: the same bits; ``max_ulps``: the largest distance, None if not comparable.

    ``max_relative``: the largest difference over the largest value of its tensor, for a distance in ULP is large near zero.
    """

    condition: str
    device: str
    model: str
    what: Literal["training", "inference"]
    same: Outcome
    max_ulps: int | None
    max_relative: float | None
    reason: str


@dataclass(frozen=True)
class Condition:
    """A condition and how both sides are made; ``lacking`` says why it cannot be tried here, or nothing."""

    name: str
    what: Literal["training", "inference"]
    usual: Callable[[], Mapping[str, Tensor]]
    changed: Callable[[], Mapping[str, Tensor]]
    lacking: str = ""
    device: str = "cpu"


def compare(condition: Condition, model: str) -> Row:
    """Run both sides of ``condition`` and compare them; whatever cannot be run is "not run" with the reason."""
    start = (condition.name, condition.device, model, condition.what)
    if condition.lacking:
        return Row(*start, "not run", None, None, condition.lacking)
    try:
        usual, changed = condition.usual(), condition.changed()
    except (S3TError, RuntimeError, OSError, ImportError, NotImplementedError) as error:
        told = str(error).strip().splitlines() or [""]
        return Row(*start, "not run", None, None, f"{type(error).__name__}: {told[0][:160]}")
    found = compare_tensors(usual, changed)
    if not found:
        return Row(*start, "yes", 0, 0.0, f"{len(usual)} tensors")
    far = [difference.ulps for difference in found if difference.ulps is not None]
    reason = f"{len(found)} of {len(usual)} tensors differ; {found[0].tensor}: {found[0].message}"
    return Row(*start, "no", max(far, default=None), _relative(usual, changed), reason)


def _relative(usual: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> float | None:
    pairs = [
        (usual[name], changed[name]) for name in usual if name in changed and usual[name].shape == changed[name].shape
    ]
    if len(pairs) != len(usual) or not pairs:
        return None
    worst = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)
    return float(f"{worst:.3g}")


def conditions(bench: Bench, model: str) -> Iterator[Condition]:
    """Yield the conditions of one model on the CPU."""
    from verify import conditions as c
    from verify import grouping, modes

    How = c.How  # noqa: N806 - a class
    rows, whole = bench.rows, c.chain(bench, 3)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    few = "" if cores > 1 else "this machine has one core"

    def on(number: int, run: Callable[[], Mapping[str, Tensor]]) -> Callable[[], Mapping[str, Tensor]]:
        def inside() -> Mapping[str, Tensor]:
            with on_threads(number):
                return run()

        return inside

    def trained() -> Mapping[str, Tensor]:
        return c.kernel(bench)

    def dropping() -> Mapping[str, Tensor]:
        return c.kernel(bench, dropout=0.1)

    def learned(**how: Any) -> Callable[[], Mapping[str, Tensor]]:
        return lambda: c.learn(bench, How(**how))

    def asked(length: int, blocks: int | None = None) -> Callable[[], Mapping[str, Tensor]]:
        return lambda: c.scores(c.chain(bench, length, blocks), rows)

    def alone() -> Mapping[str, Tensor]:
        return c.scores(whole, [rows[0]])

    def in_company() -> Mapping[str, Tensor]:
        mates = [row for row in rows if row.encoded.length == rows[0].encoded.length]
        return {"logits": c.scores(whole, [rows[0], *mates, *mates])["logits"][:1]}

    def more_padding() -> Mapping[str, Tensor]:
        longer = c.make_bench(model, bench.backbone.device)
        return c.scores(c.chain(c.Bench(c.padded(longer.backbone), longer.stages, longer.rows), 3), rows)

    yield Condition("run again, with dropout", "training", dropping, dropping)
    yield Condition("run again", "inference", asked(3), asked(3))
    yield Condition("a fresh process", "training", trained, lambda: elsewhere(model, {}))
    yield Condition("2 threads instead of 1", "training", on(1, trained), on(2, trained), few)
    yield Condition("2 threads instead of 1", "inference", on(1, asked(3)), on(2, asked(3)), few)
    yield Condition("16 tokens more padding", "training", trained, lambda: c.kernel(bench, c.padded(bench.backbone)))
    yield Condition("16 tokens more padding", "inference", asked(3), more_padding)
    yield Condition("batch split into 2 micro-batches", "training", learned(), learned(split=2))
    yield Condition("other batch mates, same padding", "inference", alone, in_company)
    yield Condition("last block dropped, not loading it", "inference", asked(2), asked(2, 3))
    yield Condition("adapters merged into the weights", "inference", asked(3), lambda: c.scores(c.merged(whole), rows))
    yield Condition("foreach AdamW", "training", learned(), learned(foreach=True))
    yield Condition("fused AdamW", "training", learned(), learned(fused=True))
    yield Condition("compiled (inductor)", "training", learned(), learned(compiled=True))
    yield Condition("bf16 autocast, run again", "training", learned(bf16=True), learned(bf16=True))
    yield Condition("bf16 autocast, not fp32", "training", learned(), learned(bf16=True))
    yield Condition(
        "saved and restored whole", "training", learned(dropout=0.1), learned(dropout=0.1, restore="everything")
    )
    yield Condition(
        "restored without optimizer", "training", learned(dropout=0.1), learned(dropout=0.1, restore="tensors")
    )
    other = {"ATEN_CPU_CAPABILITY": "default"}
    usual = _capability() == "DEFAULT"
    lacking = "the plainest instruction set is what this process uses already" if usual else ""
    yield Condition("another instruction set (default)", "training", trained, lambda: elsewhere(model, other), lacking)
    yield from modes.in_fast_engine(bench, model, few)
    yield from grouping.conditions(bench)


def on_cuda(model: str) -> Iterator[Condition]:
    """Yield the conditions that need a CUDA device; without one each says so."""
    import torch

    from verify import conditions as c
    from verify import grouping, modes

    lacking = "" if torch.cuda.is_available() else "no CUDA device"
    made: dict[str, Bench] = {}

    def bench(device: str = "cuda") -> Bench:
        return made.setdefault(device, c.make_bench(model, torch.device(device)))

    def trained(device: str = "cuda") -> Mapping[str, Tensor]:
        return c.kernel(bench(device))

    def loose() -> Mapping[str, Tensor]:
        return c.learn(bench(), c.How(deterministic=False))

    def tf32() -> Mapping[str, Tensor]:
        with c.tensor_float_32():
            return trained()

    for name, usual, changed in (
        ("same GPU, deterministic algorithms, run again", trained, trained),
        ("same GPU, other algorithms allowed, run again", loose, loose),
        ("other algorithms allowed, not deterministic ones", lambda: c.learn(bench()), loose),
        ("TF32 matrix products, not fp32", trained, tf32),
        ("CUDA, not the CPU", lambda: trained("cpu"), trained),
    ):
        yield Condition(name, "training", usual, changed, lacking, "cuda")
    yield from modes.on_cuda(model, lacking)
    yield from grouping.conditions(c.make_bench(model, torch.device("cpu")), "cuda", lacking)


def elsewhere(model: str, changed: Mapping[str, str], kernel: str = "") -> Mapping[str, Tensor]:
    """Train in a fresh process with ``changed`` environment variables; RuntimeError if it fails.

    ``kernel``: two nodes with the kernel of that name instead of the first block alone.
    """
    import torch
    from safetensors.torch import load

    home = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH", "")])])
    count = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": count, **changed}
    with tempfile.TemporaryDirectory(prefix="s3t-determinism-") as name:
        out = Path(name) / "tensors.safetensors"
        told = ["--model", model, "--tensors", str(out), "--kernel", kernel]
        command = [sys.executable, "-m", "verify.determinism", *told]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise RuntimeError(f"the fresh process failed: {last[0]}")
        return dict(load(out.read_bytes()))


def measure(
    models: Sequence[str], only: Sequence[str] = (), said: Callable[[Row], None] = lambda row: None
) -> list[Row]:
    """Return the rows of all conditions whose name contains one of ``only`` (all by default) on ``models``."""
    import torch

    from verify import conditions as c

    rows = []
    for model in models:
        bench = c.make_bench(model, torch.device("cpu"))
        for condition in (*conditions(bench, model), *on_cuda(model)):
            if not only or any(part in condition.name for part in only):
                rows.append(compare(condition, model))
                said(rows[-1])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write it; return 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m verify determinism", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the rows with the machine's description as JSON")
    parser.add_argument(
        "--model", action="append", help="base model; repeatable (default: tiny, and minilm if it is here)"
    )
    parser.add_argument("--only", action="append", default=[], help="conditions whose name contains this; repeatable")
    parser.add_argument("--tensors", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kernel", default="", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        if given.tensors:
            _write_tensors(given.model[0], given.tensors, given.kernel)
            return 0
        rows = measure(given.model or models_here(), given.only, lambda row: print(line(row), flush=True))
    except S3TError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.out:
        from verify.machine import describe_machine

        head = {"schema": 1, "machine": describe_machine()}
        listed = ",\n".join("  " + json.dumps(asdict(row), ensure_ascii=False) for row in rows)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{listed}\n ]\n}}\n', encoding="utf-8")
    return 0


def line(row: Row) -> str:
    """Return a row as one line of the table."""
    far = "" if row.max_ulps is None else str(row.max_ulps)
    share = "" if row.max_relative is None else f"{row.max_relative:.1e}"
    start = f"{row.device:<5} {row.model:<7} {row.what:<10} {row.condition:<50} {row.same:<8}"
    return f"{start} {far:>11} {share:>8}  {row.reason}"


def models_here() -> list[str]:
    """Return the tiny model and, if its pack lies in the cache, MiniLM; nothing is downloaded."""
    from s3t.data.fetch import cache_folder

    return ["tiny", *(["minilm"] if any(cache_folder().glob("minilm-*")) else [])]


def _write_tensors(model: str, out: Path, kernel: str) -> None:
    import torch
    from safetensors.torch import save_file

    from verify import conditions as c

    bench = c.make_bench(model, torch.device("cpu"))
    save_file(dict(c.nodes(bench, kernel) if kernel else c.kernel(bench)), out)


def _capability() -> str:
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


if __name__ == "__main__":
    sys.exit(main())
