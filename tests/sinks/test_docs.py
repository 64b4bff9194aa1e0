"""The examples in docs/sinks, as a reader would run them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from redisagg.sinks.urls import _BUILT_IN
from tests.sinks.environment import CHECKOUT, environment
from tests.sinks.harness import running
from tests.support.servers import wait_until

pytestmark = pytest.mark.timeout(300)

_FILE = re.compile(r"^```\w+\n(?:#|//) (\w+\.\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^```sh\n(?!pip)(.*?)\n```", re.MULTILINE)

REDIS = "redis://localhost:6379/0"
PORT = "8000"


@pytest.mark.registry
@pytest.mark.parametrize(
    "name", ["celery", "rq", "arq", "dramatiq", "taskiq", "saq", "huey", "streaq", "webhook"]
)
def test_the_example_works(
    name: str, redis_url: str, free_port: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "streaq":
        request.getfixturevalue("functions")
    files, command = shown(name, {REDIS: redis_url, PORT: str(free_port)})
    assert set(files) == {"receiver.py" if name == "webhook" else "tasks.py", "digests.py"}
    python = environment(f"{name},cli")
    program, *arguments = command.split()
    try_out(files, [python.with_name(program), *arguments], python, tmp_path)


@pytest.mark.registry
def test_the_example_for_node_works(redis_url: str, node: Path) -> None:
    files, command = shown("bullmq", {REDIS: redis_url})
    assert set(files) == {"worker.mjs", "digests.py"}
    install, start = command.split(" && ")
    assert install == "npm install bullmq ioredis"  # which are in the folder already
    try_out(files, start.split(), environment("bullmq,cli"), node)


def test_the_table_has_all_sinks() -> None:
    folder = CHECKOUT / "docs" / "sinks"
    text = (folder / "README.md").read_text()
    listed = set(re.findall(r"`([a-z+]+)://", text))
    assert listed | {"webhook+http"} == set(_BUILT_IN)
    extras = set(re.findall(r"^\| \[\w+.*?\| `(\w+)` \|", text, re.MULTILINE))
    needing_none = {"stream", "list", "asynq"}
    assert extras | needing_none == {scheme.partition("+")[0] for scheme in _BUILT_IN}
    linked = {folder / target for target in re.findall(r"\]\(([^)#]+)\)", text)}
    assert [str(each) for each in linked if not each.exists()] == []
    assert set(folder.glob("*.md")) - linked == {folder / "README.md"}


def shown(name: str, replaced: dict[str, str]) -> tuple[dict[str, str], str]:
    """The files that a document shows, and the command that starts the worker."""
    text = (CHECKOUT / "docs" / "sinks" / f"{name}.md").read_text()
    for old, new in replaced.items():
        text = text.replace(old, new)
    [command] = _COMMAND.findall(text)
    return listings(text), command


def listings(text: str) -> dict[str, str]:
    """The files that a document shows: blocks whose first line is a comment with a name."""
    return dict(_FILE.findall(text))


def try_out(
    files: dict[str, str], worker: Sequence[str | Path], python: Path, folder: Path
) -> None:
    """Runs the worker and, by a Python, the producer; waits for the digest."""
    for file, content in files.items():
        (folder / file).write_text(content)
    log = folder / "worker.log"
    with running(worker, log, cwd=folder):
        subprocess.run([python, "digests.py"], cwd=folder, check=True, timeout=60)
        wait_until(
            lambda: "to user:42: [0, 1, 2]" in log.read_text(),
            timeout=30,
            what="the worker has received the digest",
        )
