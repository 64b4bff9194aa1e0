"""A pytest plugin: how many workers pytest-xdist starts, and that `serial` tests run alone.

The tests wait for timeouts and for servers most of the time, so a run takes more workers than the
machine has cores. A test marked `serial` measures time or loads all cores: it waits until no
worker runs a test, and no worker begins one before it has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

WORKERS_PER_CORE = 2

_FOLDER = pytest.StashKey[str]()
"""The folder of the lock files, which all workers of the run share."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What ``-n auto`` means: no workers for a few files, which start faster without."""
    if all(".py" in argument for argument in config.args):
        return 0
    return WORKERS_PER_CORE * (os.cpu_count() or 1)


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of the lock files, or learn its name from the process that made it."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.stash[_FOLDER] = workerinput["lock_folder"]
    else:
        folder = tempfile.TemporaryDirectory(prefix="redisagg-tests-")
        config.add_cleanup(folder.cleanup)
        config.stash[_FOLDER] = folder.name


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker the folder."""
    node.workerinput["lock_folder"] = node.config.stash[_FOLDER]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the serial tests last, so that workers wait for each other only at the end."""
    items.sort(key=_is_serial)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of what pytest-timeout measures
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hold the run's lock during a test: a serial one alone, others together."""
    with _turn(Path(item.config.stash[_FOLDER]), alone=_is_serial(item)):
        return (yield)


def _is_serial(item: pytest.Item) -> bool:
    return item.get_closest_marker("serial") is not None


@contextlib.contextmanager
def _turn(folder: Path, *, alone: bool) -> Iterator[None]:
    mode = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with (folder / "entry").open("w") as entry, (folder / "test").open("w") as test:
        # A serial test keeps the entry while it waits, so that no other can overtake it.
        fcntl.flock(entry, mode)
        fcntl.flock(test, mode)
        fcntl.flock(entry, fcntl.LOCK_UN)
        yield
