"""The scripts as text: headers, includes, luacheck, and only keys that were passed in."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import redis

from redisagg.protocol.includes import expand
from redisagg.protocol.records import BatchRecord, DeadRecord, GroupRecord, GroupRules
from redisagg.protocol.scripts import load
from tests.support.luacheck import LUA, ROOT, luacheck

_NAMES = sorted(path.stem for path in LUA.glob("*.lua"))
_FILES = sorted(str(path.relative_to(LUA).with_suffix("")) for path in LUA.rglob("*.lua"))


def text_of(file: str) -> str:
    return (LUA / f"{file}.lua").read_text("utf-8")


# --- single scripts ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _NAMES)
def test_the_header_names_keys_arguments_and_reply(name: str) -> None:
    header = text_of(name).partition("\n\n")[0]
    assert header.startswith(f"-- {name}: ")
    assert "KEYS" in header
    assert "ARGV" in header
    assert re.search("reply", header, re.IGNORECASE)


@pytest.mark.parametrize("name", _NAMES)
def test_redis_can_load_it(name: str, sync_redis: redis.Redis) -> None:
    script = load(name)
    assert b"@include" not in script.source
    assert sync_redis.script_load(script.source.decode()) == script.sha.decode()


@pytest.mark.parametrize("file", _FILES)
def test_no_script_makes_up_a_key(file: str) -> None:
    for command, key in re.findall(r"redis\.p?call\('(\w+)',\s*([^,)]+)", _code(file)):
        if command not in {"TIME", "PUBLISH"}:
            passed = r"KEYS\[.+\]|unpack\((?:KEYS|[a-z_]+)|[a-z_. ]+"
            assert re.fullmatch(passed, key.strip()), (command, key)


@pytest.mark.parametrize("name", _NAMES)
def test_positions_of_arguments_are_read_once(name: str) -> None:
    """At the top of the script, into named locals."""
    positions = re.findall(r"\b((?:KEYS|ARGV)\[\d+\])", _code(name))
    assert len(positions) == len(set(positions))


def test_the_tables_of_contents_are_complete() -> None:
    listed = (LUA / "README.md").read_text("utf-8")
    assert [name for name in _NAMES if f"`{name}`" not in listed] == []


@pytest.mark.parametrize(
    ("record", "file", "prefix"),
    [
        (GroupRecord, "includes/group", ""),
        (GroupRules, "includes/rules", ""),
        (BatchRecord, "includes/batch", ""),
        (DeadRecord, "includes/dead", "DEAD_"),
    ],
)
def test_places_of_records_have_one_name_in_both_languages(
    record: type[GroupRecord | GroupRules | BatchRecord | DeadRecord], file: str, prefix: str
) -> None:
    places = re.findall(rf"^local {prefix}([A-Z_]+) += (\d+) +--", text_of(file), re.MULTILINE)
    in_python = [(field.upper(), str(place)) for place, field in enumerate(record._fields, 1)]
    assert places == in_python


# --- includes ------------------------------------------------------------------------------------


def _code(file: str) -> str:
    """A file without comments."""
    return re.sub("--.*", "", text_of(file))


def _defined(file: str) -> set[str]:
    """The names that a file defines at its top level."""
    functions = re.findall(r"^local function (\w+)", _code(file), re.MULTILINE)
    variables = re.findall(r"^local ([\w, ]+?) +=", _code(file), re.MULTILINE)
    return {*functions, *(name for names in variables for name in names.split(", "))}


def _used(file: str) -> set[str]:
    """The names that a file reads and does not define, without fields and texts."""
    code = re.sub(r"'[^'\n]*'", "''", _code(file))
    return set(re.findall(r"(?<![.\w])[A-Za-z_]\w*\b(?! = )", code)) - _defined(file)


@pytest.mark.parametrize("file", _FILES)
def test_a_file_includes_what_it_uses_itself(file: str) -> None:
    listed = re.findall(r"^-- @include (\w+)$", text_of(file), re.MULTILINE)
    includes = [each.removeprefix("includes/") for each in _FILES if each.startswith("includes/")]
    assert listed == [each for each in includes if _defined(f"includes/{each}") & _used(file)]


FILES = {
    "twice": "-- twice: ...\n\n-- @include left\n-- @include right\n-- @include base\n\nreturn 1\n",
    "includes/left": "-- @include base\n\nlocal left = 1\n",
    "includes/right": "-- @include base\n\nlocal right = 1\n",
    "includes/base": "local base = 1\n",
    "cycle": "-- @include a\n",
    "includes/a": "-- @include b\n",
    "includes/b": "-- @include a\n",
}


def test_an_include_is_put_in_once_and_behind_its_own_includes() -> None:
    expanded = "-- twice: ...\n\nlocal base = 1\n\nlocal left = 1\n\nlocal right = 1\n\nreturn 1\n"
    assert expand("twice", FILES.__getitem__) == expanded


def test_a_cycle_of_includes_is_an_error() -> None:
    cycle = "includes/a -> includes/b -> includes/a"
    with pytest.raises(ValueError, match=f"a cycle of includes: cycle -> {cycle}"):
        expand("cycle", FILES.__getitem__)


CONSTANTS = """local FIRST = 1  -- a place
local BYTES = 64 * 1024
local FIRST_KEY, FIRST_ARG = 2, 3
local NAME = 'FIRST'
return t[FIRST] + 1 / BYTES,
  t.FIRST, 'BYTES', NAME .. FIRST  -- FIRST
