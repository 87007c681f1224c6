"""``appliance upgrade``: build the next generation, install it as a trial, boot it when told to."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from appliance.errors import UsageError
from appliance.upgrade import command
from appliance.upgrade.bootloader import Loader
from appliance.upgrade.nixos import Nixos
from appliance.upgrade.state_file import FOLDER, Record

PROFILE = Path("/nix/var/nix/profiles/system")
FLAKE = "/etc/nixos"
STAYS = "nothing was rebooted, the machine runs what it ran"


def add_upgrade(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``upgrade`` to the command line."""
    upgrade = commands.add_parser(
        "upgrade", help="build and install the next generation; it is tried at the next boot"
    )
    upgrade.add_argument(
        "--flake", default=FLAKE, metavar="REF", help="flake, and #host if not this one (%(default)s)"
    )
    upgrade.add_argument("--system", type=Path, metavar="PATH", help="a system that is built already")
    upgrade.add_argument("--reboot", action="store_true", help="boot it now")
    upgrade.add_argument("--again", action="store_true", help="try it although it was rolled back before")
    upgrade.add_argument("--record", type=Path, default=FOLDER, help="folder of the record (%(default)s)")
    upgrade.set_defaults(run=run)


def build_command(flake: str, hostname: str) -> list[str]:
    """The build of ``flake``'s system for ``hostname`` unless it names another after ``#``."""
    reference, _, host = flake.partition("#")
    target = f'{reference}#nixosConfigurations."{host or hostname}".config.system.build.toplevel'
    return ["nix", "build", "--no-link", "--print-out-paths", target]


def run(args: argparse.Namespace) -> int:
    """Build, refuse what was rolled back, install, and say or do what comes next."""
    if os.geteuid() != 0:
        raise UsageError("appliance upgrade changes the system: run it as root (sudo appliance upgrade)")
    system = args.system or _build(args.flake)
    program = system / "bin" / "switch-to-configuration"
    if not program.exists():
        raise UsageError(f"{system} is no NixOS system: {program} does not exist")
    machine = Nixos(Loader())
    new = machine.generation(system)
    failure = Record(args.record).load().why_not(new)
    if failure is not None and not args.again:
        raise UsageError(
            f"{new.label} was rolled back on {failure.at or 'an earlier day'}: {failure.reason}; mend that, or "
            "try it once more with --again"
        )
    if machine.running().generation.same(new):
        print(f"{new.label} runs already; nothing to do")
        return 0
    command.run(["nix-env", "--profile", str(PROFILE), "--set", str(system.resolve())], hint=STAYS)
    # The boot loader's hook in there asks the record; it prints what follows.
    environment = os.environ | ({"APPLIANCE_TRIAL_AGAIN": "1"} if args.again else {})
    command.run([str(program), "boot"], hint=STAYS, shown="all", environment=environment, timeout_s=None)
    if not args.reboot:
        print("`systemctl reboot` tries it; without a reboot nothing changes")
        return 0
    command.run(["systemctl", "reboot"], hint=STAYS, shown="all")
    return 0


def _build(flake: str) -> Path:
    # As long as it takes, before the eyes of who waits for it.
    argv = build_command(flake, os.uname().nodename)
    return Path(command.run(argv, hint="nothing was installed", shown="errors", timeout_s=None))
