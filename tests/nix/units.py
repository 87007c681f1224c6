"""Unit files of the evaluated configuration, as NixOS would write them."""

from __future__ import annotations

import re
from typing import Any

LISTS = {
    "after": "After", "before": "Before", "requires": "Requires", "wants": "Wants", "bindsTo": "BindsTo",
    "onFailure": "OnFailure", "onSuccess": "OnSuccess",
}  # fmt: skip


def render(service: dict[str, Any], *, programs: bool = False) -> str:
    """Return the unit file of ``service``.

    Its programs are not on this machine: /bin/true replaces each of them, with the same arguments. ``programs``
    keeps them, for a machine that has them at their paths.
    """
    unit = _head(service)
    body = ["[Service]", *(f'Environment="{k}={v}"' for k, v in (service.get("environment") or {}).items())]
    body += _lines(service["serviceConfig"])
    text = "\n".join([*unit, "", *body, ""])
    return text if programs else re.sub(r"^(Exec\w+=)\S+", r"\1/bin/true", text, flags=re.MULTILINE)


def render_other(kind: str, unit: dict[str, Any]) -> str:
    """Return the unit file of a ``timer`` or ``path`` unit."""
    return "\n".join([*_head(unit), "", f"[{kind.title()}]", *_lines(unit[f"{kind}Config"]), ""])


def _head(unit: dict[str, Any]) -> list[str]:
    lines = ["[Unit]", f"Description={unit['description']}"]
    lines += [f"{key}={' '.join(unit[name])}" for name, key in LISTS.items() if unit.get(name)]
    if isinstance(unit.get("startLimitIntervalSec"), int):
        lines.append(f"StartLimitIntervalSec={unit['startLimitIntervalSec']}")
    return lines + _lines(unit.get("unitConfig") or {})


def _lines(section: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in section.items():
        if isinstance(value, str) and value.startswith("<default:"):
            continue
        lines += [f"{key}={_text(item)}" for item in (value if isinstance(value, list) else [value])]
    return lines


def _text(value: Any) -> str:
    if isinstance(value, dict):
        # A file that Nix would write: the unit has its path.
        return str(value["path"])
    return str(value).lower() if isinstance(value, bool) else str(value)
