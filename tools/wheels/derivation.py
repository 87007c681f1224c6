"""The derivation of the engine, as Nix evaluates it, with everything that its phases read."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError

ENGINE = Path(__file__).resolve().parents[2] / "modules" / "packages" / "engine-cuda.nix"

STORE_PATH = re.compile(r"/nix/store/[0-9a-df-np-sv-z]{32}-[0-9A-Za-z+._?=-]+")


@dataclass(frozen=True, slots=True)
class Derivation:
    """A derivation, and that of the stdenv whose ``setup`` its phases source."""

    builder: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    stdenv: dict[str, str]
    """Environment of the derivation that makes ``environment["stdenv"]``."""

    @property
    def out(self) -> str:
        """Return the store path of the result."""
        return self.environment["out"]

    def store_paths(self) -> list[str]:
        """Return all store paths that the phases can read, the result aside."""
        texts = [self.builder, *self.arguments, *self.environment.values()]
        texts += [self.stdenv.get(name, "") for name in ("shell", "initialPath", "setup", "preHook")]
        texts += [self.stdenv.get(name, "") for name in ("defaultNativeBuildInputs", "defaultBuildInputs")]
        return sorted({path for text in texts for path in STORE_PATH.findall(text)} - {self.out})


def evaluate(nix: str, nixpkgs: Path) -> Derivation:
    """Return the derivation of :data:`ENGINE` with the packages of ``nixpkgs``.

    Args:
        nix: the program ``nix``.
        nixpkgs: a folder with a whole nixpkgs.
    """
    pkgs = f'import (/. + {_literal(nixpkgs)}) {{ system = "x86_64-linux"; config.allowUnfree = true; }}'
    expression = f"(({pkgs}).callPackage (/. + {_literal(ENGINE)}) {{ }}).drvPath"
    path = _nix(nix, "eval", "--raw", "--impure", "--expr", expression).strip()
    shown = _derivations(_nix(nix, "derivation", "show", path))
    (engine,) = shown.values()
    if "__json" in engine["env"]:
        raise ApplianceError("this nixpkgs builds with structured attributes, which prove_engine cannot run")
    # Nix replaces this name of the result when it builds.
    own = _nix(nix, "eval", "--raw", "--expr", 'placeholder "out"')
    environment = {name: value.replace(own, engine["env"]["out"]) for name, value in engine["env"].items()}
    stdenv = environment["stdenv"]
    for name in engine["inputDrvs"]:
        if name.endswith("-stdenv-linux.drv"):
            (found,) = _derivations(_nix(nix, "derivation", "show", name)).values()
            if found["env"].get("out") == stdenv:
                return Derivation(engine["builder"], tuple(engine["args"]), environment, found["env"])
    raise ApplianceError(f"no input of {path} makes {stdenv}")


def name_of(store_path: str) -> str:
    """Return the name of a store path, without folder and hash.

    >>> name_of("/nix/store/7bcdzdvl6gsk86fvpwk0n5s5xh6j3633-zlib-1.3.2")
    'zlib-1.3.2'
    """
    return store_path.removeprefix("/nix/store/")[33:]


def _literal(path: Path) -> str:
    return json.dumps(str(path.resolve())).replace("${", "\\${")


def _derivations(text: str) -> dict[str, Any]:
    """Return the derivations of ``nix derivation show``; newer versions of Nix put them below a key."""
    shown: dict[str, Any] = json.loads(text)
    found: dict[str, Any] = shown.get("derivations", shown)
    return found


def _nix(nix: str, *words: str) -> str:
    argv = [nix, "--extra-experimental-features", "nix-command flakes", "--offline", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = list(_error_lines(done.stderr))
        raise ApplianceError(f"nix {words[0]} failed: {errors[-1] if errors else 'no message'}")
    return done.stdout


def _error_lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if "error:" in line)