"""
WITH_VALUES = """-- FIRST = 1  -- a place
-- BYTES = 64 * 1024
local FIRST_KEY, FIRST_ARG = 2, 3
-- NAME = 'FIRST'
return t[1 --[[FIRST]]] + 1 / (64 * 1024) --[[BYTES]],
  t.FIRST, 'BYTES', 'FIRST' --[[NAME]] .. 1 --[[FIRST]]  -- FIRST
"""


def test_the_values_of_constants_are_put_in() -> None:
    assert expand("constants", {"constants": CONSTANTS}.__getitem__) == WITH_VALUES


@pytest.mark.parametrize("name", _NAMES)
def test_no_constant_is_left_by_its_name(name: str) -> None:
    source = load(name).source.decode()
    constants = re.findall(r"^-- ([A-Z][A-Z0-9_]*) = ", source, re.MULTILINE)
    code = re.sub(r"--\[\[.*?\]\]|--.*|'[^'\n]*'", "", source)
    assert set(constants) & set(re.findall(r"\w+", code)) == set()


WITH_UNUSED = """-- unused: says nothing

-- Is used by the script.
local function used(n) return through(n) end

-- Is used by nothing: not by its name in a comment,
-- in a 'through_text', or as a field or a key.
local function unused(n)
  if n then return n.end_of end
end

-- Is used by one that is left out.
local function of_unused() return unused(1) end  -- unused

local function itself(n) return itself(n) end
local function after() return 'itself' end
return used(after().unused, { unused = 1 }) -- of_unused
"""
WITHOUT_UNUSED = """-- unused: says nothing

-- Is used by the script.
local function used(n) return through(n) end

local function after() return 'itself' end
return used(after().unused, { unused = 1 }) -- of_unused
"""


def test_functions_that_a_script_does_not_use_are_left_out() -> None:
    assert expand("unused", {"unused": WITH_UNUSED}.__getitem__) == WITHOUT_UNUSED


@pytest.mark.parametrize("name", _NAMES)
def test_all_functions_that_are_left_are_used(name: str) -> None:
    """Redis makes each of them in each call of the script."""
    source = load(name).source.decode()
    code = re.sub(r"--\[\[.*?\]\]|--.*|'[^'\n]*'", "", source)
    functions = re.findall(r"^local function (\w+)", code, re.MULTILINE)
    uses = Counter(re.findall(r"(?<!\.)\b\w+\b(?! = )", code))
    assert [each for each in functions if uses[each] < 2] == []


@pytest.mark.parametrize("name", _NAMES)
def test_an_expanded_script_stays_as_it_is(name: str) -> None:
    """What reads scripts need not know whether a folder has expanded ones."""
    expanded = load(name).source.decode()
    assert expand(name, {name: expanded}.__getitem__) == expanded


def test_a_constant_with_the_name_of_another_variable_is_an_error() -> None:
    twice = "local PLACE = 1\ndo\n  local OTHER, PLACE = 2, 3\nend\n"
    with pytest.raises(ValueError, match="the constant PLACE has the name of another local"):
        expand("twice", {"twice": twice}.__getitem__)


def test_a_clone_can_write_the_expanded_scripts(tmp_path: Path) -> None:
    """Without any package installed."""
    command: list[str | Path] = [
        sys.executable,
        "-I",
        "-S",
        ROOT / "redisagg" / "protocol" / "includes.py",
    ]
    subprocess.run([*command, tmp_path / "lua"], check=True, stdout=subprocess.DEVNULL)
    written = {path.stem: path.read_bytes() for path in (tmp_path / "lua").iterdir()}
    assert written == {name: load(name).source for name in _NAMES}


# --- luacheck ------------------------------------------------------------------------------------

needs_luacheck = pytest.mark.skipif(
    shutil.which("luacheck") is None, reason="luacheck is not installed (Debian: lua-check)"
)


@needs_luacheck
def test_luacheck_has_no_warning() -> None:
    assert [str(warning) for warning in luacheck()] == []


@needs_luacheck
def test_luacheck_warns_about_names_that_no_script_uses(tmp_path: Path) -> None:
    (tmp_path / "includes").mkdir()
    shared = "local one = 1\nlocal two = 2\n\nlocal none = 0\n"
    (tmp_path / "includes" / "shared.lua").write_text(shared)
    (tmp_path / "first.lua").write_text("-- @include shared\n\nreturn one\n")
    second = "-- @include shared\n\nlocal unused = 1\nglobal = two\n"
    (tmp_path / "second.lua").write_text(second)
    assert [str(warning) for warning in luacheck(tmp_path)] == [
        "lua/includes/shared.lua:4: (W211) unused variable 'none'",
        "lua/second.lua:3: (W211) unused variable 'unused'",
        "lua/second.lua:4: (W111) setting non-standard global variable 'global'",
    ]
