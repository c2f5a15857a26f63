"""The grid of a study: checkpoints, recipes and questions, from its settings. Nothing is loaded here but tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catchment.capabilities import PromptOptions
from catchment.commands.study import axes
from catchment.commands.study.axes import ModelAxis, ScanAxis, TuningAxis
from catchment.commands.study.calls import PlannedCall, read_calls
from catchment.commands.study.questions import Question, ask
from catchment.commands.study.record import BASE, Checkpoint, TuningCard
from catchment.commands.study.settings import StudySettings
from catchment.commands.tune.opened import RATE, RATES
from catchment.errors import InputError, did_you_mean
from catchment.methods import METHODS, Method
from catchment.options import parse_pairs

MAIN = "main"
"""Name of the only checkpoint of a model that has no others."""
VARIED = ("method", "method_args", "learning_rate", "epochs", "max_steps", "batch_size", "accumulation", "max_length",
          "weight_decay")  # fmt: skip
"""Settings of a tuning whose lists make the grid larger."""
OF_TRAININGS = (*VARIED, "packing", "rows", "seeds")
"""What an entry of a model that is there cannot have."""
SHORT = {"learning_rate": "lr", "weight_decay": "wd", "batch_size": "batch"}


@dataclass(frozen=True)
class Place:
    """A checkpoint and how it is loaded: ``revision`` of the hub, ``None`` where the spelling says it all."""

    spec: str
    revision: str | None
    checkpoint: Checkpoint
    parameters: float | None = None

    @property
    def name(self) -> str:
        """Model and checkpoint, for people."""
        c = self.checkpoint
        return c.model if c.revision == MAIN else f"{c.model} at {c.revision}"


@dataclass(frozen=True)
class Recipe:
    """One way to tune: rows, method and settings; or ``model``, the spelling of tuned models that are there."""

    card: TuningCard
    seeds: tuple[int | None, ...]
    data: str = ""
    model: str = ""
    method: Method | None = None
    options: Mapping[str, Any] | None = None
    rows: int | None = None

    @property
    def label(self) -> str:
        return self.card.label


@dataclass(frozen=True)
class Unit:
    """One model under test: a checkpoint as it is, or tuned by a recipe with a seed."""

    place: Place
    recipe: Recipe | None = None
    seed: int | None = None

    @property
    def tuning(self) -> str:
        return BASE if self.recipe is None else self.recipe.label

    @property
    def trains(self) -> bool:
        """Whether it must be trained before it can be asked."""
        return self.recipe is not None and not self.recipe.model

    @property
    def name(self) -> str:
        """For people."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return self.place.name if self.recipe is None else f"{self.place.name} + {self.tuning}{seed}"


@dataclass(frozen=True)
class Design:
    """The whole grid.

    Attributes:
        places: Checkpoints, in order.
        recipes: Tunings, without the base, which is always there.
        questions: What every model is asked.
        scans: Scans of every model.
        contrasts: Named lists of pairs.
        calls: Functions to call.
    """

    settings: StudySettings
    asked: PromptOptions
    places: tuple[Place, ...]
    recipes: tuple[Recipe, ...]
    questions: tuple[Question, ...]
    scans: tuple[ScanAxis, ...]
    contrasts: Mapping[str, tuple[tuple[str, str], ...]]
    calls: tuple[PlannedCall, ...] = ()

    def units(self, place: Place) -> Iterator[Unit]:
        """The models under test of one checkpoint, the base first."""
        yield Unit(place)
        for recipe in self.recipes:
            for seed in recipe.seeds:
                yield Unit(place, recipe, seed)


