"""An embedding service as users call one: with a limit of its own, and away for a while."""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from redisagg import Aggregator, RateLimit, RetryAfter, Task, Unavailable
from tests.support.aggregators import Make
from tests.support.servers import wait_until
from tests.support.tasks import Measured, enqueued

LIMIT = 60


class Service:
    """Answers 429 above LIMIT calls in any `per` seconds; closes connections while it is away.

    All times are by the monotonic clock.
    """

    def __init__(self, per: float) -> None:
        self.per = per
        self.is_away = False
        self.arrived: list[float] = []
        """The times of all calls."""
        self.answered: list[float] = []
        self.refused: list[float] = []
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                texts = json.loads(self.rfile.read(int(self.headers["content-length"])))
                wait = service.take()
                if wait is None:
                    return  # without a response
                if wait:
                    self._respond(429, {"error": "too many requests"}, wait)
                else:
                    self._respond(200, [[len(text)] for text in texts])

            def _respond(self, status: int, value: object, wait: int = 0) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                if wait:
                    self.send_header("retry-after", str(wait))
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Logs nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self._port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Ends the service."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self) -> int | None:
        """Counts a call.

        Returns:
            0 if it is answered, the seconds to wait if it is refused, None if it gets no response.
        """
        with self._lock:
            now = time.monotonic()
            self.arrived.append(now)
            if self.is_away:
                return None
            inside = [each for each in self.answered[-LIMIT:] if each > now - self.per]
            if len(inside) == LIMIT:
                self.refused.append(now)
                return math.ceil(inside[0] + self.per - now)
            self.answered.append(now)
            return 0

    def embed(self, group: str, tasks: list[Task]) -> Task:
        """A merge function that calls the service."""
        texts = [task.payload for task in tasks]
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        with closing(connection):
            try:
                connection.request("POST", "/embed", json.dumps(texts))
                response = connection.getresponse()
                vectors = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(repr(error)) from error
        if response.status == 429:
            raise RetryAfter(int(response.headers["retry-after"]), "aggregator")
        return Task("embedded", dict(zip(texts, vectors, strict=True)))


@contextmanager
def running_service(per: float) -> Iterator[Service]:
    """Runs a service until the end of the block."""
    with closing(Service(per)) as service:
        yield service


def texts(count: int) -> list[Task]:
    return [Task("embed", f"text {n}", f"customer {n % 20}") for n in range(count)]


def most_in_window(times: list[float], per: float) -> int:
    """The largest number of calls in any window."""
    ordered = sorted(times)
    return max(sum(at <= each <= at + per for each in ordered) for at in ordered)


def most_possible(per: float, span: float, away: float, back: float) -> int:
    """The number of calls that the limit allows to one who knows when the service is away."""
    calls: list[float] = []
    now = 0.0
    while now < span:
        if away <= now < back:
            now = back
            continue
        calls.append(now)
        if len(calls) >= LIMIT:
            now = max(now, calls[-LIMIT] + per)
    return len(calls)


@pytest.mark.slow
def test_a_limited_service_that_was_away_is_used_to_the_full(
    make: Make, measured: Measured
) -> None:
    """With the times of the issue divided by ten: 60 calls a window, away for half of one."""
    per, span, away, back = 6.0, 36.0, 11.5, 14.5
    allowed = most_possible(per, span, away, back)
    with running_service(per) as service:
        agg = make(
            group_aggregator=service.embed,
            rate_limit=RateLimit(LIMIT, per=per),
            group_max_size=1,
            max_attempts=1,
            concurrency=4,
            partitions=4,
            retry_delay=0.5,
            retry_max_delay=3,
        )
        agg.add_tasks(texts(allowed + LIMIT))
        with agg:
            wait_until(lambda: service.arrived, what="the first call")
            began = service.arrived[0]
            _sleep_until(began + away)
            service.is_away = True
            _sleep_until(began + back)
            service.is_away = False
            _sleep_until(began + span)
            agg.pause()
            wait_until(lambda: _is_idle(agg), what="all calls are over")
            dead, done = agg.stats().dead, enqueued(agg)
    answered = sum(each < began + span for each in service.answered)
    lost = len(service.arrived) - len(service.answered)
    measured(f"embedding service: {answered} of {allowed} calls, {lost} while it was away")
    assert dead == 0
    assert service.refused == []
    assert most_in_window(service.arrived, per) <= LIMIT
    assert lost > 0
    assert len({text for batch in done for text in batch.payload}) == len(service.answered)
    assert answered >= 0.95 * allowed


def test_a_service_that_others_call_too_refuses_few_calls(make: Make, measured: Measured) -> None:
    """The limit of the flushers does not know of them, so the service answers 429."""
    per, count = 3.0, 100
    with running_service(per) as service:
        for _ in range(LIMIT - 10):
            service.take()  # others
        agg = make(
            group_aggregator=service.embed,
            rate_limit=RateLimit(LIMIT, per=per),
            group_max_size=1,
            max_attempts=1,
            concurrency=4,
        )
        agg.add_tasks(texts(count))
        with agg:
            wait_until(lambda: agg.stats().flushed == count, timeout=60, what="all are embedded")
            assert agg.stats().dead == 0
        payloads = [batch.payload for batch in enqueued(agg)]
    assert sorted(text for each in payloads for text in each) == sorted(
        f"text {n}" for n in range(count)
    )
    measured(f"embedding service: {len(service.refused)} calls refused")
    assert 0 < len(service.refused) < 40


def _is_idle(agg: Aggregator) -> bool:
    stats = agg.stats()
    return stats.batches_in_flight == stats.batches_in_retry


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
