"""The hosts as NixOS renders them: units, scripts and files of /etc, evaluated against a whole nixpkgs.

``nix-real setup`` brings that nixpkgs, and its record names the inputs. An evaluation takes seconds, so a folder
keeps each host for all tests and workers. Its key has the sources of the flake, the inputs and the changes.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.nix import checker
from tests.nix.unitfile import UnitFile

RECORD = checker.CACHE / "real.json"
KEPT = checker.CACHE / "rendered"
KEEP = 64
"""Hosts that the folder keeps, the last used ones."""
EXPRESSION = checker.ROOT / "tests" / "nix" / "real.nix"
FLAKE = EXPRESSION.with_name("real_flake.nix")
SOURCES = ("flake.nix", "flake.lock", "pyproject.toml", "hosts", "modules", "appliance/catalog")
"""Files and folders that an evaluation reads. The Python package decides only the hash of its own path."""
SUFFIXES = {".nix", ".json", ".toml", ".lock", ".sh"}


class RenderError(Exception):
    """A host that does not evaluate, or a text that the host does not have."""


@dataclass(frozen=True)
class StoreText:
    """A text that NixOS writes to the store."""

    name: str
    """Name of the derivation, such as ``nginx.conf``."""
    text: str
    destination: str = ""
    """Path of the file below the store path, such as ``/bin/x``; empty if the store path is the file."""
    executable: bool = False


@dataclass(frozen=True)
class RenderedHost:
    """The texts of one host."""

    name: str
    units: Mapping[str, UnitFile]
    """Units by name, such as ``nginx.service``, as far as a module defines or changes them."""
    etc: Mapping[str, str]
    """Store paths of the files of /etc, by name below /etc."""
    texts: Mapping[str, StoreText]
    """Texts by store path, without their destination."""
    boot_loader: str
    """Store path of the script that installs the boot loader."""
    kernel_parameters: tuple[str, ...]

    def unit(self, name: str) -> UnitFile:
        """Return the unit ``name``; raise :class:`RenderError` if no module defines it."""
        if name not in self.units:
            raise RenderError(f"host {self.name} has no unit {name}")
        return self.units[name]

    def etc_text(self, name: str) -> str:
        """Return the text of a file of /etc; raise :class:`RenderError` unless it is a text of this host."""
        path = self.etc.get(name, "")
        if path not in self.texts:
            raise RenderError(f"host {self.name} has no text for /etc/{name}, only {path or 'nothing'}")
        return self.texts[path].text

    def text(self, name: str) -> StoreText:
        """Return the text with this name of a derivation; raise :class:`RenderError` unless there is one."""
        found = [text for text in self.texts.values() if text.name == name]
        if len(found) != 1:
            raise RenderError(f"host {self.name} has {len(found)} texts with the name {name}")
        return found[0]

    def edited(self, edit: Callable[[str, str], str]) -> RenderedHost:
        """Return the host with ``edit(name, text)`` for each text and unit, for the control of a test."""
        texts = {
            path: dataclasses.replace(text, text=edit(text.name, text.text)) for path, text in self.texts.items()
        }
        units = {name: dataclasses.replace(unit, text=edit(name, unit.text)) for name, unit in self.units.items()}
        return dataclasses.replace(self, units=units, texts=texts)


def require() -> None:
    """Skip the test unless a whole nixpkgs is set up."""
    if inputs() is None:
        pytest.skip(
            f"NOT CHECKED: no whole nixpkgs is set up here ({RECORD}); no text of NixOS was rendered. "
            "Run `nix-real setup`, see its README"
        )


def source(name: str) -> Path:
    """Return the folder of an input of the flake; skip the test unless a whole nixpkgs is set up."""
    require()
    found = inputs()
    assert found is not None
    return Path(found[name])


@cache
def host(name: str, *modules: str, changes: str = "{}") -> RenderedHost:
    """Return the host ``nixosConfigurations.NAME`` of the flake.

    ``modules`` are files of the repository that extend it, ``changes`` a JSON object of options with their values,
    which replace those of the host (``mkForce``).
    """
    require()
    KEPT.mkdir(parents=True, exist_ok=True)
    wanted = {"host": name, "modules": list(modules), "changes": json.loads(changes)}
    extra = [EXPRESSION.read_text(), FLAKE.read_text(), *((checker.ROOT / file).read_text() for file in modules)]
    text = json.dumps([wanted, extra, inputs(), _sources()], sort_keys=True)
    file = KEPT / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with (KEPT / f"{file.stem}.lock").open("w") as lock:
        # One worker evaluates; the others wait and read its file.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            keep(file, _evaluate(wanted))
        file.touch()
        values = json.loads(file.read_text())
    return _host(name, values)


def keep(file: Path, values: dict[str, Any]) -> None:
    """Write a file of the folder at once, and remove those that were not used for the longest time."""
    with tempfile.NamedTemporaryFile("w", dir=KEPT, delete=False) as out:
        json.dump(values, out)
    Path(out.name).replace(file)
    found = sorted(KEPT.glob("*.json"), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in found[KEEP:]:
        old.unlink(missing_ok=True)
        old.with_suffix(".lock").unlink(missing_ok=True)


@cache
def inputs() -> dict[str, str] | None:
    """Return the store paths of the flake's inputs, from the record of ``nix-real setup``."""
    if not RECORD.exists():
        return None
    found: dict[str, str] = json.loads(RECORD.read_text())
    return found if all(Path(path).exists() for path in found.values()) else None


