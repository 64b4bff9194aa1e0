"""Builds the site of the documentation: `python scripts/build_site.py`, into build/site.

The pages are the Markdown files of the project, as they are. This script lays them out for
Zensical, in build/pages: README becomes the home page, links between pages become those of the
site, and a source file that a page links to becomes a page. Its navigation are the tables of
docs/README.md, so a page that is listed there is on the site. Nothing is loaded from elsewhere:
the site can be read offline.

``--serve`` serves it, at http://127.0.0.1:8000.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import importlib
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
BUILD = CHECKOUT / "build"
INDEX = "docs/README.md"

PLACES = {
    "README.md": "index.md",
    INDEX: "pages.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security-policy.md",
    "lua/README.md": "project/scripts.md",
    "examples/README.md": "examples/index.md",
    "examples/apps/README.md": "examples/apps.md",
    "deploy/README.md": "deploy.md",
    "benchmarks/README.md": "project/benchmarks.md",
}
"""Places on the site of pages that are not those below docs/."""

# A link's target outside code: fences and code spans are matched first, and left alone.
_LINK = re.compile(
    r"(?s:^( *)(```+|~~~+).*?^\1\2)|`[^`\n]*`|(?<=\]\()([^)\s]+)(?=\))", re.MULTILINE
)
_COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(##+) (.+)$")
_ROW = re.compile(r"^\| \[([^\]]+)\]\(([^)]+)\) \|")
_LANGUAGES = {".py": "python", ".go": "go", ".lua": "lua", ".mjs": "js", ".yml": "yaml"}

Nav = list[dict[str, Any]]


def place_of(path: Path) -> str:
    """The place on the site of a file of the checkout, also of a source file."""
    name = path.relative_to(CHECKOUT).as_posix()
    if name in PLACES:
        return PLACES[name]
    if name.startswith("docs/") and path.suffix != ".py":
        return name.removeprefix("docs/")
    if path.suffix == ".md":
        return f"project/{name.removesuffix('/README.md').removesuffix('.md').replace('/', '-')}.md"
    return f"source/{name}.md"


def listed() -> list[tuple[str, list[tuple[str, Path]]]]:
    """The sections of docs/README.md, each with the titles and files of its pages."""
    sections: list[tuple[str, list[tuple[str, Path]]]] = []
    for line in (CHECKOUT / INDEX).read_text("utf-8").splitlines():
        if heading := _HEADING.match(line):
            sections.append((heading[2], []))
        elif row := _ROW.match(line):
            sections[-1][1].append((row[1], (CHECKOUT / "docs" / row[2]).resolve()))
    return sections


def modules() -> list[str]:
    """The public modules, by docs/reference.md."""
    text = (CHECKOUT / "docs" / "reference.md").read_text("utf-8")
    return re.findall(r"^\| `(redisagg[\w.]*)` \|", text, re.MULTILINE)


def navigation() -> Nav:
    """The navigation of the site."""
    nav: Nav = [{"Home": "index.md"}]
    for section, pages in listed():
        entries: Nav = [
            {title: place_of(path)} for title, path in pages if place_of(path) != "index.md"
        ]
        if section == "Reference":
            entries += [{name: f"reference/{name}.md"} for name in modules()]
        nav.append({section: entries})
    return [*nav, {"All pages": PLACES[INDEX]}]


def public_names(module: str) -> list[str]:
    """The public names of a module: those of ``__all__``, else those that it defines."""
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None) or [
        name
        for name, value in vars(found).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]
    return list(names)


def reference(module: str) -> str:
    """The page of a module: what mkdocstrings is to fill in."""
    names = [each for each in public_names(module) if f"{module}.{each}" not in modules()]
    parts = "".join(f"\n::: {module}.{name}\n" for name in names)
    return f"# {module}\n\n{importlib.import_module(module).__doc__}\n{parts}"


class Site:
    """The pages of the site, as Zensical reads them.

    Args:
        folder: the folder that they are written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sources: set[Path] = set()

    def write(self) -> None:
        """Writes all pages, pictures and linked source files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for _, pages in listed():
            for _, path in pages:
                self._page(path)
        self._page(CHECKOUT / INDEX)
        for picture in (CHECKOUT / "docs").rglob("*"):
            if picture.suffix in (".svg", ".png", ".css"):
                self._put(place_of(picture), picture.read_bytes())
        for source in sorted(self._sources):
            self._put(place_of(source), _listing(source).encode())
        for module in modules():
            self._put(f"reference/{module}.md", reference(module).encode())

    def _page(self, path: Path) -> None:
        text = _COMMENT.sub("", path.read_text("utf-8"))
        self._put(place_of(path), self._with_links(text, path).encode())

    def _with_links(self, text: str, path: Path) -> str:
        here = posixpath.dirname(place_of(path))

        def target(match: re.Match[str]) -> str:
            if match[3] is None or re.match(r"[a-z]+:|#", match[3]):
                return match[0]
            name, _, anchor = match[3].partition("#")
            file = (path.parent / name).resolve()
            if (file / "README.md").is_file():
                file /= "README.md"
            place = place_of(file)
            if place.startswith("source/"):
                self._sources.add(file)
                if file.is_dir():
                    self._sources |= {each for each in file.rglob("*") if each.is_file()}
            return posixpath.relpath(place, here or ".") + (f"#{anchor}" if anchor else "")

        return _LINK.sub(target, text)

    def _put(self, place: str, content: bytes) -> None:
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _listing(path: Path) -> str:
    """A page with a source file, or with links to the files of a folder."""
    if path.is_dir():
        files = sorted(each.relative_to(path).as_posix() for each in path.rglob("*.*"))
        links = "".join(f"- [{file}]({path.name}/{file}.md)\n" for file in files)
        return f"# {path.relative_to(CHECKOUT)}\n\n{links}"
    name, language = path.relative_to(CHECKOUT), _LANGUAGES.get(path.suffix, "text")
    return f"# {path.name}\n\n`{name}`\n\n````{language}\n{path.read_text('utf-8')}\n````\n"


def build(folder: Path = BUILD) -> Path:
    """Builds the site below a folder, and returns its own folder.

    Raises:
        subprocess.CalledProcessError: something is wrong, such as a link to nowhere; Zensical says
            what on standard error.
    """
    Site(folder / "pages").write()
    config = (CHECKOUT / "mkdocs.yml").read_text("utf-8")
    config += f"\ndocs_dir: pages\nsite_dir: site\nnav: {json.dumps(navigation(), indent=1)}\n"
    file = folder / "mkdocs.yml"
    file.write_text(config, "utf-8")
    command = [sys.executable, "-P", "-m", "zensical", "build", "--clean", "--strict"]
    subprocess.run(
        [*command, "--config-file", str(file)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "NO_COLOR": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return folder / "site"


def main() -> None:
    """Builds the site, and serves it if asked to."""
    parser = argparse.ArgumentParser(description="Builds the site of the documentation.")
    parser.add_argument("--serve", action="store_true", help="serve it at 127.0.0.1:8000")
    serve = parser.parse_args().serve
    site = build()
    print(f"built {site.relative_to(CHECKOUT)}")
    if serve:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
        http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler).serve_forever()


if __name__ == "__main__":
    main()
