"""Makes a release: `python scripts/release.py VERSION`, in a clean checkout.

It gives the changes under "Unreleased" in CHANGELOG.md the version and the date of today, writes
both to where they stand (`redisagg/__init__.py`, CITATION.cff), builds the sdist and the wheel and
checks them, commits, and tags the commit with the changes. It pushes and uploads nothing; it prints
the commands for that.

``--dry-run`` does all of it in a copy, and prints the difference and the changes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

SECTIONS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
"""What the changes of a version may be divided into, by Keep a Changelog."""

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_HEADING = re.compile(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?\n", re.MULTILINE)


class ReleaseError(Exception):
    """The release can't be made; nothing was changed."""


@dataclass(frozen=True)
class Entry:
    """The changes of a version in the changelog."""

    version: str
    date: str | None
    text: str


def entries(changelog: str) -> list[Entry]:
    """The versions in a changelog, newest first; the first is ``Unreleased``.

    Raises:
        ReleaseError: the changelog has another form.
    """
    parts = _HEADING.split(changelog)[1:]
    found = [
        Entry(version, date, text.strip())
        for version, date, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]
    if not found or found[0].version != "Unreleased":
        raise ReleaseError("the first heading of CHANGELOG.md is not '## [Unreleased]'")
    for entry in found[1:]:
        if not _VERSION.fullmatch(entry.version) or not entry.date:
            raise ReleaseError(f"CHANGELOG.md: '## [{entry.version}]' has no version or no date")
    for section in re.findall(r"^### (.+)$", changelog, re.MULTILINE):
        if section not in SECTIONS:
            raise ReleaseError(f"CHANGELOG.md: '### {section}' is none of {', '.join(SECTIONS)}")
    return found


class Release:
    """A release of the project in a folder.

    Args:
        root: the checkout.
        version: the version to release.
        date: the day of the release.

    Raises:
        ReleaseError: the version is not a newer one, or there are no changes.
    """

    def __init__(self, root: Path, version: str, date: str) -> None:
        self._root = root
        self._version = version
        self._date = date
        changelog = (root / "CHANGELOG.md").read_text("utf-8")
        unreleased, *released = entries(changelog)
        self.notes = unreleased.text
        if not _VERSION.fullmatch(version):
            raise ReleaseError(f"a version is three numbers, not {version!r}")
        if any(_order(version) <= _order(entry.version) for entry in released):
            raise ReleaseError(f"{version} is not newer than {released[0].version}")
        if not re.search(r"^- ", self.notes, re.MULTILINE):
            raise ReleaseError("CHANGELOG.md has no changes under '## [Unreleased]'")

    def write(self) -> None:
        """Writes the version and the date to all files that have them."""
        heading = f"## [Unreleased]\n\n## [{self._version}] - {self._date}\n"
        self._replace("CHANGELOG.md", r"^## \[Unreleased\]\n", heading)
        self._replace(
            "redisagg/__init__.py", r'^__version__ = ".*"$', f'__version__ = "{self._version}"'
        )
        self._replace("CITATION.cff", r"^version: .*$", f"version: {self._version}")
        self._replace("CITATION.cff", r"^date-released: .*$", f"date-released: {self._date}")

    def _replace(self, name: str, pattern: str, replacement: str) -> None:
        path = self._root / name
        text, times = re.subn(pattern, replacement, path.read_text("utf-8"), flags=re.MULTILINE)
        if times != 1:
            raise ReleaseError(f"{name} has {pattern!r} {times} times")
        path.write_text(text, "utf-8")

    def commit(self) -> None:
        """Commits what was written, and tags it."""
        run(self._root, "git", "commit", "--quiet", "--all", "-m", f"release: {self._version}")
        message = f"redisagg {self._version}\n\n{self.notes}\n"
        run(
            *(self._root, "git", "tag", "--annotate", f"v{self._version}"),
            *("--cleanup=verbatim", "-m", message),
        )


def build(root: Path) -> list[Path]:
    """Builds the sdist and the wheel into the folder ``dist``, checks both, and returns them."""
    shutil.rmtree(root / "dist", ignore_errors=True)
    run(root, sys.executable, "-P", "-m", "build", "--outdir", str(root / "dist"), str(root))
    built = sorted((root / "dist").iterdir())
    names = [str(path) for path in built]
    run(root, sys.executable, "-P", "-m", "twine", "check", "--strict", *names)
    wheels = [name for name in names if name.endswith(".whl")]
    run(root, sys.executable, "-P", "-m", "check_wheel_contents", *wheels)
    return built


def run(root: Path, *command: str) -> str:
    """Runs a command in a folder, and returns what it prints.

    Raises:
        ReleaseError: it failed.
    """
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{' '.join(command[:4])} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def release(root: Path, version: str, *, with_build: bool) -> Release:
    """Makes a release in a clean checkout.

    Raises:
        ReleaseError: it can't be made. If a check of what was built failed, the files are changed
            and nothing is committed.
    """
    if run(root, "git", "status", "--porcelain", "--untracked-files=no"):
        raise ReleaseError("the checkout has changes that are not committed")
    made = Release(root, version, datetime.now(timezone.utc).date().isoformat())
    made.write()
    if with_build:
        for path in build(root):
            print(f"built and checked {path.name}")
    made.commit()
    return made


def main() -> None:
    """Makes a release, or shows what it would be."""
    parser = argparse.ArgumentParser(description="Makes a release.")
    parser.add_argument("version", help="three numbers, such as 0.2.0")
    parser.add_argument("--dry-run", action="store_true", help="do it in a copy, and show it")
    parser.add_argument("--no-build", action="store_true", help="neither build nor check")
    parser.add_argument("--root", type=Path, default=CHECKOUT, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    version, with_build = arguments.version, not arguments.no_build
    try:
        if not arguments.dry_run:
            release(arguments.root, version, with_build=with_build)
            print(f"committed and tagged v{version}; now:")
            print(f"  git push origin HEAD v{version}")
            print("  python -m twine upload dist/*")
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            run(arguments.root, "git", "clone", "--quiet", "--no-hardlinks", ".", str(copy))
            for setting in ("user.name", "user.email"):
                run(copy, "git", "config", setting, "dry run")
            made = release(copy, version, with_build=with_build)
            print(run(copy, "git", "show", "--format=%s", "--unified=1"))
            print(f"v{version}:\n\n{made.notes}")
    except ReleaseError as error:
        sys.exit(f"no release: {error}")


if __name__ == "__main__":
    main()
