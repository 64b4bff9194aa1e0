"""The merge function and the sinks of the flushers, which fail now and then.

All can be pickled, for the worker processes of ``executor="process"``.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from redisagg import (
    AggregationConfig,
    BatchInfo,
    Partial,
    Results,
    RetryAfter,
    Task,
    Unavailable,
    Unrecoverable,
)
from redisagg.sinks import (
    AsynqSink,
    CallableSink,
    ListSink,
    MergedTask,
    ScriptSink,
    Sink,
    StreamSink,
)
from tests.faults.history import Journal
from tests.faults.workload import (
    FAILS_ALONE,
    LEASE,
    NAME,
    RULED,
    TIMES_ASKED,
    asks_for_time,
    class_of,
    fails_once,
    is_submitted,
    poison_of,
    result_of,
)

true_time = time.time
"""The clock of the machine, also where `time.time` is replaced by a wrong one."""

QUEUE = f"{NAME}-batches"
"""The name of the queue of each sink."""

DELIVERY_TIMEOUT = LEASE
"""Seconds that the sink outside Redis may take for a delivery."""

_AGAIN_AFTER = 0.1
"""Seconds for which a merge or a sink asks."""

ALL_AGAIN_AFTER = 0.6
"""Seconds for which a merge asks on behalf of all that its flusher merges."""

PROVIDER_AWAY = "provider-away"
"""A file that is there while what the merges call can't be reached."""

_FAILS_ONCE = "fails once"
_FAULTS_ENDED = "faults-ended"
_CURED = "cured"
_ASKED = "asked"


def end_node_faults(folder: Path) -> None:
    """Ends the faults that all flushers with a journal in `folder` make themselves."""
    (folder / _FAULTS_ENDED).touch()


def cure(folder: Path, task: str) -> None:
    """Lets a task be merged from now on."""
    path = _path_of(folder, _CURED, task)
    path.parent.mkdir(exist_ok=True)
    path.touch()


def _path_of(folder: Path, what: str, task: str) -> Path:
    return folder / what / task.replace("/", "_")


def _was_asked(folder: Path, task: str) -> int:
    """Counts how often the merge of a task has asked for time; returns the number so far."""
    path = _path_of(folder, _ASKED, task)
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(b".")
        return file.tell()


