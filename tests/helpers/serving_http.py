"""What tests of the service share: the records of its run, and how it is asked."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from s3t.partition import slot
from s3t.records import Layout, Recipe, Record, grouped
from s3t.service.working import Service
from s3t.system import System

KEY = bytes(32)
LAYOUT = Layout(2, 3, 3)
RECIPE = Recipe(rank=2, epochs=1, batch_size=8)
ALICE = [grouped("alice", f"n{i}") for i in range(4)]
IDS = [*(f"r-{i:02d}" for i in range(56)), *ALICE]
RECORDS = [Record(name, {"text": f"word{i} of text{i % 5} and more{i % 7}"}, i % 3) for i, name in enumerate(IDS)]
PROBE = [f"is word{i} of text{i}" + " too" * (i % 3) for i in range(5)]
TOKEN = "a-token-of-the-tests-0123456789"
BEARER = {"authorization": f"Bearer {TOKEN}"}
Headers = Sequence[tuple[bytes, bytes]]


def placed(shard: int, piece: int) -> list[str]:
    """Return the ids of a slot."""
    return [name for name in IDS if slot(KEY, name, LAYOUT) == (shard, piece)]


def spoil(run: Path, *patterns: str) -> None:
    """Damage the heads of the nodes whose names match (``shard-00/*``)."""
    with closing(System.open(run)) as system:
        system.status()
        for fact in system._opened()[1].alive.values():
            if any(fnmatchcase(fact.node.name, pattern) for pattern in patterns):
                (run / "nodes" / fact.key / "head.safetensors").write_bytes(b"damaged")


@dataclass(frozen=True)
class Answer:
    """An answer: status, headers with names in lower case, and the bytes of the body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line that says what is wrong; there is nothing else."""
        assert list(self.json) == ["error"]
        assert "\n" not in self.json["error"]
        return str(self.json["error"])


async def exchange(app: ASGIApp, method: str, path: str, headers: Headers, receive: Callable[[], Any]) -> Answer:
    """Send one request as a server would hand it on, and return the answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(errors="replace"), "query_string": b"", "root_path": ""}
    await app({**scope, "headers": list(headers), "client": None, "server": None}, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}, body)


def pieces(body: bytes, size: int = 1 << 16) -> Callable[[], Any]:
    """Return what receives ``body``, ``size`` bytes at a time."""
    left = [body[i : i + size] for i in range(0, len(body), size)] or [b""]

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


@dataclass(frozen=True)
class Served:
    """A service, its application, and what it has logged."""

    run: Path
    service: Service
    app: ASGIApp
    log: list[str]

    def ask(self, method: str, path: str, body: Any = b"", headers: dict[str, str] | None = None) -> Answer:
        """Send one request; a body that is no bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        return asyncio.run(exchange(self.app, method, path, named, pieces(content)))

    def predict(self, *inputs: Any) -> Answer:
        """Ask for a prediction of texts or objects."""
        return self.ask("POST", "/predict", {"inputs": list(inputs)})

    def delete(self, *ids: str, **fields: Any) -> Answer:
        """Delete, with the token."""
        return self.ask("POST", "/delete", ({"ids": ids} if ids else {}) | fields, BEARER)

    def status(self) -> dict[str, Any]:
        """Return what the service says of itself, asked with the token."""
        answer = self.ask("GET", "/status", headers=BEARER)
        assert answer.status == 200, (answer.error, self.log)
        return dict(answer.json)

    def refreshes(self) -> dict[str, Any]:
        """Return what the service says of its refreshes."""
        return dict(self.status()["refresh"])

    def head(self) -> int:
        """Return how far the run's ledger has got."""
        return head_of(self.run)


def head_of(run: Path) -> int:
    """Return how far a run's ledger has got, as it is on disk."""
    db = sqlite3.connect(run / "ledger.sqlite")
    try:
        return int(db.execute("SELECT max(seq) FROM entries").fetchone()[0])
    finally:
        db.close()
