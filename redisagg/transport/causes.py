"""What an error of redis-py was raised for.

redis-py raises errors of its own for those of the system, mostly without `from`, so that the cause
is only their context. A context alone says little. The last one of the chain is what the caller of
redisagg is just handling, who may well add a task in an ``except`` block. And if an error is raised
once more, Python replaces its context.
"""

from __future__ import annotations

from collections.abc import Iterator


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yields the error, what redis-py raised it for, and so on; nothing that the caller handles."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = _cause(each)


def keep_cause(error: BaseException) -> None:
    """Makes the cause of an error of redis-py explicit, so that the error can be raised again."""
    error.__cause__ = _cause(error)


def _cause(error: BaseException) -> BaseException | None:
    context = error.__context__
    if error.__cause__ is not None or context is None:
        return error.__cause__
    return context if _was_caught_in_redis_py(context) else None


def _was_caught_in_redis_py(error: BaseException) -> bool:
    # A traceback begins in the frame that caught the error.
    traceback = error.__traceback__
    module = traceback and traceback.tb_frame.f_globals.get("__name__")
    return str(module).partition(".")[0] == "redis"
