"""Rendered files of the modules, checked by the programs that read them: nft, systemd, nginx, wg, bash."""

from __future__ import annotations

import os
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nix import checker, translate, units

OWN = "appliance-"
THRESHOLDS = {"engine-": 5.0, "gpu-power": 5.0}
"""Highest allowed exposure by a part of the unit's name; all other units must reach 2.0."""


def services(*extra: str) -> dict[str, dict[str, Any]]:
    return {n: s for n, s in checker.host("gpu", *extra)["systemd.services"].items() if n.startswith(OWN)}


def everything() -> dict[str, dict[str, Any]]:
    """Return the units of the shipped host, and those of a host with every choice under names with ``all-``."""
    chosen = services("tests/nix/everything.nix")
    return services() | {name.replace(OWN, f"{OWN}all-"): service for name, service in chosen.items()}


@pytest.fixture(scope="module")
def unit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checker.require("systemd-analyze")
    folder = tmp_path_factory.mktemp("units")
    for name, service in everything().items():
        (folder / f"{name}.service").write_text(units.render(service))
    # Units of other NixOS modules.
    for name in (
        "nvidia-persistenced",
        "wireguard-wg0",
        "nftables",
        "appliance-sign",
        "appliance-restore",
        "appliance-models-verify",
    ):
        if not (folder / f"{name}.service").exists():
            (folder / f"{name}.service").write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
    return folder


def test_all_units_are_rendered() -> None:
    assert set(services()) == {
        "appliance-engine-agents.0", "appliance-engine-agents.1", "appliance-gateway", "appliance-gpu-power",
        "appliance-smoke", "appliance-trial-arrived", "appliance-trial-deadline", "appliance-trial-failed",
        "appliance-trial-passed", "appliance-tunnel-watch-vps",
    }  # fmt: skip


def test_every_choice_reaches_its_unit() -> None:
    chosen = services("tests/nix/everything.nix")
    assert {"appliance-engine-embed", "appliance-models-verify"} <= set(chosen)
    assert [chosen[f"appliance-engine-agents.{n}"]["serviceConfig"]["NUMAMask"] for n in (0, 1)] == ["0", "1"]


def test_systemd_accepts_every_unit(unit_folder: Path) -> None:
    for name in everything():
        argv = ["systemd-analyze", "verify", "--man=no", str(unit_folder / f"{name}.service")]
        done = checker.run_process(argv, {"SYSTEMD_UNIT_PATH": f"{unit_folder}:"})
        # Units of this machine may have errors; ours must not.
        ours = [line for line in done.stderr.splitlines() if OWN in line]
        assert not ours, "\n".join(ours)


def test_systemd_reports_a_typo(unit_folder: Path) -> None:
    invalid = unit_folder / "appliance-invalid.service"
    invalid.write_text("[Service]\nExecStart=/bin/true\nProtectSytem=strict\n")
    done = checker.run_process(["systemd-analyze", "verify", "--man=no", invalid])
    assert any(OWN in line and "ProtectSytem" in line for line in done.stderr.splitlines())


def exposure(file: Path) -> float:
    """Return the exposure level that ``systemd-analyze security`` computes."""
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(file)]
    done = checker.run_process(argv)
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


def test_exposure_of_every_unit(unit_folder: Path) -> None:
    for name in everything():
        file = unit_folder / f"{name}.service"
        threshold = next((limit for start, limit in THRESHOLDS.items() if start in name), 2.0)
        reached = exposure(file)
        print(f"{name}: {reached} (at most {threshold})")
        argv = [
            "systemd-analyze",
            "security",
            "--offline=true",
            f"--threshold={round(threshold * 10)}",
            str(file),
        ]
        done = checker.run_process(argv)
        assert done.returncode == 0, f"{name}: {reached} is over {threshold}"


def test_a_unit_without_a_sandbox_is_exposed(tmp_path: Path) -> None:
    checker.require("systemd-analyze")
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(bare) > 9


def test_polkit_allows_the_gateway_to_manage_only_units_of_engines() -> None:
    """The expression of the rule matches the names of the rendered units."""
    rule = checker.host("gpu", "tests/nix/on_demand.nix")["security.polkit.extraConfig"]
    found = re.search(r"/(\^.+\$)/\.test", rule)
    assert found, rule
    allowed = {f"{name}.service" for name in services("tests/nix/on_demand.nix")}
    allowed = {unit for unit in allowed if re.search(found[1], unit)}
    assert allowed == {"appliance-engine-agents.0.service", "appliance-engine-agents.1.service"}
    for other in ("appliance-gateway.service", "x-appliance-engine-a.service", "appliance-engine-a.service.d", "a"):
        assert not re.search(found[1], other)


@pytest.mark.parametrize("host", ["gpu", "vps"])
def test_nft_accepts_the_table(host: str, tmp_path: Path) -> None:
    nft = checker.require("nft")
    file = tmp_path / "host.nft"
    file.write_text(translate.nftables(checker.host(host)))
    done = checker.run_process([nft, "--check", "--file", file])
    if "Operation not permitted" in done.stderr:
        pytest.skip("NOT CHECKED: nft cannot open its socket; run as root")
    assert done.returncode == 0, done.stderr


