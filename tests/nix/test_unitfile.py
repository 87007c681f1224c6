"""Unit files of systemd, as far as the tests read them."""

from __future__ import annotations

from tests.nix.unitfile import UnitCommand, UnitFile

TEXT = """# A comment.
[Unit]
After=a.service b.service
After=c.service

[Service]
Environment="PATH=/a:/b" "NAME=two words"
ExecStart=/never
ExecStart=
ExecStart=-/bin/sh -c 'exit 1' \\
  last
ExecStop=@/bin/x y
X-ReloadIfChanged=true
"""


def test_lists_add_up_and_an_empty_value_resets_them() -> None:
    unit = UnitFile("x.service", TEXT)
    assert unit.words("After", "Before") == ["a.service", "b.service", "c.service"]
    assert unit.commands("ExecStart") == [UnitCommand(("/bin/sh", "-c", "exit 1", "last"), may_fail=True)]
    assert unit.commands("ExecStop") == [UnitCommand(("/bin/x",), may_fail=False)]
    assert unit.environment == {"PATH": "/a:/b", "NAME": "two words"}
    assert (unit.value("X-ReloadIfChanged"), unit.value("Type", "simple")) == ("true", "simple")


def test_a_unit_that_starts_nothing_extends_another() -> None:
    assert not UnitFile("x.service", TEXT).drop_in
    assert UnitFile("x.service", TEXT, upstream=True).drop_in
    assert UnitFile("x.service", "[Service]\nExecStart=\n").drop_in
    assert UnitFile("x.socket", "[Socket]\nAccept=yes\n").drop_in
    assert not UnitFile("x.target", "[Unit]\nAfter=y.target\n").drop_in
