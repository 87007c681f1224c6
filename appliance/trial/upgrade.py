"""``appliance upgrade``: build the next generation, install it as a trial, boot it when told to."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

from appliance.errors import LoaderError, UsageError
from appliance.trial.loader import Loader
from appliance.trial.machine import Nixos
from appliance.trial.record import FOLDER, Record

PROFILE = Path("/nix/var/nix/profiles/system")
FLAKE = "/etc/nixos"


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
    system = args.system or Path(_output(build_command(args.flake, os.uname().nodename)))
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
    _output(["nix-env", "--profile", str(PROFILE), "--set", str(system.resolve())])
    # The boot loader's hook in there asks the record; it prints what follows.
    environment = os.environ | ({"APPLIANCE_TRIAL_AGAIN": "1"} if args.again else {})
    code = subprocess.run([program, "boot"], env=environment, check=False).returncode
    if code:
        raise LoaderError(f"{program} boot ended with {code}; nothing was rebooted, the machine runs what it ran")
    if not args.reboot:
        print("`systemctl reboot` tries it; without a reboot nothing changes")
        return 0
    return subprocess.run(["systemctl", "reboot"], check=False).returncode


def _output(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise LoaderError(f"{argv[0]} cannot be run ({error.strerror}); is this NixOS?") from None
    if done.returncode:
        raise LoaderError(f"{argv[0]} ended with {done.returncode}: see above; nothing was installed")
    return done.stdout.strip()
