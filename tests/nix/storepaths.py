"""Store paths of rendered texts, mapped to the programs of Debian. A path without a row stops the test.

The texts stay as NixOS renders them, except that the store is in another folder. Each text is written there. Each
program there is a link to Debian's, or a script if Debian's needs other arguments.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from tests.nix import checker
from tests.nix.nginx_conf import for_debian
from tests.nix.rendered import RenderedHost, StoreText
from tests.nix.unitfile import UnitFile

STORE_PATH = re.compile(
    r"/nix/store/(?P<entry>[0-9a-z]{32}-(?P<name>[0-9A-Za-z+._?=-]+))(?P<rest>(?:/[0-9A-Za-z+._?=@%-]+)*)"
)
SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "acl": ("setfacl",),
    "acpid": ("acpid",),
    "alertmanager": ("alertmanager",),
    "bash": ("bash",),
    "bash-interactive": ("bash",),
    "coreutils-full": ("cat", "dd", "dirname", "mkdir", "mktemp", "realpath", "rm"),
    "coreutils": (
        "base64", "cat", "chmod", "chown", "cp", "cut", "date", "dirname", "head", "install", "kill", "mkdir", "mv",
        "rm", "seq", "sleep", "sync", "touch", "true",
    ),
    "dhcpcd": ("dhcpcd",),
    "diffutils": ("cmp",),
    "disko-install": ("disko-install",),
    "blackbox_exporter": ("blackbox_exporter",),
    "dosfstools": ("mkfs.vfat",),
    "e2fsprogs": ("dumpe2fs", "e2label", "mkfs.ext4"),
    "envsubst": ("envsubst",),
    "findutils": ("find",),
    "flock": ("flock",),
    "gawk": ("awk",),
    "gcc-wrapper": ("gcc", "g++"),
    "gnugrep": ("grep",),
    "gnupg": (),
    "gnused": ("sed",),
    "gptfdisk": ("sgdisk",),
    "grafana": ("grafana",),
    "hostname": (),
    "iproute2": ("ip",),
    "iputils": ("ping",),
    "jq": ("jq",),
    "kexec-tools": (),
    "kmod": ("modprobe",),
    "lego": ("lego",),
    "libcap": ("setcap",),
    "llm-appliance": ("appliance",),
    "logrotate": ("logrotate",),
    # For disks with volumes of LVM, ZFS or RAID.
    "lvm2": (),
    "make-initrd-ng": ("make-initrd-ng",),
    "mdadm": (),
    "minica": ("minica",),
    "mtools": (),
    "n8n": ("n8n", "n8n-task-runner", "n8n-task-runner-python"),
    "n8n-task-runner-launcher": ("n8n-task-runner-launcher",),
    "nftables": ("nft",),
    "nginx": ("nginx",),
    "ninja": ("ninja",),
    "nix": ("nix-collect-garbage", "nix-env", "nix-store"),
    "node_exporter": ("node_exporter",),
    "nsncd": ("nsncd",),
    "nut": ("upsd", "upsdrvctl", "upsmon", "upssched"),
    "nvidia-persistenced": ("nvidia-persistenced",),
    "nvidia-x11": ("nvidia-smi",),
    "openresolv": ("resolvconf",),
    "openssh": ("ssh-keygen", "sshd"),
    "openssl": ("openssl",),
    "parted": ("partprobe",),
    "prometheus": ("prometheus",),
    "rclone": ("rclone",),
    # It writes the passwords of NUT. Debian has no program with that purpose; booted machines have one of ours.
    "replace-secret": ("replace-secret",),
    "restic": ("restic",),
    "security-wrapper-*": ("security-wrapper",),
    "searxng": ("searxng-run",),
    "shadow": ("login",),
    "systemd-minimal": ("udevadm",),
    "systemd-boot": ("systemd-boot",),
    "systemd": ("bootctl", "hostnamectl", "journalctl", "loginctl", "systemctl", "systemd-run"),
    "util-linux": ("agetty", "blkid", "findmnt", "flock", "lsblk", "lscpu", "mount", "rtcwake", "umount", "wipefs"),
    "whisper-cpp": ("whisper-server",),
    "wireguard-tools": ("wg",),
    "zfs-user": (),
}  # fmt: skip
"""Programs by package of nixpkgs. Debian has each by the same name; some packages are only in a PATH."""

FILES: Mapping[str, str] = {
    "acpi-events": "/etc/acpi/events",
    # Bound below /run for the engines on cards; no machine of the tests has any.
    "engine-cuda": "/usr/local",
    "engine-cuda/lib/python3.13/site-packages/nvidia/cu13": "/usr/local/cuda",
    # A link to a script that starts agetty.
    "getty": "/usr/sbin/agetty",
    "glibc-locales/lib/locale/locale-archive": "/usr/lib/locale/locale-archive",
    # Folders, which NixOS links together.
    "grafana-provisioning": "/etc/grafana/provisioning",
    "grafana/share/grafana/conf": "/usr/share/grafana/conf",
    "grafana/share/grafana/public": "/usr/share/grafana/public",
    "grafana/share/grafana/tools": "/usr/share/grafana/tools",
    "mailcap/etc/nginx/mime.types": "/etc/nginx/mime.types",
    "nginx/conf/fastcgi.conf": "/etc/nginx/fastcgi.conf",
    "nginx/conf/uwsgi_params": "/etc/nginx/uwsgi_params",
    "polkit/lib/polkit-1/polkitd": "/usr/lib/polkit-1/polkitd",
    "nss-cacert/etc/ssl/certs/ca-bundle.crt": "/etc/ssl/certs/ca-certificates.crt",
    "systemd/lib": "/usr/lib",
    "systemd/lib/systemd/systemd-shutdown": "/usr/lib/systemd/systemd-shutdown",
    # In systemd since version 257.
    "systemd/lib/systemd/systemd-ssh-issue": "/bin/true",
    "tzdata/share/zoneinfo": "/usr/share/zoneinfo",
}
"""Files by package and path, and the file of Debian with the same purpose."""

ADAPTED: Mapping[str, Callable[[str], str]] = {"nginx.conf": for_debian}
"""Texts that Debian's older programs do not read as they are."""

