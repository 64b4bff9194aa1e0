"""The protobuf form of a task, against vectors, itself, and what the real Asynq wrote."""

from __future__ import annotations

import time

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from redisagg.sinks.asynq.message import TaskMessage, decode, encode
from tests.sinks.asynq.program import Asynq
from tests.support.servers import wait_until

ID = "00000000-0000-4000-8000-00000000000"

VECTORS = [
    (
        TaskMessage(
            type="email:send",
            payload=b'{"user_id":42}',
            id=f"{ID}1",
            queue="default",
            retry=25,
            timeout=1800,
        ),
        "0a0a656d61696c3a73656e64120e7b22757365725f6964223a34327d1a2430303030303030302d303030302d"
        "343030302d383030302d303030303030303030303031220764656661756c74281940880e",
    ),
    (
        TaskMessage(
            type="email:send",
            payload=b"\x00\xff\x80",
            id=f"{ID}4",
            queue="default",
            retry=25,
            timeout=1800,
            headers={"trace": "abc"},
        ),
        "0a0a656d61696c3a73656e64120300ff801a2430303030303030302d303030302d343030302d383030302d30"
        "3030303030303030303034220764656661756c74281940880e7a0c0a0574726163651203616263",
    ),
]

int64 = st.integers(-(2**63), 2**63 - 1)
messages = st.builds(
    TaskMessage,
    type=st.text(),
    payload=st.binary(),
    id=st.text(),
    queue=st.text(),
    retry=st.integers(-(2**31), 2**31 - 1),
    retried=st.integers(0, 2**31 - 1),
    error_msg=st.text(),
    timeout=int64,
    deadline=int64,
    unique_key=st.text(),
    last_failed_at=int64,
    retention=int64,
    completed_at=int64,
    group_key=st.text(),
    headers=st.dictionaries(st.text(), st.text(), max_size=3),
)


@pytest.mark.parametrize(("message", "wire"), VECTORS)
def test_vectors(message: TaskMessage, wire: str) -> None:
    assert encode(message).hex() == wire
    assert decode(bytes.fromhex(wire)) == message


@given(messages)
def test_decode_is_the_inverse_of_encode(message: TaskMessage) -> None:
    assert decode(encode(message)) == message


@given(st.binary())
def test_junk_is_a_value_error(junk: bytes) -> None:
    try:
        decode(junk)
    except Exception as error:
        assert isinstance(error, ValueError)  # noqa: PT017 - some junk is a message


def test_nothing_is_written_for_a_zero_value() -> None:
    assert encode(TaskMessage()) == b""
    assert decode(b"") == TaskMessage()


def test_a_field_of_a_later_version_is_passed_over() -> None:
    # Fields 16 to 19, with a varint, 8 bytes, a length and 4 bytes.
    later = "80017f" + "8901" + "00" * 8 + "9201026162" + "9d01" + "00" * 4
    message, wire = VECTORS[0]
    assert decode(bytes.fromhex(later + wire)) == message


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param("0a05ab", id="shorter than its length says"),
        pytest.param("28", id="ends before a number"),
        pytest.param("28" + "ff" * 11, id="a number without end"),
        pytest.param("0801", id="a number as the type"),
        pytest.param("2a0101", id="text as a number"),
        pytest.param("0b", id="a wire type that is no more"),
        pytest.param("0a01ff", id="no UTF-8"),
        pytest.param("7a020801", id="a number in a map of texts"),
    ],
)
def test_what_is_no_message_is_refused(wire: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - that is the contract, whatever is wrong
        decode(bytes.fromhex(wire))


@pytest.mark.registry
def test_messages_that_asynq_wrote(asynq: Asynq, sync_redis: redis.Redis) -> None:
    """Also the fields that only its server and its groups set."""
    since = int(time.time())
    headers = {"": "", "a": "ä"}
    errors = asynq.enqueue(
        {"type": "fail", "id": "failed", "max_retry": 3, "headers": headers},
        {"type": "a", "id": "done", "retention": 60, "unique": 60, "payload": "AP+A"},
        {"type": "b", "id": "grouped", "group": "g", "deadline": since + 60},
    )
    assert errors == ["", "", ""]
    asynq.serve().await_lines(2)

    def message(task_id: str) -> TaskMessage:
        raw = sync_redis.hget(f"asynq:{{default}}:t:{task_id}", "msg")
        assert isinstance(raw, bytes)
        found = decode(raw)
        assert encode(found) == raw or found.headers  # a map has no order
        return found

    wait_until(lambda: message("failed").retried == 1, what="the failure is noted")
    failed = message("failed")
    assert (failed.type, failed.retry, failed.error_msg) == ("fail", 3, "told to fail")
    assert failed.headers == headers
    assert since <= failed.last_failed_at <= time.time()
    wait_until(lambda: message("done").completed_at > 0, what="the success is noted")
    done = message("done")
    assert since <= done.completed_at <= time.time()
    assert (done.payload, done.retention) == (b"\x00\xff\x80", 60)
    assert done.unique_key.startswith("asynq:{default}:unique:a:")
    grouped = message("grouped")
    assert (grouped.group_key, grouped.deadline, grouped.timeout) == ("g", since + 60, 0)
