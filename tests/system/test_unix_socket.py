"""Unix sockets at paths that the kernel accepts, and at longer ones."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest

from appliance.system.unix_socket import LONGEST, address, without_authorities


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1, 400])
def test_a_socket_at_a_path_of_any_length(tmp_path: Path, length: int) -> None:
    folder = tmp_path
    while len(str(folder / "s")) < length - 100:
        folder /= "d" * 99
    folder /= "d" * (length - len(str(folder / "s")) - 1)
    folder.mkdir(parents=True)
    path = folder / "s"
    assert len(str(path)) == length
    before = descriptors()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with address(path) as name:
            server.bind(name)
        server.listen()
        assert path.is_socket()
        with address(path) as name:
            client.connect(name)
    assert descriptors() == before


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), address(tmp_path / ("x" * 150) / "s"):
        pass


def test_a_client_without_authorities_trusts_no_server() -> None:
    context = without_authorities()
    assert context.get_ca_certs() == []
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
