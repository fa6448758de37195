"""Exports: the chain that a shard serves, as one standard PEFT adapter with its head, a model card and a statement.

An export leaves the reach of deletions. Its statement says from which state of which run it is and on which nodes it depends,
so :func:`check` can tell whether a later request has hit it; then it has to be withdrawn and made anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from s3t import requests, runs
from s3t.answers import LANGUAGE
from s3t.contract import Slot
from s3t.durable import make_folder, sync_folder, write_synced
from s3t.errors import DamageError, HubError, OfflineError, RunError
from s3t.facts import Facts
from s3t.model_card import card
from s3t.plan import Stage
from s3t.reading import parse_json
from s3t.store import ADAPTER, CONFIG, HEAD, no_space

if TYPE_CHECKING:
    from s3t.backbone import Backbone
    from s3t.blocks import ModelState
    from s3t.runs import Run
    from s3t.selection import Chain

STATEMENT, CARD, CERTIFICATE = "s3t.json", "README.md", "certificate.json"
FORMAT = 1
"""How a row's features are made of hidden states, as the model card says it."""


@dataclass(frozen=True)
class Statement:
    """What an export is: ``run`` (digest of its configuration), the ledger's ``entry`` at which it was made, the served chain
    (``shard``, ``order``, keys of its ``nodes``), retained records behind it (``rows``), records deleted from the run so far,
    the kernel that trained it, base model and its digest, classes, and SHA-256 of every other file by name."""

    run: str
    entry: int
    shard: int
    order: tuple[int, ...]
    nodes: tuple[str, ...]
    rows: int
    deletions: int
    kernel: str
    model: str
    model_digest: str
    classes: tuple[str, ...]
    files: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """Return the content of the statement's file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def read(cls, folder: Path) -> Statement:
        """Read an export's statement. RunError if there is none, or not of this format."""
        try:
            raw: dict[str, Any] = parse_json((folder / STATEMENT).read_bytes())
            version = raw.pop("format")
            if version != FORMAT:
                raise RunError(
                    f"{folder} is an export of format {version!r}, this version reads {FORMAT}; export it anew"
                )
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
            told = cls(**fields)
            files = {str(name): bytes.fromhex(digest).hex() for name, digest in told.files.items()}
            return replace(told, files=files, entry=int(told.entry), order=tuple(map(int, told.order)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise RunError(
                f"{folder} is not an export of `s3t export`: {STATEMENT} cannot be read ({reason})"
            ) from error


@dataclass(frozen=True)
class Checked:
    """An intact export; ``hit``: slots of its chain that requests have hit since, None if no run was asked."""

    statement: Statement
    hit: tuple[Slot, ...] | None


def export(
    path: Path,
    shard: int,
    folder: Path,
    *,
    base: str = "",
    certificate: Path | None = None,
    backbone: Backbone | None = None,
) -> Statement:
    """Write the chain that ``shard`` of the run at ``path`` serves to ``folder``, which must not exist; whole or not at all.

    PeftModel.from_pretrained loads it: the adapters of all stages in one, float32, on the union of their layers; the head is
    linear on the features that the card tells, ``weight`` (classes, hidden) and ``bias`` (classes,).
    ``base``: the name under which others load the base model, the run's by default. Raises OfflineError if the shard serves
    nothing, DamageError if any file of the chain is damaged (a shorter chain is never exported in its place), RunError for a
    shard that is not there, a run with full fine-tuning, a base model that is a folder and has no
    ``base``, a folder that exists or cannot be written.
    """
    from s3t.describing import base_model, check_model

    run = runs.open_run(path)
    try:
        facts = Facts(run.ledger, run.config.plan)
        # Before looking what serves: a request that comes meanwhile is a later one.
        entry, deletions = run.ledger.head(), run.ledger.tombstones()
        requests.recover(run, facts)
        chain = _chain(run, facts, shard)
        model = backbone or base_model(run.config.model["name"])
        check_model(run.config, model)
        name = base or _public(run)
        files = _files(run, facts, chain, model, name)
        if certificate is not None:
            files[CERTIFICATE] = _certificate(certificate)
        told = Statement(
            run=next(run.ledger.entries("create")).body["run"],
            entry=entry,
            deletions=deletions,
            shard=shard,
            order=chain.nodes[-1].node.prefix,
            nodes=tuple(fact.key for fact in chain.nodes),
            rows=chain.nodes[-1].rows,
            kernel=run.config.kernel,
            model=name,
            model_digest=run.config.model["digest"],
            classes=run.config.classes,
            files={},
        )
        files[CARD] = card(told, run, model, CERTIFICATE if certificate is not None else "none").encode()
        told = replace(told, files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
        _write(folder, {**files, STATEMENT: told.to_bytes()})
    finally:
        run.close()
    return told


def check(folder: Path, path: Path | None = None) -> Checked:
    """Compare every file of an export with its statement, and with the run at ``path`` what has been deleted since.

    RunError names a file that is missing, changed or not stated, and a run that it was not exported from.
    """
    told = Statement.read(folder)
    found = {entry.name for entry in folder.iterdir()} - {STATEMENT}
    for name in sorted(found ^ set(told.files)):
        raise RunError(f"{folder}: {name} is {'not stated' if name in found else 'missing'}; export it anew")
    for name, digest in told.files.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise RunError(f"{folder}: {name} is not what was exported; export it anew")
    if path is None:
        return Checked(told, None)
    run = runs.open_run(path)
    try:
        if next(run.ledger.entries("create")).body["run"] != told.run or run.ledger.head() < told.entry:
            raise RunError(
                f"{folder} was not exported from {path}, or from a later state of it; name the run it is from"
            )
        hits = run.ledger.hits()
    finally:
        run.close()
    mine = [(told.shard, piece) for piece in told.order]
    return Checked(told, tuple(place for place in mine if hits.get(place, 0) > told.entry))


def push(folder: Path, name: str, *, private: bool = True) -> str:
    """Upload an intact export to the hub as the model repository ``name`` (owner/name); return its address.

    Nothing else in this package sends anything anywhere. RunError if the folder is no intact export, HubError if the hub does
    not take it.
    """
    from huggingface_hub import HfApi

    check(folder)
    try:
        api = HfApi()
        made = api.create_repo(name, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), repo_type="model")
    except Exception as error:  # the library raises many kinds: no token, no connection, no right
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise HubError(
            f"{name!r} was not uploaded: {reason}. Check the name, the connection and the token (hf auth login)"
        ) from error
    return str(made)


def _chain(run: Run, facts: Facts, shard: int) -> Chain:
    shards = run.config.plan.layout.shards
    if not 0 <= shard < shards:
        raise RunError(f"shard {shard} does not exist; shards run 0..{shards - 1}")
    if any(stage.kind == "full" for stage in facts.plan.stages):
        raise RunError(f"{run.path} fine-tunes the whole model, which is no adapter; only LoRA runs can be exported")
    facts.update()
    chain = facts.chains().get(shard)
    if chain is None:
        raise OfflineError(f"shard {shard} of {run.path} serves nothing; run `s3t refresh` first, or export another")
    try:
        run.damage.check(chain.nodes)
    except DamageError as error:
        raise DamageError(
            f"shard {shard} of {run.path} is damaged, so nothing was exported: {error} first, or export another with --shard"
        ) from error
    return chain


def _files(run: Run, facts: Facts, chain: Chain, model: Backbone, base: str) -> dict[str, bytes]:
    from s3t.blocks import config_bytes
    from s3t.building import load_state
    from s3t.store import tensor_bytes

    stages = facts.plan.stages[: len(chain.nodes)]
    state: ModelState = load_state(run, facts.plan, chain)
    layers = sorted({layer for stage in stages for layer in stage.layers})
    whole = Stage("default", "lora", tuple(layers), 0.0)
    tensors = {name: tensor for adapter in state.adapters.values() for name, tensor in adapter.items()}
    if len(tensors) != sum(len(adapter) for adapter in state.adapters.values()):
        raise RunError(f"two adapters of {run.path} are on the same layer, which one standard adapter cannot hold")
    files, family, task = {}, model.family, "FEATURE_EXTRACTION"
    if (
        model.predicts_text
    ):  # the model with its output layer holds the body as a part; the run's unused head stays behind
        body, inside = "base_model.model.", _body_of(model)
        tensors = {f"{body}{inside}.{name.removeprefix(body)}": tensor for name, tensor in tensors.items()}
        family, task = replace(family, layers=f"{inside}.{family.layers}"), "CAUSAL_LM"
    else:
        files[HEAD] = tensor_bytes(state.head)
    config = config_bytes(whole, family, run.config.recipe, base, task=task)
    return {**files, ADAPTER["lora"]: tensor_bytes(tensors), CONFIG: config}


def _body_of(model: Backbone) -> str:
    """Return the name of the body inside the model class with the output layer: "model" of Llama, "transformer" of GPT-2."""
    return str(cast(Any, model.model).base_model_prefix)


def _public(run: Run) -> str:
    """Return the base model's name as the run has it. RunError if that is a folder of this machine."""
    name = str(run.config.model["name"]).removeprefix(LANGUAGE)
    if Path(name).is_dir() or Path(name).is_absolute():
        raise RunError(f"the base model is a folder here, {name}; say under which name others load it, with --base")
    return name


def _certificate(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"certificate {path} cannot be read ({error.strerror}); give a file of `s3t certify`") from error


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    if folder.exists():
        raise RunError(f"{folder} exists already; nothing was written, choose another folder")
    part = folder.parent / f".{folder.name}.partial"
    try:
        with no_space(folder.parent if folder.parent.exists() else Path()):
            make_folder(folder.parent)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for name, content in files.items():
                write_synced(part / name, content)
            sync_folder(part)
            part.rename(folder)
            sync_folder(folder.parent)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror}); choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
