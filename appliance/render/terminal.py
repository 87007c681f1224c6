"""The terminal that commands print to."""

from __future__ import annotations

from typing import NoReturn

import rich.console


class Console(rich.console.Console):
    """Rich's console, which leaves a closed pipe to :func:`appliance.cli.main` instead of exiting with 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Pass the error on: the reader has what it wanted."""
        raise BrokenPipeError
