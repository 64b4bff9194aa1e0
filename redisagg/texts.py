"""Texts for errors and logs: without secrets, without control characters, and short."""

from __future__ import annotations

import logging
import re

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,40}(?=://)", re.IGNORECASE)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, separators of lines, marks that reverse a text, and lone surrogates."""

_MAX_LENGTH = 100


def redact_url(url: str) -> str:
    """Returns the scheme of a URL and nothing else, for an error text.

    A mistyped URL may have its password at any other place: in the host, the path or an option.
    """
    scheme = _SCHEME.match(url)
    return f"{scheme[0]}://…" if scheme else "a text without a scheme"


def shorten(value: object) -> str:
    """Returns the repr of a value, shortened; Python has none for an int of many digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an int of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def escape_control(text: str) -> str:
    """Escapes what could begin a new line of a log or change what a terminal shows."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _EscapesArguments(logging.Filter):
    """Escapes the arguments of log lines: group keys, errors of user code, replies of Redis."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                escape_control(str(each)) if isinstance(each, str | BaseException) else each
                for each in record.args
            )
        return True


logging.getLogger("redisagg").addFilter(_EscapesArguments())
