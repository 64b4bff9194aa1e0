"""Runs the code blocks of a page, in order: `python tests/support/pages.py PAGE --redis-port N`.

Blocks of Python and of a shell are run in a folder of their own. All Python blocks of a page share
their names. A block whose first line is a comment with a file name is stored as that file.

An HTML comment right before a block says more:

| comment | the block |
|---|---|
| ``runs until: TEXT`` | goes on in the background; what follows waits for this text in its output |
| ``output``, ``output, any order`` | is what the block before it prints; ``…`` is anything |
| ``installs`` | installs packages; run only with ``--install``. ``pip install`` needs no mark |
| ``ci: NAME`` | is run by ``.ci/run`` |
| ``signature`` | shows the arguments of a class |
| ``not run: REASON`` | is not run |

``hidden`` and lines of Python in a comment are run, and not shown. ``blocks run by: FILE`` anywhere
in a page leaves the page to that file of tests.

It needs the standard library only, so that it runs where just the wheel is installed.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LANGUAGES = {"python", "py", "sh", "bash", "shell", "console"}
"""Languages of blocks that are run."""

_MARKS = r"runs until: .+|output|output, any order|installs|ci: .+|signature|not run: .+"
_PART = re.compile(
    r"^<!-- hidden\n(?P<hidden>.*?)^-->$"
    r"|(?:^<!-- (?P<mark>[^\n]*) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```",
    re.MULTILINE | re.DOTALL,
)
_ELSEWHERE = re.compile(r"^<!-- blocks run by: (\S+) -->$", re.MULTILINE)
_FILE = re.compile(r"(?:#|//) ([\w/]+\.\w+)\n")
_WAIT = 60.0  # seconds for a text in the output of a command, and for a command to end


@dataclass(frozen=True)
class Block:
    """A block of a page, with the line of its fence and the comment before it."""

    line: int
    language: str
    text: str
    mark: str = ""

    @property
    def is_run(self) -> bool:
        """Whether it is one that a page has to run or to mark."""
        return self.language in LANGUAGES and not self.mark.startswith("output")

    @property
    def installs(self) -> bool:
        """Whether it installs packages, and does nothing else unless its mark says so."""
        lines = self.text.strip().splitlines()
        return self.mark == "installs" or all(
            re.match(r"(?:pip|npm) install ", line) is not None for line in lines
        )

    @property
    def file(self) -> str | None:
        """The file that it shows, by its first line."""
        found = _FILE.match(self.text)
        return found[1] if found else None


def blocks(text: str) -> Iterator[Block]:
    """Yields all fenced blocks of a page, and hidden ones as Python."""
    for part in _PART.finditer(text):
        line = text.count("\n", 0, part.start()) + 1
        if part["hidden"] is not None:
            yield Block(line, "python", part["hidden"])
            continue
        mark = part["mark"] or ""
        body = "".join(
            each.removeprefix(part["indent"]) for each in part["text"].splitlines(keepends=True)
        )
        known = mark if re.fullmatch(_MARKS, mark) else ""
        yield Block(line + bool(mark), part["language"], body, known)


def run_elsewhere(text: str) -> str | None:
    """The file of tests that runs the blocks of a page, if the page names one."""
    found = _ELSEWHERE.search(text)
    return found[1] if found else None


class Page:
    """Runs the blocks of one page.

    Args:
        path: the page.
        folder: the working directory.
        ports: what stands in place of ports in the blocks.
        install: whether to run blocks that install packages. Then Python is run in processes of
            the environment that they make.
    """

    def __init__(self, path: Path, folder: Path, ports: dict[str, int], install: bool) -> None:
        self.path = path
        self._folder = folder
        self._ports = ports
        self._install = install
        self._names: dict[str, Any] = {"__name__": "page"}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._printed = ""
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        self._environment["PYTHONPATH"] = str(folder)
        programs = [str(folder / ".venv" / "bin"), str(Path(sys.executable).parent)]
        self._environment["PATH"] = os.pathsep.join([*programs, os.environ["PATH"]])
        self._environment["COLUMNS"] = "200"

    def run(self) -> int:
        """Runs all blocks, and returns their number.

        Raises:
            AssertionError: a block failed, or printed something else than the page says.
        """
        ran = 0
        every = list(blocks(self.path.read_text("utf-8")))
        try:
            for number, block in enumerate(every):
                if block.mark.startswith("output"):
                    self._compare(block)
                elif block.is_run and self._run(block):
                    ran += 1
                    if block.file and not self._is_used(block.file, every[number + 1 :]):
                        self._try(block, self._python, block, self._replaced(block.text))
        finally:
            for command in reversed(list(self._running)):
                self._end(command)
        return ran

    def _run(self, block: Block) -> bool:
        if block.mark.startswith(("not run", "ci", "signature")):
            return False
        if block.installs and not self._install:
            return False
        text = self._replaced(block.text)
        if block.file and block.language in ("python", "py"):
            path = self._folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():  # a page shows it anew: it is imported anew
                for name in [each for each, found in sys.modules.items() if self._is_here(found)]:
                    del sys.modules[name]
            path.write_text(text, "utf-8")
            compile(text, f"{self.path}:{block.line}", "exec")
            return True
        if block.mark.startswith("runs until: "):
            self._try(block, self._start, text, block.mark.removeprefix("runs until: "))
        elif block.language in ("python", "py"):
            self._try(block, self._python, block, text)
        else:
            self._try(block, self._shell, text)
        return True

    def _try(self, block: Block, run: Callable[..., None], *arguments: object) -> None:
        try:
            run(*arguments)
        except BaseException as error:
            raise AssertionError(f"{self.path}:{block.line}: {error!r}") from error

    def _replaced(self, text: str) -> str:
        for shown, port in self._ports.items():
            text = re.sub(rf"(?<![\w.]){shown}(?!\w)", str(port), text)
        return text

    def _is_here(self, module: object) -> bool:
        return str(getattr(module, "__file__", None)).startswith(str(self._folder))

    def _is_used(self, file: str, later: list[Block]) -> bool:
        """Whether a later block imports or runs a file, or shows it anew."""
        module = Path(file).stem
        return any(re.search(rf"\b{module}\b", block.text) for block in later if block.is_run)

    def _python(self, block: Block, text: str) -> None:
        name = f"{self.path.name}"
        code = compile("\n" * block.line + text, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            if code.co_flags & inspect.CO_COROUTINE:
                asyncio.run(eval(code, self._names))
            else:
                exec(code, self._names)
        self._printed = out.getvalue()

    def _shell(self, text: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=180 if self._install else _WAIT,
            check=False,
        )
        assert done.returncode == 0, f"status {done.returncode}: {done.stderr.decode()}"
        self._printed = done.stdout.decode()

    def _start(self, command: str, awaited: str) -> None:
        if command in self._running:
            self._end(command)
        log = self._folder / f"log-{len(list(self._folder.glob('log-*')))}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", "exec " + command.strip()],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._running[command] = process
        deadline = time.monotonic() + _WAIT
        while awaited not in log.read_text("utf-8", "replace"):
            assert process.poll() is None, f"it ended: {log.read_text()}"
            assert time.monotonic() < deadline, f"no {awaited!r} in {log.read_text()}"
            time.sleep(0.02)

    def _end(self, command: str) -> None:
        process = self._running.pop(command)
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(_WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert status in (0, -signal.SIGTERM), f"{command.strip()} ended with status {status}"

    def _compare(self, block: Block) -> None:
        printed = [" ".join(line.split()) for line in self._printed.splitlines()]
        shown = [" ".join(line.split()) for line in block.text.splitlines()]
        if "any order" in block.mark:
            left = list(shown)
            for line in printed:
                found = next((each for each in left if _matches(each, line)), None)
                if found is not None:
                    left.remove(found)
            same = not left and len(printed) == len(shown)
        else:
            same = len(printed) == len(shown) and all(map(_matches, shown, printed))
        assert same, f"{self.path}:{block.line}: it printed\n{self._printed}"


def _matches(shown: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in shown.split("…"))
    return re.fullmatch(pattern, printed) is not None


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def use_by_default(url: str) -> None:
    """Has aggregators without a URL use this one."""
    from redisagg import Aggregator, AsyncAggregator

    for face in (Aggregator, AsyncAggregator):
        face.__init__.__defaults__ = (url,)


def main() -> None:
    """Runs a page in a temporary folder."""
    parser = argparse.ArgumentParser(description="Runs the code blocks of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--redis-port", type=int, help="a free one by default")
    parser.add_argument("--install", action="store_true", help="run what installs packages too")
    arguments = parser.parse_args()
    port = arguments.redis_port or free_port()
    page = arguments.page.resolve()
    os.environ["REDISAGG_URL"] = f"redis://127.0.0.1:{port}/0"
    if not arguments.install:
        use_by_default(os.environ["REDISAGG_URL"])
    with tempfile.TemporaryDirectory() as name:
        sys.path[0] = name  # in place of the folder of this file
        os.chdir(name)
        started = time.monotonic()
        ports = {"6379": port, "8000": free_port(), "8470": free_port()}
        ran = Page(page, Path(name), ports, arguments.install).run()
        print(f"{arguments.page}: {ran} blocks in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
