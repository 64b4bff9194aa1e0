"""The actions: forms that change something. Each is noted in the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from starlette.responses import RedirectResponse, Response

from redisagg.dashboard.audit import Action
from redisagg.dashboard.context import Context
from redisagg.dashboard.dead_index import Filter
from redisagg.dashboard.formats import clock, plural
from redisagg.dashboard.jobs import Job
from redisagg.dashboard.security import is_forged
from redisagg.errors import InvalidConfig, NamespaceMismatch, RedisAggError, UnknownBatch
from redisagg.flusher.dry_run import dry_run
from redisagg.policies import LIMITS, Policy

_DIRECTLY = 20
"""Dead letters up to which an action is done before the page answers; more are a job."""

_TRIED_WITHIN = 30.0
"""Seconds that a merge function may take when a dead letter is tried."""


class Given(NamedTuple):
    """The fields of a form."""

    fields: Mapping[str, Sequence[str]]

    def one(self, name: str) -> str:
        """A field; empty if it is not there."""
        return next(iter(self.fields.get(name, ())), "")

    def all(self, name: str) -> list[str]:
        """All fields of a name."""
        return list(self.fields.get(name, ()))


class Done(NamedTuple):
    """What an action did."""

    text: str
    target: str = ""
    page: Response | None = None
    """The page that follows, if it is not the one before."""
    level: str = "ok"


Perform = Callable[[Context, Given], Awaitable[Done]]


async def perform(context: Context) -> Response:
    """Does what a form asks for, and returns to the page that it came from."""
    name = context.request.path_params["action"]
    action = ACTIONS.get(name)
    form = await context.form()
    given = Given(form)
    back = given.one("back") or context.url()
    if action is None:
        return context.failure(404, "There is no such action", name)
    target = _target_of(given)
    if is_forged(context.request, form):
        await _note(context, name, target, "refused", "no valid CSRF token")
        return context.failure(
            403,
            "This form is not valid",
            "It does not come from a page of this dashboard, or the page was open for too long in "
            "another session. Go back, reload the page and try again.",
        )
    if why_not := await context.why_not():
        await _note(context, name, target, "refused", why_not)
        return context.failure(403, "You can't do this", why_not)
    try:
        done = await action(context, given)
    except NamespaceMismatch:
        raise
    except (RedisAggError, ValueError) as error:
        await _note(context, name, target, "failed", str(error))
        context.opened.why_not_until = 0.0  # the rights may have changed
        return context.answer(back, context.text(str(error)), "bad")
    context.opened.feed.forget()
    await _note(context, name, done.target or target, "done", done.text)
    if done.page is not None:
        return done.page
    return context.answer(back, done.text, done.level)


def _target_of(given: Given) -> str:
    for name in ("group", "id", "pattern"):
        if values := given.all(name):
            more = f" and {len(values) - 1} more" if len(values) > 1 else ""
            return values[0] + more
    return ""


async def _note(context: Context, name: str, target: str, outcome: Any, result: str) -> None:
    place = context.shown.place
    await context.state.audit.note(
        Action(
            *(name, context.user.name, context.client, place.source, place.name, target),
            *(outcome, result),
        )
    )


# --- groups --------------------------------------------------------------------------------------


async def _flush(context: Context, given: Given) -> Done:
    count = await context.shown.aggregator.flush(given.one("group"))
    return Done(f"{plural(count, 'task is', 'tasks are')} due now.")


async def _flush_all(context: Context, given: Given) -> Done:
    count = await context.shown.aggregator.flush_all()
    return Done(f"{plural(count, 'task is', 'tasks are')} due now.", "all groups")


async def _postpone(context: Context, given: Given) -> Done:
    text = given.one("minutes") or "0"
    if not text.isdecimal() or not text.isascii() or not 0 <= int(text) <= 60 * 24 * 366:
        raise InvalidConfig("give a whole number of minutes, up to a year")
    until = datetime.now(timezone.utc) + timedelta(minutes=int(text))
    count = await context.shown.aggregator.postpone(given.one("group"), until)
    if not int(text):
        return Done("The group is not postponed any more.")
    return Done(f"{plural(count, 'task waits', 'tasks wait')} until {clock(until.timestamp())}.")


async def _pause(context: Context, given: Given) -> Done:
    group = given.one("group") or None
    by = f"{context.user.name} by the dashboard"[:64]
    await context.shown.aggregator.pause(group, by=by)
    if group is None:
        return Done("Flushing is paused. Tasks can still be added.", "all groups")
    return Done("The group is paused. Tasks can still be added to it.")


async def _resume(context: Context, given: Given) -> Done:
    group = given.one("group") or None
    await context.shown.aggregator.resume(group)
    return Done(
        "Flushing goes on." if group is None else "The group goes on.", group or "all groups"
    )


async def _cancel(context: Context, given: Given) -> Done:
    group, task_id = given.one("group"), given.one("task")
    if not task_id:
        count = await context.shown.aggregator.cancel_group(group)
        return Done(f"{plural(count, 'waiting task was', 'waiting tasks were')} removed.")
    removed = await context.shown.aggregator.cancel_task(group, task_id)
    target = f"{group}, task {task_id}"
    if not removed:
        return Done(
            "The task does not wait any more: a batch holds it, or it is gone.",
            target,
            level="warn",
        )
    return Done("The task was removed.", target)


# --- dead letters --------------------------------------------------------------------------------


async def _requeue(context: Context, given: Given) -> Done:
    tasks = given.all("task")
    if tasks:
        [batch_id] = given.all("id")[:1] or [""]
        count = await context.shown.aggregator.requeue_dead_letter(batch_id, only=tasks)
        return Done(f"{plural(count, 'task was', 'tasks were')} requeued.")
    return await _many(context, given, "requeue", "requeued")


async def _drop(context: Context, given: Given) -> Done:
    return await _many(context, given, "drop", "dropped")


async def _many(context: Context, given: Given, name: str, participle: str) -> Done:
    aggregator = context.shown.aggregator
    apply: Callable[[str], Awaitable[int]] = (
        aggregator.requeue_dead_letter if name == "requeue" else aggregator.drop_dead_letter
    )
    ids = list(dict.fromkeys(given.all("id")))
    if given.one("matching") == "1":
        wanted = Filter(given.one("reason"), given.one("q"))
        index = context.opened.dead

        async def find() -> list[str]:
            return [each.batch_id for each in wanted.select(await index.all())]

        target = f"all dead letters{_described(wanted)}"
    elif not ids:
        return Done("Nothing was selected.", level="warn")
    elif len(ids) <= _DIRECTLY:
        return await _few(ids, apply, participle)
    else:

        async def find() -> list[str]:
            return ids

        target = f"{len(ids)} selected dead letters"

    async def end(job: Job) -> None:
        outcome = "done" if job.state == "done" and not job.failed else "failed"
        await _note(context, name, target, outcome, job.summary)

    job = context.state.jobs.start(context.shown.place, name, context.user.name, find, apply, end)
    page = RedirectResponse(context.url(f"jobs/{job.id}"), 303)
    return Done("started", target, page)


async def _few(ids: Sequence[str], apply: Callable[[str], Awaitable[int]], participle: str) -> Done:
    tasks = batches = gone = 0
    for batch_id in ids:
        try:
            tasks += await apply(batch_id)
            batches += 1
        except UnknownBatch:
            gone += 1
    text = f"{plural(batches, 'dead letter')} with {plural(tasks, 'task')} {participle}."
    if gone:
        text += f" {plural(gone, 'was', 'were')} gone already."
    return Done(text, ", ".join(ids), level="warn" if gone else "ok")


def _described(wanted: Filter) -> str:
    parts = []
    if wanted.reason:
        parts.append(f"the error {wanted.reason!r}")
    if wanted.text:
        parts.append(f"the text {wanted.text!r}")
    return f" with {' and '.join(parts)}" if parts else ""


async def _stop(context: Context, given: Given) -> Done:
    job = context.state.jobs.get(given.one("job"))
    if job is None or job.place != context.shown.place or job.state != "running":
        return Done("It has ended already.", level="warn")
    job.state = "stopped"
    return Done("Stopped. What is done stays done.", f"job {job.action}")


async def _try(context: Context, given: Given) -> Done:
    batch_id = given.one("id")
    known = context.shown.known
    if known is None:
        raise InvalidConfig(
            "the merge function is not known here; start the dashboard with its aggregator"
        )
    letter = await context.shown.aggregator.get_dead_letter(batch_id)
    if letter is None:
        raise UnknownBatch(f"no dead letter has the id {batch_id!r:.120}")
    trying = asyncio.to_thread(dry_run, known.group_aggregator, letter)
    try:
        done = await asyncio.wait_for(trying, _TRIED_WITHIN)
    except (asyncio.TimeoutError, TimeoutError):
        return Done(f"The merge function has not returned in {_TRIED_WITHIN:.0f} s.", level="bad")
    page = await context.page(
        "tried.html",
        "Tried",
        "dead",
        letter=letter,
        done=done,
        merged=[context.merged(each) for each in done.merged],
    )
    return Done("tried: " + ("failed" if done.error or done.failed else "succeeds"), batch_id, page)


# --- policies ------------------------------------------------------------------------------------


async def _set_policy(context: Context, given: Given) -> Done:
    limits: dict[str, Any] = {}
    for name in LIMITS:
        if (text := given.one(name).strip()) == "":
            continue
        limits[name] = _limit(name, text)
    pattern = given.one("pattern")
    applied = await context.shown.aggregator.set_policy(
        pattern, Policy(**limits), apply_to_open=given.one("apply_to_open") == "1"
    )
    text = "The policy counts for all producers within a second."
    if given.one("apply_to_open") == "1":
        text += (
            f" {plural(applied.changed, 'open group')} changed, {applied.left} left as they were."
        )
    return Done(text)


def _limit(name: str, text: str) -> Any:
    if name == "leading":
        return text == "1"
    try:
        if name in ("grace_period", "max_delay", "min_interval"):
            return float(text)
        return int(text)
    except ValueError:
        raise InvalidConfig(f"{name} must be a number, not {text!r:.80}") from None


async def _remove_policy(context: Context, given: Given) -> Done:
    removed = await context.shown.aggregator.remove_policy(given.one("pattern"))
    if not removed:
        return Done("There is no such policy.", level="warn")
    return Done("The policy is removed, for each add that begins a second later.")


ACTIONS: dict[str, Perform] = {
    "flush": _flush,
    "flush-all": _flush_all,
    "postpone": _postpone,
    "pause": _pause,
    "resume": _resume,
    "cancel": _cancel,
    "requeue": _requeue,
    "drop": _drop,
    "stop": _stop,
    "try": _try,
    "set-policy": _set_policy,
    "remove-policy": _remove_policy,
}
"""The actions by name."""
