"""Expands the Lua scripts: puts the texts of their includes and the values of constants in.

A line ``-- @include NAME`` stands for ``includes/NAME.lua``, which may have such lines itself. The
functions of an include that a script does not use are left out: Redis makes each function anew in
each call of the script, which takes about as long as a short command.

A line ``local NAME = 5``, not indented and in capitals, is a constant. Its value stands in place of
each use, with the name as a comment. For Lua 5.1 a constant is a variable: each function that uses
it captures it anew in each call of the script. That took a fifth of the time that a call of ``add``
spent in Lua.

``python redisagg/protocol/includes.py FOLDER`` writes the expanded scripts of a clone into a
folder, for clients in other languages. This module uses the standard library only: the build of a
wheel runs it without redisagg's dependencies.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

_INCLUDE = re.compile(r"^-- @include (\w+)\n", re.MULTILINE)
_CONSTANT = re.compile(
    r"^local (?P<name>[A-Z][A-Z0-9_]*) *= (?P<value>'[^'\n]*'|\d[\d.^* ]*?) *(?P<comment>--.*)?$",
    re.MULTILINE,
)
_FUNCTION = re.compile(
    r"^(?:--[^\n]*\n)*local function (?P<name>\w+)\((?:[^\n]* end(?: *--[^\n]*)?\n|.*?^end\n)",
    re.MULTILINE | re.DOTALL,
)
_LOCALS = re.compile(r"\blocal ([A-Za-z_]\w*(?:, *[A-Za-z_]\w*)*)")
# Comments and texts are matched so that no name in them is.
_NAME = re.compile(
    r"--\[\[.*?\]\]|--[^\n]*|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\""
    r"|(?<![\w.:])(?P<name>[A-Za-z_]\w*)\b(?! *=[^=])",  # not as a key of a table
    re.DOTALL,
)
_USE = re.compile(
    r"--[^\n]*|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|(?<![\w.:])[A-Z][A-Z0-9_]*(?![\w.:])",
    re.DOTALL,
)


def expand(name: str, read: Callable[[str], str]) -> str:
    """Puts includes and constants into a script. An expanded script stays as it is.

    Args:
        name: The script, such as ``claim``.
        read: Returns the text of a file by its name without suffix: ``claim``, ``includes/clock``.

    Raises:
        ValueError: An include includes itself, directly or through others, or a constant has the
            name of another local variable.
    """
    return _put_constants(_leave_out_unused(put_includes(name, read)))


def put_includes(name: str, read: Callable[[str], str]) -> str:
    """Puts the includes of a script in, each once, behind those that it includes itself.

    Args:
        name: As in `expand`.
        read: As in `expand`.

    Returns:
        The text of the script without include lines.

    Raises:
        ValueError: An include includes itself, directly or through others.
    """
    done: set[str] = set()

    def text_of(path: str, including: tuple[str, ...]) -> str:
        if path in including:
            raise ValueError(f"a cycle of includes: {' -> '.join([*including, path])}")
        if path in done:
            return ""
        including = (*including, path)
        text = _INCLUDE.sub(lambda match: text_of(f"includes/{match[1]}", including), read(path))
        done.add(path)
        return f"{text.strip()}\n\n"

    # An include line that expands to nothing leaves empty lines.
    return re.sub(r"\n{3,}", "\n\n", text_of(name, ())).rstrip() + "\n"


def _leave_out_unused(text: str) -> str:
    """Leaves out the functions that nothing outside of functions uses, directly or through others.

    Functions that are indented stay, and so do those that are declared before they are defined.
    """
    functions = {match["name"]: match[0] for match in _FUNCTION.finditer(text)}
    used: set[str] = set()
    to_read = [_FUNCTION.sub("", text)]
    while to_read:
        names = {match["name"] for match in _NAME.finditer(to_read.pop())}
        to_read += [functions[name] for name in (names - used) & functions.keys()]
        used |= names

    def used_function(match: re.Match[str]) -> str:
        return match[0] if match["name"] in used else ""

    return re.sub(r"\n{3,}", "\n\n", _FUNCTION.sub(used_function, text))


def _put_constants(text: str) -> str:
    """Puts the values of constants in place of their names."""
    values = {match["name"]: match["value"] for match in _CONSTANT.finditer(text)}
    declared = [name for names in _LOCALS.findall(text) for name in re.split(", *", names)]
    for name in values:
        if declared.count(name) > 1:
            raise ValueError(f"the constant {name} has the name of another local variable")

    def value_of(match: re.Match[str]) -> str:
        name = match[0]
        if name not in values:
            return name
        value = values[name]
        return f"{f'({value})' if '*' in value else value} --[[{name}]]"

    def as_comment(match: re.Match[str]) -> str:
        return f"-- {match['name']} = {match['value']}  {match['comment'] or ''}".rstrip()

    return _USE.sub(value_of, _CONSTANT.sub(as_comment, text))


def expand_file(folder: Path, name: str) -> str:
    """Expands the script ``NAME.lua`` of a folder.

    Raises:
        FileNotFoundError: The script or one of its includes does not exist.
        ValueError: An include includes itself, directly or through others.
    """
    return expand(name, lambda path: (folder / f"{path}.lua").read_text("utf-8"))


def expand_folder(source: Path, target: Path) -> list[Path]:
    """Writes the expanded scripts of `source` into `target`, which is created if it is missing.

    Returns:
        The written files.
    """
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for script in sorted(source.glob("*.lua")):
        path = target / script.name
        path.write_text(expand_file(source, script.stem), "utf-8")
        written.append(path)
    return written


def _main() -> None:
    parser = argparse.ArgumentParser(description="Writes the expanded Lua scripts of this clone.")
    parser.add_argument("folder", type=Path, help="where to write them; created if missing")
    folder = parser.parse_args().folder
    print(f"{len(expand_folder(Path(__file__).parents[2] / 'lua', folder))} scripts in {folder}")


if __name__ == "__main__":
    _main()
