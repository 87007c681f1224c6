"""Asks for one streamed chat answer over a plain HTTP/1.1 connection and times its lines.

Not Locust's own clients: one of them reads in blocks of 1,024 bytes and so sees a token seconds late, and
both count a stream as good once its headers came.
"""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from loadtests.sample import Sample


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask and as whom."""

    url: str
    key: str
    model: str
    timeout_s: float = 120.0


def ask(target: Target, prompt: str, max_tokens: int) -> Sample:
    """One chat request; every outcome is a :class:`Sample`, none an exception."""
    parts = urlsplit(target.url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=target.timeout_s)
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
    sample = Sample(time.monotonic())
    try:
        connection.request("POST", f"{parts.path.rstrip('/')}/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        sample.status = response.status
        content_type = response.headers.get_content_type()
        if response.status != 200:
            sample.cause = f"status {response.status}"
        elif content_type != "text/event-stream":
            sample.cause = f"content type {content_type}"
        else:
            # read1, not readline: http.client's readline ends a broken body as quietly as a whole one.
            rest = b""
            while piece := response.read1(65536):
                now = time.monotonic()
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    sample.line(line, now)
        sample.end(time.monotonic())
    except TimeoutError:
        sample.cause = sample.cause or "timeout"
        sample.end(time.monotonic())
    except (OSError, http.client.HTTPException) as error:
        if sample.status == 0:
            sample.cause = f"no answer ({type(error).__name__})"
        sample.end(time.monotonic(), cut=True)
    finally:
        connection.close()
    return sample
