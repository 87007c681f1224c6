"""float32 for vLLM on a processor with AMX: the choice, and the command that follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cli import main
from appliance.contract.load import load
from appliance.contract.model import Engine, Site
from appliance.engines import argv, cpu_dtype
from tests.conftest import ROOT

LAPTOP = ROOT / "examples" / "laptop.toml"
AMX = "processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8 arch_capabilities\n"
WITHOUT = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 gfni\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm sve\n"


def engine(**more: object) -> Engine:
    given = load(LAPTOP).engines["chat"].model_dump()
    return Engine.model_validate(given | more)


@pytest.mark.parametrize(
    ("cpuinfo", "dtype"),
    [
        (AMX, "float32"),
        (WITHOUT + AMX, "float32"),
        (WITHOUT, None),
        (ARM, None),
        ("", None),
        ("model name\t: amx_tile\n" + WITHOUT, None),
        (WITHOUT.replace("gfni", "amx_tiles"), None),
    ],
)
def test_the_choice_depends_on_the_processor(cpuinfo: str, dtype: str | None) -> None:
    assert cpu_dtype.choose(engine(), cpuinfo) == dtype


@pytest.mark.parametrize(
    "more",
    [{"device": "cuda"}, {"kind": "llamacpp", "options": {}}, {"kind": "mock", "options": {}}],
    ids=["on a card", "llama.cpp", "the mock"],
)
def test_other_engines_keep_their_numbers(more: dict[str, object]) -> None:
    assert cpu_dtype.choose(engine(**more), AMX) is None


def test_the_users_own_dtype_remains() -> None:
    assert cpu_dtype.choose(engine(options={"dtype": "bfloat16"}), AMX) is None


def on_laptop(cpuinfo: str) -> argv.EngineCommand:
    site: Site = load(LAPTOP)
    return argv.command(site, argv.find(site, "chat"), ROOT, cpuinfo)


def test_the_command_contains_the_choice_and_its_reason() -> None:
    words, notice = on_laptop(AMX).argv, on_laptop(AMX).notice
    assert words[words.index("--dtype") + 1] == "float32"
    assert words.count("--dtype") == 1
    assert notice.startswith("engine chat: this processor has AMX")
    assert "float32" in notice
    assert "\n" not in notice
    assert "--dtype" not in on_laptop(WITHOUT).argv
    assert on_laptop(WITHOUT).notice == ""


def test_engine_argv_prints_the_command_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, expected in ((AMX, True), (WITHOUT, False)):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(cpu_dtype, "CPUINFO", tmp_path / "cpuinfo")
        assert main(["engine", "argv", "chat", "--config", str(LAPTOP)]) == 0
        assert ("--dtype\nfloat32\n" in capsys.readouterr().out) is expected


def test_a_system_without_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_dtype, "CPUINFO", tmp_path / "none")
    assert cpu_dtype.read_cpuinfo() == ""
