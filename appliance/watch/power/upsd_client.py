"""A client of NUT's upsd for reading: the text protocol of RFC 9271 over TCP, each wait bounded, no login."""

from __future__ import annotations

import shlex
import socket
import time

from appliance.errors import ApplianceError

PORT = 3493
TIMEOUT_S = 2.0
"""Seconds that one reading may take. upsd on the same machine responds within milliseconds."""

MAX_BYTES = 200_000
"""Bytes of one list at most; real ones have some 5000."""

REASONS = {
    "DATA-STALE": "the driver has lost the UPS; check its cable, then `systemctl restart upsdrv`",
    "DRIVER-NOT-CONNECTED": "no driver runs; `systemctl restart upsdrv`, then `journalctl -u upsdrv`",
    "UNKNOWN-UPS": "upsd has no UPS with this name; `upsc -l` lists them",
    "ACCESS-DENIED": "upsd does not allow this address; it must listen on 127.0.0.1",
}
"""The meaning of upsd's errors, and the fix."""


class UpsError(ApplianceError):
    """The UPS could not be read: upsd, its driver or the UPS itself does not respond."""


class UpsdClient:
    """A connection to upsd that is kept between readings, and made again after an error.

    Example::

        UpsdClient("ups").variables()["ups.status"] == "OL CHRG"
    """

    def __init__(self, ups: str, host: str = "127.0.0.1", port: int = PORT, timeout_s: float = TIMEOUT_S) -> None:
        self._ups = ups
        self._where = (host, port)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._rest = b""

    def variables(self) -> dict[str, str]:
        """Return all variables of the UPS by name; raises :class:`UpsError` within ``timeout_s``.

        A kept connection that upsd has closed is made again once: upsd may have been restarted.
        """
        until = time.monotonic() + self._timeout_s
        kept = self._socket is not None
        try:
            return self._list(until)
        except (ConnectionError, EOFError) as error:
            self.close()
            if not kept:
                raise self._unreachable(error) from None
        except OSError as error:
            self.close()
            raise self._unreachable(error) from None
        except UpsError:
            self.close()
            raise
        try:
            return self._list(until)
        except (OSError, EOFError) as error:
            self.close()
            raise self._unreachable(error) from None
        except UpsError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""

    def _list(self, until: float) -> dict[str, str]:
        connection = self._connect(until)
        self._limit(connection, until)
        connection.sendall(f"LIST VAR {self._ups}\n".encode())
        begin, end = f"BEGIN LIST VAR {self._ups}", f"END LIST VAR {self._ups}"
        variables: dict[str, str] = {}
        line = self._line(connection, until)
        if line.startswith("ERR "):
            code = line[4:].split()[0] if line[4:].split() else "UNKNOWN"
            meaning = REASONS.get(code, "see `journalctl -u upsd`")
            raise UpsError(f"upsd reports {code} for {self._ups}: {meaning}")
        if line != begin:
            raise UpsError(f"{self._where[0]}:{self._where[1]} responds with {line[:60]!r}, not as upsd does")
        size = 0
        while (line := self._line(connection, until)) != end:
            size += len(line)
            words = _words(line)
            if len(words) != 4 or words[0] != "VAR" or size > MAX_BYTES:
                raise UpsError(f"upsd sent {line[:60]!r} in a list of variables; `systemctl restart upsd`")
            variables[words[2]] = words[3]
        return variables

    def _connect(self, until: float) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection(self._where, timeout=max(0.05, until - time.monotonic()))
            self._rest = b""
        return self._socket

    @staticmethod
    def _limit(connection: socket.socket, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)

    def _line(self, connection: socket.socket, until: float) -> str:
        while b"\n" not in self._rest:
            self._limit(connection, until)
            data = connection.recv(65536)
            if not data:
                raise EOFError
            self._rest += data
            if len(self._rest) > MAX_BYTES:
                raise UpsError("upsd sent a line without an end; `systemctl restart upsd`")
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("utf-8", "replace").rstrip("\r")

    def _unreachable(self, error: Exception) -> UpsError:
        if isinstance(error, TimeoutError):
            reason = f"no complete response within {self._timeout_s:g} s"
        else:
            reason = getattr(error, "strerror", None) or "it closed the connection"
        return UpsError(f"upsd at {self._where[0]}:{self._where[1]}: {reason}; `systemctl status upsd`")


def _words(line: str) -> list[str]:
    """Split a line of the protocol: words, and quoted texts in which a backslash escapes quotes and backslashes."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.quotes = True, "", '"'
    try:
        return list(lexer)
    except ValueError:
        return []
