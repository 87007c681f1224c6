"""The texts of the page: complete in both languages, and used."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from appliance.assistant.page.shell import preferred_language, static_files
from appliance.assistant.page.texts import LANGUAGES, TEXTS

TEMPLATES = "".join(
    one.read_text() for one in (files("appliance.assistant.page") / "templates").iterdir() if one.name[0] != "_"
)
SCRIPTS = "".join(body.decode() for name, (body, _) in static_files().contents.items() if name.endswith(".js"))
COMPUTED = {f"file_{state}" for state in ("waiting", "uploading", "reading", "ready", "failed")} | {
    f"theme_{theme}" for theme in ("auto", "light", "dark")
}


def test_each_language_has_each_text() -> None:
    assert TEXTS["en"].keys() == TEXTS["ru"].keys()
    for language in LANGUAGES:
        assert [key for key, text in TEXTS[language].items() if not text.strip()] == []
    same = {key for key in TEXTS["en"] if TEXTS["en"][key] == TEXTS["ru"][key]}
    assert same == set()
    latin = {key for key, text in TEXTS["ru"].items() if not re.search("[а-яё]", text.lower())}
    assert latin == set()


def test_each_text_is_used_and_each_used_text_exists() -> None:
    quoted = set(re.findall(r'"([a-z_]+)"', SCRIPTS)) | set(re.findall(r"texts\.([a-z_]+)", TEMPLATES))
    assert set(TEXTS["en"]) - quoted - COMPUTED == set()
    used = set(re.findall(r'\btext\("([a-z_]+)"\)', SCRIPTS)) | set(re.findall(r"texts\.([a-z_]+)", TEMPLATES))
    assert used - set(TEXTS["en"]) == set()


@pytest.mark.parametrize(
    ("chosen", "accepted", "language"),
    [
        ("", "", "en"),
        ("", "ru", "ru"),
        ("", "ru-RU,ru;q=0.9,en-US;q=0.8,en;q=0.7", "ru"),
        ("", "en-US,en;q=0.9,ru;q=0.8", "en"),
        ("", "de,ru;q=0.5", "ru"),
        ("", "en;q=0.1, ru;q=0.2", "ru"),
        ("", "*;q=0.5, ru;q=x, , ;", "en"),
        ("", "ru;q=0", "en"),
        ("", "fr-CH, fr;q=0.9", "en"),
        ("ru", "en", "ru"),
        ("en", "ru", "en"),
        ("xx", "ru", "ru"),
        ("../ru", "", "en"),
    ],
)
def test_the_language_follows_the_choice_then_the_browser(chosen: str, accepted: str, language: str) -> None:
    assert preferred_language(chosen, accepted) == language


def test_the_page_has_no_inline_code_and_no_address_of_another_host() -> None:
    assert re.findall(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", TEMPLATES) == []
    sheet = static_files().contents["page.css"][0].decode()
    assert "url(" not in sheet
    assert "@import" not in sheet
    assert re.findall(r"https?://(?!www\.w3\.org)[a-z]", SCRIPTS + TEMPLATES + sheet) == []
    assert re.findall(r"\beval\(|new Function|document\.write", SCRIPTS) == []
    assert SCRIPTS.count("innerHTML") == 1, "only the server's HTML is inserted"
