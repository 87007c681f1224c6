"""Pins a model of the hub: the entries of its files for models.lock.

The hub lists the SHA-256 of large files. Small ones are fetched here and compared with the id of their git blob,
which the revision covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path

from appliance.errors import StoreError
from appliance.models.hub import Hub, HubFile, blob_id
from appliance.models.lock import Entry
from appliance.models.transfer import partial_of
from appliance.system import files

UNUSED = (".*", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.tflite", "*.png", "*.jpg")
"""Patterns of files that no engine of ours loads: other formats of the same weights, and pictures."""


def chosen(listed: Sequence[HubFile], only: Sequence[str]) -> list[HubFile]:
    """Return the files to fetch: those that match a pattern of ``only``, else all but :data:`UNUSED`."""
    if only:
        return [one for one in listed if any(fnmatchcase(one.name, pattern) for pattern in only)]
    return [one for one in listed if not any(fnmatchcase(one.name.rpartition("/")[2], p) for p in UNUSED)]


def pin(hub: Hub, repository: str, revision: str, only: Sequence[str], store: Path) -> list[Entry]:
    """Return the entries of the model; small files are then complete partial files of ``store``.

    The caller holds ``store``. Raises :class:`StoreError` if the hub lacks the revision, a file or all of ``only``.
    """
    picked = chosen(hub.files(repository, revision), only)
    if not picked:
        what = f"file that matches {' '.join(only)}" if only else "file that an engine loads"
        raise StoreError(f"{repository}@{revision[:12]}: the hub lists not one {what}; see its page on the hub")
    return [
        Entry(repository, revision, one.name, one.size, one.sha256)
        if one.sha256
        else _pin_small(hub, Entry(repository, revision, one.name, one.size, ""), one, store)
        for one in picked
    ]


def _pin_small(hub: Hub, entry: Entry, listed: HubFile, store: Path) -> Entry:
    present = files.read(entry.path(store))
    if present is not None and blob_id(present) == listed.blob:
        return Entry(entry.repository, entry.revision, entry.file, len(present), sha256(present).hexdigest())
    content = hub.small_file(entry.repository, entry.revision, listed)
    digest = sha256(content).hexdigest()
    partial = partial_of(digest, store)
    try:
        partial.write_bytes(content)
    except OSError as error:
        raise StoreError.unwritable(partial, error) from None
    return Entry(entry.repository, entry.revision, entry.file, len(content), digest)
