"""An HTTP endpoint as the queue: one request for each merged task.

The body is a CloudEvent 1.0 in JSON, in structured mode
(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md),
with trace context by its distributed tracing extension (.../extensions/distributed-tracing.md).
The request is signed as in Standard Webhooks 1.0.0
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
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from redisagg.config import check_range
from redisagg.durations import Duration, to_seconds
from redisagg.errors import InvalidConfig, RetryAfter, SinkError, SinkTimeout
from redisagg.payload import to_json
from redisagg.sinks.base import DeliverySink, MergedTask, SinkContext
from redisagg.sinks.extras import require
from redisagg.sinks.urls import SinkUrl
from redisagg.task import Task
from redisagg.texts import shorten

CONTENT_TYPE = "application/cloudevents+json"

_ATTRIBUTES = (
    *("specversion", "id", "source", "type", "subject", "time", "redisaggcount"),
    *("datacontenttype", "dataschema", "data"),
)
"""The members of an event that CloudEvents or redisagg define; no header may replace one."""

_RESERVED_HEADERS = {
    *("content-type", "content-length", "transfer-encoding", "idempotency-key"),
    *("webhook-id", "webhook-timestamp", "webhook-signature", "traceparent", "tracestate"),
}

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2: the name of a header
_VALUE = re.compile(r"[!-~]([ \t!-~]*[!-~])?")  # RFC 9110, 5.5, without obs-text
_URI_REFERENCE = re.compile(r"[!-~]+")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")

# Control characters and noncharacters, which the type String of CloudEvents does not allow.
_FORBIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
    + "]"
)

_SECRET_PREFIX = "whsec_"
_SECRET_BYTES = range(24, 65)

_BUSY = (429, 503)
"""The statuses with which `Retry-After` says when to come again."""

_LONGEST_RETRY_AFTER = 3600.0
"""Seconds; a receiver that asks for more is asked after this time."""

_SHORTEST_RETRY_AFTER = 1.0
"""Seconds; a shorter time is taken for none."""

_READ_BYTES = 65_536
"""The number of bytes of a response that are read, so that its connection can be reused."""

_QUOTED_BYTES = 200
"""The number of bytes of a response that an error quotes."""


class WebhookSink(DeliverySink):
    """Posts each merged task to a URL as a CloudEvent, at least once, with the batch id as its id.

    The event is posted again, with the same id, if the flusher dies between the response and the
    removal of the batch, or if the response is lost: have the receiver ignore an id that it has
    seen.

    A status of 200 to 299 is success. The attempt fails with any other status (redirects are not
    followed), without a complete response within `timeout`, or without a connection.
    `AggregationConfig.max_attempts` and `retry_delay` limit and delay further attempts. Each
    attempt is signed anew, with its own time. After 429 or 503 with a header ``Retry-After``,
    nothing is sent for that time, an hour at most, and the attempt does not count. A time of less
    than a second is ignored.

    Args:
        url: an ``https://`` or ``http://`` URL, which may have a query.
        secrets: the secrets that sign the requests; none, one or several, each ``whsec_`` and 24 to
            64 bytes in base64. With several, a request has a signature by each, so that a receiver
            can change from one to the next.
        source: the ``source`` of the event, a URI reference; None takes ``/redisagg/NAME`` with
            the name of the aggregator.
        headers: further headers of all requests, such as ``Authorization``.
        timeout: seconds (or a `timedelta`) within which the response has to be complete. It does
            not include the wait for one of the `concurrency` connections.
        concurrency: the number of requests that a flusher makes at the same time, each on a
            connection of its own.

    Raises:
        InvalidConfig: an argument is out of range or of the wrong type.
        SinkError: httpx is not installed.
    """

    limits_itself = True
    takes_json = True

    def __init__(
        self,
        url: str,
        *,
        secrets: str | Sequence[str] = (),
        source: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Duration = 30.0,
        concurrency: int = 16,
    ) -> None:
        require("httpx", "webhook")
        self.url = _checked_url(url)
        if source is not None and not _URI_REFERENCE.fullmatch(source):
            raise InvalidConfig(f"source is a URI reference, not {shorten(source)}")
        self.source = source
        self.headers = _checked_headers(headers or {})
        self.timeout: float = to_seconds(timeout, "timeout", InvalidConfig)
        check_range("concurrency", concurrency, 1)
        self.concurrency = concurrency
        self._keys = [_key(text) for text in ([secrets] if isinstance(secrets, str) else secrets)]
        self._source = ""
        self._client: Any = None

    @classmethod
    def from_url(cls, url: SinkUrl) -> WebhookSink:
        """Parses ``webhook+https://HOST/PATH?secret_env=NAME&source=URI&timeout=30&concurrency=16``.

        Or ``webhook+http://``. ``secret_env`` is the name of the environment variable with the
        secrets, separated by blanks. The query of the receiver can't be set here.
        """
        parts = urlsplit(url.url)
        variable = url.option("secret_env", str, "")
        if variable and not os.environ.get(variable, "").split():
            raise InvalidConfig(
                f"the environment variable {variable!r} has no secret; set it or omit secret_env"
            )
        return cls(
            f"{parts.scheme.partition('+')[2]}://{parts.netloc}{parts.path}",
            secrets=os.environ[variable].split() if variable else (),
            **url.given(source=str, timeout=float, concurrency=int),
        )

    async def open(self, context: SinkContext) -> None:
        httpx = require("httpx", "webhook")
        self._source = self.source or f"/redisagg/{context.keyspace.name}"
        self._client = httpx.AsyncClient(
            headers={"accept-encoding": "identity", **self.headers},
            follow_redirects=False,  # a redirect would send the headers to another host
            timeout=None,  # httpx limits each read; `deliver` limits the whole request
            limits=httpx.Limits(
                max_connections=self.concurrency, max_keepalive_connections=self.concurrency
            ),
        )

    async def close(self) -> None:
        await self._client.aclose()
        self._client = None

    async def deliver(self, merged: MergedTask) -> None:
        event = cloud_event(merged, self._source)
        body = to_json(event).encode()
        headers = {
            "content-type": CONTENT_TYPE,
            "idempotency-key": merged.batch_id,
            **_trace_context(event),
        }
        try:
            signed = {**headers, **self._signature(merged.batch_id, body)}
            await asyncio.wait_for(self._post(body, signed), self.timeout)
        except asyncio.TimeoutError:
            raise SinkTimeout(f"the receiver gave no answer within {self.timeout:g} s") from None

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> None:
        client = self._client
        async with client.stream("POST", self.url, content=body, headers=headers) as response:
            body_read = b""
            # Raw: a compressed response may be very large when it is unpacked.
            async for part in response.aiter_raw():
                body_read += part
                if len(body_read) > _READ_BYTES:
                    break
        status = response.status_code
        if not 200 <= status <= 299:
            quoted = body_read[:_QUOTED_BYTES].decode(errors="replace")
            text = f"the receiver answered {status}: {quoted!r}"
            wait = _retry_after(response.headers) if status in _BUSY else None
            if wait is not None:
                raise RetryAfter(wait, "aggregator", text)
            raise SinkError(text)

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


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a receiver wants us to wait (RFC 9110, 10.2.3); None if it names none.

    Less than a second, such as a date in the past, is none: the attempts would not count, and there
    would be no end of them.
    """
    given = headers.get("retry-after", "").strip()
    try:
        if given.isascii() and given.isdecimal():
            wait = float(given)
        else:
            wait = parsedate_to_datetime(given).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(wait, _LONGEST_RETRY_AFTER) if wait >= _SHORTEST_RETRY_AFTER else None


