"""What is fuzzed (:mod:`verify.fuzz`): data files, images, files of settings, a run's own files, certificates, commands."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from contextlib import chdir, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from s3t.errors import S3TError
from verify.fuzz import Target

PRICE = {
    "model": "tiny",
    "layers": 6,
    "seconds_per_layer_pass": 1e-4,
    "bytes_per_node": 100,
    "bytes_per_layer": 100,
    "bytes_per_model": 100,
}
"""What `s3t plan --save-price` writes."""


def targets(scratch: Path) -> list[Target]:
    """Return everything that is fuzzed, set up below ``scratch``: a small run is trained there."""
    run = _made_run(scratch)
    return [
        *_tables(scratch),
        *_files(scratch, run),
        *_stores(scratch, run),
        CommandLine(run, scratch / "called").target(),
    ]


def _made_run(scratch: Path) -> Path:
    from s3t import S3T, Layout, Recipe, Record

    records = [Record(f"row-{i:02d}", {"text": f"word {i} cat {i % 3}"}, i % 2) for i in range(16)]
    probes: tuple[list[Record], list[Record]] = ([], [Record("probe", {"text": "cat"}, 0)])
    recipe = Recipe(rank=1, epochs=1.0, batch_size=8)
    how: dict[str, Any] = {"classes": ("a", "b"), "model": "tiny", "recipe": recipe, "key": bytes(range(32))}
    with closing(S3T(scratch / "run", Layout(1, 2, 2), evaluation=probes, **how)) as system:
        system.fit(records)
        system.delete(["row-03"])
        system.refresh()
    return scratch / "run"


def _tables(scratch: Path) -> list[Target]:
    import numpy as np
    import pandas as pd
    from PIL import Image

    from s3t.data.decoding import decode
    from s3t.data.local import load_local

    rows = [{"id": f"r{i}", "text": f'word {i}, "said" é', "label": "ab"[i % 2]} for i in range(60)]
    table, packed = pd.DataFrame(rows), io.BytesIO()
    table.to_parquet(packed)
    goods = {
        "csv": table.to_csv(index=False).encode(),
        "jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "json": json.dumps(rows).encode(),
        "parquet": packed.getvalue(),
    }
    out = []
    for ending, good in goods.items():
        file = scratch / f"rows.{ending}"
        out.append(Target(ending, file, (good,), partial(load_local, str(file), id="id")))
    image, pictures = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)), []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        image.save(held := io.BytesIO(), kind)
        pictures.append(held.getvalue())
    file = scratch / "image"
    return [*out, Target("image", file, tuple(pictures), lambda: decode(file.read_bytes(), 8))]


def _files(scratch: Path, run: Path) -> list[Target]:
    from s3t.cli.inputs import read_prior
    from s3t.exporting import STATEMENT, Statement, export
    from s3t.planner.curve import COLUMNS, read_curve
    from s3t.planner.price import read as read_price
    from s3t.runs import RunConfig
    from s3t.service.bodies import read_records, read_wanted
    from s3t.streams.files import read_requests
    from s3t.tuning import read_best, read_head

    best: dict[str, object] = {"format": 1, "best": {"s3t": {"lr": 0.1}}}
    head = {"layers": [0, 1], "poolings": ["mean", "max"], "ridge": 0.03}
    beside = {**best, "model": {"name": "tiny", "digest": "ab"}, "head": {"chosen": head}}
    export(run, 0, scratch / "export")
    bodies = ({"inputs": ["a", {"text": "b"}]}, {"ids": ["row-01"], "groups": ["x"]})
    config = (run / "run.json").read_bytes()
    kinds: dict[str, tuple[tuple[bytes, ...], Callable[[Path], object]]] = {
        "config": ((config,), lambda file: RunConfig.from_bytes(file.read_bytes(), "run")),
        "price": ((json.dumps(PRICE).encode(),), read_price),
        "curve": ((f"{','.join(COLUMNS)}\n2,3,0.5,0.8\n2,3,1,0.9\n".encode(),), read_curve),
        "prior": ((b"[0.5, 0.25, 0.25]", b"0.5, 0.25; 0.25"), read_prior),
        "tuned": ((json.dumps(best).encode(),), lambda file: read_best(file, "s3t")),
        "tuned-head": ((json.dumps(beside).encode(),), lambda file: read_head(file, "tiny", "ab")),
        "requests.csv": ((b"id\nrow-01\nrow-02,row-03\n",), read_requests),
        "requests.jsonl": ((b'"row-01"\n["row-02"]\n{"ids": ["row-03"]}\n',), read_requests),
        "body": (
            tuple(json.dumps(body).encode() for body in bodies),
            lambda file: _bodies(file.read_bytes(), read_records, read_wanted),
        ),
    }
    out = []
    for name, (good, use) in kinds.items():
        file = scratch / f"read-{name}"
        out.append(Target(name, file, good, partial(use, file)))
    statement, read = scratch / "export" / STATEMENT, partial(Statement.read, scratch / "export")
    return [*out, Target("export", statement, (statement.read_bytes(),), read)]


def _certificates(scratch: Path, run: Path) -> list[Target]:
    """A report and a certificate about the run, where the extra ``audit`` is installed, which signs and checks them."""
    if importlib.util.find_spec("securesystemslib") is None:
        return []
    from s3t.system import System
    from verify.attest.check import check
    from verify.attest.issue import certify
    from verify.attest.keys import signer
    from verify.attest.told import read_report
    from verify.audit import audit

    with closing(System.open(run)) as system:
        report = audit(system, run, levels=("E0",))
    keys, file = scratch / "keys", scratch / "certificate.json"
    good = certify(run, "r000001", report, signer(keys, run), issued=datetime.now(UTC))
    told = scratch / "report.json"
    return [
        Target("certificate", file, (good,), lambda: check(file.read_bytes(), run, keys=keys)),
        Target("report", told, (report.dumps().encode(),), partial(read_report, told)),
    ]


def _bodies(content: bytes, records: Callable[..., object], wanted: Callable[[bytes], object]) -> None:
    try:
        records(content, ("a", "b"), 9)
    except S3TError:
        wanted(content)


def _stores(scratch: Path, run: Path) -> list[Target]:
    """A run's own files, each in a copy of the run that is its own; every reader reads all there is."""
    out = []
    for name in ("ledger.sqlite", "records.sqlite", "records.bin", "secret.key", "run.json"):
        copy = scratch / f"store-{name}"
        shutil.copytree(run, copy)
        good = ((copy / name).read_bytes(),)
        out.append(Target(name, copy / name, good, partial(_read_all, copy)))
    adapter = next(run.glob("nodes/*/adapter_model.safetensors"))
    file = scratch / "store-node" / "key" / "adapter_model.safetensors"
    file.parent.mkdir(parents=True)
    return [*out, Target("adapter", file, (adapter.read_bytes(),), partial(_read_node, file))]


