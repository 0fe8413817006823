"""Memory that a process may have, with control groups as files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from vlac_queue import VlacConfig
from vlac_queue.memory import allowed_bytes, control_groups

_ALL = psutil.virtual_memory().total


def lay_out(root: Path, groups: str, files: dict[str, str]) -> None:
    """Writes what the kernel would show: /proc/self/cgroup, and files of groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.mark.parametrize(
    ("groups", "limits", "allowed"),
    [
        ("0::/\n", {}, _ALL),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1048576\n"}, 1 << 20),
        ("0::/\n", {"memory.max": "2097152\n"}, 2 << 20),
        ("4:cpu,memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "4194304\n"}, 4 << 20),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, _ALL),
    ],
    ids=["no limit", "a group around it", "container", "version 1", "version 1 without"],
)
def test_the_least_limit_counts(groups: str, limits: dict[str, str], allowed: int, tmp_path: Path) -> None:
    lay_out(tmp_path, groups, limits)
    assert allowed_bytes(tmp_path) == allowed


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        (
            "1:name=systemd:/x\n0::/user/worker\n",
            {
                "user/worker/memory.max": "1000",
                "user/worker/memory.current": "700",
                "user/worker/memory.stat": "anon 500\ninactive_file 100\nactive_file 20\n",
                "user/memory.max": "max",
                "user/memory.current": "5000",
                "user/memory.stat": "anon 5000\n",
            },
            {420: "/user/worker"},
        ),
        (  # version 1, in a container that sees its own group at the top
            "4:cpu,memory:/docker/0f3b\n",
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "900",
                "memory/memory.stat": "total_inactive_file 50\n",
            },
            {150: "/"},
        ),
    ],
)
def test_what_a_group_leaves_is_told(
    tmp_path: Path, membership: str, files: dict[str, str], left: dict[int, str]
) -> None:
    lay_out(tmp_path, membership, files)
    assert {group.limit - group.used: group.path for group in control_groups(tmp_path)} == left


def test_without_control_groups_it_is_the_machines(tmp_path: Path) -> None:
    assert allowed_bytes(tmp_path) == _ALL


def test_a_worker_keeps_less_where_memory_is_small() -> None:
    assert VlacConfig().history_bytes == min(1 << 30, allowed_bytes() // 16)
    small = (
        "import os; os.sysconf = {'SC_PHYS_PAGES': 1 << 20, 'SC_PAGE_SIZE': 1 << 12}.get;"
        "from vlac_queue.config import VlacConfig; print(VlacConfig().history_bytes >> 20)"
    )
    assert subprocess.run([sys.executable, "-c", small], capture_output=True, text=True).stdout == "256\n"
