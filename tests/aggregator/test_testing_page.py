"""Every block of docs/testing.md runs, as the files of one project."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.markdown import code_blocks, read, rows, section
from tests.support.pytest_runs import run_pytest

PAGE = "docs/testing.md"

SETTINGS = """
SECRET_KEY = "tests"
INSTALLED_APPS = [
    "django.contrib.contenttypes", "django.contrib.auth", "redisagg.contrib.django"
]
REDISAGG = {"URL": "redis://redis.example.org:6379/0"}
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
"""

INI = """
[pytest]
DJANGO_SETTINGS_MODULE = shop.settings
asyncio_default_fixture_loop_scope = function
pythonpath = .
addopts = --import-mode=importlib
"""


def test_the_blocks(tmp_path: Path) -> None:
    for package in ("fastapi", "httpx", "pytest_django"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    names = []
    for block in code_blocks(read(PAGE), "python"):
        first, _, _ = block.partition("\n")
        name = first.removeprefix("# ")
        assert re.fullmatch(r"shop/(tests/)?\w+\.py", name), f"a block without a name: {first}"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(block, "utf-8")
        names.append(name)
    assert len(set(names)) == len(names)
    (tmp_path / "shop" / "settings.py").write_text(SETTINGS, "utf-8")
    (tmp_path / "pytest.ini").write_text(INI, "utf-8")
    found = entry_points(group="pytest11", name="redisagg")
    by_hand = () if found else ("-p", "redisagg.testing.plugin")
    done = run_pytest(*by_hand, "shop/tests", cwd=tmp_path)
    tests = sum(block.count("def test_") for block in code_blocks(read(PAGE), "python"))
    assert f"{tests} passed" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout


def test_the_table_of_fixtures_is_that_of_the_plugin() -> None:
    from redisagg.testing import plugin

    table = rows(section(read(PAGE), "Fixtures"))
    documented = {name for first, *_ in table for name in re.findall(r"`(\w+)`", first)}
    fixtures = {name for name, each in vars(plugin).items() if _is_fixture(each)}
    assert documented == fixtures


def _is_fixture(found: object) -> bool:
    # A mark before pytest 8.4, a class since.
    return hasattr(found, "_pytestfixturefunction") or "Fixture" in type(found).__name__
