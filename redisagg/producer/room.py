"""How adds wait for room, in the order of their group. Without I/O: threads and asyncio share it.

While an add of a group waits for room, those of its group that begin later wait behind it, in the
*line* of the group. Otherwise a small task would find room before a large one that came earlier.
Groups without a line are not concerned.

The first ticket of a line tries again, after a random wait that grows with each refusal. After a
success it sends the tasks of those behind it together with its own, twice as many each time.
So a line does not last longer than the shortage.

As in `threads`, a caller may be interrupted between any two instructions, so there is no lock.
Shared state changes by single steps of the interpreter. A ticket that an interrupted caller has
left behind ends with its deadline.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import tenacity

from redisagg.errors import AggregatorFull
from redisagg.producer.options import AddOptions
from redisagg.producer.rounds import COMMIT_ROUND_TASKS, AddResults, Round
from redisagg.protocol.entries import EncodedTask

_FIRST_WAIT = 0.02
_MAX_WAIT = 1.0
"""Seconds: the limits of the first wait after a refusal, and of any."""

_MARGIN = 1.0
"""Seconds after its deadline from which the others pass a ticket: its caller ends by itself."""

_LONGEST_STEP = 1.0
"""Seconds after which a caller that was not woken looks for itself."""


WAITS_BEHIND = "earlier tasks of the group wait for room"


def room_retry_options(timeout: float) -> dict[str, Any]:
    """The arguments for tenacity's `Retrying`: it retries `AggregatorFull`, with full jitter.

    Args:
        timeout: seconds after which it raises it.
    """
    return {
        "retry": tenacity.retry_if_exception_type(AggregatorFull),
        "wait": tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_MAX_WAIT),
        "stop": tenacity.stop_after_delay(timeout),
        "reraise": True,
    }


class Ticket:
    """An add that waits in the line of a group.

    Args:
        task: the task; None if the caller sends its tasks itself, as a stream does.
        deadline: when it stops to wait, by `time.monotonic()`.
        wake: called when there is a step to do; from any thread.
        line: the line of the group.
    """

    __slots__ = ("deadline", "done", "error", "left", "line", "task", "wake")

    def __init__(
        self, task: EncodedTask | None, deadline: float, wake: Callable[[], object], line: Line
    ) -> None:
        self.task = task
        self.deadline = deadline
        self.wake = wake
        self.line = line
        self.error: Exception | None = None
        """Why the task was not added."""
        self.done = False
        """Whether Redis has accepted the task, or refused it for another reason than `FULL`."""
        self.left = False
        """Whether its call has ended, or ends."""

    def step(self, now: float) -> float | Attempt | None:
        """Returns what the caller is to do.

        Args:
            now: the time by `time.monotonic()`.

        Returns:
            Seconds to wait at most before it asks again; or an attempt to send, and then to
            `settle`; or None if it is to leave, after a success or with `error`.
        """
        return None if self.done else self.line.step(self, now)

    def is_first(self, now: float) -> bool:
        """Whether the caller may send its tasks now; for tickets without a task."""
        return not self.line.attempts and self.line.first(now) is self

    def is_over(self, now: float) -> bool:
        """Whether those behind it need not wait for it."""
        return self.left or self.done or now > self.deadline + _MARGIN


class Attempt:
    """Tasks at the front of a line that are sent together.

    Args:
        sender: the ticket of the caller that sends them.
        round_: the tasks, with their tickets for waiters.
        now: the time by `time.monotonic()`.
    """

    __slots__ = ("began", "once", "round", "sender")

    def __init__(self, sender: Ticket, round_: Round[Ticket], now: float) -> None:
        self.sender = sender
        self.round = round_
        self.began = now
        self.once: dict[str, Any] = {}
        """Set once, by `setdefault`: the prepared round, and its results."""


class Line:
    """The adds of a group that wait for room.

    Args:
        options: what all calls have in common.
        patience: seconds after which an attempt whose sender's time is over is sent by another
            caller too.
    """

    __slots__ = (
        *("_options", "_patience", "_refusals", "_width"),
        *("attempts", "error", "not_before", "tickets"),
    )

    def __init__(self, options: AddOptions, patience: float) -> None:
        self._options = options
        self._patience = patience
        self._refusals = 0
        """The number of refusals since the last success."""
        self._width = 1
        """The number of tasks that the next attempt may have."""
        self.tickets: deque[Ticket] = deque()
        self.attempts: dict[Attempt, None] = {}
        """The attempt under way, if there is one."""
        self.error = AggregatorFull(WAITS_BEHIND)
        """The last refusal."""
        self.not_before = 0.0
        """When the next attempt is made, by `time.monotonic()`."""

    def refused(self, error: AggregatorFull, now: float) -> None:
        """Notes that there was no room."""
        longest = min(_MAX_WAIT, _FIRST_WAIT * 2 ** min(self._refusals, 10))
        self.not_before = now + random.uniform(0, longest)
        self._refusals += 1
        self._width = 1
        self.error = error

    def refused_outside(self, error: AggregatorFull, now: float) -> None:
        """Notes that a task which has just joined found no room before."""
        if not self._refusals:
            self.refused(error, now)

    def first(self, now: float) -> Ticket | None:
        """Returns the ticket that is next, if there is one; removes those that are over."""
        while True:
            try:
                ticket = self.tickets[0]
            except IndexError:
                return None
            if not ticket.is_over(now):
                return ticket
            with suppress(ValueError):  # another thread has removed it
                self.tickets.remove(ticket)

    def step(self, ticket: Ticket, now: float) -> float | Attempt | None:
        """As `Ticket.step`."""
        attempt = next(iter(list(self.attempts)), None)
        if attempt is not None:
            over = max(attempt.sender.deadline, attempt.began) + self._patience
            if attempt.sender.left or now > over:
                attempt.sender, attempt.began = ticket, now
                return attempt
            if ticket in attempt.round.waiters():
                return _LONGEST_STEP
        if now >= ticket.deadline:
            ticket.error = self.error
            return None
        longest = min(ticket.deadline - now, _LONGEST_STEP)
        if attempt is not None or self.first(now) is not ticket:
            return longest
        if now < self.not_before:
            return min(longest, self.not_before - now)
        attempt = Attempt(ticket, self._round(now), now)
        self.attempts[attempt] = None
        return attempt

    def _round(self, now: float) -> Round[Ticket]:
        round_: Round[Ticket] = Round(self._options, self._width)
        for each in list(self.tickets):
            if each.is_over(now) or now >= each.deadline:
                continue
            if each.task is None or round_.full:
                break
            round_.put(each.task, each)
        return round_

    def settle(self, attempt: Attempt, results: AddResults[Ticket], now: float) -> bool:
        """Takes the results of an attempt; if it was sent several times, the first ones count.

        Returns:
            Whether these are the first ones.
        """
        own = [(ticket, error) for tickets, error in results for ticket in tickets]
        settled = attempt.once.setdefault("settled", own)
        full = [error for _, error in settled if isinstance(error, AggregatorFull)]
        for ticket, error in settled:
            if not isinstance(error, AggregatorFull):
                ticket.error, ticket.done = error, True
        if self.attempts.pop(attempt, self) is None:
            if full:
                self.refused(full[0], now)
            else:
                self._refusals = 0
                self._width = min(2 * self._width, COMMIT_ROUND_TASKS)
        for ticket, _ in settled:
            if ticket.done:
                ticket.wake()
        self.wake_first(now)
        return settled is own

    def wake_first(self, now: float) -> None:
        """Wakes the ticket that is next."""
        ticket = self.first(now)
        if ticket is not None:
            ticket.wake()


class Lines:
    """The lines of one producer.

    Args:
        options: what all calls have in common.
        patience: as of `Line`; infinite if an attempt can't be sent twice at the same time.
    """

    def __init__(self, options: AddOptions, patience: float) -> None:
        self._options = options
        self._patience = patience
        self._pid = os.getpid()
        self.by_group: dict[bytes, Line] = {}
        """By group key; empty unless an add waits for room."""

    def enter(
        self,
        group: bytes,
        task: EncodedTask | None,
        deadline: float,
        wake: Callable[[], object] = lambda: None,
    ) -> Ticket:
        """Joins the end of the line of a group; to be left by `leave`.

        Args:
            group: the group key.
            task: as of `Ticket`.
            deadline: as of `Ticket`.
            wake: as of `Ticket`.
        """
        if self._pid != os.getpid():  # a forked child has none of its parent's callers
            self.by_group.clear()
            self._pid = os.getpid()
        line = self.by_group.setdefault(group, Line(self._options, self._patience))
        while True:
            ticket = Ticket(task, deadline, wake, line)
            line.tickets.append(ticket)
            current = self.by_group.setdefault(group, line)
            if current is line:
                return ticket
            ticket.left, line = True, current  # another thread has replaced the line meanwhile

    def leave(self, group: bytes, ticket: Ticket, now: float) -> None:
        """Leaves the line, and removes it if it is empty; can be repeated."""
        ticket.left = True
        line = ticket.line
        if line.first(now) is None:
            removed = self.by_group.pop(group, None)
            for each in (removed, line):  # another thread may have joined or replaced it meanwhile
                if each is not None and each.first(now) is not None:
                    self.by_group.setdefault(group, each)
        line.wake_first(now)
