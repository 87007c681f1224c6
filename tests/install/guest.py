"""A machine on which the installer runs: Debian's kernel under QEMU, with the programs of this machine.

Its file system is this machine's, read-only, below a layer in memory, like the one of an ISO. Its kernel sees NVMe
drives with serial numbers, and its udev names them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.boot.machine import BootError, VirtualMachine
from tests.install.parts import GUEST, parts


@dataclass(frozen=True)
class Drive:
    """An NVMe drive; the file is sparse."""

    file: Path
    serial: str
    gib: int = 420


@dataclass
class InstallGuest(VirtualMachine):
    """A guest with the drives ``/dev/nvme0n1``, ``/dev/nvme1n1``, … and the files of :attr:`layer` in its root."""

    drives: Sequence[Drive] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Create the drives, and the layers of the root."""
        self.folder.mkdir(parents=True)
        self.layer.mkdir(parents=True)
        self._parts = parts()
        shutil.copytree(self._parts / "udev", self.folder / "layers" / "udev", symlinks=True)
        shutil.copy(GUEST / "second-stage", self.layer)
        for drive in self.drives:
            with drive.file.open("ab") as file:
                file.truncate(drive.gib * 2**30)
        self.console_file.touch()

    @property
    def layer(self) -> Path:
        """Folder of the files that the test adds to the root of the guest."""
        return self.folder / "layers" / "test"

    def command(self) -> list[str]:
        """Return the command of QEMU."""
        argv = [
            "qemu-system-x86_64",
            "-machine",
            "pc",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "qemu64",
            "-m",
            "1024",
        ]
        argv += ["-nodefaults", "-display", "none", "-nic", "none", "-no-reboot", "-device", "virtio-rng-pci"]
        argv += ["-kernel", str(self._parts / "kernel"), "-initrd", str(self._parts / "first-stage")]
        # A busy host delivers too few timer interrupts for the kernel's check of the timer.
        argv += ["-append", "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off"]
        for tag, folder in {"host": Path("/"), "layers": self.folder / "layers"}.items():
            share = f"local,path={folder},mount_tag={tag},security_model=none,readonly=on,multidevs=remap"
            argv += ["-virtfs", share]
        for number, drive in enumerate(self.drives):
            file = f"file={drive.file},if=none,id=drive{number},format=raw,cache=unsafe,discard=unmap"
            argv += ["-drive", file, "-device", f"nvme,serial={drive.serial},drive=drive{number}"]
        return [*argv, *self.lines()]

    def boot(self) -> None:
        """Start the guest, and wait until its udev has named the drives."""
        self.power_on()
        if self.wait_for("GUEST is up|GUEST failed")[0] != "GUEST is up":
            raise BootError(f"the guest has no root: {self.console_file.read_text(errors='replace')[-2000:]}")