APPLIANCE = f'#!/bin/sh\nPYTHONPATH={checker.ROOT} exec {sys.executable} -m appliance "$@"\n'
"""Our own program: the package of this repository."""


class UnknownStorePathError(Exception):
    """A store path without a row in the tables of this module."""

    def __init__(self, path: str, where: str) -> None:
        super().__init__(
            f"{where} names {path}, which has no row in tests/nix/storepaths.py: add the program of Debian with "
            "the same purpose to PROGRAMS, or the file to FILES"
        )


def package(name: str) -> str:
    """Return the name of a package without its version, which begins with a dash before a digit, as in Nix."""
    return re.split(r"-(?=\d)", name, maxsplit=1)[0]


def installed(program: str) -> str | None:
    """Return the path of a program of this machine."""
    return shutil.which(program, path=SEARCHED)


@dataclass
class StoreFolder:
    """A folder with the texts and programs that the units of a host name."""

    host: RenderedHost
    folder: Path
    prefix: str = ""
    """Path of the folder for the units, if it differs: the folder of a disk that is built."""
    scripts: Mapping[str, str] = field(default_factory=dict)
    """Scripts in place of programs of Debian, by name."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """Further paths, and their places on this machine."""
    found: Callable[[str], str | None] = installed
    """Returns the path of a program of Debian, ``None`` if it is not installed."""
    adapted: Mapping[str, Callable[[str], str]] = field(default_factory=lambda: ADAPTED)
    """Changes of texts, by name, for the programs that read them."""
    _placed: set[Path] = field(default_factory=set)

    def unit_text(self, unit: UnitFile) -> str:
        """Return the text of a unit with the paths of this folder, without the lines that only a switch reads."""
        lines = [line for line in unit.text.splitlines() if not re.match(r"X-(Restart|Reload)-Triggers=", line)]
        return self.relocate("\n".join([*lines, ""]), unit.name)

    def write(self, name: str) -> Path:
        """Write the text with this name of a derivation and all that it names; return its file."""
        path, text = next((path, text) for path, text in self.host.texts.items() if text is self.host.text(name))
        return self._write(self.folder / Path(path).name, text)

    def relocate(self, text: str, where: str) -> str:
        """Return ``text`` with the paths of this folder, which gets all that ``text`` names.

        Raises :class:`UnknownStorePathError` for a path without a row; ``where`` names the text.
        """
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        return STORE_PATH.sub(lambda found: self._place(found, where), text)

    def _place(self, found: re.Match[str], where: str) -> str:
        root, rest = f"/nix/store/{found['entry']}", found["rest"]
        target = self.folder / found["entry"]
        relocated = f"{self.prefix or self.folder}/{found['entry']}{rest}"
        if root in self.host.texts:
            self._write(target, self.host.texts[root])
            return relocated
        name = package(found["name"])
        if file := FILES.get(f"{name}{rest}"):
            return file
        folder, _, program = rest.removeprefix("/").partition("/")
        programs = next((row for pattern, row in PROGRAMS.items() if fnmatchcase(name, pattern)), None)
        if programs is None or folder not in {"bin", "sbin"} or (program and program not in programs):
            raise UnknownStorePathError(found[0], where)
        self._link(target / folder, programs)
        return relocated

    def _write(self, target: Path, text: StoreText) -> Path:
        file = Path(f"{target}{text.destination}")
        if file in self._placed:
            return file
        self._placed.add(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        adapt = self.adapted.get(text.name)
        file.write_text(self.relocate(adapt(text.text) if adapt else text.text, text.name))
        file.chmod(0o755 if text.executable else 0o644)
        return file

    def _link(self, folder: Path, programs: tuple[str, ...]) -> None:
        """Make the programs of a package. A program that is not installed is absent, so that its caller fails."""
        if folder in self._placed:
            return
        self._placed.add(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for program in programs:
            link = folder / program
            link.unlink(missing_ok=True)
            if program in self.scripts or program == "appliance":
                link.write_text(self.scripts.get(program, APPLIANCE))
                link.chmod(0o755)
            elif there := self.found(program):
                link.symlink_to(there)
