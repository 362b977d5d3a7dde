"""What this machine has for jobs: cores and memory."""

import os
from pathlib import Path

MEMORY_INFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores that this process may use: what it is bound to, and no more than its control group's share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_line(CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def available_memory() -> int:
    """Bytes that can be taken without swapping, within the control group's limit; very many where nothing tells."""
    free = [2**62]
    if MEMORY_INFO.is_file():
        lines = dict(line.split(":", 1) for line in MEMORY_INFO.read_text().splitlines() if ":" in line)
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = _first_line(CGROUP / "memory.max"), _first_line(CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit():
        free.append(int(limit) - int(used) + _cached_files())
    return max(0, min(free))


def _cached_files() -> int:
    """Bytes of the control group that hold files which were read, and are given up when memory is wanted."""
    try:
        lines = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(lines.get("inactive_file", 0))
    except (OSError, ValueError):
        return 0


def _first_line(file: Path) -> str:
    """The first line of a small file; empty if it cannot be read."""
    try:
        return file.read_text().partition("\n")[0]
    except OSError:
        return ""