class NodeFaults:
    """The faults that a flusher makes itself, until `end_node_faults`.

    Args:
        settings: of the node; ``node_faults`` has the share of calls that fail, by kind of fault.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.path = Path(settings["journal"])
        self._name = settings["name"]
        self._rates: dict[str, float] = settings.get("node_faults", {})
        self._seed = f"{settings['seed']}/{settings['name']}"
        self._worker: tuple[int, random.Random, Journal] | None = None

    def happens(self, kind: str, group: str) -> bool:
        """Whether this call has a fault of this kind; writes it to the journal."""
        _, chance, _ = self._in_this_process()
        if chance.random() >= self._rates.get(kind, 0.0):
            return False
        if (self.path.parent / _FAULTS_ENDED).exists():
            return False
        self.write(kind, group)
        return True

    def write(self, kind: str, group: str) -> None:
        """Writes a fault to the journal."""
        self.journal.write("fault", kind, group, true_time(), self._name)

    @property
    def journal(self) -> Journal:
        """The journal of the node."""
        return self._in_this_process()[2]

    def _in_this_process(self) -> tuple[int, random.Random, Journal]:
        if self._worker is None or self._worker[0] != os.getpid():
            is_worker = multiprocessing.parent_process() is not None
            chance = random.Random(f"{self._seed}/{os.getpid() if is_worker else ''}")
            self._worker = (os.getpid(), chance, Journal(self.path))
        return self._worker

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_worker": None}


class FaultyMerge:
    """Merges tasks, and fails at random and at poison tasks.

    Args:
        settings: of the node; see `tests.faults.node`.
        config: of its aggregator.
    """

    def __init__(self, settings: dict[str, Any], config: AggregationConfig) -> None:
        self._faults = NodeFaults(settings)
        self._name = settings["name"]
        self._hang = float(config.merge_timeout) * 1.5  # type: ignore[arg-type]
        self._too_large = config.max_merged_bytes + 1
        self._in_thread = config.executor == "thread"
        self._isolates = config.isolate_failures
        self._retries = config.on_task_failure == "retry"
        self._takes = settings.get("merge_seconds", 0.0)

    def __call__(self, group: str, tasks: list[Task], info: BatchInfo) -> Task | Partial | Results:
        """Merges tasks, and writes to the journal when it began and ended."""
        began = true_time()
        call = (info.batch_id, group, self._name, len(tasks), began)
        self._faults.journal.write("merging", *call)
        try:
            time.sleep(self._takes)
            return self._merge(group, tasks, info)
        finally:
            self._faults.journal.write("merged", info.batch_id, began, true_time())

    def _merge(self, group: str, tasks: list[Task], info: BatchInfo) -> Task | Partial | Results:
        if (self._folder / PROVIDER_AWAY).exists():
            self._faults.write("merge found its provider away", group)
            raise Unavailable("the provider does not answer")
        self._ask_for_time(group, tasks, info)
        padding = ""
        failed: dict[str, str] = {}
        for task in tasks:
            kind = poison_of(task.id, group)
            if kind is None and self._retries and fails_once(task.id, group):
                if "-failed-" not in info.batch_id:
                    failed[task.id] = f"{task.id} {_FAILS_ONCE}"
                continue
            if kind is None or _path_of(self._folder, _CURED, task.id).exists():
                continue
            if kind == FAILS_ALONE:
                failed[task.id] = f"{task.id} {FAILS_ALONE}"
                continue
            self._faults.write(f"poison {kind}", group)
            if kind == "kills":
                self._die()
            if kind == "raises":
                raise ValueError("a task that can't be merged")
            if kind == "gives up":
                self._note_reply(info, math.inf)
                raise Unrecoverable("a task that can never be merged")
            padding = "x" * self._too_large
        if len(failed) == len(tasks):  # then the batch is tried again as a whole
            failed = {name: why for name, why in failed.items() if not why.endswith(_FAILS_ONCE)}
        # A task that fails alone after a split is a dead letter at once.
        if not (self._isolates and len(tasks) == 1 and "." in info.batch_id):
            self._fail_at_random(group, info)
        if len(failed) == len(tasks):
            self._faults.write("all tasks failed", group)
        elif failed:
            self._faults.write("some tasks failed", group)
        merged = self._merged(group, tasks, info, failed, padding)
        values = {
            task.id: result_of(task.id)
            for task in tasks
            if task.id not in failed and is_submitted(task.id, group)
        }
        whole = Partial(merged, failed) if failed else merged
        return Results(values, whole) if values else whole

    @property
    def _folder(self) -> Path:
        return self._faults.path.parent

    def _note_reply(self, info: BatchInfo, again_at: float, *, of_all: bool = False) -> None:
        reply = (info.batch_id, info.group_key, self._name, true_time(), again_at, of_all)
        self._faults.journal.write("said", *reply)

    def _ask_for_time(self, group: str, tasks: Sequence[Task], info: BatchInfo) -> None:
        for task in tasks:
            if not asks_for_time(task.id, group):
                continue
            if _was_asked(self._folder, task.id) <= TIMES_ASKED:
                self._faults.write("merge asked for time", group)
                self._note_reply(info, true_time() + _AGAIN_AFTER)
                raise RetryAfter(_AGAIN_AFTER)

    def _fail_at_random(self, group: str, info: BatchInfo) -> None:
        if self._faults.happens("merge asked for time for its group", group):
            self._note_reply(info, true_time() + _AGAIN_AFTER)
            raise RetryAfter(_AGAIN_AFTER, "group")
        if self._faults.happens("merge asked for time for all", group):
            self._note_reply(info, true_time() + ALL_AGAIN_AFTER, of_all=True)
            raise RetryAfter(ALL_AGAIN_AFTER, "aggregator")
        if self._faults.happens("merge raised", group):
            raise RuntimeError("a merge that raises")
        if self._faults.happens("merge hung", group):
            time.sleep(self._hang)
        if self._faults.happens("merge killed its process", group):
            self._die()

    @staticmethod
    def _merged(
        group: str, tasks: Sequence[Task], info: BatchInfo, failed: Collection[str], padding: str
    ) -> Task:
        names = [task.id for task in tasks if task.id not in failed]
        payload: dict[str, Any] = {"group": group, "payloads": names}
        if failed:
            payload["failed"] = [
                [place, task.id] for place, task in enumerate(tasks) if task.id in failed
            ]
        if class_of(group) in RULED:
            payload["cause"] = [
                *(info.reason, info.opened_at, info.due_at, info.claimed_at),
                *(info.bytes, info.weight, list(info.arrivals)),
                [int(task.headers.get("version", 0)) for task in tasks],
            ]
        return Task("merged", {**payload, "padding": padding} if padding else payload)

    def _die(self) -> None:
        if self._in_thread:
            self._faults.journal.write("died", self._name, true_time())
        os._exit(70)


# --- sinks ---------------------------------------------------------------------------------------


def _signed(merged: Task, by: str) -> Task:
    """Adds the flusher that enqueues; another one may have merged, as merged tasks are stored."""
    return replace(merged, payload={**merged.payload, "by": by, "at": true_time()})


class _Signing(ScriptSink):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(QUEUE)
        self._by = settings["name"]

    def arguments(self, merged: MergedTask) -> Sequence[bytes]:
        signed = replace(merged, task=_signed(merged.task, self._by))
        return super().arguments(signed)  # type: ignore[safe-super]


class _SigningStream(_Signing, StreamSink):
    """The stream of a run."""


class _SigningList(_Signing, ListSink):
    """The list of a run."""


class _SigningAsynq(_Signing, AsynqSink):
    """The Asynq queue of a run."""


def _delivering(settings: dict[str, Any]) -> Sink:
    """A sink that uses the journal as its queue."""
    faults = NodeFaults(settings)
    journal = faults.journal

    def deliver(task: Task, batch_id: str) -> None:
        group = str(task.group_key)
        if faults.happens("sink failed", group):
            raise ConnectionError("a sink that fails")
        if faults.happens("sink asked for time", group):
            raise RetryAfter(_AGAIN_AFTER)
        if faults.happens("sink hung", group):
            time.sleep(DELIVERY_TIMEOUT * 2)
        signed = _signed(task, settings["name"])
        journal.write("delivered", true_time(), batch_id, group, signed.payload)
        if faults.happens("sink dropped the reply", group):
            raise ConnectionError("a sink whose reply is lost")

    return CallableSink(deliver, timeout=DELIVERY_TIMEOUT)


SINKS: dict[str, Callable[[dict[str, Any]], Sink]] = {
    "stream": _SigningStream,
    "list": _SigningList,
    "asynq": _SigningAsynq,
    "delivery": _delivering,
}
"""Makes a sink from the settings of a node."""
