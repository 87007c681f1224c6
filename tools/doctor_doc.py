"""Writes docs/doctor.md from the checks themselves: ``python -m tools.doctor_doc > docs/doctor.md``."""

from __future__ import annotations

import sys

from appliance.doctor.causes import CAUSES
from appliance.doctor.finding import EXIT_CODES, ORDER
from appliance.doctor.runner import CHECKS

HEAD = """# appliance doctor

Generated from `appliance/doctor/`; do not edit. `python -m tools.doctor_doc > docs/doctor.md` writes
it, a test holds it to the checks.

`appliance doctor`, as root on the GPU host or the VPS, says whether the machine is what its configuration makes of
it. It changes nothing, not even a file's time. Each check says how it is, what that means and the command that
mends it; below them stands what to mend first. A check that cannot be made (a program is missing, not root, no
answer in time) is `unknown`, never ok.

```console
$ appliance doctor                            # everything that concerns this host
$ appliance doctor --only tunnel --only clock # some of it
$ appliance doctor --list                     # what is looked at, and what does not concern this host
$ appliance doctor --hashes --only models     # hash every model file; minutes per 100 GiB
$ appliance doctor --json                     # for programs
```

It holds the machine to two files that NixOS renders: `/etc/appliance/appliance.json`, the site (`--config`), and
`/etc/appliance/machine.json`, this one machine (`--machine`): its pins, kernel parameters, memory, tunnel,
firewall, edge, weights and units. A VPS has the second one only. Without NixOS there is only the first, and
`appliance doctor --config var/site.json` checks what it describes.
"""

FAULTS = """## Whose fault

A failure is a `generation`'s where one can cause it or lack what mends it: by its kernel, driver, parameters,
units, rules, pins or site. It is `external` where none can: heat, power, a disk full of data, the clock, the other
end of a line. The doctor's own levels and exit codes do not ask whose fault it is. The smoke test does: only a
generation's own failures send it back, external ones are warnings in its report, on the console and at login
([decision 11](decisions/0011-fault-domains.md))."""

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
  "left_out": [{"name": "certificate", "why": "this host is no edge"}]
}
```

`version` changes when a key goes or changes its meaning; new keys and new checks may come. `meaning`, `fix`,
`subject` and `cause` are empty strings where there is nothing to say. No secret is ever in it: private and
preshared keys are dropped where `wg` is read, and the key's file is not read at all.
"""

MEANS = {
    "ok": "nothing to do",
    "warn": "it works, and may stop to, or could be better",
    "unknown": "it could not be looked at; a failure may hide there",
    "fail": "it does not work, or is not safe",
}


def text() -> str:
    """The whole page."""
    levels = [f"| {level} | {EXIT_CODES[level]} | {MEANS[level]} |" for level in ORDER]
    checks = [f"| `{check.name}` | {check.looks} | {check.means} | {check.fix} |" for check in CHECKS]
    domains = [f"| `{check.name}` | {check.fault_domain} | {check.exceptions} |" for check in CHECKS]
    codes = [f"| `{code}` | {what} |" for code, what in CAUSES.items()]
    return "\n".join(
        [
            HEAD,
            "## Levels and exit codes",
            "",
            "The exit code is that of the worst result; 2 is a wrong command line or configuration.",
            "",
            "| level | exit code | means |",
            "|---|---|---|",
            *levels,
            "",
            "## The checks",
            "",
            "In the order in which one would mend.",
            "",
            "| check | looks at | what a failure means | what mends it |",
            "|---|---|---|---|",
            *checks,
            "",
            *FAULTS.splitlines(),
            "",
            "| check | fault domain of its failures | but the other for |",
            "|---|---|---|",
            *domains,
            "",
            "## What to mend first",
            "",
            "Everything is closed when it fails: without firewall, key or handshake nothing is reachable, and",
            "silence is all one sees. So failures that silence others carry a code, and `causes` names them, the",
            "deepest first.",
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
