"""The memory that bodies of file uploads may use at once. Pure."""

from __future__ import annotations

from appliance.errors import QueueFullError

MAX_UPLOAD_BYTES = 256 * 2**20
"""Bytes of all uploads together that the gateway holds."""

RETRY_S = 5.0
"""``Retry-After`` of an upload for which no memory is left, in seconds."""


class UploadMemory:
    """The bytes that are reserved for uploads, of ``size`` in all."""

    __slots__ = ("_size", "used")

    def __init__(self, size: int = MAX_UPLOAD_BYTES) -> None:
        self._size = size
        self.used = 0
        """Reserved bytes."""

    def reserve(self, size: int) -> UploadShare:
        """Return a share of ``size`` bytes.

        Raises :class:`QueueFullError` if other uploads use the memory. A single upload always gets its share.
        """
        if self.used and self.used + size > self._size:
            raise QueueFullError(
                "Other files are being uploaded, and their memory is limited; try again shortly",
                code="uploads_busy",
                retry_after=RETRY_S,
            )
        return UploadShare(self, size)


class UploadShare:
    """A reservation, released by :meth:`release` or with its last reference, as that of a lost connection."""

    __slots__ = ("_memory", "_size")

    def __init__(self, memory: UploadMemory, size: int) -> None:
        self._memory = memory
        self._size = size
        memory.used += size

    def shrink(self, size: int) -> None:
        """Keep ``size`` bytes at most: the body is complete, and is smaller than it could have been."""
        if size < self._size:
            self._memory.used -= self._size - size
            self._size = size

    def release(self) -> None:
        """Release all of it; the second call changes nothing."""
        self.shrink(0)

    def __del__(self) -> None:
        self.release()
