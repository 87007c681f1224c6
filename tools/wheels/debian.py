"""A Debian system in a folder. The engine's build runs in it, with Debian's programs in place of nixpkgs'."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ApplianceError

SUITE = "trixie"
"""Debian 13: its Python is 3.13, like the engine's."""

NEWER = "sid"
"""The suite whose C library is as new as that of the pinned nixpkgs."""

PACKAGES = (
    "python3",
    "python3-venv",
    "python3-pip",
    "python3-pyelftools",
    "g++",
    "make",
    "ninja-build",
    "patch",
    "file",
    "gawk",
    "diffutils",
    "bzip2",
    "xz-utils",
    "libgomp1",
    "libibverbs1",
    "ibverbs-providers",
    "librdmacm1t64",
    "zlib1g",
)


@dataclass(frozen=True, slots=True)
class DebianRoot:
    """A folder with a Debian system."""

    folder: Path
    packages: tuple[str, ...] = PACKAGES

    @property
    def is_made(self) -> bool:
        """Return whether a run of :meth:`make` finished."""
        return self._mark.exists()

    @property
    def _mark(self) -> Path:
        return self.folder / "made"

    def make(self) -> None:
        """Make the system by debootstrap, unless an earlier run finished it."""
        if self.is_made:
            return
        if shutil.which("debootstrap") is None:
            raise ApplianceError(
                f"debootstrap is missing, and {self.folder} has no Debian {SUITE}: install debootstrap"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        # In a mount namespace of its own, because debootstrap leaves /proc mounted in the system.
        argv = [
            "unshare",
            "--mount",
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(self.packages)}",
            SUITE,
            str(self.folder),
        ]
        made = subprocess.run(argv, capture_output=True, text=True, check=False)
        if made.returncode:
            raise ApplianceError(f"debootstrap failed: {(made.stderr or made.stdout).strip().splitlines()[-1]}")
        self._mark.touch()

    def run(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        binds: Mapping[Path, str] | None = None,
        folder: str = "/",
        network: bool = False,
        log: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` in the system, as root, with mounts and processes of its own.

        Args:
            argv: the command, with paths as the system has them.
            environment: all variables; none is inherited.
            binds: folders and files of this machine, and where the system has them during the run.
            folder: the working directory.
            network: whether the command has a network. Builds have none.
            log: a file that gets the output while the command runs, for long ones; otherwise the result has it.
        """
        lines = ["set -e", f"mount -t proc proc {shlex.quote(str(self.folder / 'proc'))}"]
        targets = {Path("/dev"): "/dev", **(binds or {})}
        for source, target in targets.items():
            place = self.folder / target.lstrip("/")
            lines.append(f"mount --rbind {shlex.quote(str(source))} {shlex.quote(str(place))}")
        words = [f"{name}={value}" for name, value in environment.items()]
        inner = ["/usr/bin/env", "-i", "-C", folder, *words, *argv]
        lines.append(f"exec chroot {shlex.quote(str(self.folder))} {shlex.join(inner)}")
        own = ["--mount", "--pid", "--fork", "--kill-child", *([] if network else ["--net"])]
        command, script = ["unshare", *own, "bash", "-s"], "\n".join(lines)
        if log is None:
            return subprocess.run(command, input=script, capture_output=True, text=True, check=False)
        with log.open("w") as stream:
            done = subprocess.run(command, input=script, stdout=stream, stderr=stream, text=True, check=False)
        return subprocess.CompletedProcess(argv, done.returncode, log.read_text(), "")

    def output(self, argv: Sequence[str], *, network: bool = False) -> str:
        """Return the output of a command of the system; raise if it fails."""
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        done = self.run(argv, environment=variables, network=network)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise ApplianceError(f"{argv[0]} failed in {self.folder}: {' '.join(last)}")
        return done.stdout

    def files_of(self, package: str) -> list[Path]:
        """Return the installed files of ``package``, as paths of this machine."""
        names = self.output(["dpkg", "-L", package]).splitlines()
        found = [self.folder / name.lstrip("/") for name in names]
        return [path for path in found if path.is_symlink() or path.is_file()]

    def newer_headers(self) -> tuple[Path, str]:
        """Return a copy of /usr/include with the C library's headers of :data:`NEWER`, and their version."""
        target = self.folder / "newer/include"
        if not target.exists():
            shutil.copy2("/etc/resolv.conf", self.folder / "etc/resolv.conf")
            aside = self.folder / "newer"
            (aside / "lists/partial").mkdir(parents=True, exist_ok=True)
            own = (self.folder / "etc/apt/sources.list").read_text()
            (aside / "sources.list").write_text(own.replace(f" {SUITE} ", f" {NEWER} "))
            options = ["-o", "Dir::Etc::SourceList=/newer/sources.list", "-o", "Dir::Etc::SourceParts=-"]
            options += ["-o", "Dir::State::Lists=/newer/lists", "-o", "APT::Sandbox::User=root"]
            # The list of an old mirror is good enough for headers; its signature is verified all the same.
            options += ["-o", "Acquire::Check-Valid-Until=false"]
            self.output(["apt-get", *options, "-qq", "update"], network=True)
            fetch = f"apt-get {shlex.join(options)} -qq download libc6-dev"
            script = f"cd /newer && {fetch} && dpkg-deb -x libc6-dev_*.deb libc"
            self.output(["bash", "-ec", script], network=True)
            partial = aside / "include.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(self.folder / "usr/include", partial, symlinks=True)
            shutil.copytree(aside / "libc/usr/include", partial, symlinks=True, dirs_exist_ok=True)
            partial.rename(target)
        (deb,) = (self.folder / "newer").glob("libc6-dev_*.deb")
        return target, deb.name.split("_")[1]
