"""The rules of `InFlight`, tried by a state machine: any order of events, and an end to each."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from redisagg.flusher.batch import Batch, Claim, Failure, MergeOutcome, State
from redisagg.flusher.budget import MemoryBudget
from redisagg.flusher.leader import inflight as module
from redisagg.flusher.leader.inflight import Bury, Commit, Deliver, GiveBack, InFlight
from redisagg.sinks import MergedTask
from redisagg.task import Task

GROUPS = (b"a", b"b")
LIMIT = 6
MAX_STALLED = 2
MAX_ATTEMPTS = 2
MIB = 1024 * 1024
PAUSED = Failure("", "", pause=1.0)
RAISED = Failure("ValueError", "")
HOPELESS = Failure("MergedTaskTooLarge", "", permanent=True)
OUTCOMES = {"raise": RAISED, "fail for good": HOPELESS}
PICK = st.integers(0, 5)


@dataclass(eq=False)
class Stored:
    """A batch as Redis has it."""

    number: int
    group: bytes
    length: int = 0
    attempts: int = 0
    """Attempts that failed."""
    claimed: Batch | None = None
    fresh: bool = True
    """Whether it is cut by its next claim."""


def claim_of(stored: Stored) -> Claim:
    batch_id = b"%s-%d" % (stored.group, stored.number)
    attempt, length = stored.attempts + 1, stored.length
    return Claim(batch_id, stored.group, attempt, b"", b"", (), 0, length, 0, None)


def make_inflight(budget: MemoryBudget, max_attempts: int = MAX_ATTEMPTS) -> InFlight:
    return InFlight(LIMIT, max_stalled=MAX_STALLED, max_attempts=max_attempts, budget=budget)


def ignore() -> None:
    """Nobody waits for memory."""


def merged_task(batch: Batch) -> MergedTask:
    return MergedTask(batch.batch_id.decode(), batch.group.decode(), 1, Task("t", None, "g"))


class LeaderMachine(RuleBasedStateMachine):
    """A leader whose merges, deliveries and replies end in any order, and its Redis."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = MemoryBudget(ignore)
        self.others = 0
        """The bytes of other leaders."""
        self.inflight = make_inflight(self.budget)
        self.redis: dict[bytes, list[Stored]] = {group: [] for group in GROUPS}
        self.order: dict[bytes, list[Batch]] = {group: [] for group in GROUPS}
        """The batches of each group in the order of their claims."""
        self.created = 0
        self.claiming: list[Stored] | None = None
        self.submitted: list[Batch] = []
        self.merging: list[Batch] = []
        self.delivering: list[Batch] = []
        self.action: Commit | GiveBack | Bury | None = None

    # --- claims --------------------------------------------------------------------------------

    @precondition(lambda self: self.claiming is None and self.inflight.may_claim())
    @rule(
        group=st.sampled_from(GROUPS),
        count=st.integers(1, 3),
        skip=st.booleans(),
        died=st.integers(0, 5).map(lambda n: n == 0),
        length=st.sampled_from([0, 1, 3 * MIB, 30 * MIB]),
    )
    def begin_claim(self, group: bytes, count: int, skip: bool, died: bool, length: int) -> None:
        """Redis cuts batches, and names those that came back.

        With `skip` the reply does not name the oldest one of the group. With `died`, flushers died
        with it in each attempt.
        """
        assert not isinstance(self.action, GiveBack) or self.action.failure is None
        stored = self.redis[group]
        while len(stored) < count + 1:
            self.created += 1
            stored.append(Stored(self.created, group, length))
        closed = group in self.inflight.closed
        free = [each for each in stored if each.claimed is None and not (each.fresh and closed)]
        if died and free:
            free[0].attempts = MAX_ATTEMPTS
        in_order = [each for each in free if not self._is_behind_free(each, free)]
        self.claiming = in_order[int(skip) : count + int(skip)][: self.inflight.room]
        self.inflight.claim_begun()

    def _is_behind_free(self, stored: Stored, free: list[Stored]) -> bool:
        """Whether a younger batch is claimed already: then this one was given back before it."""
        younger = [each for each in self.redis[stored.group] if each.number > stored.number]
        return any(each.claimed for each in younger) and stored is not free[0]

    @precondition(lambda self: self.claiming is not None)
    @rule(probing=st.booleans(), down=st.booleans())
    def end_claim(self, probing: bool, down: bool) -> None:
        """The claimed batches arrive; with `down` after the sinks have failed."""
        assert self.claiming is not None
        for stored in self.claiming:
            batch = Batch(claim_of(stored), self._on_merged, probing)
            stored.claimed, stored.fresh = batch, False
            self.order[batch.group].append(batch)
            if self.inflight.claimed(batch, 1.0 if down else None):
                assert batch.attempt <= MAX_ATTEMPTS
                assert probing or not down, "merged while no sink works"
                self.submitted.append(batch)
        self.claiming = None
        self.inflight.claim_ended()

    @rule(size=st.sampled_from([0, 10 * MIB, 64 * MIB]))
    def others_claim(self, size: int) -> None:
        """The other leaders of the flusher hold so many bytes."""
        self.budget.used += size
        self.budget.give_back(self.others)
        self.others = size

    @rule()
    def all_sinks_fail(self) -> None:
        """From then on no batch begins that was claimed before, but for those that test them."""
        self.inflight.sinks_down(1.0)
        for group in GROUPS:
            waiting = [each for each in self._in_flight(group) if each.state is State.CLAIMED]
            assert all(batch.probing for batch in waiting), "merged while no sink works"

    # --- merges and deliveries -----------------------------------------------------------------

    @precondition(lambda self: self.submitted)
    @rule(pick=PICK)
    def begin_merge(self, pick: int) -> None:
        batch = self.submitted.pop(pick % len(self.submitted))
        wanted = batch.state is State.CLAIMED
        assert batch.begin() is wanted  # the handshake: an abandoned batch is never merged
        if wanted:
            self.merging.append(batch)

    @precondition(lambda self: self.merging)
    @rule(pick=PICK, outcome=st.sampled_from(["enqueue", "deliver", *OUTCOMES]))
    def end_merge(self, pick: int, outcome: str) -> None:
        batch = self.merging.pop(pick % len(self.merging))
        failure = OUTCOMES.get(outcome)
        deliveries = [merged_task(batch)] if outcome == "deliver" else []
        batch.end_merge(MergeOutcome(failure, deliveries=deliveries))

    def _on_merged(self, batch: Batch) -> None:
        self._start(self.inflight.merged(batch))

    def _start(self, deliver: Deliver | None) -> None:
        if deliver is None:
            return
        batch = deliver.batch
        in_flight = self._in_flight(batch.group)
        for older in in_flight[: in_flight.index(batch)]:
            assert older.state in (State.READY, State.COMMITTING), "delivered out of order"
        self.delivering.append(batch)

    @precondition(lambda self: self.delivering)
    @rule(pick=PICK, fails=st.booleans())
    def end_delivery(self, pick: int, fails: bool) -> None:
        batch = self.delivering.pop(pick % len(self.delivering))
        assert batch.outcome is not None
        if fails:
            batch.outcome.failure = RAISED
        else:
            batch.outcome.deliveries.clear()
        self._start(self.inflight.delivered(batch))

    # --- what Redis is told --------------------------------------------------------------------

    @precondition(lambda self: self.action is None)
    @rule(count=st.integers(0, 4))
    def next_action(self, count: int) -> None:
        """Begins the next action; a commit takes `count` batches, none if the sink is down."""
        action = self.inflight.next_action()
        if isinstance(action, Commit):
            self._check_order(action.batches)
            if count == 0:
                self.inflight.failed(action.batches[0], PAUSED)
                return
            action = Commit(action.batches[:count])
            self.inflight.committing(action.batches)
        elif isinstance(action, GiveBack):
            self._check_give_back(action)
        elif isinstance(action, Bury):
            hopeless = action.batch.failure is HOPELESS
            assert hopeless or action.batch.attempt >= MAX_ATTEMPTS
        self.action = action

    def _check_order(self, batches: list[Batch]) -> None:
        for group in GROUPS:
            mine = [each for each in batches if each.group == group]
            assert mine == self._in_flight(group)[: len(mine)], "committed out of order"
            assert all(each.state is State.READY for each in mine)

    def _check_give_back(self, action: GiveBack) -> None:
        assert self.claiming is None, "given back while a claim is under way"
        failed, *followers = action.batches
        assert failed.failure is not None
        running = {*self.merging, *self.delivering}
        assert not running & set(followers), "given back while a merge or delivery runs"
        held = [each for each in self._in_flight(failed.group) if each.failure is None]
        assert followers == held, "a younger batch is not held behind the failed one"

    @precondition(lambda self: isinstance(self.action, Commit))
    @rule(refused=st.sets(st.integers(0, 3)))
    def end_commit(self, refused: set[int]) -> None:
        assert isinstance(self.action, Commit)
        misplaced: list[GiveBack] = []
        for place, batch in enumerate(self.action.batches):
            stored = self.redis[batch.group]
            if stored[0].claimed is not batch:
                action = self.inflight.out_of_order(batch)
                misplaced += [action] if action else []
            elif place in refused:
                self.inflight.failed(batch, RAISED)
            else:
                del stored[0]
                self._start(self.inflight.committed(batch))
        for action in misplaced:
            self._end_give_back(action)
        self.action = None

    @precondition(lambda self: isinstance(self.action, GiveBack))
    @rule()
    def end_give_back(self) -> None:
        assert isinstance(self.action, GiveBack)
        self._end_give_back(self.action)
        self.action = None

    def _end_give_back(self, action: GiveBack) -> None:
        for batch in action.batches:
            for stored in self.redis[batch.group]:
                if stored.claimed is batch:
                    stored.claimed = None
                    stored.attempts = min(stored.attempts, MAX_ATTEMPTS - 1)
                    if batch.failure is not None and batch is action.batches[0]:
                        stored.attempts += batch.failure.counts
        for deliver in self.inflight.given_back(action):
            self._start(deliver)

    @precondition(lambda self: isinstance(self.action, Bury))
    @rule()
    def end_bury(self) -> None:
        assert isinstance(self.action, Bury)
        batch = self.action.batch
        stored = self.redis[batch.group]
        if stored[0].claimed is batch:
            del stored[0]
            self._start(self.inflight.buried(batch))
        else:
            self._end_give_back(self.inflight.give_back(batch))
        self.action = None

    # --- what always holds ---------------------------------------------------------------------

    def _in_flight(self, group: bytes) -> list[Batch]:
        """The batches of a group in flight, in the order of their claims."""
        return [each for each in self.order[group] if each.state is not State.GONE]

    @invariant()
    def nothing_is_forgotten(self) -> None:
        claimed = {each.batch_id for group in GROUPS for each in self._claimed(group)}
        assert set(self.inflight.ids) == claimed
        assert len(self.inflight) <= 4 * LIMIT

    def _claimed(self, group: bytes) -> list[Batch]:
        return [each.claimed for each in self.redis[group] if each.claimed is not None]

    @invariant()
    def nothing_is_held_behind_nothing(self) -> None:
        """No claim waits unless a failed batch is being given back or is next to be."""
        if not self.inflight.may_claim():
            failed = any(b.failure for group in GROUPS for b in self._claimed(group))
            assert failed or self.action is not None

    def _stalled(self, group: bytes) -> list[Batch]:
        """Those that were merged and wait for a sink or for older batches of the group."""
        waiting = (State.MERGED, State.DELIVERING)
        return [each for each in self._in_flight(group) if each.state in waiting]

    @invariant()
    def no_group_takes_more_than_its_share(self) -> None:
        to_merge = (State.CLAIMED, State.MERGING, State.MERGED, State.DELIVERING)
        for group in GROUPS:
            mine = self._in_flight(group)
            size = sum(each.claim.length for each in mine)
            merging = [each for each in mine if each.state in to_merge]
            failed = any(each.failure for each in mine)
            busy = size >= 8 * MIB or len(self._stalled(group)) >= MAX_STALLED or failed
            closed = group in self.inflight.closed
            assert closed or not (busy or len(merging) >= LIMIT // 2), "its share is used up"
            assert busy or len(mine) >= LIMIT // 2 or not closed, "closed for nothing"

    @invariant()
    def the_room_is_what_is_left(self) -> None:
        size = sum(each.claim.length for group in GROUPS for each in self._claimed(group))
        left = max(2 * MIB - size, 64 * MIB - size - self.others)
        assert self.inflight.bytes_left == left
        stalled = sum(len(self._stalled(group)) for group in GROUPS)
        # One that is given back counts as stalled until Redis has been told, if it was before.
        in_flight = [each for group in GROUPS for each in self._in_flight(group)]
        abandoned = sum(each.state is State.ABANDONED for each in in_flight)
        fewest = LIMIT + stalled - len(in_flight)
        places = range(max(0, fewest), max(0, fewest + abandoned) + 1)
        assert self.inflight.room in (places if left > 0 else (0,))

    def teardown(self) -> None:
        """Everything comes to an end when all merges, deliveries and replies succeed."""
        for _ in range(200):
            if self.claiming is not None:
                self.end_claim(False, False)
            while self.submitted:
                self.begin_merge(0)
            while self.merging:
                self.end_merge(0, "enqueue")
            while self.delivering:
                self.end_delivery(0, False)
            if self.action is None:
                self.next_action(4)
            if isinstance(self.action, Commit):
                self.end_commit(set())
            elif isinstance(self.action, GiveBack):
                self.end_give_back()
            elif isinstance(self.action, Bury):
                self.end_bury()
            elif not len(self.inflight):
                break
        assert not self.inflight.ids, "the leader stands still"
        assert self.inflight.may_claim()
        assert not self.inflight.closed
        assert self.budget.left(10 * MIB) == 64 * MIB - self.others, "memory is not given back"


TestInFlight = LeaderMachine.TestCase
TestInFlight.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def _advance_any(self: InFlight, group: module._Group) -> None:
    """`InFlight._advance` without the order: what has been merged first is READY first."""
    for batch in list(group.merging):
        if batch.state is State.MERGED and batch.outcome is not None and not batch.outcome.failure:
            group.merging.remove(batch)
            group.leaving.append(batch)
            batch.state = State.READY
            self._ready[batch.batch_id] = batch


def _ignore(group: module._Group, failed: int) -> None:
    """Sets nothing, so that no group has a failed batch."""


_made, _marked = InFlight.__init__, InFlight._mark_failed


def _make_without_shares(self: InFlight, *args: Any, **options: Any) -> None:
    _made(self, *args, **options)
    self._max_of_group = 100


def _mark_and_open(self: InFlight, group: Any, batch: Batch, failure: Failure) -> None:
    _marked(self, group, batch, failure)
    self._closed.discard(batch.group)


_claimed = InFlight.claimed


def _claim_always(self: InFlight, batch: Batch, pause: float | None = None) -> bool:
    return _claimed(self, batch)


def _fail_oldest(self: InFlight, pause: float) -> bool:
    for group in self._groups.values():
        for batch in [each for each in group.merging[:1] if not each.probing]:
            self._fail_unless_begun(group, batch, Failure.of_sink_down(pause))
    return bool(self._reports)


def _begin_always(self: Batch) -> bool:
    self.state = State.MERGING
    return True


def _abandon_always(self: Batch) -> bool:
    self.abandon()
    return True


@pytest.mark.parametrize(
    ("owner", "name", "without"),
    [
        pytest.param(InFlight, "_advance", _advance_any, id="order in a group"),
        pytest.param(module._Group, "failed", property(lambda _: 0, _ignore), id="holding back"),
        pytest.param(module, "_UNDER_WAY", (), id="postponing"),
        pytest.param(Batch, "begin", _begin_always, id="no merge of an abandoned batch"),
        pytest.param(Batch, "abandon_unless_begun", _abandon_always, id="no end of a merge begun"),
        pytest.param(InFlight, "sinks_down", _fail_oldest, id="no merge while no sink works"),
        pytest.param(InFlight, "claimed", _claim_always, id="no merge of what is claimed then"),
        pytest.param(InFlight, "may_claim", lambda _: True, id="no claim during a report"),
        pytest.param(InFlight, "claim_begun", lambda _: None, id="no report during a claim"),
        pytest.param(InFlight, "__init__", _make_without_shares, id="batches of a group"),
        pytest.param(module, "_GROUP_BYTES", 1 << 60, id="bytes of a group"),
        pytest.param(InFlight, "_stall", lambda *_: None, id="stalled batches take no place"),
        pytest.param(InFlight, "_end_stall", lambda *_: None, id="the end of a stall"),
        pytest.param(
            InFlight, "_mark_failed", _mark_and_open, id="a failed batch closes its group"
        ),
        pytest.param(InFlight, "_is_closed", lambda *_: False, id="closed until there is room"),
        pytest.param(InFlight, "_is_closed", lambda *_: True, id="open when there is room"),
        pytest.param(InFlight, "bytes_left", 1, id="the memory of a flusher"),
        pytest.param(MemoryBudget, "give_back", lambda *_: None, id="memory is given back"),
    ],
)
def test_the_machine_notices_a_missing_rule(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, without: object
) -> None:
    monkeypatch.setattr(owner, name, without)
    quickly = settings(
        max_examples=1_000,
        stateful_step_count=40,
        deadline=None,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(LeaderMachine, settings=quickly)


def _batch(number: int) -> Batch:
    return Batch(claim_of(Stored(number, b"a")), lambda batch: None)


def test_a_merge_that_begins_and_one_that_is_abandoned_never_both_happen() -> None:
    batches = [_batch(number) for number in range(3_000)]
    begun: list[bool] = []
    start = threading.Barrier(2)

    def begin() -> None:
        start.wait()
        begun.extend(batch.begin() for batch in batches)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        merging = threading.Thread(target=begin)
        merging.start()
        start.wait()
        abandoned = [batch.abandon_unless_begun() for batch in batches]
        merging.join()
    finally:
        sys.setswitchinterval(interval)
    assert all(one != other for one, other in zip(begun, abandoned, strict=True))


def test_an_abandoned_merge_is_not_heard() -> None:
    heard: list[Batch] = []
    batch = Batch(claim_of(Stored(1, b"a")), heard.append)
    assert batch.begin()
    batch.abandon()
    batch.end_merge(MergeOutcome())
    assert (heard, batch.outcome, batch.state) == ([], None, State.ABANDONED)


def test_commits_and_failures_take_turns() -> None:
    inflight = make_inflight(MemoryBudget(ignore), max_attempts=1)
    for number, group in enumerate([b"a", b"b", b"c", b"d"]):
        batch = Batch(claim_of(Stored(number, group)), lambda batch: None)
        inflight.claimed(batch)
        batch.begin()
        batch.end_merge(MergeOutcome(RAISED if number % 2 else None))
        inflight.merged(batch)
    kinds: list[type[object]] = []
    while (action := inflight.next_action()) is not None:
        kinds.append(type(action))
        if isinstance(action, Commit):
            inflight.committing(action.batches[:1])
            inflight.committed(action.batches[0])
        elif isinstance(action, Bury):
            inflight.buried(action.batch)
    assert kinds == [Bury, Commit, Bury, Commit]


def test_everything_can_be_given_back_while_a_commit_is_under_way() -> None:
    inflight = make_inflight(MemoryBudget(ignore), max_attempts=3)
    batch = _batch(1)
    inflight.claimed(batch)
    batch.begin()
    batch.end_merge(MergeOutcome())
    inflight.merged(batch)
    inflight.committing([batch])
    everything = inflight.give_back_all()
    assert everything.batches == [batch]
    assert inflight.given_back(everything) == []
    # The reply to the commit comes last.
    inflight.failed(batch, RAISED)
    assert inflight.out_of_order(batch) is None
    assert inflight.committed(batch) is None
    assert len(inflight) == 0
    assert inflight.next_action() is None


def test_the_memory_of_a_leader_that_ends_is_given_back_once() -> None:
    freed: list[bool] = []
    budget = MemoryBudget(lambda: freed.append(True))
    inflight = make_inflight(budget)
    batch = Batch(claim_of(Stored(1, b"a", length=64 * MIB)), lambda batch: None)
    inflight.claimed(batch)
    assert inflight.room == 0
    assert budget.left(0) == 2 * MIB
    inflight.close()
    assert batch.state is State.ABANDONED
    assert budget.left(2 * MIB) == 64 * MIB
    assert freed == [True]


def test_a_stored_result_counts_while_its_batch_is_in_flight() -> None:
    """A batch with a result may be small, and its result as large as a merge may return."""
    freed: list[bool] = []
    budget = MemoryBudget(lambda: freed.append(True))
    inflight = make_inflight(budget, max_attempts=3)
    claim = claim_of(Stored(1, b"a", length=MIB))
    batches = [
        Batch(claim._replace(stored_result=b"x" * MIB), lambda batch: None),
        Batch(claim_of(Stored(2, b"b", length=MIB)), lambda batch: None),
    ]
    for batch in batches:
        inflight.claimed(batch)
    assert budget.used == 3 * MIB
    _, apart = batches
    apart.claim = apart.claim._replace(stored_result=b"x" * (61 * MIB))
    inflight.result_stored(apart)
    assert budget.used == 64 * MIB
    assert inflight.room == 0
    assert set(inflight.closed) == {b"b"}
    apart.claim = apart.claim._replace(stored_result=b"x" * MIB)  # another result takes its place
    inflight.result_stored(apart)
    assert budget.used == 4 * MIB
    assert freed == [True]
    for batch in batches:
        inflight.given_back(inflight.give_back(batch))
    inflight.result_stored(apart)
    assert budget.used == 0
    assert not inflight.closed


# --- batches that are split ----------------------------------------------------------------------


def failing(batch_id: bytes, tasks: int, failure: Failure, **claim: Any) -> GiveBack | Bury:
    """What is done about a batch that failed, if bad tasks are to be isolated."""
    inflight = InFlight(
        LIMIT, max_stalled=9, max_attempts=5, budget=MemoryBudget(ignore), isolate=True
    )
    given = Claim(batch_id, b"a", 1, b"", b"", (), tasks, 0, 0, None)._replace(**claim)
    batch = Batch(given, lambda batch: None)
    inflight.claimed(batch)
    batch.begin()
    batch.end_merge(MergeOutcome(failure))
    inflight.merged(batch)
    action = inflight.next_action()
    assert isinstance(action, GiveBack | Bury)
    return action


@pytest.mark.parametrize("failure", [RAISED, HOPELESS])
def test_a_batch_of_several_tasks_is_split(failure: Failure) -> None:
    action = failing(b"id", 2, failure)
    assert isinstance(action, GiveBack)
    assert action.split


def test_a_batch_whose_merge_result_was_never_whole_is_split() -> None:
    action = failing(b"id", 2, RAISED, result=b"-")
    assert isinstance(action, GiveBack)
    assert action.split


def test_a_half_of_one_task_is_buried_at_once() -> None:
    assert isinstance(failing(b"id.0.1", 1, RAISED), Bury)


def test_one_task_that_was_not_split_has_its_attempts() -> None:
    action = failing(b"id", 1, RAISED)
    assert isinstance(action, GiveBack)
    assert not action.split
    assert isinstance(failing(b"id", 1, HOPELESS), Bury)


@pytest.mark.parametrize(
    ("failure", "claim"),
    [
        (PAUSED, {}),
        (RAISED, {"stored_result": b"r"}),
        (RAISED, {"result": b"1-1"}),
    ],
)
def test_what_is_no_failure_of_the_merge_splits_nothing(
    failure: Failure, claim: dict[str, Any]
) -> None:
    action = failing(b"id", 2, failure, **claim)
    assert isinstance(action, GiveBack)
    assert not action.split


def test_a_batch_that_was_half_buried_is_not_split() -> None:
    assert isinstance(failing(b"id.0", 2, RAISED, attempt=2**31), Bury)
