"""The ASGI application: four paths over a :class:`s3t.service.working.Service`. Every answer is one JSON object.

``{"error": LINE}`` says what is wrong, with which value, and what to do; no answer has a traceback. Nothing is logged but
the method, the path's name, the status and the time, and that only on request; never ids, contents or the token.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s3t.errors import DataError, RecordError, S3TError, ServiceError
from s3t.service.tokens import Token
from s3t.service.working import Service, Work

PATHS = ("/predict", "/delete", "/status", "/health")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
STATUS = ((DataError, 400), (RecordError, 404), (S3TError, 503))
"""The status of an error: what is asked is wrong, names what is not here, or cannot be done now."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """``body``: most bytes of one; ``seconds``: for it to arrive; ``waiting``: predictions begun and not answered, and as many
    deletions. ServiceError for one that is not positive."""

    body: int = 2**20
    seconds: float = 10.0
    waiting: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ServiceError(f"{field.name}={getattr(self, field.name)} is no limit; give a number above 0")


class Endpoints:
    """What the paths do."""

    def __init__(self, service: Service, token: Token, limits: Limits, log: Log) -> None:
        self._service, self._token, self._limits, self._log = service, token, limits, log
        self._predictions, self._deletions = (threading.BoundedSemaphore(limits.waiting) for _ in range(2))

    async def predict(self, request: Request) -> Response:
        """Answer inputs."""
        return await self._posted(request, self._service.predict, self._predictions)

    async def delete(self, request: Request) -> Response:
        """Delete records; only with the token."""
        self._authorise(request)
        return await self._posted(request, self._service.delete, self._deletions)

    async def status(self, request: Request) -> Response:
        """Say how the run stands; only with the token, for what it counts is the operator's business."""
        self._authorise(request)
        return JSONResponse(await asyncio.wrap_future(self._service.status()))

    async def health(self, request: Request) -> Response:
        """Say whether predictions are answered."""
        offline = await asyncio.wrap_future(self._service.dead())
        if offline:
            return JSONResponse({"error": "every shard is offline; run a refresh", "offline": offline}, 503)
        return JSONResponse({"status": "serving"})

    def answering(self, work: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Return ``work`` with every error as an answer."""

        async def answer(request: Request) -> Response:
            try:
                return await work(request)
            except HTTPException:
                raise
            except ClientDisconnect:
                return Response(status_code=400)  # nobody is there to read it
            except S3TError as error:
                status = next(status for kind, status in STATUS if isinstance(error, kind))
                return _refusal(status, " ".join(str(error).split()), {"Retry-After": "5"} if status == 503 else {})
            except sqlite3.OperationalError:  # a reader that waited too long for a writer
                return _refusal(503, "the run's ledger is busy; try again", {"Retry-After": "5"})
            except Exception as error:  # a fault of ours: told without its text, which may have contents in it
                frame = traceback.extract_tb(error.__traceback__)[-1]
                self._log(f"internal error: {type(error).__name__} at {frame.filename}:{frame.lineno}")
                return _refusal(500, "internal error; the service's log has the place")

        return answer

    def _authorise(self, request: Request) -> None:
        if not self._token.allows(request.headers.get("authorization", "")):
            raise HTTPException(401, "unauthorized", {"WWW-Authenticate": "Bearer"})

    async def _posted(self, request: Request, work: Work, places: threading.BoundedSemaphore) -> Response:
        with _place(places):
            body = await self._body(request)
            return JSONResponse(await asyncio.wrap_future(work(body)))

    async def _body(self, request: Request) -> bytes:
        """Return the whole body. 413 if it is too large, unread if it says so itself; 408 if it takes too long."""
        most, declared = self._limits.body, request.headers.get("content-length", "").strip()
        too_large = HTTPException(413, f"the body has more than {most} bytes; send fewer inputs, or raise --max-body")
        if declared.isascii() and declared.isdecimal() and (len(declared) > 18 or int(declared) > most):
            raise too_large
        found = bytearray()
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for piece in request.stream():
                    found += piece
                    if len(found) > most:
                        raise too_large
        except TimeoutError:
            why = f"the body did not arrive within {self._limits.seconds:g} s; send it at once"
            raise HTTPException(408, why, {"Connection": "close"}) from None
        return bytes(found)


@contextmanager
def _place(places: threading.BoundedSemaphore) -> Iterator[None]:
    if not places.acquire(blocking=False):
        raise HTTPException(503, "too many requests are waiting; try again", {"Retry-After": "1"})
    try:
        yield
    finally:
        places.release()


def _refusal(status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": line}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    """Answer what endpoints and routing refuse: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    lines = {
        404: f"there is no such path; known are {', '.join(PATHS)}",
        405: "this path has another method, see Allow",
    }
    headers = dict(error.headers or {})
    return _refusal(error.status_code, lines.get(error.status_code, str(error.detail)), headers)


class AccessLog:
    """Logs each request by the names that are known here; anything else of it is a dash."""

    def __init__(self, app: ASGIApp, log: Log) -> None:
        self._app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and log how it ended."""
        began, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            path, method = scope.get("path"), scope.get("method")
            known = f"{method if method in METHODS else '-'} {path if path in PATHS else '-'}"
            self._log(f"{known} {status} {1000 * (time.monotonic() - began):.0f} ms")


def application(
    service: Service, token: Token, limits: Limits | None = None, *, log: Log | None = None, access: Log | None = None
) -> ASGIApp:
    """Return the application. ``log`` gets a line for each fault of ours, ``access`` one for each request."""
    ends = Endpoints(service, token, limits or Limits(), log or (lambda line: None))
    works: dict[str, tuple[str, Any]] = {
        "/predict": ("POST", ends.predict),
        "/delete": ("POST", ends.delete),
        "/status": ("GET", ends.status),
        "/health": ("GET", ends.health),
    }
    routes = [Route(path, ends.answering(work), methods=[method]) for path, (method, work) in works.items()]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})
    app.router.redirect_slashes = False
    return app if access is None else AccessLog(app, access)
