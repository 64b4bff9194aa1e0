"""An HTTP endpoint as the queue: a webhook for each merged task.

What is sent is a CloudEvent 1.0 in JSON, in structured mode
(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md),
with trace context by its distributed tracing extension (.../extensions/distributed-tracing.md),
signed as Standard Webhooks 1.0.0 says
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig, SinkError
from redisagg.payload import to_json
from redisagg.sinks.base import DeliverySink, MergedTask, SinkContext
from redisagg.sinks.extras import require
from redisagg.sinks.urls import SinkUrl
from redisagg.task import Task

CONTENT_TYPE = "application/cloudevents+json"

_ATTRIBUTES = (
    *("specversion", "id", "source", "type", "subject", "time", "redisaggcount"),
    *("datacontenttype", "dataschema", "data"),
)
"""The members of an event that are CloudEvents' own, or ours; no header may become one."""

_OWN_HEADERS = {
    *("content-type", "content-length", "transfer-encoding", "idempotency-key"),
    *("webhook-id", "webhook-timestamp", "webhook-signature", "traceparent", "tracestate"),
}

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: the name of a header
_VALUE = re.compile(r"[!-~]([ \t!-~]*[!-~])?")  # RFC 9110, 5.5, without obs-text
_URI_REFERENCE = re.compile(r"[!-~]+")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")