def cloud_event(merged: MergedTask, source: str) -> dict[str, Any]:
    """The CloudEvent for a merged task, the same for each attempt.

    Raises:
        SinkError: the name of a header can't become that of an attribute.
    """
    return {
        "specversion": "1.0",
        "id": merged.batch_id,
        "source": source,
        "type": _replace_forbidden(merged.task.type),
        "subject": _replace_forbidden(merged.group),
        "redisaggcount": merged.count,
        **_attributes(merged.task),
        "datacontenttype": "application/json",
        "data": merged.task.payload,
    }


def _attributes(task: Task) -> dict[str, str]:
    """The headers as extension attributes, whose names have lower-case letters and digits only."""
    attributes: dict[str, str] = {}
    for name, value in task.headers.items():
        attribute = re.sub("[^a-z0-9]", "", name.lower())
        if not attribute or attribute in _ATTRIBUTES or attribute in attributes:
            raise SinkError(
                f"the header {name!r} can't become an attribute of an event; rename it in the "
                "merge function"
            )
        attributes[attribute] = _replace_forbidden(value)
    return attributes


def _trace_context(event: Mapping[str, Any]) -> dict[str, str]:
    """The HTTP headers of W3C Trace Context, with the values of the event.

    Values of another form are left out, since the headers of tasks may come from outside.
    """
    if not _TRACEPARENT.fullmatch(event.get("traceparent", "")):
        return {}
    names = ("traceparent", "tracestate")
    return {name: event[name] for name in names if _VALUE.fullmatch(event.get(name, ""))}


def _replace_forbidden(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)


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
            raise InvalidConfig(f"{name!r} is not a valid name of a header")
        if name.lower() in _RESERVED_HEADERS:
            raise InvalidConfig(f"the sink itself sets the header {name}; leave it out")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise InvalidConfig(f"the value of the header {name} has to be printable ASCII")
    return dict(headers)


def _key(secret: object) -> bytes:
    """The bytes of a secret; errors do not show it."""
    if not isinstance(secret, str) or not secret.startswith(_SECRET_PREFIX):
        raise InvalidConfig(f"a secret is a str that begins with {_SECRET_PREFIX}")
    try:
        key = base64.b64decode(secret[len(_SECRET_PREFIX) :], validate=True)
    except (ValueError, binascii.Error):
        raise InvalidConfig(f"a secret is {_SECRET_PREFIX} and base64") from None
    if len(key) not in _SECRET_BYTES:
        raise InvalidConfig(f"a secret has 24 to 64 bytes, not {len(key)}")
    return key
