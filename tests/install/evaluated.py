"""The installer as evaluated: its script, disko's script, and disko-install from disko's source."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.nix import rendered
from tests.nix.rendered import RenderedHost, StoreText
from tests.nix.storepaths import StoreFolder

STORE = "/store"
"""Folder of the rendered texts in the guest."""
MOUNT_POINT = "/mnt/disko-install-root"
CLOSURE = ("nixos-system-gpu", "linux-kernel", "appliance")
"""Store paths of the system in place of its closure, by name."""

PAUSE = """[ ! -e /run/pause/{name} ] || {{ echo "PAUSED {name}" > /dev/console; sleep infinity; exit 1; }}
[ ! -e /run/fail/{name} ] || {{ echo "{name}: No space left on device" >&2; exit 1; }}
"""
PAUSED = {name: f"#!/bin/sh\n{PAUSE.format(name=name)}exec /usr/sbin/{name} \"$@\"\n" for name in
          ("mkfs.vfat", "mkfs.ext4")}  # fmt: skip
"""Programs of Debian that a test can stop before they run."""

SUBSTITUTES = {
    # Copies as xcp does: `--recursive --target-directory FOLDER PATHS`.
    "xcp": '#!/bin/sh\nset -e\nfolder="$3"\nshift 3\nfor path; do\n'
    f'  cp -r "$path" "$folder"\n  {PAUSE.format(name="xcp")}done\n',
    "nix": '#!/bin/sh\necho "{\\"path\\": \\"/etc/appliance-installer/flake\\"}"\n',
    "nix-store": '#!/bin/sh\nmkdir -p "$NIX_STATE_DIR/db"\ncat > "$NIX_STATE_DIR/db/db.sqlite"\n',
    # `--no-channel-copy --no-root-password --system SYSTEM --root FOLDER`
    "nixos-install": f"#!/bin/sh\nset -e\n{PAUSE.format(name='nixos-install')}"
    'mkdir -p "$6/nix/var/nix/profiles" "$6/etc" "$6/boot/loader"\n'
    'ln -sfn "$4" "$6/nix/var/nix/profiles/system"\ntouch "$6/etc/NIXOS"\n'
    'echo "default nixos-generation-1.conf" > "$6/boot/loader/loader.conf"\n',
}
"""Programs in place of those of Nix, which need the system that nothing builds here."""


def evaluate() -> dict[str, Any]:
    """Return the values of evaluated.nix."""
    found: dict[str, Any] = rendered.evaluated(
        'import (/. + given.root + "/tests/install/evaluated.nix") '
        "{ inherit flake inputs; root = /. + given.root; }"
    )
    return found


def place(layer: Path, values: dict[str, Any]) -> None:
    """Write the installer and all that it calls to ``layer``, the folder of a guest's root."""
    path, script = _script(values["script"])
    texts = dict([(path, script), _program(values["installer"])])
    host = RenderedHost("installer", {}, {}, texts, boot_loader="", kernel_parameters=())
    store = layer / STORE.lstrip("/")
    shutil.copytree(rendered.source("disko") / "disk-deactivate", store / "disk-deactivate")
    wrapper = '#!/bin/sh\nPATH="/disko/bin:$PATH" exec bash /disko/share/disko-install "$@"\n'
    folder = StoreFolder(
        host,
        store,
        prefix=STORE,
        scripts={**PAUSED, "disko-install": wrapper},
        replaced={_deactivate(script.text): f"{STORE}/disk-deactivate"},
    )
    built = folder.relocate(f"{path}/bin/disko", "nix-build")
    _disko_install(layer / "disko" / "share", values["disko_install"])
    _programs(layer / "disko" / "bin", {**SUBSTITUTES, "nix-build": _nix_build(built)})
    installer = folder.write("appliance-install").relative_to(store)
    (layer / "usr/local/bin").mkdir(parents=True)
    (layer / "usr/local/bin/appliance-install").symlink_to(f"{STORE}/{installer}")
    for name in CLOSURE:
        part = layer / system_path(name).lstrip("/")
        part.mkdir(parents=True)
        (part / "name").write_text(f"{name}\n")
    (layer / "closure-info").mkdir()
    (layer / "closure-info/store-paths").write_text("".join(f"{system_path(name)}\n" for name in CLOSURE))
    (layer / "closure-info/registration").write_text("registration\n")
    _machine(layer / "machine", values["limits"])


def system_path(name: str) -> str:
    """Return the store path of a part of the system."""
    return f"/nix/store/{'0' * 32}-{name}"


def _shown(derivation: str) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = json.loads(rendered.nix("derivation", "show", derivation))
    return found[derivation]


def _script(derivation: str) -> tuple[str, StoreText]:
    """Return the path and the text of a script of disko, which its derivation links."""
    (linked,) = (path for path in _shown(derivation)["inputDrvs"] if path.endswith("-disko.drv"))
    shown = _shown(linked)
    values = rendered.attributes(shown)
    text = f"#!{values['interpreter']}\n{values['content']}"
    return shown["outputs"]["out"]["path"], StoreText("disko", text, "/bin/disko", executable=True)


def _program(derivation: str) -> tuple[str, StoreText]:
    """Return the path and the text of a program that nixpkgs writes from a text."""
    shown = _shown(derivation)
    values = rendered.attributes(shown)
    return shown["outputs"]["out"]["path"], StoreText(
        shown["name"], values["text"], values["destination"], executable=True
    )


def _deactivate(text: str) -> str:
    """Return the folder of the script that erases the signatures of a disk."""
    found = re.search(r"/nix/store/[0-9a-z]{32}-disk-deactivate", text)
    assert found, "disko's script calls no disk-deactivate"
    return found[0]


def _disko_install(folder: Path, derivation: str) -> None:
    """Write disko-install to ``folder`` by the phases of its package: ``postPatch``, and the line of its folder."""
    folder.mkdir(parents=True)
    for name in ("disko-install", "install-cli.nix"):
        shutil.copyfile(rendered.source("disko") / name, folder / name)
    patch = rendered.attributes(_shown(derivation)).get("postPatch", "")
    subprocess.run(["bash", "-euc", patch], cwd=folder, check=True)
    script = folder / "disko-install"
    script.write_text(re.sub(r'libexec_dir=".*"', 'libexec_dir="/disko/share"', script.read_text()))


def _nix_build(script: str) -> str:
    """Return a substitute of nix-build, which prints what was evaluated, and fails for other arguments."""
    wanted = (
        '*rootMountPoint\\ /mnt/disko-install-root\\ *EfiBootEntries\\ true\\ *\\"main\\"\\ =\\ \\"/dev/nvme0n1\\"*'
    )
    return (
        f'#!/bin/sh\ncase "$*" in\n  {wanted}) ;;\n  *) echo "not evaluated: $*" >&2; exit 1 ;;\nesac\n'
        f"printf '%s\\n' {system_path(CLOSURE[0])} /closure-info {script}\n"
    )


def _programs(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def _machine(folder: Path, limits: str) -> None:
    """Write the parts of /sys and /proc that an emulated machine lacks: UEFI, a card, memory."""
    (folder / "sys/firmware/efi").mkdir(parents=True)
    card = folder / "sys/bus/pci/devices/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x10de\n")
    (card / "device").write_text("0x2bb1\n")
    (folder / "proc").mkdir()
    (folder / "proc/meminfo").write_text("MemTotal:       131072000 kB\n")
    (folder / "run").mkdir()
    settings = folder / "etc/appliance-installer"
    settings.mkdir(parents=True)
    (settings / "limits").write_text(limits)
    (settings / "allowed_signers").write_text("")
