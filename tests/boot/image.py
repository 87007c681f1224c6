"""The disk of the guest: Debian with systemd-boot, our package, and systems that the modules render.

Debian replaces the closure of NixOS. The units, the script that installs the boot loader, kernel parameters, sysctl
and the settings of systemd are those that NixOS renders for ``hosts/gpu.nix`` with ``tests/boot/guest.nix``. The
units of NUT, of the power agent and of the watchdog of the cards do not start by themselves: some steps start them.
"""

from __future__ import annotations

import compileall
import json
import py_compile
import re
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.booted.programs import REPLACE_SECRET, nut_program
from tests.nix import rendered
from tests.nix.rendered import RenderedHost
from tests.nix.storepaths import StoreFolder

ROOT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).parent / "guest"
CACHE = ROOT / "build" / "boot"
GUEST_MODULE, POWER_MODULE = "tests/boot/guest.nix", "tests/boot/power.nix"
PROGRAM = "/usr/local/bin/appliance"
"""Path of our program in the guest."""

UPS = "/etc/ups.dev"
"""The file of the UPS in the guest."""
CARDS = "/etc/cards"
"""The state of the cards in the guest: ``work``, ``hang``, or ``frozen`` for a process that no signal ends."""
FROZEN = "/var/frozen.img"
"""A file system in the guest, which a step freezes."""
WATCH = "appliance-gpu-watch.service"
POWER = (
    "appliance-power-off.service", "appliance-power-password.service", "appliance-power.service",
    "ups-killpower.service", "upsd.service", "upsdrv.service", "upsmon.service",
)  # fmt: skip

NVIDIA_SMI = f"""#!/bin/sh
# Prints the fields of a query for one card, as far as the watchdog needs them.
case "$(cat {CARDS})" in
  hang) trap '' TERM; sleep 1000 ;;
  frozen) echo > /var/lib/appliance-gpu-watch/frozen/file ;;
esac
for word; do case $word in --query-gpu=*) fields=${{word#*=}} ;; esac; done
line=
IFS=,
for field in $fields; do
  case $field in
    index) value=0 ;;
    pci.bus_id) value=00000000:01:00.0 ;;
    name) value="NVIDIA RTX PRO 6000 Blackwell Workstation Edition" ;;
    temperature.gpu) value=40 ;;
    *) value="[N/A]" ;;
  esac
  line="$line${{line:+, }}$value"
done
echo "$line"
"""

SCRIPTS = {
    "appliance": f'#!/bin/sh\nexec {PROGRAM} "$@"\n',
    # The builder of nixpkgs writes boot entries for the closure of NixOS.
    "systemd-boot": '#!/bin/sh\nexec sh /usr/lib/guest/install-boot-loader "$@"\n',
    "nvidia-smi": NVIDIA_SMI,
    "replace-secret": f"#!/usr/bin/python3\n{REPLACE_SECRET}",
    "upsd": nut_program("upsd"),
    "upsmon": nut_program("upsmon"),
}
"""Programs of the rendered texts that the guest replaces."""

PACKAGES = (
    "systemd", "systemd-sysv", "systemd-boot", "kmod", "udev", "dbus", "python3-minimal", "python3", "util-linux",
    "libnss-systemd", "procps", "busybox-static", "iproute2", "nut-client", "nut-server",
)  # fmt: skip
INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4")
GUEST_MODULES = ("vfat", "nls_cp437", "nls_ascii", "nls_utf8", "efivarfs", "i6300esb", "loop")
NOT_NEEDED = re.compile(
    r"(mypy|mypyc|openai|schemathesis|jsonschema_rs|hypothesis|pip|setuptools|psycopg|pytest|_pytest|graphql|"
    r"ruff|[0-9a-f]{20}__mypyc|pandas|__editable__|_pytest|jsonschema|litellm|playwright|faker|anthropic|langsmith)"
)
ESP_MIB = 48
FREE_MIB = 160
"""Room on the root file system beyond its files, of which ext4's own tables and its reserve take about a half."""


@dataclass(frozen=True)
class Variant:
    """One system and its failure: a script that runs during its boot, or a change of its site."""

    name: str
    early: str = ""
    """Shell script that runs before systemd."""
    late: str = ""
    """Shell script that a unit runs before the smoke test."""
    slo: dict[str, float] | None = None

    @property
    def system(self) -> str:
        return f"/nix/store/{'0' * 32}-nixos-system-{self.name}"


