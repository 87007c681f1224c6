"""Writes docs/options.md from the modules (``make options-doc``); a test says when it is stale."""

from __future__ import annotations

from tests.nix import checker

if __name__ == "__main__":
    (checker.ROOT / "docs/options.md").write_text(checker.value("options-doc"))
