"""The client of upsd: a real upsd, its failures, and other servers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.watch.power.reading import Supply, from_variables
from appliance.watch.power.upsd_client import UpsdClient, UpsError
from tests.conftest import wait_until
from tests.ports import free_port
from tests.watch.power.nut import NAME, Nut

pytestmark = pytest.mark.timeout(300)


def problem(client: UpsdClient) -> str:
    try:
        client.variables()
    except UpsError as error:
        return str(error)
    return ""


def test_a_real_ups_is_read(nut: Nut) -> None:
    client = UpsdClient(NAME, port=nut.port, timeout_s=20)
    reading = from_variables(client.variables())
    assert (reading.supply, reading.charge, reading.runtime_s, reading.load) == (Supply.MAINS, 1.0, 900.0, 0.4)
    nut.set(ups_status="OB LB", battery_charge="7")
    reading = from_variables(client.variables())
    assert (reading.supply, reading.low, reading.charge) == (Supply.BATTERY, True, 0.07)
    nut.set(ups_status="OL", battery_charge="100")
    client.close()


def test_quotes_in_a_value_are_read(nut: Nut) -> None:
    client = UpsdClient(NAME, port=nut.port, timeout_s=20)
    assert "UPS" in client.variables()["device.model"]
    client.close()


def test_a_name_that_upsd_does_not_have(nut: Nut) -> None:
    assert "UNKNOWN-UPS" in problem(UpsdClient("other", port=nut.port, timeout_s=20))


def test_a_dead_driver_and_a_dead_upsd_are_reported_and_both_return(nut: Nut) -> None:
    client = UpsdClient(NAME, port=nut.port, timeout_s=20)
    client.variables()
    nut.stop("driver")
    wait_until(lambda: "systemctl restart upsdrv" in problem(client), "the lost driver is reported", 60)
    nut.start_driver()
    wait_until(lambda: problem(client) == "", "the UPS is read again", 60)
    nut.stop("upsd")
    assert "systemctl status upsd" in problem(client)
    nut.start_upsd()
    wait_until(lambda: problem(client) == "", "the UPS is read again", 60)
    client.close()


def test_a_restarted_upsd_causes_no_failure(nut: Nut) -> None:
    client = UpsdClient(NAME, port=nut.port, timeout_s=20)
    client.variables()
    nut.stop("upsd")
    nut.start_upsd()
    # A new upsd reads the driver's values first.
    wait_until(lambda: nut.get("ups.status") == "OL", "upsd has the values", 60)
    assert client.variables()["ups.status"] == "OL"
    client.close()


def serve(respond: Callable[[socket.socket], None]) -> tuple[int, socket.socket]:
    """Respond to each connection in a thread; return the port and the socket that ends it."""
    listener = socket.socket()
    port = free_port()
    listener.bind(("127.0.0.1", port))
    listener.listen()

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(1000)
                    respond(connection)
                except OSError:
                    continue

    threading.Thread(target=run, daemon=True).start()
    return port, listener


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not as upsd does"),
        (b"BEGIN LIST VAR ups\nVAR ups ups.status\n", "in a list of variables"),
        (b'BEGIN LIST VAR ups\nVAR ups ups.status "OL\n', "in a list of variables"),
        (b"ERR \n", "UNKNOWN"),
        (b"x" * 300_000, "without an end"),
        (b"BEGIN LIST VAR ups\n", "closed the connection"),
        (b"", "closed the connection"),
    ],
)
def test_a_response_that_is_not_valid(response: bytes, text: str) -> None:
    port, listener = serve(lambda connection: connection.sendall(response))
    assert text in problem(UpsdClient(NAME, port=port, timeout_s=20))
    listener.close()


def test_a_server_that_sends_a_byte_at_a_time_is_left_in_time() -> None:
    def drip(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"B")
            time.sleep(0.05)

    port, listener = serve(drip)
    began = time.monotonic()
    assert "no complete response within 0.5 s" in problem(UpsdClient(NAME, port=port, timeout_s=0.5))
    assert time.monotonic() - began < 10
    listener.close()


def test_a_port_on_which_nothing_listens(tmp_path: Path) -> None:
    assert "refused" in problem(UpsdClient(NAME, port=free_port()))
