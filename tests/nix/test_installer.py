"""The script of the installer, on a simulated machine: stand-ins for /sys, /proc, lsblk and disko-install."""

from __future__ import annotations

import fcntl
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.nix import checker

SCRIPT = checker.ROOT / "modules/installer/install.sh"
SERIAL = "S7KGNJ0X123456"

LSBLK = """#!/bin/bash
case "$*" in
  *"-dno TYPE"*) echo disk ;;
  *"-bdno SIZE"*) echo "$FAKE_SIZE" ;;
  *"-nro MOUNTPOINTS"*) echo "$FAKE_MOUNT" ;;
  *"-nrpo LABEL,NAME"*) echo "$FAKE_LABEL /dev/nvme0n1p2" ;;
  *"-nrpo PARTLABEL,PKNAME"*) printf 'disk-main-root /dev/nvme0n1\n%s\n' "$FAKE_OTHER" ;;
  *"-dno SERIAL"*) echo "$FAKE_SERIAL" ;;
  *) echo "nvme0n1 4T $FAKE_SERIAL" ;;
esac
"""


@dataclass
class InstallMachine:
    """A simulated machine, and the log of its erased disks."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def install(self, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "FAKE_SIZE": str(4 * 10**12),
            "FAKE_MOUNT": "",
            "FAKE_LABEL": "appliance-new",
            "FAKE_OTHER": "",
            "FAKE_COPY": "0",
            "FAKE_LAST": "<not available>",
            "FAKE_SERIAL": SERIAL,
            "FAKE_USER": "0",
        }
        environment |= {
            "APPLIANCE_ROOT": str(self.root),
            "PATH": f"{self.root}/bin:{os.environ['PATH']}",
            **self.environment,
        }
        return subprocess.run(
            ["bash", SCRIPT, "--disk", "/dev/nvme0n1", *arguments],
            env=environment,
            input=typed,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def erased(self) -> str:
        log = self.root / "disko.log"
        return log.read_text().strip() if log.exists() else ""

    @property
    def label(self) -> str:
        log = self.root / "label.log"
        return log.read_text().strip() if log.exists() else ""

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> InstallMachine:
    made = InstallMachine(tmp_path)
    (tmp_path / "sys/firmware/efi").mkdir(parents=True)
    made.write("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    made.write("sys/bus/pci/devices/0000:01:00.0/device", "0x2bb1\n")
    made.write("proc/meminfo", "MemTotal:       131072000 kB\n")
    made.write("etc/appliance-installer/limits", "host=gpu\nminimum_ram_gib=60\nminimum_disk_gib=400\n")
    made.write("etc/appliance-installer/allowed_signers", "")
    made.write("bin/lsblk", LSBLK)
    made.write("bin/disko-install", f'#!/bin/bash\necho "$@" >> {tmp_path}/disko.log\nexit "$FAKE_COPY"\n')
    made.write("bin/id", '#!/bin/bash\necho "$FAKE_USER"\n')
    made.write("bin/dumpe2fs", '#!/bin/bash\necho "Last mounted on:          $FAKE_LAST"\n')
    made.write("bin/e2label", f'#!/bin/bash\necho "$@" > {tmp_path}/label.log\n')
    (tmp_path / "run").mkdir()
    for tool in ("lsblk", "disko-install", "id", "dumpe2fs", "e2label"):
        (tmp_path / "bin" / tool).chmod(0o755)
    return made


def test_the_typed_serial_number_installs(machine: InstallMachine) -> None:
    done = machine.install(typed=f"{SERIAL}\n")
    assert done.returncode == 0, done.stderr
    assert "would be erased:" in done.stdout
    assert machine.erased.endswith(
        "/etc/appliance-installer/flake#gpu --disk main /dev/nvme0n1 --write-efi-boot-entries"
    )
    assert machine.label == "/dev/nvme0n1p2 appliance-root"


@pytest.mark.parametrize("typed", ["", "\n", "yes\n", "S7KGNJ0X12345\n"])
def test_any_other_input_erases_nothing(machine: InstallMachine, typed: str) -> None:
    done = machine.install(typed=typed)
    assert done.returncode == 5
    assert "is not the serial number of /dev/nvme0n1; nothing was changed" in done.stderr
    assert machine.erased == ""


def test_another_user_than_root_is_refused_before_the_serial_number(machine: InstallMachine) -> None:
    """The ISO logs in as nixos, and disko-install would refuse only after the confirmation."""
    machine.environment["FAKE_USER"] = "1000"
    done = machine.install(typed=f"{SERIAL}\n")
    assert done.returncode == 1
    assert done.stderr == "appliance-install: this needs root; run sudo appliance-install\n"
    assert done.stdout == machine.erased == ""


def test_check_erases_nothing(machine: InstallMachine) -> None:
    assert machine.install("--check", typed=f"{SERIAL}\n").returncode == 0
    assert machine.erased == ""


@pytest.mark.parametrize(
    ("path", "text", "error"),
    [
        ("sys/bus/pci/devices/0000:01:00.0/device", "0x2684\n", "no Blackwell card on the PCI bus"),
        ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x1002\n", "no Blackwell card on the PCI bus"),
        ("proc/meminfo", "MemTotal:       16384000 kB\n", "15 GiB of RAM, 60 are required"),
    ],
)
def test_unsupported_hardware_stops_before_the_prompt(
    machine: InstallMachine, path: str, text: str, error: str
) -> None:
    machine.write(path, text)
    done = machine.install(typed=f"{SERIAL}\n")
    assert done.returncode == 1
    assert error in done.stderr
    assert machine.erased == ""


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("FAKE_SIZE", str(10**11), "/dev/nvme0n1 has 93 GiB, 400 are required"),
        ("FAKE_MOUNT", "/iso", "/dev/nvme0n1 is mounted"),
        ("FAKE_MOUNT", "/mnt/disko-install-root\n/iso", "/dev/nvme0n1 is mounted"),
        ("FAKE_MOUNT", r"/mnt/disko-install-root\x0a/iso", "/dev/nvme0n1 is mounted"),
        ("FAKE_MOUNT", "/mnt/disko-install-root2", "/dev/nvme0n1 is mounted"),
        ("FAKE_OTHER", "disk-main-root /dev/sda", "/dev/sda has partitions of an appliance as well: disconnect it"),
        ("FAKE_OTHER", "disk-main-ESP /dev/sda", "/dev/sda has partitions of an appliance as well: disconnect it"),
        ("FAKE_SERIAL", "", "reports no serial number"),
    ],
)
def test_an_unsuitable_disk_stops(machine: InstallMachine, name: str, value: str, error: str) -> None:
    machine.environment[name] = value
    done = machine.install(typed="\n")
    assert done.returncode == 1
    assert error in done.stderr
    assert machine.erased == ""


def test_a_start_without_uefi_stops(machine: InstallMachine) -> None:
    (machine.root / "sys/firmware/efi").rmdir()
    done = machine.install(typed=f"{SERIAL}\n")
    assert "not started by UEFI" in done.stderr
    assert machine.erased == ""


def test_a_finished_install_is_not_erased_again(machine: InstallMachine) -> None:
    machine.environment["FAKE_LABEL"] = "appliance-root"
    done = machine.install(typed=f"{SERIAL}\n")
    assert done.returncode == 3
    assert "already contains an appliance; nothing was changed" in done.stderr
    assert machine.erased == ""
    assert machine.install("--reinstall", typed="yes\n").returncode == 5
    assert machine.erased == ""
    assert machine.install("--reinstall", typed=f"{SERIAL}\n").returncode == 0
    assert machine.erased


def test_a_failed_install_is_reported(machine: InstallMachine) -> None:
    machine.environment["FAKE_COPY"] = "1"
    done = machine.install(typed=f"{SERIAL}\n")
    assert done.returncode == 7
    assert "the install did not finish; fix the cause above" in done.stderr
    assert "Installed." not in done.stdout
    assert machine.label == ""


@pytest.mark.parametrize("last", ["<not available>", "/mnt/disko-install-root"])
def test_an_interrupted_install_begins_again(machine: InstallMachine, last: str) -> None:
    machine.environment |= {
        "FAKE_LAST": last,
        "FAKE_MOUNT": r"/mnt/disko-install-root\x0a/mnt/disko-install-root/boot",
    }
    done = machine.install(typed=f"{SERIAL}\n")
    assert done.returncode == 0, done.stderr
    assert "contains an install that did not finish; it begins again" in done.stdout
    assert machine.erased


def test_a_started_system_is_finished_whatever_its_label(machine: InstallMachine) -> None:
    """A power cut between the last step of the install and the label."""
    machine.environment["FAKE_LAST"] = "/sysroot"
    assert machine.install(typed=f"{SERIAL}\n").returncode == 3
    assert machine.erased == ""


def test_a_second_installer_does_not_start(machine: InstallMachine) -> None:
    with (machine.root / "run/appliance-install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = machine.install(typed=f"{SERIAL}\n")
    assert done.returncode == 6
    assert "another appliance-install runs on this machine" in done.stderr
    assert done.stdout == machine.erased == ""


def sign(machine: InstallMachine, text: str, *, trusted: bool = True) -> Path:
    keygen = checker.require("ssh-keygen")
    key = machine.root / "key"
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    if trusted:
        public = (machine.root / "key.pub").read_text()
        machine.write(
            "etc/appliance-installer/allowed_signers", f'installer namespaces="appliance-install" {public}'
        )
    answers = machine.root / "answers"
    answers.write_text(text)
    subprocess.run(
        [keygen, "-Y", "sign", "-n", "appliance-install", "-f", key, answers], check=True, capture_output=True
    )
    return answers


def test_a_signed_answer_file_installs(machine: InstallMachine) -> None:
    answers = sign(machine, f"serial={SERIAL}\n")
    done = machine.install("--answers", str(answers))
    assert done.returncode == 0, done.stderr
    assert machine.erased


def test_an_answer_file_with_an_unknown_key_is_rejected(machine: InstallMachine) -> None:
    answers = sign(machine, f"serial={SERIAL}\n", trusted=False)
    done = machine.install("--answers", str(answers))
    assert done.returncode == 4
    assert "is not signed by one of appliance.installer.answerKeys" in done.stderr
    assert machine.erased == ""


def test_an_answer_file_changed_after_signing_is_rejected(machine: InstallMachine) -> None:
    answers = sign(machine, "serial=OTHER\n")
    answers.write_text(f"serial={SERIAL}\n")
    assert machine.install("--answers", str(answers)).returncode == 4
    assert machine.erased == ""


def test_an_answer_file_for_another_disk_is_rejected(machine: InstallMachine) -> None:
    answers = sign(machine, "serial=OTHER\n")
    assert machine.install("--answers", str(answers)).returncode == 5
    assert machine.erased == ""