# Threads that cannot be interrupted occupy all CPUs, so systemd no longer feeds the watchdog. From outside, the
# machine has stopped.
HANG = """
echo GUEST hangs > /dev/console
echo -1 > /proc/sys/kernel/sched_rt_runtime_us
for _ in 1 2 3 4; do chrt --fifo 99 sh -c 'while :; do :; done' & done
wait
"""
UNREACHABLE = {"ttft_p99_ms": 0.001, "tpot_p99_ms": 20000, "error_rate": 0.0}
PANIC = "echo GUEST panics > /dev/console; echo c > /proc/sysrq-trigger"

VARIANTS = (
    Variant("good-1"),
    Variant("good-2"),
    Variant("slow", slo=UNREACHABLE),
    # A system that was rolled back is not tried again, so the live switch needs its own failing system.
    Variant("slow-live", slo=UNREACHABLE),
    Variant("hangs", late=HANG),
    Variant("panics", late=PANIC),
    Variant("panics-early", early=PANIC),
    # Its smoke test never starts, because it waits for a unit that never ends.
    Variant("stalls", late="echo GUEST stalls > /dev/console; sleep infinity"),
    Variant("cut"),
)


def build(folder: Path) -> Path:
    """Build the disk, a qcow2 file in ``folder``; :data:`CACHE` keeps the Debian part for later runs."""
    base = _debian()
    tree = folder / "tree"
    subprocess.run(["cp", "-a", "--reflink=auto", str(base / "root"), str(tree)], check=True)
    host = rendered.host("gpu", GUEST_MODULE)
    power = rendered.host("gpu", GUEST_MODULE, POWER_MODULE)
    # The guest has no driver of NVIDIA: this unit is that of the host itself.
    watch = rendered.host("gpu")
    _appliance(tree)
    _guest(tree)
    for variant in VARIANTS:
        write_system(tree, variant, host)
        write_operation(tree, variant, power, watch)
    disk = folder / "disk.raw"
    _disk(tree, base, disk)
    shutil.rmtree(tree)
    image = folder / "disk.qcow2"
    _run("qemu-img", "convert", "-O", "qcow2", disk, image)
    disk.unlink()
    return image


def _run(*argv: object) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def _debian() -> Path:
    """Return the folder of the Debian part: root file system, kernel, drivers, first stage."""
    CACHE.mkdir(parents=True, exist_ok=True)
    kernel = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", "linux-image-amd64"))
    assert kernel, "apt has no package linux-image-amd64"
    known = CACHE / f"debian-{kernel[1]}"
    stamp = json.dumps([PACKAGES, INITRD_MODULES, GUEST_MODULES, (GUEST / "initrd-init").read_text()])
    if (known / "stamp").exists() and (known / "stamp").read_text() == stamp:
        return known
    shutil.rmtree(known, ignore_errors=True)
    known.mkdir()
    small = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale", "info")]
    codename = re.search(r"VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    assert codename
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}"]
    _run(*argv, "--dpkgopt=force-unsafe-io", *small, codename[1], known / "root")
    with tempfile.TemporaryDirectory() as scratch:
        download = subprocess.run(["apt-get", "download", kernel[1]], cwd=scratch, capture_output=True, check=False)
        assert download.returncode == 0, download.stderr
        package = next(Path(scratch).glob("*.deb"))
        _run("dpkg-deb", "-x", package, Path(scratch) / "kernel")
        _kernel(Path(scratch) / "kernel", known)
    (known / "stamp").write_text(stamp)
    return known


