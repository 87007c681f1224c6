"""The one error tree.

Every error carries a sentence with the cause and the fix. It has one exit code (the class attribute ``exit_code``,
for the CLI) and one form in OpenAI's JSON (:func:`openai_body`, for the gateway). No other module decides how an
error looks to a user.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
from pathlib import Path


class ApplianceError(Exception):
    """An error that a user can fix. ``str(error)`` is one line: place, error, fix."""

    exit_code = 1


class ConfigError(ApplianceError):
    """A configuration that cannot be read or cannot work."""

    exit_code = 2


class UsageError(ApplianceError):
    """A command line that is not valid."""

    exit_code = 2


class StartError(ApplianceError):
    """A part of the service did not start: a taken port, an engine that died, a missing model."""


class UnprovenError(ApplianceError):
    """A load test or a smoke test without a result; exit code 1 means a missed SLO only."""

    exit_code = 2


class StoreError(ApplianceError):
    """A database or state file cannot be read or written."""

    @classmethod
    def unwritable(cls, path: Path, error: OSError) -> StoreError:
        """Return the error for ``path``, which cannot be written because of ``error``."""
        return cls(f"{path} cannot be written ({error.strerror or error}); {write_fix(path, error.errno)}")

    @classmethod
    def unreadable(cls, path: Path, error: OSError) -> StoreError:
        """Return the error for ``path``, which cannot be read because of ``error``."""
        return cls(f"{path} cannot be read ({error.strerror or error}); {write_fix(path, error.errno)}")


class FileAccessError(StoreError):
    """A file that this user may not read; the process that needs it may run as another one."""


class InterruptedTransferError(StoreError):
    """A transfer of weights was interrupted; a retry resumes it."""


REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""The reasons for which a file cannot be written (errno(3))."""


def write_fix(path: Path, number: int | None) -> str:
    """Return the fix for errno ``number`` at ``path``, as half a sentence.

    Standard library only, and never raises: the bootstrap uses it, and it runs while another error is reported.
    """
    if number in (errno.EACCES, errno.EPERM):
        return _permission_fix(path)
    return _WRITING.get(number or 0, f"`df -h {existing(path)}` and `journalctl -k` show more")


def _permission_fix(path: Path) -> str:
    """Return the owner of the path that refuses access, and the command that gives it to this user."""
    place, user = existing(path), os.geteuid()
    # The file itself is accessible: its folder refuses to replace or create it.
    if not place.is_dir() and os.access(place, os.R_OK | os.W_OK):
        place = place.parent
    owner = _owner(place)
    if user == 0:
        return f"root cannot write it either: `lsattr -d {place}` and `findmnt -T {place}` show why"
    if owner == user:
        return f"its permissions forbid it: `chmod -R u+rwX {place}`"
    # `sudo make up` leaves a whole tree to root: name the tree, or each of its files gets an error of its own.
    if not place.is_dir() and _owner(place.parent) == owner:
        place = place.parent
    mine = False
    for child, parent in zip([place, *place.parents], place.parents, strict=False):
        if _owner(parent) == user:
            place, mine = child, True
            break
    whose = f"{place} belongs to {_name(owner)}, and this runs as {_name(user)}"
    if not mine and _of_the_system(place):
        return f"{whose}: choose another place, or run as {_name(owner)}"
    return f"{whose}: `sudo chown -R {_name(user)} {place}`, or run as {_name(owner)}"


def _of_the_system(folder: Path) -> bool:
    """Return whether ``folder`` is part of the system, which cannot give it to a user."""
    top, *rest = [*folder.parts[1:], ""]
    return (
        len(rest) <= 1
        or top in ("boot", "dev", "etc", "nix", "proc", "sys", "usr")
        or (top == "var" and len(rest) <= 2)
    )


def _owner(path: Path) -> int:
    """Return the uid of the owner of ``path``, which exists; root's if a parent folder hides it."""
    try:
        return path.stat().st_uid
    except OSError:
        return 0


def existing(path: Path) -> Path:
    """Return ``path``, or its nearest ancestor that exists."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            if place.exists():
                return place
    return Path("/")


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


_WRITING = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space on its disk",
    errno.EROFS: "its disk is read-only: `journalctl -k` shows why, `mount -o remount,rw` ends it",
    errno.EIO: "its disk fails: see `journalctl -k`, then replace it",
    errno.ENOTDIR: "a file has the name of a folder on this path: move it away",
    errno.EEXIST: "a file has the name of a folder on this path: move it away",
    errno.EISDIR: "a folder has this name: move it away",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine: raise fs.file-max",
}
"""Fixes for a refused write by its reason (errno(3))."""


class LoaderError(ApplianceError):
    """A failure of the boot loader, of a system profile or of a switch."""


class RequestError(ApplianceError):
    """An error that an HTTP client gets in OpenAI's JSON.

    ``status`` is the HTTP status, ``kind`` OpenAI's ``type`` and ``code`` OpenAI's ``code``; ``param`` names
    the offending field and ``retry_after`` is in seconds.
    """

    status = 500
    kind = "server_error"
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code


class InternalError(RequestError):
    """500: the gateway itself failed; its log has the reason with the request's id."""


