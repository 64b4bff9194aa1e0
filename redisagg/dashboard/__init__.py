"""The dashboard: pages that show namespaces and steer them, as an ASGI app; the extra ``ui``.

`asgi` makes the app. `redisagg dashboard` serves it, and FastAPI, Starlette or Django mount it; see
docs/dashboard.md.
"""

from __future__ import annotations

try:
    import jinja2  # noqa: F401
    import starlette  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"redisagg.dashboard needs the package {error.name!r}; install it with: "
        "pip install 'redisagg[ui]'"
    ) from error

from redisagg.dashboard.application import Dashboard, asgi, under
from redisagg.dashboard.audit import Action
from redisagg.dashboard.security import User

__all__ = ["Action", "Dashboard", "User", "asgi", "under"]
