"""The command line: one table of commands, one dispatch.

:data:`GROUPS` is the one list of commands, in the groups of ``appliance --help``. A command named ``keys`` has a
function ``add_keys`` in its module; a dash is an underscore there. It adds its arguments to a parser and sets
``run``, a function from :class:`argparse.Namespace` to the exit code. Only the module of the chosen command is
imported.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from appliance import __version__
from appliance.errors import REFUSED, ApplianceError, StoreError
from appliance.system.early import INHERITED, end_quietly


class CliCommand(NamedTuple):
    """One command: its name, the module of this package that has it, and one line of help."""

    name: str
    module: str
    help: str


GROUPS: dict[str, tuple[CliCommand, ...]] = {
    "Serve": (
        CliCommand("up", "up", "run the whole service on this machine, without Nix (`make up` runs this)"),
        CliCommand("gateway", "serve", "run the gateway"),
        CliCommand("engine", "serve", "run one engine, or print its command line"),
        CliCommand("assistant", "serve", "run the assistant: conversations, files, memory"),
        CliCommand("admin", "serve", "run the admin API"),
        CliCommand("fetcher", "fetcher", "read public web pages for the assistant's web search"),
        CliCommand("models", "models", "show and swap loaded models; fetch, verify, list and remove weights"),
    ),
    "People and keys": (
        CliCommand("users", "users", "create users, give them plans, invite them, bill them"),
        CliCommand("keys", "keys", "create, change, list and revoke API keys"),
        CliCommand("usage", "keys", "sum requests, tokens, waiting time and TTFT by user, model or day"),
        CliCommand("chats", "chats", "list, show, export and delete the conversations of a user"),
        CliCommand("telegram", "telegram", "run the Telegram bot; link persons to users"),
    ),
    "Memory": (CliCommand("memory", "memory", "list the stores of the memory, and embed them again"),),
    "Measure and plan": (
        CliCommand("plan", "plan", "choose what runs on which card, and predict its speed"),
        CliCommand("catalog", "plan", "list the cards and models of the planner, or add a model"),
        CliCommand("loadtest", "loadtest", "load a gateway and compare the results with SLOs"),
        CliCommand("bench", "bench", "measure this host: throughput, latency, energy, swaps"),
    ),
    "Check and repair": (
        CliCommand("check", "check", "validate a configuration"),
        CliCommand("schema", "check", "print the JSON Schema of the configuration"),
        CliCommand("doctor", "doctor", "compare this host with its configuration; changes nothing"),
        CliCommand("smoke", "smoke", "test a running service with a short load"),
    ),
    "Operate": (
        CliCommand("backup", "backup", "save keys, usage and configuration; restore them; drill the restore"),
        CliCommand("deadman", "deadman", "watch the host at home from the VPS; announce an absence to it"),
        CliCommand("gpu-watch", "gpu_watch", "watch the cards: heat, errors of the driver, hung engines"),
        CliCommand("notify", "notify", "send notices to the operator's chat, and show the ones that wait"),
        CliCommand("power", "power", "carry this host through power cuts; show its UPS; measure the runtime"),
    ),
    "Upgrade": (
        CliCommand(
            "upgrade", "upgrade", "build and install the next generation; it is on trial from the next boot"
        ),
        CliCommand("trial", "upgrade", "show generations: known good, on trial, rolled back and why"),
    ),
}
"""The commands by what people do with them."""

COMMANDS = {command.name: command for commands in GROUPS.values() for command in commands}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. An :class:`ApplianceError` is printed without a traceback.

    Without ``arguments`` this is the program itself: SIGINT then ends it by that signal, without a traceback. A
    long run (``long_run`` of its parser) has its own end, and obeys SIGINT also if it was inherited as ignored.
    """
    program = arguments is None
    inherited = (INHERITED or end_quietly()) if program else {}
    args = parse(sys.argv[1:] if arguments is None else arguments)
    if not getattr(args, "long_run", False):
        for number, handler in inherited.items():
            signal.signal(number, handler or signal.SIG_DFL)
    try:
        code = int(args.run(args))
        # A short output reaches a closed pipe only here.
        sys.stdout.flush()
    except ApplianceError as error:
        # The message cannot be written to a closed terminal; the exit code stays the same.
        with contextlib.suppress(OSError):
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # `appliance plan | head`: the reader has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        # An OSError without a file name is about a stream: `appliance keys list > list` on a full disk.
        unwritable = StoreError.unwritable(Path(error.filename or "/dev/stdout"), error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with contextlib.suppress(OSError):
            print(f"error: {unwritable}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if not program:
            raise
        end_quietly()
        os.kill(os.getpid(), signal.SIGINT)
        return 128 + signal.SIGINT
    else:
        return code
    finally:
        if program and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            # Only the interpreter's own end follows. A command that ignores signals has its exit code already.
            end_quietly()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed ``arguments``; their ``run`` is the function of the command.

    Raises :class:`SystemExit` after ``--help`` or ``--version`` (0) and if the arguments are not valid (2).
    """
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    first = parser.parse_args(arguments)
    if first.command not in COMMANDS:
        parser.error(f"command {first.command!r} does not exist; `appliance --help` lists the commands")
    return command_parser(first.command).parse_args(first.arguments)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the options before the command; it leaves the rest to the command's own parser."""
    parser = argparse.ArgumentParser(
        prog="appliance",
        usage="appliance [-h] [--version] COMMAND ...",
        description=f"A private LLM service from bare machines.\n\n{_command_list()}",
        epilog="`appliance COMMAND --help` describes a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"appliance {__version__}")
    parser.add_argument("command", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _command_list() -> str:
    width = max(map(len, COMMANDS)) + 2
    return "\n\n".join(
        "\n".join([f"{group}:", *(f"  {command.name:{width}}{command.help}" for command in commands)])
        for group, commands in GROUPS.items()
    )


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of the command ``name``; imports its module."""
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"appliance {name}", description=_sentence(command.help))
    module = import_module(f"appliance.cli.{command.module}")
    getattr(module, f"add_{name.replace('-', '_')}")(parser)
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
