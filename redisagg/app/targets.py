"""Import strings: ``MODULE:ATTRIBUTE``, read when they are needed."""

from __future__ import annotations

import pickle
import sys
from importlib import import_module
from typing import Any

from redisagg.errors import InvalidConfig
from redisagg.texts import shorten


def load(target: str) -> Any:
    """Imports what ``MODULE:ATTRIBUTE`` names; the attribute may have dots.

    Raises:
        InvalidConfig: the module can't be imported, or has no such attribute.
    """
    module, _, attribute = target.partition(":")
    try:
        found = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidConfig(
            f"{shorten(target)} can't be loaded: {error}; give MODULE:ATTRIBUTE of an App or an "
            "aggregator"
        ) from error
    return found


def place_of(wanted: Any, module: str | None = None, attribute: str | None = None) -> str:
    """Returns the import string of an object.

    Args:
        wanted: the object.
        module, attribute: where it probably is.

    Raises:
        pickle.PicklingError: no module has it as an attribute.
    """
    if module and attribute:
        found: Any = sys.modules.get(module)
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if found is wanted:
            return f"{module}:{attribute}"
    for name, each in list(sys.modules.items()):
        for attribute, value in list(getattr(each, "__dict__", {}).items()):
            if value is wanted and name != "__mp_main__":
                return f"{name}:{attribute}"
    raise pickle.PicklingError(
        f"{wanted!r} is pickled by its name, but no module has it as an attribute; define it at "
        "the top level of a module"
    )
