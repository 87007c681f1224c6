"""Names of models and precisions, and shares of the requests."""

from __future__ import annotations

import pytest

from appliance.errors import UsageError
from appliance.planner.models import parse_model, split_shares


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Qwen/Qwen3-31B", "did you mean 'Qwen/Qwen3-32B'"),
        ("Qwen/Qwen3-32B:fp7", "did you mean 'fp8'"),
        ("Qwen/Qwen3-32B:Q4_K_X", "did you mean 'Q4_K"),
    ],
)
def test_the_error_for_an_unknown_model_or_precision_names_the_nearest(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        parse_model(text)


@pytest.mark.parametrize(
    ("stated", "shares"),
    [
        ({}, {"chat": 0.45, "code": 0.45, "embed": 0.1}),
        ({"chat": 0.6}, {"chat": 0.6, "code": 0.36, "embed": 0.04}),
        ({"embed": 0.2}, {"chat": 0.4, "code": 0.4, "embed": 0.2}),
        ({"chat": 0.5, "code": 0.3}, {"chat": 0.5, "code": 0.3, "embed": 0.2}),
        ({"chat": 0.5, "code": 0.3, "embed": 0.2}, {"chat": 0.5, "code": 0.3, "embed": 0.2}),
    ],
)
def test_the_rest_of_the_shares_is_divided_among_the_models_that_chat(
    stated: dict[str, float], shares: dict[str, float]
) -> None:
    assert split_shares({"chat": False, "code": False, "embed": True}, stated) == pytest.approx(shares)
