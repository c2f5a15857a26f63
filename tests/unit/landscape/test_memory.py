"""Free memory, and what is chosen by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from catchment.landscape import free_memory, memory


def test_memory_is_compared_device_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small tensors on two devices: 2 copies of each are what each device must hold."""
    free = {"cpu": 3000.0, "meta": 1000.0}
    monkeypatch.setattr(memory, "free_memory", lambda device: free[torch.device(device).type])
    weights = {"a": torch.zeros(200), "b": torch.zeros(90, device="meta")}  # 800 and 360 bytes
    assert memory.choose("auto", weights, {}) == "copy", "2320 bytes in all, but 720 on the small device"
    assert memory.choose("auto", {"a": torch.zeros(200), "b": torch.zeros(110, device="meta")}, {}) == "low"
    assert memory.choose("auto", {"a": torch.zeros(310), "b": torch.zeros(9, device="meta")}, {}) == "low"
    assert memory.choose("auto", {"a": torch.zeros(310)}, {"a": torch.zeros(310)}) == "mapped"


def test_free_memory_knows_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    system = free_memory()
    assert 0 < system < 1e15
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700000\n")
    assert free_memory("cpu") == pytest.approx(system, rel=0.2)
    (tmp_path / "memory.max").write_text("1000000\n")
    assert free_memory("cpu") == 300000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\nactive_file 7\n")
    assert free_memory("cpu") == 400000
    (tmp_path / "memory.current").write_text("1200000\n")
    assert free_memory("cpu") == 0
