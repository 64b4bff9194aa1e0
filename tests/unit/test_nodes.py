"""Routing of commands to the nodes of a cluster, without sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis.exceptions as rx
from redis.crc import key_slot

from redisagg.errors import NotReplicated
from redisagg.protocol.scripts import call, command
from redisagg.transport import nodes
from redisagg.transport.nodes import Cluster, Node, Part, Topology, route
from redisagg.transport.round_trip import Command

A, B, C = ("a", 1), ("b", 2), ("c", 3)
HALVES = [[0, 8191, [b"a", 1, b"id"]], [8192, 16383, [b"b", 2, b"id"], [b"replica", 9]]]

IN_A, IN_B = b"{b}", b"{a}"
"""Keys in the first and in the second half of the slots."""

LOST = rx.ConnectionError("lost")


def moved(text: str) -> rx.ResponseError:
    return rx.ResponseError(f"MOVED {text}")


def get(key: bytes) -> Command:
    return command("GET", key).command()


@pytest.fixture
def topology(monkeypatch: pytest.MonkeyPatch) -> Topology:
    monkeypatch.setattr(nodes, "_REFRESH_INTERVAL", 0.0)
    topology = Topology([A])
    topology.learn(HALVES, A)
    return topology


def carry_out(
    topology: Topology, commands: list[Command], answer: Callable[[Part], list[Any]]
) -> tuple[list[Any], list[list[tuple[Node, list[Command]]]]]:
    """Returns the replies, and for each step what was sent where."""
    steps, sent = route(topology, commands), []
    try:
        parts = next(steps)
        while True:
            sent.append([(part.node, part.sent) for part in parts])
            parts = steps.send([answer(part) for part in parts])
    except StopIteration as stop:
        return stop.value, sent


def test_commands_go_to_the_nodes_of_their_first_keys(topology: Topology) -> None:
    scripts = [call("poll", [key, b"x"], 1).command() for key in (IN_A, IN_B)]
    commands = [*scripts, get(IN_A)]
    replies, sent = carry_out(topology, commands, lambda part: [part.node] * len(part.sent))
    assert replies == [A, B, A]
    assert sent == [[(A, [commands[0], commands[2]]), (B, [commands[1]])]]


def test_a_new_client_asks_its_seeds_one_after_the_other() -> None:
    topology = Topology([A, B])

    def answer(part: Part) -> list[Any]:
        if part.sent != [("CLUSTER", "SLOTS")]:
            return [part.node]
        return [LOST if part.node == A else HALVES]

    for _ in range(3):
        assert carry_out(topology, [get(IN_A)], answer)[0] == [A]
    assert topology.nodes == (A, B)
    assert carry_out(Topology([A, B]), [get(IN_A)], lambda _: [LOST])[0] == [LOST]


@pytest.mark.parametrize("moved", [moved, rx.MovedError], ids=["text", "class"])
def test_a_command_follows_moved_and_the_slot_stays_there(
    topology: Topology, moved: Callable[[str], Exception]
) -> None:
    def answer(part: Part) -> list[Any]:
        slot = key_slot(IN_A)
        return [moved(f"{slot} c:3") if part.node == A else part.node]

    replies, sent = carry_out(topology, [get(IN_A)], answer)
    assert (replies, [[node for node, _ in step] for step in sent]) == ([C], [[A], [C]])
    replies, sent = carry_out(topology, [get(IN_A)], answer)
    assert (replies, len(sent)) == ([C], 1)
    assert topology.nodes == (A, B, C)


@pytest.mark.parametrize("ask", [rx.ResponseError("ASK 1 c:3"), rx.AskError("1 c:3")], ids=str)
def test_a_command_follows_ask_once(topology: Topology, ask: Exception) -> None:
    def answer(part: Part) -> list[Any]:
        return [ask] if part.node == A else [b"OK", part.node]

    for _ in range(2):
        replies, sent = carry_out(topology, [get(IN_A)], answer)
        assert replies == [C]
        assert sent == [[(A, [get(IN_A)])], [(C, [("ASKING",), get(IN_A)])]]


def test_a_redirect_without_host_names_another_port_of_the_node_asked(topology: Topology) -> None:
    def answer(part: Part) -> list[Any]:
        return [moved("1 :7") if part.node == A else part.node]

    assert carry_out(topology, [get(IN_A)], answer)[0] == [("a", 7)]
    for unknown in (b"", None, b"?"):
        topology.learn([[0, 16383, [unknown, 5]]], B)
        assert topology.nodes == (("b", 5),)


def test_endless_redirects_become_a_transient_error(topology: Topology) -> None:
    replies, sent = carry_out(topology, [get(IN_A)], lambda _: [moved("1 a:1")])
    assert isinstance(replies[0], rx.TryAgainError)
    assert len(sent) < 10


@pytest.mark.parametrize(
    "error", [LOST, rx.ClusterDownError("down"), rx.ReadOnlyError("no"), NotReplicated("cut off")]
)
def test_a_node_that_fails_concerns_its_own_commands_only(
    topology: Topology, error: Exception
) -> None:
    """And another one is asked who has its slots now."""
    asked = []

    def answer(part: Part) -> list[Any]:
        if part.sent == [("CLUSTER", "SLOTS")]:
            asked.append(part.node)
            return [[[0, 16383, [b"b", 2]]]]
        return [error if part.node == A else part.node] * len(part.sent)

    replies, _ = carry_out(topology, [get(IN_A), get(IN_B)], answer)
    assert replies == [error, B]
    assert asked == [B]
    assert carry_out(topology, [get(IN_A)], answer)[0] == [B]


def test_a_node_that_can_not_be_asked_changes_nothing(topology: Topology) -> None:
    for _ in range(3):
        assert carry_out(topology, [get(IN_A)], lambda part: [LOST] * len(part.sent))[0] == [LOST]
    assert topology.nodes == (A, B)
    assert carry_out(topology, [get(IN_B)], lambda part: [part.node])[0] == [B]


def test_nodes_are_not_asked_again_at_once(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_REFRESH_INTERVAL", 60)
    steps = []
    for _ in range(3):
        _, sent = carry_out(
            topology, [get(IN_A)], lambda part: [HALVES if part.node == B else LOST]
        )
        steps.append(len(sent))
    assert steps == [2, 1, 1]


def test_slots_without_a_node(topology: Topology) -> None:
    topology.learn(HALVES[:1], A)
    replies, _ = carry_out(
        topology, [get(IN_A), get(IN_B)], lambda part: [1] if part.numbers else [HALVES]
    )
    assert (replies[0], type(replies[1])) == (1, rx.SlotNotCoveredError)
    assert carry_out(topology, [get(IN_B)], lambda part: [part.node])[0] == [B]


def test_an_address_translation_is_used_for_all_places() -> None:
    topology = Topology([A], lambda node: (f"outside-{node[0]}", node[1]))
    topology.learn(HALVES, A)
    assert topology.nodes == (("outside-a", 1), ("outside-b", 2))


def test_the_pools_of_nodes_that_left_are_given_up(topology: Topology) -> None:
    cluster: Cluster[str] = Cluster(topology, lambda node: f"pool of {node[0]}")
    assert [cluster.pool(node) for node in (A, B, C, B)] == [f"pool of {c}" for c in "abcb"]
    assert list(cluster.take_unused()) == ["pool of c"]
    assert list(cluster.take_unused()) == []
    assert sorted(cluster.take_pools()) == ["pool of a", "pool of b"]
    assert cluster.pool(A) == "pool of a"
