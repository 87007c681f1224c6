"""Downloads one pinned model; runs under the engine's Python: ``fetch.py REPOSITORY REVISION FOLDER SHA256``.

The revision pins every file. The SHA-256 of the weights is checked in addition: to an engine, an incomplete or a
manipulated download looks the same as a good one.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from huggingface_hub import snapshot_download

WEIGHTS = "model.safetensors"


def main() -> int:
    """Download the model into FOLDER; return 0 if its weights have the expected digest."""
    repository, revision, folder, expected = sys.argv[1:5]
    snapshot_download(
        repository,
        revision=revision,
        local_dir=folder,
        allow_patterns=["*.json", "*.safetensors", "*.jinja", "merges.txt", "tokenizer*", "LICENSE"],
    )
    with (Path(folder) / WEIGHTS).open("rb") as weights:
        actual = hashlib.file_digest(weights, "sha256").hexdigest()
    if actual != expected:
        (Path(folder) / WEIGHTS).unlink()
        print(f"{WEIGHTS} has SHA-256 {actual}, pinned is {expected}; it was removed", file=sys.stderr)
        return 1
    (Path(folder) / ".verified").write_text(f"{revision} {expected}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
