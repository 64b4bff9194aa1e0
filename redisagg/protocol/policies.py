"""What a producer knows of the policies of its namespace, and when it asks Redis for them.

A producer begins without policies and asks for none. Once the namespace has some, the script `add`
writes nothing for such a producer and replies ``POLICIES``. The producer then reads the policies
and sends the call again. From then on it reads them before a round trip whenever what it knows is
older than `_FRESH`. So an add that begins a second after a change is made with the new policies,
and a producer without policies pays nothing for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from redisagg.errors import KeyConflict
from redisagg.policies import Policies, Policy, check_pattern
from redisagg.protocol.keys import Keyspace
from redisagg.protocol.operations import Operation, ask
from redisagg.protocol.scripts import call
from redisagg.texts import logger

_log = logger("policies")

_FRESH = 0.5
"""Seconds for which a producer uses policies without asking again. With the time that the call then
takes on its way, a change counts within `STALE`."""

_KEPT = 10
"""If the policies can't be read, they stay in use for this many times as long as the attempt took.
So adds spend a tenth of their time at most on a node that does not answer."""

_KEPT_AT_MOST = 60.0
"""Seconds for which they stay in use then."""

STALE = 1.0
"""Seconds after a change from which all producers use the new policies."""

_CACHED_LIMITS = 4096

OwnLimits: TypeAlias = "tuple[Any, ...] | None"
"""The limits of its group that a task sets itself; None if it sets none."""

LimitsText: TypeAlias = "Callable[[Mapping[str, Any], OwnLimits], bytes]"
"""Returns the limits of a section, for what policies set and for what its tasks set."""


class _Known:
    """The policies as they were at one time; not changed any more."""

    __slots__ = ("kept", "limits", "read_at", "version")

    def __init__(
        self,
        version: bytes,
        read_at: float,
        limits: Callable[[bytes, OwnLimits], bytes],
        kept: float = 0.0,
    ) -> None:
        self.version = version
        self.read_at = read_at
        self.limits = limits
        self.kept = kept
        """Seconds for which they stay in use, since they can't be read; 0 if they can."""


class KnownPolicies:
    """What a producer knows of the policies; for any number of threads.

    Args:
        keyspace: the keys of the namespace.
        limits: makes the limits of a section.
    """

    def __init__(self, keyspace: Keyspace, limits: LimitsText) -> None:
        self._keyspace = keyspace
        self._limits = limits
        self._known: _Known | None = None
        """None until Redis said that the namespace has policies. Replaced as a whole, so that a
        thread that is slow or interrupted can at most leave older ones, with their own time."""
        self.in_use = False
        """Whether calls are made with policies. A field, since every round trip reads it."""

    @property
    def is_due(self) -> bool:
        """Whether the policies have to be read before the next call."""
        known = self._known
        return known is None or time.monotonic() - known.read_at > (known.kept or _FRESH)

    def limits(self, group: bytes, own: OwnLimits) -> bytes:
        """Returns the limits of a section.

        Args:
            group: the group key.
            own: what its tasks set.
        """
        known = self._known
        if known is None:
            return self._limits({}, own)
        return known.limits(group, own)

    def read(self) -> Operation[None]:
        """Reads the policies, if they have changed.

        Raises:
            RedisAggError: Redis refused.
        """
        began = time.monotonic()
        known = self._known
        version = b"" if known is None else known.version
        found, *pairs = yield from ask(
            call("read_policies", [self._keyspace.meta, self._keyspace.policies], version)
        )
        if known is not None and found == version:
            limits = known.limits
        else:
            policies = Policies(policies_of(pairs))
            limits = lru_cache(_CACHED_LIMITS)(
                lambda group, own: self._limits(policies.limits_of(group), own)
            )
        self._known = _Known(found, began, limits)
        self.in_use = True

    def keep(self, tried: float) -> bool:
        """Uses what is known for another while, since the policies can't be read.

        Args:
            tried: seconds that the attempt to read them took.

        Returns:
            False if nothing is known.
        """
        known = self._known
        if known is None:
            return False
        kept = max(_FRESH, min(_KEPT * tried, _KEPT_AT_MOST))
        self._known = _Known(known.version, time.monotonic(), known.limits, kept)
        return True


def policies_of(pairs: Sequence[bytes]) -> dict[str, Policy]:
    """Reads stored policies: pattern, policy, pattern, policy, and so on.

    What redisagg did not write, or a later release did in another form, is left out with a warning.
    """
    policies: dict[str, Policy] = {}
    for raw_pattern, stored in zip(pairs[::2], pairs[1::2], strict=True):
        try:
            policy = Policy.from_stored(stored)
            pattern = check_pattern(raw_pattern.decode())
        except (KeyConflict, ValueError) as error:  # InvalidConfig is a ValueError
            _log.warning("the policy for %r can't be read and is left out: %s", raw_pattern, error)
            continue
        if policy is not None:
            policies[pattern] = policy
    return policies
