"""The memory and the permit that the leaders of a flusher share."""

from __future__ import annotations

from redisagg.flusher.budget import Isolation, MemoryBudget

MIB = 1024 * 1024


def test_each_leader_has_a_share_when_the_memory_is_used_up() -> None:
    freed: list[str] = []
    budget = MemoryBudget(lambda: freed.append("freed"))
    budget.used += 60 * MIB
    assert budget.left(60 * MIB) == 4 * MIB
    budget.used += 10 * MIB
    assert budget.left(70 * MIB) < 0
    assert budget.left(MIB) == MIB
    budget.give_back(2 * MIB)
    assert not freed
    budget.give_back(8 * MIB)
    budget.give_back(60 * MIB)
    assert freed == ["freed"]  # once: only then did leaders wait
    assert budget.left(0) == 64 * MIB


def test_one_leader_has_the_permit_for_a_suspect() -> None:
    woken: list[str] = []
    isolation = Isolation()
    wake_second, wake_third = (lambda: woken.append("2")), (lambda: woken.append("3"))
    assert isolation.take(lambda: woken.append("1"))
    assert not isolation.take(wake_second)
    assert not isolation.take(wake_second)
    assert not isolation.take(wake_third)
    assert not woken
    isolation.give_back()
    assert sorted(woken) == ["2", "3"]
    assert isolation.take(wake_third)
    isolation.give_back()
    assert len(woken) == 2
