"""The recipes in docs/task-queues.md, as a reader would run them."""

from __future__ import annotations

import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.sinks.environment import environment
from tests.sinks.harness import running
from tests.sinks.test_docs import REDIS
from tests.support.markdown import read
from tests.support.servers import wait_until

pytestmark = [pytest.mark.registry, pytest.mark.timeout(300)]

_FILE = re.compile(r"^```\w+\n# ([\w/]+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^```sh\n(?!pip)(.*?)\n```", re.MULTILINE | re.DOTALL)

PRODUCERS = {
    "Django-RQ": """
import django
django.setup()
from shop.aggregators import mails
for n in range(3):
    mails.add(n, group_key="user:42")
""",
    "Dramatiq": """
from tasks import send
for n in range(3):
    send.send("user:42", n)
""",
    "Taskiq": """
import asyncio
from tasks import broker, send
async def main():
    await broker.startup()
    for n in range(3):
        await send.kiq("user:42", n)
    await broker.shutdown()
asyncio.run(main())
""",
}


@pytest.mark.parametrize(
    ("heading", "extras", "also"),
    [
        ("Django-RQ", "rq,django", ("django-rq",)),
        ("Dramatiq", "dramatiq,cli", ()),
        ("Taskiq", "taskiq,cli", ()),
    ],
)
def test_a_recipe_works(
    heading: str, extras: str, also: tuple[str, ...], redis_url: str, tmp_path: Path
) -> None:
    python = environment(extras, *also)
    sections = read("docs/task-queues.md").replace(REDIS, redis_url).split("\n## ")
    [text] = [each for each in sections if each.startswith(f"{heading}\n")]
    for name, content in _FILE.findall(text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    [shown] = _COMMAND.findall(text)
    *settings, commands = shown.splitlines()
    env = dict(each.removeprefix("export ").split("=", 1) for each in settings)
    logs = []
    with ExitStack() as stack:
        for number, command in enumerate(commands.split(" & ")):
            program, *arguments = command.split()
            logs.append(tmp_path / f"{number}.log")
            stack.enter_context(
                running([python.with_name(program), *arguments], logs[-1], env=env, cwd=tmp_path)
            )
        produce = [str(python), "-c", PRODUCERS[heading]]
        subprocess.run(produce, cwd=tmp_path, env=env, check=True, timeout=60)
        wait_until(
            lambda: any(re.search(r"to user:42: \[[012, ]{7}\]", log.read_text()) for log in logs),
            timeout=60,
            what="the worker has received the digest",
        )
    assert all("Traceback" not in log.read_text() for log in logs)


def test_each_recipe_is_tested() -> None:
    assert re.findall(r"^## (.+)$", read("docs/task-queues.md"), re.MULTILINE) == list(PRODUCERS)
