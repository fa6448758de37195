"""E1c: loud content in the place of what was dropped changes nothing that is served, and a leak hears it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from s3t.backbone import load
from s3t.data.decoding import decode
from s3t.records import Record
from verify.case import Case, Event, Variant
from verify.laboratory import poison, quiet_word
from verify.leaks import CLEAN, LEAKS, Bench
from verify.loud import check_loud, replaceable, replaced
from verify.report import Verdict

DELETED = ["row-003", "row-020"]


def case(records: list[Record], deleted: str, slots: dict[str, tuple[int, int]] | None = None) -> Case:
    lab: Any = SimpleNamespace(**({"slot": slots.__getitem__} if slots else {}))
    dropped = frozenset([slots[deleted]]) if slots else frozenset()
    return Case(SimpleNamespace(), lab, tuple(records), (Event("delete", (deleted,)),), (), dropped)  # type: ignore[arg-type]


RECORDS = [Record(f"r{i}", {"text": f"text {i}", "image": bytes([i])}, i % 2) for i in range(6)]


def test_only_what_was_dropped_is_replaced() -> None:
    alone = case(RECORDS, "r2")
    assert [r.id for r in replaceable(alone)] == ["r2"]
    whole = case(RECORDS, "r2", {f"r{i}": (0, i % 2) for i in range(6)})
    assert [r.id for r in replaceable(whole)] == ["r0", "r2", "r4"]
    for kind in ("extreme", "swapped", "nan"):
        loud = replaced(whole, kind, 2, "quiet")
        assert [r.id for r in loud] == [r.id for r in RECORDS]
        changed = [r.id for r, was in zip(loud, RECORDS, strict=True) if r != was]
        assert changed == ["r0", "r2", "r4"], kind
        assert all(
            r.label != was.label for r, was in zip(loud, RECORDS, strict=True) if r.id == "r2" and kind != "swapped"
        )
    assert replaced(whole, "nan", 2, "quiet")[2].inputs == {"text": "quiet quiet", "image": bytes([2])}
    swapped = replaced(whole, "swapped", 2)[2]
    assert swapped.inputs in [r.inputs for r in RECORDS if r.id in ("r1", "r3", "r5")]


def test_a_quiet_word_is_met_by_no_other_record_and_poisons_what_reads_it() -> None:
    import torch

    from s3t.backbone import pooled

    backbone = load("tiny-2")
    avoid = [Record(f"r{i}", {"text": f"word{i} zxqj"}, 0) for i in range(50)]
    word = quiet_word(backbone, avoid, 16)
    assert word is not None and word != "zxqj"
    poisoned = poison(backbone, (word,))
    assert poisoned.digest == backbone.digest
    clean = backbone.collate(backbone.encode([avoid[0].inputs], 16))
    loud = backbone.collate(backbone.encode([{"text": f"the {word}"}], 16))
    with torch.no_grad():
        assert torch.equal(pooled(poisoned.model, clean), pooled(backbone.model, clean))
        assert pooled(poisoned.model, loud).isnan().all()
        assert not pooled(backbone.model, loud).isnan().any()


def test_no_word_is_quiet_if_every_token_is_used() -> None:
    backbone = replace(load("tiny-2"), encoder=lambda inputs, _: [SimpleNamespace(fields={"input_ids": [1]}, length=1)])
    assert quiet_word(backbone, [], 16) is None


def test_holds_before_and_after_a_refresh(live: Any) -> None:
    live.system.delete(DELETED)
    report = live.audit("E1c")
    assert report.verdict is Verdict.HOLDS, report.dumps()
    (found,) = report.findings
    assert found.details["kinds"] == ["extreme", "swapped", "nan"]
    before = found.details["replaced"]
    assert before > len(DELETED), "the rest of the dropped slots is replaced too"
    live.system.refresh()
    report = live.audit("E1c")
    assert report.verdict is Verdict.HOLDS, report.dumps()
    assert report.findings[0].details["replaced"] == len(DELETED) < before


def test_nothing_deleted(live: Any) -> None:
    (found,) = live.audit("E1c").findings
    assert (found.verdict, found.message) == (Verdict.HOLDS, "nothing was deleted: nothing to replace")


def test_without_source_or_laboratory_it_is_undecided(live: Any) -> None:
    live.system.delete(DELETED)
    for options in ({"records": None}, {"lab": None}, {"records": live.records[5:]}):
        assert live.audit("E1c", **options).verdict is Verdict.UNDECIDED


def test_images_become_black_and_white_squares() -> None:
    images = [Record(f"r{i}", {"image": bytes([i]), "caption": "a cat"}, 0) for i in range(3)]
    loud = replaced(case(images, "r1"), "extreme", 2)
    assert [record.id for record in loud] == ["r0", "r1", "r2"] and loud[0] == images[0]
    squares, caption = loud[1].inputs["image"], loud[1].inputs["caption"]
    assert isinstance(squares, bytes) and set(decode(squares, 64).flatten().tolist()) == {0, 255}
    assert isinstance(caption, str) and caption.startswith("zzyzx")


def test_nothing_to_make_loud_is_undecided() -> None:
    empty = [Record(f"r{i}", {}, 0) for i in range(3)]
    (found,) = check_loud(case(empty, "r1"), 2)
    assert (found.verdict, found.check) == (Verdict.UNDECIDED, "E1c loud")


@pytest.mark.parametrize("number", [5, 19])
def test_a_leak_hears_it(number: int, tmp_path: Any) -> None:
    bench = Bench(tmp_path)
    leak = next(leak for leak in LEAKS if leak.number == number)
    report = bench.audit(leak, ("E1c",))
    assert report.verdict is Verdict.VIOLATED, report.dumps()
    assert "content in the place of what was dropped" in report.findings[0].message


def test_the_clean_bench_is_silent(tmp_path: Any) -> None:
    report = Bench(tmp_path).audit(CLEAN, ("E1c",))
    assert report.verdict is Verdict.HOLDS, report.dumps()


def test_an_unfinished_refresh_cannot_be_repeated(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3t.building import Builder

    live.system.delete(DELETED)
    calls: list[int] = []
    train: Callable[..., Any] = Builder.train

    def stops(self: Builder, *given: Any, **how: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(self, *given, **how)

    monkeypatch.setattr(Builder, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        live.system.refresh()
    monkeypatch.undo()
    report = live.audit("E1c")
    assert report.verdict is Verdict.UNDECIDED, report.dumps()
    assert "cannot be repeated" in report.findings[0].message


def test_a_variant_changes_nothing_but_what_it_names(live: Any, tmp_path: Any) -> None:
    lab = live.lab
    other = lab.make(tmp_path / "seed", Variant(seed=99))
    assert other.config.seed == 99 and other.config.plan == live.system.config.plan
    shutil.copytree(live.folder, tmp_path / "copy")
    live.system.delete(DELETED)
    with_record = lab.open(tmp_path / "copy")
    assert DELETED[0] in with_record.ids() and DELETED[0] not in live.system.ids()
    with_record.close()
