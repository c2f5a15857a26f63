"""Where a tool really puts the model: the displacement theta - theta_0, recorded at every point and fitted.

Lines have 9 points (21 in bf16, where steps are smaller and roundings add up), planes 5 x 5. Norms and fits are over
every 37th entry of each tensor; what is said to be equal is compared bit for bit, in all entries.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from landscape_models import REACH, build
from landscape_peers import Seen, Tool
from torch import Tensor

EVERY = 37
"""Facts are read from every 37th entry of each tensor; "bit for bit" from all."""
LINE, PLANE = 9, 5
BF16_LINE, BF16_REACH = 21, 0.1
Score = Callable[[int], float]


class Recorder(Seen):
    """Notes where the model stands; the score is the number of the call, so that a position can be looked up."""

    def __init__(self, model: Any, score: Score = float) -> None:
        self.model = model
        self.clean = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.score = score
        self.samples: list[dict[str, Tensor]] = []
        self.at_centre: list[bool] = []
        self.dtypes: set[str] = set()

    def sample(self) -> dict[str, Tensor]:
        return {n: thin(p) - thin(self.clean[n]) for n, p in self.model.named_parameters()}

    def clean_now(self) -> bool:
        """Whether every weight has the dtype and the bits that it had."""
        return all(
            p.dtype == self.clean[n].dtype and torch.equal(p.detach(), self.clean[n])
            for n, p in self.model.named_parameters()
        )

    def __call__(self) -> float:
        self.samples.append(self.sample())
        self.at_centre.append(self.clean_now())
        self.dtypes |= {str(p.dtype) for p in self.model.parameters()}
        return self.score(len(self.samples))

    def vector(self, point: int) -> Tensor:
        return torch.cat(list(self.samples[point].values()))

    def points(self) -> Tensor:
        return torch.stack([self.vector(i) for i in range(len(self.samples))])

    def relative(self, sample: dict[str, Tensor], names: list[str]) -> float:
        """||theta - theta_0|| / ||theta_0|| over some tensors."""
        moved = sum(float(sample[n].double().square().sum()) for n in names)
        return math.sqrt(moved / sum(float(thin(self.clean[n]).double().square().sum()) for n in names))


def thin(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)[::EVERY].float().cpu()


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(a @ b / (a.norm() * b.norm()))


def fit(points: Tensor, design: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares ``points ~ design @ axes``; the axes and the residuals."""
    axes = torch.linalg.pinv(design.double()).float() @ points
    return axes, points - design.float() @ axes


def on_a_line(
    tool: Tool, folder: Path, device: str, kind: str = "plain", steps: int = LINE, reach: float = REACH
) -> dict[str, Any]:
    """Spacing, straightness, centre, and what is left behind, on one line."""
    model = build(kind, folder, device)
    recorder = Recorder(model)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    asked = [p.requires_grad for p in model.parameters()]
    returned = tool.lines(model, recorder, 1, steps, reach)[0]
    points = recorder.points()
    axes, rest = fit(points, torch.stack([torch.ones(steps), torch.arange(steps).float()], dim=1))
    step, spread = float(axes[1].norm()), float((points - points.mean(0)).norm())
    last = recorder.vector(-1) - recorder.vector(0)
    norm = float(torch.cat([thin(w) for w in recorder.clean.values()]).norm())
    grad = next(model.parameters()).grad
    return {
        "scores_returned_unchanged": [float(v) for v in returned] == [float(i + 1) for i in range(steps)],
        "spacing_error_in_steps": float(rest.norm(dim=1).max()) / step,
        "off_line": float(rest.norm()) / spread,
        "off_direction": off_direction(tool, last),
        "centre_evaluated": any(recorder.at_centre),
        "theta0_at_position": -float(axes[0] @ axes[1]) / step**2,
        "points": steps,
        "length_over_weights": float(last.norm()) / norm,
        "length_asked_for": 2 * reach,
        "share_of_positive_entries": float((last[last != 0] > 0).float().mean()),
        "dtypes_seen": sorted(recorder.dtypes),
        "weights_restored": recorder.clean_now(),
        "left_at": recorder.relative(recorder.sample(), list(recorder.clean)),
        "requires_grad_kept": asked == [p.requires_grad for p in model.parameters()],
        "gradients_kept": grad is not None and bool((grad == 1).all()),
        "training_mode_kept": model.training,
    }


def off_direction(tool: Tool, moved: Tensor) -> float | None:
    """Sine of the angle between the way from one end to the other and the direction that was asked for."""
    if not len(tool.asked):
        return None
    return math.sqrt(max(0.0, 1 - cosine(moved, torch.cat([thin(d) for d in tool.asked])) ** 2))


