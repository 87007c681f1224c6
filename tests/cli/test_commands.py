"""The table of commands, its help and its dispatch."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import cli

HEAVY = ("pydantic", "sqlalchemy", "fastapi", "rich", "msgspec", "uvloop", "locust")
"""Packages that take most of the time of a start."""


def commands_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield ``parser`` and the parsers of all its actions."""
    yield parser
    for action in parser._actions:  # argparse has no public list of its arguments
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from commands_of(one)


def test_each_command_is_in_one_group() -> None:
    names = [command.name for commands in cli.GROUPS.values() for command in commands]
    assert sorted(names) == sorted(cli.COMMANDS)
    assert len(names) == len(set(names))


def test_each_module_has_a_command() -> None:
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py") if not path.stem.startswith("_")}
    assert modules == {command.module for command in cli.COMMANDS.values()}


def test_help_shows_each_command_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for group, commands in cli.GROUPS.items():
        block = shown.split(f"{group}:\n")[1].split("\n\n")[0]
        assert [line.split()[0] for line in block.splitlines()] == [command.name for command in commands]
    assert max(map(len, shown.splitlines())) <= 90


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 2
    assert "Measure and plan:" in capsys.readouterr().err


def test_an_unknown_command_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["serve"])
    assert end.value.code == 2
    assert "command 'serve' does not exist; `appliance --help` lists the commands" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_argument_of_a_command_has_help(name: str) -> None:
    for parser in commands_of(cli.command_parser(name)):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                described = {choice.dest for choice in action._choices_actions if choice.help}
                assert described == set(action.choices), parser.prog
            else:
                assert action.help, f"{parser.prog}: {action.dest}"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_action_runs_a_function_of_its_arguments(name: str) -> None:
    for parser in commands_of(cli.command_parser(name)):
        nested = any(isinstance(a, argparse._SubParsersAction) and a.required for a in parser._actions)
        assert callable(parser.get_default("run")) is not nested, parser.prog


@pytest.mark.parametrize("words", [["--version"], ["--help"]])
def test_version_and_help_import_no_large_package(words: list[str]) -> None:
    code = (
        "import sys; from appliance.cli import main\n"
        f"try: main({words!r})\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_commands_of_operation_do_not_import_the_gateway() -> None:
    """Units start them, some each minute; the gateway's modules and SQLAlchemy would double the start."""
    heavy = ("sqlalchemy", "httpx", "fastapi", "appliance.gateway.app")
    code = (
        "import sys; from importlib import import_module; "
        "[import_module(f'appliance.cli.{name}') for name in ('doctor', 'gpu_watch', 'models', 'power')]; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
