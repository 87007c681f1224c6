"""The Debian 13 of the booted machines. Its systemd 257 is nearer to that of the pinned nixpkgs than Debian 12's.

    python -m tests.booted.debian

makes it once, in some three minutes. The tests only use it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from tests.nix import checker
from tools.wheels.debian import SUITE, DebianRoot

PACKAGES = (
    "acl",
    "ca-certificates",
    "curl",
    "dbus",
    "g++",
    "gcc",
    "iproute2",
    "iputils-ping",
    "kmod",
    "lego",
    "libcap2-bin",
    "libnss-systemd",
    "libpam-systemd",
    "nftables",
    "nginx-light",
    "ninja-build",
    "nut-client",
    "nut-server",
    "openssh-server",
    "openssl",
    "polkitd",
    "procps",
    "prometheus",
    "prometheus-alertmanager",
    "prometheus-node-exporter",
    # The libraries that a Python needs. The machine runs that of the tests.
    "python3",
    "restic",
    "systemd",
    "systemd-boot-tools",
    "systemd-sysv",
    "wireguard-go",
    "wireguard-tools",
)
KEPT = checker.CACHE.parent / "appliance-tests"
_KEY = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:16]
ROOT = DebianRoot(KEPT / f"{SUITE}-{_KEY}", PACKAGES)


def require() -> Path:
    """Return the folder of the Debian; skip the test if it was not made."""
    if not ROOT.is_made:
        pytest.skip(f"NOT CHECKED: {ROOT.folder} has no Debian {SUITE}; run `python -m tests.booted.debian`")
    return ROOT.folder


def main() -> int:
    """Make the Debian, unless an earlier run made it; remove those with other packages."""
    if os.geteuid() != 0:
        print("NOT CHECKED: no unit is started under its sandbox, because making a Debian needs root")
        return 0
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ROOT.is_made:
            return 0
        for old in KEPT.glob(f"{SUITE}-*"):
            shutil.rmtree(old)
        try:
            ROOT.make()
        except ApplianceError as error:
            print(f"NOT CHECKED: no unit is started under its sandbox: {error}")
            return 0
    print(f"made Debian {SUITE} in {ROOT.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
