"""`redisagg top`: what a frame shows, in any size, and the keys in a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from redisagg import Aggregator, Task
from redisagg.cli.keyboard import Keyboard
from redisagg.cli.top import Frame, render
from redisagg.views import Overview
from tests.aggregator.test_watching import in_retry
from tests.support.aggregators import Make
from tests.support.cli import Run
from tests.support.shapes import HOSTILE, is_harmless

HERE = ("-n", "tests")


def shown(frame: Frame, width: int = 100, height: int = 40) -> list[str]:
    """The lines of a frame."""
    console = Console(width=width, height=height, markup=False, highlight=False, record=True)
    with console.capture() as captured:
        console.print(render(frame, width, height))
    return captured.get().splitlines()


def frame_of(agg: Aggregator, chosen: str | None = None) -> Frame:
    frame = Frame("tests", groups=list(agg.get_groups(limit=50).values()), chosen=chosen)
    frame.add(agg.overview())
    if chosen is not None:
        frame.explanation = agg.explain(chosen)
    return frame


def test_one_frame(run: Run, make: Make) -> None:
    agg = in_retry(make, 3)
    agg.pause("other", by="ann")
    text = run(
        "top", *HERE, "--once", "--group", "g1", env={"COLUMNS": "150", "LINES": "50"}
    ).stdout
    lines = text.splitlines()
    assert lines[0].startswith("redisagg top tests")
    assert "all is well" in lines[0]
    assert "retries 3" in lines[1]
    assert any(line.startswith("g1 ") and line.rstrip().endswith("held") for line in lines)
    assert any(line.startswith("other ") and "paused" in line for line in lines)
    assert "Attempt 1 of 3 to merge the batch" in text
    assert "g1 is bad" in text
    assert agg.get_flushers()[0].flusher_id in text
    agg.stop()
    assert "! No flusher is alive since" in run("top", *HERE, "--once").stdout
    refused = run("top", *HERE)
    assert refused.exit_code == 2
    assert "needs a terminal" in refused.stderr


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (200, 60), (20, 5)])
def test_a_frame_fits_into_the_terminal(make: Make, width: int, height: int) -> None:
    agg = make()
    agg.add_tasks(Task("t", n, f"grüße-{n}-" + "長" * 30) for n in range(100))
    agg.pause(by="ann")
    lines = shown(frame_of(agg, next(iter(agg.get_groups(limit=1)))), width, height)
    assert len(lines) <= max(height, 24)
    assert all(len(line) <= width for line in lines)


def test_texts_of_others_are_harmless(run: Run, redis_url: str) -> None:
    agg = Aggregator("tests", redis_url)
    agg.add_tasks(Task("t", 1, text) for text in HOSTILE)
    for text in HOSTILE:
        asked = run("top", *HERE, "--once", f"--group={text}")
        assert asked.exit_code == 0
        assert is_harmless(asked.output), text


def test_rates_are_those_between_two_looks(make: Make) -> None:
    agg = make()
    frame = frame_of(agg)
    assert frame.look is not None
    assert frame.look.stats is not None
    first = frame.look.stats
    later = replace(first, pending=first.pending + 50, flushed=100, batches_flushed=10)
    frame.add(replace(frame.look, at=frame.look.at + 2, stats=later))
    assert (list(frame.adds), list(frame.flushed), list(frame.batches)) == ([75], [50], [5])
    assert "tasks per batch 10.0" in " ".join(shown(frame))
    look: Overview = replace(frame.look, at=frame.look.at - 1)
    frame.add(look)  # the clock was set back
    frame.add(replace(look, at=look.at + 1, stats=None))  # a master is away
    assert len(frame.adds) == 1


def test_a_group_is_chosen() -> None:
    frame = Frame("tests")
    frame.choose(1)
    assert frame.chosen is None
    groups: Any = [type("Group", (), {"group_key": key}) for key in "abc"]
    frame.groups = groups
    for step, key in ((0, "a"), (1, "b"), (1, "c"), (1, "c"), (-1, "b"), (-9, "a")):
        frame.choose(step)
        assert frame.chosen == key
    frame.chosen = "gone"
    frame.choose(1)
    assert frame.chosen == "a"


def test_keys_of_a_terminal() -> None:
    reading, writing = os.pipe()
    keys = Keyboard(reading)
    try:
        for raw, name in ((b"\x1b[A", "up"), (b"j", "down"), (b"q", "quit"), (b"\xff", "other")):
            os.write(writing, raw)
            assert keys.wait(5) == name
        assert keys.wait(0) is None
    finally:
        os.close(writing)
        assert keys.wait(5) == "quit"  # the terminal is gone
        os.close(reading)
    assert Keyboard(None).wait(0) is None


def test_in_a_terminal(redis_url: str) -> None:
    agg = Aggregator("tests", redis_url)
    agg.add_tasks(Task("t", n, f"customer:{n}", grace_period=100 + n) for n in range(3))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    before = termios.tcgetattr(theirs)
    line = [sys.executable, "-m", "redisagg", "top", *HERE, "--interval", "30"]
    env = {**os.environ, "REDISAGG_URL": redis_url, "TERM": "xterm-256color"}
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    seen = b""

    def read_until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while text not in seen:
            left = deadline - time.monotonic()
            assert left > 0, seen
            if select.select([ours], [], [], left)[0]:
                seen += os.read(ours, 65536)

    try:
        read_until(b"customer:0 is not late: ")
        os.write(ours, b"\x1b[B")
        read_until(b"customer:1 is not late: ")
        os.write(ours, b"q")
        read_until(b"\x1b[?1049l")  # the screen of before is back
        assert process.wait(20) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
