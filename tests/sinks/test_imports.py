"""The exports of `redisagg.sinks`, and what an import of them imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from redisagg import sinks
from redisagg.sinks.urls import _BUILT_IN

PROGRAM = """
import sys
import redisagg

before = set(sys.modules)
import redisagg.sinks

for name in redisagg.sinks.__all__:
    assert getattr(redisagg.sinks, name).__name__ == name
added = set(sys.modules) - before
for module in ("asynq", "webhook", "queues.celery", "queues.bullmq"):
    assert f"redisagg.sinks.{module}" in added, f"{module} is imported with redisagg"
assert {name.partition(".")[0] for name in added} <= {"redisagg", *sys.stdlib_module_names}, added
"""


def test_exports_are_imported_on_first_use_and_without_packages_of_extras() -> None:
    # In a process of its own, since other tests import these modules.
    assert subprocess.run([sys.executable, "-c", PROGRAM], timeout=60).returncode == 0


def test_every_scheme_has_an_exported_sink() -> None:
    for target in _BUILT_IN.values():
        module, _, name = target.partition(":")
        assert module == "redisagg.sinks"
        assert name in sinks.__all__
        assert name in dir(sinks)


def test_an_unknown_name_is_refused() -> None:
    name = "NoSink"
    with pytest.raises(AttributeError, match="no attribute 'NoSink'"):
        getattr(sinks, name)
