"""When a refresh is due: policies on every kind of standing, and what is no policy."""

from __future__ import annotations

import itertools

import pytest

from s3t.errors import ServiceError
from s3t.refreshing import NEVER, Policy, Standing, due

WHOLE = Standing((3, 3), offline=0, missing=False, since=1e9)
CUT = Standing((3, 2), offline=0, missing=True, since=100.0)
SHORT = Standing((1, 3), offline=0, missing=True, since=100.0)
ONE_DEAD = Standing((3,), offline=1, missing=True, since=100.0)
DEAD = Standing((), offline=2, missing=True, since=100.0)
EMPTY = Standing((3,), offline=0, missing=False, since=1e9)
"""A shard of which every record is gone."""


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("never", []),
        ("when-dead", [ONE_DEAD, DEAD]),
        ("below:1", [ONE_DEAD, DEAD]),
        ("below:2", [SHORT, ONE_DEAD, DEAD]),
        ("below:3", [CUT, SHORT, ONE_DEAD, DEAD]),
        ("every:100s", [CUT, SHORT, ONE_DEAD, DEAD]),
        ("every:101s", []),
        ("every:2m", []),
        ("every:1m", [CUT, SHORT, ONE_DEAD, DEAD]),
    ],
)
def test_what_is_due(policy: str, wanted: list[Standing]) -> None:
    everything = [WHOLE, CUT, SHORT, ONE_DEAD, DEAD, EMPTY]
    assert [stands for stands in everything if due(Policy.of(policy), stands)] == wanted


def test_nothing_is_due_where_nothing_is_missing() -> None:
    for lengths, offline in itertools.product([(), (1,), (1, 2), (3, 3)], [0, 1, 2]):
        stands = Standing(lengths, offline, missing=False, since=1e12)
        assert not any(due(Policy.of(text), stands) for text in ("never", "when-dead", "below:3", "every:1s"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("6h", 21600), ("1d", 86400), ("10d", 864000)]
)
def test_times(text: str, seconds: int) -> None:
    policy = Policy.of(f"every:{text}")
    assert (policy.every, policy.below, policy.name) == (seconds, 0, f"every:{text}")
    assert due(policy, Standing((3, 2), 0, True, seconds))
    assert not due(policy, Standing((3, 2), 0, True, seconds - 0.001))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "Never",
            "when-dead ",
            "whendead",
            "below",
            "below:",
            "below:0",
            "below:-1",
            "below:1.5",
            "below:01",
            "below:x",
        ),
        *("below:٣", "below:9999999999", "every", "every:", "every:6", "every:0h", "every:h", "every:1.5h", "every:6H"),
        *("every:1w", "every:-1d", "every:1d12h", "every:9999999999d", "never\n", "when-dead:1"),
    ],
)
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(ServiceError, match=r"is no policy; give never, when-dead, below:K .* or every:T") as caught:
        Policy.of(text)
    assert repr(text) in str(caught.value)


def test_more_stages_than_there_are_slices() -> None:
    assert Policy.of("below:3", 3).below == 3
    with pytest.raises(ServiceError, match=r"'below:4' is not possible: the run has 3 slices; give below:1\.\.3"):
        Policy.of("below:4", 3)
    assert Policy.of("never") == NEVER
