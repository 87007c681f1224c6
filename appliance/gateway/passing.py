"""The life cycle of a request that the assistant serves: conversations, files, responses with state.

The gateway authenticates the client and removes its credentials and every header that could name another caller. It
adds ``x-appliance-user``, ``x-appliance-key`` and ``x-request-id``. A passed request leaves no usage row: the
assistant's own requests for inference do. In every case, a request gets one response.

| phase | event | next phase |
|---|---|---|
| preparing | the body is expanded | sent |
| preparing | its coding is not valid | ended |
| sent | the head of a short response | collecting |
| sent | the head of a stream, or of a long response | forwarding |
| collecting, forwarding | the end of the response | ended |
| sent, collecting | a failure of the assistant, or silence for too long: the error is the response | ended |
| forwarding | the same: the error is the last event; a response that is not an event stream is cut | ended |
| any but ended | disconnect of the client, drain deadline, revoked key, unexpected error | ended |
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from appliance.contract.model import Gateway
from appliance.errors import (
    AssistantFailedError,
    AssistantTimeoutError,
    AssistantUnavailableError,
    AuthenticationError,
    DrainingError,
    InternalError,
    RequestError,
)
from appliance.gateway import reply
from appliance.gateway.body_encoding import expanded
from appliance.gateway.lifecycle import GatewayContext, guarded
from appliance.gateway.passed_stream import PassedStream
from appliance.gateway.paths import passed_target
from appliance.gateway.upload_memory import UploadShare
from appliance.http1.socket_client import Headers, SocketCall, SocketFailure
from appliance.http1.types import JSON, SSE, Request, Responder
from appliance.store.models import Key

LOG = logging.getLogger(__name__)

WHOLE_BYTES = 2**20
"""Longest response that is collected, so that its client gets a status if the assistant ends early."""

KEEP_ALIVE = b": waiting for the assistant\n\n"
"""A comment in an SSE stream: it prevents timeouts of proxies and clients, and no client displays it."""

WITHHELD = frozenset(
    {
        # Credentials: they end at the gateway.
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"cookie",
        b"proxy-authorization",
        # Of this connection only (RFC 9110, 7.6.1), and of the body as it was sent.
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"expect",
        b"content-length",
        b"content-encoding",
        # Set by the gateway.
        b"host",
        b"x-request-id",
        # The gateway reads events, so it needs them plain.
        b"accept-encoding",
    }
)
"""Headers of a request that the assistant does not get."""

RESERVED = b"x-appliance-"
"""Prefix of headers that only the gateway sets."""

OWN = frozenset(
    {
        b"connection",
        b"content-length",
        b"content-type",
        b"date",
        b"keep-alive",
        b"request-id",
        b"server",
        b"set-cookie",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"vary",
        b"x-request-id",
    }
)
"""Headers of a response that the gateway writes itself, or that no client of it may get."""

OWN_OF_STREAMS = frozenset({b"cache-control", b"x-accel-buffering"})
"""Headers that every event stream of the gateway has."""

FAULTY = frozenset({"error", "failed", "timeout", "stopped"})
"""Outcomes that are logged."""


class PassedPhase(Enum):
    """The phase of a passed request; the module's docstring has the transitions."""

    PREPARING = "preparing"
    SENT = "sent"
    COLLECTING = "collecting"
    FORWARDING = "forwarding"
    ENDED = "ended"


PREPARING, SENT, COLLECTING, FORWARDING, ENDED = PassedPhase


@dataclass(slots=True)
class AssistantRoute:
    """The assistant as the gateway reaches it."""

    context: GatewayContext
    socket: Path
    in_flight: int = 0
    absent: bool = False
    """Whether the last call found no process; it is logged once."""


