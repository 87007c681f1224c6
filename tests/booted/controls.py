"""A control for each line by which a sandbox departs from the common one: a step that fails without the line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DENIED = "Operation not permitted"
FAMILY = "Address family not supported"
READ_ONLY = "Read-only file system"
ABSENT = "No such file or directory"

UNITS: Mapping[str, str] = {
    "engine": "appliance-engine-pair.service",
    "engine-cpu": "appliance-engine-embed.service",
    "gateway": "appliance-gateway.service",
    "assistant": "appliance-assistant.service",
    "admin": "appliance-admin.service",
    "smoke": "appliance-smoke.service",
    "trial": "appliance-trial-passed.service",
    "alerts": "appliance-trial-alerts.service",
    "notify": "appliance-notify.service",
    "power": "appliance-gpu-power.service",
    "models": "appliance-models-verify.service",
    "gpu-watch": "appliance-gpu-watch.service",
    "watch": "appliance-tunnel-watch-vps.service",
}
"""One unit of each sandbox."""
SAME: Mapping[str, str] = {
    "appliance-engine-agents.0.service": "engine",
    "appliance-engine-agents.1.service": "engine",
    "appliance-models-verify-all.service": "models",
    "appliance-trial-arrived.service": "trial",
    "appliance-trial-deadline.service": "trial",
    "appliance-trial-failed.service": "trial",
}
"""Further units with a sandbox of :data:`UNITS`."""


@dataclass(frozen=True, slots=True)
class SandboxControl:
    """A step of tests/booted/probes.py, and its message in the sandbox without the line."""

    probe: str
    error: str


SMI = "program /usr/local/bin/nvidia-smi --query-gpu=index,power.limit --format=csv,noheader,nounits"
SET = "program /usr/local/bin/nvidia-smi -i 1 -pl 450"
NFT = "program /usr/sbin/nft list ruleset"
PING = "program /usr/bin/ping -q -n -c 1 -w 5 -I wg0 10.77.0.2"

_API: Mapping[str, SandboxControl] = {
    "IPAddressAllow=localhost": SandboxControl("send 127.0.0.1", DENIED),
    "RestrictAddressFamilies=AF_INET": SandboxControl("family AF_INET", FAMILY),
    # `gateway.host`, `admin.host` and the addresses of engines may be ::1.
    "RestrictAddressFamilies=AF_INET6": SandboxControl("send ::1", FAMILY),
}
_ENGINE: Mapping[str, SandboxControl] = {
    **_API,
    "LimitMEMLOCK=infinity": SandboxControl("lock", "Cannot allocate memory"),
    "LimitNOFILE=65536": SandboxControl("files", "Too many open files"),
    "MemoryDenyWriteExecute=false": SandboxControl("compiled", "cannot allocate executable memory"),
    "ProcSubset=all": SandboxControl("read /proc/meminfo", ABSENT),
    "RestrictAddressFamilies=AF_NETLINK": SandboxControl("interfaces", FAMILY),
    "SystemCallFilter=@resources": SandboxControl("affinity", DENIED),
}

CONTROLS: Mapping[str, Mapping[str, SandboxControl]] = {
    "engine": {
        **_ENGINE,
        "CacheDirectory=appliance-engine-pair": SandboxControl(
            "write /var/cache/appliance-engine-pair", "Permission denied"
        ),
        "DeviceAllow=char-nvidia rw": SandboxControl("open /dev/nvidia1 rw", DENIED),
        "DeviceAllow=char-nvidia-caps rw": SandboxControl("open /dev/nvidia-caps/nvidia-cap1 rw", DENIED),
        "DeviceAllow=char-nvidia-uvm rw": SandboxControl("open /dev/nvidia-uvm rw", DENIED),
        "PrivateDevices=false": SandboxControl("open /dev/nvidia1 rw", ABSENT),
        "SystemCallFilter=pidfd_getfd": SandboxControl("share", DENIED),
    },
    "engine-cpu": {
        **_ENGINE,
        "CacheDirectory=appliance-engine-embed": SandboxControl(
            "write /var/cache/appliance-engine-embed", "Permission denied"
        ),
    },
    "gateway": {
        **_API,
        "IPAddressAllow=10.77.0.0/24": SandboxControl("send 10.77.0.2", DENIED),
        "LimitNOFILE=65536": SandboxControl("files", "Too many open files"),
        # The acting sockets admit the account of the assistant and that of the bot only.
        "PrivateUsers=identity": SandboxControl(
            "owner /run/appliance-assistant-metrics appliance-assistant", "belongs to the uid 65534"
        ),
        "StateDirectory=appliance-gateway": SandboxControl("write /var/lib/appliance-gateway", READ_ONLY),
    },
    "assistant": {
        "LimitNOFILE=65536": SandboxControl("files", "Too many open files"),
        "StateDirectory=appliance-assistant": SandboxControl("write /var/lib/appliance-assistant", READ_ONLY),
    },
    "admin": {
        **_API,
        "StateDirectory=appliance-gateway": SandboxControl("write /var/lib/appliance-gateway", READ_ONLY),
    },
    "smoke": {
        **_API,
        "AmbientCapabilities=CAP_NET_ADMIN": SandboxControl(NFT, "returned non-zero exit status"),
        "CapabilityBoundingSet=CAP_NET_ADMIN": SandboxControl(NFT, "returned non-zero exit status"),
        "DeviceAllow=char-nvidia rw": SandboxControl(SMI, DENIED),
        "IPAddressAllow=10.77.0.1": SandboxControl("send 10.77.0.1", DENIED),
        "PrivateDevices=false": SandboxControl(SMI, ABSENT),
        "PrivateUsers=false": SandboxControl(NFT, "returned non-zero exit status"),
        # The doctor's check of the kernel's parameters.
        "ProcSubset=all": SandboxControl("read /proc/cmdline", ABSENT),
        "RestrictAddressFamilies=AF_NETLINK": SandboxControl(NFT, FAMILY),
        "StateDirectory=appliance-gateway": SandboxControl("write /var/lib/appliance-gateway", READ_ONLY),
        "StateDirectory=appliance/smoke": SandboxControl("write /var/lib/appliance/smoke", READ_ONLY),
    },
    "trial": {
        "CapabilityBoundingSet=CAP_DAC_READ_SEARCH": SandboxControl(
            "read /var/lib/appliance-gateway/private", "denied"
        ),
        "CapabilityBoundingSet=CAP_LINUX_IMMUTABLE": SandboxControl("immutable /sys/firmware/efi/efivars", DENIED),
        "DeviceAllow=block-* r": SandboxControl("open /dev/loop0 r", DENIED),
        "PrivateDevices=false": SandboxControl("open /dev/loop0 r", ABSENT),
        "PrivateUsers=false": SandboxControl("immutable /sys/firmware/efi/efivars", DENIED),
        "ReadWritePaths=-/boot": SandboxControl("write /boot", READ_ONLY),
        "ReadWritePaths=-/nix/var/nix": SandboxControl("write /nix/var/nix/profiles", READ_ONLY),
        "ReadWritePaths=-/sys/firmware/efi/efivars": SandboxControl("write /sys/firmware/efi/efivars", READ_ONLY),
        "StateDirectory=appliance/trial": SandboxControl("write /var/lib/appliance/trial", READ_ONLY),
        "UMask=0022": SandboxControl("public /run/motd.d", "is private"),
        "User=root": SandboxControl("write /boot", "denied"),
    },
    "alerts": {
        "IPAddressDeny=": SandboxControl("send 203.0.113.5", DENIED),
        "RestrictAddressFamilies=AF_INET": SandboxControl("family AF_INET", FAMILY),
        "RestrictAddressFamilies=AF_INET6": SandboxControl("family AF_INET6", FAMILY),
        "StateDirectory=appliance/trial": SandboxControl("write /var/lib/appliance/trial", READ_ONLY),
    },
    "notify": {
        "IPAddressDeny=": SandboxControl("send 203.0.113.5", DENIED),
        "ReadWritePaths=/var/lib/appliance-notices": SandboxControl(
            "write /var/lib/appliance-notices/sending", READ_ONLY
        ),
        "RestrictAddressFamilies=AF_INET": SandboxControl("family AF_INET", FAMILY),
        "RestrictAddressFamilies=AF_INET6": SandboxControl("family AF_INET6", FAMILY),
    },
    "power": {
        "CapabilityBoundingSet=CAP_SYS_ADMIN": SandboxControl(SET, DENIED),
        "DeviceAllow=char-nvidia rw": SandboxControl(SET, DENIED),
        "PrivateDevices=false": SandboxControl(SET, ABSENT),
        "PrivateUsers=false": SandboxControl(SET, DENIED),
        "ProcSubset=all": SandboxControl(SET, ABSENT),
        "User=root": SandboxControl(SET, DENIED),
    },
    "models": {
        "ReadWritePaths=/var/lib/appliance-models": SandboxControl("write /var/lib/appliance-models", READ_ONLY),
    },
    "gpu-watch": {
        "CapabilityBoundingSet=CAP_DAC_OVERRIDE": SandboxControl(
            "read /var/lib/appliance-gateway/private", "denied"
        ),
        "CapabilityBoundingSet=CAP_SYS_ADMIN": SandboxControl(SET, DENIED),
        "DeviceAllow=/dev/kmsg r": SandboxControl("open /dev/kmsg r", DENIED),
        "DeviceAllow=char-nvidia rw": SandboxControl(SET, DENIED),
        "PrivateDevices=false": SandboxControl(SET, ABSENT),
        "PrivateUsers=false": SandboxControl(SET, DENIED),
        "ProcSubset=all": SandboxControl("read /proc/sys/kernel/random/boot_id", ABSENT),
        "ProtectKernelLogs=false": SandboxControl(
            "program /usr/bin/head -c 0 /dev/kmsg", "No such device or address"
        ),
        "ReadWritePaths=-/var/lib/appliance-notices": SandboxControl("write /var/lib/appliance-notices", READ_ONLY),
        "StateDirectory=appliance-gpu-watch": SandboxControl("write /var/lib/appliance-gpu-watch", READ_ONLY),
        "User=root": SandboxControl(SET, DENIED),
    },
    "watch": {
        "IPAddressAllow=10.77.0.2": SandboxControl("send 10.77.0.2", DENIED),
        "RestrictAddressFamilies=AF_INET": SandboxControl(PING, FAMILY),
        "RestrictAddressFamilies=AF_NETLINK": SandboxControl(PING, FAMILY),
        "SystemCallFilter=capset": SandboxControl(PING, DENIED),
        "SystemCallFilter=setuid": SandboxControl(PING, DENIED),
    },
}
"""Controls by sandbox and line."""

STEPS: Mapping[str, tuple[str, ...]] = {
    "engine": tuple(
        f"call {name}" for name in ("get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy")
    ),
    "gpu-watch": (
        # Calls of a foreign library, as for the fans, need no writable and executable memory.
        "program /usr/bin/python3 -c import\\x20ctypes;ctypes.CDLL(None).getpid()",
        "program /usr/bin/systemctl show --property=Id multi-user.target",
        "write /run/appliance-card-power",
        "write /run/appliance-metrics",
    ),
    "trial": (
        "write /sys/firmware/efi/efivars",
        "program /usr/bin/systemctl show --property=Id multi-user.target",
        "program /usr/bin/systemd-run --quiet --collect --wait --pipe /usr/bin/true",
    ),
}
"""Further steps of a unit that its sandbox allows without a line of its own."""

OTHER_MACHINE = "only a machine with a card can show it: "
NOT_SHOWN: Mapping[tuple[str, str], str] = {
    ("engine", "PrivateUsers=false"): OTHER_MACHINE
    + "the driver compares the users of the processes that share a card's memory",
    ("alerts", "User=root"): "each unit of the trial gives the folder of the record to its own user when it starts",
    ("gpu-watch", "CapabilityBoundingSet=CAP_SYSLOG"): "the kernel requires it only with kernel.dmesg_restrict = 1",
    ("models", "UMask=0022"): "each engine that starts shows it: it reads the record as its own user",
    ("models", "User=root"): "the folder of the weights belongs to root, as its files do",
    ("smoke", "DeviceAllow=char-nvidia-uvm rw"): OTHER_MACHINE + "nvidia-smi may open it for some figures",
}
"""Lines without a control, and the reason."""
