"""A virtual machine under QEMU: power, console, and a shell in it."""

from __future__ import annotations

import json
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
"""Timeout of each wait in seconds, for an emulated machine on a busy host."""


class BootError(AssertionError):
    """The machine did not reach an expected state."""


@dataclass
class VirtualMachine:
    """One guest with its own disk and firmware variables, which a power cut does not change."""

    folder: Path
    image: Path
    seed: int
    process: subprocess.Popen[bytes] | None = None
    events: socket.socket | None = None
    """QEMU's own line of events."""
    shell: socket.socket | None = None
    has_shell: bool = False
    seen: int = 0
    """Bytes of the console that earlier waits have consumed."""
    evidence: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Create the disk and the variables."""
        self.folder.mkdir(parents=True)
        disk = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(self.image)]
        subprocess.run([*disk, str(self.folder / "disk.qcow2")], check=True)
        shutil.copy(VARIABLES, self.folder / "variables.fd")
        self.console_file.touch()

    @property
    def console_file(self) -> Path:
        return self.folder / "console.log"

    def power_on(self) -> None:
        """Start the machine; the log of the console is continued."""
        assert self.process is None
        self._start()
        self.note("power on")

    def command(self) -> list[str]:
        """Return the command of QEMU."""
        drive = f"file={self.folder}/disk.qcow2,if=virtio,format=qcow2,cache=unsafe"
        argv = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"]
        # A reset ends the process and the test starts the next: emulated firmware sometimes hangs in a warm reset.
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
        argv += ["-qmp", f"unix:{self.folder}/events,server=on,wait=off"]
        return [*argv, *self.lines()]

    def lines(self) -> list[str]:
        """Return the arguments of QEMU for the two serial lines: console and shell."""
        argv = ["-chardev", f"file,id=console,path={self.console_file},append=on", "-serial", "chardev:console"]
        argv += ["-chardev", f"socket,id=shell,path={self.folder}/shell,server=on,wait=off"]
        return [*argv, "-serial", "chardev:shell"]

    def _start(self) -> None:
        with (self.folder / "qemu.log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        self.events = socket.socket(socket.AF_UNIX)
        while self.process.poll() is None:
            try:
                self.events.connect(str(self.folder / "events"))
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise BootError("qemu has no line of events") from None
                time.sleep(0.05)
            else:
                self.events.sendall(b'{"execute": "qmp_capabilities"}\n')
                return

    def _reason_of_end(self) -> str:
        """Return why QEMU ended: ``guest-shutdown``, ``guest-reset``, ``watchdog`` for a reset by the watchdog."""
        assert self.events is not None
        text = b""
        with self.events:
            while piece := self.events.recv(65536):
                text += piece
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
        if any(one.get("event") == "WATCHDOG" for one in found):
            return "watchdog"
        return next((str(one["data"]["reason"]) for one in found if one.get("event") == "SHUTDOWN"), "unknown")

    def wait_for_end(self, timeout_s: float = BOOT_S) -> str:
        """Wait until the machine ends or resets itself; return the reason, and leave it off."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            console = self.console_file.read_bytes()[-3000:].decode("latin-1")
            raise BootError(f"it did not end within {timeout_s:.0f} s; end of the console:\n{console}") from None
        reason = self._ended(code)
        self.process = None
        return reason

    def _ended(self, code: int) -> str:
        if code != 0:
            raise BootError(f"qemu ended: {(self.folder / 'qemu.log').read_text()[-1500:]}")
        self._drop_shell()
        reason = self._reason_of_end()
        self.note(f"ended: {reason}")
        return reason

    def _after_a_reset(self) -> None:
        """Boot the machine again if it or the watchdog has reset it."""
        if self.process is not None and self.process.poll() is not None:
            if (reason := self._ended(self.process.returncode)) not in {"guest-reset", "watchdog"}:
                raise BootError(f"the machine did not reset but ended: {reason}")
            self._start()

    def power_cut(self) -> None:
        """Cut the power at any moment."""
        self._drop_shell()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            if self.events is not None:
                self.events.close()
            self.note("power cut")

    def note(self, text: str) -> None:
        """Record a line of evidence."""
        self.evidence.append(text)
        with (self.folder / "evidence.log").open("a") as log:
            log.write(f"{text}\n")

    def wait_for(self, pattern: str, timeout_s: float = BOOT_S) -> re.Match[str]:
        """Return the next match of ``pattern`` on the console, after those of earlier waits."""
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
                    f"{pattern!r} was not seen within {timeout_s:.0f} s; end of the console:\n{text[-4000:]}"
                )
            time.sleep(0.1)

    def run(self, command: str, timeout_s: float = BOOT_S) -> str:
        """Run a shell command in the guest and return its output; raise an assertion if it fails."""
        code, output = self.try_run(command, timeout_s)
        assert code == 0, f"{command}: {code}: {output}"
        return output

    def try_run(self, command: str, timeout_s: float = BOOT_S) -> tuple[int, str]:
        """Run a shell command in the guest; return its exit code and output."""
        # Marks at both ends, because responses to earlier greetings may still arrive.
        begin, end = f"BEGIN-{time.monotonic_ns()}", f"END-{time.monotonic_ns()}"
        shell = self._shell(timeout_s)
        shell.sendall(f"echo {begin}; {{ {command}\n}} </dev/null 2>&1; echo {end}:$?\n".encode())
        output = self._until(shell, rf"{end}:\d+\s", timeout_s).replace("\r", "").partition(f"{begin}\n")[2]
        text, _, code = output.rpartition(f"{end}:")
        return int(code.split()[0]), text

    def start(self, command: str) -> None:
        """Start a command without waiting for its end, such as a reboot."""
        self.run(f"setsid sh -c '{command}' >/dev/console 2>&1 &")
        self.has_shell = False

    def _shell(self, timeout_s: float) -> socket.socket:
        """Return the tester's shell when it responds; after a reboot it is a new one on the same line."""
        deadline = time.monotonic() + timeout_s
        while not (self.shell and self.has_shell):
            if time.monotonic() > deadline:
                console = self.console_file.read_bytes()[-3000:].decode("latin-1")
                raise BootError(f"no shell responded within {timeout_s:.0f} s; end of the console:\n{console}")
            self._after_a_reset()
            if self.shell is None:
                self.shell = socket.socket(socket.AF_UNIX)
            try:
                if not self._connected():
                    self.shell.connect(str(self.folder / "shell"))
                # The first line ends input that the last boot left incomplete. The quotes distinguish a shell from
                # a terminal that echoes its input.
                hello = f"HELLO-{time.monotonic_ns()}"
                self.shell.sendall(f"\necho 'HELLO'{hello[5:]}\n".encode())
                self._until(self.shell, hello, 3)
                self.has_shell = True
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
            self.shell, self.has_shell = None, False
