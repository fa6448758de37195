"""Certificates: what an audit found about a run, signed and tied to the run's ledger and served tensors (level A).

:mod:`verify.attest.issue` writes them, :mod:`verify.attest.check` reads them on a machine without torch, without training
data and without any secret. Needs ``pip install 's3t[audit]'``.
"""

from __future__ import annotations

import importlib
from typing import Any

from s3t.errors import S3TError

PREDICATE = "https://s3t.dev/certificate/v1"
STATEMENT = "https://in-toto.io/Statement/v1"
PAYLOAD = "application/vnd.in-toto+json"


class AttestError(S3TError):
    """A certificate, key or report that cannot be read or written."""


class RefusedError(AttestError):
    """What was found must not be certified. Nothing was written."""

    exit_code = 1


def need(name: str) -> Any:
    """Import a module of the audit extra. AttestError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AttestError(f"certificates need {name.split('.')[0]} ({error}); pip install 's3t[audit]'") from error
