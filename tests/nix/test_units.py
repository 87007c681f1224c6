"""Every unit that NixOS renders for a host, ours and its own, by systemd's tools."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.nix import checker, rendered
from tests.nix.rendered import RenderedHost
from tests.nix.storepaths import StoreFolder, UnknownStorePathError, installed
from tests.nix.unitfile import UnitFile

OWN = "appliance-"
EVERYTHING = "tests/nix/everything.nix"
EVERYTHING_VPS = "tests/nix/everything_vps.nix"
HOSTS = [("gpu", ()), ("vps", ()), ("side", ()), ("gpu", (EVERYTHING,)), ("vps", (EVERYTHING_VPS,))]
# The agents need access to the cards, and the gateway's socket, which belongs to another user.
THRESHOLDS = {"engine-": 5.0, "gpu-power": 5.0, "gpu-watch": 2.5, "appliance-power.service": 2.2}
"""Highest allowed exposure by a part of the unit's name; all other units of ours must reach 2.0."""

NEWER: Mapping[str, int] = {
    "Unknown key 'ImportCredential' in section [Service], ignoring.": 254,
    "Failed to parse service type, ignoring: notify-reload": 253,
    "Failed to parse boolean value, ignoring: identity": 257,
}
"""Messages of a systemd that is older than the given version, for directives that NixOS's systemd has."""

LINES: Mapping[str, tuple[str, str]] = {
    "ImportCredential": ("ImportCredential=", "ImportCredential=a"),
    "notify-reload": ("Type=notify-reload", "Type=notify-reload"),
    "identity": ("PrivateUsers=identity", "PrivateUsers=identity"),
}
"""By a word of the message: its text in a unit of a host, and a line with the same message."""

UPSTREAM = Path("/usr/lib/systemd/system")
STAND_INS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "dbus-broker.service",
            "kmod-static-nodes.service",
            "lastlog2-import.service",
            "nix-daemon.service",
            "sshd-vsock@.service",
            "systemd-importd.service",
            "systemd-makefs@.service",
            "systemd-mkswap@.service",
            "systemd-nspawn@.service",
            "systemd-oomd.service",
            "systemd-udevd.service",
        ),
        "[Service]\nExecStart=/bin/true\n",
    ),
    "nix-daemon.socket": "[Socket]\nListenStream=/nix/var/nix/daemon-socket/socket\n",
    "sshd-vsock.socket": "[Socket]\nListenStream=vsock::22\nAccept=yes\n",
}
"""Units of packages that Debian's minimal systemd does not have, and that a rendered text extends."""


@cache
def version() -> int:
    """Return the version of systemd on this machine."""
    found = re.match(r"systemd (\d+)", checker.output_of([checker.require("systemd-analyze"), "--version"]))
    assert found
    return int(found[1])


def present(program: str) -> str:
    """Return a program that exists: ``systemd-analyze`` does not run it."""
    return installed(program) or "/bin/true"


def write(host: RenderedHost, folder: Path) -> list[Path]:
    """Write the units of ``host`` as NixOS puts them together; return the files to verify."""
    units = folder / "units"
    units.mkdir()
    store = StoreFolder(
        host, folder / "store", replaced={"/run/current-system/systemd/bin/": "/usr/bin/"}, found=present
    )
    files = []
    for name, unit in host.units.items():
        if not unit.enabled:
            continue
        file = units / name
        text = store.unit_text(unit)
        if unit.drop_in:
            (units / f"{name}.d").mkdir()
            (units / f"{name}.d" / "overrides.conf").write_text(text)
            if name in STAND_INS:
                file.write_text(STAND_INS[name])
            else:
                file = UPSTREAM / name
                assert file.exists(), f"{name} extends a unit that this machine does not have: add it to STAND_INS"
        else:
            file.write_text(text)
        files.append(file)
    return files


