"""Streams of deletion requests: the same for simulation and for real systems. No torch.

``make_stream("zipf:1.2")`` makes one from text; ``stream.requests(population, rng, view)`` yields requests as tuples of
record numbers, one by one (:func:`named` turns them into ids); ``stream.demand(population)`` says where independent
requests fall; :func:`s3t.capacity.simulate_stream` simulates any of them.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from s3t.errors import DataError, S3TError, did_you_mean
from s3t.streams.attacks import Adaptive, WorstCase
from s3t.streams.base import Block, Request, Stream, View, distinct, named
from s3t.streams.correlated import Bursty, ByUser, Drift
from s3t.streams.files import FromFile, read_requests
from s3t.streams.independent import Exponential, Pareto, Uniform, Weighted, Zipf
from s3t.streams.population import Population

__all__ = [
    "STREAMS",
    "Adaptive",
    "Block",
    "Bursty",
    "ByUser",
    "Drift",
    "Exponential",
    "FromFile",
    "Pareto",
    "Population",
    "Request",
    "Stream",
    "Uniform",
    "View",
    "Weighted",
    "WorstCase",
    "Zipf",
    "distinct",
    "make_stream",
    "named",
    "read_requests",
]

STREAMS: dict[str, type[Stream]] = {
    "uniform": Uniform,
    "exponential": Exponential,
    "pareto": Pareto,
    "zipf": Zipf,
    "bursty": Bursty,
    "by-user": ByUser,
    "drift": Drift,
    "worst": WorstCase,
    "adaptive": Adaptive,
    "file": FromFile,
}
"""Every stream by the name that :func:`make_stream` knows it by."""

_TRUTH = {"true": True, "false": False}


def make_stream(text: str) -> Stream:
    """Return the stream that ``text`` describes: its name, then perhaps ``:`` and values parted by commas.

    A value is ``field=value``, or bare for the stream's main field, or a bare name of a field that is true or false:
    ``uniform``, ``uniform:once``, ``zipf:1.2``, ``pareto:shape=1.5,seed=3,once``, ``bursty:50``, ``file:requests.csv``,
    ``drift:2000,start=zipf:1.2,end=exponential``. Raises DataError for an unknown name or field or a wrong value.
    """
    name, _, rest = text.partition(":")
    kind = STREAMS.get(name.strip())
    if kind is None:
        raise DataError(f"stream {name!r} is unknown{did_you_mean(name, STREAMS)}; choose from {', '.join(STREAMS)}")
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    values = [rest] if kind is FromFile and rest else [part.strip() for part in rest.split(",") if part.strip()]
    for value in values:
        key, equals, told = value.partition("=")
        if kind is FromFile:
            key, told = "path", value
        elif not equals:
            key, told = (value, "true") if value in known else (kind.main, value)
        if key not in known:
            raise DataError(
                f"{value!r} does not fit stream {name!r}{did_you_mean(key, known)}; its values: {', '.join(known) or 'none'}"
            )
        if key in given:
            raise DataError(f"{key!r} is given twice in stream {text!r}: give it once")
        given[key] = _parse(str(known[key].type), told, value, text)
    missing = [key for key, one in known.items() if one.default is one.default_factory is MISSING and key not in given]
    if missing:
        raise DataError(f"stream {text!r} lacks {', '.join(missing)}: give {name}:{missing[0].upper()}")
    try:
        return kind(**given)
    except S3TError as error:
        raise DataError(f"stream {text!r} is not possible: {error}") from error


def _parse(kind: str, told: str, value: str, text: str) -> Any:
    try:
        if kind == "Stream":
            return make_stream(told)
        return {"bool": lambda: _TRUTH[told], "int": lambda: int(told), "float": lambda: float(told)}.get(
            kind, lambda: told
        )()
    except (ValueError, KeyError) as error:
        raise DataError(f"{value!r} in stream {text!r} is no {kind}: give one") from error
