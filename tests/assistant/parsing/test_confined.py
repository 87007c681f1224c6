"""The confined process: its limits, what it cannot reach, and its end in all cases."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.assistant.parsing.child import ParseOrder
from appliance.assistant.parsing.confined import PROGRAM, parse_confined
from appliance.assistant.parsing.parsed_passage import ParsedPassage
from appliance.assistant.retrieval.chunking import ChunkSettings
from appliance.parsing.limits import ParseLimits, UnusableFileError
from tests.assistant.made_documents import a_docx, a_pdf
from tests.conftest import ROOT, wait_until

LIMITS = ParseLimits()


def parsed(
    content: bytes, extension: str, *, limits: ParseLimits = LIMITS, program: Sequence[str] = PROGRAM
) -> list[ParsedPassage]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        return asyncio.run(parse_confined(file, extension, ChunkSettings(), limits=limits, program=program))


def refused(content: bytes, extension: str, **options: object) -> UnusableFileError:
    with pytest.raises(UnusableFileError) as found:
        parsed(content, extension, **options)  # type: ignore[arg-type]
    return found.value


def a_program(text: str) -> tuple[str, ...]:
    """A program that renounces files as the parser does, and then runs ``text``."""
    start = (
        "import json, os, socket, sys\n"
        "from appliance.assistant.parsing import child\n"
        "from appliance.parsing import confinement\n"
        "order = child.ParseOrder.from_argument(sys.argv[1])\n"
        "confinement.limit_resources(order.limits)\n"
        "confinement.renounce_files()\n"
    )
    return (sys.executable, "-c", start + text)


def a_sleeper(mark: Path) -> tuple[str, ...]:
    """A program that writes its process id to ``mark`` and sleeps."""
    text = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    return (sys.executable, "-c", text)


def result_of(text: str) -> str:
    """Return the section that a confined program puts into its result."""
    program = a_program(
        f"{text}\n"
        "passage = {'text': '', 'section': found, 'indexed': '', 'terms': {}}\n"
        "print(json.dumps({'passages': [passage]}))"
    )
    return parsed(b"", "txt", program=program)[0].section


def test_pages_are_the_sections_of_a_pdf() -> None:
    pages = [f"{'Текст страницы. ' * 150}\nPage {n} ends." for n in range(1, 5)]
    passages = parsed(a_pdf(pages), "pdf")
    sections = [one.section for one in passages]
    assert sections[0].startswith(("page 1", "pages 1-"))
    assert sections[-1].endswith("4")
    assert "страниц" in passages[0].terms
    assert any("Page 3 ends." in one.text for one in passages)


def test_headings_are_the_sections_of_a_docx() -> None:
    passages = parsed(a_docx([("Heading1", "Отпуск"), ("", "Сотрудник имеет 28 дней. " * 200)]), "docx")
    assert len(passages) > 1
    assert {one.section for one in passages[1:]} == {"Отпуск"}
    assert passages[1].indexed_text.startswith("Отпуск\n")


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        ("open('/etc/hostname')", "OSError"),
        ("open('/tmp/escaped', 'w')", "OSError"),
        ("socket.socket(socket.AF_UNIX)", "OSError"),
        ("socket.create_connection(('127.0.0.1', 1))", "OSError"),
        ("os.pipe()", "OSError"),
        ("os.close(0); os.open('/etc/passwd', os.O_RDONLY)", "OSError"),
        ("bytearray(order.limits.memory_bytes)", "MemoryError"),
    ],
)
def test_the_parser_reaches_no_file_socket_or_memory(attempt: str, error: str) -> None:
    caught = "except (OSError, MemoryError) as error:\n    found = type(error).__name__"
    assert result_of(f"try:\n    {attempt}\n    found = 'reached'\n{caught}") == error


def test_the_environment_of_the_assistant_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    assert result_of("found = str('PGPASSWORD' in os.environ)") == "False"


def test_an_endless_loop_ends_at_the_limit_of_processor_time() -> None:
    limits = replace(LIMITS, parse_cpu_s=1, total_cpu_s=1)
    error = refused(b"x", "txt", limits=limits, program=a_program("while True: pass"))
    assert (error.code, str(error)) == ("invalid_file", "The file takes too long to process.")


def test_a_sleeping_parser_ends_at_the_time_limit(tmp_path: Path) -> None:
    started = time.monotonic()
    mark = tmp_path / "pid"
    program = a_sleeper(mark)
    error = refused(b"x", "txt", limits=replace(LIMITS, wall_s=3.0), program=program)
    assert (error.code, str(error)) == ("invalid_file", "The file takes too long to process.")
    assert time.monotonic() - started < 60
    if mark.exists():
        assert not Path(f"/proc/{mark.read_text()}").exists()


def test_a_cancelled_call_ends_its_process(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    program = a_sleeper(mark)

    async def cancelled() -> None:
        with tempfile.TemporaryFile() as file:
            task = asyncio.create_task(parse_confined(file, "txt", ChunkSettings(), program=program))
            await asyncio.to_thread(wait_until, lambda: mark.exists() and mark.read_text() != "", "the start", 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    assert not Path(f"/proc/{mark.read_text()}").exists()


def test_the_parser_ends_with_its_parent(tmp_path: Path) -> None:
    order = ParseOrder("txt", 800, 400, LIMITS).as_argument()
    reading, writing = os.pipe()
    script = (
        "import subprocess, sys\n"
        f"argv = [sys.executable, '-m', 'appliance.assistant.parsing.child', {order!r}]\n"
        f"child = subprocess.Popen(argv, stdin={reading})\n"
        "print(child.pid, flush=True)\nchild.wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        pass_fds=[reading],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    status = Path(f"/proc/{pid}/limits")

    def limited() -> bool:
        lines = status.read_text().splitlines()
        return any(line.startswith("Max core file size") and line.split()[4] == "0" for line in lines)

    # The limits follow the request to end with the parent.
    wait_until(limited, "the start of the parser", 60)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: _ended(pid), "the end of the parser", 60)
    os.close(reading)
    os.close(writing)


def _ended(pid: int) -> bool:
    """Return whether the process does not run; a zombie that nothing collects has ended."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


