"""`/v1/vector_stores`: stores, their files, batches of files. Searches are in a file of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, Field

from appliance.assistant.api.json_body import CHECKED
from appliance.assistant.api.pages import PageRequest, Paging, as_list
from appliance.assistant.api.requests import Calling, not_found
from appliance.assistant.caller import Caller
from appliance.assistant.context import AssistantContext
from appliance.assistant.ids import FILE
from appliance.assistant.memory.ingestion import IngestionQueue
from appliance.assistant.metadata import MAX_NAME, MAX_PAIRS, MAX_VALUE
from appliance.assistant.missing import expired_store
from appliance.assistant.retrieval.chunking import ChunkSettings
from appliance.assistant.store.vector_stores import (
    STATUSES,
    FileBatchRecord,
    NewStoreFile,
    StoreFileRecord,
    VectorStoreRecord,
    VectorStoreRepository,
)
from appliance.errors import InvalidRequestError

MAX_BATCH = 2000
MAX_INITIAL_FILES = 500
_LARGEST_NUMBER = 1e300
_POLL_HEADERS = {"openai-poll-after-ms": "500"}
"""OpenAI's SDKs poll after this time; without the header, they wait up to five seconds."""


def _attributes(value: dict[str, Any] | None) -> dict[str, str | float | bool]:
    """Return the attributes of a file; raise ValueError for values that OpenAI's API does not have."""
    for key, one in (value or {}).items():
        if isinstance(one, str):
            if len(one) > MAX_VALUE:
                raise ValueError(f"the value of '{key}' has more than {MAX_VALUE} characters")
        elif not (isinstance(one, bool | int | float) and abs(one) <= _LARGEST_NUMBER):
            raise ValueError(f"the value of '{key}' is not a string, a number or a boolean")
    return dict(value or {})


_Key = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Metadata = Annotated[dict[_Key, Annotated[str, Field(max_length=MAX_VALUE)]], Field(max_length=MAX_PAIRS)]
Attributes = Annotated[dict[_Key, Any], Field(max_length=MAX_PAIRS), AfterValidator(_attributes)]
Status = Literal["in_progress", "completed", "failed", "cancelled"]


class StoreExpiry(BaseModel):
    """The time after its last use at which a store expires."""

    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365)


class StaticSizes(BaseModel):
    """Sizes of chunks; :class:`ChunkSettings` has their bounds."""

    max_chunk_size_tokens: int
    chunk_overlap_tokens: int


class ChunkingStrategy(BaseModel):
    """How files are cut into chunks."""

    type: Literal["auto", "static"]
    static: StaticSizes | None = None


class NewVectorStoreBody(BaseModel):
    """The body that creates a store."""

    name: str | None = Field(default=None, max_length=255)
    metadata: Metadata | None = None
    expires_after: StoreExpiry | None = None
    file_ids: list[str] = Field(default=[], max_length=MAX_INITIAL_FILES)
    chunking_strategy: ChunkingStrategy | None = None


class VectorStoreChanges(BaseModel):
    """The body that changes a store; a field that is null empties its value."""

    name: str | None = Field(default=None, max_length=255)
    metadata: Metadata | None = None
    expires_after: StoreExpiry | None = None


class AttachedFileBody(BaseModel):
    """A file to attach."""

    file_id: str
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None


class AttributesBody(BaseModel):
    """New attributes of a file in a store."""

    attributes: Attributes | None


class FileBatchBody(BaseModel):
    """Files to attach at once: ids with common settings, or files with their own."""

    file_ids: list[str] | None = Field(default=None, min_length=1, max_length=MAX_BATCH)
    files: list[AttachedFileBody] | None = Field(default=None, min_length=1, max_length=MAX_BATCH)
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None


def vector_store_routes(context: AssistantContext) -> APIRouter:
    """Return the endpoints of vector stores, of their files and of batches."""
    router = APIRouter(prefix="/v1/vector_stores", dependencies=CHECKED)
    _add_stores(router, context)
    _add_files(router, context)
    _add_batches(router, context)
    return router


