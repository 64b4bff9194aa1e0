"""Waiting and ending without losing a cancellation, whatever happens at the same time."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from redisagg.flusher.waiting import cancel_and_wait, wait_for_event


async def test_an_event_is_waited_for_but_not_for_ever() -> None:
    event = asyncio.Event()
    assert not await wait_for_event(event, 0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await wait_for_event(event, 5)


async def test_a_cancellation_together_with_the_event_counts() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(wait_for_event(event, 5))
    await asyncio.sleep(0.01)
    waiting.cancel()
    event.set()
    await asyncio.wait({waiting})
    assert waiting.cancelled()


async def test_a_task_that_loses_a_cancellation_is_ended_nevertheless() -> None:
    lost = 0

    async def loop() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    async def fail() -> None:
        raise ValueError("it has been seen")

    looping, failing = asyncio.create_task(loop()), asyncio.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_and_wait(looping, failing), 5)
    assert (lost, looping.cancelled(), failing.done()) == (2, True, True)


async def test_an_error_counts_as_seen_even_if_the_wait_is_cancelled() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    gate = asyncio.Event()

    async def fail_late() -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:  # as the send of redis-py, which loses it
            await gate.wait()
        raise ValueError("nobody waits for it")

    failing = asyncio.create_task(fail_late())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(cancel_and_wait(failing))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    gate.set()
    await asyncio.wait({failing})
    await asyncio.sleep(0)
    assert (waiting.cancelled(), failing.cancelled()) == (True, False)
    del failing, waiting
    gc.collect()  # asyncio reports an error that nobody has seen when its task is freed
    assert reported == []
