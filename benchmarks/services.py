"""``s3t serve`` in a process of its own, and a client that keeps its connection."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from s3t.records import Inputs

MODULE = ("-m", "s3t")
WAIT = 600.0
"""Seconds that an answer may take: an eager method retrains within a deletion."""


class Listening:
    """A service on a free port of this machine; a context manager that stops it. ``how``: what Python is called with."""

    def __init__(self, run: Path, options: Sequence[str] = (), how: Sequence[str] = MODULE) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, *how, "serve", str(run), "--port", "0", "--json", *options]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=env, **pipes)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the service did not start: {self.process.communicate()[1]}")
        self.said: dict[str, Any] = json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()

    @property
    def token(self) -> str:
        """The token, from its file."""
        return Path(self.said["token_file"]).read_text().strip()

    def client(self) -> Client:
        """Return a client with a connection of its own."""
        return Client(self.said["port"])


class Client:
    """A connection that is kept; of one thread."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ask(self, method: str, path: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        """Send one request; return status and JSON."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def need(self, path: str, body: Any, token: str = "") -> Any:
        """Post a body and return the JSON of the answer. RuntimeError unless it is 200."""
        status, said = self.ask("POST", path, body, token)
        if status != 200:
            raise RuntimeError(f"{status}: {said['error']}")
        return said


def as_json(inputs: Inputs) -> dict[str, str]:
    """Return a record's inputs as the service reads them: images in base64."""
    return {n: base64.b64encode(v).decode() if isinstance(v, bytes) else v for n, v in inputs.items()}
