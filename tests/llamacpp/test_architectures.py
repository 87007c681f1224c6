"""The list of architectures, compared with the loader of the llama.cpp that the tests embed."""

from __future__ import annotations

from appliance.engines.gguf_examination import PROJECTOR, known_architectures
from tests.llamacpp.architectures import build, loaded

FOREIGN = {"nonsuch", "qwen9moe", PROJECTOR}


def test_the_list_is_that_of_the_embedded_build() -> None:
    listed_build, listed = known_architectures()
    assert listed_build == build(), "`python -m tests.llamacpp.architectures` prints the list of the new build"
    assert loaded(listed | FOREIGN) == listed
