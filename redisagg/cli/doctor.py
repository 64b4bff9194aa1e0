"""The command that checks Redis' settings and the keys of a namespace, and mends what it can."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click
from redis import Redis
from redis.exceptions import RedisError, ResponseError
from rich.progress import track

from redisagg.aggregator import Aggregator
from redisagg.cli.options import json_option, with_aggregator
from redisagg.cli.output import echo, print_json, printable, stderr
from redisagg.cli.why import WRONG
from redisagg.errors import AuthenticationFailed, RedisAggError
from redisagg.operations import checking, servers
from redisagg.transport.failures import translate_error
from redisagg.transport.threads import Transport
from redisagg.views import Finding

_TIMEOUT = 5.0  # seconds for which a lost connection is retried
_PAGE = 500  # keys that one SCAN looks at: well below a millisecond

_MARKS = {"error": "!!", "warning": " !", "note": "  "}


@click.command()
@with_aggregator
@click.option("--repair", is_flag=True, help="Mend what can be mended.")
@click.option(
    "--keys/--no-keys",
    default=True,
    help="Look through all keys of Redis for those that belong to nothing, or do not.",
)
@click.option("--role", type=click.Choice(servers.ROLES), help="Check the rights of this role.")
@click.option("--user", metavar="NAME", help="With --role: of this user; by default yourself.")
@json_option
def doctor(
    aggregator: Aggregator,
    repair: bool,
    keys: bool,
    role: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Check the settings of Redis and the keys of the namespace; exit code 4 if something is wrong.

    Reads in small pieces, and is safe while producers and flushers run, with --repair too.
    """
    if user is not None and role is None:
        raise click.UsageError("--user goes with --role")
    examination = _Examination(aggregator, repair=repair)
    findings = [*examination.servers(), *examination.namespace()]
    if role is not None:
        findings += examination.rights(role, user)
    if keys:
        findings += examination.keys()
    findings += examination.partitions()
    if as_json:
        for finding in findings:
            print_json(finding)
    else:
        for finding in findings:
            mended = "mended: " if finding.mended else ""
            echo(f"{_MARKS[finding.level]} {finding.check}: {mended}{finding.text}")
            if finding.advice and not finding.mended:
                echo(f"   {finding.advice}")
        echo(_summary(findings))
    if any(each.level == "error" and not each.mended for each in findings):
        raise SystemExit(WRONG)


def _summary(findings: Iterable[Finding]) -> str:
    counts = {"error": 0, "warning": 0, "note": 0, "mended": 0}
    for each in findings:
        counts["mended" if each.mended else each.level] += 1
    if not any(counts.values()):
        return "all is well"
    return ", ".join(
        f"{count} {name}{'s' * (name != 'mended' and count != 1)}"
        for name, count in counts.items()
        if count
    )


