"""The audit log: who changed what, by a logger and a function of the user."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from redisagg.texts import logger

_log = logger("audit")

_MOST_TARGET = 512
"""Characters of a target in a line."""


@dataclass(frozen=True, slots=True)
class Action:
    """An action of a user, done, failed or refused."""

    action: str
    """Its name, such as ``"flush"`` or ``"requeue"``."""
    user: str
    """Name of the user; ``"anonymous"`` without authentication."""
    client: str
    """Address from which the request came."""
    redis: str
    """Label of the Redis."""
    namespace: str
    """Name of the namespace."""
    target: str
    """What it was done to: a group key, a batch id, a pattern, or a filter."""
    outcome: Literal["done", "failed", "refused"]
    """``"refused"``: the user may not do it, or the request had no valid CSRF token."""
    result: str
    """What it did, or why it failed."""
    at: float = field(default_factory=time.time)
    """When, in seconds since the epoch."""


OnAction: TypeAlias = Callable[[Action], "Awaitable[object] | object"]


class Audit:
    """Notes actions.

    Args:
        on_action: function that is called with each one, plain or ``async``; None for none.
    """

    def __init__(self, on_action: OnAction | None) -> None:
        self._on_action = on_action

    async def note(self, action: Action) -> None:
        """Logs an action, and calls the function; an error of that is logged."""
        fields: dict[str, Any] = {
            f"audit_{name}": value for name, value in asdict(action).items() if name != "at"
        }
        _log.info(
            "%s %s %s of %s/%s by %s from %s: %s",
            *(action.outcome, action.action, repr(action.target[:_MOST_TARGET])),
            *(action.redis, action.namespace, action.user, action.client, action.result),
            extra=fields,
        )
        if self._on_action is None:
            return
        try:
            returned = self._on_action(action)
            if inspect.isawaitable(returned):
                await returned
        except Exception as error:
            _log.error("on_action failed: %s", error, exc_info=True)