def verify(files: list[Path], folder: Path) -> list[str]:
    """Return the errors that ``systemd-analyze verify`` reports, without those of :data:`NEWER`."""
    argv = [checker.require("systemd-analyze"), "verify", "--man=no", *files]
    lines = checker.run_process(argv, {"SYSTEMD_UNIT_PATH": f"{folder / 'units'}:"}).stderr.splitlines()
    expected = {message for message, since in NEWER.items() if version() < since}
    return [line for line in lines if not any(line.endswith(f": {message}") for message in expected)]


@pytest.mark.parametrize(("name", "extra"), HOSTS)
def test_systemd_accepts_every_unit(name: str, extra: tuple[str, ...], tmp_path: Path) -> None:
    files = write(rendered.host(name, *extra), tmp_path)
    assert len(files) > 80
    assert verify(files, tmp_path) == []


@pytest.mark.parametrize("unit", ["appliance-gateway.service", "sshd.service", "systemd-journald.service"])
def test_systemd_reports_a_typo_in_our_units_and_in_those_of_nixos(unit: str, tmp_path: Path) -> None:
    def misspelt(name: str, text: str) -> str:
        return text.replace("[Service]\n", "[Service]\nProtectSytem=strict\n") if name == unit else text

    errors = verify(write(rendered.host("gpu").edited(misspelt), tmp_path), tmp_path)
    assert len(errors) == 1
    assert unit in errors[0]
    assert "ProtectSytem" in errors[0]


@pytest.mark.parametrize("message", NEWER)
def test_a_newer_directive_is_the_only_one_that_is_accepted(message: str, tmp_path: Path) -> None:
    """A row is necessary, a unit of a host needs it, and it hides no other message of the same unit."""
    if version() >= NEWER[message]:
        pytest.skip(f"NOT CHECKED: systemd {version()} has the directive since {NEWER[message]}")
    text, line = next(found for word, found in LINES.items() if word in message)
    assert any(text in unit.text for unit in rendered.host("gpu").units.values())
    (tmp_path / "units").mkdir()
    file = tmp_path / "units" / "newer.service"
    file.write_text(f"[Service]\nExecStart=/bin/true\n{line}\n")
    argv = [checker.require("systemd-analyze"), "verify", "--man=no", file]
    assert message in checker.run_process(argv).stderr
    assert verify([file], tmp_path) == []
    file.write_text(f"[Service]\nExecStart=/bin/true\n{line}\nImportCredentials=a\nType=notify-reloads\n")
    assert len(verify([file], tmp_path)) == 2


@pytest.mark.parametrize("name", STAND_INS)
def test_a_stand_in_is_extended_by_a_host(name: str) -> None:
    assert any(rendered.host(host).units[name].drop_in for host in ("gpu", "vps"))


def test_systemd_reports_a_program_that_does_not_exist(tmp_path: Path) -> None:
    host = rendered.host("gpu")
    files = write(host, tmp_path)
    next((tmp_path / "store").glob("*llm-appliance*/bin/appliance")).unlink()
    errors = verify(files, tmp_path)
    assert errors
    assert all("is not executable" in line for line in errors)
    assert {line.partition(":")[0] for line in errors} == {
        name for name, unit in host.units.items() if "/bin/appliance " in unit.text
    }


def test_a_store_path_without_a_row_stops_the_test(tmp_path: Path) -> None:
    path = f"/nix/store/{'0' * 32}-netcat-1.2/bin/nc"
    host = rendered.host("gpu")
    unit = host.unit("appliance-gateway.service")
    listens = dataclasses.replace(unit, text=f"{unit.text}ExecStartPre={path} -l 1\n")
    with pytest.raises(UnknownStorePathError) as raised:
        write(dataclasses.replace(host, units={unit.name: listens}), tmp_path)
    assert str(raised.value) == (
        f"appliance-gateway.service names {path}, which has no row in tests/nix/storepaths.py: add the program of "
        "Debian with the same purpose to PROGRAMS, or the file to FILES"
    )