def _read_all(run: Path) -> None:
    from s3t import runs
    from s3t.facts import Facts

    opened = runs.open_run(run)
    try:
        Facts(opened.ledger, opened.config.plan).update()
        for _ in opened.ledger.entries():
            pass
        opened.ledger.tombstone("x")
        opened.records.place("x")
        for split in ("train", "validation", "test"):
            opened.records.ids(split)
        opened.records.slot_ids((0, 0))
    finally:
        opened.close()


def _read_node(file: Path) -> None:
    """Read a node whose digest is right, as whoever can write the ledger too could make it."""
    from s3t.store import NodeStore

    NodeStore(file.parent.parent).tensors("key", file.name, hashlib.sha256(file.read_bytes()).hexdigest())


TINY = ("--model", "tiny", "--limit", "40,10,10", "--shards", "1", "--slices", "2")
SMALL = {"train": TINY, "tune": TINY, "plan": ("--price", "PRICE")}
"""What is said last to commands that would else train what the arguments left name."""


@dataclass(frozen=True)
class CommandLine:
    """The commands, with spoiled arguments; ``run`` is copied to ``copy`` and must stay as it is unless a call succeeds."""

    run: Path
    copy: Path

    CALLS = (
        ("predict", "RUN", "--json"),
        ("predict", "RUN", "--input", "ROWS"),
        ("delete", "RUN", "--id", "row-01", "--json"),
        ("delete", "RUN", "--any", "1"),
        ("delete", "RUN", "--ids-file", "IDS"),
        ("status", "RUN", "--json"),
        ("export", "RUN", "--shard", "0", "--out", "OUT", "--base", "me/model"),
        ("train", "OUT", "--data", "ROWS", "--epochs", "1", "--seed", "1", "--budget", "1"),
        ("tune", "OUT", "--data", "ROWS", "--grid", "lr=0.1", "--recipe", "epochs=1"),
        ("plan", "--records", "100", "--requests-per-day", "1", "--price", "PRICE"),
        ("duplicates", "ROWS"),
    )

    def target(self) -> Target:
        """Return the target; its file holds the arguments, one a line."""
        self.copy.mkdir()
        lines = tuple("\n".join(call).encode() for call in self.CALLS)
        return Target("command line", self.copy / "arguments", lines, self.call)

    def call(self) -> int:
        """Call what the file says; return the exit code. AssertionError if a call that failed has changed the run."""
        from typer.testing import CliRunner

        from s3t.cli import app

        places = self._places()
        run, words = Path(places["RUN"]), (self.copy / "arguments").read_bytes().decode("utf-8", "replace").split("\n")
        before = _state(run)
        words += SMALL.get(words[0], ())  # whatever else is spoiled, nothing large is trained
        with chdir(self.copy):  # a spoiled name may be a good one of another place
            done = CliRunner().invoke(app, [places.get(word, word) for word in words])
        after = _state(run) if run.exists() else ""
        if done.exit_code == 0 or after != before:
            shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(places["OUT"], ignore_errors=True)
        Path(places["OUT"]).unlink(missing_ok=True)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0 or after == before, f"exit code {done.exit_code}, and the run is another one"
        return done.exit_code

    def _places(self) -> dict[str, str]:
        """Return what the words in capitals stand for; all of it is there."""
        run = self.copy / "run"
        if not run.exists():
            shutil.copytree(self.run, run)
        rows = ["text,label", *(f"the cat sat on number {i},{'ab'[i % 2]}" for i in range(60))]
        files = {"ROWS": ("rows.csv", "\n".join(rows)), "IDS": ("ids.txt", "row-01\nrow-02\n")}
        files["PRICE"] = ("price.json", json.dumps(PRICE))
        for name, content in files.values():
            (self.copy / name).write_text(content)
        return {word: str(self.copy / name) for word, (name, _) in files.items()} | {
            "RUN": str(run),
            "OUT": str(self.copy / "out"),
        }


def _state(run: Path) -> str:
    files = sorted(path for path in run.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()
