"""Tools that move a model through weight space, under one roof: ours, two references, and three peers.

Each draws ``count`` random directions and visits ``steps`` points on each, or a plane of ``steps`` x ``steps`` points,
through its own documented functions; ``seen()`` is called where the model would be evaluated, and what it returns is
the score. ``reach`` is the largest displacement along one axis, as a share of the norm of the weights.
Only the standard library is imported here, so that every tool can run in an environment of its own.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Seen:
    """What a tool calls instead of an evaluation; ``line()`` is called where a new direction begins."""

    def __call__(self) -> float:
        return 0.0

    def line(self) -> None:
        pass


class Tool:
    """How a tool is used. ``lines`` and ``plane`` return what the tool returns: scores by position. With ``keep``, the
    last line's direction as it was asked for is left in ``asked``, in the order of the parameters; where the tool does
    not tell, it stays empty."""

    note = ""
    keep = False
    asked: Any = ()

    def __init__(self, folder: Path, extra: Path | None = None) -> None:
        self.folder = folder
        self.extra = extra

    def version(self) -> str:
        return "-"

    def lines(self, model: Any, seen: Seen, count: int, steps: int, reach: float) -> list[Any]:
        raise NotImplementedError

    def plane(self, model: Any, seen: Seen, steps: int, reach: float) -> Any:
        raise NotImplementedError

    def draw(self, model: Any) -> Callable[[], None] | None:
        """Draws one direction and nothing else, where that can be called apart."""
        return None


def positions(steps: int) -> list[float]:
    """-1 to 1, both ends included; an odd number of steps has a 0."""
    return [2 * i / (steps - 1) - 1 for i in range(steps)]


def unit(model: Any) -> float:
    """RMS of the weights: what a normal direction is multiplied by to have their norm."""
    squares = sum(float(p.detach().norm()) ** 2 for p in model.parameters())
    return math.sqrt(squares / sum(p.numel() for p in model.parameters()))


class Ours(Tool):
    memory = "auto"
    note = "Mover.place for every point, Mover.restore once; every point is formed from the clean weights"

    def version(self) -> str:
        return version("catchment")

    def _files(self, model: Any) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def _mover(self, model: Any) -> tuple[Any, Any]:
        from catchment.landscape import Mover, Subspace

        subspace = Subspace.all(model)
        mover = Mover(model, subspace, memory=self.memory, files=self._files(model))  # type: ignore[arg-type]
        self.mode = mover.mode
        return subspace, mover

    def lines(self, model: Any, seen: Seen, count: int, steps: int, reach: float) -> list[Any]:
        from catchment.landscape import gaussian

        scale, found = reach * unit(model), []
        subspace, mover = self._mover(model)
        with mover:
            for index in range(count):
                seen.line()
                direction, scores = gaussian(subspace, 0, index), []
                for position in positions(steps):
                    mover.place((direction, scale * position))
                    scores.append(seen())
                found.append(scores)
        if self.keep:
            self.asked = [direction.delta(name) for name, _ in model.named_parameters() if name in subspace.shapes]
        return found

    def plane(self, model: Any, seen: Seen, steps: int, reach: float) -> Any:
        from catchment.landscape import gaussian

        scale, rows = reach * unit(model), []
        subspace, mover = self._mover(model)
        axes = gaussian(subspace, 0, 0), gaussian(subspace, 0, 1)
        with mover:
            for y in positions(steps):
                row = []
                for x in positions(steps):
                    mover.place((axes[0], scale * x), (axes[1], scale * y))
                    row.append(seen())
                rows.append(row)
        return rows

    def draw(self, model: Any) -> Callable[[], None]:
        from catchment.landscape import Mover, Subspace, gaussian

        subspace, number = Subspace.all(model), iter(range(10**9))
        mover = Mover(model, subspace, memory="copy")
        return lambda: mover.hold(gaussian(subspace, 1, next(number)))


class OursCopy(Ours):
    memory = "copy"


class OursLow(Ours):
    memory = "low"
    note = "as above; the direction is drawn anew, block by block, for every point"


class Stored(Tool):
    note = "reference: clean copy and direction kept; add_ before a point, copy_ after it"

    def _clean(self, model: Any) -> tuple[list[Any], list[Any]]:
        weights = [p.data for p in model.parameters()]
        return weights, [w.clone() for w in weights]

    def _visit(self, weights: list[Any], clean: list[Any], seen: Seen, moves: list[tuple[list[Any], float]]) -> float:
        for direction, scale in moves:
            for weight, delta in zip(weights, direction, strict=True):
                weight.add_(delta, alpha=scale)
        score = seen()
        for weight, original in zip(weights, clean, strict=True):
            weight.copy_(original)
        return score

    def lines(self, model: Any, seen: Seen, count: int, steps: int, reach: float) -> list[Any]:
        import torch

        scale, found, direction = reach * unit(model), [], []
        weights, clean = self._clean(model)
        for _ in range(count):
            seen.line()
            direction.clear()
            direction += [torch.randn_like(w) for w in weights]
            found.append([self._visit(weights, clean, seen, [(direction, scale * x)]) for x in positions(steps)])
        self.asked = direction if self.keep else ()
        return found

    def plane(self, model: Any, seen: Seen, steps: int, reach: float) -> Any:
        import torch

        scale = reach * unit(model)
        weights, clean = self._clean(model)
        a, b = ([torch.randn_like(w) for w in weights] for _ in range(2))
        return [
            [self._visit(weights, clean, seen, [(a, scale * x), (b, scale * y)]) for x in positions(steps)]
            for y in positions(steps)
        ]

    def draw(self, model: Any) -> Callable[[], None]:
        kept = [p.data.clone() for p in model.parameters()]

        def once() -> None:
            for tensor in kept:
                tensor.normal_()

        return once


class Seeded(Tool):
    note = (
        "reference: nothing kept; from point to point the direction is redrawn from its seed and the difference of the "
        "scales is added; at the end the last scale is subtracted"
    )

    def _walk(self, model: Any, seed: int, way: float) -> None:
        import torch

        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        for weight in (p.data for p in model.parameters()):
            drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype, device=device)
            weight.add_(drawn, alpha=way)

    def _draws(self, model: Any, seed: int) -> list[Any]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]

    def lines(self, model: Any, seen: Seen, count: int, steps: int, reach: float) -> list[Any]:
        scale, found = reach * unit(model), []
        for seed in range(count):
            seen.line()
            here, scores = 0.0, []
            for position in positions(steps):
                self._walk(model, seed, scale * position - here)
                here = scale * position
                scores.append(seen())
            self._walk(model, seed, -here)
            found.append(scores)
        self.asked = self._draws(model, count - 1) if self.keep else ()
        return found

    def plane(self, model: Any, seen: Seen, steps: int, reach: float) -> Any:
        scale, here, rows = reach * unit(model), [0.0, 0.0], []

        def walk(*there: float) -> None:
            for seed, goal in enumerate(there):
                if goal != here[seed]:
                    self._walk(model, seed, goal - here[seed])
                    here[seed] = goal

        for y in positions(steps):
            row = []
            for x in positions(steps):
                walk(scale * x, scale * y)
                row.append(seen())
            rows.append(row)
        walk(0.0, 0.0)
        return rows

    def draw(self, model: Any) -> Callable[[], None]:
        import torch

        def once() -> None:
            for weight in model.parameters():
                torch.randn(weight.shape, dtype=weight.dtype, device=weight.device)

        return once


class LossLandscapes(Tool):
    note = "random_line / random_plane, defaults but distance (1 / reach, because the published wheel divides by it)"

    def version(self) -> str:
        return version("loss-landscapes")

    def lines(self, model: Any, seen: Seen, count: int, steps: int, reach: float) -> list[Any]:
        import loss_landscapes

        found = []
        for _ in range(count):
            seen.line()
            found.append(loss_landscapes.random_line(model, lambda _: seen(), distance=1 / reach, steps=steps))
        return found

    def plane(self, model: Any, seen: Seen, steps: int, reach: float) -> Any:
        import loss_landscapes

        return loss_landscapes.random_plane(model, lambda _: seen(), distance=1 / reach, steps=steps)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class Landscaper(Tool):
    note = "generate_random_orthogonal_directions, then compute_loss_landscape"

    def version(self) -> str:
        return version("landscaper")

    def _run(self, model: Any, seen: Seen, steps: int, reach: float, dim: int) -> Any:
        from landscaper.compute import compute_loss_landscape
        from landscaper.utils import generate_random_orthogonal_directions

        directions = generate_random_orthogonal_directions(model, dim)
        device = next(model.parameters()).device.type
        with quiet():
            scores, _ = compute_loss_landscape(
                model, None, directions, lambda *_: seen(), steps=steps, distance=reach, dim=dim, device=device
            )
        self.asked = directions[0] if self.keep else ()
        return scores

    def lines(self, model: Any, seen: Seen, count: int, steps: int, reach: float) -> list[Any]:
        found = []
        for _ in range(count):
            seen.line()
            found.append(self._run(model, seen, steps, reach, 1))
        return found

    def plane(self, model: Any, seen: Seen, steps: int, reach: float) -> Any:
        return self._run(model, seen, steps, reach, 2)

    def draw(self, model: Any) -> Callable[[], None]:
        from landscaper.utils import generate_random_orthogonal_directions

        return lambda: generate_random_orthogonal_directions(model, 1)


class Goldstein(Tool):
    note = (
        "setup_direction (filter, biasbn) and load_directions, so through its direction file, and set_weights for "
        "every point, beside the copy of the state that its program keeps; the loop follows its crunch, which is tied "
        "to CIFAR and MPI"
    )

    def version(self) -> str:
        return "source tree"

    def _library(self) -> Any:
        sys.modules.setdefault("model_loader", types.ModuleType("model_loader"))  # loads CIFAR networks: not needed
        if str(self.extra) not in sys.path:
            sys.path.insert(0, str(self.extra))
        import net_plotter  # type: ignore[import-not-found]

        return net_plotter

    def _axes(self, model: Any, folder: str, count: int) -> Any:
        library = self._library()
        arguments = types.SimpleNamespace(
            dir_file="", model_file2="", model_file3="", dir_type="weights", xignore="biasbn", xnorm="filter",
            yignore="biasbn", ynorm="filter", y=count == 2, same_dir=False,
        )  # fmt: skip
        path = f"{folder}/directions-{len(list(Path(folder).iterdir()))}.h5"
        with quiet():
            library.setup_direction(arguments, path, model)
        return library.load_directions(path)

    def lines(self, model: Any, seen: Seen, count: int, steps: int, reach: float) -> list[Any]:
        import numpy
        import torch

        library, found = self._library(), []
        weights, _states = library.get_weights(model), copy.deepcopy(model.state_dict())
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(count):
                seen.line()
                library.set_weights(model, weights)
                axes, scores = self._axes(model, folder, 1), []
                for step in numpy.linspace(-reach, reach, steps):
                    library.set_weights(model, weights, axes, step)
                    scores.append(seen())
                found.append(scores)
                self.asked = [torch.from_numpy(d[()]) for d in axes[0]] if self.keep else ()
        return found

    def plane(self, model: Any, seen: Seen, steps: int, reach: float) -> Any:
        import numpy

        library = self._library()
        weights, _states = library.get_weights(model), copy.deepcopy(model.state_dict())
        grid = numpy.linspace(-reach, reach, steps)
        with tempfile.TemporaryDirectory() as folder:
            axes, rows = self._axes(model, folder, 2), []
            for y in grid:
                row = []
                for x in grid:
                    library.set_weights(model, weights, axes, numpy.array([x, y]))
                    row.append(seen())
                rows.append(row)
        return rows

    def draw(self, model: Any) -> Callable[[], None]:
        library = self._library()
        return lambda: library.create_random_direction(model, "weights", "biasbn", "filter")


TOOLS: dict[str, type[Tool]] = {
    "ours (default)": Ours,
    "ours (copy)": OursCopy,
    "ours (low memory)": OursLow,
    "reference: stored": Stored,
    "reference: seeded": Seeded,
    "loss-landscapes": LossLandscapes,
    "landscaper": Landscaper,
    "goldstein": Goldstein,
}
OWN = ("ours (default)", "ours (copy)", "ours (low memory)", "reference: stored", "reference: seeded")