def _kernel(unpacked: Path, known: Path) -> None:
    """Copy the kernel, build the first stage, and keep only the drivers of the guest's devices."""
    image = next((unpacked / "boot").glob("vmlinuz-*"))
    version = image.name.removeprefix("vmlinuz-")
    shutil.copy(image, known / "kernel")
    modules = known / "root" / "lib" / "modules" / version
    shutil.copytree(unpacked / "lib" / "modules" / version, modules)
    _run("chroot", known / "root", "depmod", version)
    needs = dict(line.split(":") for line in (modules / "modules.dep").read_text().splitlines())
    path_of = {Path(path).name.removesuffix(".ko"): path for path in needs}

    def order(names: tuple[str, ...]) -> list[str]:
        found: list[str] = []
        for name in names:
            path = path_of[name]
            found += [one for one in (*reversed(needs[path].split()), path) if one not in found]
        return found

    first = order(INITRD_MODULES)
    # ext4 loads its checksum module by name, without a dependency.
    checksums = (path_of.get(name) for name in ("crc32c_generic", "crc32c-intel"))
    first += [path for path in checksums if path and path not in first]
    keep = {*first, *order(GUEST_MODULES)}
    with tempfile.TemporaryDirectory() as scratch:
        stage = Path(scratch)
        for folder in ("bin", "dev", "proc", "sys", "root", "modules"):
            (stage / folder).mkdir()
        shutil.copy(known / "root" / "bin" / "busybox", stage / "bin" / "busybox")
        shutil.copy(GUEST / "initrd-init", stage / "init")
        ordered = [path for path in first if "crc32c" in path] + [path for path in first if "crc32c" not in path]
        for path in ordered:
            shutil.copy(modules / path, stage / "modules")
        (stage / "modules.order").write_text("\n".join(Path(path).name for path in ordered))
        pack = f"cd {stage} && find . | cpio --quiet -o -H newc | gzip -1"
        with (known / "initrd").open("wb") as out:
            subprocess.run(["sh", "-c", pack], stdout=out, check=True)
    for file in modules.rglob("*.ko"):
        if str(file.relative_to(modules)) not in keep:
            file.unlink()
    _run("chroot", known / "root", "depmod", version)


