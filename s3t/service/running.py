"""What listens: a socket, uvicorn over it, and a stop that finishes what runs."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from s3t.errors import ServiceError

STOPS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, on any free port for ``port`` 0. ServiceError if that is not possible."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, proto)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(128)
        except BaseException:
            found.close()
            raise
        return found
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServiceError(f"{host}:{port} cannot be listened on ({error}); give another --host or --port") from error


def url_of(bound: socket.socket) -> str:
    """Return the address that a socket listens on, as a URL."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn, with the signals left to :func:`stopping`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server_of(app: ASGIApp, connections: int) -> uvicorn.Server:
    """Return a server for ``app`` that logs no request and holds at most so many ``connections``."""
    how: dict[str, Any] = {"http": "h11", "ws": "none", "loop": "asyncio", "lifespan": "off", "log_config": None}
    how |= {"log_level": "error", "access_log": False, "server_header": False, "proxy_headers": False}
    return _Server(uvicorn.Config(app, limit_concurrency=connections, **how))


@contextmanager
def stopping(server: uvicorn.Server) -> Iterator[None]:
    """While the body runs, the first signal has the server finish what runs; the second ends the process at once.

    Nothing acknowledged is lost by that: the next to open the run completes what was cut short.
    """

    def stop(number: int, _: object) -> None:
        if server.should_exit:
            os._exit(128 + number)
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
