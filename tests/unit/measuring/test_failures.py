"""Errors that cost one stage, errors that must not be swallowed, and the memory that a stage asks for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from catchment import landscape
from catchment.errors import TaskError
from catchment.measuring import failures

KEPT: list[tuple[Exception, str]] = [
    (TaskError("no such item"), "no such item"),
    (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "memory ran out: CUDA out of memory."),
    (MemoryError(), "memory ran out: MemoryError"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out"),
    (ZeroDivisionError("division by zero"), "no finite numbers"),
    (ValueError("Out of range float values are not JSON compliant"), "no finite numbers"),
]


@pytest.mark.parametrize(("error", "said"), KEPT, ids=[type(e).__name__ for e, _ in KEPT])
def test_errors_that_cost_one_stage(error: Exception, said: str) -> None:
    assert said in str(failures.failure(error))


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), AttributeError("x"), RuntimeError("shapes differ")])
def test_faults_of_the_program_are_not_swallowed(error: Exception) -> None:
    assert failures.failure(error) is None


def test_a_stage_that_does_not_fit_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscape, "free_memory", lambda device: 10e9)
    mover: Any = SimpleNamespace(mode="copy")
    device = torch.device("cpu")
    assert failures.short_of(7.9e9, mover, device) == ""
    assert failures.short_of(8.1e9, mover, device) == "it needs about 10.1 GB of free memory"
    mover.mode = "low"
    assert "GB of free memory" in failures.short_of(1e9, mover, device)
