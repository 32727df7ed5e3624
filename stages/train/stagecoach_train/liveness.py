"""Whether a process that this machine once ran is still there, so that nobody waits a minute for one that was killed.

A process is named by boot, process namespace, number and start time. Where one of the first two differs from ours,
nothing can be said: the number may live in another container.
"""

from __future__ import annotations

import os
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def own_name() -> str:
    """Return this process's name, empty on a system without ``/proc``."""
    return _name(os.getpid())


def is_gone(name: str) -> bool:
    """Whether the process of that name ran on this machine and in this namespace, and certainly is not there now."""
    own = own_name()
    if not name or not own or name.split("/")[:2] != own.split("/")[:2]:
        return False
    number = name.split("/")[2]
    return not number.isdecimal() or _name(int(number)) != name


def _name(number: int) -> str:
    try:
        # The command's name stands in parentheses and may hold anything; the state is field 3, the start time field 22.
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        namespace = os.readlink("/proc/self/ns/pid")
        boot = _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{boot}/{namespace}/{number}/{fields[19]}"
