"""The evaluation cases of tests/nix/cases: values that the modules produce, and configurations that they reject."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from appliance.cli import main
from tests.nix import checker

NAMES = sorted(
    name
    for file in (checker.ROOT / "tests/nix/cases").glob("*.nix")
    for name in re.findall(r'^  "([^"]+)" = \{$', file.read_text(), re.MULTILINE)
)


def kinds() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = checker.value("list")
    return found


def test_every_case_is_run() -> None:
    assert sorted(kinds()) == NAMES
    negative = [name for name, case in kinds().items() if case["kind"] != "gives"]
    assert len(NAMES) >= 40
    assert len(negative) * 2 >= len(NAMES)
    claimed = f"| {len(NAMES)} evaluation cases, {len(negative)} of them negative"
    assert claimed in (checker.ROOT / "docs/verification.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = kinds()[name]
    if case["kind"] == "errors":
        done = checker.run(name)
        assert done.returncode != 0, f"was accepted: {name}"
        assert case["text"] in " ".join(done.stderr.split())
        return
    outcome = checker.value()[name]
    assert outcome["fault"] is None, outcome["fault"]
    if case["kind"] == "refuses" or outcome.get("site") is None:
        return
    # `appliance check` validates the rendered file, as in the NixOS build.
    site = tmp_path / "appliance.json"
    site.write_text(json.dumps(outcome["site"]))
    code = main(["check", str(site)])
    output = capsys.readouterr()
    if case["kind"] == "invalid":
        assert code == 2
        assert case["text"] in output.err
    else:
        assert code == 0, output.err


def test_the_project_is_valid() -> None:
    """nix-check parses every file and evaluates every host with its assertions."""
    checker.require_nix()
    done = checker.run_process([checker.CHECKER / "nix-check", "project", checker.ROOT])
    assert done.returncode == 0, done.stdout


def test_options_doc_is_current() -> None:
    text = checker.value("options-doc")
    assert (checker.ROOT / "docs/options.md").read_text() == text, "stale: run `make options-doc`"


def test_every_option_has_description_and_example() -> None:
    entries = re.split(r"^### ", checker.value("options-doc"), flags=re.MULTILINE)[1:]
    assert len(entries) > 60
    for entry in entries:
        title, _, rest = entry.partition("\n")
        described = rest.strip().split("\n", 1)[0]
        assert described, f"{title} has no description"
        assert not described.startswith("- type"), f"{title} has no description"
        if "- type: boolean" not in rest:
            assert "- example:" in rest, f"{title} has no example"


def test_the_flake_has_its_outputs() -> None:
    flake = checker.value("flake")
    assert flake["hosts"] == ["gpu", "installer", "side", "vps"]
    assert {"default", "gpu", "side", "vps"} <= set(flake["modules"])
    assert {"iso", "appliance", "engine-cuda", "loadtest", "options-doc"} <= set(flake["packages"])
    assert flake["apps"] == dict.fromkeys(("default", "doctor", "loadtest", "plan"), "app")
    assert {"gpu", "vps", "installer", "evaluation", "options-doc", "example-sites", "formatting", "vm"} <= set(
        flake["checks"]
    )
    assert flake["devShells"] == flake["templates"] == ["default"]


def test_the_lock_matches_the_flake(tmp_path: Path) -> None:
    """Nix finds flake.lock complete and in step with flake.nix, without the network."""
    nix = checker.require_nix()
    for name in ("flake.nix", "flake.lock"):
        (tmp_path / name).write_text((checker.ROOT / name).read_text())
    argv = [nix, "--extra-experimental-features", "nix-command flakes", "flake", "metadata", "--offline"]
    done = checker.run_process([*argv, "--no-update-lock-file", f"path:{tmp_path}"])
    assert done.returncode == 0, done.stderr
    (tmp_path / "flake.nix").write_text((tmp_path / "flake.nix").read_text().replace("nixos-26.05", "nixos-25.11"))
    done = checker.run_process([*argv, "--no-update-lock-file", f"path:{tmp_path}"])
    assert done.returncode != 0


def test_wheels_are_fetched_by_their_digests() -> None:
    """The derivation of the engine fetches exactly the locked files, from the index that nixpkgs names."""
    engine = checker.value("engine-cuda")
    locked = json.loads((checker.ROOT / "modules/wheels.json").read_text())
    assert engine["version"] == next(wheel["version"] for wheel in locked if wheel["name"] == "vllm")
    assert engine["inputs"] >= 1
    assert engine["srcs"] == [
        {"url": f"https://index.invalid/packages/{wheel['path']}/{wheel['file']}", "sha256": wheel["sha256"]}
        for wheel in locked
    ]
    assert "libcuda.so.1" in engine["autoPatchelfIgnoreMissingDeps"]
    assert engine["appendRunpaths"][0] == "$ORIGIN"
    assert engine["appendRunpaths"][-1] == "/run/opengl-driver/lib"


@pytest.mark.parametrize("release", ["25.11", "24.05pre-git"])
def test_an_older_nixpkgs_is_refused_in_one_line(release: str) -> None:
    error = checker.failure(
        f"""
        {{
          modules.description = (import (root + "/modules/default.nix") {{
            lib = lib // {{ trivial = lib.trivial // {{ release = "{release}"; }}; }};
          }}).imports;
        }}
        """
    )
    assert error.endswith(
        f"error: appliance: this nixpkgs is {release}, and the modules need 26.05 or newer: set inputs.nixpkgs.url "
        "to a newer branch, or let it follow the appliance's own nixpkgs"
    )


def caches_version(wheels: Path, fetcher: str = "lib.id") -> str:
    """Return the version under which an engine of these wheels keeps what it compiles."""
    recorded: str = checker.expression(
        f"""
        (import (root + "/modules/packages/engine-cuda.nix") {{
          inherit lib;
          pkgs = {{ }};
          stdenv.mkDerivation = lib.id;
          fetchurl = {fetcher};
          python313.pythonVersion = "3.13";
          autoPatchelfHook = "hook";
          addDriverRunpath.driverLink = "/";
          wheelList = /. + {checker.string(str(wheels))};
        }}).passthru.cachesVersion
        """
    )
    return recorded


def test_compiled_kernels_are_kept_for_the_wheels_and_not_for_nixpkgs(tmp_path: Path) -> None:
    locked = checker.ROOT / "modules/wheels.json"
    version = caches_version(locked)
    assert re.fullmatch(r"0\.33\.0-[0-9a-f]{12}", version)
    assert caches_version(locked, "_: { }") == version, "another nixpkgs"
    wheels = json.loads(locked.read_text())
    next(wheel for wheel in wheels if wheel["name"] == "triton")["sha256"] = "0" * 64
    other = tmp_path / "wheels.json"
    other.write_text(json.dumps(wheels))
    assert caches_version(other) != version


def test_an_index_with_other_addresses_stops_the_evaluation() -> None:
    """Without the folder "packages" in nixpkgs' address, the place of the wheels is unknown."""
    error = checker.failure(
        """
        {
          engine.description = builtins.head ((import (root + "/modules/packages/engine-cuda.nix") {
            inherit lib;
            pkgs = { };
            stdenv.mkDerivation = lib.id;
            fetchurl = arguments: arguments.url;
            python313.pythonVersion = "3.13";
            python313.pkgs.fetchPypi = _: { url = "https://index.invalid/files/a.whl"; };
            autoPatchelfHook = "hook";
            addDriverRunpath.driverLink = "/";
          }).srcs);
        }
        """
    )
    assert "gives https://index.invalid/files/a.whl, which has no /packages/ in it" in error
