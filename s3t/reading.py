"""JSON from outside: files that others may have written or damaged."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return what JSON ``text`` from outside says. ValueError for what is none, nested too deeply for the parser included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