def test_nft_reports_a_typo(tmp_path: Path) -> None:
    nft = checker.require("nft")
    file = tmp_path / "invalid.nft"
    file.write_text(
        "table inet appliance {\n chain input { type filter hook input priority filter; polcy drop; }\n}\n"
    )
    assert checker.run_process([nft, "--check", "--file", file]).returncode != 0


def edge_conf(
    folder: Path, http: str = "127.0.0.1:18080", https: str = "127.0.0.1:18443", extra: tuple[str, ...] = ()
) -> str:
    """Return nginx.conf of the VPS with the modules ``extra``; ``folder`` gets a certificate for its domain."""
    openssl = checker.require("openssl")
    values = checker.host("vps", *extra)
    domain = values["appliance.network.edge.domain"]
    (folder / domain).mkdir()
    made = ["-keyout", folder / domain / "key.pem", "-out", folder / domain / "fullchain.pem"]
    new = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "1"]
    subprocess.run([*new, *made], check=True, capture_output=True)
    return translate.nginx(values, translate.NginxPaths(str(folder), str(folder), (http,), (https,)))


@pytest.mark.parametrize("extra", [(), ("tests/nix/browser.nix",), ("tests/nix/any_browser.nix",)])
def test_nginx_accepts_the_edge(tmp_path: Path, extra: tuple[str, ...]) -> None:
    nginx = checker.require("nginx")
    text = edge_conf(tmp_path, extra=extra)
    for needed in (
        "limit_req zone=per_key",
        "limit_conn address_conn",
        "proxy_buffering off",
        "client_max_body_size",
    ):
        assert needed in text
    file = tmp_path / "nginx.conf"
    file.write_text(text)
    done = checker.run_process([nginx, "-t", "-c", file, "-e", tmp_path / "error.log"])
    assert done.returncode == 0, done.stderr
    file.write_text(text.replace("proxy_buffering off", "proxy_bufering off"))
    done = checker.run_process([nginx, "-t", "-c", file, "-e", tmp_path / "error.log"])
    assert done.returncode != 0
    assert "proxy_bufering" in done.stderr


@pytest.fixture
def namespace() -> Iterator[str]:
    ip = checker.require("ip")
    name = f"wg{uuid.uuid4().hex[:8]}"
    made = checker.run_process([ip, "netns", "add", name])
    if made.returncode:
        pytest.skip(f"NOT CHECKED: network namespaces are not possible ({made.stderr.strip()}); run as root")
    yield name
    subprocess.run([ip, "netns", "delete", name], check=False)


@pytest.mark.parametrize("host", ["gpu", "vps"])
def test_wg_accepts_the_peers(host: str, namespace: str, tmp_path: Path) -> None:
    wg, userspace, ip = (checker.require(name) for name in ("wg", "wireguard-go", "ip"))
    interface = translate.tunnel(checker.host(host))
    file = tmp_path / "wg.key"
    file.touch(0o600)
    file.write_text(checker.output_of([wg, "genkey"]))
    device = f"t{uuid.uuid4().hex[:6]}"
    enter = [ip, "netns", "exec", namespace]
    quiet = {**os.environ, "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"}
    process = subprocess.Popen(
        [*enter, userspace, "-f", device], env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        for _ in range(50):
            if process.poll() is not None or Path(f"/var/run/wireguard/{device}.sock").exists():
                break
            time.sleep(0.1)
        if process.poll() is not None:
            pytest.skip("NOT CHECKED: wireguard-go cannot open /dev/net/tun")
        subprocess.run([*enter, wg, "set", device, "private-key", file, *interface.interface], check=True)
        for peer in interface.peers:
            subprocess.run([*enter, wg, "set", device, *peer], check=True)
        shown = checker.output_of([*enter, wg, "show", device, "allowed-ips"])
        assert shown.split() == [word for peer in interface.peers for word in (peer[1], peer[-1])]
        for address in interface.addresses:
            subprocess.run([*enter, ip, "address", "add", address, "dev", device], check=True)
    finally:
        process.terminate()
        process.wait(timeout=10)
        if process.stderr:
            process.stderr.close()


def test_shellcheck_accepts_the_installer() -> None:
    shellcheck = checker.require("shellcheck")
    script = checker.ROOT / "modules/installer/install.sh"
    done = checker.run_process([shellcheck, "--shell=bash", script])
    assert done.returncode == 0, done.stdout


def test_the_smoke_test_has_its_programs_and_a_key_for_its_whole_time() -> None:
    """Without ``ip``, the doctor could not separate a silent line from an error of the generation."""
    smoke = checker.host("gpu")["systemd.services"]["appliance-smoke"]
    assert {f"<package {name}>" for name in ("nftables", "wireguard-tools", "iproute2")} <= set(smoke["path"])
    lives = re.search(r"--expires-in (\d+)s ", smoke["serviceConfig"]["ExecStart"]["text"])
    assert lives is not None
    assert int(lives[1]) >= smoke["serviceConfig"]["TimeoutStartSec"]