def _add_stores(router: APIRouter, context: AssistantContext) -> None:
    stores = VectorStoreRepository(context.database)
    attach = _attaching(context, stores)

    @router.post("")
    async def create(caller: Calling, body: NewVectorStoreBody | None = None) -> dict[str, Any]:
        """Create a store, with files if the request names some."""
        wanted = body or NewVectorStoreBody()
        files = _files(wanted.file_ids, None, wanted.chunking_strategy)
        store_id = await asyncio.to_thread(
            stores.create,
            caller.user,
            name=wanted.name or "",
            metadata=wanted.metadata or {},
            expires_days=None if wanted.expires_after is None else wanted.expires_after.days,
            now=time.time(),
        )
        if files:
            try:
                await attach(caller, store_id, files)
            except BaseException:
                await asyncio.to_thread(stores.delete, caller.user, store_id)
                raise
        return _as_store(await _store(stores, caller, store_id))

    @router.get("")
    async def list_stores(caller: Calling, paging: Paging) -> dict[str, Any]:
        """Return a page of the caller's stores."""
        page, more = await asyncio.to_thread(stores.page, caller.user, **asdict(paging))
        return as_list([_as_store(record) for record in page], more)

    @router.get("/{store_id}")
    async def get_store(store_id: str, caller: Calling) -> dict[str, Any]:
        """Return a store."""
        return _as_store(await _store(stores, caller, store_id))

    @router.post("/{store_id}")
    async def change(store_id: str, caller: Calling, body: VectorStoreChanges) -> dict[str, Any]:
        """Change name, metadata or expiry of a store."""
        values: dict[str, Any] = {}
        if "name" in body.model_fields_set:
            values["name"] = body.name or ""
        if "metadata" in body.model_fields_set:
            values["metadata"] = body.metadata or {}
        if "expires_after" in body.model_fields_set:
            values["expires_days"] = None if body.expires_after is None else body.expires_after.days
        if not await asyncio.to_thread(stores.change, caller.user, store_id, values):
            raise not_found("vector store", store_id)
        return _as_store(await _store(stores, caller, store_id))

    @router.delete("/{store_id}")
    async def delete_store(store_id: str, caller: Calling) -> dict[str, Any]:
        """Delete a store and its passages; the files stay."""
        if not await asyncio.to_thread(stores.delete, caller.user, store_id):
            raise not_found("vector store", store_id)
        return {"id": store_id, "object": "vector_store.deleted", "deleted": True}


def _add_files(router: APIRouter, context: AssistantContext) -> None:
    stores = VectorStoreRepository(context.database)
    attach = _attaching(context, stores)

    @router.post("/{store_id}/files")
    async def attach_file(store_id: str, caller: Calling, body: AttachedFileBody) -> dict[str, Any]:
        """Attach a file to a store; it is processed in the background."""
        await attach(caller, store_id, _files(None, [body], None))
        return await _file(stores, caller, store_id, body.file_id)

    @router.get("/{store_id}/files")
    async def list_files(
        store_id: str,
        caller: Calling,
        paging: Paging,
        status: Annotated[Status | None, Query(alias="filter")] = None,
    ) -> dict[str, Any]:
        """Return a page of a store's files."""
        await _store(stores, caller, store_id)
        return await _page_of_files(stores, caller, store_id, paging, status=status)

    @router.get("/{store_id}/files/{file_id}")
    async def get_file(store_id: str, file_id: str, caller: Calling, response: Response) -> dict[str, Any]:
        """Return a file of a store."""
        response.headers.update(_POLL_HEADERS)
        return await _file(stores, caller, store_id, file_id)

    @router.post("/{store_id}/files/{file_id}")
    async def set_attributes(store_id: str, file_id: str, caller: Calling, body: AttributesBody) -> dict[str, Any]:
        """Replace the attributes of a file."""
        attributes = body.attributes or {}
        if not await asyncio.to_thread(stores.set_attributes, caller.user, store_id, file_id, attributes):
            raise await _missing_file(stores, caller, store_id, file_id)
        return await _file(stores, caller, store_id, file_id)

    @router.delete("/{store_id}/files/{file_id}")
    async def detach(store_id: str, file_id: str, caller: Calling) -> dict[str, Any]:
        """Remove a file and its passages from a store; the file itself stays."""
        if not await asyncio.to_thread(stores.detach, caller.user, store_id, file_id):
            raise await _missing_file(stores, caller, store_id, file_id)
        return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}

    @router.get("/{store_id}/files/{file_id}/content")
    async def content_of(store_id: str, file_id: str, caller: Calling) -> dict[str, Any]:
        """Return the text of a file's passages."""
        await _file(stores, caller, store_id, file_id)
        texts = await asyncio.to_thread(stores.passage_texts, caller.user, store_id, file_id)
        return {
            "object": "vector_store.file_content.page",
            "data": [{"type": "text", "text": text} for text in texts],
            "has_more": False,
            "next_page": None,
        }


