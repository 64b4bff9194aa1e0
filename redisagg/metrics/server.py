"""An HTTP server for the metrics of a registry, and for probes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client.exposition import choose_encoder

from redisagg.errors import RedisAggError
from redisagg.texts import logger
from redisagg.views import Health

_log = logger("metrics")

_TIMEOUT = 30.0
"""Seconds that a client may take to send its request."""


class MetricsServer(ThreadingHTTPServer):
    """Serves the path ``/metrics``, and for probes ``/live`` and ``/health``, in daemon threads.

    Args:
        registry: a `CollectorRegistry` of prometheus-client.
        address: the address to listen at.
        port: the port; 0 for any that is free.
        health: what ``/health`` reports; None for no such path.

    Raises:
        OSError: the address can't be used.
    """

    daemon_threads = True

    def __init__(
        self,
        registry: Any,
        address: str,
        port: int,
        health: Callable[[], Health] | None = None,
    ) -> None:
        self.registry = registry
        self.health = health
        self.failed = False
        super().__init__((address, port), _Handler)

    def start(self) -> None:
        """Serves in a thread."""
        threading.Thread(target=self.serve_forever, name="redisagg-metrics", daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT
    server_version = "redisagg"
    sys_version = ""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, MetricsServer)
        path = self.path.partition("?")[0]
        if path == "/live":
            self._answer(200, "text/plain", b"ok\n")
            return
        if path == "/health" and server.health is not None:
            found = server.health()
            body = json.dumps(asdict(found)).encode()
            self._answer(200 if found.reachable else 503, "application/json", body)
            return
        if path not in ("/metrics", "/"):
            self._answer(404, "text/plain", b"the metrics are at /metrics\n")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(server.registry)
        except RedisAggError as error:
            if not server.failed:  # a scrape every 15 s needs no line each
                _log.warning("metrics can't be collected: %s", error)
            server.failed = True
            self._answer(503, "text/plain", b"Redis can't be asked; see the log\n")
            return
        server.failed = False
        self._answer(200, content_type, body)

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs no line for each request."""
