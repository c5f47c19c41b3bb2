"""How many CPUs this process may keep busy: what its affinity and its control group leave of the machine."""

import os
from pathlib import Path

from fastvoc.errors import ConfigError

MAX_THREADS = 1024


def check_threads(threads: int) -> None:
    """Raise ConfigError unless a kernel's call may use so many."""
    if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"threads must be a whole number in 1…{MAX_THREADS}, got {threads!r}")


def available(root: Path = Path("/")) -> int:
    """At least 1. A share of a CPU is not counted: threads that wait for each other must not be stopped in turn."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = quota(root)
    return cpus if limit is None else max(1, min(cpus, int(limit)))


def quota(root: Path = Path("/")) -> float | None:
    """CPU seconds a second that control groups (version 1 or 2) grant; None where they set no limit or there are none.

    The limit is the least of the process's own group's and its parents'. In a container the group's path may be that of the
    host, of which only the end, or nothing, can be seen: then the root that is mounted there counts.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:  # hierarchy:controllers:/path
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / controllers
        group = mounted / path.strip("/")
        for folder in (group, *group.parents):
            limits.append(_limit_v1(folder) if controllers else _limit_v2(folder))
            if folder == mounted:
                break
    return min((limit for limit in limits if limit is not None), default=None)


def _limit_v2(folder: Path) -> float | None:
    return _share(*_words(folder / "cpu.max", 2))


def _limit_v1(folder: Path) -> float | None:
    return _share(*_words(folder / "cpu.cfs_quota_us", 1), *_words(folder / "cpu.cfs_period_us", 1))


def _words(path: Path, n: int) -> list[str]:
    """The file's n words, or empty ones."""
    try:
        words = path.read_text().split()
    except OSError:
        words = []
    return words if len(words) == n else [""] * n


def _share(quota: str, period: str) -> float | None:
    """None where the quota is "max" or -1, or unreadable."""
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return int(quota) / int(period)
