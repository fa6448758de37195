"""The command that serves a run over HTTP."""

from __future__ import annotations

import ipaddress
import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.options import Json, Run
from s3t.errors import ServiceError


def serve(
    run: Run,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine put a proxy with TLS before it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token for deletions; made if missing (RUN.token).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Predictions at a time.")] = 2,
    max_inputs: Annotated[int, typer.Option(min=1, help="Rows per prediction.")] = 256,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request's body.")] = 2**20,
    max_waiting: Annotated[int, typer.Option(min=1, help="Predictions, and deletions, that wait at a time.")] = 64,
    body_seconds: Annotated[float, typer.Option(help="Seconds in which a request's body must arrive.")] = 10.0,
    refresh: Annotated[
        str, typer.Option(help="When to rebuild beside the service: never, when-dead, below:K or every:T (6h, 1d).")
    ] = "never",
    refresh_threads: Annotated[
        int | None, typer.Option(help="Threads of a refresh; by default as many as the run was trained on.")
    ] = None,
    refresh_rest: Annotated[float, typer.Option(help="Seconds between the starts of two refreshes, at least.")] = 60.0,
    access_log: Annotated[bool, typer.Option("--access-log", help="A line on stderr for each request.")] = False,
    as_json: Json = False,
) -> None:
    """Answer predictions and deletions over HTTP, until a signal; what runs is finished (docs/SERVICE.md)."""
    try:
        from s3t.service.app import Limits, application
        from s3t.service.running import listen, server_of, stopping, url_of
    except ImportError as error:
        raise ServiceError(f"serving needs {(error.name or '').partition('.')[0]}; pip install 's3t[serve]'") from error
    from s3t.refreshing import Policy
    from s3t.service.refresher import Refreshing
    from s3t.service.tokens import default_path, read_token
    from s3t.service.working import Service

    def log(line: str) -> None:
        typer.echo(line, err=True)

    limits = Limits(max_body, body_seconds, max_waiting)
    refreshing = Refreshing(Policy.of(refresh), refresh_rest, refresh_threads, log)
    with (
        closing(listen(host, port)) as bound,
        closing(Service(run, workers=workers, most=max_inputs, refreshing=refreshing)) as service,
    ):
        path = token_file or default_path(run)
        app = application(service, read_token(path, run), limits, log=log, access=log if access_log else None)
        server = server_of(app, connections=4 * max_waiting)
        if not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
            log(
                "others can reach this address, and what they send can be read on the way: put a proxy with TLS before it"
            )
        with stopping(server):
            said = {"url": url_of(bound), "port": bound.getsockname()[1], "token_file": str(path)}
            text = f"serving {run} at {said['url']}; the token for deletions is in {path}"
            typer.echo(json.dumps(said) if as_json else text)  # flushed, so that whoever waits for it may ask
            server.run([bound])
            service.close()
