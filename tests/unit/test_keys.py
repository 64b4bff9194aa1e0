"""Key names and partitions: a contract with other languages."""

from __future__ import annotations

from zlib import crc32

from redisagg.protocol.keys import Keyspace


def test_crc_32_is_the_one_of_zip() -> None:
    assert crc32(b"123456789") == 0xCBF43926  # the check value of CRC-32/ISO-HDLC


def test_partitions_are_stable() -> None:
    space = Keyspace("emails", 16)
    found = {key: space.partition_of(key.encode()).number for key in ("a", "email:welcome", "é")}
    # 0xE8B7BE43, 0x3FDE2DFF and 0x775C73A6 modulo 16
    assert found == {key: crc32(key.encode()) % 16 for key in found}
    assert found["a"] == 0xE8B7BE43 % 16


def test_all_keys_of_a_partition_share_a_hash_tag() -> None:
    partition = Keyspace("emails", 16).partitions[7]
    keys = [
        *(partition.state, partition.groups, partition.batches, partition.claims),
        *(partition.retry, partition.due, partition.ready, partition.dead),
        *(partition.tasks(b"}x{y}"), partition.ids(b"{z}"), partition.call(b"p")),
        partition.dead_tasks(b"b"),
    ]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert key.startswith(b"redisagg:{emails:7}:")