@pytest.mark.parametrize(
    ("change", "content", "extension", "words"),
    [
        ({"pages": 2}, a_pdf(["x"] * 3), "pdf", "3 pages; the limit is 2"),
        ({"text_characters": 100}, b"word " * 30, "txt", "longer than 100 characters"),
        ({"output_bytes": 1000}, b"word " * 300, "txt", "more text"),
        ({"unpacked_bytes": 1000}, a_docx([("", "x")]), "docx", "after decompression"),
        ({"xml_bytes": 100}, a_docx([("", "x")]), "docx", "after decompression"),
        ({"members": 2}, a_docx([("", "x")]), "docx", "parts"),
    ],
)
def test_each_limit_refuses_a_file(change: dict[str, int], content: bytes, extension: str, words: str) -> None:
    error = refused(content, extension, limits=replace(LIMITS, **change))
    assert error.code == "invalid_file"
    assert words in str(error)
    assert parsed(content, extension)


@pytest.mark.parametrize(
    ("content", "extension", "words"),
    [
        (a_pdf(["x"])[:300], "pdf", "damaged"),
        (a_docx([("", "x")])[:400], "docx", "damaged"),
        (a_docx([], document="<w:document><unclosed>"), "docx", "damaged"),
        (a_docx([], document='<!DOCTYPE a [<!ENTITY x "xx">]><a>&x;</a>'), "docx", "declares entities"),
        (b"<div>" * 5000 + b"x", "html", "in one another"),
        (b" \n\t\n", "txt", "no text"),
        (b"text \x00 with a zero", "txt", "not text"),
    ],
)
def test_damaged_and_hostile_documents_are_invalid(content: bytes, extension: str, words: str) -> None:
    error = refused(content, extension)
    assert error.code == "invalid_file"
    assert words in str(error)


def test_a_crash_and_an_unreadable_result_are_errors_of_one_file() -> None:
    assert refused(b"x", "txt", program=a_program("os.kill(os.getpid(), 11)")).code == "invalid_file"
    assert refused(b"x", "txt", program=a_program("sys.exit(3)")).code == "invalid_file"
    assert refused(b"x", "txt", program=a_program("print('{')")).code == "server_error"
    assert refused(b"x", "txt", program=a_program("os.kill(os.getpid(), 9)")).code == "server_error"


def test_images_of_a_docx_are_not_part_of_the_text() -> None:
    html = io.BytesIO(b"<p>before<img src='data:image/png;base64,AAAA' alt='photo'>after</p>").read()
    assert parsed(html, "html")[0].text == "beforeafter\n"