def test_a_program_without_a_row_stops_the_test(tmp_path: Path) -> None:
    """A row names programs: another program of the same package has none."""
    store = StoreFolder(rendered.host("gpu"), tmp_path)
    path = f"/nix/store/{'0' * 32}-nftables-1.1.6/bin"
    assert store.relocate(f"{path}/nft", "x").endswith("/bin/nft")
    with pytest.raises(UnknownStorePathError):
        store.relocate(f"{path}/nftables-monitor", "x")


def own(name: str, *extra: str) -> dict[str, UnitFile]:
    """Return our services of a host."""
    units = rendered.host(name, *extra).units.values()
    return {unit.name: unit for unit in units if unit.name.startswith(OWN) and unit.kind == "service"}


def test_all_units_of_ours_are_rendered() -> None:
    assert {name.removesuffix(".service") for name in own("gpu")} == {
        "appliance-assistant", "appliance-engine-agents.0", "appliance-engine-agents.1", "appliance-gateway",
        "appliance-gpu-power", "appliance-gpu-watch", "appliance-smoke", "appliance-trial-arrived",
        "appliance-trial-deadline", "appliance-trial-failed", "appliance-trial-passed",
        "appliance-tunnel-watch-vps",
    }  # fmt: skip


def test_every_choice_reaches_its_unit() -> None:
    chosen = own("gpu", EVERYTHING)
    assert {"appliance-engine-embed.service", "appliance-models-verify.service"} <= set(chosen)
    masks = [chosen[f"appliance-engine-agents.{number}.service"].value("NUMAMask") for number in (0, 1)]
    assert masks == ["0", "1"]


def test_an_engine_on_the_cpu_finds_lscpu() -> None:
    """vLLM on the CPU ends at its start without it."""
    path = own("gpu", EVERYTHING)["appliance-engine-embed.service"].environment["PATH"]
    assert re.search(r"-util-linux-[^/:]*/bin", path)


def exposure(file: Path) -> float:
    """Return the exposure level that ``systemd-analyze security`` computes."""
    argv = [checker.require("systemd-analyze"), "security", "--offline=true", "--no-pager", file]
    done = checker.run_process(argv)
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


@pytest.mark.parametrize(("host", "extra"), [("gpu", ()), ("gpu", (EVERYTHING,)), ("vps", (EVERYTHING_VPS,))])
def test_exposure_of_every_unit_of_ours(host: str, extra: tuple[str, ...], tmp_path: Path) -> None:
    write(rendered.host(host, *extra), tmp_path)
    for name in own(host, *extra):
        threshold = next((limit for start, limit in THRESHOLDS.items() if start in name), 2.0)
        reached = exposure(tmp_path / "units" / name)
        print(f"{name}: {reached} (at most {threshold})")
        assert reached <= threshold, name


def test_a_unit_without_a_sandbox_is_exposed(tmp_path: Path) -> None:
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(bare) > 9


def test_polkit_allows_the_gateway_to_manage_only_units_of_engines() -> None:
    """The expression of the rule matches the names of the rendered units."""
    host = rendered.host("gpu", "tests/nix/on_demand.nix")
    found = re.search(r"/(\^.+\$)/\.test", host.etc_text("polkit-1/rules.d/10-nixos.rules"))
    assert found
    allowed = {name for name in own("gpu", "tests/nix/on_demand.nix") if re.search(found[1], name)}
    assert allowed == {"appliance-engine-agents.0.service", "appliance-engine-agents.1.service"}
    for other in ("appliance-gateway.service", "x-appliance-engine-a.service", "appliance-engine-a.service.d", "a"):
        assert not re.search(found[1], other)


def test_the_smoke_test_has_its_programs_and_a_key_for_its_whole_time() -> None:
    """Without ``ip``, the doctor could not separate a silent line from an error of the generation."""
    host = rendered.host("gpu")
    unit = host.unit("appliance-smoke.service")
    for package in ("nftables", "wireguard-tools", "iproute2"):
        assert re.search(rf"-{package}-[^/:]*/bin", unit.environment["PATH"]), package
    lives = re.search(r"--expires-in (\d+)s ", host.text("appliance-smoke").text)
    assert lives is not None
    assert int(lives[1]) >= int(unit.value("TimeoutStartSec"))
