"""Boot entries and the configuration of systemd-boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import LoaderError
from appliance.upgrade.bootloader import Loader


def entry(boot: Path, name: str, system: str) -> None:
    folder = boot / "loader" / "entries"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"title NixOS\noptions init={system}/init panic=10\n")


def test_an_entry_is_found_by_the_system_that_it_boots(tmp_path: Path) -> None:
    entry(tmp_path, "nixos-proven-generation-3.conf", "/nix/store/a")
    entry(tmp_path, "nixos-generation-9.conf", "/nix/store/a")
    entry(tmp_path, "nixos-generation-12.conf", "/nix/store/a")
    entry(tmp_path, "nixos-generation-13.conf", "/nix/store/ab")
    loader = Loader(boot=tmp_path, variables=tmp_path)
    assert loader.entry(Path("/nix/store/a")) == "nixos-generation-12.conf"
    assert loader.entry(Path("/nix/store/ab")) == "nixos-generation-13.conf"
    with pytest.raises(LoaderError, match=r"no boot entry starts /nix/store/b; `nixos-rebuild boot`"):
        loader.entry(Path("/nix/store/b"))


def test_a_system_whose_entry_the_limit_deleted_is_found_by_its_other_entry(tmp_path: Path) -> None:
    entry(tmp_path, "nixos-proven-generation-3.conf", "/nix/store/a")
    assert Loader(boot=tmp_path).entry(Path("/nix/store/a")) == "nixos-proven-generation-3.conf"


def test_a_boot_partition_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "loader" / "entries" / "nixos-generation-1.conf").mkdir(parents=True)
    with pytest.raises(LoaderError, match=r"generation-1\.conf cannot be read \(Is a directory\); check that"):
        Loader(boot=tmp_path).entry(Path("/nix/store/a"))


def test_a_loader_configuration_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    conf = tmp_path / "loader" / "loader.conf"
    loader = Loader(boot=tmp_path, variables=tmp_path)
    with pytest.raises(LoaderError, match=r"cannot be changed .*is .* mounted"):
        loader.release_default("nixos-generation-1.conf")
    conf.parent.mkdir()
    conf.write_bytes(b"default \xff\xfe\n")
    with pytest.raises(LoaderError, match=r"loader\.conf is damaged; check"):
        loader.release_default("nixos-generation-1.conf")
