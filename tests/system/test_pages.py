"""The code blocks of README and docs run, in the order of their pages.

`tests/support/pages.py` says how, and which comments pages can use. A page may leave its blocks to
another file of tests, such as one that installs a queue for it.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

import redisagg.sinks
from redisagg.testing.embedded import EmbeddedRedis
from tests.support.markdown import CHECKOUT, pages, read
from tests.support.pages import Block, blocks, run_elsewhere

RUNNER = CHECKOUT / "tests" / "support" / "pages.py"

NAMES = [
    str(page.relative_to(CHECKOUT))
    for page in pages()
    if page == CHECKOUT / "README.md" or CHECKOUT / "docs" in page.parents
]


def marked(name: str, mark: str) -> list[Block]:
    return [block for block in blocks(read(name)) if block.mark.startswith(mark)]


def to_run(name: str) -> list[Block]:
    skipped = ("not run", "ci", "signature")
    return [
        block
        for block in blocks(read(name))
        if block.is_run and not block.installs and not block.mark.startswith(skipped)
    ]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if to_run(name) and not run_elsewhere(read(name))]
)
def test_the_blocks_of_a_page_run(name: str, redis_server: EmbeddedRedis, redis_url: str) -> None:
    command = [sys.executable, str(RUNNER), str(CHECKOUT / name)]
    if not any("redis-server" in block.text for block in to_run(name)):
        command += ["--redis-port", str(redis_server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r": [1-9]\d* blocks in", done.stdout)


@pytest.mark.parametrize("name", [name for name in NAMES if run_elsewhere(read(name))])
def test_the_blocks_of_a_page_are_run_where_it_says(name: str) -> None:
    test = Path(str(run_elsewhere(read(name))))
    text = (CHECKOUT / test).read_text("utf-8")
    assert test.name.startswith("test_")
    assert re.search(rf"\b{Path(name).stem}\b", text), f"{test} does not name {name}"
    left = [
        f"{name}:{block.line}"
        for block in to_run(name)
        if not (block.file or block.language == "sh")
    ]
    assert left == []


@pytest.mark.parametrize("name", [name for name in NAMES if marked(name, "signature")])
def test_signatures_are_those_of_the_classes(name: str) -> None:
    for block in marked(name, "signature"):
        for call in ast.parse(block.text).body:
            assert isinstance(call, ast.Expr)
            assert isinstance(call.value, ast.Call)
            shown = {each.arg: ast.unparse(each.value) for each in call.value.keywords if each.arg}
            kind = getattr(redisagg.sinks, ast.unparse(call.value.func))
            actual = {
                name: _shown(each.default)
                for name, each in inspect.signature(kind).parameters.items()
                if each.default is not each.empty and (name in shown or name not in COMMON)
            }
            assert shown == actual, f"{name}:{block.line}"


COMMON = {"concurrency", "timeout", "delivery_timeout"}
"""Arguments of all sinks, which docs/sinks/README.md explains."""


def _shown(default: object) -> str:
    if inspect.isfunction(default):
        return default.__name__
    return repr(int(default) if isinstance(default, float) and default.is_integer() else default)


@pytest.mark.parametrize("name", NAMES)
def test_what_pages_install_exists(name: str) -> None:
    extras = set(metadata("redisagg").get_all("Provides-Extra") or ())
    for named in re.findall(r"redisagg\[([\w,-]+)\]", read(name)):
        assert set(named.split(",")) <= extras | {"EXTRA"}


# --- the runner ----------------------------------------------------------------------------------


def run(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    page = tmp_path / "page.md"
    page.write_text(text, "utf-8")
    return subprocess.run(
        [sys.executable, str(RUNNER), str(page), "--redis-port", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "text",
    [
        "```python\nassert 1 == 2\n```\n",
        "```python\n# module.py\n1 / 0\n```\n",
        "```sh\nfalse\n```\n",
        "```sh\necho one\n```\n\n<!-- output -->\n```text\ntwo\n```\n",
        "```sh\necho one; echo two\n```\n\n<!-- output, any order -->\n```text\ntwo\n```\n",
        "<!-- runs until: ready -->\n```sh\necho no\n```\n",
        "<!-- runs until: ready -->\n```sh\nbash -c 'echo ready; exit 3'\n```\n",
    ],
)
def test_a_block_that_fails_is_noticed(tmp_path: Path, text: str) -> None:
    done = run(tmp_path, text)
    assert done.returncode == 1
    assert "page.md:" in done.stderr or "ended" in done.stderr


def test_blocks_share_names_files_and_output(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "<!-- hidden\nnumber = 1\n-->\n```python\n# folder/module.py\nTEN = 10\n```\n\n"
        "```python\nfrom folder.module import TEN\n\nprint(number + TEN)\n```\n\n"
        "<!-- output -->\n```text\n1…\n```\n\n<!-- not run: it fails -->\n```sh\nfalse\n```\n\n"
        "```sh\npython -c 'import folder.module as m; print(m.TEN); print(2)'\n```\n\n"
        "<!-- output, any order -->\n```text\n2\n10\n```\n",
    )
    assert done.returncode == 0, done.stderr
    assert "4 blocks in" in done.stdout
