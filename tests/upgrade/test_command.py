"""Programs that change a machine: their output, and the message of each kind of failure."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from appliance.errors import LoaderError
from appliance.upgrade.command import run
from tests.conftest import ROOT


def test_the_output_is_returned_stripped() -> None:
    assert run(["sh", "-c", "echo ' /nix/store/x '"], hint="h") == "/nix/store/x"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["/absent/bootctl", "set-default"],
            r"^/absent/bootctl cannot be run \(No such file or directory\); a hint$",
        ),
        (["/etc/passwd", "boot"], r"^/etc/passwd cannot be run \(Permission denied\); a hint$"),
        (["sh", "-c", "echo first >&2; echo last >&2; exit 3"], r"ended with 3: last; a hint$"),
        (["sh", "-c", "echo only; exit 1"], r"ended with 1: only; a hint$"),
        (["sh", "-c", "exit 1"], r"ended with 1: without a message; a hint$"),
        (["sh", "-c", "printf '\\377' >&2; exit 1"], "ended with 1: \N{REPLACEMENT CHARACTER}; a hint$"),
        (["sh", "-c", "kill -9 $$"], r"ended with -9: without a message; a hint$"),
    ],
)
def test_each_kind_of_failure_has_its_message(argv: list[str], message: str) -> None:
    with pytest.raises(LoaderError, match=message):
        run(argv, hint="a hint")


def test_a_program_that_hangs_is_ended_and_named() -> None:
    began = time.monotonic()
    with pytest.raises(LoaderError, match=r"^sleep 600 did not end within 0\.2 s; a hint$"):
        run(["sleep", "600"], hint="a hint", timeout_s=0.2)
    assert time.monotonic() - began < 60


def test_shown_output_is_inherited(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["sh", "-c", "echo out; echo err >&2; exit $CODE"]
    assert run(words, hint="h", shown="errors", environment={"CODE": "0"}) == "out"
    assert capfd.readouterr() == ("", "err\n")
    with pytest.raises(LoaderError, match="ended with 2: see above; h"):
        run(words, hint="h", shown="all", environment={"CODE": "2"})
    assert capfd.readouterr() == ("out\n", "err\n")


def test_a_program_does_not_read_the_standard_input_of_its_caller() -> None:
    """A hook whose standard input is a pipe must neither read from it nor wait for it."""
    calls = "from appliance.upgrade.command import run; run(['cat'], hint='h', timeout_s=20)"
    with subprocess.Popen([sys.executable, "-c", calls], stdin=subprocess.PIPE, cwd=ROOT) as caller:
        # The pipe stays open, so `cat` would wait for its end.
        assert caller.wait(timeout=60) == 0