def _add_batches(router: APIRouter, context: AssistantContext) -> None:
    stores = VectorStoreRepository(context.database)
    attach = _attaching(context, stores)

    @router.post("/{store_id}/file_batches")
    async def create_batch(store_id: str, caller: Calling, body: FileBatchBody) -> dict[str, Any]:
        """Attach up to 2000 files to a store."""
        if (body.file_ids is None) == (body.files is None):
            raise InvalidRequestError("send either file_ids or files", param="file_ids")
        files = _files(body.file_ids, body.files, body.chunking_strategy, body.attributes)
        batch_id = await attach(caller, store_id, files, batch=True)
        return await batch_of(store_id, str(batch_id), caller)

    @router.get("/{store_id}/file_batches/{batch_id}")
    async def get_batch(store_id: str, batch_id: str, caller: Calling, response: Response) -> dict[str, Any]:
        """Return a batch."""
        response.headers.update(_POLL_HEADERS)
        return await batch_of(store_id, batch_id, caller)

    async def batch_of(store_id: str, batch_id: str, caller: Caller) -> dict[str, Any]:
        record = await asyncio.to_thread(stores.get_batch, caller.user, store_id, batch_id)
        if record is None:
            raise await _missing_batch(stores, caller, store_id, batch_id)
        return _as_batch(record)

    @router.post("/{store_id}/file_batches/{batch_id}/cancel")
    async def cancel(store_id: str, batch_id: str, caller: Calling) -> dict[str, Any]:
        """Cancel the files of a batch that are in progress."""
        if not await asyncio.to_thread(stores.cancel_batch, caller.user, store_id, batch_id):
            raise await _missing_batch(stores, caller, store_id, batch_id)
        return await batch_of(store_id, batch_id, caller)

    @router.get("/{store_id}/file_batches/{batch_id}/files")
    async def files_of_batch(
        store_id: str,
        batch_id: str,
        caller: Calling,
        paging: Paging,
        status: Annotated[Status | None, Query(alias="filter")] = None,
    ) -> dict[str, Any]:
        """Return a page of a batch's files."""
        await batch_of(store_id, batch_id, caller)
        return await _page_of_files(stores, caller, store_id, paging, status=status, batch_id=batch_id)


def _attaching(context: AssistantContext, stores: VectorStoreRepository) -> Any:
    """Return the function that attaches files to a store and wakes their processing."""
    queue = context.shared(IngestionQueue)

    async def attach(
        caller: Caller, store_id: str, files: list[NewStoreFile], *, batch: bool = False
    ) -> str | None:
        store = await _store(stores, caller, store_id)
        now = time.time()
        if store.expired(now):
            raise expired_store(store_id)
        try:
            batch_id = await asyncio.to_thread(
                stores.attach, caller.user, store_id, files, key_id=caller.key_id, now=now, batch=batch
            )
        except KeyError as error:
            missing = str(error.args[0])
            raise not_found("file" if missing != store_id else "vector store", missing) from None
        queue.wake()
        return batch_id

    return attach


async def _store(stores: VectorStoreRepository, caller: Caller, store_id: str) -> VectorStoreRecord:
    record = await asyncio.to_thread(stores.get, caller.user, store_id)
    if record is None:
        raise not_found("vector store", store_id)
    return record


async def _file(stores: VectorStoreRepository, caller: Caller, store_id: str, file_id: str) -> dict[str, Any]:
    record = await asyncio.to_thread(stores.get_file, caller.user, store_id, file_id)
    if record is None:
        raise await _missing_file(stores, caller, store_id, file_id)
    return _as_store_file(record)