# What the type String of CloudEvents does not allow: control characters and noncharacters.
_NOT_ALLOWED = re.compile(
    "[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)

_SECRET_PREFIX = "whsec_"
_SECRET_BYTES = range(24, 65)

_ANSWER_BYTES = 65_536
"""How much of an answer is read, so that its connection can be used again."""

_QUOTED_BYTES = 200
"""How much of an answer is quoted in an error."""


class WebhookSink(DeliverySink):
    """Posts each merged task to a URL as a CloudEvent, at least once, with the batch id as its id.

    A flusher that dies between the answer and the removal of the batch, or that does not get the
    answer, leaves it to be posted again, with the same id: have the receiver refuse an id that it
    has seen.

    An answer of 200 to 299 is success. Anything else (redirects are not followed), no answer
    within `timeout`, or no connection fails the attempt; `AggregationConfig.max_attempts` and
    `retry_delay` say how often and when it is made again. Each request is made from its start, so
    the time in its signature is that of the attempt.

    Args:
        url: ``https://`` or ``http://``, with whatever query the receiver wants.
        secrets: what requests are signed with: none, or one or several of the form ``whsec_`` and
            24 to 64 bytes in base64. With several there is a signature by each, for the time in
            which a receiver goes over from one to the next.
        source: the event's ``source``, a URI reference; None takes ``/redisagg/NAME``, the name
            being the aggregator's.
        headers: further headers of all requests, such as ``Authorization``.
        timeout: seconds (or a `timedelta`) until the answer has to be complete.
        connections: how many requests a flusher makes at the same time.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        secrets: str | Sequence[str] = (),
        source: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Duration = 15,
        connections: int = 16,
    ) -> None:
        require("httpx", "webhook")
        self.url = _checked_url(url)
        if source is not None and not _URI_REFERENCE.fullmatch(source):
            raise InvalidConfig(f"source is a URI reference, not {source!r}")
        self.source = source
        self.headers = _checked_headers(headers or {})
        self.timeout = to_seconds(timeout, "timeout", InvalidConfig)
        if not isinstance(connections, int) or connections < 1:
            raise InvalidConfig(f"connections is a number from 1, not {connections!r}")
        self.connections = connections
        self._keys = [_key(text) for text in ([secrets] if isinstance(secrets, str) else secrets)]
        self._source = ""
        self._client: Any = None
        self._slots: asyncio.Semaphore | None = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> WebhookSink:
        """``webhook+https://HOST/PATH?secret_env=NAME&source=URI&timeout=15&connections=16``

        Or ``webhook+http://``. ``secret_env`` names the environment variable with the secrets,
        with blanks between them. A receiver's own query can't be given here.
        """
        parts = urlsplit(url.url)
        variable = url.option("secret_env", str, "")
        if variable and not os.environ.get(variable, "").split():
            raise InvalidConfig(f"there is no secret in the environment variable {variable!r}")
        return cls(
            f"{parts.scheme.partition('+')[2]}://{parts.netloc}{parts.path}",
            secrets=os.environ[variable].split() if variable else (),
            source=url.option("source", str),
            timeout=url.option("timeout", float, 15),
            connections=url.option("connections", int, 16),
        )

    async def open(self, context: SinkContext) -> None:
        httpx = require("httpx", "webhook")
        self._source = self.source or f"/redisagg/{context.keyspace.name}"
        self._slots = asyncio.Semaphore(self.connections)
        self._client = httpx.AsyncClient(
            headers={"accept-encoding": "identity", **self.headers},
            follow_redirects=False,  # they would take the headers elsewhere
            timeout=None,  # ours is for the whole, httpx's for each read
            limits=httpx.Limits(
                max_connections=self.connections, max_keepalive_connections=self.connections
            ),
        )

    async def close(self) -> None:
        await self._client.aclose()
        self._client = self._slots = None

    async def deliver(self, merged: MergedTask) -> None:
        assert self._slots is not None
        made = event(merged, self._source)
        body = to_json(made).encode()
        headers = {
            "content-type": CONTENT_TYPE,
            "idempotency-key": merged.batch_id,
            **_tracing(made),
        }
        # Waiting for its turn must not count: a slow receiver would fail those behind.
        async with self._slots:
            try:
                signed = {**headers, **self._signature(merged.batch_id, body)}
                await asyncio.wait_for(self._post(body, signed), self.timeout)
            except asyncio.TimeoutError:
                raise SinkError(f"the receiver gave no answer within {self.timeout:g} s") from None

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> None:
        client = self._client
        async with client.stream("POST", self.url, content=body, headers=headers) as response:
            answer = b""
            async for part in response.aiter_raw():  # not unpacked: it may be a bomb
                answer += part
                if len(answer) > _ANSWER_BYTES:
                    break
        if not 200 <= response.status_code <= 299:
            quoted = answer[:_QUOTED_BYTES].decode(errors="replace")
            raise SinkError(f"the receiver answered {response.status_code}: {quoted!r}")

    def _signature(self, batch_id: str, body: bytes) -> dict[str, str]:
        if not self._keys:
            return {}
        now = str(int(time.time()))
        signed = b".".join((batch_id.encode(), now.encode(), body))
        digests = [hmac.digest(key, signed, "sha256") for key in self._keys]
        return {
            "webhook-id": batch_id,
            "webhook-timestamp": now,
            "webhook-signature": " ".join(
                f"v1,{base64.b64encode(digest).decode()}" for digest in digests
            ),
        }


def event(merged: MergedTask, source: str) -> dict[str, Any]:
    """The CloudEvent for a merged task: the same for the same batch, whenever it is made.

    Raises:
        SinkError: a header has no name among the attributes of an event.
    """
    return {
        "specversion": "1.0",
        "id": merged.batch_id,
        "source": source,
        "type": _allowed(merged.task.type),
        "subject": _allowed(merged.group),
        "redisaggcount": merged.count,
        **_attributes(merged.task),
        "datacontenttype": "application/json",
        "data": merged.task.payload,
    }


def _attributes(task: Task) -> dict[str, str]:
    """The headers as extension attributes, whose names are of lower-case letters and digits."""
    attributes: dict[str, str] = {}
    for name, value in task.headers.items():
        attribute = re.sub("[^a-z0-9]", "", name.lower())
        if not attribute or attribute in _ATTRIBUTES or attribute in attributes:
            raise SinkError(f"the header {name!r} can't become an attribute of an event")
        attributes[attribute] = _allowed(value)
    return attributes


def _tracing(made: Mapping[str, Any]) -> dict[str, str]:
    """The headers of W3C Trace Context, which have to say what the event says.

    Only what is of the right form: headers of tasks may come from outside.
    """
    if not _TRACEPARENT.fullmatch(made.get("traceparent", "")):
        return {}
    names = ("traceparent", "tracestate")
    return {name: made[name] for name in names if _VALUE.fullmatch(made.get(name, ""))}


def _allowed(text: str) -> str:
    return _NOT_ALLOWED.sub("\ufffd", text)


def _checked_url(url: object) -> str:
    httpx = require("httpx", "webhook")
    try:
        parsed = httpx.URL(url)
    except (TypeError, httpx.InvalidURL) as error:
        raise InvalidConfig(f"WebhookSink takes a URL: {error}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise InvalidConfig("WebhookSink takes an https:// or http:// URL with a host")
    return str(url)


def _checked_headers(headers: object) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise InvalidConfig(f"headers are a mapping, not {type(headers).__name__}")
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise InvalidConfig(f"{name!r} is no name of a header")
        if name.lower() in _OWN_HEADERS:
            raise InvalidConfig(f"the sink itself sets the header {name}")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise InvalidConfig(f"the value of the header {name} is not of printable ASCII")
    return dict(headers)


def _key(secret: object) -> bytes:
    """The bytes of a secret; no error shows it."""
    if not isinstance(secret, str) or not secret.startswith(_SECRET_PREFIX):
        raise InvalidConfig(f"a secret is a str that begins with {_SECRET_PREFIX}")
    try:
        key = base64.b64decode(secret[len(_SECRET_PREFIX) :], validate=True)
    except (ValueError, binascii.Error):
        raise InvalidConfig(f"what follows {_SECRET_PREFIX} in a secret is base64") from None
    if len(key) not in _SECRET_BYTES:
        raise InvalidConfig(f"a secret has 24 to 64 bytes, not {len(key)}")
    return key
