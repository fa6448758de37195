"""Exports: stock PEFT loads them with the same bits, they say what they are, and deletions that hit them are noticed."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import refused, said
from peft import AutoPeftModelForFeatureExtraction, PeftModel
from safetensors.torch import load_file
from torch import Tensor

from baselines.methods import make_plan
from s3t import S3T
from s3t.backbone import Backbone
from s3t.blocks import ChainModel
from s3t.building import load_state
from s3t.errors import OfflineError, RunError
from s3t.exporting import STATEMENT, check, export, push
from s3t.partition import slot
from s3t.records import Layout, Recipe, Record
from s3t.store import ADAPTER, CONFIG, HEAD, READS
from s3t.system import System

KEY = bytes(range(32))
LAYOUT = Layout(2, 3, 3)
RECIPE = Recipe(rank=2, epochs=1.0, batch_size=8)
RECORDS = [Record(f"row-{i:03d}", {"text": f"the cat {'sat ' * (i % 4)}on number {i}"}, i % 3) for i in range(60)]
CLASSES = ("a", "b", "c")
TEXTS: Any = [{"text": "the cat sat"}, {"text": "a dog on number 7 and more"}, {"text": "cat"}]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    S3T(folder, LAYOUT, classes=CLASSES, model=tiny, recipe=RECIPE, key=KEY).fit(RECORDS)
    return folder


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "run"))


def scores(body: Any, tiny: Backbone, head: dict[str, Tensor]) -> Tensor:
    """Return logits as the model card says."""
    batch = tiny.collate(tiny.encode(TEXTS, RECIPE.max_length))
    with torch.no_grad():
        hidden = body(**batch).last_hidden_state
    real = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return torch.nn.functional.linear((hidden * real).sum(1) / real.sum(1), head["weight"], head["bias"])


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 for a property by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield


def stock(folder: Path, tiny: Backbone) -> Any:
    """Load an export with PEFT on a copy of the base model."""
    with quiet():
        return PeftModel.from_pretrained(copy.deepcopy(tiny.model), str(folder))


def served(path: Path, tiny: Backbone, shard: int) -> Tensor:
    """Return the logits of the chain that a shard serves, by the reference engine."""
    system = System.open(path, tiny)
    run, facts = system._opened()
    facts.update()
    chain = facts.chains()[shard]
    model = ChainModel(tiny, facts.plan.stages[: len(chain.nodes)], RECIPE, 3)
    model.mount(load_state(run, facts.plan, chain))
    with torch.no_grad():
        found: Tensor = model(tiny.collate(tiny.encode(TEXTS, RECIPE.max_length)))
    system.close()
    return found


def victim(shard: int, piece: int) -> str:
    return next(r.id for r in RECORDS if slot(KEY, r.id, LAYOUT) == (shard, piece))


def deleted(path: Path, *ids: str) -> None:
    system = System.open(path)
    system.delete(ids)
    system.close()


@pytest.mark.parametrize("hit", [False, True], ids=["healthy", "after a deletion"])
def test_stock_peft_serves_the_same_bits(run: Path, tmp_path: Path, tiny: Backbone, hit: bool) -> None:
    if hit:
        deleted(run, victim(1, 1))
    told = export(run, 1, tmp_path / "out", backbone=tiny)
    assert len(told.nodes) == (2 if hit else 3)  # the longest of three cyclic orders without slice 1 in front
    assert told.deletions == int(hit)
    body = stock(tmp_path / "out", tiny)
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert torch.equal(scores(body, tiny, head), served(run, tiny, 1))
    assert not torch.equal(scores(tiny.model, tiny, head), served(run, tiny, 1))


def test_a_base_model_in_the_hubs_format_is_found_by_name(run: Path, tmp_path: Path, tiny: Backbone) -> None:
    tiny.model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    export(run, 0, tmp_path / "out", base=str(tmp_path / "base"), backbone=tiny)
    with quiet():
        body = AutoPeftModelForFeatureExtraction.from_pretrained(str(tmp_path / "out"))
    head = load_file(tmp_path / "out" / "head.safetensors")
    torch.testing.assert_close(scores(body, tiny, head), served(run, tiny, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["sequential", "sisa-lora"])
def test_one_adapter_that_continues(tmp_path: Path, tiny: Backbone, method: str) -> None:
    plan = make_plan(method, Layout(2, 2, 1), RECIPE, tiny.layers)
    system = System.create(tmp_path / "run", plan, RECIPE, model=tiny, classes=CLASSES, key=KEY)
    system.fit(RECORDS)
    system.close()
    told = export(tmp_path / "run", 0, tmp_path / "out", backbone=tiny)
    assert len(told.nodes) == 2
    body = stock(tmp_path / "out", tiny)
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert torch.equal(scores(body, tiny, head), served(tmp_path / "run", tiny, 0))


def test_what_it_says_and_what_it_does_not(run: Path, tmp_path: Path, tiny: Backbone) -> None:
    told = export(run, 0, tmp_path / "out", backbone=tiny)
    names = {"adapter_model.safetensors", "adapter_config.json", "head.safetensors", "README.md"}
    assert set(told.files) == names == {path.name for path in (tmp_path / "out").iterdir()} - {STATEMENT}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["layers_to_transform"], config["task_type"]) == (list(range(6)), "FEATURE_EXTRACTION")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and 'base_model: "tiny"' in card and "| certificate | none |" in card
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert not [record.id for record in RECORDS if record.id.encode() in everything]
    assert KEY.hex().encode() not in everything and str(tmp_path).encode() not in everything


def test_a_deletion_that_hits_it_is_noticed(run: Path, tmp_path: Path, tiny: Backbone) -> None:
    export(run, 0, tmp_path / "out", backbone=tiny)
    assert check(tmp_path / "out").hit is None
    assert check(tmp_path / "out", run).hit == ()
    deleted(run, victim(1, 0))
    assert check(tmp_path / "out", run).hit == ()
    deleted(run, victim(0, 2))
    assert check(tmp_path / "out", run).hit == ((0, 2),)
    again = export(run, 0, tmp_path / "new", backbone=tiny)
    assert 2 not in again.order and check(tmp_path / "new", run).hit == ()


def _lengthen(folder: Path) -> None:
    with (folder / "head.safetensors").open("ab") as file:
        file.write(b"\x00")


def _add(folder: Path) -> None:
    (folder / "extra").touch()


def _lose(folder: Path) -> None:
    (folder / "README.md").unlink()


def _edit(folder: Path) -> None:
    (folder / STATEMENT).write_text('{"format": 1, "files": []}')


def _date(folder: Path) -> None:
    raw = json.loads((folder / STATEMENT).read_text())
    (folder / STATEMENT).write_text(json.dumps(raw | {"format": 99}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_lengthen, r"head\.safetensors is not what was exported"),
        (_add, "extra is not stated"),
        (_lose, r"README\.md is missing"),
        (_edit, "is not an export"),
        (_date, "export of format 99"),
    ],
)
def test_a_changed_export_is_refused(
    run: Path, tmp_path: Path, tiny: Backbone, change: Callable[[Path], None], message: str
) -> None:
    export(run, 0, tmp_path / "out", backbone=tiny)
    change(tmp_path / "out")
    with pytest.raises(RunError, match=message):
        check(tmp_path / "out")


def test_bad_input_writes_nothing(run: Path, tmp_path: Path, tiny: Backbone) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"shard 2 does not exist; shards run 0\.\.1"):
        export(run, 2, out, backbone=tiny)
    with pytest.raises(RunError, match=r"certificate .* cannot be read"):
        export(run, 0, out, certificate=tmp_path / "none.json", backbone=tiny)
    with pytest.raises(RunError, match="exists already"):
        export(run, 0, tmp_path, backbone=tiny)
    deleted(run, *(victim(0, piece) for piece in range(3)))
    with pytest.raises(OfflineError, match=r"shard 0 of .* serves nothing"):
        export(run, 0, out, backbone=tiny)
    plan = make_plan("sisa-full", Layout(1, 1, 1), RECIPE, tiny.layers)
    whole = System.create(tmp_path / "full", plan, RECIPE, model=tiny, classes=CLASSES, key=KEY)
    whole.fit(RECORDS[:8])
    whole.close()
    with pytest.raises(RunError, match="only LoRA runs can be exported"):
        export(tmp_path / "full", 0, out, backbone=tiny)
    assert not out.exists() and not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("name", [ADAPTER["lora"], HEAD, CONFIG, READS])
def test_a_damaged_chain_is_refused(run: Path, tmp_path: Path, tiny: Backbone, length: int, name: str) -> None:
    """Whichever file of whichever node: a shorter chain is not exported in its place."""
    with closing(System.open(run, tiny)) as system:
        system.status()
        chain = system._opened()[1].chains()[0].nodes
    file = run / "nodes" / chain[length - 1].key / name
    content = file.read_bytes()
    for harm in (lambda: file.write_bytes(content[:-1] + bytes([content[-1] ^ 1])), file.unlink):
        harm()
        told = refused("export", run, "--out", tmp_path / "out")
        assert told.startswith(
            f"error: shard 0 of {run} is damaged, so nothing was exported: node {chain[length - 1].key[:12]}"
        )
        assert told.endswith("run `s3t refresh` first, or export another with --shard")
        assert not (tmp_path / "out").exists()
    export(run, 1, tmp_path / "other", backbone=tiny)
    with closing(System.open(run, tiny)) as system:
        system.refresh()
    assert len(export(run, 0, tmp_path / "out", backbone=tiny).nodes) == 3


def test_an_export_of_another_run(run: Path, tmp_path: Path, tiny: Backbone) -> None:
    export(run, 0, tmp_path / "out", backbone=tiny)
    S3T(tmp_path / "other", Layout(1, 2, 1), classes=CLASSES, model=tiny, recipe=RECIPE, key=KEY).fit(RECORDS)
    with pytest.raises(RunError, match="was not exported from"):
        check(tmp_path / "out", tmp_path / "other")


def test_the_commands(run: Path, tmp_path: Path) -> None:
    certificate = tmp_path / "run.cert.json"
    certificate.write_text("{}")
    code, out, _ = said("export", run, "--out", tmp_path / "out", "--shard", 1, "--certificate", certificate)
    assert code == 0 and "slices 0, 1, 2 of shard 1" in out
    assert "| certificate | certificate.json |" in (tmp_path / "out" / "README.md").read_text()
    assert said("check-export", tmp_path / "out")[0] == 0
    code, out, _ = said("check-export", tmp_path / "out", run, "--json")
    assert code == 0 and json.loads(out)["hit"] == []
    deleted(run, victim(1, 0))
    code, out, _ = said("check-export", tmp_path / "out", run)
    assert code == 1 and "slice 0 of shard 1: withdraw it" in out
    code, out, err = said("check-export", tmp_path)
    assert (code, out) == (2, "") and "is not an export" in err


def test_it_is_pushed_on_request_alone(
    run: Path, tmp_path: Path, tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, name: str, **how: Any) -> str:
            sent.append((name, how))
            return f"https://hub/{name}"

        def upload_folder(self, **how: Any) -> None:
            sent.append(("upload", how))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    export(run, 0, tmp_path / "out", backbone=tiny)
    assert not sent
    assert push(tmp_path / "out", "me/shard") == "https://hub/me/shard"
    assert sent[0] == ("me/shard", {"repo_type": "model", "private": True, "exist_ok": True})
    assert sent[1][1]["folder_path"] == str(tmp_path / "out")
    _lengthen(tmp_path / "out")
    with pytest.raises(RunError, match="is not what was exported"):
        push(tmp_path / "out", "me/shard")
    assert len(sent) == 2


def test_a_push_without_a_connection(run: Path, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is set for all tests; the folder stays."""
    told = refused("export", run, "--out", tmp_path / "out", "--push", "me/shard")
    assert "error: 'me/shard' was not uploaded:" in told and check(tmp_path / "out").hit is None


def test_a_folder_of_this_machine_is_not_told(tmp_path: Path, tiny: Backbone) -> None:
    """A base model without a public name needs one."""
    here = dataclasses.replace(tiny, name=str(tmp_path / "models" / "own"))
    S3T(tmp_path / "run", Layout(1, 2, 1), classes=CLASSES, model=here, recipe=RECIPE, key=KEY).fit(RECORDS)
    with pytest.raises(RunError, match=r"the base model is a folder here, .*own; say under which name"):
        export(tmp_path / "run", 0, tmp_path / "out", backbone=here)
    assert not (tmp_path / "out").exists()
    assert export(tmp_path / "run", 0, tmp_path / "out", base="me/own", backbone=here).model == "me/own"
    assert not [p for p in (tmp_path / "out").iterdir() if str(tmp_path).encode() in p.read_bytes()]
