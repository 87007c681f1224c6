"""The shared options and the grammar of durations."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli._args import SECONDS, add_config, duration
from appliance.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("90s", 90),
        ("5m", 300),
        ("1.5h", 5400),
        ("30d", 2_592_000),
        ("90", 90),
        ("0", 0),
        (".5m", 30),
        ("2.s", 2),
        ("999999d", 86_399_913_600),
    ],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert duration(text, "--since") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "-5m", "1h30m", "5 m", "5M", "1w", "inf", "nan", "1e3", "1_000s", "٣d", ".s", "9999999d"]
)
def test_another_text_is_rejected_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        duration(text, "--since")
    assert str(caught.value) == (
        f"--since: {text!r} is not a duration; write a number and ms, s, m, h or d, such as 90s or 30d"
    )


@given(st.integers(0, 100_000), st.sampled_from(sorted(SECONDS)))
def test_a_unit_multiplies(number: int, unit: str) -> None:
    assert duration(f"{number}{unit}", "--since") == number * SECONDS[unit]


def test_the_environment_names_the_default_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_CONFIG", "/srv/100%/site.json")
    parser = argparse.ArgumentParser()
    add_config(parser)
    assert str(parser.parse_args([]).config) == "/srv/100%/site.json"
    assert "/srv/100%/site.json" in parser.format_help()
