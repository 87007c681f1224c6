"""The life cycle of a request for audio or images, in addition to that of all inference requests.

Four things differ from :class:`~appliance.gateway.lifecycle.ProxiedRequest`:

* The body may be a form of megabytes. It stays in the memory that is reserved for it, is sent to one engine, in
  pieces, and is released with the request.
* A request that an engine has received is not sent to another one: it is long and costs much. It may fail over only
  if no connection to the engine was made.
* Speech is forwarded piece by piece with its own content type. A failure after the first piece cuts the response,
  because audio has no place for an error.
* Without usage in the response, no token is counted. The fair queue still charges the cost of the request.

| phase | event | next phase |
|---|---|---|
| sent | the first piece of audio | forwarding |
| sent | no connection, another replica is open | sent, to that replica |
| sent | any other failure | ended |
| forwarding | the end of the audio, or a failure, which cuts it | ended |

All other transitions are those of the base class.
"""

from __future__ import annotations

from appliance.errors import (
    BodyTooLargeError,
    EngineFailedError,
    EngineUnavailableError,
    RequestError,
    UnsupportedMediaTypeError,
)
from appliance.gateway import paths
from appliance.gateway.body_encoding import IDENTITY
from appliance.gateway.budgets import TokenNeed
from appliance.gateway.form import FORM, MultipartForm, boundary_of, read_form
from appliance.gateway.lifecycle import FORWARDING, GatewayContext, ProxiedRequest, guarded
from appliance.gateway.media_body import MediaBody, read_media, with_media_role
from appliance.gateway.routing import Replica
from appliance.gateway.upload_memory import UploadMemory, UploadShare
from appliance.http1.types import Request, Responder
from appliance.store.models import Key

FORM_BYTES = 2**20
"""Bytes of a form in addition to its file: the other fields and the separators."""

MAX_COLLECTED = 64 * 2**20
"""Most bytes of a response that is collected: images as text, or a transcription."""

COLLECTED = (b"application/json", b"text/", b"application/x-subrip", b"application/problem+json")
"""Content types of responses that are collected, so that usage and errors can be read."""

BINARY = b"application/octet-stream"

UNKNOWN_NEED = TokenNeed(1)
"""Tokens that a request for audio or images reserves: its usage is known at its end, and most have none."""


def check_media_head(request: Request) -> None:
    """Reject a request for audio or images by its head, before its body is read.

    Raises :class:`UnsupportedMediaTypeError` for another content type or coding, and :class:`InvalidRequestError`
    for a form without a boundary.
    """
    path = request.path
    content_type = request.headers.get(b"content-type")
    if path not in paths.FORMS:
        if (content_type or b"").lower().startswith(FORM):
            raise UnsupportedMediaTypeError(f"{path} takes JSON, not a form", param="model")
        return
    boundary_of(content_type)
    coding = request.headers.get(b"content-encoding", b"").decode("latin1").strip().lower()
    if coding not in IDENTITY:
        raise UnsupportedMediaTypeError(
            f"Content-Encoding is {coding[:80]!r}; send audio as it is, because it is compressed already"
        )


def reserve_form(request: Request, uploads: UploadMemory, max_file_bytes: int) -> tuple[UploadShare, int]:
    """Reserve memory for the form of ``request``; return it, and the limit of the body in bytes.

    Raises :class:`QueueFullError` if other uploads use the memory, and :class:`BodyTooLargeError` for a body that
    is announced as larger.
    """
    limit = max_file_bytes + FORM_BYTES
    length = request.headers.get(b"content-length")
    if length is not None and int(length) > limit:
        raise BodyTooLargeError(f"The body is over the limit of {limit} bytes", param="file")
    return uploads.reserve(int(length) if length is not None else limit), limit


