"""The commands for policies."""

from __future__ import annotations

from typing import Any

import click

from redisagg.aggregator import Aggregator
from redisagg.cli.options import json_option, limit_options, with_aggregator
from redisagg.cli.output import echo, print_json, print_table
from redisagg.policies import LIMITS, Policies, Policy
from redisagg.task import group_key_bytes


@click.group()
def policy() -> None:
    """Set, list, remove or test policies: limits for the groups that match a pattern.

    A policy counts for all producers of the namespace, within a second. For each limit, what a task
    sets comes first, then the policy with the longest pattern, then the settings of the producer.
    """


@policy.command("set")
@click.argument("pattern")
@with_aggregator
@limit_options
@click.option("--max-bytes", type=int, metavar="BYTES", help="Bytes of a batch; 0 for no limit.")
@click.option("--max-weight", type=int, metavar="SUM", help="Weight of a batch; 0 for no limit.")
@click.option(
    "--min-interval",
    type=float,
    metavar="SECONDS",
    help="Shortest time between two batches of a group; 0 for none.",
)
@click.option(
    "--leading/--no-leading",
    default=None,
    help="Whether the first task of a group is due at once; needs --min-interval.",
)
@click.option("--priority", type=int, help="-1000 to 1000, for tasks with the priority 0.")
@click.option(
    "--apply-to-open", is_flag=True, help="Change the tasks that wait in matching groups too."
)
@json_option
def set_(
    aggregator: Aggregator,
    pattern: str,
    grace: float | None,
    apply_to_open: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Set the policy of PATTERN, such as 'digest:*', in place of an earlier one.

    A limit that is not given is left to a shorter pattern, or to the settings of the producer.
    """
    given = Policy(grace_period=grace, **limits)
    applied = aggregator.set_policy(pattern, given, apply_to_open=apply_to_open)
    if as_json:
        print_json({"pattern": pattern, **given.given(), **applied._asdict()})
        return
    echo(f"set: {_text(given)}")
    if apply_to_open:
        echo(f"{applied.changed} open groups changed, {applied.left} left as they were")


@policy.command("list")
@with_aggregator
@json_option
def list_(aggregator: Aggregator, as_json: bool) -> None:
    """List the policies; for a group that several match, those above come first."""
    found = aggregator.policies()
    if as_json:
        for pattern, each in found.items():
            print_json({"pattern": pattern, **each.given()})
        return
    print_table(("pattern", "limits"), ((pattern, _text(each)) for pattern, each in found.items()))


@policy.command()
@click.argument("patterns", nargs=-1, required=True)
@with_aggregator
@json_option
def remove(aggregator: Aggregator, patterns: tuple[str, ...], as_json: bool) -> None:
    """Remove the policies of PATTERNS."""
    missing = [each for each in patterns if not aggregator.remove_policy(each)]
    removed = len(patterns) - len(missing)
    if as_json:
        print_json({"removed": removed})
    else:
        echo(f"{removed} policies removed")
    if missing:
        named = ", ".join(map(repr, missing))
        raise click.ClickException(f"there is no policy for {named}")


@policy.command()
@click.argument("group")
@with_aggregator
@json_option
def test(aggregator: Aggregator, group: str, as_json: bool) -> None:
    """Show which policy decides which limit of GROUP, for tasks that set none."""
    decisions = Policies(aggregator.policies()).decisions_of(group_key_bytes(group))
    if as_json:
        print_json({name: each._asdict() for name, each in decisions.items()})
        return
    print_table(
        ("limit", "value", "policy"),
        (
            (name, _value(decisions[name].value), decisions[name].pattern)
            if name in decisions
            else (name, "", "none: the settings of the producer")
            for name in LIMITS
        ),
    )


def _text(given: Policy) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in given.given().items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
