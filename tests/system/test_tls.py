"""TLS with certificates on both sides, as docs/security.md says."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import redis
import redis.asyncio as aio
from click.testing import CliRunner

from redisagg import AggregationConfig, Aggregator, Task
from redisagg.cli.app import cli
from redisagg.errors import AuthenticationFailed, EmbeddedServerError, RedisUnavailable
from redisagg.testing.embedded import HOST, EmbeddedRedis, _free_port
from tests.support.aggregators import KINDS, AggregatorMaker, making
from tests.support.certificates import Authority
from tests.support.servers import ClusterTopology
from tests.support.tasks import await_batches, enqueued, numbered, payloads, quick_config

_WITHOUT_TLS = ("'tls-port", "Failed finding TLS support")
"""The error of servers that were built without TLS, up to Redis 7 and since."""


@dataclass(frozen=True)
class Files:
    """Certificates and keys."""

    authority: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]
    other_authority: Path

    def directives(self, port: int) -> dict[str, str]:
        """The directives of a server that asks for certificates, on a port for TLS only."""
        return {
            "tls-port": str(port),
            "tls-cert-file": str(self.server[0]),
            "tls-key-file": str(self.server[1]),
            "tls-ca-cert-file": str(self.authority),
            "tls-auth-clients": "yes",
        }

    def options(self, **changes: Any) -> dict[str, str]:
        """The options of a client; None in `changes` leaves one out."""
        options = {
            "ssl_ca_certs": self.authority,
            "ssl_certfile": self.client[0],
            "ssl_keyfile": self.client[1],
            **changes,
        }
        return {name: str(value) for name, value in options.items() if value is not None}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = Authority(folder, "ours"), Authority(folder, "another")
    return Files(
        authority.certificate,
        authority.issue("server", f"IP:{HOST}"),
        authority.issue("client", "DNS:client"),
        other.certificate,
    )


@pytest.fixture(scope="module")
def tls_port() -> int:
    return _free_port()


@pytest.fixture(scope="module")
def server(server_binary: Path, files: Files, tls_port: int) -> Iterator[EmbeddedRedis]:
    """A server for clients with certificates, with a port without TLS for the tests."""
    server = EmbeddedRedis(server_binary, config=files.directives(tls_port))
    try:
        server.start()
    except EmbeddedServerError as error:
        if not any(sign in str(error) for sign in _WITHOUT_TLS):
            raise
        pytest.skip(f"{server_binary} was built without TLS")
    with server:
        yield server


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, server: EmbeddedRedis) -> Iterator[AggregatorMaker]:
    """Makes aggregators, for a server without data."""
    with server.client() as client:
        client.flushall()
    with making(request.param) as maker:
        yield maker


@pytest.fixture
def url(files: Files, tls_port: int) -> str:
    return url_of(tls_port, files.options())


def url_of(port: int, options: dict[str, str], host: str = HOST) -> str:
    return f"rediss://{host}:{port}/0?{urlencode(options)}"


def config(**changes: Any) -> AggregationConfig:
    return quick_config(**{"group_max_size": 5, "add_timeout": 20, **changes})


def assert_works(aggregator: Aggregator) -> None:
    """Adds tasks and asserts that a flusher is woken and enqueues them."""
    with aggregator:
        aggregator.add_tasks(numbered("a", 20))
        await_batches(aggregator, 4)
        assert sorted(payloads(enqueued(aggregator))) == list(range(20))


def test_certificates_in_the_url_are_used(make: AggregatorMaker, url: str) -> None:
    assert_works(make("tests", url, config=config()))


def test_certificates_of_a_client_are_used(
    make: AggregatorMaker, files: Files, tls_port: int
) -> None:
    kind: Any = redis.Redis if make.kind == "threads" else aio.Redis
    client = kind(host=HOST, port=tls_port, ssl=True, **files.options())
    assert_works(make("tests", client, config=config()))


def test_a_cluster_is_used_with_tls(
    make: AggregatorMaker, files: Files, tls_port: int, server: EmbeddedRedis
) -> None:
    server.stop()  # the cluster uses its port
    directives = {**files.directives(tls_port), "tls-cluster": "yes"}
    try:
        with ClusterTopology(server.binary, masters=1, config=directives):
            options = urlencode(files.options())
            url = f"rediss+cluster://{HOST}:{tls_port}?{options}"
            assert_works(make("tests", url, config=config()))
    finally:
        server.start()


def test_the_command_line_takes_certificates_in_the_url(server: EmbeddedRedis, url: str) -> None:
    with contextlib.closing(Aggregator("default", url)) as aggregator:
        aggregator.add_tasks(numbered("a", 1))
    result = CliRunner(env={"REDISAGG_URL": url}).invoke(cli, ["stats"])
    assert result.exit_code == 0, result.output
    assert "no leader" in result.output


@pytest.mark.parametrize("what", ["another authority", "another host"])
def test_a_server_that_is_not_trusted_is_an_error_at_once(
    make: AggregatorMaker, files: Files, tls_port: int, what: str
) -> None:
    if what == "another host":
        url, said = url_of(tls_port, files.options(), "localhost"), "ostname mismatch"
    else:
        options = files.options(ssl_ca_certs=files.other_authority)
        url, said = url_of(tls_port, options), "certificate verify failed"
    aggregator = make("tests", url, config=config())
    start = time.monotonic()
    with pytest.raises(AuthenticationFailed, match=said):
        aggregator.add_task(Task("test", 0, "a"))
    with pytest.raises(AuthenticationFailed, match=said):
        aggregator.start()
    assert time.monotonic() - start < 5  # it is not retried
    result = CliRunner(env={"REDISAGG_URL": url}).invoke(cli, ["stats"])
    assert result.exit_code == 1
    assert said in result.output


def test_an_untrusted_server_is_known_in_an_except_block(
    make: AggregatorMaker, files: Files, tls_port: int
) -> None:
    """There Python adds the error that is being handled to the context of each other one."""
    options = files.options(ssl_ca_certs=files.other_authority)
    aggregator = make("tests", url_of(tls_port, options), config=config())
    try:
        raise TimeoutError
    except TimeoutError:
        with pytest.raises(AuthenticationFailed, match="certificate verify failed"):
            aggregator.add_task(Task("test", 0, "a"))


def test_a_client_without_a_certificate_is_refused(
    make: AggregatorMaker, server: EmbeddedRedis, files: Files, tls_port: int
) -> None:
    options = files.options(ssl_certfile=None, ssl_keyfile=None)
    aggregator = make("tests", url_of(tls_port, options), config=config(add_timeout=1))
    # The server closes the connection, and a client that writes may not see why.
    with pytest.raises((AuthenticationFailed, RedisUnavailable)) as caught:
        aggregator.add_task(Task("test", 0, "a"))
    print(f"{make.kind}: {caught.value}")
    with server.client() as client:
        assert client.keys() == []


def test_a_client_without_tls_is_refused(make: AggregatorMaker, tls_port: int) -> None:
    url = f"redis://{HOST}:{tls_port}"
    aggregator = make("tests", url, config=config(add_timeout=1))
    with pytest.raises(RedisUnavailable):
        aggregator.add_task(Task("test", 0, "a"))
