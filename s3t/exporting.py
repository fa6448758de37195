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
from typing import TYPE_CHECKING, Any

from s3t import requests, runs
from s3t.answers import in_words
from s3t.contract import Slot
from s3t.errors import HubError, OfflineError, RunError
from s3t.facts import Facts
from s3t.plan import Stage
from s3t.store import ADAPTER, CONFIG, HEAD, no_space, sync_folder, write_synced

if TYPE_CHECKING:
    from s3t.backbone import Backbone, Pooling
    from s3t.blocks import ModelState
    from s3t.runs import Run
    from s3t.selection import Chain

STATEMENT, CARD, CERTIFICATE = "s3t.json", "README.md", "certificate.json"
FORMAT = 1
FEATURES: Mapping[Pooling, tuple[str, ...]] = {
    "mean": (
        'real = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)',
        "features = (hidden * real).sum(1) / real.sum(1)",
    ),
    "last": ('features = hidden[range(len(hidden)), batch["attention_mask"].sum(1) - 1]',),
    "first": ("features = hidden[:, 0]",),
}
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
            raw: dict[str, Any] = json.loads((folder / STATEMENT).read_bytes())
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
    nothing, RunError for a shard that is not there, a run with full fine-tuning, a base model that is a folder and has no
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
        files[CARD] = _card(told, run, model, certified=certificate is not None).encode()
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
    config = config_bytes(whole, model.family, run.config.recipe, base, task="FEATURE_EXTRACTION")
    return {ADAPTER["lora"]: tensor_bytes(tensors), CONFIG: config, HEAD: tensor_bytes(state.head)}


def _public(run: Run) -> str:
    """Return the base model's name as the run has it. RunError if that is a folder of this machine."""
    name = str(run.config.model["name"])
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
            folder.parent.mkdir(parents=True, exist_ok=True)
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


def _reading(model: Backbone) -> str:
    """Say what a batch is."""
    from s3t.images import ImageBackbone

    if not isinstance(model, ImageBackbone):
        return "rows padded on the right"
    side, mean, deviation = model.size, list(model.mean), list(model.deviation)
    return f"pixel_values: RGB of {side} x {side}, bilinear, (x / 255 - {mean}) / {deviation}"


def _card(told: Statement, run: Run, model: Backbone, *, certified: bool) -> str:
    """Return the model card (Mitchell et al. 2019) with the front matter that model hubs read."""
    plan, data = run.config.plan, run.config.data
    kind = run.config.recipe.adapter
    named = {"lora": "A LoRA", "ia3": "An (IA)3"}[kind]
    head = {"base_model": told.model, "library_name": "peft", "tags": ["s3t", "machine-unlearning", kind]}
    lines = [
        "---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "",
        f"# {plan.method}, shard {told.shard} of {plan.layout.shards}", "",
        f"{named} adapter and a linear head for {told.model}, exported from an exact-unlearning run "
        f"({data['name'] or 'own data'}; {in_words(told.classes)[0]}).", "",
        "| | |", "| --- | --- |",
        f"| trained on | slices {', '.join(map(str, told.order))} of shard {told.shard}, in this order; "
        f"{told.rows} retained records |",
        f"| layout | {plan.layout.shards} shards, {plan.layout.slices} slices each, {plan.layout.budget} orders |",
        f"| deleted from the run so far | {told.deletions} records; none of them has influenced these tensors |",
        f"| state of the run | ledger entry {told.entry}, configuration sha256 {told.run} |",
        f"| numerics | kernel {told.kernel}; base model sha256 {told.model_digest} |",
        f"| certificate | {CERTIFICATE if certified else 'none'} |",
        "", "A deletion from the run does not reach this copy. `s3t check-export FOLDER RUN` says whether a later request has "
        "hit what it was trained on; then withdraw it and export anew.", "",
        "```python", "from peft import AutoPeftModelForFeatureExtraction", "from safetensors.torch import load_file", "",
        'body = AutoPeftModelForFeatureExtraction.from_pretrained(FOLDER)', 'head = load_file(f"{FOLDER}/head.safetensors")',
        f"hidden = body(**batch).last_hidden_state  # (rows, tokens, hidden); {_reading(model)}",
        *FEATURES[model.family.pooling],
        'scores = features @ head["weight"].T + head["bias"]', "```", "",
        f"{in_words(told.classes)[1]} A run serves the mean of them over its shards.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
