"""A bulk insert into a real PostgreSQL, with a few bad rows among many."""

from __future__ import annotations

import importlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redisagg import Partial, Task
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import Measured

pytestmark = [pytest.mark.slow, pytest.mark.timeout(560)]

ROWS = 100_000
BAD = {n * 1_007 for n in range(100)}  # in all groups
GROUPS = 20


def _psycopg() -> Any:
    return importlib.import_module("psycopg")


def _programs() -> Path | None:
    """The folder of the programs of the newest PostgreSQL: Debian keeps them apart."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: each.parent.name)
    return folders[-1] if folders else None


def _user() -> str | None:
    """The user that runs the server, which refuses to run as root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    pytest.skip("PostgreSQL does not run as root, and there is no other user")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A server with a socket in a folder of its own; returns how to connect to it."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs, user = _programs(), _user()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="redisagg-postgres-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        options = ("-A", "trust", "-U", "tests", "--no-sync", "-E", "UTF8")
        subprocess.run(
            [programs / "initdb", "-D", data, *options],
            user=user,
            cwd=folder,
            check=True,
            capture_output=True,
        )
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-h", "", "-F"],
            user=user,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = f"host={folder} user=tests dbname=postgres"
            wait_until(lambda: _answers(address), timeout=30, what="PostgreSQL answers")
            yield address
        finally:
            server.send_signal(signal.SIGINT)  # it ends although connections are open
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(address: str) -> bool:
    try:
        _psycopg().connect(address).close()
    except _psycopg().OperationalError:
        return False
    return True


class Table:
    """A table whose values are not negative, and merge functions that insert into it.

    Each id is inserted once, also if a merge is repeated.
    """

    _INSERT = "INSERT INTO visits VALUES (%s, %s) ON CONFLICT (id) DO NOTHING"

    def __init__(self, address: str) -> None:
        self._address = address
        self._of_thread = threading.local()
        with self.connection() as connection:
            connection.execute("DROP TABLE IF EXISTS visits")
            connection.execute(
                "CREATE TABLE visits (id int PRIMARY KEY, value int CHECK (value >= 0))"
            )

    def connection(self) -> Any:
        """A new connection."""
        return _psycopg().connect(self._address)

    def _own(self) -> Any:
        if not hasattr(self._of_thread, "connection"):
            self._of_thread.connection = self.connection()
        return self._of_thread.connection

    def insert(self, group: str, tasks: list[Task]) -> None:
        """Inserts all rows or none."""
        connection = self._own()
        with connection.transaction(), connection.cursor() as cursor:
            cursor.executemany(self._INSERT, [task.payload for task in tasks])

    def insert_what_fits(self, group: str, tasks: list[Task]) -> Partial:
        """Inserts all rows but those that the database refuses, and names these."""
        failed: dict[str, str | BaseException] = {}
        connection = self._own()
        try:
            self.insert(group, tasks)
        except _psycopg().IntegrityError:
            with connection.transaction():
                for task in tasks:
                    try:
                        with connection.transaction():  # a savepoint
                            connection.execute(self._INSERT, task.payload)
                    except _psycopg().IntegrityError as error:
                        failed[task.id] = error
        return Partial(failed=failed)

    def ids(self) -> list[int]:
        """The ids of all rows."""
        with self.connection() as connection:
            return [row[0] for row in connection.execute("SELECT id FROM visits ORDER BY id")]


@pytest.mark.parametrize("way", ["Partial", "isolate_failures"])
def test_exactly_the_bad_rows_are_dead_letters(
    make: Make, postgres: str, measured: Measured, way: str
) -> None:
    table = Table(postgres)
    isolates = way == "isolate_failures"
    agg = make(
        group_aggregator=table.insert if isolates else table.insert_what_fits,
        isolate_failures=isolates,
        group_max_size=500,
        concurrency=8,
        max_attempts=3,
    )
    agg.add_tasks(
        Task("visit", (n, -1 if n in BAD else n), f"table {n % GROUPS}") for n in range(ROWS)
    )
    agg.flush_all()
    with agg:
        assert agg.wait_until_idle(400)
        letters, stats = agg.dead_letters(tasks=True), agg.stats()
    dead = [each.task.payload[0] for letter in letters for each in letter.tasks or () if each.task]
    assert sorted(dead) == sorted(BAD)
    assert len(letters) == len(BAD)
    assert all("visits_value_check" in letter.error for letter in letters)
    assert {letter.error.partition(":")[0] for letter in letters} == {"CheckViolation"}
    assert table.ids() == [n for n in range(ROWS) if n not in BAD]
    assert (stats.flushed, stats.dead, stats.stored_bytes) == (ROWS - len(BAD), len(BAD), 0)
    measured(f"{way}: {ROWS:,} rows, {len(BAD)} bad ones")
