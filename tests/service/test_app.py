"""The service by its ASGI application: what each path answers, what it refuses, and what it shows to whom."""

from __future__ import annotations

import asyncio
import hmac
import json
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from serving_http import ALICE, BEARER, IDS, PROBE, TOKEN, Served, exchange, head_of, placed, spoil
from starlette.testclient import TestClient

from s3t.backbone import Backbone
from s3t.errors import BusyError, ServiceError
from s3t.service.app import Limits
from s3t.service.working import Service
from s3t.system import System

Serve = Callable[..., Served]
KILL = [placed(shard, piece)[0] for shard in range(2) for piece in range(3)]


def _rows(path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in PROBE))
    return path


def test_predictions_are_those_of_the_command_line(served: Served, tmp_path: Path) -> None:
    said = json.loads(call("predict", served.run, "--input", _rows(tmp_path / "probe.jsonl"), "--json"))
    answer = served.predict(*PROBE)
    assert answer.status == 200
    assert answer.json == said
    assert served.predict(*[{"text": text} for text in PROBE]).json == said
    assert {row["class"] for row in said["rows"]} <= {"a", "b", "c"}


def test_a_second_text_is_read(served: Served) -> None:
    one, two = (served.predict({"text": "a word", **more}).json["rows"][0] for more in ({}, {"text_pair": "b"}))
    assert one["scores"] != two["scores"]


def test_a_deletion_is_that_of_the_command_line(served: Served, copied: Callable[[], Path]) -> None:
    other, victim = copied(), placed(0, 1)[0]
    said = json.loads(call("delete", other, "--id", victim, "--json"))
    before = served.predict(*PROBE).json
    answer = served.delete(victim)
    assert answer.status == 200
    fields = ("request", "deleted", "already", "slots", "nodes_dropped", "offline")
    assert {name: answer.json[name] for name in fields} == {name: said[name] for name in fields}
    assert answer.json["nodes_dropped"]
    assert "deleted 1 records (request r000001)" in answer.json["said"][0]
    assert served.predict(*PROBE).json != before
    assert served.predict(*PROBE).json == Answers(other).probe()


