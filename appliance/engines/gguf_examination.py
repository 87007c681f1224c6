"""The examination of a GGUF before its engine starts: whether llama.cpp loads its architecture.

llama.cpp reads the file only after the model before it was unloaded, and then ends. So the header is read
beforehand, by the gateway before a swap and by ``appliance engine exec`` before a start.

The known architectures are those of a build that the tests run (``llamacpp_architectures.txt``). An older build
lacks the newest of them, and ends as before. A newer one has more: ``gguf_architectures`` of the engine adds them.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path

from appliance.contract.model import Model, Site
from appliance.engines.argv import EngineReplica
from appliance.engines.gguf import PART, read_model
from appliance.errors import StartError

PROJECTOR = "clip"
"""The architecture of a file that only translates images or sound for another model."""


@cache
def known_architectures() -> tuple[str, frozenset[str]]:
    """Return the build of llama.cpp that the list is from, and the architectures that it loads."""
    text = package_files("appliance.engines").joinpath("llamacpp_architectures.txt").read_text("utf-8")
    lines = text.splitlines()
    build = next(word for word in lines[0].replace(",", " ").split() if word.startswith("b") and word[1:].isdigit())
    return build, frozenset(line for line in lines if line and not line.startswith("#"))


def require_loadable(site: Site, replica: EngineReplica, base: Path, store: Path) -> None:
    """Raise an error unless llama.cpp can load the files of ``replica``; other kinds of engines are not examined.

    Args:
        site: The site of the engine.
        replica: The replica that is to start.
        base: Its working directory, at which relative paths begin.
        store: Cache folder of the model hub (HF_HOME), for a model that is a repository.

    Raises:
        StartError: The architecture is unknown, or the file is a projector.
        StoreError: The file is missing, unreadable, damaged or not a GGUF.
    """
    engine = replica.engine
    if engine.kind != "llamacpp":
        return
    build, known = known_architectures()
    for path in _main_files(site.models[engine.model], base, store):
        architecture = read_model(path).architecture
        if architecture == PROJECTOR:
            raise StartError(f"{path}: is a projector of another model, not a model; name the GGUF of the model")
        if architecture not in known and architecture not in engine.gguf_architectures:
            name = next(name for name, one in site.engines.items() if one is engine)
            added = json.dumps([*engine.gguf_architectures, architecture])
            raise StartError(
                f"{path}: has the architecture {architecture!r}, which llama.cpp {build} lacks; use another GGUF, "
                f"or a newer llama.cpp and engines.{name}.gguf_architectures = {added}"
            )


def _main_files(model: Model, base: Path, store: Path) -> list[Path]:
    """Return the files of which llama.cpp loads one: that of a path, or the first parts in a pinned repository."""
    if model.is_folder:
        return [(base / Path(model.source).expanduser()).resolve()]
    if model.revision is None:
        return []
    folder = store / "hub" / f"models--{model.source.replace('/', '--')}" / "snapshots" / model.revision
    return [
        path
        for path in sorted(folder.glob("*.gguf"))
        if not path.name.startswith("mmproj")
        and (PART.search(path.name) or {"number": "00001"})["number"] == "00001"
    ]
