"""Predictions while others delete: none fails, none is answered by what was dropped, and the end is that of one by one."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from serving_http import ALICE, KEY, LAYOUT, PROBE, Served, placed

from benchmarks.services import Listening
from s3t.backbone import Backbone
from s3t.partition import slot
from s3t.records import Record
from s3t.requests import Request
from s3t.system import System

Serve = Callable[..., Served]
VICTIMS = [
    name
    for taken in zip(*(placed(*place)[:3] for place in ((0, 2), (1, 1), (0, 1), (0, 0), (1, 2))), strict=True)
    for name in taken
]
"""Of every slot but one, so that a shard stays live; one slot after the other."""


class Crew:
    """Threads that begin together; the first error of any is raised at the end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._together = threading.Event()
        self.ended = threading.Event()

    def add(self, work: Callable[[], None]) -> threading.Thread:
        """Have ``work`` done by a thread of its own."""

        def run() -> None:
            self._together.wait()
            try:
                work()
            except BaseException as error:
                self._errors.append(error)

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()
        return self._threads[-1]

    def go(self, until: list[threading.Thread]) -> None:
        """Begin; when all of ``until`` are done, set ``ended`` and wait for the others."""
        self._together.set()
        for thread in until:
            thread.join()
        self.ended.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


def _facts(run: Path, tiny: Backbone) -> dict[str, Any]:
    """What of a run's ledger does not depend on the order of requests, and what it answers."""
    with closing(System.open(run, tiny)) as system:
        opened, facts = system._opened()
        facts.update()
        requests = [entry.body for entry in opened.ledger.entries("request")]
        return {
            "tags": sorted(tag for body in requests for tag in body["tags"]),
            "slots": sorted(facts.hits),
            "numbers": [body["request"] for body in requests],
            "alive": sorted((node.name, fact.key) for node, fact in facts.alive.items()),
            "on disk": sorted(opened.nodes.keys()),
            "erased": opened.records.erased_through() == opened.ledger.head(),
            "retained": system.ids(),
            "answers": system.predict([{"text": text} for text in PROBE]).tobytes(),
        }


def test_the_end_is_that_of_one_by_one(serve: Serve, copied: Callable[[], Path], tiny: Backbone) -> None:
    served, crew, acknowledged = serve(workers=3), Crew(), []
    asked: list[int] = []

    def deleting(names: list[str]) -> None:
        for name in names:
            answer = served.delete(name)
            assert answer.status == 200, answer
            acknowledged.append((answer.json["request"], *answer.json["deleted"]))

    def predicting() -> None:
        while not crew.ended.is_set():
            answer = served.predict(*PROBE)
            assert answer.status == 200, answer
            asked.append(answer.status)

    for _ in range(3):
        crew.add(predicting)
    crew.go([crew.add(lambda names=VICTIMS[i::2]: deleting(names)) for i in (0, 1, 0)])  # some are asked for twice
    fresh = [said for said in acknowledged if said[0]]
    assert sorted(name for _, name in fresh) == sorted(VICTIMS), "each was deleted by one request"
    assert len(acknowledged) - len(fresh) == len(VICTIMS[::2]), "and the others said that it was deleted before"
    assert len({number for number, _ in fresh}) == len(VICTIMS)
    assert len(asked) >= 3
    serial = copied()
    with closing(System.open(serial, tiny)) as system:
        for name in VICTIMS:
            system.delete([name])
    assert _facts(served.run, tiny) == _facts(serial, tiny)


@pytest.mark.slow
def test_ten_thousand_operations_at_the_same_time(
    fitted: Callable[[Path, Sequence[Record]], Path], tmp_path: Path, tiny: Backbone
) -> None:
    """Two services, each a process with two threads for predictions, over one run; seven clients that keep connections."""
    records = [Record(f"m-{i:03d}", {"text": f"word{i} of text{i % 9}"}, i % 3) for i in range(480)]
    run = fitted(tmp_path / "run", records)
    serial = tmp_path / "serial"
    shutil.copytree(run, serial)
    places = [(0, 2), (1, 1), (0, 1), (0, 0), (1, 2)]  # of every slot but one, so that a shard stays live
    of = {place: [r.id for r in records if slot(KEY, r.id, LAYOUT) == place] for place in places}
    victims = [name for names in of.values() for name in names[:-5]]
    each, predictors = 2450, 4
    crew, acknowledged, bad = Crew(), [], []
    asked = [0] * predictors

    with ExitStack() as stack:
        services = [stack.enter_context(Listening(run, ("--workers", "2"))) for _ in range(2)]

        def predicting(who: int) -> None:
            with closing(services[who % 2].client()) as client:
                for number in range(each):
                    status, said = client.ask("POST", "/predict", {"inputs": [PROBE[number % len(PROBE)]]})
                    if status != 200 or said["n"] != 1:
                        bad.append((status, said))
                    asked[who] += 1

        def deleting(who: int, names: list[str]) -> None:
            with closing(services[who % 2].client()) as client:
                for number, name in enumerate(names):
                    while sum(asked) < 0.9 * each * predictors * number / len(names) and any(
                        thread.is_alive() for thread in asking
                    ):
                        time.sleep(0.002)
                    said = client.need("/delete", {"ids": [name]}, services[who % 2].token)
                    acknowledged.append((name, *said["deleted"], *said["already"]))

        asking = [crew.add(lambda who=who: predicting(who)) for who in range(predictors)]  # type: ignore[misc]
        parts = [victims[0::2], victims[1::2], victims[0::2][::-1]]  # a half is asked for of both services
        more = [crew.add(lambda who=who, names=names: deleting(who, names)) for who, names in enumerate(parts)]  # type: ignore[misc]
        crew.go([*asking, *more])
        assert bad == []
        assert sum(asked) + len(acknowledged) >= 10_000
        assert {name for name, *_ in acknowledged} == set(victims) and len(victims) >= 300
        assert all(said == [name] for name, *said in acknowledged), "each deletion is acknowledged by its id alone"
        with closing(System.open(serial, tiny)) as system:
            for name in victims:
                system.delete([name])
            wanted = system.predict([{"text": text} for text in PROBE])
        for service in services:
            with closing(service.client()) as client:
                rows = client.need("/predict", {"inputs": PROBE})["rows"]
            assert [row["scores"] for row in rows] == wanted.astype(float).round(6).tolist()
    ours, theirs = _facts(run, tiny), _facts(serial, tiny)
    assert ours == theirs
    assert ours["retained"] == sorted({record.id for record in records} - set(victims))
    for path in (run, serial):
        with closing(System.open(path, tiny)) as system:
            system.refresh()
    mended = _facts(run, tiny)
    assert mended == _facts(serial, tiny) and len(mended["alive"]) > len(ours["alive"])