def read_design(settings: StudySettings) -> Design:
    """The grid that the settings describe.

    Raises:
        InputError: A value twice on an axis, a missing seed, an unknown method or argument, a name that means nothing.
    """
    s = settings
    models = axes.read_all(ModelAxis, s.models, "models", "model")
    calls = read_calls(s)
    if not models and not calls:
        raise InputError("models is empty; expected at least one, e.g. models: [org/name].")
    places = tuple(place for axis in models for place in _places(axis, s))
    axes.distinct(((p.checkpoint.model, p.checkpoint.revision) for p in places), "models")
    seeds = axes.read_seeds(s.seeds, "seeds")
    tunings = axes.read_all(TuningAxis, s.tunings, "tunings", "data")
    recipes = _labelled([part for number, axis in enumerate(tunings) for part in _parts(axis, seeds, number, s)])
    axes.distinct((recipe.label for recipe in recipes), "tunings")
    _check_trainings(recipes)
    tasks = axes.read_tasks(s.tasks)
    questions = ask(s, tasks)
    if places and not questions and not s.scans:
        raise InputError("tasks is empty; expected at least one, e.g. tasks: [recall].")
    design = Design(
        settings=s,
        asked=PromptOptions(s.chat_template, s.system),
        places=places,
        recipes=recipes,
        questions=questions,
        scans=axes.read_all(ScanAxis, s.scans, "scans", "name") if s.scans else (),
        contrasts=axes.read_contrasts(s.contrasts),
        calls=calls,
    )
    _check_contrasts(design)
    return design


def beside(settings: StudySettings, path: str) -> str:
    """A path of the YAML file, which is relative to that file's folder where it is there."""
    folder = settings.study.parent if settings.study is not None else Path()
    return str(folder / path) if path and not Path(path).is_absolute() and (folder / path).exists() else path


def _places(axis: ModelAxis, s: StudySettings) -> Iterator[Place]:
    name = axis.name or Path(axis.model.replace("{revision}", "").rstrip("/")).name.strip("-_") or axis.model
    axes.distinct(axis.revisions, f"revisions of {name}")
    if "{revision}" in axis.model and not axis.revisions:
        raise InputError(f"model {axis.model!r} has no revisions; expected e.g. revisions: [step1000, step64000].")
    revisions = axis.revisions or (MAIN,)
    tokens = _tokens(axis, revisions, name)
    for number, revision in enumerate(revisions):
        spec, of_hub = _spelled(axis, revision, s)
        yield Place(spec, of_hub, Checkpoint(name, revision, tokens.get(revision), number), axis.parameters)


def _tokens(axis: ModelAxis, revisions: Sequence[str], name: str) -> Mapping[str, float]:
    """Tokens by checkpoint, as far as they are told."""
    if isinstance(axis.tokens, dict):
        for revision in axis.tokens:
            if revision not in revisions:
                raise InputError(f"tokens of {name}: no revision {revision!r}.{did_you_mean(revision, revisions)}")
        return axis.tokens
    if axis.tokens and len(axis.tokens) != len(revisions):
        raise InputError(
            f"tokens of {name} has {len(axis.tokens)} numbers for {len(revisions)} checkpoints; expected one for each, "
            "in their order."
        )
    return dict(zip(revisions, axis.tokens, strict=False))


def _spelled(axis: ModelAxis, revision: str, s: StudySettings) -> tuple[str, str | None]:
    """How a checkpoint is loaded: a folder per revision, or a revision of the hub."""
    spec = beside(s, axis.model.replace("{revision}", revision))
    if not axis.revisions or "{revision}" in axis.model:
        return spec, s.revision if not axis.revisions else None
    if (Path(spec) / "config.json").is_file():
        raise InputError(
            f"model {axis.model!r} is one model on this machine, and has no revision {revision!r}; expected a folder "
            "that holds a folder for each, or {revision} in its path."
        )
    return (str(Path(spec) / revision), None) if Path(spec).is_dir() else (spec, revision)


def _parts(
    axis: TuningAxis, seeds: tuple[int, ...], number: int, s: StudySettings
) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """The recipes of one entry, each with the settings that tell it from others."""
    where = f"tunings[{number}]"
    if bool(axis.data) == bool(axis.model):
        said = "both data and model" if axis.data else "neither data nor model"
        raise InputError(f"{where} has {said}; expected one of them.")
    name = axis.called
    if name.lower() == BASE:
        raise InputError(f"{where} is called {name!r}, as the model before every tuning; expected another name.")
    if axis.model:
        for key in OF_TRAININGS:
            if getattr(axis, key) != getattr(TuningAxis, key):
                raise InputError(f"{where} has model and {key}; expected data, or a model that is there as it is.")
        card = TuningCard(name, name, "", "", axis.in_domain)
        yield Recipe(card, (None,), model=beside(s, axis.model)), {}
        return
    own = seeds if axis.seeds is None else axes.read_seeds(axis.seeds, f"{where}.seeds")
    if len(axis.epochs) > 1 and axis.max_steps != (None,):
        raise InputError(f"{where} has several epochs and max_steps, which stands instead of them; remove one of them.")
    values = {key: getattr(axis, key) or (None,) for key in VARIED}
    for key, listed in values.items():
        axes.distinct([str(v) if isinstance(v, dict) else v for v in listed], f"{where}.{key}")
    for chosen in axes.product(values):
        method = make_method(str(chosen["method"]), dict(chosen["method_args"] or {}), where)  # type: ignore[call-overload]
        options = {key: chosen[key] for key in VARIED[2:] if chosen[key] is not None} | {"packing": axis.packing}
        card = TuningCard("", name, method.name, "", axis.in_domain)
        recipe = Recipe(card, tuple(own), data=beside(s, axis.data), method=method, options=options, rows=axis.rows)
        yield recipe, chosen