async def _missing_file(stores: VectorStoreRepository, caller: Caller, store_id: str, file_id: str) -> Exception:
    """Return the error for a file that the store does not have; the store itself may be missing."""
    await _store(stores, caller, store_id)
    return not_found("file", file_id)


async def _missing_batch(stores: VectorStoreRepository, caller: Caller, store_id: str, batch_id: str) -> Exception:
    await _store(stores, caller, store_id)
    return not_found("file batch", batch_id)


async def _page_of_files(
    stores: VectorStoreRepository, caller: Caller, store_id: str, paging: PageRequest, **wanted: Any
) -> dict[str, Any]:
    try:
        page, more = await asyncio.to_thread(
            stores.page_of_files, caller.user, store_id, **asdict(paging), **wanted
        )
    except KeyError as error:
        param = "after" if error.args[0] == paging.after else "before"
        raise InvalidRequestError("the list does not have this file", param=param) from None
    return as_list([_as_store_file(record) for record in page], more)


def _files(
    file_ids: list[str] | None,
    files: list[AttachedFileBody] | None,
    strategy: ChunkingStrategy | None,
    attributes: Mapping[str, Any] | None = None,
) -> list[NewStoreFile]:
    """Return each file of a request once, with its settings."""
    found = {
        file_id: NewStoreFile(file_id, dict(attributes or {}), _chunking(strategy)) for file_id in file_ids or []
    }
    for one in files or []:
        found[one.file_id] = NewStoreFile(one.file_id, dict(one.attributes or {}), _chunking(one.chunking_strategy))
    for file_id in found:
        # A malformed id has the same response as an unknown one.
        if not file_id.startswith(f"{FILE}-"):
            raise not_found("file", file_id)
    return list(found.values())


def _chunking(strategy: ChunkingStrategy | None) -> dict[str, Any]:
    if strategy is None or strategy.type == "auto":
        settings = ChunkSettings()
    elif strategy.static is None:
        raise InvalidRequestError("a static strategy needs its sizes", param="chunking_strategy.static")
    else:
        settings = ChunkSettings(strategy.static.max_chunk_size_tokens, strategy.static.chunk_overlap_tokens)
    return {"max_tokens": settings.max_tokens, "overlap_tokens": settings.overlap_tokens}


def _as_store(record: VectorStoreRecord) -> dict[str, Any]:
    expired = record.expired(time.time())
    return {
        "id": record.id,
        "object": "vector_store",
        "created_at": int(record.created_at),
        "name": record.name,
        "usage_bytes": record.usage_bytes,
        "file_counts": _counts(record.counts),
        "status": "expired" if expired else "in_progress" if record.counts.get("in_progress") else "completed",
        "expires_after": None
        if record.expires_days is None
        else {"anchor": "last_active_at", "days": record.expires_days},
        "expires_at": None if record.expires_at is None else int(record.expires_at),
        "last_active_at": int(record.last_active_at),
        "metadata": record.metadata,
    }


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    found = {status: counts.get(status, 0) for status in STATUSES}
    return {**found, "total": sum(found.values())}


def _as_store_file(record: StoreFileRecord) -> dict[str, Any]:
    error = {"code": record.error_code, "message": record.error_message}
    return {
        "id": record.file_id,
        "object": "vector_store.file",
        "usage_bytes": record.usage_bytes,
        "created_at": int(record.created_at),
        "vector_store_id": record.store_id,
        "status": record.status,
        "last_error": None if record.error_code is None else error,
        "attributes": record.attributes,
        "chunking_strategy": {
            "type": "static",
            "static": {
                "max_chunk_size_tokens": record.chunking["max_tokens"],
                "chunk_overlap_tokens": record.chunking["overlap_tokens"],
            },
        },
    }


def _as_batch(record: FileBatchRecord) -> dict[str, Any]:
    counts = _counts(record.counts)
    if record.cancelled:
        status = "cancelled"
    elif counts["in_progress"]:
        status = "in_progress"
    else:
        status = "failed" if counts["total"] and counts["failed"] == counts["total"] else "completed"
    return {
        "id": record.id,
        "object": "vector_store.files_batch",
        "created_at": int(record.created_at),
        "vector_store_id": record.store_id,
        "status": status,
        "file_counts": counts,
    }
