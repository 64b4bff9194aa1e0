"""docs/asynq.md, as a reader would try it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from redisagg.protocol.includes import expand_folder
from redisagg.testing.embedded import HOST, EmbeddedRedis
from tests.sinks.asynq.program import SOURCE, Asynq
from tests.support.servers import wait_until
from tests.support.toolchains import build_go

pytestmark = pytest.mark.registry

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "asynq.md").read_text("utf-8")

PRODUCER = ROOT / "tests" / "sinks" / "producer_go"


@pytest.fixture
def address(redis_server: EmbeddedRedis, redis_url: str) -> str:
    """Host and port of an empty Redis."""
    return f"{HOST}:{redis_server.port}"


def listing(language: str, file: str) -> str:
    """The file that the document shows."""
    found = re.search(rf"^```{language}\n(?://|#) {file}\n(.*?)^```", TEXT, re.M | re.S)
    assert found, file
    return found[1]


def test_the_example_works(address: str, tmp_path: Path) -> None:
    for module_file in ("go.mod", "go.sum"):  # what `go get` would write
        shutil.copy(SOURCE / module_file, tmp_path)
    for language, file in (("go", "worker.go"), ("python", "digests.py")):
        (tmp_path / file).write_text(listing(language, file).replace("localhost:6379", address))
    worker = build_go(tmp_path, tmp_path / "built")
    with (tmp_path / "log").open("w+") as log, subprocess.Popen([worker], stdout=log) as process:
        try:
            subprocess.run([sys.executable, tmp_path / "digests.py"], check=True, timeout=60)
            received = (tmp_path / "log").read_text
            wait_until(lambda: received().endswith("\n"), what="the worker receives the digest")
            assert received() == "to user:42: [0 1 2]\n"
        finally:
            process.kill()


def test_a_go_service_has_its_grouping_done_without_python_code(
    asynq: Asynq, address: str, redis_url: str, tmp_path: Path
) -> None:
    """Its producer adds, `redisagg worker` merges by default, its server receives."""
    producer = build_go(PRODUCER)
    server = asynq.serve()
    command = [sys.executable, "-m", "redisagg", "worker", "digests"]
    command += ["--redis", redis_url, "--sink", "asynq://default?max_retry=5"]
    with subprocess.Popen(command, cwd=ROOT) as flusher:
        try:
            expand_folder(ROOT / "lua", tmp_path / "lua")
            arguments = [address, "digests", str(tmp_path / "lua"), "200", ""]
            added = subprocess.run([producer, *arguments], check=True, stdout=subprocess.PIPE)
            assert int(added.stdout) == 200
            received = server.await_lines(10)
        finally:
            flusher.terminate()
    assert flusher.returncode == 0
    assert {said["type"] for said in received} == {"from-go:aggregated"}
    assert {said["max_retry"] for said in received} == {5}
    assert len({said["id"] for said in received}) == len(server.lines) == 10