def make_method(name: str, args: Mapping[str, Any], where: str) -> Method:
    """A method by its name, with its settings.

    Raises:
        InputError: An unknown method or setting, or a value that it cannot have.
    """
    kind = METHODS.get(name)
    if kind is None:
        raise InputError(f"{where}.method {name!r}: expected one of {', '.join(METHODS)}.{did_you_mean(name, METHODS)}")
    import yaml

    pairs = tuple(
        f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for key, value in args.items()
    )
    try:
        return kind(**parse_pairs(pairs, kind, "method_args", f"of {name}"))
    except InputError as error:
        raise InputError(f"{where}: {str(error).removeprefix('--')}") from error


def _check_trainings(recipes: Sequence[Recipe]) -> None:
    """Refuse two names of one training, or of one model that is there: its cells would count twice."""
    labels: dict[str, str] = {}
    for recipe in recipes:
        rate = rate_of(recipe) if recipe.method is not None else None
        options = {**(recipe.options or {}), "learning_rate": rate}
        made = repr((recipe.data or recipe.model.rstrip("/"), recipe.rows, recipe.method, sorted(options.items())))
        first = labels.setdefault(made, recipe.label)
        if first != recipe.label:
            raise InputError(f"tunings: {first!r} and {recipe.label!r} are the same; expected each once. Remove one.")


def rate_of(recipe: Recipe) -> float:
    """Peak learning rate of a recipe; where it has none, that of ``catchment tune``."""
    given = (recipe.options or {}).get("learning_rate")
    return RATES.get(recipe.card.method, RATE) if given is None else float(given)


def _labelled(parts: Sequence[tuple[Recipe, dict[str, Any]]]) -> tuple[Recipe, ...]:
    """Recipes with labels that tell those of one name apart by what differs among them."""
    recipes = []
    for recipe, chosen in parts:
        same = [other for r, other in parts if r.card.data == recipe.card.data and other]
        alike = [other for other in same if other.get("method") == chosen.get("method")]
        differing = [key for key in chosen if len({str(o.get(key)) for o in (same if key == "method" else alike)}) > 1]
        setting = " ".join(_said(key, chosen[key]) for key in differing)
        label = f"{recipe.card.data} {setting}".strip()
        card = dataclasses.replace(recipe.card, label=label, setting=setting)
        recipes.append(dataclasses.replace(recipe, card=card))
    return tuple(recipes)


def _said(key: str, value: object) -> str:
    """One setting in a label."""
    if key == "method":
        return str(value)
    if value is None:
        return f"{SHORT.get(key, key)}=default"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={part}" for name, part in value.items())
    return f"{SHORT.get(key, key)}={value:g}" if isinstance(value, (int, float)) else f"{SHORT.get(key, key)}={value}"


def _check_contrasts(design: Design) -> None:
    """Refuse names in contrasts and in_domain that are nowhere in the grid."""
    tunings = {name for r in design.recipes for name in (r.label, r.card.data)}
    tasks = {question.name for question in design.questions}
    for name, pairs in design.contrasts.items():
        for tuning, task in pairs:
            if tuning not in tunings:
                raise InputError(f"contrasts.{name}: no tuning {tuning!r}.{did_you_mean(tuning, tunings)}")
            if task not in tasks:
                raise InputError(f"contrasts.{name}: no task {task!r}.{did_you_mean(task, tasks)}")
    for recipe in design.recipes:
        for task in recipe.card.in_domain:
            if task not in tasks:
                raise InputError(f"in_domain of {recipe.card.data}: no task {task!r}.{did_you_mean(task, tasks)}")
