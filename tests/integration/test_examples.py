"""The examples end to end on a tiny model: they learn, what they save is what they trained, and they resume."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from catchment.methods import Sift, SiftCallback
from catchment.models import Increment, load
from tests import tiny

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),  # the Trainer's default
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),  # TRL's default
]
EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("torch", "trainer", "trl", "accelerate")
STEPS = 20
LIMIT = 1.0
"""Every example's ``max_grad_norm``."""


def saved(folder: Path, **settings: Any) -> Path:
    """A tiny model with weights so large that the first gradient is clipped."""
    tiny.tiny_llama(initializer_range=0.8, **settings).save_pretrained(folder)
    tiny.tiny_tokenizer(chat=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout: a resumed run must find its random numbers again."""
    return saved(tmp_path_factory.mktemp("models") / "random", attention_dropout=0.1)


def example(name: str) -> Callable[..., Any]:
    if name == "trl":
        pytest.importorskip("trl")
    path = EXAMPLES / f"sift_{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@contextmanager
def step_norms() -> Iterator[list[float]]:
    """Inside, the norm of the flat gradient that every optimizer step sees is written down."""
    norms: list[float] = []
    real = Sift._before_step

    def look(sift: Sift, *rest: Any) -> None:
        norms.append(float(torch.linalg.vector_norm(sift.values.grad)))
        real(sift, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sift, "_before_step", look)
        yield norms


class Ran:
    """One run of an example: what it returned and what it printed."""

    def __init__(
        self, name: str, base: Path, out: Path, capsys: Any, checkpoint: Path | str = "", steps: int = STEPS
    ) -> None:
        with step_norms() as self.norms:
            found = example(name)(str(base), str(out), steps, str(checkpoint))
        self.trainer = None if isinstance(found, Sift) else found
        self.sift = found if isinstance(found, Sift) else self.callback.sift
        self.model = self.sift.model
        self.lines = [line for line in capsys.readouterr().out.splitlines() if line and line[0] != "{"]

    @property
    def callback(self) -> SiftCallback:
        assert self.trainer is not None
        return next(c for c in self.trainer.callback_handler.callbacks if isinstance(c, SiftCallback))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_tunes_and_saves(name: str, base: Path, tmp_path: Path, capsys: Any) -> None:
    ran = Ran(name, base, tmp_path / "increment", capsys)
    count, losses, command = ran.lines[-3:]
    first, last = (float(word) for word in losses.removeprefix("loss ").split(" -> "))
    assert count == f"{ran.sift.k:,} of {sum(p.numel() for p in ran.model.parameters()):,} weights trained"
    assert last < first - 0.1
    assert command == f"catchment compare {base} {base}+{tmp_path / 'increment'}"

    loaded = load(command.split()[-1]).model  # as the command will
    assert same(loaded, ran.model)
    before = dict(load(str(base)).model.named_parameters())
    moved = {name for name, p in loaded.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {target.name for target in ran.sift.targets}, "the first, the last and all between"
    assert Increment.from_pretrained(tmp_path / "increment").recipe["base"] == str(base)
    assert all(p.grad is None for p in ran.model.parameters())
    assert ran.sift.values.grad is None

    assert len(ran.norms) == STEPS, "two batches make one step"
    assert ran.norms[0] == pytest.approx(LIMIT, rel=1e-5), "longer before clipping"
    assert max(ran.norms) <= LIMIT * (1 + 1e-5)


@pytest.mark.parametrize("name", ["trainer", "trl"])
def test_the_callback_clips_by_max_grad_norm(name: str, base: Path, tmp_path: Path, capsys: Any) -> None:
    ran = Ran(name, base, tmp_path / "increment", capsys, steps=1)
    assert ran.callback.norm is not None
    assert ran.callback.norm > 1.1 * LIMIT, "before clipping"
    assert ran.norms == [pytest.approx(LIMIT, rel=1e-5)], "at the step"


@pytest.mark.parametrize("name", NAMES)
def test_resumes_bit_for_bit(name: str, random_base: Path, tmp_path: Path, capsys: Any) -> None:
    """Fresh objects that go on from the middle end where the uninterrupted run ended."""
    plain = Ran(name, random_base, tmp_path / "plain", capsys)
    kept = tmp_path / "kept"
    whole = Ran(name, random_base, tmp_path / "whole", capsys, kept)
    assert same(plain.model, whole.model), "keeping a checkpoint changes nothing"
    if whole.trainer is not None:
        shutil.rmtree(kept / f"checkpoint-{STEPS}")  # as if it had been killed in the second half
    again = Ran(name, random_base, tmp_path / "again", capsys, kept)
    assert len(again.norms) == STEPS // 2
    assert same(whole.model, again.model)
    assert torch.equal(whole.sift.values, again.sift.values)
    files = [(tmp_path / run / "increment.safetensors").read_bytes() for run in ("whole", "again")]
    assert files[0] == files[1]


def test_runs_as_a_script(base: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    out = str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["sift_torch.py", "--model", str(base), "--out", out, "--steps", "2"])
    runpy.run_path(str(EXAMPLES / "sift_torch.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1] == f"catchment compare {base} {base}+{out}"
    assert (tmp_path / "out" / "increment.safetensors").is_file()
