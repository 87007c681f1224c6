"""The folders in which an engine keeps the kernels that it compiles, over restarts and upgrades.

vLLM, Torch Inductor, Triton and FlashInfer compile at the first start, for minutes, and keep the results below HOME
and XDG_CACHE_HOME. All replicas of an engine use the same folder. Each version of the environment has its own: some
of these caches do not notice that a file of the environment changed. The folder of the version before remains. A
machine that returns to it starts as fast as before. Older ones are removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from pathlib import Path

from appliance.errors import StoreError, UsageError
from appliance.system import files

PREFIX = "compiled-"
"""Name of a version's folder, before the version. No folder of another name is removed."""

KEPT = 2
"""Number of versions whose folders remain: the current version and its predecessor."""

VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def prepare(folder: Path, version: str) -> dict[str, str]:
    """Make the caches of ``version`` below ``folder``, and remove those of old versions.

    Replicas may call this at the same time. Return the environment variables that an engine needs to use them.
    Raises :class:`UsageError` for a version that is not a name, and :class:`StoreError` if ``folder`` cannot be
    written.
    """
    if not VERSION.fullmatch(version):
        raise UsageError(f"--caches: the version {version!r} is not a name; use letters, digits and . _ + -")
    own = folder / f"{PREFIX}{version}"
    files.make_folder(own)
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            # Its time is that of its last start, in nanoseconds: the kernel's own has steps of milliseconds.
            now = time.time_ns()
            os.utime(own, ns=(now, now))
            for old in _by_start(folder)[KEPT:]:
                shutil.rmtree(old)
        finally:
            os.close(number)
    except OSError as error:
        raise StoreError.unwritable(own, error) from None
    # Code of a model (`trust-remote-code`) is copied below HF_HOME by default, which an engine cannot write.
    return {"HOME": str(own), "XDG_CACHE_HOME": str(own), "HF_MODULES_CACHE": str(own / "modules")}


def _by_start(folder: Path) -> list[Path]:
    """Return the folders of all versions, the last started first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
