"""The scripts as text: headers, includes, and no key that was not passed in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis

from redisagg.protocol.scripts import load

_FOLDER = Path(__file__).parents[2] / "lua"
_NAMES = sorted(path.stem for path in _FOLDER.glob("*.lua"))


@pytest.mark.parametrize("name", _NAMES)
def test_the_header_names_keys_arguments_and_reply(name: str) -> None:
    header = (_FOLDER / f"{name}.lua").read_text().partition("\n\n")[0]
    assert header.startswith(f"-- {name}: ")
    assert "KEYS" in header
    assert re.search("reply", header, re.IGNORECASE)


@pytest.mark.parametrize("name", _NAMES)
def test_redis_can_load_it(name: str, sync_redis: redis.Redis) -> None:
    script = load(name)
    assert b"@include" not in script.source
    assert sync_redis.script_load(script.source.decode()) == script.sha.decode()


@pytest.mark.parametrize("path", sorted(_FOLDER.rglob("*.lua")), ids=lambda path: path.stem)
def test_no_script_makes_up_a_key(path: Path) -> None:
    code = re.sub("--.*", "", path.read_text())
    for command, key in re.findall(r"redis\.p?call\('(\w+)',\s*([^,)]+)", code):
        if command not in {"TIME", "PUBLISH"}:
            assert re.fullmatch(r"KEYS\[.+\]|unpack\(KEYS|[a-z_ ]+", key.strip()), (command, key)


def test_the_tables_of_contents_are_complete() -> None:
    listed = (_FOLDER / "README.md").read_text()
    assert [name for name in _NAMES if f"`{name}`" not in listed] == []