class InvalidRequestError(RequestError):
    """400: the request is not valid."""

    status = 400
    kind = "invalid_request_error"
    code = "invalid_request"


class AuthenticationError(RequestError):
    """401: the key is missing, unknown, revoked or expired. The client gets the same message for all of them."""

    status = 401
    kind = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDeniedError(RequestError):
    """403: the key is valid but does not allow this request."""

    status = 403
    kind = "invalid_request_error"
    code = "permission_denied"


class NotFoundError(RequestError):
    """404: the path, the model or the object does not exist."""

    status = 404
    kind = "invalid_request_error"
    code = "not_found"


class MethodNotAllowedError(RequestError):
    """405: the path exists, but not with this method. ``allow`` names its methods."""

    status = 405
    kind = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeoutError(RequestError):
    """408: the client did not send its request in time."""

    status = 408
    kind = "invalid_request_error"
    code = "request_timeout"


class ConflictError(RequestError):
    """409: the request conflicts with the present state."""

    status = 409
    kind = "invalid_request_error"
    code = "conflict"


class IdempotencyError(RequestError):
    """422: the Idempotency-Key was used for another request."""

    status = 422
    kind = "invalid_request_error"
    code = "idempotency_key_reused"


class BodyTooLargeError(RequestError):
    """413: the body is larger than the gateway's limit."""

    status = 413
    kind = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMediaTypeError(RequestError):
    """415: the body has an encoding that the gateway does not accept."""

    status = 415
    kind = "invalid_request_error"
    code = "unsupported_media_type"


class RateLimitError(RequestError):
    """429: the user exceeded one of its limits."""

    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class BudgetError(RateLimitError):
    """429: the user's budget of tokens does not hold the request; it resets with the next day or month."""

    kind = "insufficient_quota"
    code = "insufficient_quota"


class EngineReportedError(RequestError):
    """An error that the engine reported: its message and its status."""

    def __init__(self, message: str, *, status: int, param: str | None = None) -> None:
        super().__init__(message, code="engine_error" if status >= 500 else "invalid_request", param=param)
        self.status = status
        self.kind = "server_error" if status >= 500 else "invalid_request_error"


class EngineFailedError(RequestError):
    """502: the engine closed the connection early, or its response is not HTTP."""

    status = 502
    code = "engine_failed"


class EngineUnavailableError(RequestError):
    """503: no engine can take the request now."""

    status = 503
    code = "engine_unavailable"


class AssistantUnavailableError(RequestError):
    """503: the process of the stateful API does not run; nothing was done."""

    status = 503
    code = "assistant_unavailable"


class AssistantFailedError(RequestError):
    """502: the process of the stateful API ended before its response was complete."""

    status = 502
    code = "assistant_failed"


class AssistantTimeoutError(RequestError):
    """504: the process of the stateful API accepted the request and then sent nothing for too long."""

    status = 504
    code = "assistant_timeout"


class VectorIndexError(RequestError):
    """503: the server that searches the vectors of large stores cannot respond, or lacks vectors of the store."""

    status = 503
    code = "vector_index_unavailable"


class PageError(RequestError):
    """422: a web page cannot be read; ``code`` has the kind of the reason, such as ``address_not_allowed``."""

    status = 422
    kind = "invalid_request_error"
    code = "page_unavailable"


class WebSearchError(RequestError):
    """503: a web search failed; ``code`` has the kind of the reason. The model gets the message."""

    status = 503
    code = "web_search_failed"


class QueueFullError(RequestError):
    """503: too many requests wait, or the request waited too long."""

    status = 503
    code = "queue_full"


class DrainingError(RequestError):
    """503: the gateway stops and accepts no new requests."""

    status = 503
    code = "draining"


class EngineDrainedError(DrainingError):
    """503: every replica of the model is drained; the message has the reason."""


class PausedError(DrainingError):
    """503: the whole gateway is paused; the message has the reason."""

    code = "paused"


class EngineTimeoutError(RequestError):
    """504: the engine accepted the request and then sent nothing for too long."""

    status = 504
    code = "engine_timeout"


def openai_body(error: RequestError) -> bytes:
    """Return ``error`` as the JSON body that OpenAI's clients read."""
    return json.dumps(
        {
            "error": {
                "message": str(error),
                "type": error.kind,
                "param": error.param,
                "code": error.code,
            }
        }
    ).encode()