def of_two_draws(tool: Tool, folder: Path, device: str) -> dict[str, Any]:
    """Two lines on their own, each from a clean model."""
    model = build("plain", folder, device)
    recorder = Recorder(model)
    tool.lines(model, recorder, 2, 3, REACH)
    first, second = (recorder.vector(i + 2) - recorder.vector(i) for i in (0, 3))
    return {"cosine_of_two_lines": cosine(first, second)}


def on_a_plane(tool: Tool, folder: Path, device: str) -> dict[str, Any]:
    """Whether cell (i, j) of what comes back stands at ``a + i x + j y``, and whether x and y span a plane."""
    model = build("plain", folder, device)
    recorder = Recorder(model)
    returned = tool.plane(model, recorder, PLANE, REACH)
    calls = [[round(float(v)) for v in row] for row in returned]
    calls = [[min(max(v, 1), PLANE**2) for v in row] for row in calls]
    points = torch.stack([recorder.vector(v - 1) for row in calls for v in row])
    cells = [(1.0, float(i), float(j)) for j in range(PLANE) for i in range(PLANE)]
    axes, rest = fit(points, torch.tensor(cells))
    shortest = min(float(axes[1].norm()), float(axes[2].norm()))
    values = torch.linalg.svdvals(axes[1:])
    return {
        "plane_scores_returned_unchanged": sorted(float(v) for row in returned for v in row)
        == [float(i + 1) for i in range(PLANE**2)],
        "plane_error_in_steps": float(rest.norm(dim=1).max()) / shortest,
        "plane_centre_evaluated": any(recorder.at_centre),
        "plane_cosine_of_axes": cosine(axes[1], axes[2]),
        "plane_second_singular_value": float(values[1] / values[0]),
    }


def of_non_finite(tool: Tool, folder: Path, device: str) -> dict[str, Any]:
    """The third score is not a number: is it so in what comes back?"""
    model = build("plain", folder, device)
    returned = tool.lines(model, Recorder(model, lambda n: math.nan if n == 3 else float(n)), 1, 5, REACH)[0]
    return {"non_finite_score_reported": sum(math.isnan(float(v)) for v in returned) == 1}


def of_tied(tool: Tool, folder: Path, device: str) -> dict[str, Any]:
    """How far the tied embedding moves beside the other matrices: tied over untied; 1.00 where it moves once."""
    shares = {}
    for kind in ("tied", "plain"):
        model = build(kind, folder, device)
        recorder = Recorder(model)
        tool.lines(model, recorder, 1, 3, REACH)
        sizes = {n: float((recorder.samples[2][n] - recorder.samples[0][n]).norm()) for n in recorder.clean}
        embedding = next(n for n in sizes if "embed_tokens" in n)
        others = [v for n, v in sizes.items() if "_proj" in n]
        shares[kind] = sizes[embedding] / math.sqrt(sum(v * v for v in others))
    return {"tied_over_untied": shares["tied"] / shares["plain"]}


def of_lora(tool: Tool, folder: Path, device: str) -> dict[str, Any]:
    """Movement of the frozen base, and of the adapter, beside their norms."""
    model = build("lora", folder, device)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    adapter = [n for n, p in model.named_parameters() if p.requires_grad]
    recorder = Recorder(model)
    tool.lines(model, recorder, 1, 3, REACH)
    return {
        "frozen_base_moved": max(recorder.relative(s, frozen) for s in recorder.samples),
        "adapter_moved": max(recorder.relative(s, adapter) for s in recorder.samples),
    }


def of_bf16(tool: Tool, folder: Path, device: str) -> dict[str, Any]:
    """A line in bf16. A tool that adds steps to steps stays straight, but its roundings add up to another direction:
    ``bf16_off_direction``; of a tool that starts from clean weights every time it is what rounding once does."""
    found = on_a_line(tool, folder, device, "bf16", BF16_LINE, BF16_REACH)
    kept = ("off_line", "off_direction", "dtypes_seen", "centre_evaluated", "weights_restored", "left_at")
    return {f"bf16_{key}": found[key] for key in kept}


def facts(tool: Tool, folder: Path, device: str) -> dict[str, Any]:
    """All of the above; what raises is reported as what it raised."""
    found: dict[str, Any] = {}
    tool.keep = True
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        "line": on_a_line,
        "draws": of_two_draws,
        "plane": on_a_plane,
        "non_finite": of_non_finite,
        "tied": of_tied,
        "lora": of_lora,
        "bf16": of_bf16,
    }
    for name, part in parts.items():
        try:
            found |= part(tool, folder, device)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found[f"{name}_raised"] = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    return found
