"""Generates docs/doctor.md from the checks: ``python -m tools.doctor_doc > docs/doctor.md``."""

from __future__ import annotations

import sys

from appliance.doctor.causes import CAUSES
from appliance.doctor.finding import EXIT_CODES, ORDER
from appliance.doctor.runner import CHECKS

HEAD = """# appliance doctor

Generated from `appliance/doctor/`; do not edit. `python -m tools.doctor_doc > docs/doctor.md` writes it, and a
test compares it with the checks.

`appliance doctor`, as root on the GPU host or the VPS, compares the machine with its configuration. It changes
nothing, not even the time of a file. Each check reports its level, what that means and the command that fixes it.
The last lines of the report name the failure to fix first. A check that cannot run (a program is missing, it is not
root, it exceeds a timeout) is `unknown`, never ok.

```console
$ appliance doctor                            # every check that applies to this host
$ appliance doctor --only tunnel --only clock # some of them
$ appliance doctor --list                     # the checks, and those that do not apply to this host
$ appliance doctor --checklist                # the ten points below
$ appliance doctor --hashes --only models     # hash every model file; minutes per 100 GiB
$ appliance doctor --json                     # for programs
```

It compares the machine with two files that NixOS renders. `/etc/appliance/appliance.json` describes the site
(`--config`). `/etc/appliance/machine.json` describes this one machine (`--machine`): its pins, kernel parameters,
memory, tunnel, firewall, edge, weights and units. A VPS has only the second one. Without NixOS there is only the
first, and `appliance doctor --config var/site.json` checks what it describes.
"""

CHECKLIST = """## The checklist

`appliance doctor --checklist` prints ten points, each ok or with its fix; its exit codes are those above. Points 3
to 7 and 9 need cards, point 6 Prometheus (`appliance.observe`), point 8 `appliance.observe.publicUrl` or an edge.

| point | ok if |
|---|---|
| 1 driver and CUDA versions | the checks `pins` and `driver` are ok |
| 2 huge pages as chosen | the check `hugepages` is ok |
| 3 tensor parallel | the processes of each engine compute on exactly the cards of the site |
| 4 speculative decoding | each engine with `speculative-config` counts drafts; the accepted share is shown |
| 5 attention backend | the engine's log of this boot names the configured backend, or a fast one |
| 6 GPU utilisation at a full batch | cards compute 90 % of the time at 80 % of `concurrency`, in seven days |
| 7 temperature and power limit | each card is below 85 °C, has the site's limit, and a margin |
| 8 the public address | a request without a key through the Internet gets the gateway's 401 |
| 9 the watchdog and heat | it acts, and a drill of its decisions for simulated hot cards passes; nothing changes |
| 10 backup and restore drill | the check `backup` is ok |"""

FAULT_DOMAINS = """## Fault domains

A failure has the fault domain `generation` if a generation can cause it or lack its fix: by its kernel, driver,
parameters, units, rules, pins or site. It is `external` if no generation can: heat, power, a disk full of data,
the clock, the other end of a line. The levels and exit codes of the doctor do not depend on the fault domain. The
verdict of the smoke test does: only failures of the domain `generation` roll a generation back. External ones are
warnings in its report, on the console and at login ([decision 11](decisions/0011-fault-domains.md))."""

JSON = """## JSON

```json
{
  "version": 1,
  "host": "gpu",
  "worst": "fail",
  "exit_code": 1,
  "causes": [{"code": "wireguard-key-missing", "name": "tunnel", "subject": "private key", "seen": "…",
              "fix": "…"}],
  "checks": [{"name": "tunnel", "subject": "private key", "level": "fail", "seen": "…", "meaning": "…", "fix": "…",
              "cause": "wireguard-key-missing", "fault_domain": "generation"}],
  "left_out": [{"name": "certificate", "why": "this host is not an edge"}]
}
```

`version` changes when a key is removed or changes its meaning; new keys and new checks may be added. `meaning`,
`fix`, `subject` and `cause` are empty strings if they do not apply. The report never contains a secret. Private and
preshared keys are dropped when the output of `wg` is parsed, and the key's file is not read at all.
"""

MEANS = {
    "ok": "nothing to do",
    "warn": "it works, and may stop, or could be better",
    "unknown": "it could not be inspected, and may hide a failure",
    "fail": "it does not work, or is not safe",
}


def text() -> str:
    """Return the page as Markdown."""
    levels = [f"| {level} | {EXIT_CODES[level]} | {MEANS[level]} |" for level in ORDER]
    checks = [f"| `{check.name}` | {check.looks} | {check.means} | {check.fix} |" for check in CHECKS]
    domains = [f"| `{check.name}` | {check.fault_domain} | {check.exceptions} |" for check in CHECKS]
    codes = [f"| `{code}` | {what} |" for code, what in CAUSES.items()]
    return "\n".join(
        [
            HEAD,
            "## Levels and exit codes",
            "",
            "The exit code is that of the worst result; 2 is an invalid command line or configuration.",
            "",
            "| level | exit code | means |",
            "|---|---|---|",
            *levels,
            "",
            "## The checks",
            "",
            "In the order in which an operator fixes their failures.",
            "",
            "| check | inspects | meaning of a failure | fix |",
            "|---|---|---|---|",
            *checks,
            "",
            *CHECKLIST.splitlines(),
            "",
            *FAULT_DOMAINS.splitlines(),
            "",
            "| check | fault domain of its failures | exceptions |",
            "|---|---|---|",
            *domains,
            "",
            "## Causes",
            "",
            "Every part is closed when it fails: without firewall, key or handshake no part is reachable, and all",
            "parts behind it are silent. So failures that make others silent have a code, and `causes` lists them,",
            "the deepest first.",
            "",
            "| code | cause |",
            "|---|---|",
            *codes,
            "",
            JSON.rstrip(),
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(text())
