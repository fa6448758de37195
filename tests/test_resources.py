"""What a build may use: ranges, and what does not go together."""

from __future__ import annotations

from typing import Any

import pytest

from s3t.errors import RecipeError
from s3t.resources import Resources


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache_gb": -1.0}, "cache_gb=-1.0"),
        ({"cache_gb": float("nan")}, "cache_gb=nan"),
        ({"workers": 0}, "workers=0 is not possible: give a whole number of at least 1"),
        ({"workers": 1.5}, "workers=1.5"),
        ({"workers": None}, "workers=None"),
        ({"workers": 2, "threads": 0}, "threads=0"),
        ({"workers": 2, "retries": -1}, "retries=-1 is not possible: give a whole number of at least 0"),
        ({"executor": "rey"}, r"executor='rey' is unknown \(did you mean 'ray'\?\); choose from processes, ray"),
        ({"executor": "ray", "gpus": -0.5}, "gpus=-0.5"),
        ({"executor": "ray", "gpus": float("nan")}, "gpus=nan"),
        ({"workers": 2, "gpus": 0.5}, "address and gpus are for Ray; give executor=ray"),
        ({"address": "auto"}, "address and gpus are for Ray"),
        ({"threads": 2}, "threads are those of each worker"),
    ],
)
def test_impossible_resources(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Resources(**given)


def test_groups_have_no_workers() -> None:
    Resources(workers=2).check("fast-2:float32:graphs")
    Resources().check("fast-2:float32:grouped")
    for resources in (Resources(workers=2), Resources(executor="ray")):
        with pytest.raises(RecipeError, match="engine=grouped trains nodes together in one process; leave out workers"):
            resources.check("fast-2:float32:grouped")
