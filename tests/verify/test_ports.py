"""The ports of two reference designs: every switch does what is described, and the audits reject what can be seen."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3t.contract import UnlearningSystem
from s3t.errors import OfflineError, RecordError, S3TError
from s3t.records import Record
from verify.ports import audits, engine
from verify.ports.__main__ import main
from verify.ports.audits import CHECKS, PORTS, Row, audit_port, faults, make_lab, read, rejected, variants, write
from verify.ports.engine import Setting
from verify.ports.labs import S3TLab, SISALab
from verify.ports.mistakes import S3TMistakes, SISAMistakes
from verify.ports.s3t_reference import orders
from verify.ports.tables import document, table

FAST = Setting(budget=1, recipe=dataclasses.replace(engine.RECIPE, epochs=1))


def _s3t(**switches: bool) -> S3TLab:
    return S3TLab(FAST, S3TMistakes(**switches))


def _sisa(**switches: bool) -> SISALab:
    return SISALab(FAST, SISAMistakes(**switches))


def _fitted(lab: Any, folder: Path, records: Sequence[Record] | None = None) -> Any:
    system = lab.make(folder)
    system.fit(list(lab.records if records is None else records))
    return system


def _bits(system: Any) -> dict[str, list[float]]:
    return {
        f"{node} {name}": tensor.detach().flatten().tolist()
        for node, tensors in system.weights().items()
        for name, tensor in tensors.items()
    }


def _on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


# ---- the clean systems ----


@pytest.mark.parametrize("lab", [_s3t(), _sisa()])
def test_a_clean_port_keeps_the_contract(lab: Any, tmp_path: Path) -> None:
    system, victim = _fitted(lab, tmp_path / "a"), lab.victim()
    assert isinstance(system, UnlearningSystem)
    assert system.provenance().claim == "retrained"
    assert any(victim in node.reads for chain in system.provenance().chains for node in chain.nodes)
    before = system.predict([r.inputs for r in lab.probes])
    assert before.dtype == np.float32 and before.shape == (len(lab.probes), lab.classes)
    with pytest.raises(RecordError, match="'nobody' is not in this system, so nothing was deleted"):
        system.delete([victim, "nobody"])
    assert np.array_equal(system.predict([r.inputs for r in lab.probes]), before)

    receipt = system.delete([victim])
    assert (receipt.deleted, receipt.slots) == ((victim,), (lab.slot(victim),))
    assert not any(victim in node.reads for chain in system.provenance().chains for node in chain.nodes)
    text = str(next(r for r in lab.records if r.id == victim).inputs["text"])
    assert victim.encode() not in _on_disk(tmp_path / "a") and text.encode() not in _on_disk(tmp_path / "a")
    assert system.delete([victim]).already == (victim,)
    opened = lab.open(tmp_path / "a")
    assert _bits(opened) == _bits(system)
    assert opened.delete([victim]).already == (victim,)

    system.refresh()
    fresh = _fitted(lab, tmp_path / "b", [r for r in lab.records if r.id != victim])
    assert _bits(system) == _bits(fresh)
    assert system.provenance().claim == "retrained"
    assert system.cost().optimizer_steps > fresh.cost().optimizer_steps > 0


def test_a_shard_without_a_chain_is_offline(tmp_path: Path) -> None:
    lab = _s3t()
    system = _fitted(lab, tmp_path / "a")
    system.retire([(0, piece) for piece in range(3)])
    assert system.provenance().offline == (0,)
    assert len(system.provenance().chains) == 1
    system.retire([(1, piece) for piece in range(3)])
    with pytest.raises(OfflineError, match="no chain is left"):
        system.predict([lab.probes[0].inputs])
    system.refresh()
    assert system.provenance().offline == ()


def test_orders_are_rotations_first() -> None:
    assert orders(3, 4) == [(0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1)]
    assert sorted(orders(3, 6)) == sorted(itertools.permutations(range(3)))


# ---- every switch does what is described ----


def test_a_piece_of_a_name_matches_layers_10_and_11(tmp_path: Path) -> None:
    clean, faulty = _s3t().make(tmp_path / "a"), _s3t(substring_layers=True).make(tmp_path / "b")
    assert faulty._matched(clean.blocks[2]) == [0, 1, 2, 3, 10, 11]
    assert clean._matched(clean.blocks[2]) == [0, 1, 2, 3]
    assert faulty._matched(clean.blocks[0]) == [8, 9, 10, 11]


def test_rewrapping_leaves_the_last_adapter_alone(tmp_path: Path) -> None:
    for name, switches, left in (("a", {}, 3), ("b", {"rewrapped": True}, 1)):
        weights = _fitted(_s3t(**switches), tmp_path / name).weights()
        stages = [
            node for node, tensors in weights.items() if any(n[-1] in "13" and t.any() for n, t in tensors.items())
        ]
        assert len([node for node in stages if node.startswith("shard 0")]) == left


def test_what_is_listed_first_serves(tmp_path: Path) -> None:
    lab = S3TLab(dataclasses.replace(FAST, budget=2), S3TMistakes(first_listed=True))
    system = _fitted(lab, tmp_path / "a")
    assert [chain.order for chain in system.provenance().chains] == [0, 0]
    assert [chain.order for chain in lab.open(tmp_path / "a").provenance().chains] == [1, 1]


def test_the_best_epoch_on_the_test_split_is_kept(tmp_path: Path) -> None:
    setting = dataclasses.replace(FAST, recipe=dataclasses.replace(engine.RECIPE, epochs=3))
    lab = S3TLab(setting, S3TMistakes(best_on_test=True))
    system, other = (lab.make(tmp_path / name) for name in ("a", "b"))
    other._test = [Record(r.id, r.inputs, 1 - r.label) for r in lab.probes]
    for each in (system, other):
        each.fit(list(lab.records))
    assert _bits(system) != _bits(other)


def test_budgets_above_the_slices_are_capped(tmp_path: Path) -> None:
    setting = dataclasses.replace(FAST, budget=5)
    assert len(S3TLab(setting).make(tmp_path / "a").orders) == 5
    assert len(S3TLab(setting, S3TMistakes(capped_budget=True)).make(tmp_path / "b").orders) == 3


def test_what_is_drawn_before_the_seed_is_never_the_same(tmp_path: Path) -> None:
    assert _bits(_fitted(_s3t(unseeded=True), tmp_path / "a")) != _bits(_fitted(_s3t(unseeded=True), tmp_path / "b"))
    assert _bits(_fitted(_s3t(), tmp_path / "c")) == _bits(_fitted(_s3t(), tmp_path / "d"))


def test_one_long_record_halves_all_later_batches(tmp_path: Path) -> None:
    lab = _s3t(retried_batches=True)
    with_it = _fitted(lab, tmp_path / "a")
    without = _fitted(lab, tmp_path / "b", [r for r in lab.records if r.id != lab.victim()])
    assert (with_it._state["batch_size"], without._state["batch_size"]) == (2, 4)
    shard = 1 - lab.slot(lab.victim())[0]
    served = [{k: v for k, v in _bits(s).items() if k.startswith(f"shard {shard}")} for s in (with_it, without)]
    assert served[0].keys() == served[1].keys() and served[0] != served[1]


def test_a_deletion_that_edits_a_list_only(tmp_path: Path) -> None:
    lab = _s3t(listed_only=True)
    system, victim = _fitted(lab, tmp_path / "a"), lab.victim()
    files = set((tmp_path / "a").rglob("*"))
    system.delete([victim])
    assert set((tmp_path / "a").rglob("*")) == files
    assert victim in (tmp_path / "a" / "records.jsonl").read_text()
    assert not any(victim in node.reads for chain in system.provenance().chains for node in chain.nodes)
    assert lab.open(tmp_path / "a").delete([victim]).already == (victim,)


@pytest.mark.parametrize("switch", ["key_without_seed", "key_without_recipe"])
def test_a_key_that_does_not_cover_everything_serves_another_model(tmp_path: Path, switch: str) -> None:
    recipe = dataclasses.replace(FAST.recipe, lr=1e-3)
    other = dataclasses.replace(FAST, **({"seed": 1} if switch == "key_without_seed" else {"recipe": recipe}))
    for switches, stale in (({}, False), ({switch: True}, True)):
        folder = tmp_path / str(stale)
        first = _bits(_fitted(SISALab(FAST, SISAMistakes(**switches)), folder))
        again = _fitted(SISALab(other, SISAMistakes(**switches)), folder)
        assert (_bits(again) == first) is stale
        assert (again.cost().nodes == 0) is stale


@pytest.mark.parametrize("switch", ["key_without_last_rows", "link_kept", "requests_overwritten"])
def test_a_deleted_row_stays_in_the_served_model(tmp_path: Path, switch: str) -> None:
    lab = _sisa(**{switch: True})
    system, victim = _fitted(lab, tmp_path / "a"), lab.victim()
    before = _bits(system)
    system.delete([victim])
    assert any(victim in node.reads for chain in system.provenance().chains for node in chain.nodes)
    if switch == "requests_overwritten":
        assert len(system._rows) == len(lab.records) - 1 and victim in system._rows
    else:
        assert _bits(system) == before


def test_a_copy_that_follows_links_serves_the_same(tmp_path: Path) -> None:
    lab = _sisa(link_kept=True)
    system = _fitted(lab, tmp_path / "a")
    system.delete([lab.victim()])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b" / "serving" / "0").is_symlink()
    assert _bits(lab.open(tmp_path / "b")) == _bits(system)


# ---- audits, rows, tables ----


def test_every_switch_is_described_once() -> None:
    for port, kind in (("s3t", S3TMistakes), ("sisa", SISAMistakes)):
        assert [m.switch for m in PORTS[port]] == [f.name for f in fields(kind)]  # type: ignore[index]
        assert all(m.caught_by or m.note for m in PORTS[port])  # type: ignore[index]
        assert {check for m in PORTS[port] for check in m.caught_by} <= set(CHECKS)  # type: ignore[index]
    assert variants("sisa")[0] == () and len(variants("sisa")) == len(fields(SISAMistakes)) + 2
    with pytest.raises(S3TError, match="'typo' is no mistake of sisa"):
        make_lab("sisa", ["typo"])


def test_an_audit_rejects_a_kept_link_and_accepts_the_clean_system(tmp_path: Path) -> None:
    rows = [audit_port("sisa", mistakes, "delete", ("E0", "E1b")) for mistakes in ((), ("link_kept",))]
    assert set(rows[0].verdicts.values()) == {"HOLDS"} and rows[0].problems == {}
    assert rows[1].verdicts == dict.fromkeys(("E0 lineage", "E0 residue", "E1b never ingested"), "VIOLATED")
    assert "1 deleted records are in its read set" in rows[1].problems["E0 lineage"]
    for port in PORTS:
        write(tmp_path, port, [row for row in rows if row.port == port])
    assert read(tmp_path)[0] == rows
    assert faults(rows) == ["sisa with link_kept: E1c loud says None"]
    assert "| `link_kept` | **rejects** | **rejects** | **rejects** | not run | not run |" in table("sisa", rows)


def test_a_due_rejection_that_is_missing_is_named() -> None:
    quiet = Row("s3t", ("listed_only",), "delete", dict.fromkeys(CHECKS, "HOLDS"), {}, "retrained", 0.0)
    alarm = Row("s3t", (), "delete", {**dict.fromkeys(CHECKS, "HOLDS"), CHECKS[0]: "UNDECIDED"}, {}, "", 0.0)
    loud = dataclasses.replace(quiet, story="delete, refresh", verdicts={CHECKS[1]: "VIOLATED"})
    assert faults([quiet]) == ["s3t with listed_only: E0 residue says HOLDS"]
    assert faults([quiet, loud]) == []
    assert rejected([quiet, loud], "s3t", ("listed_only",))[CHECKS[1]] == "VIOLATED"
    assert faults([alarm]) == ["s3t without mistakes: E0 lineage says UNDECIDED"]


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def audited(port: Any, mistakes: Sequence[str], story: str) -> Row:
        bad = {m.switch: m.caught_by for m in PORTS["sisa"] if m.switch != "link_kept"}
        caught = {check for name in mistakes for check in bad.get(name, ())}
        verdicts = {check: "VIOLATED" if check in caught else "HOLDS" for check in CHECKS}
        return Row(port, tuple(mistakes), story, verdicts, {}, "retrained", 0.0)

    monkeypatch.setattr(audits, "audit_port", audited)
    assert main(["--port", "sisa", "--mistake", "key_without_last_rows", "--out", str(tmp_path)]) == 0
    assert len(json.loads((tmp_path / "sisa.json").read_text())["rows"]) == 2
    assert main(["--port", "sisa"]) == 1
    assert "MISSED sisa with link_kept: E0 lineage says HOLDS" in capsys.readouterr().out
    assert main(["--mistake", "typo"]) == 2
    assert main(["--rows", str(tmp_path / "none")]) == 2
    assert "holds no rows of the ports" in capsys.readouterr().err


def test_the_published_table_is_what_the_rows_say(root: Path) -> None:
    rows, machines = read(root / "results" / "ports")
    assert (root / "docs" / "PORTS.md").read_text(encoding="utf-8") == document(rows, machines)
    assert faults(rows) == []
    for port in PORTS:
        assert {row.mistakes for row in rows if row.port == port} == set(variants(port))


@pytest.mark.slow
@pytest.mark.parametrize(("port", "mistake"), [(port, m) for port, ms in PORTS.items() for m in ms if m.caught_by])
def test_every_mistake_that_can_be_seen_is_rejected(port: Any, mistake: Any) -> None:
    rows = [audit_port(port, (mistake.switch,), story) for story in audits.STORIES]
    assert faults(rows) == []
