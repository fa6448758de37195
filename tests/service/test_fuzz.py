"""Requests of every bad kind: never a 500, never a traceback, and no deletion but those that were asked for with the token."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from serving_http import IDS, TOKEN, Answer, Headers, Served, exchange, pieces

from s3t.service.app import METHODS, PATHS, Limits

MOST = 2000
VALID = range(200, 300)
WORDS = ("word", "", " ", "\x00", "\ud800", "é\U0001f600", "r-00", "inputs", "1e999", "x" * 300, "../run", "\x1f")


def _json(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(9 if depth < 4 else 6)
    if kind < 6:
        return (None, True, draw.randrange(-(10**6), 10**6), draw.uniform(-9, 9), draw.choice(WORDS), 10**400)[kind]
    some = range(draw.randrange(4))
    if kind == 6:
        names = draw.choices(("inputs", "ids", "groups", "text", "image", "text_pair", *WORDS), k=len(some))
        return {name: _json(draw, depth + 1) for name in names}
    return [_json(draw, depth + 1) for _ in some]


def _good(draw: random.Random, path: str) -> Any:
    if path == "/delete":
        return {"ids": draw.sample([*IDS[:40], *["nobody", "held-out"] * 5], draw.randrange(1, 3))}
    return {
        "inputs": [draw.choice(("a word", {"text": "two", "text_pair": "three"})) for _ in range(draw.randrange(1, 4))]
    }


def _body(draw: random.Random, path: str) -> bytes:
    kind = draw.randrange(10)
    if kind == 0:
        return draw.randbytes(draw.randrange(200))
    if kind == 1:
        return json.dumps(_json(draw)).encode()
    if kind == 2:
        name = draw.choice(("inputs", "ids", "groups"))
        return json.dumps({name: [_json(draw) for _ in range(draw.randrange(4))]}).encode()
    if kind == 3:
        return draw.choice((b"[", b'{"ids":', b'[{"inputs":')) * draw.choice((1, 50, 600))
    if kind == 4:
        return b'{"%s": %s}' % (draw.choice((b"inputs", b"ids")), draw.choice((b"NaN", b"1e999", b"-Infinity", b"01")))
    good = bytearray(json.dumps(_good(draw, path)).encode())
    if kind == 5:
        for _ in range(draw.randrange(1, 4)):
            good[draw.randrange(len(good))] = draw.randrange(256)
    if kind == 6:
        cut = draw.randrange(len(good))
        good[cut:] = good[: draw.randrange(len(good))]
    return bytes(good)


def _headers(draw: random.Random, body: bytes) -> Headers:
    given = []
    if draw.random() < 0.8:
        wrong = (b"", b"Bearer", b"Bearer x", b"Bearer \xff\x00", b"Basic " + TOKEN.encode(), draw.randbytes(9))
        token = b"Bearer " + TOKEN.encode()
        given.append((b"authorization", token if draw.random() < 0.7 else draw.choice(wrong)))
    if draw.random() < 0.5:
        lengths = (b"%d" % len(body), b"-1", b"\xb2", b"1e9", b"", b"9" * 40, b"%d" % (MOST + 1), draw.randbytes(3))
        given.append((b"content-length", draw.choice(lengths)))
    if draw.random() < 0.3:
        odd = (b"content-type", b"content-encoding", b"host", b"x-forwarded-for", b"expect", b"upgrade", b"cookie")
        given.append((draw.choice(odd), draw.randbytes(draw.randrange(40))))
    return given


def _check(answer: Answer, body: bytes) -> None:
    assert answer.status in VALID or 400 <= answer.status < 500 or answer.status == 503, (answer, body)
    said = answer.body.decode()
    assert "Traceback" not in said and 'File "' not in said and TOKEN not in said, (answer, body)
    if answer.status not in VALID and answer.body:
        line = json.loads(said)["error"]
        assert line.strip() and "\n" not in line, (answer, body)


async def _case(served: Served, draw: random.Random) -> tuple[str, int]:
    path = draw.choice((*PATHS, *PATHS[:2] * 3, "/" + draw.choice(WORDS), draw.choice(PATHS) + "/"))
    usual = "POST" if path in PATHS[:2] else "GET"
    method = usual if draw.random() < 0.85 else draw.choice((*METHODS, "BREW", "\x7f"))
    body = _body(draw, path)
    headers, before = _headers(draw, body), served.head()
    answer = await exchange(served.app, method, path, headers, pieces(body, draw.randrange(1, 400)))
    if method == "HEAD":
        answer = Answer(answer.status, answer.headers, b"")
    _check(answer, body)
    named = path if path in PATHS else "other"
    allowed = (b"authorization", b"Bearer " + TOKEN.encode()) in headers
    asked = method == "POST" and path == "/delete" and allowed and answer.status == 200
    if served.head() != before:
        assert asked and answer.json["deleted"], (method, path, headers, body, answer)
    elif asked:
        assert not answer.json["deleted"], "what is acknowledged is on record"
    if path in ("/delete", "/status") and answer.status in VALID:
        assert allowed, (method, path, headers)
    return named, answer.status


def _fuzz(served: Served, seed: int, cases: int) -> Counter[tuple[str, int]]:
    async def all_of_them() -> Counter[tuple[str, int]]:
        draw = random.Random(seed)
        return Counter([await _case(served, draw) for _ in range(cases)])

    return asyncio.run(all_of_them())


def _seen(counted: Counter[tuple[str, int]], served: Served) -> None:
    """Every kind of answer was met, and nobody logged a fault or more than names."""
    kinds = {
        ("/predict", 200),
        ("/predict", 400),
        ("/predict", 405),
        ("/predict", 413),
        ("/delete", 200),
        ("/delete", 400),
    }
    kinds |= {("/delete", 401), ("/delete", 404), ("/status", 200), ("/status", 401), ("/health", 200), ("other", 404)}
    assert kinds <= counted.keys(), counted
    assert len(served.log) == counted.total()
    assert not [line for line in served.log if "internal error" in line or TOKEN in line or "r-" in line]


def test_four_hundred_requests(serve: Callable[..., Served]) -> None:
    served = serve(limits=Limits(body=MOST))
    _seen(_fuzz(served, 1, 400), served)


@pytest.mark.slow
def test_twenty_thousand_requests(serve: Callable[..., Served]) -> None:
    served = serve(limits=Limits(body=MOST))
    _seen(_fuzz(served, 2, 20_000), served)
    assert served.predict("word").status in (200, 503)
