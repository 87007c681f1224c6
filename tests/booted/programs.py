"""Programs of the booted machines in place of the programs of a store path, if Debian's program is not enough."""

from __future__ import annotations

from collections.abc import Mapping

from tests.booted.machine import NIX, appliance_program, python_program

NVIDIA_SMI = '''
"""Sets a power limit with all that the driver's own program needs, and reads the cards."""
import errno, os, sys

def opened(node):
    try:
        os.close(os.open(node, os.O_RDWR))
    except OSError as error:
        # The sandbox allows it, and the driver is absent.
        if error.errno != errno.ENXIO:
            sys.exit(f"{node}: {error.strerror}")

words = sys.argv[1:]
cards = [words[words.index("-i") + 1]] if "-i" in words else ["0", "1"]
for node in ["/dev/nvidiactl", *(f"/dev/nvidia{card}" for card in cards)]:
    opened(node)
if not os.path.isdir("/proc/driver"):
    sys.exit("/proc/driver: No such file or directory")
if "-pl" in words:
    # The driver requires CAP_SYS_ADMIN in the first user namespace, like the kernel for this attribute.
    os.setxattr("/tmp", "trusted.power", b"")
    print(f"power limit of card {cards[0]}: {words[words.index('-pl') + 1]} W")
else:
    values = {
        "name": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "memory.total": "97887",
        "power.limit": "450.00", "power.default_limit": "600.00", "temperature.gpu": "40",
        "persistence_mode": "Enabled", "pcie.link.width.current": "16", "pcie.link.width.max": "16",
        "clocks_event_reasons.active": "0x0000000000000000", "driver_version": "595.71.05",
    }
    query = next(word for word in words if word.startswith("--query-gpu=")).partition("=")[2].split(",")
    for card in cards:
        own = {**values, "index": card, "pci.bus_id": f"00000000:{card}1:00.0"}
        print(", ".join(own.get(field, "[N/A]") for field in query))
'''

PERSISTENCED = """#!/bin/sh
mkdir -p /var/run/nvidia-persistenced
sleep infinity > /dev/null 2>&1 &
echo $! > /var/run/nvidia-persistenced/nvidia-persistenced.pid
"""

IP = """#!/bin/sh
# The kernel of this machine has no WireGuard: wireguard-go has made the device.
case "$*" in "link add dev "*" type wireguard") exec /usr/sbin/ip link show dev "$4" ;; esac
exec /usr/sbin/ip "$@"
"""

MINICA = """#!/bin/sh
# Debian's program of this name is another one. This makes the same files, with a certificate that signs itself.
set -eu
while [ $# -gt 0 ]; do
  name="${1%%=*}"
  case "$1" in *=*) value="${1#*=}" ;; *) value="$2"; shift ;; esac
  shift
  case "$name" in
    --ca-cert) ca="$value" ;;
    --ca-key) key="$value" ;;
    --domains) domain="$value" ;;
  esac
done
mkdir -p "$domain"
make() {
  /usr/bin/openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$domain" \\
    -addext "subjectAltName=DNS:$domain" -keyout "$2" -out "$1"
}
[ -e "$ca" ] || make "$ca" "$key"
make "$domain/cert.pem" "$domain/key.pem"
"""

REPLACE_SECRET = '''
"""Replaces each TEXT in FILE by the content of SECRET, without line feeds around it."""
import pathlib, sys

text, secret, file = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
content = file.read_text()
if text not in content:
    sys.exit(f"{file} has no {text}")
file.write_text(content.replace(text, secret.read_text().strip("\\n")))
'''

ENVSUBST = """#!/bin/sh
# `envsubst -o OUTPUT -i INPUT` for an input without variables, as that of Alertmanager has to be.
[ "$1 $3" = "-o -i" ] || { echo "envsubst: unexpected arguments: $*" >&2; exit 1; }
! grep -n '[$]' "$4" || { echo "envsubst: $4 has variables" >&2; exit 1; }
exec cp "$4" "$2"
"""

POLKITD = '#!/bin/sh\nexec /usr/lib/polkit-1/polkitd "$@"\n'


def prometheus_program(name: str) -> str:
    """Return a program of Prometheus: Debian adds its name to those of the others."""
    return f'#!/bin/sh\nexec /usr/bin/prometheus-{name.replace("_", "-")} "$@"\n'


def nut_program(name: str) -> str:
    """Return a daemon of NUT: Debian's own program of this name is a script that reads nut.conf as shell."""
    return f'#!/bin/sh\nexec /lib/nut/{name} "$@"\n'


def nix_program(name: str) -> str:
    """Return a program of Nix on the machine: nix-env, nix-daemon and others are one binary."""
    libraries = f"{NIX}/root/usr/lib/x86_64-linux-gnu"
    return (
        f"#!/bin/sh\nexec {libraries}/ld-linux-x86-64.so.2 --argv0 {name} --library-path {libraries} "
        f'{NIX}/root/usr/bin/nix "$@"\n'
    )


def scripts() -> Mapping[str, str]:
    """Return the scripts by name of the program."""
    nix = ("nix-env", "nix-daemon")
    return {
        **{name: nix_program(name) for name in nix},
        **{name: nut_program(name) for name in ("upsd", "upsmon")},
        **{name: prometheus_program(name) for name in ("alertmanager", "node_exporter")},
        "appliance": appliance_program(),
        "envsubst": ENVSUBST,
        "ip": IP,
        "minica": MINICA,
        "modprobe": "#!/bin/sh\n",
        "nvidia-persistenced": PERSISTENCED,
        "nvidia-smi": python_program("/usr/local/lib/nvidia-smi.py"),
        "replace-secret": python_program("/usr/local/lib/replace-secret.py"),
    }
