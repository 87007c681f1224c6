"""The installer on a virtual disk: `make test-install`, as root.

Real are the script of the ISO, disko-install, disko's script for the disk, lsblk, udev, the kernel and the drive.
Substitutes are the programs of Nix, which put a small tree in place of the system, and the hardware of the checks:
UEFI, card and memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.install import evaluated
from tests.install.guest import Drive, InstallGuest
from tests.nix import checker, rendered

SERIAL = "S7KGNJ0X123456"
DISK = "/dev/nvme0n1"
OTHER = "/dev/nvme1n1"
LONG_S = 1200.0
"""Timeout of an install in seconds, on an emulated CPU of a busy host."""
pytestmark = pytest.mark.timeout(3600)
TOOLS = ("qemu-system-x86_64", "busybox", "cpio", "sgdisk", "partprobe", "mkfs.vfat", "mkfs.ext4", "jq", "apt-get")


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    for tool in TOOLS:
        checker.require(tool)
    rendered.require()
    return evaluated.evaluate()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> Iterator[InstallGuest]:
    folder = tmp_path_factory.mktemp("install")
    drives = [Drive(folder / "first.raw", SERIAL), Drive(folder / "second.raw", "OTHER9999")]
    made = InstallGuest(folder=folder / "guest", image=folder, seed=1, drives=drives)
    evaluated.place(made.layer, values)
    made.boot()
    yield made
    made.power_cut()
    for drive in drives:
        drive.file.unlink()


@pytest.fixture
def guest(machine: InstallGuest) -> InstallGuest:
    """Erase both drives."""
    machine.run(
        f"! mountpoint -q {evaluated.MOUNT_POINT} || umount -R {evaluated.MOUNT_POINT}\n"
        f"rm -rf /run/pause /run/fail; mkdir /run/pause /run/fail\n"
        f"for disk in {DISK} {OTHER}; do wipefs --quiet --all --force ${{disk}}p* $disk; sgdisk --zap-all $disk; "
        "partprobe $disk; done; udevadm settle",
        LONG_S,
    )
    return machine


def install(guest: InstallGuest, *arguments: str, typed: str = SERIAL, user: str = "root") -> tuple[int, str]:
    """Run the installer to its end; return its exit code and its output."""
    words = " ".join(["appliance-install", "--disk", DISK, *arguments])
    change = "" if user == "root" else f"setpriv --reuid={user} --clear-groups "
    return guest.try_run(f"echo '{typed}' | APPLIANCE_ROOT=/machine {change}{words}", LONG_S)


def begin(guest: InstallGuest, pause: str) -> None:
    """Start an install, and wait until it has reached the program ``pause``."""
    command = f"echo {SERIAL} | APPLIANCE_ROOT=/machine appliance-install --disk {DISK}"
    guest.run(
        f"rm -f /run/pause/*; touch /run/pause/{pause}\n"
        f"setsid --fork sh -c 'echo $$ > /run/install; {command} > /run/log 2>&1'"
    )
    guest.wait_for(f"PAUSED {pause}", LONG_S)


def kill(guest: InstallGuest, signal: str = "KILL") -> None:
    """End an install that :func:`begin` started: all its programs at once."""
    guest.run(
        f"kill -s {signal} -- -$(cat /run/install) && rm -f /run/pause/* && "
        "while kill -s 0 -- -$(cat /run/install) 2>/dev/null; do sleep 0.1; done"
    )


def labels(guest: InstallGuest) -> dict[str, Any]:
    """Return the partitions of the disk as udev and lsblk see them, by name."""
    shown = json.loads(guest.run(f"udevadm settle; lsblk --json --bytes --output-all {DISK}", LONG_S))
    return {part["name"]: part for part in shown["blockdevices"][0].get("children", [])}


def untouched(guest: InstallGuest) -> bool:
    """Return whether no partition was made."""
    return labels(guest) == {}


def test_the_installed_disk_is_as_the_system_mounts_it(guest: InstallGuest, values: dict[str, Any]) -> None:
    code, output = install(guest)
    assert code == 0, output
    assert "Installed. Remove the medium" in output
    boot, root = labels(guest).values()
    assert (boot["partlabel"], boot["fstype"], boot["size"]) == ("disk-main-ESP", "vfat", 2 * 2**30)
    assert boot["parttypename"] == "EFI System"
    assert (root["partlabel"], root["fstype"], root["label"]) == ("disk-main-root", "ext4", "appliance-root")
    assert root["size"] > 417 * 2**30
    assert root["mountpoint"] is boot["mountpoint"] is None
    for path in ("/", "/boot"):
        system = values["file_systems"][path]
        options = ",".join(word for word in system["options"] if not word.startswith("x-initrd"))
        guest.run(
            f"mkdir -p /mnt/new{path}; mount -t {system['fsType']} -o {options} {system['device']} /mnt/new{path}"
        )
    for name in evaluated.CLOSURE:
        assert guest.run(f"cat /mnt/new{evaluated.system_path(name)}/name") == f"{name}\n"
    assert (
        guest.run("readlink /mnt/new/nix/var/nix/profiles/system")
        == f"{evaluated.system_path(evaluated.CLOSURE[0])}\n"
    )
    assert guest.run("stat -c %a /mnt/new/boot; cat /mnt/new/boot/loader/loader.conf").startswith("700\ndefault")
    mounted = install(guest)
    assert mounted[0] == 1
    assert f"{DISK} is mounted, perhaps as the medium" in mounted[1]
    guest.run("umount -R /mnt/new")
    for arguments, typed, expected, message in (
        ([], SERIAL, 3, "already contains an appliance; nothing was changed"),
        (["--reinstall"], "OTHER9999", 5, "is not the serial number"),
    ):
        code, output = install(guest, *arguments, typed=typed)
        assert code == expected
        assert message in output
    assert [part["uuid"] for part in labels(guest).values()] == [boot["uuid"], root["uuid"]]


def test_an_interrupted_install_begins_again(guest: InstallGuest) -> None:
    begin(guest, "mkfs.vfat")
    kill(guest)
    assert [part["fstype"] for part in labels(guest).values()] == [None, None]
    begin(guest, "mkfs.ext4")
    kill(guest, "INT")
    assert [part["fstype"] for part in labels(guest).values()] == ["vfat", None]
    begin(guest, "xcp")
    # A killed install leaves its mounts.
    kill(guest)
    assert guest.run(f"findmnt -no PARTLABEL {evaluated.MOUNT_POINT}") == "disk-main-root\n"
    begin(guest, "nixos-install")
    code, output = install(guest)
    assert code == 6
    assert "another appliance-install runs on this machine" in output
    guest.run("sync")
    guest.power_cut()
    guest.boot()
    guest.run("mkdir /run/pause /run/fail")
    assert labels(guest)["nvme0n1p2"]["label"] == "appliance-new"
    code, output = install(guest)
    assert code == 0, output
    assert f"{DISK} contains an install that did not finish; it begins again." in output
    assert labels(guest)["nvme0n1p2"]["label"] == "appliance-root"


def test_a_failed_copy_is_a_failed_install(guest: InstallGuest) -> None:
    guest.run("touch /run/fail/xcp")
    code, output = install(guest)
    assert code == 7, output
    assert "the install did not finish" in output
    assert "Installed." not in output
    root = labels(guest)["nvme0n1p2"]
    assert (root["label"], root["mountpoint"]) == ("appliance-new", None)


def test_a_started_system_is_finished_whatever_its_label(guest: InstallGuest) -> None:
    guest.run(
        f"sgdisk --new=1:0:+1G --change-name=1:disk-main-root {DISK}; partprobe {DISK}; udevadm settle\n"
        f"mkfs.ext4 -q -L appliance-new {DISK}p1; mkdir -p /mnt/sysroot\n"
        f"mount {DISK}p1 /mnt/sysroot; touch /mnt/sysroot/file; umount /mnt/sysroot; udevadm settle",
        LONG_S,
    )
    code, output = install(guest)
    assert code == 3
    assert "already contains an appliance; nothing was changed" in output


def test_the_same_names_on_another_disk_stop_the_install(guest: InstallGuest) -> None:
    """The links of udev by name lead to either disk."""
    guest.run(
        f"sgdisk --new=1:0:+1G --change-name=1:disk-main-root {OTHER}; partprobe {OTHER}; udevadm settle", LONG_S
    )
    code, output = install(guest)
    assert code == 1
    assert f"{OTHER} has partitions of an appliance as well: disconnect it" in output
    assert untouched(guest)


def test_another_user_is_refused_before_the_serial_number(guest: InstallGuest) -> None:
    code, output = install(guest, user="65534")
    assert (code, output) == (1, "appliance-install: this needs root; run sudo appliance-install\n")
    assert untouched(guest)


@pytest.mark.parametrize("typed", ["", "yes", "OTHER9999"])
def test_another_serial_number_erases_nothing(guest: InstallGuest, typed: str) -> None:
    code, output = install(guest, typed=typed)
    assert code == 5
    assert f"is not the serial number of {DISK}" in output
    assert untouched(guest)


def test_a_partition_is_not_a_disk(guest: InstallGuest) -> None:
    guest.run(f"sgdisk --new=1:0:+1G {DISK}; partprobe {DISK}; udevadm settle", LONG_S)
    code, output = install(guest, "--disk", f"{DISK}p1")
    assert code == 1
    assert f"{DISK}p1 is not a whole disk" in output


def test_the_swap_of_a_running_system_is_in_use(guest: InstallGuest) -> None:
    guest.run(f"mkswap {DISK}; swapon {DISK}; udevadm settle", LONG_S)
    code, output = install(guest)
    guest.run(f"swapoff {DISK}")
    assert code == 1
    assert f"{DISK} is mounted" in output
