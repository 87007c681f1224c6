"""Chooses the model that `make up` serves: Qwen3-0.6B if the model hub has it for us, else a tiny random one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from appliance.engines.processes import run_step
from appliance.errors import StartError
from appliance.system import files
from appliance.system.proxy import is_loopback, opener

REPOSITORY = "Qwen/Qwen3-0.6B"
REVISION = "c1899de289a04d12100db370d81485cdf75e47ca"
WEIGHTS_SHA256 = "f47f71177f32bcd101b7573ec9171e6a57f4f4d31148d38e382306f42996874b"
"""SHA-256 of model.safetensors (1,503,300,328 bytes) at that revision, as the hub's own metadata gives it."""

HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 4.0
TINY_NAME = "tiny-qwen3-random"
DOWNLOAD_TIMEOUT_S = 3600.0

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model on disk: the name for clients, its folder, its longest context in tokens, a notice for the user."""

    name: str
    folder: Path
    context: int
    notice: str


async def prepare(choice: str, python: Path, data: Path, report: Callable[[str], None]) -> Prepared:
    """Return the model to serve. ``choice`` is ``auto``, or ``tiny`` to make the tiny model without the hub.

    ``python`` is the engine's interpreter, ``data`` the folder for models and logs. ``report`` is called with a
    line for the user at each long step. Raises :class:`StartError` if not even the tiny model can be made,
    :class:`StoreError` if ``data`` cannot be written.
    """
    if choice == "auto":
        real = data / "models" / "Qwen3-0.6B"
        if is_verified(real):
            return _real(real)
        if await asyncio.to_thread(hub_has_model):
            report(f"downloading {REPOSITORY} at {REVISION[:12]} (1.5 GB) ...")
            if await _download(python, real, data):
                return _real(real)
            report(f"the download failed (see {data / 'log' / 'model.log'}); run again to resume it")
    return await _tiny(python, data)


def is_verified(folder: Path) -> bool:
    """Return whether an earlier run downloaded this revision into ``folder`` and verified its weights."""
    return files.read(folder / ".verified") == f"{REVISION} {WEIGHTS_SHA256}\n".encode()


def hub_has_model() -> bool:
    """Return whether the model hub (``HF_ENDPOINT``, else the public one) has our revision, within seconds."""
    base = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    request = urllib.request.Request(f"{base}/api/models/{REPOSITORY}/revision/{REVISION}", method="GET")  # noqa: S310
    try:
        with opener(base).open(request, timeout=HUB_TIMEOUT_S) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        # It holds the connection.
        error.close()
        return False
    except (urllib.error.URLError, OSError, ValueError):
        return False


async def _download(python: Path, folder: Path, data: Path) -> bool:
    argv = [str(python), str(HERE / "fetch.py"), REPOSITORY, REVISION, str(folder), WEIGHTS_SHA256]
    host = urlsplit(os.environ.get("HF_ENDPOINT", HUB)).hostname or ""
    # The hub's own client would send the requests for a mirror on this machine through a proxy.
    straight = {"NO_PROXY": host, "no_proxy": host} if is_loopback(host) else {}
    try:
        async with asyncio.timeout(DOWNLOAD_TIMEOUT_S):
            code = await run_step(argv, log=data / "log" / "model.log", environment=straight)
    except TimeoutError:
        return False
    if code != 0:
        files.require_room(folder)
    return code == 0


async def _tiny(python: Path, data: Path) -> Prepared:
    # The digest of the script and its text is in the name: a newer script makes a newer model.
    sources = [(HERE / name).read_bytes() for name in ("tiny_qwen3.py", "tiny_corpus.txt")]
    digest = hashlib.sha256(b"".join(sources)).hexdigest()[:12]
    folder = data / "models" / f"tiny-qwen3-{digest}"
    # Written under another name and moved into place: a half-written model is never served.
    making = folder.with_suffix(".new")
    if not (folder / "config.json").exists():
        code = await run_step(
            [str(python), str(HERE / "tiny_qwen3.py"), str(making)],
            log=data / "log" / "model.log",
            environment={"HF_HUB_OFFLINE": "1"},
        )
        if code != 0:
            files.require_room(making)
            raise StartError(
                f"the tiny model could not be made (exit code {code}); see {data / 'log' / 'model.log'}"
            )
        files.move(making, folder)
    notice = (
        "TINY RANDOM MODEL: the model hub cannot be reached from here, or MODEL=tiny is set. This is a two-layer "
        "Qwen3 with random weights: the path from client to engine is real, the generated text is noise."
    )
    return Prepared(name=TINY_NAME, folder=folder, context=8192, notice=notice)


def _real(folder: Path) -> Prepared:
    return Prepared(
        name=REPOSITORY,
        folder=folder,
        context=40960,
        notice=f"{REPOSITORY} at revision {REVISION[:12]}, weights verified",
    )
