"""Texts for errors and logs: without secrets, without control characters, and short."""

from __future__ import annotations

import logging
import re
import traceback

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,40}(?=://)", re.IGNORECASE)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, separators of lines, marks that reverse a text, and lone surrogates."""

_USERINFO = re.compile(r"//[^\s'\"<>]{0,300}@")
"""User and password of a URL, up to the last @: a password may have one that is not escaped."""

_SECRET_OPTION = re.compile(r"([?&](?:username|(?:\w{0,40}_)?password|token|secret)=)[^&\s'\"<>]*")

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
    text = redact(repr(value))
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def escape_control(text: str) -> str:
    """Escapes what could begin a new line of a log or change what a terminal shows."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def redact(text: str) -> str:
    """Replaces passwords of URLs in a text that others wrote, such as an error of a library."""
    if "//" not in text and "=" not in text:
        return text
    return _SECRET_OPTION.sub(r"\1…", _USERINFO.sub("//…@", text))


def summary_of(error: BaseException) -> str:
    """Returns the class of an exception and its message, redacted."""
    return redact(f"{type(error).__name__}: {message_of(error)}")


def message_of(error: BaseException) -> str:
    """Returns the message of an exception, of user code too: its `__str__` may raise."""
    try:
        return str(error)
    except BaseException as other:
        return f"<no message: __str__ raised {type(other).__name__}>"


def traceback_of(error: BaseException) -> str:
    """Returns the traceback of an exception, redacted; Python has none for some `SyntaxError`s."""
    try:
        return redact("".join(traceback.format_exception(error)))
    except BaseException as other:
        return f"{summary_of(error)}\n<no traceback: {type(other).__name__}>\n"


class _SafeLines(logging.Filter):
    """Escapes and redacts what others put into log lines.

    These are group keys, errors of user code and replies of Redis, as arguments or in tracebacks.
    The lines of a traceback are indented, so that none of them looks like a line of the log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                escape_control(
                    redact(message_of(each) if isinstance(each, BaseException) else each)
                )
                if isinstance(each, str | BaseException)
                else each
                for each in record.args
            )
        if record.exc_info and record.exc_info[1] is not None:
            lines = traceback_of(record.exc_info[1]).rstrip("\n").split("\n")
            record.exc_text = "\n".join(f"    {escape_control(line)}" for line in lines)
        return True


_safe_lines = _SafeLines()
logging.getLogger("redisagg").addFilter(_safe_lines)


def logger(name: str) -> logging.Logger:
    """Returns the logger of this name below ``redisagg``; docs/logging.md lists the names.

    What is logged by it is safe: a filter of a logger does not see what those below it log.
    """
    found = logging.getLogger(f"redisagg.{name}")
    found.addFilter(_safe_lines)  # once, however often it is called
    return found


def group_text(group: bytes) -> str:
    """Returns the text of a group key for a log line, shortened."""
    text = group.decode("utf-8", "replace")
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def span_text(seconds: float) -> str:
    """Returns a number of seconds for a log line, such as ``0.4 s`` or ``3,600 s``."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s"
