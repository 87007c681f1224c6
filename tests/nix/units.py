"""Writes a service of the evaluated configuration as the unit file that NixOS would write."""

from __future__ import annotations

import re
from typing import Any

LISTS = {
    "after": "After", "before": "Before", "requires": "Requires", "wants": "Wants", "bindsTo": "BindsTo",
    "onFailure": "OnFailure", "onSuccess": "OnSuccess",
}  # fmt: skip


def render(service: dict[str, Any]) -> str:
    """The unit file's text. Its programs are not on this machine: each becomes /bin/true, arguments kept."""
    unit = ["[Unit]", f"Description={service['description']}"]
    unit += [f"{key}={' '.join(service[name])}" for name, key in LISTS.items() if service.get(name)]
    unit += _lines(service.get("unitConfig") or {})
    body = ["[Service]", *(f'Environment="{k}={v}"' for k, v in (service.get("environment") or {}).items())]
    body += _lines(service["serviceConfig"])
    text = "\n".join([*unit, "", *body, ""])
    return re.sub(r"^(Exec\w+=)\S+", r"\1/bin/true", text, flags=re.MULTILINE)


def _lines(section: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in section.items():
        if isinstance(value, str) and value.startswith("<default:"):
            continue
        lines += [f"{key}={_text(item)}" for item in (value if isinstance(value, list) else [value])]
    return lines


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
