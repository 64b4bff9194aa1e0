"""Operations that set, remove and read the policies of a namespace."""

from __future__ import annotations

from redisagg.errors import InvalidConfig
from redisagg.policies import MAX_POLICIES, Policy, check_pattern, precedence
from redisagg.protocol.keys import WITH_POLICIES, Keyspace
from redisagg.protocol.operations import Operation, ask, ask_all
from redisagg.protocol.policies import policies_of
from redisagg.protocol.scripts import call


def check_policy(pattern: object, policy: object) -> str:
    """Checks the arguments of `set_policy`; returns the pattern.

    Raises:
        InvalidConfig: one of them is wrong.
    """
    if not isinstance(policy, Policy):
        raise InvalidConfig(f"policy must be a redisagg.Policy, not {type(policy).__name__}")
    return check_pattern(pattern)


def set_policy(keyspace: Keyspace, pattern: str, policy: Policy) -> Operation[None]:
    """Sets the policy of a pattern, in a namespace that is registered.

    Producers that know of no policies have to learn of them wherever they add. So all partitions
    note that there are policies before the first one is stored. If this ends in between, producers
    ask for policies and find none.

    Raises:
        InvalidConfig: there are too many policies; nothing was written.
    """
    yield from ask(call("set_policies", [keyspace.meta, keyspace.policies], MAX_POLICIES))
    number = b"%d" % len(keyspace.partitions) + WITH_POLICIES
    yield from ask_all([call("register_partition", [p.state], number) for p in keyspace.partitions])
    keys = [keyspace.meta, keyspace.policies]
    raw = pattern.encode()
    reply = yield from ask(call("set_policies", keys, MAX_POLICIES, raw, policy.stored()))
    if reply == b"MANY":
        raise InvalidConfig(
            f"there are {MAX_POLICIES:,} policies already; remove some, or let one pattern stand "
            "for several"
        )


def remove_policy(keyspace: Keyspace, pattern: str) -> Operation[bool]:
    """Removes the policy of a pattern; returns whether there was one."""
    keys = [keyspace.meta, keyspace.policies]
    removed = yield from ask(call("set_policies", keys, MAX_POLICIES, pattern.encode(), b""))
    return bool(removed)


def policies(keyspace: Keyspace) -> Operation[dict[str, Policy]]:
    """Reads the policies by pattern, the longest pattern first."""
    _, *pairs = yield from ask(call("read_policies", [keyspace.meta, keyspace.policies], b"-"))
    found = policies_of(pairs)
    return {pattern: found[pattern] for pattern in sorted(found, key=precedence)}