def _appliance(tree: Path) -> None:
    """Copy our package with its dependencies, and write the program."""
    library = tree / "usr" / "lib" / "appliance"
    site = Path(sysconfig.get_path("purelib"))

    def skipped(folder: str, names: list[str]) -> set[str]:
        top = Path(folder) == site
        return {name for name in names if (top and NOT_NEEDED.match(name)) or name == "tests"}

    shutil.copytree(site, library, ignore=skipped, symlinks=True)
    for part in ("appliance", "loadtests"):
        shutil.copytree(ROOT / part, library / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", library)
    # Compile now, without later checks of the sources: the emulated CPU would need minutes.
    never = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(library, quiet=2, workers=2, stripdir=tree, invalidation_mode=never)
    program = tree / PROGRAM.removeprefix("/")
    program.write_text('#!/bin/sh\nPYTHONPATH=/usr/lib/appliance exec /usr/bin/python3 -m appliance "$@"\n')
    program.chmod(0o755)


def _store(tree: Path, host: RenderedHost) -> StoreFolder:
    """Return the guest's /nix/store; ``tree`` has the programs of Debian already."""

    def found(program: str) -> str | None:
        """Return the path of a program of Debian in the guest."""
        folders = ("usr/local/bin", "usr/sbin", "usr/bin")
        return next((f"/{folder}/{program}" for folder in folders if (tree / folder / program).exists()), None)

    return StoreFolder(host, tree / "nix" / "store", prefix="/nix/store", scripts=SCRIPTS, found=found)


def write_operation(tree: Path, variant: Variant, power: RenderedHost, watch: RenderedHost) -> None:
    """Write the units of operation to a system; only the one that cuts the power starts by itself."""
    system = tree / variant.system.removeprefix("/")
    folder = system / "etc" / "systemd" / "system"
    store = _store(tree, power)
    for name in POWER:
        unit = power.unit(name)
        _unit(folder, name, store.unit_text(unit), unit.wanted_by if name == "ups-killpower.service" else ())
    _unit(folder, WATCH, _store(tree, watch).unit_text(watch.unit(WATCH)), ())
    nut = system / "etc" / "nut"
    nut.mkdir()
    for name in ("nut.conf", "ups.conf", "upsd.conf"):
        (nut / name).write_text(power.etc_text(f"nut/{name}"))
    for name in ("upsd.users", "upsmon.conf"):
        (nut / name).symlink_to(power.etc[f"nut/{name}"])


def write_system(tree: Path, variant: Variant, host: RenderedHost) -> None:
    """Write one system to the guest's /nix/store; ``tree`` has the programs of Debian already."""
    store = _store(tree, host)
    system = tree / variant.system.removeprefix("/")
    (system / "bin").mkdir(parents=True)
    shutil.copy(GUEST / "init", system / "init")
    shutil.copy(GUEST / "switch-to-configuration", system / "bin" / "switch-to-configuration")
    (system / "install-boot-loader").symlink_to(store.relocate(host.boot_loader, variant.name))
    parameters = [*host.kernel_parameters, "console=ttyS0", "quiet", "systemd.show_status=0", "mitigations=off"]
    (system / "kernel-params").write_text(" ".join(parameters))
    sysctl = host.etc_text("sysctl.d/60-nixos.conf").splitlines()
    (system / "sysctl").write_text("\n".join(line for line in sysctl if line.startswith("kernel.panic")))
    if variant.early:
        (system / "early-failure").write_text(variant.early)
    folder = system / "etc" / "systemd" / "system"
    folder.mkdir(parents=True)
    for name, unit in host.units.items():
        if name.startswith("appliance-"):
            _unit(folder, name, store.unit_text(unit), unit.wanted_by)
    if variant.late:
        failure = ["[Unit]", "Before=appliance-smoke.service", "After=appliance-trial-arrived.service", "[Service]"]
        failure += ["Type=oneshot", f"ExecStart=/bin/sh {variant.system}/late-failure"]
        _unit(folder, "late-failure.service", "\n".join([*failure, ""]), ("multi-user.target",))
        (system / "late-failure").write_text(variant.late)
    (system / "etc" / "systemd" / "system.conf").write_text(host.etc_text("systemd/system.conf"))
    site = json.loads(host.etc_text("appliance/appliance.json"))
    if variant.slo is not None:
        site["smoke"]["slo"] = variant.slo
    (system / "etc" / "appliance").mkdir()
    (system / "etc" / "appliance" / "appliance.json").write_text(json.dumps(site))
    (system / "etc" / "appliance" / "machine.json").write_text(host.etc_text("appliance/machine.json"))
    rescue = tree / f"nix/store/{'0' * 32}-nixos-system-{variant.name}-rescue"
    rescue.mkdir()
    for name in ("init", "kernel-params", "sysctl"):
        shutil.copy(system / name, rescue / name)
    arrived = folder / "appliance-trial-arrived.service"
    (rescue / "etc/systemd/system").mkdir(parents=True)
    _unit(rescue / "etc/systemd/system", arrived.name, arrived.read_text(), ("multi-user.target",))
    shutil.copy(system / "etc/systemd/system.conf", rescue / "etc/systemd/system.conf")
    (system / "specialisation").mkdir()
    (system / "specialisation" / "rescue").symlink_to(f"/{rescue.relative_to(tree)}")


def _unit(folder: Path, name: str, text: str, wanted_by: tuple[str, ...]) -> None:
    """Write a unit and its links, as NixOS does."""
    (folder / name).write_text(text)
    for target in wanted_by:
        (folder / f"{target}.wants").mkdir(exist_ok=True)
        (folder / f"{target}.wants" / name).symlink_to(f"../{name}")


def _guest(tree: Path) -> None:
    """Write the common part of all systems: accounts, file systems, the tester's shell, the first generation."""
    guest = tree / "usr" / "lib" / "guest"
    shutil.copytree(GUEST, guest)
    shutil.move(guest / "nix-env", tree / "usr" / "local" / "bin" / "nix-env")
    for account in ("appliance-gateway", "nutmon"):
        _run("chroot", tree, "groupadd", "-r", account)
        _run("chroot", tree, "useradd", "-r", "-M", "-s", "/usr/sbin/nologin", "-g", account, account)
    shutil.rmtree(tree / "etc" / "nut")
    (tree / "etc" / "nut").symlink_to("/run/current-system/etc/nut")
    folders = ("/run/appliance-card-power", "/run/appliance-metrics")
    (tree / "etc" / "tmpfiles.d" / "power.conf").write_text("".join(f"d {one} 0755 root root\n" for one in folders))
    (tree / CARDS.removeprefix("/")).write_text("work\n")
    _run("mke2fs", "-q", "-t", "ext4", tree / FROZEN.removeprefix("/"), "8M")
    (tree / "etc" / "fstab").write_text("/dev/vda2 / ext4 defaults 0 0\n/dev/vda1 /boot vfat umask=0077 0 0\n")
    (tree / "etc" / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tree / "etc" / "hostname").write_text("gpu\n")
    (tree / "etc" / "modules").write_text("")
    (tree / "etc" / "modules-load.d" / "guest.conf").write_text("i6300esb\nefivarfs\n")
    shutil.rmtree(tree / "etc" / "systemd" / "system")
    for name in ("system", "system.conf"):
        (tree / "etc" / "systemd" / name).unlink(missing_ok=True)
        (tree / "etc" / "systemd" / name).symlink_to(f"/run/current-system/etc/systemd/{name}")
    (tree / "etc" / "appliance").symlink_to("/run/current-system/etc/appliance")
    (tree / "var" / "lib" / "appliance-models").mkdir(parents=True)
    (tree / "boot" / "loader").mkdir(parents=True, exist_ok=True)
    shell = (
        "[Unit]\nDescription=The tester\nDefaultDependencies=no\nAfter=systemd-remount-fs.service\n"
        "Conflicts=shutdown.target\nBefore=shutdown.target\n[Service]\n"
        "Environment=PS1= PS2=\nRestart=always\nTimeoutStopSec=1\n"
        "ExecStart=/bin/sh -c 'exec </dev/ttyS1 >/dev/ttyS1 2>&1; stty raw -echo clocal; exec sh'\n"
    )
    (tree / "usr/lib/systemd/system/tester.service").write_text(shell)
    wants = tree / "usr/lib/systemd/system/sysinit.target.wants"
    (wants / "tester.service").symlink_to("../tester.service")
    (tree / "usr/lib/systemd/system/default.target").unlink()
    (tree / "usr/lib/systemd/system/default.target").symlink_to("multi-user.target")
    for unit in ("getty.target", "systemd-tmpfiles-clean.timer", "e2scrub_all.timer", "fstrim.timer"):
        for found in (tree / "usr/lib/systemd/system").rglob(f"*.wants/{unit}"):
            found.unlink()
    profile = tree / "nix" / "var" / "nix" / "profiles"
    profile.mkdir(parents=True)
    (profile / "system-1-link").symlink_to(VARIANTS[0].system)
    (profile / "system").symlink_to("system-1-link")


def _disk(tree: Path, base: Path, disk: Path) -> None:
    """Write the disk: GPT, a boot partition with systemd-boot, the root file system."""
    esp_start, root_start = 1, 1 + ESP_MIB
    size = int(_run("du", "--summarize", "--block-size=1M", tree).split()[0]) + FREE_MIB
    with disk.open("wb") as file:
        file.truncate((root_start + size + 1) * 2**20)
    esp_line = f"start={esp_start}MiB, size={ESP_MIB}MiB, type=uefi"
    table = f"label: gpt\n{esp_line}\nstart={root_start}MiB, size={size}MiB\n"
    subprocess.run(["sfdisk", "--quiet", str(disk)], input=table, text=True, check=True)
    esp = f"{disk}@@{esp_start}M"
    _run("mformat", "-i", esp, "-F", "-T", ESP_MIB * 2048, "-h", 64, "-s", 32, "::")
    for folder in ("EFI", "EFI/BOOT", "loader", "loader/entries"):
        _run("mmd", "-i", esp, f"::/{folder}")
    loader = tree / "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
    first = VARIANTS[0].system
    parameters = (tree / first.removeprefix("/") / "kernel-params").read_text()
    entry = f"title NixOS\nsort-key nixos\nlinux /kernel\ninitrd /initrd\noptions init={first}/init {parameters}\n"
    with tempfile.TemporaryDirectory() as scratch:
        for target, source in {
            "EFI/BOOT/BOOTX64.EFI": loader,
            "kernel": base / "kernel",
            "initrd": base / "initrd",
            "loader/loader.conf": "timeout 0\ndefault nixos-generation-1.conf\n",
            "loader/entries/nixos-generation-1.conf": entry,
        }.items():
            text = Path(scratch) / "text"
            if isinstance(source, str):
                text.write_text(source)
            _run("mcopy", "-i", esp, text if isinstance(source, str) else source, f"::/{target}")
    options = f"offset={root_start * 2**20}"
    _run("mke2fs", "-q", "-t", "ext4", "-E", options, "-d", tree, disk, f"{size}M")
