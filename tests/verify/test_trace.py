"""Histories as data: how they are written, which are equivalent, what is strewn into them."""

from __future__ import annotations

import dataclasses
import itertools
from random import Random

import pytest

from s3t.contract import Claim, Slot
from s3t.errors import S3TError
from verify.case import Event
from verify.small import draw
from verify.trace import Extras, Step, ordered_partitions, read, refreshable, skeleton, written


def test_the_ways_to_split_requests_are_counted_right() -> None:
    for items, count in (("", 1), ("a", 1), ("ab", 3), ("abc", 13), ("abcd", 75)):
        ways = list(ordered_partitions(items))
        assert len(ways) == len(set(ways)) == count
        assert all(sorted(itertools.chain(*way)) == sorted(items) for way in ways)


def test_what_is_written_is_read_back() -> None:
    for number in range(300):
        steps = draw(0, number).steps
        extras = Extras("retrained", lambda _: None, 'odd "id"; refresh', "unknown-0", kill=True)
        steps = extras.strew(steps, Random(number))
        assert read(written(steps)) == steps
    assert written(()) == "nothing" and read("nothing") == ()
    with pytest.raises(S3TError, match="'undelete' does not begin a step; known are delete"):
        read('delete ["a"]; undelete')


def test_a_restart_is_no_event() -> None:
    with pytest.raises(S3TError, match="'restart' is no event"):
        _ = Step("restart").event


def _delete(*ids: str) -> Event:
    return Event("delete", ids, ((0, 0),))


RETIRE, EXTEND, REFRESH = Event("retire", slots=((0, 1),)), Event("extend", budget=2), Event("refresh")


@pytest.mark.parametrize(
    ("history", "places"),
    [
        ((_delete("a", "b"), _delete("c")), {"a": (0,), "b": (0,), "c": (0,)}),
        ((_delete("a"), REFRESH, _delete("b")), {"a": (0,), "b": (1,)}),
        ((_delete("a"), REFRESH, _delete("b"), EXTEND, _delete("c")), {"a": (0, 1), "b": (0, 1), "c": (2,)}),
        ((_delete("a"), RETIRE, _delete("b")), {"a": (0,), "b": (1,)}),
        ((_delete("a"), RETIRE, _delete("b"), REFRESH), {"a": (0, 1), "b": (0, 1)}),
        ((_delete("a"), REFRESH, _delete("a")), {"a": (0,)}),
    ],
    ids=["one phase", "refresh", "extend", "retire", "retire before refresh", "again"],
)
def test_where_a_deletion_may_come(history: tuple[Event, ...], places: dict[str, tuple[int, ...]]) -> None:
    frame = skeleton(history)
    assert frame.places == places
    fixed = [event.kind for event in history if event.kind != "delete"]
    every = list(frame.every())
    assert len(every) == len(set(every))
    for steps in [*every, *(frame.sample(Random(i)) for i in range(20))]:
        assert [step.kind for step in steps if step.kind != "delete"] == fixed
        assert sorted(name for step in steps for name in step.ids) == sorted(places)
        assert [dataclasses.replace(step, ids=tuple(sorted(step.ids))) for step in steps] in [
            list(one) for one in every
        ]


def test_every_arrangement_of_one_phase_is_found() -> None:
    assert len(list(skeleton([_delete("a", "b"), _delete("c")]).every())) == 13
    assert len(list(skeleton([_delete("a"), REFRESH, _delete("b"), REFRESH]).every())) == 2 + 2 * 3
    many = skeleton([_delete(*map(str, range(60))), REFRESH, _delete("last")])
    assert len(set(itertools.islice(many.every(), 50))) == 50, "more than the atoms of the world, but one at a time"


@pytest.mark.parametrize(
    ("claim", "line", "free"),
    [
        ("retrained", 'delete ["a0"]; refresh', "yyy"),
        ("non-interference", 'delete ["a0"]', "yn"),
        ("non-interference", 'delete ["a0"]; delete ["a1"]', "yyn"),
        ("non-interference", 'delete ["a0"]; delete ["b1"]', "ynn"),
        ("non-interference", 'delete ["a0"]; delete ["b0"]; delete ["a1","b1"]', "yyyn"),
        ("non-interference", 'delete ["a0"]; refresh; delete ["b0"]; retire [[0,1]]', "yyyyn"),
        ("non-interference", 'delete ["b0"]; retire [[0,1]]', "yyn"),
        ("non-interference", 'refresh; delete ["?0"]; delete ["?0"]', "yynn"),
    ],
)
def test_where_a_further_refresh_changes_nothing(claim: Claim, line: str, free: str) -> None:
    slots: dict[str, Slot | None] = {"a": (0, 0), "b": (0, 1), "?": None}
    assert refreshable(read(line), claim, lambda name: slots[name[0]]) == [said == "y" for said in free]


@pytest.mark.parametrize("eager", [False, True])
def test_no_eager_deletion_is_killed_while_a_retirement_holds(eager: bool) -> None:
    """The refresh that follows it would rebuild what was retired."""
    line = 'delete ["a"]; retire [[0,1]]; delete ["b"]; refresh; delete ["c"]; retire [[0,0]]; delete ["d"]'
    extras, killed = Extras("non-interference", lambda _: None, "", "unknown-0", True, eager), set[tuple[bool, str]]()
    for number in range(300):
        retired = False
        for step in extras.strew(read(line), Random(number)):
            retired = (retired or step.kind == "retire") and step.kind != "refresh"
            if step.kill:
                killed.add((retired, step.kind))
    kinds = {(False, "delete"), (False, "refresh"), (True, "retire")}
    assert killed == (kinds if eager else {*kinds, (True, "delete")})
