"""S3T: exact machine unlearning with parameter-efficient fine-tuning (arXiv 2406.16257).

Importing this package imports neither torch nor peft; ``S3T`` is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from s3t import errors
from s3t.records import Dataset, Layout, Recipe, Record

if TYPE_CHECKING:
    from s3t.method import S3T
    from s3t.system import System

__version__ = "0.1.0"
__all__ = ["S3T", "Dataset", "Layout", "Recipe", "Record", "System", "errors"]


def __getattr__(name: str) -> Any:
    if name in ("S3T", "System"):
        from s3t import method

        return getattr(method, name)
    if name in ("capacity", "data", "orders"):
        return importlib.import_module(f"s3t.{name}")
    raise AttributeError(f"module 's3t' has no attribute {name!r}")
