"""`/v1/files`: upload, list, read, delete, and the content of a file."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from appliance.assistant.api.description import UPLOAD_BODY
from appliance.assistant.api.pages import Order, as_list
from appliance.assistant.api.requests import Calling, not_found
from appliance.assistant.api.uploads import Upload, receive
from appliance.assistant.context import AssistantContext
from appliance.assistant.file_contents import ContentDraft, FileContents
from appliance.assistant.ids import FILE, new_id
from appliance.assistant.store.files import FileRecord, FileRepository
from appliance.errors import ApplianceError, InvalidRequestError, StoreError

LOG = logging.getLogger(__name__)
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
EXPIRES_S = range(3600, 2_592_001)
"""Seconds after which a file may expire."""
MAX_PAGE = 10_000
_PIECE = 1 << 18
_HIDDEN_NAME = "download"


def file_routes(context: AssistantContext) -> APIRouter:
    """Return the endpoints of files."""
    router = APIRouter(prefix="/v1/files")
    files, contents = FileRepository(context.database), FileContents(context.folder)

    @router.post("", openapi_extra=UPLOAD_BODY)
    async def upload(request: Request, caller: Calling) -> dict[str, Any]:
        """Store a file."""
        file_id = new_id(FILE)
        drafts: list[ContentDraft] = []

        def open_draft() -> ContentDraft:
            drafts.append(contents.draft(file_id))
            return drafts[0]

        try:
            received = await receive(
                request.headers.get("content-type", ""),
                request.stream(),
                open_draft,
                max_bytes=context.settings.max_file_bytes,
            )
            if not drafts or received.filename is None:
                raise InvalidRequestError("the field file is missing", param="file")
            purpose, expires_s = _purpose(received), _expires_s(received)
            now = time.time()
            draft = drafts[0]
            record = FileRecord(
                id=file_id,
                tenant=caller.user,
                filename=received.filename,
                purpose=purpose,
                size=draft.size,
                digest=await asyncio.to_thread(draft.finish),
                created_at=now,
                expires_at=None if expires_s is None else now + expires_s,
            )
            await asyncio.to_thread(publish_file, files, draft, record)
        finally:
            for one in drafts:
                # A published draft has another name by now.
                await asyncio.to_thread(one.discard)
        return as_file(record)

    @router.get("")
    async def list_files(
        caller: Calling,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
        order: Order = "desc",
        purpose: str | None = None,
    ) -> dict[str, Any]:
        """Return a page of the caller's files."""
        page, more = await asyncio.to_thread(
            files.page,
            caller.user,
            time.time(),
            limit=limit,
            after=after,
            newest_first=order == "desc",
            purpose=purpose,
        )
        return as_list([as_file(record) for record in page], more)

    async def find(caller: Calling, file_id: str) -> FileRecord:
        record = await asyncio.to_thread(files.get, caller.user, file_id, time.time())
        if record is None:
            raise not_found("file", file_id)
        return record

    @router.get("/{file_id}")
    async def get_file(file_id: str, caller: Calling) -> dict[str, Any]:
        """Return a file's description."""
        return as_file(await find(caller, file_id))

    @router.delete("/{file_id}")
    async def delete_file(file_id: str, caller: Calling) -> dict[str, Any]:
        """Delete a file, its places in vector stores and its passages."""
        await find(caller, file_id)
        deleted = await asyncio.to_thread(contents.remove, file_id, partial(files.remove, caller.user, file_id))
        if not deleted:
            raise not_found("file", file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @router.get("/{file_id}/content")
    async def content_of(file_id: str, caller: Calling) -> StreamingResponse:
        """Return the bytes of a file, as a download."""
        record = await find(caller, file_id)
        opened = await asyncio.to_thread(contents.open, file_id)
        return StreamingResponse(
            _pieces(opened), headers=content_headers(record), media_type="application/octet-stream"
        )

    return router


def as_file(record: FileRecord) -> dict[str, Any]:
    """Return ``record`` as OpenAI's file object."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.size,
        "created_at": int(record.created_at),
        "expires_at": None if record.expires_at is None else int(record.expires_at),
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
        "status_details": None,
    }


def content_headers(record: FileRecord) -> Mapping[str, str]:
    """Return headers with which a browser stores the content of ``record`` and never shows or runs it."""
    plain = record.filename.encode("ascii", "ignore").decode().replace('"', "").replace("\\", "").replace("%", "")
    # RFC 6266: the plain name is for old clients.
    names = f"filename=\"{plain or _HIDDEN_NAME}\"; filename*=UTF-8''{quote(record.filename, safe='')}"
    return {
        "Content-Disposition": f"attachment; {names}",
        "Content-Length": str(record.size),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, no-store",
    }


def publish_file(files: FileRepository, draft: ContentDraft, record: FileRecord) -> None:
    """Store the row of a file, then give its content the name; without the name, the row is removed again.

    Raises :class:`StoreError`.
    """
    files.add(record)
    try:
        draft.publish()
    except ApplianceError:
        files.remove(record.tenant, record.id)
        raise


def _purpose(upload: Upload) -> str:
    purpose = upload.fields.get("purpose", "")
    if purpose not in PURPOSES:
        raise InvalidRequestError(f"purpose is one of {', '.join(PURPOSES)}", param="purpose")
    return purpose


def _expires_s(upload: Upload) -> int | None:
    """Return the seconds after which the file expires; ``None`` if it does not."""
    anchor, seconds = upload.fields.get("expires_after[anchor]"), upload.fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequestError("the anchor is created_at", param="expires_after.anchor")
    if seconds is None or not seconds.isascii() or not seconds.isdecimal() or int(seconds[:12]) not in EXPIRES_S:
        raise InvalidRequestError(
            f"use {EXPIRES_S.start} to {EXPIRES_S.stop - 1} seconds", param="expires_after.seconds"
        )
    return int(seconds)


async def _pieces(opened: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while piece := await asyncio.to_thread(opened.read, _PIECE):
            yield piece
    except OSError as error:
        # The response has begun: the connection ends early, which the client sees by the length.
        raise StoreError(f"the content of a file cannot be read ({error.strerror})") from error
    finally:
        opened.close()
