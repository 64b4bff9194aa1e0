"""The clock of tests in the texts of the scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from redisagg.protocol.scripts import Script, _folder, load
from redisagg.testing.clock import Clock, MovedEndpoint, _moved
from redisagg.transport.endpoint import Endpoint, endpoint_of
from redisagg.transport.round_trip import RULES, round_trip, rules_of
from redisagg.transport.threads import Transport

SCRIPTS = sorted(path.stem for path in _folder().glob("*.lua"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_that_asks_for_the_time_is_sent_with_another_clock(name: str) -> None:
    script = load(name)
    moved = _moved(script)
    if b"clock()" in script.source:
        assert moved is not None
        assert moved.sha != script.sha
        assert moved.source.count(b"clock_shift") == 2
    else:
        assert moved is None


def test_a_clock_that_is_not_known_is_an_error() -> None:
    source = load("now").source.replace(b"1000 +", b"1000  +")
    with pytest.raises(AssertionError, match="another clock"):
        _moved(Script.of("now", source))


def test_only_the_clients_of_a_moved_endpoint_have_other_rules() -> None:
    plain = endpoint_of("redis://localhost:1/0")
    assert type(plain) is Endpoint
    for client in (plain.blocking(), plain.asyncio()):
        assert rules_of(client) is round_trip
        assert not hasattr(client, RULES)
    assert Transport(plain.blocking(), 1)._rules is round_trip
    clock = Clock()
    moved = MovedEndpoint.of(plain, clock).answering_within(1)
    assert Transport(moved.blocking(), 1)._rules == clock.round_trip


def test_production_code_does_not_import_the_clock_of_tests(tmp_path: Path) -> None:
    code = "import redisagg, sys; sys.exit('redisagg.testing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
