"""A model hub over HTTP: the files of a pinned revision, and their bytes with resume by ``Range``.

The hub is ``HF_ENDPOINT``, else the public one. A token in ``HF_TOKEN`` is sent to the hub itself and to no server
to which it redirects.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from appliance.errors import InterruptedTransferError, StoreError, UsageError
from appliance.models.lock import Entry
from appliance.models.source import BLOCK, OpenedFile
from appliance.system.proxy import opener, route

PUBLIC = "https://huggingface.co"
TIMEOUT_S = 30.0
"""Limit of each wait for the hub, in seconds."""

MODEL = re.compile(r"(?P<repository>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)@(?P<revision>[0-9a-f]{40})")
RANGE = re.compile(r"bytes (?P<first>\d+)-\d+/(?P<total>\d+|\*)")

SMALL_LIMIT = 32 << 20
"""Largest file without a SHA-256 in the hub's list, in bytes: git holds it, so it is text and read as a whole."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of the hub's list: its size in bytes, and its SHA-256 if it is large, else the id of its git blob."""

    name: str
    size: int
    sha256: str
    blob: str


class Hub:
    """The hub at ``base``."""

    def __init__(self, base: str = "", token: str = "") -> None:
        self.base = (base or os.environ.get("HF_ENDPOINT", PUBLIC)).rstrip("/")
        # Raises UsageError for an address that is not valid.
        route(self.base)
        self._token = token or os.environ.get("HF_TOKEN", "")
        self._opener = opener(self.base)

    def files(self, repository: str, revision: str) -> list[HubFile]:
        """Return the files of ``repository`` at ``revision``; raises :class:`StoreError` if the hub lacks it."""
        name = f"{repository}@{revision[:12]}"
        url = f"{self.base}/api/models/{repository}/revision/{revision}?blobs=true"
        with closing(self._open(url, {}, name)) as response:
            body = _read_whole(response, name)
        try:
            found = json.loads(body)
            if found["sha"] != revision:
                raise StoreError(
                    f"{name}: the hub returned revision {found['sha']}; use a hub that keeps revisions"
                )
            return [_file(one) for one in found["siblings"]]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise StoreError(f"{name}: {self.base} returned no list of files; is it a model hub?") from None

    def small_file(self, repository: str, revision: str, file: HubFile) -> bytes:
        """Return the content of a file without SHA-256; raises :class:`StoreError` if its git blob id differs."""
        name = f"{repository}@{revision[:12]} {file.name}"
        if file.size > SMALL_LIMIT:
            raise StoreError(f"{name}: {file.size} bytes without a SHA-256 in the hub's list; exclude it by --only")
        with closing(self._open(self._url(repository, revision, file.name), {}, name)) as response:
            content = _read_whole(response, name)
        if blob_id(content) != file.blob:
            raise StoreError(f"{name}: the hub's content is not that of its list; try again, then use another hub")
        return content

    @contextmanager
    def open(self, entry: Entry, offset: int, tag: str) -> Iterator[OpenedFile]:
        """Open the file of ``entry`` at ``offset``, or at 0 if the hub ignores ranges or has other content."""
        name = f"{entry.repository}@{entry.revision[:12]} {entry.file}"
        url = self._url(entry.repository, entry.revision, entry.file)
        response = self._open(url, _range_headers(offset, tag), name)
        if offset and not _continues(response, offset, tag):
            response.close()
            response = self._open(url, {}, name)
        with closing(response):
            first, total = _extent(response)
            if total not in (None, entry.size):
                raise StoreError(
                    f"{name}: the hub has {total} bytes, the lock {entry.size}; is it another repository's lock?"
                )
            yield OpenedFile(first, response.headers.get("ETag", ""), _blocks(response, name))

    def _url(self, repository: str, revision: str, file: str) -> str:
        return f"{self.base}/{repository}/resolve/{revision}/{quote(file)}"

    def _open(self, url: str, headers: dict[str, str], name: str) -> Any:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - route() accepts http and https only
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            return self._opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and headers:
                return self._open(url, {}, name)
            raise _refusal(error.code, name, self.base) from None
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(name, error) from None


def parse_model(text: str) -> tuple[str, str]:
    """Return repository and revision of ``ORG/NAME@REVISION``; raises :class:`UsageError` without 40 hex digits."""
    match = MODEL.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text[:80]!r} is not a pinned model; write ORG/NAME@ and the 40 hex digits of the commit on the hub"
        )
    return match["repository"], match["revision"]


def blob_id(content: bytes) -> str:
    """Return the id that git gives to ``content``."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _file(listed: dict[str, Any]) -> HubFile:
    name, lfs = str(listed["rfilename"]), listed.get("lfs")
    if name.startswith("/") or ".." in name.split("/") or not re.fullmatch(r"\S+", name):
        raise StoreError(f"the hub lists the file {name[:80]!r}, which is not a valid name; use another repository")
    if lfs is None:
        return HubFile(name, int(listed["size"]), "", str(listed["blobId"]))
    sha256 = str(lfs["sha256"])
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(sha256)
    return HubFile(name, int(lfs["size"]), sha256, "")


def _range_headers(offset: int, tag: str) -> dict[str, str]:
    if not offset:
        return {}
    # A weak tag does not promise the same bytes (RFC 9110, 13.1.5).
    condition = {"If-Range": tag} if tag and not tag.startswith("W/") else {}
    return {"Range": f"bytes={offset}-", **condition}


def _continues(response: Any, offset: int, tag: str) -> bool:
    """Return whether a response is usable: the whole file, or the requested range of the same content."""
    if response.status == http.HTTPStatus.OK:
        return True
    # Content without an earlier tag is compared by its SHA-256 at the end.
    same = not tag or response.headers.get("ETag", "") in ("", tag)
    return bool(_extent(response)[0] == offset and same)


def _extent(response: Any) -> tuple[int, int | None]:
    """Return the first byte of the body and the size of the whole file in bytes, ``None`` if unknown."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is not None:
            return int(match["first"]), None if match["total"] == "*" else int(match["total"])
        return -1, None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _blocks(response: Any, name: str) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(name, error) from None
        if not block:
            return
        yield block


def _read_whole(response: Any, name: str) -> bytes:
    content = b"".join(_blocks(response, name))
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and len(content) < int(length):
        raise InterruptedTransferError(f"{name}: the connection to the hub ended early; run the command again")
    return content


def _refusal(status: int, name: str, base: str) -> StoreError:
    if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        return StoreError(
            f"{name}: {base} refuses access ({status}); check the name, accept its licence and set HF_TOKEN"
        )
    if status == http.HTTPStatus.NOT_FOUND:
        return StoreError(f"{name}: does not exist at {base}; check the repository, the revision and the file")
    if status == http.HTTPStatus.TOO_MANY_REQUESTS or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return InterruptedTransferError(f"{name}: {base} returned {status}; run the command again to resume")
    return StoreError(f"{name}: {base} returned {status}; is it a model hub?")


def _unreachable(name: str, error: Exception) -> InterruptedTransferError:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return InterruptedTransferError(
        f"{name}: the connection to the hub failed ({reason or type(error).__name__}); run it again to resume"
    )
