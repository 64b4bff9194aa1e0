"""Policies: which limits count for a task."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redisagg import AggregationConfig, Policy, Task
from redisagg.errors import InvalidConfig, KeyConflict
from redisagg.policies import Decision, Policies, check_pattern, precedence
from redisagg.protocol.entries import Encoder, LimitTexts

_CONFIG = AggregationConfig(group_grace_period=10, group_max_delay=20, group_max_size=30)
_POLICIES = Policies(
    {
        "*": Policy(priority=1),
        "digest:*": Policy(grace_period=1, max_size=5),
        "digest:*:eu": Policy(grace_period=2),
        "digest:vip": Policy(max_delay=timedelta(seconds=3), priority=9),
    }
)


def _limits(group: Any, **own: Any) -> str:
    """The limits of the section of a task, under policies."""
    encoded = Encoder(_CONFIG)(Task("t", None, group, **own))
    found = _POLICIES.limits_of(encoded.group)
    return LimitTexts(_CONFIG).under_policies(found, encoded.override).decode()


# --- the order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [{}, {"max_size": 7, "grace_period": 0.5, "priority": -8}], ids=str)
def test_without_policies_the_settings_count(own: dict[str, Any]) -> None:
    encoded = Encoder(_CONFIG)(Task("t", None, "g", **own))
    assert LimitTexts(_CONFIG).under_policies({}, encoded.override) == encoded.limits


def test_the_longest_pattern_comes_first_for_each_limit() -> None:
    assert _limits("other") == "10000 20000 30 1"
    assert _limits("digest:7") == "1000 20000 5 1"
    assert _limits(("digest", 7, "eu")) == "2000 20000 5 1"
    assert _limits("digest:vip") == "1000 3000 5 9"


def test_what_a_task_sets_comes_before_policies() -> None:
    own = {"grace_period": 0.5, "max_delay": 0.6, "max_size": 7, "max_bytes": 8, "priority": -8}
    assert _limits("digest:vip", **own) == "500 600 7 -8 max_bytes=8"
    assert _limits("digest:vip", max_size=7) == "1000 3000 7 9"


def test_a_task_that_sets_the_configured_value_keeps_it() -> None:
    assert _limits("digest:7", max_size=30) == "1000 20000 30 1"


def test_tasks_without_limits_of_their_own_override_nothing() -> None:
    encoded = Encoder(_CONFIG)(Task("t", None, "g", weight=3, options={"queue": "q"}, flush=True))
    assert encoded.override is None


def test_decisions_name_their_patterns() -> None:
    assert _POLICIES.decisions_of(b"digest:vip") == {
        "max_delay": Decision(3.0, "digest:vip"),
        "priority": Decision(9, "digest:vip"),
        "grace_period": Decision(1.0, "digest:*"),
        "max_size": Decision(5, "digest:*"),
    }


def test_a_policy_turns_off_what_the_settings_turn_on() -> None:
    config = AggregationConfig(
        group_max_bytes=9, group_max_weight=8, group_min_interval=7, group_leading=True
    )
    texts = LimitTexts(config)
    named = b" max_bytes=9 max_weight=8 min_interval=7000 leading=1"
    assert texts.under_policies({}, None) == b"120000 600000 20 0" + named
    off = Policies({"*": Policy(max_bytes=0, max_weight=0, min_interval=0)}).limits_of(b"g")
    assert texts.under_policies(off, None) == b"120000 600000 20 0"
    every = Policies({"*": Policy(min_interval=60)}).limits_of(b"g")
    assert texts.under_policies(every, None).endswith(b" min_interval=60000")


@pytest.mark.parametrize("order", [1, -1])
def test_patterns_of_equal_length_have_an_order(order: int) -> None:
    both = [("a*", Policy(max_size=1)), ("*b", Policy(max_size=2)), ("ab", Policy(max_bytes=3))]
    policies = Policies(dict(both[::order]))
    assert policies.limits_of(b"ab") == {"max_size": 2, "max_bytes": 3}
    assert sorted(["a*", "*b", "ab", "abc"], key=precedence) == ["abc", "ab", "*b", "a*"]


def test_the_length_of_a_pattern_is_that_of_its_bytes() -> None:
    assert precedence("ä*") < precedence("a*")


# --- patterns -------------------------------------------------------------------------------------


@given(st.text("ab*", min_size=1, max_size=6), st.text("ab*", max_size=8))
def test_a_star_stands_for_any_characters(pattern: str, group: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), group) is not None
    found = Policies({pattern: Policy(max_size=7)}).limits_of(group.encode())
    assert found == ({"max_size": 7} if expected else {})


@pytest.mark.parametrize(("pattern", "group"), [("a[bc]", "ab"), ("a?", "ab"), ("a.*", "ab")])
def test_nothing_else_is_special(pattern: str, group: str) -> None:
    policies = Policies({pattern: Policy(max_size=7)})
    assert not policies.limits_of(group.encode())
    assert policies.limits_of(pattern.encode())


def test_a_pattern_with_many_stars_is_quick() -> None:
    policies = Policies({"*a" * 250 + "b": Policy(max_size=7)})
    assert not policies.limits_of(b"a" * 512)


@pytest.mark.parametrize("pattern", ["", "x" * 513, "\ud800", 7, None, b"digest:*"])
def test_what_is_no_pattern_is_refused(pattern: object) -> None:
    with pytest.raises(InvalidConfig, match="a pattern must be"):
        check_pattern(pattern)
    assert check_pattern("digest:*") == "digest:*"


@pytest.mark.parametrize("pattern", ["a?", "a[bc]", "a**", "]"])
def test_unknown_forms_of_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidConfig, match="form that policies do not know"):
        check_pattern(pattern)


# --- the stored form ------------------------------------------------------------------------------


@given(
    st.builds(
        Policy,
        grace_period=st.floats(0.001, 1e6),
        max_delay=st.none() | st.floats(0.001, 1e6),
        max_size=st.none() | st.integers(1, 1_000_000),
        max_bytes=st.none() | st.integers(0, 2**40),
        max_weight=st.none() | st.integers(0, 2**50),
        min_interval=st.floats(0.001, 1e6),
        leading=st.none() | st.booleans(),
        priority=st.none() | st.integers(-1000, 1000),
    )
)
def test_a_stored_policy_comes_back(policy: Policy) -> None:
    assert Policy.from_stored(policy.stored()) == policy


def test_the_stored_form_is_json() -> None:
    assert Policy(grace_period=60, max_size=5).stored() == b'{"grace_period":60.0,"max_size":5}'


def test_limits_of_a_later_release_are_left_out() -> None:
    assert Policy.from_stored(b'{"max_size":5,"max_stars":7}') == Policy(max_size=5)
    assert Policy.from_stored(b'{"max_stars":7}') is None


@pytest.mark.parametrize("stored", [b"", b"7", b"[]", b"\xff", b'{"max_size":0}', b"[" * 10**5])
def test_what_is_no_policy_is_refused(stored: bytes) -> None:
    with pytest.raises(KeyConflict, match="policy"):
        Policy.from_stored(stored)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"grace_period": 0},
        {"max_delay": "1"},
        {"max_size": 0},
        {"max_bytes": -1},
        {"max_weight": 2**51},
        {"min_interval": -1},
        {"priority": 1001},
        {"leading": True},
        {"leading": False, "min_interval": 0},
        {"leading": 1, "min_interval": 5},
    ],
    ids=str,
)
def test_bad_limits_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(limits), "without limits")):
        Policy(**limits)
