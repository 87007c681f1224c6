"""The rendered hosts: the folder that keeps them, and their texts, checked by the programs that read them."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.nix import checker, nginx_conf, rendered
from tests.nix.rendered import RenderError
from tests.nix.storepaths import StoreFolder


def test_a_host_is_evaluated_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another process reads the file of the first; without the file, it evaluates."""

    def evaluate(_: object) -> None:
        raise RenderError("evaluated")

    first = rendered.host("vps")
    monkeypatch.setattr(rendered, "_evaluate", evaluate)
    assert rendered.host.__wrapped__("vps") == first
    monkeypatch.setattr(rendered, "KEPT", tmp_path / "kept")
    with pytest.raises(RenderError, match="evaluated"):
        rendered.host.__wrapped__("vps")


def test_other_changes_and_other_sources_are_evaluated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither reads the file of the unchanged host."""
    rendered.host("vps")

    def evaluate(wanted: object) -> None:
        raise RenderError(f"evaluated {wanted}")

    monkeypatch.setattr(rendered, "_evaluate", evaluate)
    with pytest.raises(RenderError, match=r"evaluated .*hostName"):
        rendered.host("vps", changes='{"networking": {"hostName": "other"}}')
    changed = tmp_path / "real.nix"
    changed.write_text(rendered.EXPRESSION.read_text() + "# changed\n")
    monkeypatch.setattr(rendered, "EXPRESSION", changed)
    with pytest.raises(RenderError, match="evaluated"):
        rendered.host.__wrapped__("vps")


def test_the_folder_keeps_the_hosts_that_were_used_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rendered, "KEPT", tmp_path)
    monkeypatch.setattr(rendered, "KEEP", 2)
    for number in range(4):
        rendered.keep(tmp_path / f"{number}.json", {"number": number})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["2.json", "3.json"]


def test_a_host_that_nixos_refuses_is_an_error() -> None:
    """An assertion of a module fails the test; it does not skip it."""
    refused = json.dumps({"appliance": {"network": {"ssh": {"keys": []}}}})
    with pytest.raises(RenderError, match=r"appliance\.network\.ssh\.keys is empty"):
        rendered.host("vps", changes=refused)


def test_without_a_whole_nixpkgs_a_test_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rendered, "RECORD", tmp_path / "real.json")
    rendered.inputs.cache_clear()
    try:
        with pytest.raises(pytest.skip.Exception, match="NOT CHECKED: no whole nixpkgs is set up here"):
            rendered.require()
    finally:
        rendered.inputs.cache_clear()


def test_a_missing_text_is_an_error() -> None:
    host = rendered.host("gpu")
    with pytest.raises(RenderError, match=r"host gpu has no unit nginx\.service"):
        host.unit("nginx.service")
    with pytest.raises(RenderError, match=r"host gpu has 0 texts with the name nginx\.conf"):
        host.text("nginx.conf")
    with pytest.raises(RenderError, match="host gpu has no text for /etc/nginx"):
        host.etc_text("nginx")


@pytest.mark.parametrize("name", ["gpu", "vps"])
def test_nft_accepts_the_rules(name: str, tmp_path: Path) -> None:
    nft = checker.require("nft")
    store = StoreFolder(rendered.host(name), tmp_path / "store", replaced={"/var/lib/nftables/": f"{tmp_path}/"})
    (tmp_path / "deletions.nft").touch()
    rules = store.write("nftables-rules")
    done = checker.run_process([nft, "--check", "--file", rules])
    if "Operation not permitted" in done.stderr:
        pytest.skip("NOT CHECKED: nft cannot open its socket; run as root")
    assert done.returncode == 0, done.stderr
    assert "table inet appliance" in rules.read_text()
    rules.write_text(rules.read_text().replace("policy drop", "polcy drop", 1))
    assert checker.run_process([nft, "--check", "--file", rules]).returncode != 0


def edge_conf(
    folder: Path, http: str = "127.0.0.1:18080", https: str = "127.0.0.1:18443", extra: tuple[str, ...] = ()
) -> str:
    """Return nginx.conf of the VPS with the modules ``extra``; ``folder`` gets a certificate for its domain."""
    openssl = checker.require("openssl")
    host = rendered.host("vps", *extra)
    certificates = folder / json.loads(host.etc_text("appliance/machine.json"))["edge"]["domain"]
    certificates.mkdir()
    made = ["-keyout", certificates / "key.pem", "-out", certificates / "fullchain.pem"]
    new = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "1"]
    subprocess.run([*new, *made], check=True, capture_output=True)
    (certificates / "chain.pem").write_bytes((certificates / "fullchain.pem").read_bytes())
    text = StoreFolder(host, folder / "store").write("nginx.conf").read_text()
    return nginx_conf.elsewhere(text, folder, http=http, https=https)


def nginx_errors(text: str, folder: Path) -> str:
    """Return the errors of ``nginx -t``; an empty text if it accepts the configuration."""
    file = folder / "nginx.conf"
    file.write_text(text)
    done = checker.run_process([checker.require("nginx"), "-t", "-c", file, "-e", folder / "error.log"])
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("extra", [(), ("tests/nix/browser.nix",), ("tests/nix/any_browser.nix",)])
def test_nginx_accepts_the_edge(tmp_path: Path, extra: tuple[str, ...]) -> None:
    text = edge_conf(tmp_path, extra=extra)
    for needed in (
        "limit_req zone=per_key",
        "limit_conn address_conn",
        "proxy_buffering off",
        "client_max_body_size",
    ):
        assert needed in text
    assert nginx_errors(text, tmp_path) == ""
    assert "proxy_bufering" in nginx_errors(text.replace("proxy_buffering off", "proxy_bufering off"), tmp_path)


@pytest.mark.parametrize("adaptation", nginx_conf.ADAPTATIONS, ids=lambda one: one.reason)
def test_an_adaptation_of_nginx_is_needed(adaptation: nginx_conf.Adaptation, tmp_path: Path) -> None:
    """Without it, the nginx of this machine refuses the rendered text."""
    if not adaptation.needed():
        pytest.skip(f"NOT CHECKED: not on this machine: {adaptation.reason}")
    rendered_text = rendered.host("vps").text("nginx.conf").text
    lines = re.findall(adaptation.rendered, rendered_text)
    assert lines, "no rendered nginx.conf has such a line: remove the row"
    text = edge_conf(tmp_path)
    assert lines[0] not in text
    assert nginx_errors(text.replace(adaptation.debian, lines[0]), tmp_path)


def test_a_rendered_text_without_the_expected_lines_is_an_error(tmp_path: Path) -> None:
    text = rendered.host("vps").text("nginx.conf").text.replace("0.0.0.0:443", "0.0.0.0:8443")
    with pytest.raises(ValueError, match="has no text like listen"):
        nginx_conf.elsewhere(text, tmp_path, http="127.0.0.1:1", https="127.0.0.1:2")


def test_a_directive_of_a_newer_nginx_without_a_row_is_an_error(tmp_path: Path) -> None:
    """Nothing is dropped silently."""
    text = edge_conf(tmp_path).replace("server_tokens off;", "server_tokens off;\ninvented on;")
    assert 'unknown directive "invented"' in nginx_errors(text, tmp_path)


def test_edited_texts_reach_the_units() -> None:
    host = rendered.host("gpu")
    changed = host.edited(lambda name, text: text.replace("policy drop", "policy accept"))
    assert "policy accept" in changed.text("nftables-rules").text
    assert dataclasses.replace(changed, texts=host.texts) == host


def test_shellcheck_accepts_the_installer() -> None:
    shellcheck = checker.require("shellcheck")
    script = checker.ROOT / "modules/installer/install.sh"
    done = checker.run_process([shellcheck, "--shell=bash", script])
    assert done.returncode == 0, done.stdout
