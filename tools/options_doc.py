"""Write modules/schema.json from the contract and docs/options.md from the modules (``make options-doc``)."""

from __future__ import annotations

import json

from appliance.contract.model import Site
from tests.nix import checker

if __name__ == "__main__":
    # First the schema: the modules make options of it.
    (checker.ROOT / "modules/schema.json").write_text(json.dumps(Site.model_json_schema(), indent=2) + "\n")
    (checker.ROOT / "docs/options.md").write_text(checker.value("options-doc"))
