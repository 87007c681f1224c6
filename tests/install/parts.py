"""The parts of the guest that this machine does not have: Debian's kernel with a first stage, and udev."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.nix import checker

GUEST = Path(__file__).parent / "guest"
CACHE = checker.ROOT / "build" / "install"
DRIVERS = (
    "crc32c_generic", "crc32c-intel", "virtio_pci", "9pnet_virtio", "9p", "overlay", "nvme", "ext4", "vfat",
    "nls_cp437", "nls_ascii", "nls_utf8",
)  # fmt: skip


class PartError(Exception):
    """A part that could not be fetched or unpacked."""


def parts() -> Path:
    """Return the folder with ``kernel``, ``first-stage`` and ``udev``, which is kept for later runs."""
    kernel = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", "linux-image-amd64"))
    if kernel is None:
        raise PartError("apt has no package linux-image-amd64: run apt-get update")
    known = CACHE / kernel[1]
    if not known.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            _unpack(kernel[1], Path(scratch) / "image")
            _unpack("udev", made / "udev")
            # The folders of the root are links into /usr, and a folder of a layer would hide the link.
            for name in ("bin", "sbin", "lib"):
                if (made / "udev" / name).exists():
                    _run("cp", "-a", made / "udev" / name, made / "udev" / "usr")
                    shutil.rmtree(made / "udev" / name)
            _kernel(Path(scratch) / "image", made)
            made.rename(known)
    _first_stage(known)
    return known


def _run(*argv: object) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartError(f"{argv}: {done.stdout}{done.stderr}")
    return done.stdout


def _unpack(package: str, folder: Path) -> None:
    """Download a package of Debian without installing it, and unpack it."""
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(["apt-get", "download", package], cwd=scratch, capture_output=True, check=False)
        found = list(Path(scratch).glob("*.deb"))
        if done.returncode or not found:
            raise PartError(f"apt-get download {package}: {done.stderr.decode(errors='replace')}")
        _run("dpkg-deb", "-x", found[0], folder)


def _kernel(image: Path, made: Path) -> None:
    """Copy the kernel, and the drivers with a list of them in the order of their dependencies."""
    (kernel,) = (image / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, made / "kernel")
    version = kernel.name.removeprefix("vmlinuz-")
    _run("busybox", "depmod", "-b", image, version)
    folder = image / "lib" / "modules" / version
    needs = dict(line.split(":") for line in (folder / "modules.dep").read_text().splitlines())
    path_of = {Path(path).name.removesuffix(".ko"): path for path in needs}
    order: list[str] = []
    for driver in DRIVERS:
        if driver in path_of:
            path = path_of[driver]
            order += [one for one in (*reversed(needs[path].split()), path) if one not in order]
    (made / "modules").mkdir()
    for path in order:
        shutil.copy(folder / path, made / "modules")
    (made / "modules.order").write_text("\n".join(Path(path).name for path in order))


def _first_stage(known: Path) -> None:
    """Pack the first stage: busybox, the drivers and their order."""
    with tempfile.TemporaryDirectory() as scratch:
        stage = Path(scratch)
        for folder in ("bin", "dev", "proc", "sys", "root", "host", "layers", "layer"):
            (stage / folder).mkdir()
        shutil.copy(checker.require("busybox"), stage / "bin" / "busybox")
        shutil.copy(GUEST / "first-stage", stage / "init")
        shutil.copytree(known / "modules", stage / "modules")
        shutil.copy(known / "modules.order", stage)
        (stage / "init").chmod(0o755)
        pack = f"cd {stage} && find . | cpio --quiet -o -H newc | gzip -1"
        with (known / "first-stage").open("wb") as out:
            subprocess.run(["sh", "-c", pack], stdout=out, check=True)
