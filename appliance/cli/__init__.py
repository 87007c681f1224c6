"""The command line: check, schema, engine, gateway, keys, smoke, up; plan and catalog come from the planner."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from appliance import __version__
from appliance.errors import REFUSED, ApplianceError, ConfigError, StoreError, UsageError
from appliance.system import text_file
from appliance.system.early import INHERITED, end_quietly

if TYPE_CHECKING:
    from appliance.contract.model import Site
    from appliance.system.stopping import Stop

# Only what takes no time is imported here; everything else is imported where it is used.

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse gives it no other name
DEFAULT_CONFIG = "/etc/appliance/appliance.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Every :class:`ApplianceError` becomes its message, never a traceback.

    Without ``arguments`` this is the program itself: SIGINT then ends it by that signal, without a traceback. A
    long run (``long_run`` of its parser) has its own end, and obeys SIGINT also if it was inherited as ignored.
    """
    program = arguments is None
    inherited = (INHERITED or end_quietly()) if program else {}
    args = _parser().parse_args(arguments)
    if not getattr(args, "long_run", False):
        for number, handler in inherited.items():
            signal.signal(number, handler or signal.SIG_DFL)
    try:
        code = int(args.run(args)) if hasattr(args, "run") else _planner(args)
        # A short output meets a closed pipe only here.
        sys.stdout.flush()
    except ApplianceError as error:
        # A closed terminal takes no message; the exit code stays what it is.
        with contextlib.suppress(OSError):
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # `appliance plan | head`: the reader has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        # A refused write without a name is one to a stream: `appliance keys list > list` on a full disk.
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
        if program:
            # What is left is the interpreter's own end.
            end_quietly()