class MediaRequest(ProxiedRequest):
    """One request for audio or images; ``upload`` is the memory that is reserved for its form."""

    __slots__ = ("_collected", "_media", "_raw", "_unsent", "_upload")

    def __init__(
        self,
        context: GatewayContext,
        owner: Key,
        request: Request,
        client: Responder,
        *,
        background_weight: float | None = None,
        upload: UploadShare | None = None,
    ) -> None:
        super().__init__(context, owner, request, client, background_weight=background_weight)
        self._upload = upload
        self._media: MediaBody | None = None
        self._raw = False
        """Whether the response is forwarded as it is: audio."""
        self._unsent = False
        """Whether the engine has received nothing of this request."""
        self._collected = 0

    @guarded
    def begin(self, owner: Key) -> None:
        """Read and check the request, then submit it; a rejection is its response."""
        context, row, accounting = self._context, self._row, self._accounting
        context.running.add(self)
        context.metrics.in_flight += 1
        try:
            request = self._request
            path = request.path
            media = read_media(path, request.body, self._form(), max_n=context.site.gateway.max_n)
            route = self._routed(owner, media.model, stream=media.stream)
            service, role = route.service, route.role
            accounting.admit(owner)
            accounting.reserve_tokens(UNKNOWN_NEED)
            self.weight *= context.ledger.weight(owner)
            if role is not None:
                row.role = row.name
                media = with_media_role(media, role, path)
            # The body itself, or in its place the beginning of a form, which identifies it to the breaker.
            self._body = media.body if media.form is None else request.body[:4096]
            self._service, self._media = service, media
            accounting.expect(service, b"")
            request.body = b""
            accounting.position = service.submit(self, accounting.began)
        except RequestError as error:
            self._fail(error)

    def _form(self) -> MultipartForm | None:
        request = self._request
        if request.path not in paths.FORMS:
            return None
        return read_form(request.body, boundary_of(request.headers.get(b"content-type")))

    @guarded
    def granted(self, replica: Replica) -> None:
        """Send the request to ``replica``, and charge its cost to the queue."""
        super().granted(replica)
        if self._service is not None and self._media is not None:
            self._service.queue.charge(self, self._media.cost)

    def on_head(self, status: int, content_type: bytes) -> None:
        """Prepare to forward events or audio, or to collect any other response."""
        super().on_head(status, content_type)
        plain = content_type.lower().startswith(COLLECTED)
        self._raw = self._stream is None and 200 <= status < 300 and not plain and not self._streaming

    def on_data(self, data: bytes) -> None:
        """Forward audio as it arrives; collect other responses up to a limit."""
        if self._raw:
            if self._phase is not FORWARDING:
                self._begin_audio()
            self._client.write(data)
            return
        if self._stream is None:
            self._collected += len(data)
            if self._collected > MAX_COLLECTED:
                self._cancel_upstream()
                self.on_failure(EngineFailedError(f"the engine's response is over {MAX_COLLECTED} bytes"))
                return
        super().on_data(data)

    def on_end(self) -> None:
        """Complete the request: the engine's response is complete."""
        stream = self._stream
        if not self._raw and stream is None:
            super().on_end()
            return
        self._upstream = None
        row = self._row
        row.outcome = "ok"
        if stream is not None:
            # The APIs of audio and images have several last events; the end of the response is complete in HTTP.
            if stream.failed:
                row.outcome = "rejected" if stream.error is not None and stream.error.clients else "engine_error"
            self._accounting.count_stream(stream)
        elif self._phase is not FORWARDING:
            self._begin_audio()
        self._report_outcome(row.outcome)
        self._settle()
        if stream is not None and not self._streaming:
            self._start_stream(self._status)
        self._client.end_stream(stream.finish() if stream is not None else b"")
        self._answered = True

    @guarded
    def on_failure(self, failure: RequestError) -> None:
        """Fail over if no connection was made; otherwise report the error to the client."""
        self._unsent = isinstance(failure, EngineUnavailableError)
        super().on_failure(failure)

    def _begin_audio(self) -> None:
        row = self._row
        row.status = self._status
        row.ttft_ms = (self._context.clock() - self._accounting.began) * 1000
        headers = self._id_headers()
        self._phase = FORWARDING
        self._streaming = True
        self._client.start_stream(self._status, headers, self._content_type or BINARY)

    def _post(self, replica: Replica, body: bytes) -> None:
        self._unsent = False
        media = self._media
        if media is None or media.form is None:
            super()._post(replica, body)
            return
        row = self._row
        row.engine = replica.name
        role = self._context.router.routes[row.name].role
        name = replica.served_name or (role.served_name if role is not None else media.model)
        self._upstream = replica.pool.post_form(
            self,
            row.endpoint.encode(),
            media.pieces(name),
            content_type=b'%s; boundary="%s"' % (FORM, media.form.boundary),
            header=b"x-request-id: " + row.request_id.encode(),
        )
        if self._slow:
            self._upstream.pause()

    def _fail_over(self) -> bool:
        return self._unsent and self._phase is not FORWARDING and super()._fail_over()

    def _end_with(self, error: RequestError) -> None:
        if self._raw:
            # The missing end of the body shows the client that it is incomplete.
            self._client.abort()
        else:
            super()._end_with(error)

    def _settle(self) -> None:
        super()._settle()
        self._media = None
        if self._upload is not None:
            self._upload.release()