class _Examination:
    """One run of the doctor.

    Args:
        repair: whether to mend what can be mended.
    """

    def __init__(self, aggregator: Aggregator, *, repair: bool) -> None:
        self._aggregator = aggregator
        self._keyspace = aggregator._keyspace
        self._transport = Transport(aggregator._transport.client, _TIMEOUT)
        self._repair = repair
        self._skipped: set[int] = set()
        """Partitions that can't be asked for now, as `namespace` has said."""

    def servers(self) -> Iterator[Finding]:
        """Checks the settings of each server."""
        masters = self._transport.masters()
        states: list[dict[str, str]] = []
        for master in masters:
            try:
                findings = list(self._server(master))
                if self._transport.clustered:
                    raw: Any = _or_none(lambda: master.execute_command("CLUSTER INFO"))  # noqa: B023
                    states.append({_str(k): _str(v) for k, v in (raw or {}).items()})
            except RedisError as error:
                findings = [Finding("server", "error", f"It does not answer: {_sentence(error)}")]
            for finding in findings:
                yield _named(finding, master) if len(masters) > 1 else finding
        if states:
            yield from servers.check_cluster(states[0])

    def _server(self, master: Redis) -> Iterator[Finding]:
        info: Any = _or_none(lambda: master.info())
        if info is None:
            yield Finding("server", "note", "INFO is refused, so the server was not checked.")
            return
        settings: dict[str, str] = {}
        for name in ("save", "appendfsync"):
            found: Any = _or_none(lambda name=name: master.config_get(name))
            if found is None:
                yield from servers.check_server(info, None)
                return
            settings |= {_str(key): _str(value) for key, value in found.items()}
        yield from servers.check_server(info, settings)

    def namespace(self) -> Iterator[Finding]:
        """What `why` would name for all groups: only what does not pass by itself."""
        try:
            troubles = self._aggregator.get_troubles()
        except AuthenticationFailed as error:
            yield Finding("namespace", "note", f"It was not checked: {_sentence(error)}")
            return
        for trouble in troubles:
            level: Any = "warning"
            if trouble.cause in ("wrong_partitions", "partition_away", "redis_full"):
                level = "error"
            if trouble.cause in ("partition_away", "moving"):
                self._skipped.update(trouble.partitions or range(len(self._keyspace.partitions)))
            yield Finding("namespace", level, trouble.text, trouble.advice)

    def rights(self, role: str, user: str | None) -> Iterator[Finding]:
        """Checks the rights of a user by ACL DRYRUN, which runs nothing."""
        master = self._transport.masters()[0]
        try:
            who = user or _str(master.execute_command("ACL WHOAMI"))
            refused = []
            for probe in servers.probes(role, self._aggregator.name):
                reply = master.execute_command("ACL DRYRUN", who, *probe)
                if _str(reply) != "OK":
                    refused.append(probe)
        except ResponseError as error:
            yield Finding(
                "rights",
                "note",
                f"The rights can't be checked: {printable(str(error), 200)}.",
                "Redis 7 and a user with the right to ACL DRYRUN are needed.",
            )
            return
        if refused:
            yield servers.rights_finding(role, who, refused)

    def partitions(self) -> Iterator[Finding]:
        """Checks groups and batches."""
        partitions = [p for p in self._keyspace.partitions if p.number not in self._skipped]
        if self._skipped:
            names = ", ".join(map(str, sorted(self._skipped)))
            yield Finding("groups", "note", f"Those of the partitions {names} were not checked.")
        for p in _progress(partitions, "partitions"):
            checked = checking.check_partition(self._keyspace, p, mend=self._repair)
            try:
                yield from self._transport.run(checked)
            except AuthenticationFailed as error:
                yield Finding("groups", "note", f"They were not checked: {_sentence(error)}")
                return
            except RedisAggError as error:
                text = f"Partition {p.number} can't be checked: {_sentence(error)}"
                yield Finding("groups", "error", text)

    def keys(self) -> Iterator[Finding]:
        """Checks whether keys belong to a record, with the cursors of SCAN."""
        orphans: list[tuple[checking.Kind, bytes]] = []
        pattern = f"redisagg:{{{self._aggregator.name}:*"
        for master in self._transport.masters():
            cursor: Any = 0
            try:
                while True:
                    reply: Any = master.scan(cursor, match=pattern, count=_PAGE)
                    cursor, names = reply
                    raw = [each.encode() if isinstance(each, str) else each for each in names]
                    checked = checking.check_keys(
                        self._keyspace, raw, mend=self._repair, without=self._skipped
                    )
                    orphans += self._transport.run(checked)
                    if not cursor:
                        break
            except (RedisError, RedisAggError) as error:
                why = _sentence(translate_error(error))
                yield Finding("keys", "note", f"The keys were not checked: {why}")
        yield from checking.key_findings(list(dict.fromkeys(orphans)), mended=self._repair)


def _named(finding: Finding, master: Redis) -> Finding:
    options = master.connection_pool.connection_kwargs
    where = f"{options.get('host')}:{options.get('port')}"
    return Finding(finding.check, finding.level, f"{where}: {finding.text}", finding.advice)


def _progress(items: list[Any], what: str) -> Iterable[Any]:
    """Shows a progress bar if standard error is a terminal."""
    console = stderr()
    if not console.is_terminal:
        return items
    return track(items, description=what, console=console, transient=True)


def _sentence(error: Exception) -> str:
    """The end of a sentence."""
    return f"{str(error).rstrip('.')}."


def _or_none(ask: Any) -> Any:
    """The reply; None if Redis refuses."""
    try:
        return ask()
    except ResponseError:
        return None


def _str(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
