"""Model files: folders of models, and the files of models.lock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.contract.machine import Weights
from appliance.contract.model import Model
from appliance.doctor.check import (
    NotApplicable,
    check,
)
from appliance.doctor.checks.units import read_units
from appliance.doctor.context import CheckContext
from appliance.doctor.finding import Finding, fail, ok, warn
from appliance.doctor.host import CannotLookError, HostReader
from appliance.errors import ConfigError
from appliance.models import lock, verification


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """The files of the lock compared with the store; ``mismatches`` describes each that differs."""

    files: int
    mismatches: tuple[str, ...]
    hashed: bool
    boot_check: str
    lock_error: str = ""


def read_weights(host: HostReader, store: str, lock_file: str, boot_check: str, *, hashes: bool) -> WeightFacts:
    """Compare the size of every file with the lock; with ``hashes`` also its SHA-256, minutes per 100 GiB.

    ``boot_check`` is the state of the unit that compares the hashes at boot.
    """
    try:
        entries = lock.read(host.path(lock_file))
    except ConfigError as error:
        return WeightFacts(files=0, mismatches=(), hashed=hashes, boot_check=boot_check, lock_error=str(error))
    folder = host.path(store)
    if hashes:
        mismatches = tuple(verification.differences(entries, folder))
    else:
        mismatches = tuple(found for entry in entries if (found := _size_mismatch(entry, folder)))
    return WeightFacts(files=len(entries), mismatches=mismatches, hashed=hashes, boot_check=boot_check)


def _size_mismatch(entry: lock.Entry, store: Path) -> str | None:
    name = f"{entry.repository} {entry.file}"
    try:
        size = entry.path(store).stat().st_size
    except OSError as error:
        return f"{name}: {error.strerror}"
    return None if size == entry.size else f"{name}: {size} bytes, the lock has {entry.size}"


def judge_weights(facts: WeightFacts) -> Finding:
    """Judge whether every file of models.lock is complete."""
    if facts.lock_error:
        return fail(
            facts.lock_error,
            meaning="The weights cannot be verified.",
            fix="nixos-rebuild switch",
            subject="lock",
        )
    if facts.mismatches:
        more = f"; and {len(facts.mismatches) - 1} more" if len(facts.mismatches) > 1 else ""
        return fail(
            f"{facts.mismatches[0]}{more}",
            meaning="An engine does not start, or generates nonsense.",
            fix="fetch the model again; appliance models verify --lock /etc/appliance/models.lock --store …",
            subject="lock",
            cause="weights",
        )
    if facts.boot_check == "failed":
        return fail(
            "the verification of the hashes at boot failed",
            meaning="The engines of its models do not start.",
            fix="journalctl -u appliance-models-verify; systemctl restart appliance-models-verify",
            subject="lock",
            cause="weights",
        )
    if facts.hashed:
        return ok(f"{facts.files} files, every SHA-256 matches the lock", subject="lock")
    if facts.boot_check == "active":
        return ok(f"{facts.files} files of the correct size; hashes matched at boot", subject="lock")
    return warn(
        f"{facts.files} files of the correct size; hashes were not verified since boot",
        meaning="Bit rot and incomplete files of the correct size stay undetected.",
        fix="appliance doctor --only models --hashes",
        subject="lock",
    )


def judge_folders(host: HostReader, models: dict[str, Model], base: Path) -> Iterator[Finding]:
    """Judge whether each model that is a folder exists and contains a model."""
    for name, model in models.items():
        if not model.is_folder:
            continue
        folder = Path(model.source).expanduser()
        path = host.path(folder) if folder.is_absolute() else base / folder
        subject = f"model {name}"
        if path.is_file() and path.suffix == ".gguf":
            yield ok(model.source, subject=subject)
        elif not path.is_dir():
            yield fail(
                f"{model.source} does not exist",
                meaning="Its engines cannot start.",
                fix=f"put the model into it, or correct models.{name}.source",
                subject=subject,
                cause="weights",
            )
        elif not (path / "config.json").exists() and not any(path.glob("*.gguf")):
            yield fail(
                f"{model.source} contains neither config.json nor a .gguf",
                meaning="Its engines cannot start.",
                fix=f"fetch the model again, or correct models.{name}.source",
                subject=subject,
                cause="weights",
            )
        else:
            yield ok(model.source, subject=subject)


VERIFY_UNIT = "appliance-models-verify.service"


def _weights(context: CheckContext, weights: Weights) -> Finding:
    if weights.lock is None:
        return warn(
            "there is no models.lock",
            meaning="Weights are used unverified: bit rot and incomplete files stay undetected.",
            fix=f"appliance models lock --store {weights.store} > models.lock; set appliance.models.lock",
            subject="lock",
        )
    try:
        state = read_units(context.host, [VERIFY_UNIT])[0].active
    except CannotLookError:
        state = ""  # the finding reports that the hashes were not verified
    facts = read_weights(
        host=context.host, store=weights.store, lock_file=weights.lock, boot_check=state, hashes=context.hashes
    )
    return judge_weights(facts)


def described_weights(context: CheckContext) -> Weights | NotApplicable | None:
    """Require models in folders, or weights in the machine's description."""
    weights = context.machine.weights if context.machine is not None else None
    folders = context.site is not None and any(
        context.site.models[r.engine.model].is_folder for r in context.replicas
    )
    return weights if folders or weights else NotApplicable("no folder and no models.lock to check against")


@check(
    "models",
    looks=(
        "sizes of every file of models.lock; hashes verified at boot, or now with `--hashes`; folders of models"
    ),
    means="An engine does not start, or generates nonsense.",
    fix="fetch the model again",
    requires=described_weights,
    fault_domain="generation",
)
def check_models(context: CheckContext, weights: Weights | None) -> Iterator[Finding]:
    """Check folders of models, and models.lock."""
    if context.site is not None:
        used = {r.engine.model for r in context.replicas if r.engine.kind != "mock"}
        models = {name: model for name, model in context.site.models.items() if name in used}
        yield from judge_folders(context.host, models, context.base)
    if weights is not None:
        yield _weights(context, weights)
