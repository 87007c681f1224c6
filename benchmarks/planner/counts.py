"""Weights of published models: their config.json built by transformers on torch's meta device.

Usage, with the Python of the engine's environment: ``python benchmarks/planner/counts.py FOLDER``. The folder has
files like ``Qwen--Qwen3-8B_config.json``, for example those of aiconfigurator's repository. It writes
tests/catalog/counted_models.csv, a row for each model that transformers builds without code of its own. It
also writes tests/catalog/counted_configs.json: configs and weights of models of new families that the catalog does
not have.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import tempfile
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from appliance.catalog.models import shipped_models
from appliance.catalog.shape import Shape
from benchmarks.planner.families import TOWERS, count

TABLE = Path(__file__).resolve().parents[2] / "tests" / "catalog" / "counted_models.csv"

CONFIGS = TABLE.with_name("counted_configs.json")

NEW_FAMILIES = ("llama4", "mimo_v2_flash", "minimax_m3_vl", "nemotron_h")


def written(file: str, path: Path) -> dict[str, object] | None:
    """Return the config and the weights of a model of a new family, None for another."""
    table = json.loads(path.read_text("utf-8"))
    found = counted(path) if table.get("model_type") in NEW_FAMILIES else None
    if found is None:
        return None
    for part in (table, table.get("text_config", {})):
        part.pop("quantization_config", None)
        part.pop("auto_map", None)
    config = {key: {} if key in TOWERS else value for key, value in table.items()}
    return {"model": file.replace("--", "/", 1), "params": found[1], "config": config}


def counted(path: Path) -> tuple[str, int] | None:
    """Return ``model_type`` and weights of the text model of ``path``; None if transformers does not build it."""
    with tempfile.TemporaryDirectory() as folder:
        table = json.loads(path.read_text("utf-8"))
        # The weights of the model, not of its packed checkpoint.
        for part in (table, table.get("text_config", {})):
            part.pop("quantization_config", None)
        (Path(folder) / "config.json").write_text(json.dumps(table), "utf-8")
        try:
            config = AutoConfig.from_pretrained(folder)
            nested = hasattr(config, "text_config")
            auto = AutoModelForImageTextToText if nested else AutoModelForCausalLM
            return config.model_type, count(config, auto, text_only=nested)
        except (ValueError, KeyError, AttributeError, TypeError, RuntimeError, ImportError) as error:
            print(f"{path.name}: {type(error).__name__}: {str(error)[:160]}", file=sys.stderr)
            return None


def catalog_name(file: str, known: dict[str, Shape]) -> str | None:
    """Return the catalog's model of a file: the same name, or one of another owner or in another precision."""
    plain = re.sub(r"(-NVFP4|-FP8|-BF16|-IT|-Instruct)+$", "", file.split("--", 1)[1], flags=re.IGNORECASE).lower()
    plain = plain.removeprefix("nvidia-").removeprefix("meta-")
    exact = [name for name in known if name == file.replace("--", "/", 1)]
    fits = [name for name in known if re.sub(r"(-it|-instruct)$", "", name.split("/")[1].lower()) == plain]
    return next(iter(exact + fits), None)


def main() -> None:
    """Write the table and print the differences from the catalog."""
    known = shipped_models()
    rows: dict[str, tuple[str, int]] = {}
    configs: list[dict[str, object]] = []
    for path in sorted(Path(sys.argv[1]).glob("*_config.json")):
        file = path.name.removesuffix("_config.json")
        name = None if file.endswith("_hf_quant") else catalog_name(file, known)
        new = None if name or file.endswith("_hf_quant") else written(file, path)
        if new is not None:
            configs.append(new)
            continue
        found = counted(path) if name else None
        if name is None or found is None:
            print(f"{file}: skipped", file=sys.stderr)
            continue
        rows.setdefault(name, found)
        if rows[name][1] != known[name].total_params:
            print(f"{name}: {rows[name][1]} by transformers, {known[name].total_params} in the catalog")
    with TABLE.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["model", "model_type", "params"])
        writer.writerows([name, *row] for name, row in sorted(rows.items()))
    lines = ",\n".join(json.dumps(one) for one in configs)
    CONFIGS.write_text(f"[\n{lines}\n]\n", "utf-8")


if __name__ == "__main__":
    main()
