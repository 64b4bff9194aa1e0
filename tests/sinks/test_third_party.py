"""A sink of somebody else: the package in docs/sinks/own.md, in an environment of its own."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from redisagg import Aggregator
from redisagg.testing import SinkConformance
from tests.sinks.environment import CHECKOUT, install
from tests.sinks.harness import running
from tests.sinks.test_docs import listings
from tests.support.builds import build_once, run_folder
from tests.support.pytest_runs import run_pytest
from tests.support.servers import wait_until
from tests.support.tasks import numbered, quick_config

pytestmark = [pytest.mark.slow, pytest.mark.registry, pytest.mark.timeout(300)]  # an installation

TEXT = (CHECKOUT / "docs" / "sinks" / "own.md").read_text()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the package's files, and with the environment `venv` that has it."""
    files = listings(TEXT)
    assert set(files) == {"pyproject.toml", "redisagg_journal.py", "test_journal.py"}

    def build(folder: Path) -> None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
        # Not editable: what a wheel of redisagg has is what others get.
        install(folder / "venv", f"{CHECKOUT}[cli,embedded]", str(folder), "pytest>=8.2")
        (folder / "redisagg_journal.py").unlink()  # it is installed

    return build_once(run_folder(tmp_path_factory) / "third-party", build)


def test_its_conformance_tests_pass(package: Path) -> None:
    output = run_pytest(
        *("-q", "test_journal.py"),
        cwd=package,
        python=package / "venv" / "bin" / "python",
        environment={"PYTHONPATH": None},
    ).stdout
    tests = [name for name in dir(SinkConformance) if name.startswith("test_")]
    assert f"{len(tests)} passed" in output, output
    assert "failed" not in output, output


def test_its_url_works_on_the_command_line(package: Path, redis_url: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    flusher: list[str | Path] = [
        *(package / "venv" / "bin" / "redisagg", "worker", "tests", "--redis", redis_url),
        *("--sink", f"journal://{journal}", "--partitions", "2"),
    ]
    agg = Aggregator("tests", redis_url, config=quick_config(group_max_size=2))
    with contextlib.closing(agg), running(flusher, tmp_path / "flusher.log", cwd=package):
        agg.add_tasks(numbered("a", 2))
        wait_until(lambda: journal.exists() and journal.read_text(), what="it is written")
        assert agg.wait_until_idle(10)
    [line] = journal.read_text().splitlines()
    assert json.loads(line)["payload"]["payloads"] == [0, 1]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("journal:///tmp/x?colour=red", "unknown option: colour"),
        ("journal://", "JournalSink takes the path of a file"),
        ("journals:///tmp/x", "names no sink"),
    ],
)
def test_a_wrong_url_is_named(package: Path, redis_url: str, url: str, said: str) -> None:
    done = subprocess.run(
        [
            *(package / "venv" / "bin" / "redisagg", "worker", "tests"),
            *("--redis", redis_url, "--sink", url),
        ],
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert said in done.stderr


def test_the_document_lists_all_tests_and_settings() -> None:
    rows = set(re.findall(r"^\| `(\w+)", TEXT, re.MULTILINE))
    public = {name for name in dir(SinkConformance) if not name.startswith("_")}
    assert public - rows == set()
