"""Sets the fans of a card through NVIDIA's management library, in a process of its own.

A call into a driver that hangs never returns, so the watchdog runs this file as a child. It needs the standard
library only, and works without an installed package: ``python fans.py CARD PERCENT``, or ``auto`` for the driver's
own control.
"""

from __future__ import annotations

import ctypes
import sys

LIBRARIES = ("/run/opengl-driver/lib/libnvidia-ml.so.1", "libnvidia-ml.so.1")
"""NixOS has the driver's libraries in a folder of their own."""

AUTO = "auto"


class NvmlError(Exception):
    """The library refuses a call."""


def load_library(names: tuple[str, ...] = LIBRARIES) -> ctypes.CDLL:
    """Return the first library that exists; raises :class:`NvmlError`."""
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise NvmlError(f"{names[-1]} is not installed; it is part of the NVIDIA driver")


def set_fans(library: ctypes.CDLL, card: int, speed: int | None) -> int:
    """Set all fans of ``card`` to ``speed`` percent, or to the driver's own control; return their number.

    Raises :class:`NvmlError` with the library's reason.
    """
    library.nvmlErrorString.restype = ctypes.c_char_p

    def call(name: str, *arguments: object) -> None:
        code = getattr(library, name)(*arguments)
        if code != 0:
            raise NvmlError(f"{name}: {library.nvmlErrorString(code).decode()}")

    call("nvmlInit_v2")
    try:
        device, count = ctypes.c_void_p(), ctypes.c_uint()
        call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(card), ctypes.byref(device))
        call("nvmlDeviceGetNumFans", device, ctypes.byref(count))
        for fan in range(count.value):
            if speed is None:
                call("nvmlDeviceSetDefaultFanSpeed_v2", device, ctypes.c_uint(fan))
            else:
                call("nvmlDeviceSetFanSpeed_v2", device, ctypes.c_uint(fan), ctypes.c_uint(speed))
        return count.value
    finally:
        library.nvmlShutdown()


def main(arguments: list[str]) -> int:
    """Set the fans of the card ``arguments[0]`` to ``arguments[1]``; return the exit code."""
    card, speed = int(arguments[0]), None if arguments[1] == AUTO else int(arguments[1])
    try:
        count = set_fans(load_library(), card, speed)
    except NvmlError as error:
        print(error)
        return 1
    if not count:
        print("the driver controls no fan of this card")
        return 1
    print(f"{count} fans")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
