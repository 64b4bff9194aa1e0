"""A receiver of webhooks as users write one: python -m tests.sinks.workers.webhook_receiver PORT

Records each request, then answers 200. Further arguments set the answers to the first requests for
an id: a status (``307`` has a location, ``429;1`` asks for a wait of 1 s), ``hang`` for no answer,
``drip`` for one without end, ``drop`` to close the connection.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.sinks.workers.note import note

ANSWERS = sys.argv[2:]

_requests: Counter[str] = Counter()


class Handler(BaseHTTPRequestHandler):
    """Records requests."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        event = json.loads(body)
        place = _requests[event["id"]]
        _requests[event["id"]] += 1
        answer = ANSWERS[place] if place < len(ANSWERS) else "200"
        note(
            id=event["id"],
            payloads=event["data"].get("payloads") if isinstance(event["data"], dict) else None,
            path=self.path,
            headers=[[name.lower(), value] for name, value in self.headers.items()],
            body=body,
            answer=answer,
        )
        with contextlib.suppress(ConnectionError):  # the sink may have closed it after its timeout
            self.answer(answer)

    def answer(self, answer: str) -> None:
        """Answers as the arguments tell."""
        answer, _, wait = answer.partition(";")
        self.close_connection = not answer.isdecimal()
        if answer == "hang":
            time.sleep(60)
        elif answer == "drip":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b".")
                time.sleep(0.1)
        elif answer.isdecimal():
            self.send_response(int(answer))
            self.send_header("location", "/elsewhere")
            if wait:
                self.send_header("retry-after", wait)
            self.send_header("content-length", "3")
            self.end_headers()
            self.wfile.write(b"so\n")

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


class Server(ThreadingHTTPServer):
    """A server with a backlog for many requests at once."""

    request_queue_size = 128
    daemon_threads = True


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
