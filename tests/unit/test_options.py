"""Groups of options: what is refused and how, what is kept as it was given, what is handed on."""

from __future__ import annotations

import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from catchment.commands.compare.settings import CompareSettings
from catchment.commands.scan.settings import ScanSettings
from catchment.commands.tune.settings import TuneSettings
from catchment.errors import InputError
from catchment.options import (
    AskOptions,
    DeviceMapOption,
    HeadOption,
    MarginOption,
    MeasureOptions,
    ModelOptions,
    Options,
    OutputOptions,
    as_settings,
)

COMMANDS: list[Any] = [CompareSettings, ScanSettings, TuneSettings]


class Task:
    """Like a task in memory."""

    name = "t"
    items = ()


def made(kind: Any, **options: Any) -> Any:
    subjects = ("a", "b")[: 1 if kind is ScanSettings else 2]
    return kind(*subjects, **options)


@pytest.mark.parametrize("kind", COMMANDS)
def test_settings_are_made_of_groups(kind: Any) -> None:
    settings = made(kind)
    assert isinstance(settings, (MeasureOptions, AskOptions, ModelOptions, OutputOptions))
    assert dataclasses.replace(settings, limit=3).limit == 3
    assert dataclasses.replace(settings) == settings == pickle.loads(pickle.dumps(settings))
    assert hash(settings) == hash(made(kind))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.limit = 3


def test_each_command_has_its_own_defaults() -> None:
    assert [made(kind).limit for kind in COMMANDS] == [None, 256, 200]
    assert isinstance(made(CompareSettings), DeviceMapOption)
    assert not isinstance(made(ScanSettings), (HeadOption, MarginOption))
    assert not isinstance(made(TuneSettings), DeviceMapOption)


@pytest.mark.parametrize("kind", COMMANDS)
def test_models_and_tasks_in_memory_are_handed_on_untouched(kind: Any) -> None:
    model, task, where = object(), Task(), object()
    settings = made(kind, tasks=[task, "recall", Path("own.jsonl")], dtype=where, device=where)
    assert settings.tasks == (task, "recall", "own.jsonl")
    assert settings.tasks[0] is task
    assert settings.dtype is settings.device is where
    assert made(kind, tasks=task).tasks[0] is task
    name = "model" if kind is ScanSettings else "base"
    assert getattr(dataclasses.replace(settings, **{name: model}), name) is model


def test_what_may_be_given_in_several_forms() -> None:
    settings = made(TuneSettings, protect="recall", method_args="r=4", training_args=["a=1"], out="o", held_out=7)
    assert (settings.protect, settings.method_args, settings.training_args) == (("recall",), ("r=4",), ("a=1",))
    assert settings.out == Path("o")
    assert type(settings.held_out) is int  # kept as it was given
    assert made(CompareSettings, chat_template=Path("c.jinja"), text=Path("t")).chat_template == "c.jinja"
    assert made(ScanSettings, budget=20).budget == 20


SHARE = "expected a fraction between 0 and 1, e.g. 0.02 for two points."
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (CompareSettings, {"limit": True}, "limit True: expected a whole number of at least 1."),
    (CompareSettings, {"limit": "3"}, "limit '3': expected a whole number of at least 1."),
    (CompareSettings, {"batch_tokens": 2.0}, "batch_tokens 2.0: expected a whole number of at least 1."),
    (CompareSettings, {"margin": math.nan}, f"margin nan: {SHARE}"),
    (CompareSettings, {"fail_if_drop": 1.5}, f"fail-if-drop 1.5: {SHARE}"),
    (CompareSettings, {"tasks": ()}, "tasks is empty: expected at least one, e.g. 'default'."),
    (CompareSettings, {"tasks": 5}, "tasks (5,): expected names, e.g. recall, or files."),
    (CompareSettings, {"budget": "soon"}, "budget 'soon': expected a time such as 90s, 4m or 1h30m."),
    (CompareSettings, {"out": 5}, "out 5: expected a path."),
    (CompareSettings, {"room": "perhaps"}, "room 'perhaps': expected true or false."),
    (CompareSettings, {"limmit": 5}, "there is no setting 'limmit'. Did you mean 'limit'?"),
    (ScanSettings, {"depth": -1}, "depth -1: expected a whole number of at least 0."),
    (ScanSettings, {"memory": "ram"}, "memory 'ram': expected 'auto', 'mapped', 'copy' or 'low'."),
    (ScanSettings, {"plane": 4}, "plane 4: expected an odd number of points per side, e.g. 11, or 0 for none."),
    (TuneSettings, {"replay": math.nan}, "replay nan: expected a share of the rows, from 0 to below 1, e.g. 0.25."),
    (TuneSettings, {"epochs": math.inf}, "epochs inf: expected a number above 0, e.g. 2."),
    (TuneSettings, {"on_drop": "cry"}, "on-drop 'cry': expected 'warn' or 'stop'."),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "said"), REFUSED, ids=[next(iter(o)) for _, o, _ in REFUSED])
def test_a_refusal_names_the_value_and_what_was_expected(kind: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        made(kind, **options)
    assert str(caught.value) == said


def test_a_missing_subject() -> None:
    with pytest.raises(InputError, match="tuned is missing"):
        CompareSettings("a")  # type: ignore[call-arg]


def test_a_group_is_handed_on() -> None:
    settings = made(TuneSettings, limit=7, seed=3, dtype="bfloat16")
    other = CompareSettings("x", "y", **settings.shared(MeasureOptions, ModelOptions))
    for group in (MeasureOptions, ModelOptions):
        assert other.shared(group) == settings.shared(group)
    assert set(settings.shared(MeasureOptions)) == {f.name for f in dataclasses.fields(MeasureOptions)}


def test_what_a_model_is_loaded_with() -> None:
    shared = {"dtype", "device", "attn_implementation", "revision", "trust_remote_code"}
    assert set(made(CompareSettings).model_options()) == {*shared, "device_map", "head"}
    assert set(made(ScanSettings).model_options()) == {*shared, "device_map"}
    assert set(made(TuneSettings).model_options()) == {*shared, "head"}


def test_a_python_call_has_the_settings_that_are_open_to_it() -> None:
    settings = as_settings(ScanSettings, "m", options={"limit": 3}, caller="scan()", closed={"dry_run"})
    assert settings == ScanSettings("m", limit=3)
    for name, said in (("dry_run", "no setting 'dry_run'"), ("limmit", "Did you mean 'limit'")):
        with pytest.raises(InputError, match=said):
            as_settings(ScanSettings, "m", options={name: 3}, caller="scan()", closed={"dry_run"})


@pytest.mark.parametrize("kind", COMMANDS)
def test_options_are_not_repeated_by_a_command(kind: Any) -> None:
    """What a command takes over from a group has the group's type; only its default may be its own."""
    groups = {f.name: f for cls in kind.__mro__[1:] if issubclass(cls, Options) for f in dataclasses.fields(cls)}
    own = {f.name: f for f in dataclasses.fields(kind)}
    assert {name for name, f in groups.items() if own[name].default != f.default} <= {"limit", "budget"}