class Answers:
    """What the command line says of a run."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def probe(self) -> Any:
        return json.loads(call("predict", self.run, "--input", _rows(self.run.parent / "probe.jsonl"), "--json"))


def test_a_repeated_deletion_says_that_it_changes_nothing(served: Served) -> None:
    assert served.delete("r-00").status == 200
    head, line = served.head(), call("delete", served.run, "--id", "r-00").strip()
    again = served.delete("r-00")
    assert (again.status, again.json["said"]) == (200, [line])
    assert line == "record 'r-00' was deleted before: nothing to do"
    assert (again.json["request"], again.json["deleted"], again.json["already"]) == ("", [], ["r-00"])
    assert served.head() == head


def test_several_are_one_request(served: Served) -> None:
    head = served.head()
    answer = served.delete("r-00", groups=["alice"])
    assert sorted(answer.json["deleted"]) == sorted(["r-00", *ALICE])
    assert answer.json["request"] == "r000001"
    assert served.head() == head + 1
    assert served.delete(groups=["alice"]).status == 404


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"ids": ["r-00", "nobody"]}, "record 'nobody' is not in this system, so nothing was deleted"),
        ({"ids": ["held-out"]}, "record 'held-out' belongs to the test split"),
        ({"groups": ["bob"]}, "no retained training record belongs to group 'bob'"),
        ({"ids": ["r-00"], "groups": ["bob"]}, "no retained training record belongs to group 'bob'"),
        ({"ids": [" "]}, "record ' ' is not in this system"),
    ],
)
def test_what_is_not_here_is_404_and_nothing_changes(served: Served, body: Any, line: str) -> None:
    head, before = served.head(), served.predict(*PROBE).json
    answer = served.ask("POST", "/delete", body, BEARER)
    assert answer.status == 404
    assert line in answer.error
    assert served.head() == head
    assert served.predict(*PROBE).json == before


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xe9"]
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/delete"), ("GET", "/status")])
def test_without_the_token_there_is_nothing_to_learn(
    served: Served, method: str, path: str, header: str | None
) -> None:
    head, headers = served.head(), {} if header is None else {"authorization": header}
    said = {served.ask(method, path, {"ids": [name]}, headers).body for name in ("r-00", "nobody")}
    assert said == {b'{"error":"unauthorized"}'}
    answer = served.ask(method, path, b"\xff", headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert served.head() == head


def test_tokens_are_compared_in_constant_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def noting(a: bytes, b: bytes) -> bool:
        seen.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    for given in ("", "x", TOKEN, TOKEN * 9):
        served.ask("POST", "/delete", {"ids": ["nobody"]}, {"authorization": f"Bearer {given}"})
    assert seen == [(32, 32)] * 4, "digests of one length, whatever is given"


def test_an_unauthorised_body_is_not_read(served: Served) -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    assert asyncio.run(exchange(served.app, "POST", "/delete", [], receive)).status == 401


def test_the_status_is_that_of_the_command_line(served: Served) -> None:
    served.delete(placed(1, 0)[0])
    answer = served.ask("GET", "/status", headers=BEARER)
    said = json.loads(call("status", served.run, "--json"))
    never = {"policy": "never", "running": False, "ended": 0, "last_ended": None, "last_outcome": None}
    assert answer.json == {**said, "refresh": never}
    assert answer.json["deleted"] == 1
    assert not any(name in answer.body.decode() for name in IDS)


def test_a_dead_run_says_so_until_it_is_refreshed(served: Served, tiny: Backbone) -> None:
    assert served.ask("GET", "/health").json == {"status": "serving"}
    answer = served.delete(*KILL)
    assert answer.json["offline"] == [0, 1]
    health = served.ask("GET", "/health")
    assert (health.status, health.json["offline"]) == (503, [0, 1])
    refused = served.predict(*PROBE)
    assert refused.status == 503
    assert refused.error.startswith("every shard is offline: deletions hit all first slices; run a refresh")
    assert "retry-after" in refused.headers
    with closing(System.open(served.run, tiny)) as other:
        other.refresh()
    assert served.ask("GET", "/health").status == 200
    assert served.predict(*PROBE).status == 200


def test_a_dead_run_can_be_opened(serve: Serve, copied: Callable[[], Path]) -> None:
    run = copied()
    call("delete", run, *[word for name in KILL for word in ("--id", name)])
    served = serve(run)
    assert served.ask("GET", "/health").status == 503
    assert served.delete(placed(0, 0)[1]).status == 200


def test_what_another_process_deletes_is_noticed(served: Served, tmp_path: Path) -> None:
    before = served.predict(*PROBE).json
    call("delete", served.run, "--id", placed(0, 1)[0])
    after = served.predict(*PROBE).json
    assert after != before
    assert after == Answers(served.run).probe()
    assert served.delete(placed(0, 1)[0]).json["already"] == [placed(0, 1)[0]]
    assert served.status()["deleted"] == 1


def test_damage_is_told_and_what_is_intact_serves(serve: Serve, copied: Callable[[], Path]) -> None:
    run = copied()
    whole = serve().predict(*PROBE).json
    spoil(run, "shard-00/0")
    served = serve(run)
    assert served.ask("GET", "/health").json == {"status": "serving"}
    degraded = served.predict(*PROBE)
    assert degraded.status == 200
    assert degraded.json != whole
    status = served.status()
    assert list(status["damaged"]) == ["shard-00/0"]
    assert "s3t refresh" in status["damaged"]["shard-00/0"]
    assert status["live"] == [0, 1]
    assert served.delete(placed(1, 2)[0]).status == 200
    call("refresh", run)
    assert served.predict(*PROBE).json == Answers(run).probe()
    status = served.status()
    assert (status["damaged"], status["missing_nodes"], status["chain_lengths"]) == ({}, 0, {"0": 3, "1": 3})


def test_the_status_tells_what_a_prediction_met(served: Served) -> None:
    """The thread that looks has loaded nothing; what another met it knows."""
    assert served.status()["damaged"] == {}
    spoil(served.run, "shard-01/1")
    served.service._system._serving = None
    served.predict("word")
    status = served.status()
    assert list(status["damaged"]) == ["shard-01/1"]
    assert status["missing_nodes"] == 1


def test_where_nothing_is_intact_health_and_predictions_say_so(serve: Serve, copied: Callable[[], Path]) -> None:
    run = copied()
    spoil(run, "*")
    served = serve(run)
    health = served.ask("GET", "/health")
    assert (health.status, health.json["offline"]) == (503, [0, 1])
    answer = served.predict("word")
    assert answer.status == 503
    assert "are damaged and no intact chain is left; run `s3t refresh`" in answer.error


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "/predict/", 404, None),
        ("POST", "/nowhere", 404, None),
        ("GET", "//predict", 404, None),
        ("GET", "/predict", 405, {"POST"}),
        ("DELETE", "/delete", 405, {"POST"}),
        ("POST", "/status", 405, {"GET", "HEAD"}),
        ("BREW", "/health", 405, {"GET", "HEAD"}),
    ],
)
def test_unknown_paths_and_wrong_methods(
    served: Served, method: str, path: str, status: int, allow: set[str] | None
) -> None:
    answer = served.ask(method, path, headers=BEARER)
    assert answer.status == status
    assert answer.error
    assert allow is None or set(answer.headers["allow"].split(", ")) == allow


def test_a_body_that_says_it_is_too_large_is_not_read(serve: Serve) -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    served = serve(limits=Limits(body=100))
    for length in (b"101", b"1" * 5000):
        answer = asyncio.run(exchange(served.app, "POST", "/predict", [(b"content-length", length)], receive))
        assert answer.status == 413
        assert "more than 100 bytes" in answer.error


def test_a_body_without_a_length_is_read_up_to_the_limit(serve: Serve) -> None:
    served, read = serve(limits=Limits(body=100)), []

    async def receive() -> Any:
        read.append(40)
        return {"type": "http.request", "body": b" " * 40, "more_body": True}

    assert asyncio.run(exchange(served.app, "POST", "/predict", [], receive)).status == 413
    assert sum(read) == 120
    exact = json.dumps({"inputs": ["word"]}).encode().ljust(100)
    assert served.ask("POST", "/predict", exact).status == 200
    assert served.ask("POST", "/predict", exact + b" ").status == 413


def test_a_slow_body_is_not_waited_for(serve: Serve) -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    served = serve(limits=Limits(seconds=0.05))
    answer = asyncio.run(exchange(served.app, "POST", "/predict", [], receive))
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert "within 0.05 s" in answer.error


def test_the_number_of_inputs_is_bounded(serve: Serve) -> None:
    served = serve(most=3)
    assert served.predict("a", "b", "c").json["n"] == 3
    answer = served.predict("a", "b", "c", "d")
    assert answer.status == 400
    assert "more than 3 rows" in answer.error


def test_more_than_may_wait_are_turned_away(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(limits=Limits(waiting=2))
    entered, go = threading.Semaphore(0), threading.Event()
    real = System.predict

    def slow(self: System, inputs: Any) -> Any:
        entered.release()
        assert go.wait(60)
        return real(self, inputs)

    monkeypatch.setattr(System, "predict", slow)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(served.predict("word").status)) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert entered.acquire(timeout=60)
    turned_away = served.predict("word")
    assert (turned_away.status, turned_away.headers["retry-after"]) == (503, "1")
    assert served.delete("r-00").status == 200, "deletions have places of their own"
    go.set()
    for thread in threads:
        thread.join()
    assert answers == [200, 200]
    assert served.predict("word").status == 200


def test_predictions_at_a_time_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served, now, most = serve(workers=2), [], []
    real = System.predict

    def counting(self: System, inputs: Any) -> Any:
        now.append(1)
        most.append(len(now))
        threading.Event().wait(0.05)
        now.pop()
        return real(self, inputs)

    monkeypatch.setattr(System, "predict", counting)
    threads = [threading.Thread(target=served.predict, args=("word",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (6, 2)


def test_a_fault_of_ours_is_told_without_its_text(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("secret words")

    monkeypatch.setattr(System, "predict", broken)
    answer = served.predict("secret words")
    assert answer.status == 500
    assert answer.error == "internal error; the service's log has the place"
    assert served.log[0].startswith("internal error: KeyError at ")
    assert "secret" not in "".join(served.log)


@pytest.mark.parametrize(
    "error", [BusyError("another process is writing to this run"), sqlite3.OperationalError("locked")]
)
def test_what_cannot_be_done_now_is_503(served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def busy(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(System, "delete", busy)
    answer = served.delete("r-00")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")


def test_a_status_does_not_wait_for_a_deletion(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()
    real = System.delete

    def slow(self: System, ids: Any) -> Any:
        entered.set()
        assert go.wait(60)
        return real(self, ids)

    monkeypatch.setattr(System, "delete", slow)
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(served.delete("r-00").status))
    thread.start()
    assert entered.wait(60)
    assert served.ask("GET", "/status", headers=BEARER).status == 200
    assert served.ask("GET", "/health").status == 200
    assert served.predict("word").status == 200
    go.set()
    thread.join()
    assert answers == [200]


def test_a_client_that_goes_away_does_no_harm(served: Served) -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    assert asyncio.run(exchange(served.app, "POST", "/predict", [], receive)).body == b""
    assert served.predict("word").status == 200


def test_the_access_log_has_neither_ids_nor_contents(served: Served) -> None:
    served.predict("some words")
    served.delete("r-00")
    served.ask("GET", "/delete/r-00?r-00")
    served.ask("R-00", "/predict")
    logged = [line.rsplit(" ", 2)[0] for line in served.log]
    assert logged == ["POST /predict 200", "POST /delete 200", "GET - 404", "- /predict 405"]


def test_an_ordinary_client(served: Served) -> None:
    with TestClient(served.app) as client:
        assert client.get("/health").json() == {"status": "serving"}
        assert client.post("/predict", json={"inputs": PROBE}).json() == served.predict(*PROBE).json
        assert client.post("/delete", json={"ids": ["r-01"]}).status_code == 401
        assert client.post("/delete", json={"ids": ["r-01"]}, headers=BEARER).json()["deleted"] == ["r-01"]


def test_closing_finishes_what_was_begun(copied: Callable[[], Path], tiny: Backbone) -> None:
    service = Service(copied(), backbone=tiny)
    head = head_of(service.run)
    ids = [json.dumps({"ids": [name]}).encode() for name in ("r-00", "r-01", "r-02")]
    waiting = [service.delete(body) for body in ids]
    service.close()
    service.close()
    assert [future.result()["deleted"] for future in waiting] == [("r-00",), ("r-01",), ("r-02",)]
    assert head_of(service.run) == head + 3


def test_a_run_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(Exception, match="there is no run"):
        Service(tmp_path / "none")
    assert threading.active_count() == before


def test_limits_are_checked() -> None:
    for name in ("body", "seconds", "waiting"):
        with pytest.raises(ServiceError, match=f"{name}=0 is no limit"):
            Limits(**{name: 0})
    with pytest.raises(ServiceError, match="seconds=nan"):
        Limits(seconds=float("nan"))


def test_long_texts_are_cut_as_everywhere(served: Served) -> None:
    assert served.predict("word " * 5000).status == 200
