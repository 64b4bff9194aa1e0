"""Waiting and ending without losing a cancellation, whatever happens at the same time."""

from __future__ import annotations

import asyncio

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