@pytest.mark.parametrize("elsewhere", [False, True], ids=["by the service", "by another process"])
def test_no_answer_is_older_than_what_was_acknowledged_before_it_was_asked(
    serve: Serve, copied: Callable[[], Path], tiny: Backbone, elsewhere: bool
) -> None:
    states, crew = [], Crew()
    with closing(System.open(copied(), tiny)) as system:
        other = Served(system.path, serve(system.path).service, serve(system.path).app, [])
        states.append(other.predict(*PROBE).body)
        for name in VICTIMS:
            system.delete([name])
            states.append(other.predict(*PROBE).body)
    assert len(set(states)) > 4
    served, acknowledged, answers = serve(workers=2), [], [0, 0]

    def predicting(who: int) -> None:
        while not crew.ended.is_set():
            before = len(acknowledged)
            answer = served.predict(*PROBE)
            assert answer.status == 200, answer
            begun = min(len(acknowledged) + 2, len(states))  # one more may be durable and not acknowledged yet
            assert answer.body in states[before:begun], f"an answer of before {states.index(answer.body)}, not {before}"
            answers[who] += 1

    def deleting() -> None:
        with closing(System.open(served.run, tiny)) as beside:
            for name in VICTIMS:
                if elsewhere:
                    beside.delete([name])
                else:
                    assert served.delete(name).status == 200
                acknowledged.append(name)
                wanted = [count + 2 for count in answers]
                while any(a < b for a, b in zip(answers, wanted, strict=True)) and all(
                    thread.is_alive() for thread in asking
                ):
                    crew.ended.wait(0.001)

    asking = [crew.add(lambda who=who: predicting(who)) for who in (0, 1)]
    crew.go([crew.add(deleting)])
    assert served.predict(*PROBE).body == states[-1]


def test_a_prediction_that_a_deletion_overtakes_is_answered(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3t.engine.numerics import Numerics

    served = serve()
    before, real, late = served.predict(*PROBE).json, Numerics.score, [placed(0, 2)[0]]

    def overtaken(*given: Any) -> Any:
        if late:
            assert served.delete(late.pop()).status == 200
        return real(*given)

    monkeypatch.setattr(Numerics, "score", overtaken)
    assert served.predict(*PROBE).json == before
    assert served.predict(*PROBE).json != before


def test_groups_and_ids_deleted_at_the_same_time(serve: Serve) -> None:
    served, crew, answers = serve(), Crew(), []
    work: list[dict[str, list[str]]] = [{"ids": ALICE[:2]}, {"groups": ["alice"]}, {"ids": ALICE[1:]}]
    crew.go([crew.add(lambda body=body: answers.append(served.delete(**body))) for body in work])  # type: ignore[misc]
    assert {answer.status for answer in answers} <= {200, 404}
    assert sorted(name for answer in answers for name in answer.json.get("deleted", [])) == sorted(ALICE)


def test_an_acknowledgement_comes_after_the_ledger(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3t import requests

    victim, head, seen = placed(0, 1)[0], served.head(), []
    real_delete, real_erase = requests.delete, requests.erase

    def durable(*given: Any) -> Request:
        done = real_delete(*given)
        seen.append(("durable", served.head()))
        return done

    def erasing(*given: Any) -> None:
        real_erase(*given)
        seen.append(("erased", served.head()))

    monkeypatch.setattr(requests, "delete", durable)
    monkeypatch.setattr(requests, "erase", erasing)
    assert served.delete(victim).json["deleted"] == [victim]
    seen.append(("answered", served.head()))
    assert seen == [("durable", head + 1), ("erased", head + 1), ("answered", head + 1)]