def passed_head(request: Request, owner: Key, length: int) -> bytes:
    """Return the head with which the assistant gets ``request`` of ``owner``.

    Args:
        request: The client's request.
        owner: The key of the request, for the end user that it names.
        length: Bytes of the body after its content coding was removed.
    """
    lines = [
        b"%s %s HTTP/1.1" % (request.method.encode(), passed_target(request.path, request.target)),
        b"host: assistant",
        b"connection: close",
        b"x-request-id: %s" % request.id.encode(),
    ]
    if owner.id:
        # A visitor of the page has no key.
        lines.append(b"x-appliance-user: %s" % owner.user.encode())
        lines.append(b"x-appliance-key: %s" % owner.id.encode())
    if length or request.method in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d" % length)
    lines += [b"%s: %s" % (name, value) for name, value in request.headers.items() if _passes(name)]
    return b"\r\n".join([*lines, b"", b""])


def _passes(name: bytes) -> bool:
    # Some servers read an underscore as a dash.
    plain = name.replace(b"_", b"-")
    return plain not in WITHHELD and not plain.startswith(RESERVED)


class PassedRequest:
    """One request on its way from a client to the assistant and back.

    Args:
        assistant: The assistant.
        owner: The key of the request.
        request: The request. Its body is in UTF-8, or still in its content coding if it is an upload.
        client: Receives the response.
        endpoint: The label of the request in metrics and the log.
        upload: The share of the memory of uploads that the body has, and the limit of the expanded body in bytes.
    """

    __slots__ = (
        "_answered",
        "_assistant",
        "_call",
        "_client",
        "_deadline",
        "_endpoint",
        "_headers",
        "_kind",
        "_limit",
        "_outcome",
        "_phase",
        "_pieces",
        "_request",
        "_slow",
        "_status",
        "_stream",
        "_task",
        "_upload",
        "_wrote_at",
        "key_id",
        "user",
    )

    def __init__(
        self,
        assistant: AssistantRoute,
        owner: Key,
        request: Request,
        client: Responder,
        *,
        endpoint: str,
        upload: tuple[UploadShare, int] | None = None,
    ) -> None:
        self.user = owner.user
        self.key_id = owner.id
        self._assistant = assistant
        self._request = request
        self._client = client
        self._endpoint = endpoint
        self._upload = upload[0] if upload is not None else None
        self._limit = upload[1] if upload is not None else 0
        self._phase = PREPARING
        self._outcome = ""
        self._answered = False
        """Whether the client has a whole response, or disconnected."""
        self._slow = False
        self._call: SocketCall | None = None
        self._task: asyncio.Task[None] | None = None
        self._deadline = float("inf")
        self._wrote_at = 0.0
        self._status = 0
        self._kind = JSON
        self._headers = b""
        self._stream: PassedStream | None = None
        """The frames of an event stream; ``None`` for another response."""
        self._pieces: list[bytes] = []

    @property
    def repeatable(self) -> bool:
        """Whether the response would be the same again. A rejection changed nothing, so a retry runs again."""
        return self._outcome == "ok"

    # The application.

    @guarded
    def begin(self, owner: Key) -> None:
        """Send the request to the assistant, after its body was expanded."""
        assistant, request = self._assistant, self._request
        assistant.context.running.add(self)
        assistant.in_flight += 1
        coding = request.headers.get(b"content-encoding")
        if self._upload is None or coding is None:
            self._send(owner, request.body)
        else:
            # In a thread: the expansion of a large file would delay every stream.
            self._task = asyncio.get_running_loop().create_task(self._expand(owner, coding))

    @guarded
    def tick(self, now: float) -> None:
        """Enforce the deadline, and write keep-alive comments."""
        if self._phase is ENDED or self._slow:
            return
        if now > self._deadline:
            self._give_up()
            action = "begin its response" if self._phase is SENT else "continue its response"
            self._fail(AssistantTimeoutError(f"the assistant did not {action} in time; see its log"), "timeout")
        elif self._stream is not None and now - self._wrote_at > self._settings.queue.keepalive_s:
            self._wrote_at = now
            self._client.write(KEEP_ALIVE)

    @guarded
    def stop(self) -> None:
        """End the request with an error: the drain's deadline has passed."""
        if self._phase is not ENDED:
            self._give_up()
            # Not a 503: an edge repeats that on another host, and the assistant has begun this request.
            message = "The gateway is stopping; try again shortly"
            self._fail(AssistantFailedError(message, code=DrainingError.code), "stopped")

    @guarded
    def revoke(self) -> None:
        """End the request: its key was revoked."""
        if self._phase is not ENDED:
            self._give_up()
            self._fail(AuthenticationError("This API key was revoked while your request ran"), "revoked")

    # The client's connection.

    @guarded
    def client_disconnected(self) -> None:
        """Close the connection to the assistant: the client disconnected."""
        if self._phase is not ENDED:
            self._give_up()
            self._answered = True
            self._settle("aborted")

    @guarded
    def client_slow(self) -> None:
        """Stop reading from the assistant: the client is a slow reader."""
        self._slow = True
        if self._call is not None:
            self._call.pause()

    @guarded
    def client_ready(self) -> None:
        """Read from the assistant again: the client has read what was buffered."""
        self._slow = False
        self._wait(self._settings.stall_timeout_s)
        if self._call is not None:
            self._call.resume()

    # The assistant's connection.

    def on_head(self, status: int, headers: Headers) -> None:
        """Select how to forward the response: a short one as a whole, all others piece by piece."""
        assistant, request = self._assistant, self._request
        if assistant.absent:
            assistant.absent = False
            LOG.warning("the assistant responds again")
        self._wait(self._settings.stall_timeout_s)
        table = dict(headers)
        self._status = status
        self._kind = kind = table.get(b"content-type", b"application/octet-stream")
        events = kind.startswith(b"text/event-stream")
        self._headers = reply.id_headers(request.id, request.path) + kept_lines(headers, events=events)
        length = table.get(b"content-length", b"")
        short = length.isdigit() and int(length) <= WHOLE_BYTES
        if request.method == "HEAD" or status in (204, 304) or (short and not events):
            self._phase = COLLECTING
            return
        self._phase = FORWARDING
        self._stream = PassedStream() if events else None
        self._client.start_stream(status, self._headers, SSE if events else kind)

    def on_data(self, data: bytes) -> None:
        """Collect or forward a piece of the response."""
        self._wait(self._settings.stall_timeout_s)
        if self._phase is COLLECTING:
            self._pieces.append(data)
            return
        try:
            ready = self._stream.feed(data) if self._stream is not None else data
        except AssistantFailedError as error:
            self._give_up()
            self._fail(error, "failed")
            return
        if ready:
            self._client.write(ready)

    @guarded
    def on_end(self) -> None:
        """Complete the response."""
        self._call = None
        if self._phase is ENDED:
            return
        status, stream, phase = self._status, self._stream, self._phase
        self._settle("ok" if status < 400 else "rejected" if status < 500 else "error")
        if phase is COLLECTING:
            self._client.respond(status, b"".join(self._pieces), self._kind, self._headers)
        else:
            self._client.end_stream(stream.finish() if stream is not None else b"")
        self._answered = True

    @guarded
    def on_failure(self, failure: SocketFailure) -> None:
        """Report the failure to the client."""
        self._call = None
        if self._phase is ENDED:
            return
        if failure is SocketFailure.ABSENT:
            assistant = self._assistant
            if not assistant.absent:
                assistant.absent = True
                LOG.error("the assistant does not accept connections on %s", assistant.socket)
            message = "The part of the service for conversations and files does not run; try again shortly"
            self._fail(AssistantUnavailableError(message, retry_after=5), "unavailable")
        else:
            message = f"The request failed in the assistant: {failure.value}; its log has the reason"
            self._fail(AssistantFailedError(message), "failed")

    def crashed(self, error: Exception) -> None:
        """End the request with a 500 because of an unexpected ``error`` of the gateway."""
        self._log_crash(error)
        if self._answered:
            return
        internal = InternalError(
            f"The gateway failed on this request; its log has the reason under {self._request.id}"
        )
        try:
            self._give_up()
            self._fail(internal, "error")
        except Exception as second:  # noqa: BLE001 - no response can be written: the connection closes
            self._log_crash(second)
            self._settle("error")
            self._client.abort()

    # Inside.

    @property
    def _settings(self) -> Gateway:
        return self._assistant.context.site.gateway

    def _wait(self, seconds: float) -> None:
        """Give the assistant ``seconds`` for its next bytes."""
        self._wrote_at = now = self._assistant.context.clock()
        self._deadline = now + seconds

    def _send(self, owner: Key, body: bytes) -> None:
        settings, request = self._settings, self._request
        self._phase = SENT
        self._wait(settings.first_byte_timeout_s)
        self._call = SocketCall(
            self._assistant.socket,
            self,
            head=passed_head(request, owner, len(body)),
            body=body,
            bodiless=request.method == "HEAD",
            connect_s=settings.tuning.connect_timeout_s,
        )
        request.body = b""
        if self._slow:
            self._call.pause()

    async def _expand(self, owner: Key, coding: bytes) -> None:
        request = self._request
        try:
            body = await asyncio.to_thread(expanded, request.body, coding, self._limit)
        except RequestError as error:
            self._refuse(error)
        except Exception as error:  # noqa: BLE001 - nothing awaits this task: its error is the response
            self.crashed(error)
        else:
            self._expanded(owner, body)

    @guarded
    def _refuse(self, error: RequestError) -> None:
        if self._phase is not ENDED:
            self._fail(error, "rejected")

    @guarded
    def _expanded(self, owner: Key, body: bytes) -> None:
        if self._phase is not ENDED:
            if self._upload is not None:
                self._upload.shrink(len(body))
            self._send(owner, body)

    def _give_up(self) -> None:
        """Close the connection to the assistant."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _fail(self, error: RequestError, outcome: str) -> None:
        """Respond with ``error``, inside an event stream if that has begun; another begun response is cut."""
        phase, stream, client, path = self._phase, self._stream, self._client, self._request.path
        self._settle(outcome)
        if phase is not FORWARDING:
            headers = reply.id_headers(self._request.id, path)
            reply.respond_error(client, error, path, headers)
        elif stream is not None:
            client.end_stream(stream.error_event(error, path))
        else:
            # The missing end of the body shows the client that it is incomplete.
            client.abort()
        self._answered = True

    def _log_crash(self, error: Exception) -> None:
        fields = {"request_id": self._request.id, "endpoint": self._endpoint}
        LOG.error("the gateway failed on a request", exc_info=error, extra={"fields": fields})
        self._assistant.context.metrics.internal_errors += 1

    def _settle(self, outcome: str) -> None:
        """Count the request and release what it holds, once."""
        if self._phase is ENDED:
            return
        self._phase = ENDED
        self._outcome = outcome
        assistant = self._assistant
        context = assistant.context
        context.running.discard(self)
        assistant.in_flight -= 1
        labels = (self._endpoint, outcome)
        context.metrics.passed[labels] = context.metrics.passed.get(labels, 0) + 1
        self._request.body = b""
        if self._upload is not None:
            self._upload.release()
        if outcome in FAULTY:
            fields = {
                "request_id": self._request.id,
                "user": self.user,
                "key_id": self.key_id,
                "endpoint": self._endpoint,
                "outcome": outcome,
                "status": self._status,
            }
            LOG.warning("a request to the assistant failed", extra={"fields": fields})


def kept_lines(headers: Headers, *, events: bool) -> bytes:
    """Return the header lines of a response of the assistant that its client gets.

    Args:
        headers: Names in lower case and values.
        events: Whether the response is an event stream.
    """
    return b"".join(
        b"%s: %s\r\n" % (name, value)
        for name, value in headers
        if name not in OWN
        and not name.startswith((b"access-control-", RESERVED))
        and not (events and name in OWN_OF_STREAMS)
    )
