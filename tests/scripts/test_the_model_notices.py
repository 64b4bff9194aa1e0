"""The model finds scripts from which a check was removed."""

from __future__ import annotations

import pytest
import redis
from hypothesis import Phase, settings

from tests.model.clock import LUA, Scripts
from tests.model.machine import assert_agreement
from tests.scripts.test_model import SETTINGS

# It ends at the first failure, so more examples cost time only where it takes long to find one.
_FAILING = settings(
    SETTINGS,
    max_examples=16 * SETTINGS.max_examples,
    phases=[Phase.generate],
    print_blob=False,
)

_BROKEN = {
    "the token of a lease": ("includes/fence", "newest_token ~= token", "false"),
    "the end of a lease": ("includes/fence", "(tonumber(expires) or 0) <= now", "false"),
    "the order of batches": ("includes/commit", "not is_head(g, batch)", "false"),
    "ids that already wait": ("add", "if new == 1 then", "if new == 1 or new == 0 then"),
    "repeated calls": ("add", "if last_number == call_number then", "if false then"),
    "late calls": ("add", "if last_number > call_number then", "if false then"),
    "the max size": ("claim", "math.min(g[WAITING], g[SIZE])", "g[WAITING]"),
    "the max delay": ("includes/segments", "math.min(all.deadline, now + all.delay)", "now"),
    "limits of tasks that have been cut": (
        "includes/segments",
        "g[SIZE], g[PRIORITY], g[GRACE] =",
        "g[FIRST], g[FIRST], g[FIRST] =",
    ),
    "limits of tasks that were cancelled": (
        "includes/segments",
        "table.remove(list, at)\n    elseif",
        "table.remove(list)\n    elseif",
    ),
    "the max bytes": ("includes/segments", "bytes + length <= room.bytes", "true"),
    "the max weight": ("includes/segments", "weight + heavy <= room.weight", "true"),
    "the earliest time": ("claim", "if held_back_until(g) > now then", "if false then"),
    "the due time": ("includes/group", "if rules[DUE] > 0 then at =", "if false then at ="),
    "the place of a replaced task": ("add", "redis.call('LSET', tasks, task.place, new)", ""),
    "the limits of a replaced task": (
        "includes/segments",
        "list[at] = read_segment(",
        "local _ = read_segment(",
    ),
    "policies that were not read": ("includes/partitions", "stored == own .. ' policies'", "false"),
    "policies of which a partition knows": (
        "register_partition",
        "stored == partitions .. ' policies'",
        "false",
    ),
    "the limits that a task has set": (
        "apply_limits",
        "string.find(' ' .. own .. ' ', ' ' .. name .. ' ', 1, true)",
        "false",
    ),
    "the stored limits of tasks under a policy": (
        "apply_limits",
        "and new ~= entry then",
        "and false then",
    ),
    "the bytes of tasks under a policy": ("apply_limits", "+ new_bytes - old_bytes)", ")"),
    "the due time under a policy": ("apply_limits", "schedule(due, ready, group.key, g, now)", ""),
    "the closing message": ("add", "if flushes then", "if false then"),
    "the first task at once": ("includes/group", "rules[LEADING] > 0 or is_full(g)", "is_full(g)"),
    "the moment to which a group is postponed": (
        "includes/group",
        "math.max(rules[NOT_BEFORE], rules[POSTPONED], rules[COOL_UNTIL])",
        "math.max(rules[NOT_BEFORE], rules[COOL_UNTIL])",
    ),
    "the latest not_before": ("includes/segments", "all.not_before", "0"),
    "the reason of a schedule": (
        "includes/limits",
        "limits.schedule * 2 + 1",
        "limits.schedule * 2",
    ),
    "the end of a min interval": (
        "poll",
        "if rules[COOL_UNTIL] > now then return",
        "if true then return",
    ),
    "the min interval": ("claim", "now + g[RULES][INTERVAL]", "now"),
    "backpressure": ("add", "if full then return full end", ""),
    "ids that were flushed": ("claim", "window_ms > 0 then collect", "false then collect"),
    "ids of a large batch that were flushed": (
        "read_tasks",
        "if window_ms > 0 then",
        "if false then",
    ),
    "ids of a large batch that no longer wait": (
        "read_tasks",
        "remove_ids(ids, entries, first_known(g, batch) - from + 1)",
        "",
    ),
    "ids that wait again when their batch is read again": (
        "read_tasks",
        "if from > batch[READ] or read <= batch[READ] then return entries end",
        "",
    ),
    "ids that wait again after a cancellation": (
        "includes/batch",
        "math.max(batch[READ], g[IDS_FROM] - batch[START])",
        "batch[READ]",
    ),
    "ids of a batch that is buried unread": (
        "bury",
        "remove_ids(ids, entries, first_known(g, batch) + 1)",
        "",
    ),
    "bytes of tasks of an estimate": (
        "includes/segments",
        "if g[WAITING] == 1 or length > g[BYTES] then length = g[BYTES] end",
        "",
    ),
    "bytes of a batch": ("includes/commit", "+ batch[LENGTH]", "+ 0"),
    "batches behind one in retry": ("claim", "if is_behind_held(g, batch) then", "if false then"),
    "the merge result": ("retry", "batch[MERGED] = merged", ""),
    "a result that is stored apart": (
        "retry",
        "if merged ~= '' and batch[RESULT] == '' then",
        "if merged ~= '' then",
    ),
    "a slice that was enqueued before": (
        "includes/commit",
        "if batch[ENQUEUED] ~= (before or 0) then return batch[ENQUEUED] end",
        "",
    ),
    "a slice that nobody could go on behind": (
        "includes/commit",
        "return left == 0 or has_result(batch)",
        "return true",
    ),
    "the number of entries that slices have enqueued": (
        "includes/commit",
        "batch[ENQUEUED] = before + n / arity",
        "",
    ),
    "a stored result whose batch has left": (
        "includes/commit",
        "if before then redis.call('UNLINK', KEYS[key + 1]) end",
        "",
    ),
    "a stored result of which a part is missing": (
        "store_result",
        "if redis.call('HEXISTS', result, field(label, at)) == 0 then return 0 end",
        "",
    ),
    "a stored result whose batch is half enqueued and buried": (
        "bury",
        "if batch[ENQUEUED] == 0 and batch[PARTED] == '' and",
        "if batch[PARTED] == '' and",
    ),
    "how much of a requeued batch was enqueued": (
        "requeue",
        "[ENQUEUED] = letter[DEAD_ENQUEUED]",
        "[ENQUEUED] = 0",
    ),
    "a stored result whose dead letter is dropped": ("drop", "dead_tasks, result)", "dead_tasks)"),
    "which part of a stored result is whose": (
        "store_result",
        "return of_label .. ':' ..",
        "return 'x:' ..",
    ),
    "parts of other results": (
        "store_result",
        "if string.sub(name, 1, #label + 1) ~= label .. ':' then",
        "if false then",
    ),
    "the label of a stored result": (
        "store_result",
        "batch[MERGED], batch[RESULT] = '', label",
        "batch[MERGED] = ''",
    ),
    "how many tasks that failed alone have left": (
        "includes/commit",
        "if gone ~= (parts and parts.before or 0) then return 'PARTED ' .. gone end",
        "",
    ),
    "tasks that failed alone whose result nobody could read": (
        "includes/commit",
        "if parts and parts.left > 0 then return has_result(batch) end",
        "",
    ),
    "the place behind tasks that have left": (
        "includes/parts",
        "moved)\n  batch[PARTED] = string.format('%.0f', gone)",
        "moved)",
    ),
    "the number of tasks that failed alone": (
        "includes/parts",
        "add_count(state, 'dead', moved)",
        "",
    ),
    "flushed tasks without those that failed": (
        "includes/commit",
        "tasks_flushed - tasks_parted",
        "tasks_flushed",
    ),
    "a batch is not buried of which tasks have left": (
        "claim",
        "if batch[PARTED] ~= '' and batch[LETTER] == '' then attempt = 1 end",
        "",
    ),
    "tasks that have left a batch that is requeued": (
        "requeue",
        "[PARTED] = letter[DEAD_PARTED]",
        "[PARTED] = ''",
    ),
    "a batch of one task has no halves": ("split", "if batch[TASK_COUNT] < 2 or", "if"),
    "a batch with a stored result has no halves": ("split", " or has_result(batch) then", " then"),
    "a batch is claimed that is split": (
        "split",
        "or not redis.call('ZSCORE', claims, id) then return 0",
        "then return 0",
    ),
    "halves hold their group": ("split", "  hold(g, part, now + delay)\n", ""),
    "halves have no attempts": (
        "split",
        "part[ATTEMPTS], part[ERROR], part[DEATHS], part[ALONE] = 0, error, 0, 0",
        "part[ERROR] = error",
    ),
    "the pause of a group": (
        "includes/group",
        "g[HELD] > 0 or g[RULES] ~= 0 and is_paused(g) then\n    if",
        "g[HELD] > 0 then\n    if",
    ),
    "attempts of the sink": ("retry", "batch[ATTEMPTS] = 0 end", "batch[ATTEMPTS] = 1 end"),
    "attempts that do not count": ("retry", "if counts == '1' then", "if true then"),
    "claims of an earlier leader": ("acquire", "end_claims(claims, DIED)", ""),
    "claims of a leader that ends": ("release", "FREED", "DIED"),
    "claims whose reply was lost": ("recall", "FREED", "DIED"),
    "deaths of leaders": ("poll", "batch[DEATHS] = batch[DEATHS] + 1", ""),
    "the first death blames nobody": ("poll", "SUSPECT_DEATHS = 2", "SUSPECT_DEATHS = 1"),
    "a suspect that was alone is to blame": (
        "poll",
        "batch[ATTEMPTS] + batch[ALONE]",
        "batch[ATTEMPTS]",
    ),
    "a batch that was not alone is not to blame": (
        "claim",
        "batch[ALONE] = suspect",
        "batch[ALONE] = 1",
    ),
    "suspects with fewer deaths come first": (
        "includes/batch",
        "now + batch[DEATHS] * PRIORITY_STEP",
        "now",
    ),
    "suspects hold their group": ("poll", "      hold(g, batch, now)\n", ""),
    "a suspect that is held back stops no other": (
        "poll",
        "if g and not is_behind_held(g, batch) then",
        "if g then",
    ),
    "a failure that is reported ends the suspicion": (
        "retry",
        "batch[DEATHS], batch[ALONE] = 0, 0",
        "",
    ),
    "ids of a dead letter that is requeued": ("requeue", "batch[READ] = batch[TASK_COUNT]", ""),
    "a requeue is undone by a leader": ("requeue", "redis.call('ZSCORE', retry, id)", "true"),
    "when a group became due": ("includes/group", "if due_before > 0 then", "if false then"),
    "turns of groups between claims": ("claim", "  g[SINCE] = now\n", ""),
    "turns of groups in a claim": ("claim", "for _ = 2, TURN do", "for _ = 2, 99 do"),
    "batches of a paused group": (
        "claim",
        "if held and is_stopped(g, group) then",
        "if false then",
    ),
    "tasks of a paused group": (
        "includes/group",
        "or g[RULES] ~= 0 and is_paused(g) then\n    if",
        "then\n    if",
    ),
    "a pause of a group without tasks": (
        "includes/group",
        "rules[COOL_UNTIL] > 0 or rules[PAUSED] > 0)",
        "rules[COOL_UNTIL] > 0)",
    ),
    "batches in retry hold their group": ("includes/batch", "  hold(g, batch, until_ms)\n", ""),
    "batches that were freed and wait": (
        "put_off",
        "hold_in_retry(INDEXES, id, batch, read_group(groups, batch[GROUP]), until_ms, now)",
        "hold_in_retry(INDEXES, id, batch, nil, until_ms, now)",
    ),
    "batches that were freed behind one in retry": (
        "claim",
        "hold_in_retry(INDEXES, id, batch, g, until_ms, now)",
        "postpone(until_ms)",
    ),
    "batches that are in flight do not wait": (
        "put_off",
        "if free_at and free_at <= now then",
        "if free_at then",
    ),
    "suspects that wait are behind the others": (
        "put_off",
        "tonumber(last) + 1",
        "tonumber(last)",
    ),
    "failed tasks that are tried again are in flight": (
        "includes/parts",
        "    add_count(state, 'claimed', #entries)\n",
        "",
    ),
    "bytes of failed tasks that are tried again": (
        "includes/parts",
        "    add_count(state, 'bytes', length)\n",
        "",
    ),
    "attempts of failed tasks that are tried again": (
        "includes/parts",
        "part[ATTEMPTS], part[CREATED] = parts.attempts, now",
        "part[CREATED] = now",
    ),
    "a hold of failed tasks that are tried again": (
        "includes/parts",
        "    hold(g, part, now + parts.delay)\n",
        "",
    ),
    "a repeated copy of tasks of a dead letter": (
        "select_tasks",
        "if copied == behind + #marks then return copied end",
        "",
    ),
    "tasks that stay in a dead letter": (
        "requeue",
        "chosen, rest[DEAD_TASK_COUNT] - chosen",
        "chosen, rest[DEAD_TASK_COUNT]",
    ),
    "outcomes of batches that do not leave": (
        "includes/commit",
        "if status == 'OK' then keep_answers(",
        "if true then keep_answers(",
    ),
    "outcomes of batches that leave": ("includes/commit", "keep_answers(key, at + 1,", "type("),
    "outcomes that are not fixed": (
        "answer",
        "if not has_result(batch) and batch[LETTER] == '' then return 0 end",
        "",
    ),
    "outcomes of batches that others claimed": (
        "answer",
        "or not redis.call('ZSCORE', claims, id) then",
        "then",
    ),
    "groups to leave out": ("poll", "not skipped[group]", "true"),
}


@pytest.mark.parametrize("missing", _BROKEN)
def test_what_is_taken_out_is_there(missing: str) -> None:
    """The slow test below runs in CI only."""
    name, text, instead = _BROKEN[missing]
    found = (LUA / f"{name}.lua").read_text("utf-8").count(text)
    assert (found, text != instead) == (1, True), f"lua/{name}.lua has changed"


@pytest.mark.slow
@pytest.mark.timeout(900)  # most take a second, some a minute
@pytest.mark.parametrize("missing", _BROKEN)
def test_the_model_notices_what_is_missing(sync_redis: redis.Redis, missing: str) -> None:
    name, text, instead = _BROKEN[missing]
    scripts = Scripts(sync_redis, {name: (text, instead)})
    with pytest.raises(AssertionError):
        assert_agreement(scripts, _FAILING)
