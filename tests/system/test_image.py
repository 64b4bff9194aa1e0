"""The image of the Dockerfile, built by the local engine, and a worker in it.

Its base is `REDISAGG_TEST_PYTHON_IMAGE`, or an image that is made of the Python of the tests, for
an engine that can pull none. pip finds wheels in the build context, so the build needs no network.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException, ImageNotFound

from redisagg import Aggregator, Task, __version__
from tests.sinks.environment import _OUT_OF_REACH
from tests.support.markdown import CHECKOUT
from tests.support.tasks import await_batches, enqueued, quick_config

pytestmark = [
    *(pytest.mark.docker, pytest.mark.registry, pytest.mark.slow, pytest.mark.timeout(900)),
    pytest.mark.skipif(platform.system() != "Linux", reason="the image is made of files of Linux"),
]

TAG = "redisagg-test/redisagg:ci"
BASE = "redisagg-test/python:ci"
EXTRAS = "cli,hiredis,metrics,schedule"
PARTS = ("Dockerfile", ".dockerignore", "hatch_build.py", "LICENSE", "pyproject.toml", "README.md")
NEEDLESS = {
    *("test", "tests", "site-packages", "__pycache__", "idlelib", "tkinter", "turtledemo"),
    *("config-3", "pydoc_data", "lib2to3"),
}
# What wheels of other systems may ask for; the last is loaded by glibc when a thread ends.
LOADED_LATER = (
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libutil.so.1",
    "libm.so.6",
    "libgcc_s.so.1",
)
_LIBRARY = re.compile(r"(/[^ ):]+)(?: \(0x|:?$)", re.MULTILINE)


LOOK = """
import json, os, subprocess
import cronsim, hiredis, prometheus_client
def ask(*arguments):
    done = subprocess.run(["redisagg", *arguments], capture_output=True, text=True)
    return done.stdout + done.stderr
print(json.dumps({
    "user": os.getuid(), "app": os.listdir("."), "version": ask("--version"), "help": ask("--help"),
}))
"""
"""What a look around in the image prints."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """The Docker engine; skips where none answers."""
    try:
        found = docker.from_env(timeout=300)
        found.ping()
    except (DockerException, OSError) as error:
        pytest.skip(f"no Docker engine answers: {error}")
    with contextlib.closing(found):
        yield found


@pytest.fixture(scope="module")
def python_image(engine: Any) -> Iterator[str]:
    """The name of an image with a Python."""
    if name := os.environ.get("REDISAGG_TEST_PYTHON_IMAGE"):
        try:
            engine.images.get(name)
        except ImageNotFound:
            pytest.skip(f"the image {name} is not here")
        yield name
        return
    repository, _, tag = BASE.partition(":")
    changes = ["ENV PATH=/usr/local/bin:/bin"]
    engine.api.import_image_from_data(own_python(), repository=repository, tag=tag, changes=changes)
    yield BASE
    engine.images.remove(BASE, force=True)


@pytest.fixture(scope="module")
def image(
    engine: Any, python_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The name of the image that the Dockerfile makes."""
    context = tmp_path_factory.mktemp("context")
    for part in PARTS:
        shutil.copy(CHECKOUT / part, context)
    for folder in ("redisagg", "lua", "tests/unit"):
        shutil.copytree(CHECKOUT / folder, context / folder)
    (context / "wheelhouse").mkdir()
    download(context / "wheelhouse")
    engine.images.build(
        path=str(context),
        tag=TAG,
        rm=True,
        forcerm=True,
        network_mode="none",
        buildargs={
            "PYTHON_IMAGE": python_image,
            "PIP_FIND_LINKS": "/build/wheelhouse",
            "PIP_NO_INDEX": "1",
            "EXTRAS": EXTRAS,
        },
    )
    yield TAG
    engine.images.remove(TAG, force=True)


def download(folder: Path) -> None:
    """Puts the wheels that the build needs into a folder."""
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), "hatchling"]
    done = subprocess.run(
        [*command, f"{CHECKOUT}[{EXTRAS}]"], capture_output=True, text=True, check=False
    )
    if done.returncode and _OUT_OF_REACH.search(done.stdout + done.stderr):
        pytest.skip("pip's registry is out of reach")
    assert done.returncode == 0, done.stdout + done.stderr
    for made in folder.glob("redisagg-*"):  # the image builds its own
        made.unlink()


def own_python() -> bytes:
    """A tar file with this Python in /usr/local, a shell, and the libraries of both."""
    base = Path(sys.base_prefix)
    library = Path(
        sysconfig.get_path("stdlib", vars={"base": str(base), "installed_base": str(base)})
    )
    program = Path(os.path.realpath(sys.executable))
    shell = Path(os.path.realpath("/bin/sh"))
    target = Path("/usr/local/lib") / library.name
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        files = {"/bin/sh": shell, "/usr/local/bin/python": program}
        loaded = {program, shell, *library.glob("lib-dynload/*.so")}
        listed = subprocess.run(
            ["ldd", *loaded], capture_output=True, text=True, check=False
        ).stdout
        for found in set(_LIBRARY.findall(listed)):
            if Path(found) not in loaded:
                files[found] = Path(os.path.realpath(found))
        [libc] = [Path(name) for name in files if name.endswith("/libc.so.6")]
        for name in LOADED_LATER:
            if (part := libc.with_name(name)).exists():
                files[str(part)] = Path(os.path.realpath(part))
        for path in library.rglob("*"):
            parts = {part.partition(".")[0] for part in path.relative_to(library).parts}
            if path.is_file() and not NEEDLESS & parts:
                files[str(target / path.relative_to(library))] = path
        folders = {parent for name in files for parent in Path(name).parents} - {Path("/")}
        for path in sorted({*folders, Path("/tmp")}):
            folder = tarfile.TarInfo(str(path).lstrip("/"))
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        for name, path in files.items():
            archive.add(path, name.lstrip("/"), filter=readable)
    return output.getvalue()


def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Has everybody read a file, and run what somebody could run."""
    entry.uid = entry.gid = 0
    entry.mode = 0o755 if entry.mode & 0o100 else 0o644
    return entry


def run(engine: Any, image: str, *command: str, **options: Any) -> str:
    """What a command prints in a container that may do nothing."""
    printed: bytes = engine.containers.run(
        image, list(command), remove=True, read_only=True, cap_drop=["ALL"], **options
    )
    return printed.decode()


def test_the_image_runs_the_command_line_and_workers_as_nobody(
    engine: Any, image: str, redis_url: str
) -> None:
    # One container: each takes seconds where the engine copies whole layers.
    found = json.loads(run(engine, image, "-c", LOOK, entrypoint="python"))
    assert found["user"] == 65532
    assert __version__ in found["version"]
    assert "worker" in found["help"]
    assert found["app"] == []  # a place for the user's code
    worker = engine.containers.run(
        image,
        ["worker", "tests", "--sink=stream://batches", "--partitions=2"],
        detach=True,
        network_mode="host",
        read_only=True,
        cap_drop=["ALL"],
        environment={"REDISAGG_URL": redis_url},
    )
    try:
        with contextlib.closing(
            Aggregator("tests", redis_url, config=quick_config(), sink="stream://batches")
        ) as agg:
            agg.add_task(Task("test", 1, "a", flush=True))
            await_batches(agg, 1, timeout=60)
            assert enqueued(agg)[0].count == 1
        worker.stop(timeout=30)
        assert worker.wait()["StatusCode"] == 0, worker.logs().decode()
    finally:
        worker.remove(force=True)