@cache
def _sources() -> str:
    """Return a hash of all files that an evaluation reads."""
    digest = hashlib.sha256()
    for name in SOURCES:
        top = checker.ROOT / name
        for file in [top] if top.is_file() else sorted(top.rglob("*")):
            if file.suffix in SUFFIXES and "node_modules" not in file.parts:
                digest.update(f"{file.relative_to(checker.ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def nix(*words: str) -> str:
    """Return the output of a command of Nix; raise :class:`RenderError` with its last lines if it fails."""
    argv = [checker.find_nix() or "nix", "--extra-experimental-features", "nix-command flakes"]
    # A third of an evaluation would be the collection of garbage.
    environment = {**os.environ, "GC_INITIAL_HEAP_SIZE": "1000000000"}
    done = subprocess.run(
        [*argv, "--offline", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RenderError("\n".join(done.stderr.splitlines()[-12:]))
    return done.stdout


@cache
def evaluated(expression: str, root: str = str(checker.ROOT)) -> Any:
    """Return the value of a Nix expression.

    The expression can use ``inputs`` and ``flake``, the flake in ``root`` with these inputs.
    """
    require()
    literal = checker.string(json.dumps({"root": root, "inputs": inputs()}))
    names = f"given = builtins.fromJSON {literal}; inherit (given) inputs; flake = import {FLAKE} given;"
    return json.loads(nix("eval", "--impure", "--json", "--expr", f"let {names} in {expression}"))


def stored(root: Path = checker.ROOT) -> str:
    """Copy the files that git would carry from ``root`` to the store; return the path, the source of the flake.

    Skip the test unless a whole nixpkgs is set up.
    """
    require()
    listed = checker.output_of(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "source"
        for name in listed.split("\0"):
            if (root / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, copy / name)
        return nix("store", "add", "--name", "source", str(copy)).strip()


def _evaluate(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of real.nix, with texts in place of the derivations."""
    modules = [str(checker.ROOT / file) for file in wanted["modules"]]
    arguments = {**wanted, "modules": modules, "root": str(checker.ROOT), "inputs": inputs()}
    literal = checker.string(json.dumps(arguments))
    call = f"import {EXPRESSION} (builtins.fromJSON {literal})"
    values: dict[str, Any] = json.loads(nix("eval", "--impure", "--json", "--expr", call))
    shown = _shown(values.pop("derivations"))
    found = {derivation["outputs"]["out"]["path"]: text for derivation, text in shown if text is not None}
    for derivation, _ in shown:
        # The program that checks a text links it under another name; the text may be a file of the flake.
        if (target := _linked(derivation)) is not None and (target in found or Path(target).is_file()):
            made = found.get(target) or {"text": Path(target).read_text(), "destination": "", "executable": False}
            found[derivation["outputs"]["out"]["path"]] = {**made, "name": derivation["name"]}
    (units,) = (derivation for derivation, _ in shown if derivation["name"] == "system-units")
    upstream = re.search(r"^for i in (.*); do$", units["env"]["buildCommand"], re.MULTILINE)
    if upstream is None:
        raise RenderError("the derivation system-units has no list of systemd's own units; read its buildCommand")
    return {**values, "texts": found, "upstream": upstream[1].split()}


def _shown(derivations: Iterable[str]) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Return ``derivations``, and those that their texts name, each with its text if it writes one."""
    found: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
    seen: set[str] = set()
    waiting = set(derivations)
    while waiting:
        shown = json.loads(nix("derivation", "show", *sorted(waiting)))
        seen |= waiting
        waiting = set()
        for derivation in shown.values():
            text = _text_of(derivation)
            found.append((derivation, text))
            followed = text is not None or _linked(derivation) is not None
            waiting |= derivation["inputDrvs"].keys() - seen if followed else set()
    return found


def attributes(derivation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a derivation, structured ones included."""
    environment = derivation["env"]
    return {**environment, **json.loads(environment.get("__json", "{}"))}


def _linked(derivation: Mapping[str, Any]) -> str | None:
    """Return the path of the text that ``derivation`` only checks and links."""
    linked = re.match(r"ln -s (/nix/store/\S+) \$out\n", attributes(derivation).get("buildCommand", ""))
    return linked[1] if linked else None


def _text_of(derivation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fields of a :class:`StoreText`; ``None`` for a derivation that writes something else."""
    environment = attributes(derivation)
    if isinstance(environment.get("text"), str):
        text = environment["text"]
    elif re.search(r"jq \.value|json2yaml", environment.get("buildCommand", "")):
        # The JSON format of nixpkgs, and the YAML format, which has JSON as a part.
        text = json.dumps(environment["value"], indent=2) + "\n"
    else:
        return None
    made = {"name": derivation["name"], "text": text, "destination": environment.get("destination", "")}
    return {**made, "executable": bool(environment.get("executable"))}


def _host(name: str, values: Mapping[str, Any]) -> RenderedHost:
    units = {
        unit: UnitFile(
            name=unit,
            text=fields["text"] or "",
            enabled=fields["enable"],
            wanted_by=tuple(fields["wantedBy"]),
            required_by=tuple(fields["requiredBy"]),
            aliases=tuple(fields["aliases"]),
            upstream=fields["overrideStrategy"] == "asDropin" or unit in values["upstream"],
        )
        for unit, fields in values["units"].items()
    }
    return RenderedHost(
        name=name,
        units=units,
        etc=values["etc"],
        texts={path: StoreText(**fields) for path, fields in values["texts"].items()},
        boot_loader=values["boot_loader"],
        kernel_parameters=tuple(values["kernel_parameters"]),
    )
