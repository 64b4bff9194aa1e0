"""What an action did, kept until the page that follows has shown it."""

from __future__ import annotations

import secrets
from typing import NamedTuple

_MOST = 1_000


class Message(NamedTuple):
    """A message for one page."""

    text: str
    level: str


class Messages:
    """The messages that were not shown yet."""

    def __init__(self) -> None:
        self._messages: dict[str, Message] = {}

    def put(self, text: str, level: str) -> str:
        """Keeps a message; returns the mark by which `take` finds it."""
        mark = secrets.token_urlsafe(9)
        self._messages[mark] = Message(text, level)
        while len(self._messages) > _MOST:
            del self._messages[next(iter(self._messages))]
        return mark

    def take(self, mark: str) -> Message | None:
        """Returns a message, once."""
        return self._messages.pop(mark, None)
