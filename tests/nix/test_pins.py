"""The tools of the wheel set, on small generated wheels; `make verify-wheels` runs them on the real ones."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from tests.nix import checker
from tools.wheels import contents, elf, verify_wheels
from tools.wheels.lock_engine import LOCK, WHEELS, faults
from tools.wheels.sources import Wheel, from_report, parse_json, parse_lock, render_json, render_lock, unfit


def shared_library(*needed: str, machine: int = elf.X86_64, runpath: str = "") -> bytes:
    """Return the smallest ELF file that requires the libraries ``needed``."""
    names = [*needed, *([runpath] if runpath else [])]
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    offsets = [1 + sum(len(n) + 1 for n in names[:i]) for i in range(len(names))]
    start = 64 + 2 * 56
    tags = [elf.DT_NEEDED] * len(needed) + [elf.DT_RUNPATH] * bool(runpath)
    entries = [*zip(tags, offsets, strict=True), (elf.DT_STRTAB, start), (elf.DT_NULL, 0)]
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
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Wheel(name, "1.0", file.name, contents.blake2b_path(file), digest)


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


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("a", "a-1-cp313-cp313-manylinux_2_34_x86_64.whl", "is newer than manylinux_2_28; pin an older one"),
        ("a", "a-1-cp313-cp313-manylinux_2_27_x86_64.manylinux_2_34_x86_64.whl", None),
        ("llguidance", "llguidance-1-cp39-abi3-manylinux_2_31_x86_64.whl", None),
        ("a", "a-1-7-py3-none-any.whl", None),
        ("a", "a-1-py3-none-win_amd64.whl", "is for win_amd64, not for Linux on x86_64"),
        (
            "a",
            "a-1-cp313-cp313-manylinux_2_28_aarch64.whl",
            "is for manylinux_2_28_aarch64, not for Linux on x86_64",
        ),
        ("a", "a-1-cp311-cp311-manylinux_2_28_x86_64.whl", "is for the ABI cp311, not for Python 3.13"),
        ("a", "a-1-cp313-cp313.whl", "has no Python, ABI and platform tag"),
    ],
)
def test_a_wheel_that_the_host_cannot_use_is_reported(name: str, file: str, reason: str | None) -> None:
    found = unfit(Wheel(name, "1", file, "", ""))
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


def test_a_wheel_without_a_platform_tag_in_the_lock_is_reported() -> None:
    wheels = parse_json(WHEELS.read_text())
    wheels[5] = replace(wheels[5], file="annotated_types-1-py3-none.whl")
    assert faults(wheels, LOCK.read_text()) == [f"{wheels[5].file} has no Python, ABI and platform tag"]


def test_a_path_that_is_not_a_digest_is_reported() -> None:
    wheels = parse_json(WHEELS.read_text())
    wheels[7] = replace(wheels[7], path=f"{wheels[7].path}0")
    (found,) = faults(wheels, LOCK.read_text())
    assert found.endswith("in wheels.json, not a digest; run lock_engine again")


REPORTED = {
    "download_info": {
        "url": f"x/packages/01/23/{'4' * 60}/torch-2.13.0%2Bcu130-cp313-cp313-linux_x86_64.whl#sha256=0",
        "archive_info": {"hashes": {"sha256": "a" * 64}},
    },
    "metadata": {"name": "Torch", "version": "2.13.0+cu130"},
}


def test_a_report_of_pip_becomes_a_wheel_set() -> None:
    (found,) = from_report({"install": [REPORTED]})
    assert (found.name, found.file) == ("torch", "torch-2.13.0+cu130-cp313-cp313-linux_x86_64.whl")
    assert found.path == f"01/23/{'4' * 60}"
    assert parse_lock(render_lock([found]))["torch"] == ("2.13.0+cu130", "a" * 64)
    assert parse_json(render_json([found])) == [found]


def test_a_wheel_from_a_local_folder_is_rejected() -> None:
    local = {**REPORTED, "download_info": {"url": "file:///wheels/torch-2.13.0-py3-none-any.whl"}}
    with pytest.raises(ApplianceError, match=r"pip took torch-2.13.0-py3-none-any.whl from an address without"):
        from_report({"install": [local]})


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


def test_the_path_of_another_file_is_reported(tmp_path: Path) -> None:
    made, other = wheel(tmp_path, "a"), wheel(tmp_path, "b")
    wrong = verify_wheels.hashes([replace(made, path=other.path)], tmp_path).wrong
    assert f"{made.file} has the path {made.path} by its BLAKE2b, not that of wheels.json; lock again" in wrong
    assert not any("BLAKE2b" in line for line in verify_wheels.hashes([made], tmp_path).wrong)


def test_files_of_two_wheels_are_compared(tmp_path: Path) -> None:
    made = [
        wheel(tmp_path, "a", files={"same.py": b"1", "x/other.py": b"1", "a-1.0.data/scripts/run": b"1"}),
        wheel(tmp_path, "b", files={"same.py": b"1", "b-1.0.data/purelib/x/other.py": b"2", "run": b"2"}),
    ]
    count, twice = contents.claimed_twice(made, tmp_path)
    assert (count, twice) == (6, {"x/other.py": ["a", "b"]})


def test_a_driver_too_old_for_the_wheels_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = parse_json(WHEELS.read_text())
    assert verify_wheels.driver(wheels).wrong == []
    old = tmp_path / "pins.nix"
    old.write_text(verify_wheels.PINS.read_text().replace('"580.173.02" = {', '"575.57.08" = {'))
    monkeypatch.setattr(verify_wheels, "PINS", old)
    (wrong,) = verify_wheels.driver(wheels).wrong
    assert "needs driver 580 or newer; modules/pins.nix offers 575.57.08" in wrong


def test_the_committed_report_is_about_this_set() -> None:
    text = (checker.ROOT / "docs/wheels.md").read_text()
    wheels = parse_json(WHEELS.read_text())
    assert "| NO |" not in text
    assert f"| {len(wheels)} wheels, " in text
    for name in ("vllm", "torch", "triton"):
        assert f"{name} {next(w.version for w in wheels if w.name == name)}" in text
    assert "85 cubins" in text
    assert "27 cubins" in text
    assert "compiled and linked a kernel" in text
    assert json.loads(verify_wheels.LIBRARIES.read_text()).keys() == {"nixpkgs", "driver", "optional"}
