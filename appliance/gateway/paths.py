"""Resolves a request's path to an endpoint, and suggests one for an unknown path. Pure.

Clients spell one path in many ways: percent-encoded (current SDKs send ``%2F`` inside a model's name), in absolute
form, with duplicate slashes, without the ``/v1`` of the base URL. The first two are the same path (RFC 3986, 2.3,
and RFC 9112, 3.2.2; ``http1.types.path_of`` decodes it) and are served. The others get a 404 that suggests the
intended path. An engine receives only a path of :data:`INFERENCE`, written here, so no spelling reaches its control
paths.
"""

from __future__ import annotations

import re
from urllib.parse import quote

INFERENCE = frozenset(
    {
        "/detokenize",
        "/tokenize",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/images/generations",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/v1/responses",
        "/v1/score",
    }
)
"""Paths that are forwarded with POST to an engine of the model that the body names."""

FORMS = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})
"""Paths of :data:`INFERENCE` whose body is a form with a file."""

MEDIA = FORMS | {"/v1/audio/speech", "/v1/images/generations"}
"""Paths of :data:`INFERENCE` for audio and images. They exist if the site has a model of their task."""

OPERATIONS = frozenset({"/health", "/metrics", "/ready"})
USAGE = "/v1/usage"
"""Plan, limits and used tokens of the key's user."""
MODELS = "/v1/models"
MODEL = "/v1/models/"
"""Prefix of a model's name, which may contain slashes."""

READ = ("GET", "HEAD", "OPTIONS")
INFER = ("POST", "OPTIONS")

UPLOADS = "/v1/files"
"""Path whose POST has a file."""

RESPONSES = "/v1/responses"

STATEFUL = ("/v1/conversations", UPLOADS, "/v1/vector_stores", "/v1/page", RESPONSES)
"""Groups of paths that the assistant serves. The path of the last one itself is inference; the assistant serves it
only if the request is stateful."""

PASS = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")

PAGE = "/page"
"""Group of the chat page: ``/`` and its static files. The assistant serves it, also to a visitor without a key."""

SESSION = "/session"
"""Path of the log-in of the chat page."""

SESSION_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")

OTHER_APIS = (
    "/api",
    "/v1/assistants",
    "/v1/audio",
    "/v1/batches",
    "/v1/conversations",
    "/v1/files",
    "/v1/fine_tuning",
    "/v1/images",
    "/v1/messages",
    "/v1/moderations",
    "/v1/responses",
    "/v1/threads",
    "/v1/uploads",
    "/v1/vector_stores",
    "/v2",
)
"""Paths of other servers and APIs that clients request, as labels of a counter; all others count as ``other``."""

PARTS = "/v1/uploads/"
"""OpenAI's uploads in parts, which the assistant does not offer; the name resembles that of its files."""

EDITS = frozenset({"/images/edits", "/images/variations"})
"""Paths of OpenAI's API below /v1 for changes to an image, which no engine here serves."""

_ITEM = re.compile(r"/v1/conversations/[^/]+/items/[^/]+")
_SLASHES = re.compile(r"/{2,}")
_WORD = re.compile(r"[a-z][a-z_]{0,24}|v\d")


def stateful_group(path: str) -> str:
    """Return the group of :data:`STATEFUL` that ``path`` belongs to; empty if the assistant does not serve it.

    A path with an empty segment or a dot segment belongs to none: two programs may read it differently.
    """
    for group in STATEFUL:
        if path.startswith(group) and path != RESPONSES:
            below = path[len(group) :]
            if not below:
                return group
            segments = below.split("/")
            return group if not segments[0] and not {"", ".", ".."} & {*segments[1:]} else ""
    return ""


def is_page(path: str) -> bool:
    """Return whether ``path`` is the chat page or one of its static files."""
    if path == "/":
        return True
    segments = path.split("/")
    return path.startswith(PAGE + "/") and not {"", ".", ".."} & {*segments[2:]}


def is_item(path: str) -> bool:
    """Return whether ``path`` is that of one item of a conversation."""
    return _ITEM.fullmatch(path) is not None


def passed_target(path: str, target: bytes) -> bytes:
    """Return the request target with which the assistant gets a request: ``path`` encoded anew, and the query.

    ``target`` is the client's own, whose encoding and absolute form another program may read differently.
    """
    _, mark, query = target.partition(b"?")
    return quote(path, safe="/-._~!$&'()*+,;=:@").encode() + mark + query


def methods(path: str, *, stateful: bool = False) -> tuple[str, ...]:
    """Return the methods of the endpoint ``path``; none if it is not an endpoint.

    ``stateful`` is whether the site has an assistant.
    """
    if stateful and stateful_group(path):
        return PASS
    if stateful and is_page(path):
        return READ
    if stateful and path == SESSION:
        return SESSION_METHODS
    if path in INFERENCE:
        return INFER
    if path in OPERATIONS or path in (MODELS, USAGE) or (path.startswith(MODEL) and path != MODEL):
        return READ
    return ()


def suggestion(path: str, *, stateful: bool = False) -> str:
    """Return a clause that names the endpoint that ``path`` resembles; empty if there is none.

    ``stateful`` is whether the site has an assistant.
    """
    plain = _SLASHES.sub("/", path).rstrip("/").lower()
    if plain.removeprefix("/v1") in EDITS:
        return "images can be generated with POST /v1/images/generations, not edited or varied"
    if plain != path and methods(plain, stateful=stateful):
        return f"write {plain}"
    if stateful and f"{plain}/".startswith(PARTS):
        return "uploads in parts are not available; send the whole file to POST /v1/files"
    for candidate in (f"/v1{plain}", plain.removeprefix("/v1"), plain.removeprefix("/api")):
        if candidate != plain and methods(candidate, stateful=stateful):
            return (
                f"the base URL ends in /v1: write {candidate}" if candidate[:4] == "/v1/" else f"write {candidate}"
            )
    return ""


def label(path: str) -> str:
    """Return the label of an unknown path for its counter."""
    for known in OTHER_APIS:
        if path == known or path.startswith(known + "/"):
            return known
    return "other"


def redacted(path: str) -> str:
    """Return ``path`` for a log: plain words stay; any other segment may be an id or a secret and becomes ``*``."""
    segments = path[:200].split("/")[:8]
    return "/".join(segment if not segment or _WORD.fullmatch(segment) else "*" for segment in segments)
