"""The tools of the wheel set, on small generated wheels; `make verify-wheels` runs them on the real ones."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import pytest

from tests.nix import checker
from tools.wheels import contents, elf, verify_wheels
from tools.wheels.lock_engine import LOCK, WHEELS, faults
from tools.wheels.sources import Wheel, from_report, parse_json, parse_lock, render_json, render_lock, too_new


def shared_library(*needed: str, machine: int = elf.X86_64) -> bytes:
    """Return the smallest ELF file that requires the libraries ``needed``."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    offsets = [1 + sum(len(n) + 1 for n in needed[:i]) for i in range(len(needed))]
    start = 64 + 2 * 56
    entries = [(elf.DT_NEEDED, o) for o in offsets] + [(elf.DT_STRTAB, start), (elf.DT_NULL, 0)]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    total = start + len(strings) + len(dynamic)
    header = (
        elf.MAGIC + b"\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    load = struct.pack("<IIQQQQQQ", elf.PT_LOAD, 4, 0, 0, 0, total, total, 4096)
    table = struct.pack("<IIQQQQQQ", elf.PT_DYNAMIC, 4, start + len(strings), 0, 0, len(dynamic), len(dynamic), 8)
    return header + load + table + strings + dynamic


def wheel(folder: Path, name: str, requires: tuple[str, ...] = (), files: dict[str, bytes] | None = None) -> Wheel:
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        lines = [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            "Version: 1.0",
            *(f"Requires-Dist: {r}" for r in requires),
        ]
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n")
        for path, data in (files or {}).items():
            archive.writestr(path, data)
    return Wheel(name, "1.0", file.name, hashlib.sha256(file.read_bytes()).hexdigest())


def test_the_lock_and_the_list_have_the_same_wheels() -> None:
    wheels = parse_json(WHEELS.read_text())
    assert len(wheels) > 100
    assert faults(wheels, LOCK.read_text()) == []
    assert render_json(wheels) == WHEELS.read_text()
    assert render_lock(wheels) == LOCK.read_text()


def test_the_locks_contain_no_address() -> None:
    for file in (LOCK, WHEELS, checker.ROOT / "requirements/engine-cuda.in"):
        assert "://" not in file.read_text(), file


def test_a_changed_hash_is_reported() -> None:
    wheels = parse_json(WHEELS.read_text())
    text = LOCK.read_text().replace(wheels[3].sha256, "0" * 64)
    assert faults(wheels, text) == [
        f"{wheels[3].name} {wheels[3].version} is not what engine-cuda.lock names; run lock_engine again"
    ]
    assert "is in engine-cuda.lock only" in faults(wheels[1:], LOCK.read_text())[0]


def test_a_wheel_for_a_newer_glibc_is_reported() -> None:
    assert too_new(Wheel("a", "1", "a-1-cp313-cp313-manylinux_2_34_x86_64.whl", ""))
    assert not too_new(Wheel("a", "1", "a-1-cp313-cp313-manylinux_2_27_x86_64.manylinux_2_34_x86_64.whl", ""))
    assert not too_new(Wheel("llguidance", "1", "llguidance-1-cp39-abi3-manylinux_2_31_x86_64.whl", ""))


def test_a_report_of_pip_becomes_a_wheel_set() -> None:
    item = {
        "download_info": {
            "url": "x/torch-2.13.0%2Bcu130-cp313-cp313-linux_x86_64.whl",
            "archive_info": {"hashes": {"sha256": "a" * 64}},
        },
        "metadata": {"name": "Torch", "version": "2.13.0+cu130"},
    }
    (found,) = from_report({"install": [item]})
    assert (found.name, found.file) == ("torch", "torch-2.13.0+cu130-cp313-cp313-linux_x86_64.whl")
    assert parse_lock(render_lock([found]))["torch"] == ("2.13.0+cu130", "a" * 64)


def test_the_libraries_of_an_elf_file_are_read(tmp_path: Path) -> None:
    found = elf.parse(shared_library("libc.so.6", "libcuda.so.1"))
    assert found == elf.Elf(elf.X86_64, ("libc.so.6", "libcuda.so.1"))
    assert elf.parse(b"#!/bin/sh\n") is None
    real = elf.parse(Path("/bin/ls").read_bytes())
    assert real is not None
    assert "libc.so.6" in real.needed


@pytest.mark.parametrize(
    ("requires", "message"),
    [
        (("b>=1",), None),
        (("b>=2",), "needs b>=2, the set has 1.0"),
        (("c",), "needs c, which is not in the set"),
        (('c; sys_platform == "win32"',), None),
        (('c; python_version < "3.13"',), None),
        (('c; extra == "x"',), None),
        (("b[x]",), "b 1.0 needs d; extra == 'x', which is not in the set"),
    ],
)
def test_a_missing_requirement_is_reported(tmp_path: Path, requires: tuple[str, ...], message: str | None) -> None:
    wheels = [wheel(tmp_path, "a", requires), wheel(tmp_path, "b", ("d; extra == 'x'",))]
    _, found = contents.unmet(wheels, tmp_path)
    assert (message is None) == (found == [])
    assert message is None or message in found[0]


def test_each_library_is_resolved_or_reported(tmp_path: Path) -> None:
    made = wheel(
        tmp_path,
        "a",
        files={"a/liba.so": shared_library("libb.so", "libc.so.6"), "a/libb.so": shared_library("libx.so.9")},
    )
    found = list(contents.libraries([made], tmp_path))
    listed = {"nixpkgs": {"libc.so.6": "glibc"}, "driver": {}, "optional": {}}
    resolved, _ = verify_wheels.needed(found, listed)
    assert resolved.wrong == ["libx.so.9, needed by a, is nowhere"]
    listed["optional"] = {"libx.so.*": "not used", "liby.so": "idle"}
    resolved, _ = verify_wheels.needed(found, listed)
    assert resolved.wrong == ["liby.so is listed in engine-libraries.json, but nothing needs it"]


def test_a_changed_wheel_is_reported(tmp_path: Path) -> None:
    made = wheel(tmp_path, "a")
    (tmp_path / made.file).write_bytes(b"other")
    assert f"{made.file} has another SHA-256 than the lock" in verify_wheels.hashes([made], tmp_path).wrong


def test_a_driver_too_old_for_the_wheels_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = parse_json(WHEELS.read_text())
    assert verify_wheels.driver(wheels).wrong == []
    old = tmp_path / "pins.nix"
    old.write_text(verify_wheels.PINS.read_text().replace("595.71.05", "575.57.08"))
    monkeypatch.setattr(verify_wheels, "PINS", old)
    assert "needs driver 580 or newer; modules/pins.nix pins 575.57.08" in verify_wheels.driver(wheels).wrong[0]


def test_the_committed_report_is_about_this_set() -> None:
    text = (checker.ROOT / "docs/wheels.md").read_text()
    wheels = parse_json(WHEELS.read_text())
    assert "| NO |" not in text
    assert f"| {len(wheels)} wheels, " in text
    for name in ("vllm", "torch", "triton"):
        assert f"{name} {next(w.version for w in wheels if w.name == name)}" in text
    assert "82 cubins" in text
    assert "26 cubins" in text
    assert "compiled and linked a kernel" in text
    assert json.loads(verify_wheels.LIBRARIES.read_text()).keys() == {"nixpkgs", "driver", "optional"}
