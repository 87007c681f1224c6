"""``/`` and ``/page/*``: the HTML of the page, and its static files. A visitor gets the log-in.

The HTML has no data of a user but a name; scripts get everything else from the API. Static files have the digest of
all of them in their path, so a browser keeps them for ever and never mixes two versions.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import PurePosixPath

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from appliance.assistant.api.requests import not_found
from appliance.assistant.caller import KEY_HEADER, USER_HEADER, names_caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.page.texts import LANGUAGES, TEXTS

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Content-Security-Policy: code and style of this host only, and no connection to another one."""

SAFE = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PREFERENCE = re.compile(r"([a-zA-Z]{1,8})(?:-[a-zA-Z0-9-]{1,20})?(?:\s*;\s*q=([01](?:\.\d{0,3})?))?")


@dataclass(frozen=True, slots=True)
class StaticFiles:
    """The static files by name, with their content types, and the digest of all."""

    digest: str
    contents: dict[str, tuple[bytes, str]]


@cache
def static_files() -> StaticFiles:
    """Return the static files of this package."""
    found: dict[str, tuple[bytes, str]] = {}
    for entry in sorted((files(__package__) / "static").iterdir(), key=lambda one: one.name):
        kind = _KINDS.get(PurePosixPath(entry.name).suffix)
        if kind is not None:
            found[entry.name] = (entry.read_bytes(), kind)
    total = sha256()
    for name, (content, _) in found.items():
        total.update(name.encode() + b"\0" + content + b"\0")
    return StaticFiles(total.hexdigest()[:16], found)


def preferred_language(chosen: str, accepted: str) -> str:
    """Return the language of the page.

    Args:
        chosen: The language in the address; empty if there is none.
        accepted: The header Accept-Language.
    """
    if chosen in LANGUAGES:
        return chosen
    best, weight = LANGUAGES[0], 0.0
    for entry in accepted[:500].split(","):
        match = _PREFERENCE.fullmatch(entry.strip())
        if match is not None and match.group(1).lower() in LANGUAGES:
            quality = float(match.group(2) or 1)
            if quality > weight:
                best, weight = match.group(1).lower(), quality
    return best


def shell_router(context: AssistantContext) -> APIRouter:
    """Return the endpoints of the page and its static files."""
    templates = Environment(
        loader=PackageLoader("appliance.assistant.page"), autoescape=True, undefined=StrictUndefined
    )
    static = static_files()
    router = APIRouter()
    most_bytes = context.settings.max_file_bytes

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request, lang: str = "", login: str = "") -> Response:
        user, key_id = request.headers.get(USER_HEADER, ""), request.headers.get(KEY_HEADER, "")
        known = names_caller(user, key_id)
        language = preferred_language(lang, request.headers.get("accept-language", ""))
        texts = TEXTS[language]
        html = templates.get_template("chat.html.j2" if known else "login.html.j2").render(
            base=f"/page/{static.digest}",
            language=language,
            languages=LANGUAGES,
            texts=texts,
            table=json.dumps(texts, ensure_ascii=False),
            user=user,
            failed=login == "failed",
            most_bytes=most_bytes,
        )
        return Response(html, headers={**SAFE, "Cache-Control": "no-store"}, media_type="text/html")

    @router.api_route("/page/{digest}/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def static_file(digest: str, name: str) -> Response:
        found = static.contents.get(name)
        if found is None or digest != static.digest:
            raise not_found("file of the page", name)
        headers = {**SAFE, "Cache-Control": "public, max-age=31536000, immutable"}
        return Response(found[0], headers=headers, media_type=found[1])

    return router
