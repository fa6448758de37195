"""The run folder: creating it in one step, opening it, its configuration, its lock, its recovery. No torch.

A run is made under a temporary name beside its place and renamed, so it exists whole or not at all. Opening completes
what a crash cut short: erasures of deleted rows and dropped nodes, and half-written nodes (docs/DERIVATION.md, "Run folder").
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3t.analytic.store import FeatureStore
from s3t.damage import Damage
from s3t.digests import key_commitment, merkle_root
from s3t.durable import make_folder, sync_folder, write_synced
from s3t.errors import BusyError, RunError, S3TError
from s3t.exchange import NOTE, erase_noted
from s3t.graph import FORMAT
from s3t.ledger import Ledger
from s3t.partition import KEY_BYTES
from s3t.plan import Plan
from s3t.reading import parse_json
from s3t.records import Recipe, Record, sha256
from s3t.rows import CONTENTS, INDEX, RecordStore
from s3t.store import NodeStore, no_space

CONFIG, KEY, LEDGER, NODES, COMMITMENTS = "run.json", "secret.key", "ledger.sqlite", "nodes", "commitments"
ACTIVATIONS = "activations"
"""Folder of what the fast engine keeps of rows while a build runs; it is gone when no build does."""

Evaluation = tuple[Sequence[Record], Sequence[Record]]
"""Never-deletable records kept with a run: validation, test."""


@dataclass(frozen=True)
class RunConfig:
    """What a run was made with; stored whole as run.json and never changed."""

    plan: Plan
    recipe: Recipe
    model: dict[str, Any]
    data: dict[str, Any]
    seed: int
    kernel: str
    version: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The declared classes, in the order of labels."""
        return tuple(self.data["classes"])

    @property
    def features(self) -> int | None:
        """How many features of each record an analytic head reads, None without one."""
        head = self.plan.head
        return None if head is None else head.size(self.model["layers"], self.model["hidden"])

    def to_bytes(self) -> bytes:
        """Return the content of run.json."""
        raw = {
            "format": FORMAT,
            "s3t": self.version,
            "kernel": self.kernel,
            "plan": self.plan.to_json(),
            "recipe": self.recipe.to_json(),
            "model": self.model,
            "data": self.data,
            "seed": self.seed,
        }
        return json.dumps(raw, indent=1, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> RunConfig:
        """Read run.json. RunError if it is damaged or of another format version."""
        try:
            raw = parse_json(content)
            version = raw["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{where}/{CONFIG} is not a run's configuration ({error}); was it edited?") from error
        if version != FORMAT:
            raise RunError(
                f"{where} was made by another version (format {version!r}, s3t {raw.get('s3t')!r}); this one reads format "
                f"{FORMAT}. Use that version, or train anew"
            )
        try:
            plan, recipe = Plan.from_json(raw["plan"]), Recipe.from_json(raw["recipe"])
            return cls(plan, recipe, raw["model"], raw["data"], raw["seed"], raw["kernel"], raw["s3t"])
        except (KeyError, TypeError, S3TError) as error:
            raise RunError(f"{where}/{CONFIG} is damaged ({error}); restore it from a copy") from error


@dataclass(frozen=True)
class Run:
    """An open run folder: configuration, slot key, the stores (that of features if there is an analytic head), and what is
    known of damaged nodes."""

    path: Path
    config: RunConfig
    key: bytes
    ledger: Ledger
    records: RecordStore
    nodes: NodeStore
    damage: Damage
    features: FeatureStore | None = None

    def close(self) -> None:
        """Close the databases."""
        self.ledger.close()
        self.records.close()
        if self.features:
            self.features.close()

    @contextmanager
    def building(self) -> Iterator[None]:
        """Hold the run's build lock; it ends with the process, however that ends. BusyError if another holds it."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(f"{self.path} is being trained or refreshed by another process; wait for it") from error
            yield
        finally:
            os.close(handle)

    def has_scratch(self) -> bool:
        """Say whether a build is keeping activations of rows on disk, or tensors in an exchange, or left some."""
        return (self.path / ACTIVATIONS).exists() or (self.path / NOTE).exists()

    def erase_scratch(self) -> None:
        """Erase what a build kept of rows on disk, and what it left in an exchange, durably. Only under the build lock.

        RunError if the exchange cannot be reached now; the next to open the run tries again.
        """
        if self.has_scratch():
            shutil.rmtree(self.path / ACTIVATIONS, ignore_errors=True)
            erase_noted(self.path)


def create(
    path: Path,
    config: RunConfig,
    key: bytes,
    train: Sequence[Record],
    evaluation: Evaluation,
) -> None:
    """Make a run folder with its records ingested and committed to, before any training.

    RunError if ``path`` exists or the disk is full; nothing is left behind then.
    """
    if path.exists():
        raise RunError(f"{path} exists already and is not a run; choose another folder")
    staging = path.parent / f".{path.name}.partial"
    with no_space(path.parent if path.parent.exists() else Path()):
        make_folder(path.parent)
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir()
            (staging / NODES).mkdir()
            write_synced(staging / CONFIG, config.to_bytes())
            secret = os.open(staging / KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(secret, "w") as file:
                file.write(key.hex())
                file.flush()
                os.fsync(file.fileno())
            records = RecordStore.create(staging, key, config.plan.layout, train, *evaluation)
            if (size := config.features) is not None:
                FeatureStore.create(staging, size, len(train))
            ledger = Ledger.create(staging / LEDGER)
            root = _commit(staging / COMMITMENTS, records.commitments())
            slots = [[*place, count] for place, count in sorted(records.counts().items())]
            committed = {"root": root, "key": key_commitment(key), "slots": slots}
            ledger.append("create", {"run": sha256(config.to_bytes()), "rows": len(train), **committed})
            records.close()
            ledger.close()
            sync_folder(staging)
            staging.rename(path)
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _commit(path: Path, commitments: Iterable[str]) -> str:
    """Write the leaves to ``path``, in their order, and return the root of the tree over them."""
    with path.open("wb") as file:

        def leaves() -> Iterator[bytes]:
            for commitment in commitments:
                leaf = bytes.fromhex(commitment)
                file.write(leaf)
                yield leaf

        root = merkle_root(leaves())
        file.flush()
        os.fsync(file.fileno())
    return root


def open_run(path: Path, damage: Damage | None = None) -> Run:
    """Open a run folder. RunError says what is missing, damaged, or of another version.

    ``damage``: what another opening of the same run knows of damaged nodes, to be shared with it.
    """
    if not path.is_dir():
        raise RunError(f"there is no run at {path}; train one with `s3t train {path}`")
    for name in (CONFIG, KEY, LEDGER, INDEX, CONTENTS, COMMITMENTS, NODES):
        if not (path / name).exists():
            raise RunError(f"{path} is not a whole run: {name} is missing; train anew, or restore it from a copy")
    content = (path / CONFIG).read_bytes()
    config = RunConfig.from_bytes(content, str(path))
    ledger = Ledger(path / LEDGER)
    created = next(ledger.entries("create"), None)
    if created is None or created.body["run"] != sha256(content):
        raise RunError(f"{path}/{CONFIG} is not the configuration that the ledger was opened with; restore it")
    key, given = _read_key(path / KEY), {(shard, piece): n for shard, piece, n in created.body["slots"]}
    if key_commitment(key) != created.body["key"]:
        raise RunError(f"{path / KEY} is not the key that the ledger was opened with; restore it from a copy")
    nodes, size = NodeStore(path / NODES), config.features
    features = None if size is None else FeatureStore(path, size, created.body["rows"])
    return Run(path, config, key, ledger, RecordStore(path, given), nodes, damage or Damage(nodes), features)


def _read_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise RunError(
            f"{path} does not hold {KEY_BYTES} bytes in hex; restore it from a copy: no request can be resolved"
        )
    return key
