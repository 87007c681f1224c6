"""The escrow sheet: all that a restore on an empty machine needs, kept off the machine by its owner.

It holds secrets in clear text, so it is written to a terminal or to a new file that only its owner may read.
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from appliance.contract.backup import BackupPlan
from appliance.contract.model import Name, Section
from appliance.errors import ConfigError, StoreError
from appliance.system import text_file
from appliance.watch.backup.restic import RepositoryAccess, open_access


class EscrowRepository(Section):
    """One repository with the secrets that open it."""

    url: str = Field(min_length=1, repr=False)
    password: str = Field(min_length=1, repr=False)
    environment: dict[str, str] = Field(default_factory=dict, repr=False)


class Escrow(Section):
    """The sheet."""

    version: Literal[1]
    host: Name
    age_key: str | None = Field(default=None, repr=False)
    repositories: dict[Name, EscrowRepository] = Field(min_length=1)

    def access(self, name: str | None) -> tuple[str, RepositoryAccess]:
        """Return name and access of the repository ``name``, by default of the first one.

        Raises :class:`ConfigError` if the sheet does not have it.
        """
        chosen = name if name is not None else next(iter(self.repositories))
        found = self.repositories.get(chosen)
        if found is None:
            known = ", ".join(self.repositories)
            raise ConfigError(f"the escrow sheet has no repository {chosen!r}; it has {known}")
        return chosen, RepositoryAccess(found.url, found.password, found.environment)


def make_escrow(plan: BackupPlan) -> Escrow:
    """Return the sheet of this machine; raises :class:`ConfigError` if a secret cannot be read."""
    repositories = {}
    for name, repository in plan.repositories.items():
        access = open_access(name, repository)
        repositories[name] = EscrowRepository(
            url=access.url, password=access.password, environment=dict(access.environment)
        )
    age_key = None
    if plan.age_key_file is not None:
        age_key = age_secret(text_file.read(Path(plan.age_key_file)))
        if age_key is None:
            raise ConfigError(
                f"{plan.age_key_file}: has no line that begins with AGE-SECRET-KEY-; name the age key"
            )
    return Escrow(version=1, host=plan.host, age_key=age_key, repositories=repositories)


def age_secret(text: str) -> str | None:
    """Return the secret key in the text of an age key file."""
    return next((line.strip() for line in text.splitlines() if line.startswith("AGE-SECRET-KEY-")), None)


def render_escrow(escrow: Escrow) -> str:
    """Return the sheet as TOML."""
    lines = [
        f"# Escrow of the backups of {escrow.host}: keep it where neither this machine nor the VPS can reach it.",
        "# With it and the site's flake, an empty machine is restored:",
        "#   appliance backup restore --escrow THIS-FILE --target FOLDER",
        "version = 1",
        f"host = {json.dumps(escrow.host)}",
    ]
    if escrow.age_key is not None:
        lines += ["# Decrypts the secrets of the flake (sops).", f"age_key = {json.dumps(escrow.age_key)}"]
    for name, repository in escrow.repositories.items():
        lines += ["", f"[repositories.{json.dumps(name)}]", f"url = {json.dumps(repository.url)}"]
        lines.append(f"password = {json.dumps(repository.password)}")
        if repository.environment:
            lines += ["", f"[repositories.{json.dumps(name)}.environment]"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in repository.environment.items()]
    return "\n".join(lines) + "\n"


def write_escrow(escrow: Escrow, path: Path) -> None:
    """Write the sheet to the new file ``path`` with mode 0600; raises :class:`StoreError`."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(render_escrow(escrow))
            file.flush()
            os.fsync(number)
    except FileExistsError:
        raise StoreError(f"{path} exists; choose another name: an escrow sheet replaces no file") from None
    except OSError as error:
        raise StoreError.unwritable(path, error) from None


def read_escrow(path: Path) -> Escrow:
    """Return the sheet in ``path``; raises :class:`ConfigError` without its content."""
    text = text_file.read(path, missing="no such file; name the escrow sheet (`appliance backup escrow` writes it)")
    try:
        return Escrow.model_validate_json(json.dumps(tomllib.loads(text)))
    except tomllib.TOMLDecodeError:
        raise ConfigError(f"{path}: is not TOML; copy the sheet again, each line whole") from None
    except ValidationError as error:
        places = sorted({".".join(map(str, one["loc"])) or "the file" for one in error.errors(include_url=False)})
        raise ConfigError(f"{path}: {', '.join(places)}: missing or not valid; copy the sheet again") from None
