"""The licences of a whole nixpkgs: a side box whose flake does not allow unfree packages."""

from __future__ import annotations

import json
from typing import Any

from tests.nix import checker, rendered

SIDE = """
arguments: let
  flake = import (/. + arguments.root + "/tests/nix/real_flake.nix") { inherit (arguments) root inputs; };
  nixpkgs = builtins.storePath arguments.inputs.nixpkgs;
  system = import (nixpkgs + "/nixos/lib/eval-config.nix") {
    system = null;
    modules = [
      flake.nixosModules.default
      (/. + arguments.root + "/hosts/side.nix")
      { nixpkgs.hostPlatform = "x86_64-linux"; }
      ({ lib, ... }: { appliance.n8n.enable = lib.mkForce arguments.n8n; })
    ];
  };
  evaluates = package: (builtins.tryEval package.drvPath).success;
in builtins.mapAttrs (_: evaluates) { inherit (system.pkgs) n8n n8n-task-runner-launcher unrar hello; }
"""


def allowed(*, n8n: bool) -> Any:
    """Return which packages the side box evaluates; ``n8n`` is whether it runs n8n."""
    rendered.require()
    arguments = checker.string(json.dumps({"root": str(checker.ROOT), "inputs": rendered.inputs(), "n8n": n8n}))
    expression = f"({SIDE}) (builtins.fromJSON {arguments})"
    return json.loads(rendered.nix("eval", "--impure", "--json", "--expr", expression))


def test_n8n_and_its_launcher_are_the_only_unfree_packages() -> None:
    assert allowed(n8n=True) == {"n8n": True, "n8n-task-runner-launcher": True, "unrar": False, "hello": True}


def test_control_without_n8n_no_unfree_package_evaluates() -> None:
    assert allowed(n8n=False) == {
        "n8n": False,
        "n8n-task-runner-launcher": False,
        "unrar": False,
        "hello": True,
    }
