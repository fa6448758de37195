"""The signed file: an in-toto statement in RFC 8785 JSON inside a DSSE envelope, itself in RFC 8785 JSON and a newline.

One statement has exactly one file, so that a change of any byte is either a broken signature or a broken form.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verify.attest import PAYLOAD, AttestError, need

LARGEST = 1 << 28
"""Bytes of the largest file that is read as a certificate."""


@dataclass(frozen=True)
class Sealed:
    """A certificate as read. ``canonical``: the statement is in the form of RFC 8785."""

    envelope: Any
    keyid: str
    statement: dict[str, Any]
    canonical: bool

    def signed_by(self, key: Any) -> bool:
        """Say whether the signature is that of ``key``."""
        failure = need("securesystemslib.exceptions").VerificationError
        try:
            self.envelope.verify([key], 1)
        except failure:
            return False
        return True


def canonical(value: Any) -> bytes:
    """Return the RFC 8785 form. AttestError for what has none (NaN, integers beyond 2^53)."""
    try:
        encoded: bytes = need("rfc8785").dumps(value)
    except (ValueError, RecursionError) as error:
        raise AttestError(f"a value has no canonical JSON form ({error})") from error
    return encoded


def seal(statement: Mapping[str, Any], signer: Any) -> bytes:
    """Return the file that holds ``statement`` signed by ``signer``."""
    envelope = need("securesystemslib.dsse").Envelope(canonical(statement), PAYLOAD, {})
    envelope.sign(signer)
    return canonical(envelope.to_dict()) + b"\n"


def unseal(raw: bytes) -> Sealed:
    """Read a certificate file; the signature is not yet verified. AttestError if it has not exactly the form above."""
    if len(raw) > LARGEST:
        raise AttestError(f"a file of {len(raw)} bytes is no certificate; at most {LARGEST} are read")
    try:
        told = json.loads(raw)
        (signature,) = told["signatures"]
        if set(told) != {"payload", "payloadType", "signatures"} or set(signature) != {"keyid", "sig"}:
            raise ValueError("it has not the fields of a DSSE envelope with one signature")
        if told["payloadType"] != PAYLOAD:
            raise ValueError(f"its payload is {told['payloadType']!r}, not {PAYLOAD!r}")
        for text in (told["payload"], signature["sig"]):
            if base64.b64encode(base64.b64decode(text, validate=True)).decode() != text:
                raise ValueError("its base64 is not canonical")
        if canonical(told) + b"\n" != raw:
            raise ValueError("its bytes are not canonical: added, repeated or reordered content")
        keyid = str(signature["keyid"])
        payload = base64.b64decode(told["payload"])
        statement = json.loads(payload)
        if not isinstance(statement, dict):
            raise ValueError("its payload is no statement")
        envelope = need("securesystemslib.dsse").Envelope.from_dict(told)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise AttestError(
            f"this is not a certificate ({type(error).__name__}: {error}); it was damaged or edited"
        ) from error
    try:
        same = canonical(statement) == payload
    except AttestError:
        same = False
    return Sealed(envelope, keyid, statement, same)
