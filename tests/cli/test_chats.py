"""`appliance chats`, on a database of the assistant."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import cli
from appliance.assistant.store.conversations import ConversationStore
from appliance.assistant.store.database import Database
from tests.conftest import a_site

KEY = "0123456789ab"
Run = Callable[..., int]


@pytest.fixture
def chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Path]:
    """Return a function that runs `appliance chats`, and the folder of the database."""
    data = tmp_path / "assistant"
    config = tmp_path / "site.json"
    config.write_text(json.dumps(a_site(8000, 8100, tmp_path / "gateway", assistant={"data_dir": str(data)})))
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: cli.main(["chats", *words, "--config", str(config)]), data


def fill(data: Path) -> str:
    """Store a conversation of each of two users; return the id of the first."""
    database = Database(data)
    store = ConversationStore(database)
    text = [{"type": "input_text", "text": "[bold]Which[/] card?"}]
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "user", "status": "completed", "content": text},
        {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}", "status": "completed"},
    ]
    made = store.create(
        "ada/eve", key_id=KEY, now=1.0, metadata={"title": "Cards [x]", "role": "writer"}, items=items
    )
    store.create("bob", key_id=KEY, now=2.0, metadata={"title": "Cards of Bob"})
    database.close()
    return made.id


def test_conversations_are_listed_shown_and_exported(
    chats: tuple[Run, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = chats
    made = fill(data)

    def output(*words: str) -> str:
        assert run(*words) == 0
        return capsys.readouterr().out

    users = json.loads(output("list", "--json"))
    assert [(user["user"], user["conversations"]) for user in users] == [("bob", 1), ("ada/eve", 1)]
    assert "ada/eve" in output("list")
    listed = output("list", "--user", "ada/eve", "--query", "card")
    assert made in listed
    assert "Cards [x]" in listed
    assert "Bob" not in listed
    assert json.loads(output("list", "--user", "ada", "--json")) == []
    shown = output("show", made, "--user", "ada/eve")
    assert "[bold]Which[/] card?" in shown
    assert "role: writer" in shown
    assert '"name": "find"' in shown
    exported = json.loads(output("export", made, "--user", "ada/eve"))
    assert [item["type"] for item in exported["items"]] == ["message", "function_call"]
    assert json.loads(output("show", made, "--user", "ada/eve", "--json")) == exported
    file = data.parent / "chat.json"
    output("export", made, "--user", "ada/eve", "--output", str(file))
    assert json.loads(file.read_text()) == exported


def test_a_deletion_needs_the_id_and_prints_its_sums(
    chats: tuple[Run, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = chats
    made = fill(data)
    for typed in ("yes\n", ""):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert run("delete", made, "--user", "ada/eve") == 2
        assert "nothing is deleted" in capsys.readouterr().err
    assert run("delete", made, "--user", "ada/eve", "--yes", "other") == 2
    assert run("show", made, "--user", "ada/eve") == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{made}\n"))
    assert run("delete", made, "--user", "ada/eve") == 0
    assert f"{made} is deleted: 2 items, 0 responses, 0 passages" in capsys.readouterr().out
    assert run("show", made, "--user", "ada/eve") == 1


def test_a_conversation_of_another_user_is_not_found(
    chats: tuple[Run, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = chats
    made = fill(data)
    for words in (["show"], ["export"], ["delete", "--yes", made]):
        assert run(words[0], made, "--user", "bob", *words[1:]) == 1
        assert capsys.readouterr().err == f"error: No conversation found with id '{made}'.\n"
    assert run("show", made, "--user", "ada/eve") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "--query", "x"], "add --user USER"),
        (["list", "--limit", "0"], "--limit: 0 is less than 1"),
    ],
)
def test_an_invalid_command_line_is_refused(
    chats: tuple[Run, Path], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    run, _ = chats
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_created_by_a_command(chats: tuple[Run, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, data = chats
    for words in (
        ["list"],
        ["show", "conv_1", "--user", "ada"],
        ["delete", "conv_1", "--user", "ada", "--yes", "x"],
    ):
        assert run(*words) == 1
        assert "does not exist yet" in capsys.readouterr().err
    assert not data.exists()


def test_a_site_without_an_assistant_has_no_chats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "site.json"
    config.write_text(json.dumps(a_site(8000, 8100, tmp_path)))
    assert cli.main(["chats", "list", "--config", str(config)]) == 2
    assert "this site has no assistant" in capsys.readouterr().err
