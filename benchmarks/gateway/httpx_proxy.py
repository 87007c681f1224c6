"""A minimal proxy, as often written first: FastAPI in front, httpx behind. ``ENGINE`` is the engine's base URL."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=1024, max_keepalive_connections=512)
    async with httpx.AsyncClient(base_url=os.environ["ENGINE"], timeout=600, limits=limits) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    if request.headers.get("authorization") != f"Bearer {os.environ['KEY']}":
        raise HTTPException(401)
    body = await request.json()
    client: httpx.AsyncClient = request.app.state.client
    upstream = client.build_request("POST", "/v1/chat/completions", content=json.dumps(body).encode())
    upstream.headers["content-type"] = "application/json"
    response = await client.send(upstream, stream=True)
    if not body.get("stream"):
        return Response(await response.aread(), response.status_code, media_type="application/json")

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in response.aiter_raw():
            yield piece
        await response.aclose()

    return StreamingResponse(pieces(), media_type="text/event-stream")
