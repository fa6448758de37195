"""Cases: what is deleted and retained in one, which history a reference lives through, and how a history is played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from s3t.errors import DataError
from s3t.records import Record
from verify.case import SAME, CannotPlayError, Case, Event, Variant, apply, play

RECORDS = tuple(Record(name, {"text": name}, 0) for name in ("a", "b", "c", "d"))
DELETED = Event("delete", ("b",), ((0, 1),))
HISTORY = (DELETED, Event("extend", budget=3), Event("refresh"), Event("delete", ("d",), ((1, 0),)))


@dataclass
class Told:
    """A system that writes down what it is told."""

    claim: str = "non-interference"
    told: list[Any] = field(default_factory=list)
    fails: str = ""

    def say(self, *what: Any) -> None:
        self.told.append(what)
        if self.fails == what[0]:
            raise DataError(f"{what[0]} failed")

    def provenance(self) -> Any:
        return SimpleNamespace(claim=self.claim)

    def fit(self, records: Sequence[Record], progress: Any = None) -> None:
        self.say("fit", tuple(record.id for record in records), progress)

    def delete(self, ids: list[str]) -> None:
        self.say("delete", ids)

    def refresh(self, progress: Any = None) -> None:
        self.say("refresh", progress)


class Able(Told):
    def retire(self, slots: Any) -> None:
        self.say("retire", slots)

    def extend(self, budget: int) -> None:
        self.say("extend", budget)


def case(system: Any) -> Case:
    return Case(system, None, RECORDS, HISTORY, RECORDS[:1])  # type: ignore[arg-type]


def test_deleted_retained_and_victims() -> None:
    one = case(Able())
    assert one.deleted == frozenset({"b", "d"})
    assert [record.id for record in one.victims] == ["b", "d"]
    assert [record.id for record in one.retained] == ["a", "c"]
    assert (one.dropped, one.survivors) == (frozenset(), None)


def test_a_reference_lives_through_what_the_claim_says() -> None:
    assert case(Able("non-interference")).never_ingested() == HISTORY
    assert case(Able("retrained")).never_ingested() == (HISTORY[1],)


def test_a_variant_keeps_everything_unless_told() -> None:
    assert Variant() == SAME
    assert (SAME.seed, SAME.poisoned, SAME.tolerant) == (None, (), False)
    assert Event("refresh") == Event("refresh", (), (), 0)


def test_playing_repeats_every_event() -> None:
    system = Able()
    steps: Any = lambda *_: None  # noqa: E731
    assert play(system, RECORDS, HISTORY, steps) is system  # type: ignore[arg-type,comparison-overlap]
    assert system.told == [
        ("fit", ("a", "b", "c", "d"), steps),
        ("delete", ["b"]),
        ("extend", 3),
        ("refresh", steps),
        ("delete", ["d"]),
    ]


def test_without_a_record_its_slots_are_retired_instead() -> None:
    system = Able()
    play(system, RECORDS[:1], HISTORY)  # type: ignore[arg-type]
    assert system.told == [
        ("fit", ("a",), None),
        ("retire", ((0, 1),)),
        ("extend", 3),
        ("refresh", None),
        ("retire", ((1, 0),)),
    ]


def test_of_several_records_those_that_are_present_are_deleted_as_well() -> None:
    system = Able()
    apply(system, Event("delete", ("b", "x", "a"), ((0, 0), (0, 1))), {"a", "b"})
    assert system.told == [("retire", ((0, 0), (0, 1))), ("delete", ["b", "a"])]


def test_a_retirement_deletes_nothing() -> None:
    system = Able()
    apply(system, Event("retire", slots=((1, 1),)), {"a"})
    assert system.told == [("retire", ((1, 1),))]


@pytest.mark.parametrize(
    ("event", "capability"), [(Event("retire", slots=((0, 0),)), "retire"), (Event("extend", budget=2), "extend")]
)
def test_a_missing_capability_is_named(event: Event, capability: str) -> None:
    message = rf"^the system cannot {capability} \(no such method\), so no reference can be brought to the same state$"
    with pytest.raises(CannotPlayError, match=message):
        play(Told(), RECORDS, [event])  # type: ignore[arg-type]


@pytest.mark.parametrize("step", ["fit", "delete", "refresh"])
def test_an_operation_that_fails_is_named(step: str) -> None:
    with pytest.raises(CannotPlayError, match=f"^the reference cannot be fitted: {step} failed$") as caught:
        play(Able(fails=step), RECORDS, HISTORY)  # type: ignore[arg-type]
    assert isinstance(caught.value.__cause__, DataError)


def test_everything_may_be_deleted_at_once() -> None:
    system = Able()
    apply(system, Event("delete", ("a", "b"), ((0, 0),)), {"a", "b"})
    assert system.told == [("delete", ["a", "b"])]
