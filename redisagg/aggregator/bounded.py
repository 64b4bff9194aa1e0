"""A blocking call with a limit on the time that its caller waits."""

from __future__ import annotations

import threading
from collections.abc import Callable


def call_within(timeout: float, function: Callable[[], object]) -> bool:
    """Calls a function in a daemon thread, and waits for it.

    Args:
        timeout: seconds after which nobody waits for it any more.

    Returns:
        Whether it has ended.

    Raises:
        BaseException: what the function raised.
    """
    errors: list[BaseException] = []

    def work() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="redisagg-call", daemon=True)
    thread.start()
    thread.join(timeout)
    if errors:
        raise errors[0]
    return not thread.is_alive()