def _parser() -> argparse.ArgumentParser:
    from appliance.cli.doctor import add_doctor
    from appliance.cli.keys import add_keys, add_usage
    from appliance.cli.loadtest import add as add_loadtest
    from appliance.cli.plan_arguments import add_parser
    from appliance.cli.trial import add_trial
    from appliance.cli.upgrade import add_upgrade

    parser = argparse.ArgumentParser(prog="appliance", description="A private LLM service from bare machines.")
    parser.add_argument("--version", action="version", version=f"appliance {__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)

    check = commands.add_parser("check", help="validate a configuration; exit 2 and one line per fault")
    check.add_argument("file", type=Path)
    check.set_defaults(run=_check)

    schema = commands.add_parser("schema", help="print the JSON Schema of the configuration")
    schema.set_defaults(run=_schema)

    add_keys(commands, _config_option)
    add_usage(commands, _config_option)
    add_doctor(commands, _config_option)
    add_loadtest(commands, _config_option)
    for add in (_add_engine, _add_proofs, _add_models, _add_up, add_parser, add_trial, add_upgrade):
        add(commands)
    return parser


def _add_engine(commands: Commands) -> None:
    engine = commands.add_parser("engine", help="run an engine, or show what would run")
    engine_commands = engine.add_subparsers(metavar="action", required=True)
    for action, run, text in (
        ("exec", _engine_exec, "become the engine"),
        ("argv", _engine_argv, "print its command"),
    ):
        one = engine_commands.add_parser(action, help=text)
        one.add_argument("name", help="engine, or engine.N for replica N")
        one.set_defaults(run=run)
        _config_option(one)

    gateway = commands.add_parser("gateway", help="run the gateway")
    gateway.set_defaults(run=_gateway)
    _config_option(gateway)


def _add_proofs(commands: Commands) -> None:
    load = commands.add_parser(
        "smoke", help="prove a running service with a short load; exit code 0 pass, 1 missed, 2 proves nothing"
    )
    load.add_argument("--url", help="base URL of the gateway; from the configuration when absent")
    load.add_argument("--model", help="model or role to ask for; the first generating model when absent")
    load.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    load.set_defaults(run=_smoke, long_run=True)
    _config_option(load)
    load.add_argument(
        "--reports",
        type=Path,
        metavar="FOLDER",
        help="prove this whole host, and keep the report there by generation",
    )
    load.add_argument(
        "--once", action="store_true", help="not again at a boot of a generation that passed after a boot before"
    )


def _add_models(commands: Commands) -> None:
    from appliance.cli.keys import add_models

    models = commands.add_parser("models", help="what is loaded, swaps, and weights on disk against models.lock")
    model_commands = models.add_subparsers(metavar="action", required=True)
    verify = model_commands.add_parser("verify", help="exit 1 and one line per file that is not what the lock says")
    verify.add_argument("--lock", type=Path, required=True)
    verify.set_defaults(run=_models_verify)
    make = model_commands.add_parser("lock", help="print the lock of what the store holds now")
    make.set_defaults(run=_models_lock)
    add_models(model_commands, _config_option)
    for one in (verify, make):
        one.add_argument("--store", type=Path, required=True, help="the model hub's cache folder (HF_HOME)")


def _add_up(commands: Commands) -> None:
    up = commands.add_parser("up", help="the whole service on this machine, without Nix (what `make up` runs)")
    up.add_argument("--engine", choices=("vllm", "fake"), default="vllm")
    up.add_argument("--model", choices=("auto", "tiny"), default="auto")
    up.add_argument("--port", help="port of the gateway")
    up.add_argument("--engine-port", metavar="PORT", help="port of the engine; further replicas use those after it")
    up.add_argument("--once", action="store_true", help="end after the smoke test, with its exit code")
    up.add_argument("--engine-python", metavar="PATH", default=".venv-engine/bin/python")
    up.set_defaults(run=_up, long_run=True)
    _config_option(up, "examples/laptop.toml")


def _config_option(parser: argparse.ArgumentParser, default: str = DEFAULT_CONFIG) -> None:
    path = Path(os.environ.get("APPLIANCE_CONFIG", default)) if default == DEFAULT_CONFIG else Path(default)
    parser.add_argument("--config", type=Path, default=path, metavar="FILE", help=f"configuration ({path})")


def _check(args: argparse.Namespace) -> int:
    from appliance.contract.load import load
    from appliance.engines import argv as engine_argv
    from appliance.planner.fit import fit

    site = load(args.file)
    if unfit := fit(site):
        raise ConfigError("\n".join(f"{args.file}: {violation}" for violation in unfit))
    count = len(engine_argv.replicas(site))
    print(f"{args.file}: ok; {len(site.models)} models, {count} engine replicas, {len(site.roles)} roles")
    return 0


def _planner(args: argparse.Namespace) -> int:
    from appliance.cli import plan

    return plan.run(args)


def _schema(_: argparse.Namespace) -> int:
    from appliance.contract.model import Site

    print(json.dumps(Site.model_json_schema(), indent=2))
    return 0


def _engine_argv(args: argparse.Namespace) -> int:
    from appliance.contract.load import load
    from appliance.engines import argv as engine_argv

    site = load(args.config)
    command = engine_argv.command(site, engine_argv.find(site, args.name), Path.cwd())
    for name, value in sorted(command.environment.items()):
        print(f"{name}={value}")
    for word in command.argv:
        print(word)
    return 0


def _engine_exec(args: argparse.Namespace) -> int:
    from appliance.contract.load import load
    from appliance.engines import argv as engine_argv

    site = load(args.config)
    command = engine_argv.command(site, engine_argv.find(site, args.name), Path.cwd())
    try:
        os.execvpe(command.argv[0], command.argv, {**os.environ, **command.environment})
    except OSError as error:
        message = f"engines.{args.name}.command: {command.argv[0]} cannot be run ({error.strerror})"
        raise UsageError(f"{message}; name the engine's Python or binary there") from None


def _gateway(args: argparse.Namespace) -> int:
    from appliance.contract.load import load
    from appliance.gateway.main import serve

    site = load(args.config)
    return serve(site, Path.cwd())


def _smoke(args: argparse.Namespace) -> int:
    from appliance.contract.load import load
    from appliance.smoketest.load import command
    from appliance.system.stopping import listening

    site = load(args.config)
    key = text_file.key(os.environ.get("APPLIANCE_API_KEY", ""), "APPLIANCE_API_KEY")
    if not key:
        raise UsageError("APPLIANCE_API_KEY is not set; make a key with `appliance keys create smoke`")
    with listening() as stop:
        if args.reports is not None:
            return _prove(site, args, key, stop)
        return command(site, args, key, stop)


def _prove(site: Site, args: argparse.Namespace, key: str, stop: Stop) -> int:
    from appliance.render.terminal import long_run_console
    from appliance.smoketest import report, run

    show = long_run_console()
    what = run.subject()
    if args.once and (earlier := run.proven_before(args.reports, what)):
        show.print(f"{earlier.line} (on {earlier.began}; not again at each boot)", markup=False, soft_wrap=True)
        return 0
    folder = report.folder_of(args.reports, what.place.generation)

    def say(step: report.SmokeStep) -> None:
        line = f"{step.level:4} {step.sentence}{f'; {step.mend}' if step.mend else ''}"
        show.print(line, markup=False, soft_wrap=True)

    made = run.prove(site, Path.cwd(), key=key, folder=folder, what=what, say=say, stop=stop)
    show.print(made.line, markup=False, soft_wrap=True)
    # A test that was stopped proves nothing, neither that the host works nor that it does not.
    return 0 if made.passed else 2 if stop.requested else 1


def _models_verify(args: argparse.Namespace) -> int:
    from appliance.models import lock

    entries = lock.read(args.lock)
    faults = list(lock.verify(entries, args.store))
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        print(f"{len(entries)} files of {args.lock} are whole in {args.store}")
    return 1 if faults else 0


def _models_lock(args: argparse.Namespace) -> int:
    from appliance.models import lock

    print(lock.HEADER + "\n".join(str(entry) for entry in lock.make(args.store)))
    return 0


def _up(args: argparse.Namespace) -> int:
    from appliance.system.ports import port
    from appliance.up import Options, up

    options = Options(
        config=args.config,
        engine=args.engine,
        model=args.model,
        port=None if args.port is None else port(args.port, "--port (PORT=)"),
        once=args.once,
        engine_python=Path(args.engine_python).absolute(),
        base=Path.cwd(),
        engine_port=None if args.engine_port is None else port(args.engine_port, "--engine-port (ENGINE_PORT=)"),
    )
    return up(options)
