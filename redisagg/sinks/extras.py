"""Packages that sinks need and that the extras of redisagg install."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from redisagg.errors import SinkError


def require(module: str, extra: str) -> Any:
    """Imports a module of a package that an extra of redisagg installs.

    Args:
        module: the name of the module.
        extra: the name of the extra.

    Raises:
        SinkError: the package is not installed; the message has the pip command.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise SinkError(
            f"this sink needs the package {module.partition('.')[0]!r}: "
            f"pip install 'redisagg[{extra}]'"
        ) from error
