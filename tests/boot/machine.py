"""A machine under QEMU: power, its console, and a shell in it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
BOOT_S = 240.0
"""Seconds within which anything that is awaited comes, or the machine is lost; emulated, on a busy machine."""


class BootError(AssertionError):
    """The machine did not do what it had to."""


@dataclass
class VirtualMachine:
    """One guest with a disk and firmware variables of its own, which outlive its power."""

    folder: Path
    image: Path
    seed: int
    process: subprocess.Popen[bytes] | None = None
    shell: socket.socket | None = None
    greeted: bool = False
    seen: int = 0
    """Bytes of the console that earlier waits have passed."""
    evidence: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make disk and variables."""
        self.folder.mkdir(parents=True)
        disk = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(self.image)]
        subprocess.run([*disk, str(self.folder / "disk.qcow2")], check=True)
        shutil.copy(VARIABLES, self.folder / "variables.fd")
        self.console_file.touch()

    @property
    def console_file(self) -> Path:
        return self.folder / "console.log"

    def power_on(self) -> None:
        """Start it; what the console said before stays in its log."""
        assert self.process is None
        self._start()
        self.note("power on")

    def _start(self) -> None:
        drive = f"file={self.folder}/disk.qcow2,if=virtio,format=qcow2,cache=unsafe"
        argv = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"]
        # A reset ends the process and we start the next: emulated firmware has been seen to hang in a warm reset.
        argv += [
            "-no-reboot",
            "-m",
            "1024",
            "-nodefaults",
            "-display",
            "none",
            "-nic",
            "none",
            "-seed",
            str(self.seed),
        ]
        argv += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}"]
        argv += ["-drive", f"if=pflash,format=raw,unit=1,file={self.folder}/variables.fd", "-drive", drive]
        argv += ["-device", "i6300esb", "-action", "watchdog=reset", "-device", "virtio-rng-pci"]
        argv += ["-chardev", f"file,id=console,path={self.console_file},append=on", "-serial", "chardev:console"]
        argv += ["-chardev", f"socket,id=shell,path={self.folder}/shell,server=on,wait=off"]
        argv += ["-serial", "chardev:shell"]
        with (self.folder / "qemu.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _after_a_reset(self) -> None:
        """Let it boot again where it has reset itself, or the watchdog has."""
        if self.process is not None and self.process.poll() is not None:
            if self.process.returncode != 0:
                raise BootError(f"qemu ended: {(self.folder / 'qemu.log').read_text()[-1500:]}")
            self.note("reset")
            self._drop_shell()
            self._start()

    def power_cut(self) -> None:
        """Take the power away, in the middle of whatever it does."""
        self._drop_shell()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.note("power cut")

    def note(self, text: str) -> None:
        """A line of evidence."""
        self.evidence.append(text)
        with (self.folder / "evidence.log").open("a") as log:
            log.write(f"{text}\n")

    def wait_for(self, pattern: str, timeout_s: float = BOOT_S) -> re.Match[str]:
        """The next line of the console that ``pattern`` is found in, after those that earlier waits have passed."""
        began = time.monotonic()
        while True:
            text = self.console_file.read_bytes()[self.seen :].decode("latin-1")
            if match := re.search(pattern, text):
                self.seen += match.end()
                line = text[: match.end()].rpartition("\n")[2] + text[match.end() :].partition("\n")[0]
                self.note(f"{line.strip()}   [{time.monotonic() - began:.0f} s]")
                return match
            self._after_a_reset()
            if time.monotonic() > began + timeout_s:
                raise BootError(
                    f"{pattern!r} was not seen within {timeout_s:.0f} s; the console's end:\n{text[-4000:]}"
                )
            time.sleep(0.1)

    def run(self, command: str, timeout_s: float = BOOT_S) -> str:
        """What a shell command in the guest prints; it has to succeed."""
        code, output = self.try_run(command, timeout_s)
        assert code == 0, f"{command}: {code}: {output}"
        return output

    def try_run(self, command: str, timeout_s: float = BOOT_S) -> tuple[int, str]:
        """Exit code and output of a shell command in the guest."""
        # Both ends are marked: answers to earlier greetings may still be on the line.
        begin, end = f"BEGIN-{time.monotonic_ns()}", f"END-{time.monotonic_ns()}"
        shell = self._shell(timeout_s)
        shell.sendall(f"echo {begin}; {{ {command}\n}} </dev/null 2>&1; echo {end}:$?\n".encode())
        output = self._until(shell, rf"{end}:\d+\s", timeout_s).replace("\r", "").partition(f"{begin}\n")[2]
        text, _, code = output.rpartition(f"{end}:")
        return int(code.split()[0]), text

    def tell(self, command: str) -> None:
        """Begin a command whose end nobody will see, such as a reboot."""
        self.run(f"setsid sh -c '{command}' >/dev/console 2>&1 &")
        self.greeted = False

    def _shell(self, timeout_s: float) -> socket.socket:
        """The tester's shell, once it answers; after a reboot that is another one on the same line."""
        deadline = time.monotonic() + timeout_s
        while not (self.shell and self.greeted):
            if time.monotonic() > deadline:
                console = self.console_file.read_bytes()[-3000:].decode("latin-1")
                raise BootError(f"no shell answered within {timeout_s:.0f} s; the console's end:\n{console}")
            self._after_a_reset()
            if self.shell is None:
                self.shell = socket.socket(socket.AF_UNIX)
            try:
                if not self._connected():
                    self.shell.connect(str(self.folder / "shell"))
                # The first line ends whatever the last boot left half read. Quoted, so that a terminal that echoes
                # what it is given is not taken for a shell.
                hello = f"HELLO-{time.monotonic_ns()}"
                self.shell.sendall(f"\necho 'HELLO'{hello[5:]}\n".encode())
                self._until(self.shell, hello, 3)
                self.greeted = True
            except TimeoutError:
                continue
            except OSError:
                self._drop_shell()
        return self.shell

    def _connected(self) -> bool:
        try:
            return bool(self.shell and self.shell.getpeername())
        except OSError:
            return False

    def _until(self, shell: socket.socket, pattern: str, timeout_s: float) -> str:
        shell.settimeout(timeout_s)
        deadline, text = time.monotonic() + timeout_s, ""
        while not re.search(pattern, text):
            if time.monotonic() > deadline:
                raise TimeoutError(text)
            piece = shell.recv(65536)
            if not piece:
                raise ConnectionResetError(text)
            text += piece.decode(errors="replace")
        return text

    def _drop_shell(self) -> None:
        if self.shell is not None:
            self.shell.close()
            self.shell, self.greeted = None, False
