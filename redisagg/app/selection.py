"""Which of several aggregators a process runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import combinations

from redisagg.aggregator.together import AnyAggregator, have_one_namespace
from redisagg.errors import InvalidConfig


def select(aggregators: Iterable[AnyAggregator], only: Collection[str]) -> list[AnyAggregator]:
    """Returns the aggregators to run, each of them once.

    Args:
        aggregators: those that there are.
        only: names of those to run; all if empty.

    Raises:
        InvalidConfig: there is no aggregator of a name in `only`, there is none to run, or two have
            the same name and Redis.
    """
    found = list({id(each): each for each in aggregators}.values())
    names = [each.name for each in found]
    wanted = {only} if isinstance(only, str) else set(only)
    if missing := sorted(wanted.difference(names)):
        raise InvalidConfig(
            f"there is no aggregator {missing[0]!r}; those that there are: "
            f"{', '.join(map(repr, names)) or 'none'}"
        )
    found = [each for each in found if not wanted or each.name in wanted]
    if not found:
        raise InvalidConfig(
            "there is no aggregator to run; if other modules define those of an app, name them in "
            "its argument include"
        )
    for one, other in combinations(found, 2):
        if have_one_namespace(one, other):
            raise InvalidConfig(
                f"two aggregators have the name {one.name!r} in the same Redis; run one of them"
            )
    return found
