"""Which processors and how much memory a process may use, on systems that are made of files."""

import os
from pathlib import Path

import pytest
import torch

from sfumato import device as devices

V1, V2 = "3:cpu,cpuacct:/a/b\n2:memory:/a\n1:name=systemd:/x\n", "0::/a/b\n"


@pytest.mark.parametrize(
    ("groups", "told", "expected"),
    [
        (None, {}, 8),
        (V2, {}, 8),
        (V2, {"cpu.max": "max 100000"}, 8),
        (V2, {"cpu.max": "300000 100000"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        (V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "600000 100000"}, 2),
        (V2, {"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, 2),
        (V2, {"a/cpu.max": "6400000 100000"}, 8),
        (V2, {"a/cpu.max": "what"}, 8),
        ("0::/../other\n", {"cpu.max": "400000 100000"}, 4),  # a process of another namespace's group
        (V2, {"unified/a/b/cpu.max": "400000 100000"}, 4),
        (V1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000", "cpu,cpuacct/a/cpu.cfs_period_us": "50000"}, 5),
        (V1, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),  # a container's view of /a/b
        (V1, {"memory/a/cpu.cfs_quota_us": "100000", "memory/a/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_quotas_of_every_group_on_the_way_up_count(
    groups: str | None, told: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    system(tmp_path, groups, told)
    assert devices.processors(tmp_path) == expected


def test_affinity_is_heeded_and_so_many_threads_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert devices.processors(tmp_path) == 1
    system(tmp_path, V2, {"a/cpu.max": "200000 100000"})
    assert devices.processors(tmp_path) == 1
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        devices.settle_threads()
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        devices.settle_threads()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("groups", "told", "expected"),
    [
        (V2, {}, 1000 << 10),
        (V2, {"memory.max": "max", "memory.current": "7"}, 1000 << 10),
        (V2, {"a/memory.max": "5000", "a/memory.current": "2000", "memory.max": "9", "memory.current": "3"}, 6),
        (V2, {"a/b/memory.max": "5000", "a/b/memory.current": "6000"}, 0),
        (
            V2,
            {
                "a/memory.max": "5000",
                "a/memory.current": "4900",
                "a/memory.stat": "file 9\ninactive_file 700\nactive_file 50",
            },
            850,
        ),  # what is kept of files that were read is given back when it is wanted
        (
            V1,
            {
                "memory/a/memory.limit_in_bytes": "5000",
                "memory/a/memory.usage_in_bytes": "4900",
                "memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 700\ntotal_active_file 50",
            },
            850,
        ),
        (V1, {"memory/a/memory.limit_in_bytes": "5000", "memory/a/memory.usage_in_bytes": "2000"}, 3000),
        (V1, {"memory/memory.limit_in_bytes": str((1 << 63) - 4096), "memory/memory.usage_in_bytes": "1"}, 1000 << 10),
    ],
)
def test_memory_is_what_every_group_leaves(groups: str, told: dict[str, str], expected: int, tmp_path: Path) -> None:
    system(tmp_path, groups, told)
    assert devices.free(torch.device("cpu"), tmp_path) == expected


def test_where_the_system_tells_no_memory_some_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sysconf")
    assert devices.free(torch.device("cpu"), tmp_path) == devices.ASSUMED


def system(root: Path, groups: str | None, told: dict[str, str]) -> None:
    """The files of a system under `root`: what groups hold this process, and what these say."""
    facts = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 1000 kB\n"}
    if groups is not None:
        facts["proc/self/cgroup"] = groups
    for name, content in (facts | {f"sys/fs/cgroup/{name}": text for name, text in told.items()}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize("name", ["cuda:2", "cuda:7", "cuda:", "cuda:one", "cuda:-1", "cpu:1", "cpu:one"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    kind = name.split(":")[0]
    count = {"cuda": 2, "cpu": 1}[kind]
    with pytest.raises(ValueError, match=f"there is no device '{name}': of {kind} this machine has {count}, numbered"):
        devices.pick(name)
    assert devices.pick("cuda:1") == torch.device("cuda", 1)
    assert devices.pick("cuda:0") == torch.device("cuda", 0)
    assert devices.pick("cuda") == torch.device("cuda")
    assert devices.pick("cpu:0") == torch.device("cpu", 0)
