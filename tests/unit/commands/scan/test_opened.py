"""What surrounds the measuring of a scan: settings, the clock over interruptions, tasks, splits, plan.json."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from catchment.capabilities import Format, Item, Prepared, Task
from catchment.commands.scan import clock as clocks
from catchment.commands.scan.clock import RESERVE, Clock
from catchment.commands.scan.design import design_of, out_of_reach, unit_scales
from catchment.commands.scan.journal import Earlier, Journal, Notes, ask, take_up
from catchment.commands.scan.opened import scan_tasks
from catchment.commands.scan.settings import ScanSettings
from catchment.commands.scan.worst import split
from catchment.errors import InputError
from catchment.landscape import Design, Ground
from catchment.options import read_config
from catchment.records import Panel, Row, Ruler
from catchment.statistics import ladder

ITEMS = tuple(Item(f"{k}?", ("a", "b"), k % 2, id=f"i{k}") for k in range(40))


def task(name: str = "t", **options: Any) -> Task:
    return Task(name, ITEMS, "choice", (Format("plain"),), **options)


def ground(count: int = 40) -> Ground:
    kept = ITEMS[:count]
    prepared = Prepared(task(), Format("plain"), (), 0, 1, 1)
    return Ground(prepared, {i.id: Row(i.id, 1.0, "a") for i in kept}, tuple(i.id for i in kept), 0.5, 0.05)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the clock reads, to be set."""
    reading = [100.0]
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: reading[0])
    return reading


def test_a_clock_counts_what_earlier_runs_spent(now: list[float]) -> None:
    clock = Clock(600.0, spent=50.0)
    now[0] += 30
    assert clock.spent == 80
    assert clock.left == 600 - RESERVE - 80


@pytest.mark.parametrize("budget", [0.5, 4.0, 20.0, 32.0, 600.0])
def test_something_of_every_budget_can_be_spent(now: list[float], budget: float) -> None:
    clock = Clock(budget)
    assert 0.75 * budget <= clock.left < budget
    assert clock.budget - clock.end <= RESERVE
    now[0] += budget
    assert clock.left < 0


def test_the_default_ladder_follows_the_weights() -> None:
    low, high, rungs = ScanSettings("m").scales(0.1)
    assert (low, high, rungs) == (pytest.approx(0.1 / 256), pytest.approx(0.05), 15)
    assert ScanSettings("m", ladder="0.001:0.1:9").scales(123.0) == (0.001, 0.1, 9)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"budget": "0"}, "budget"),
    ({"budget": "-3s"}, "budget"),
    ({"budget": 0}, "budget"),
    ({"tau": 0.0}, "tau"),
    ({"tau": 1.5}, "tau"),
    ({"tau_absolute": 2.0}, "tau-absolute"),
    ({"alpha": "5%"}, "alpha"),
    ({"limit": 0}, "limit"),
    ({"limit": "64"}, "limit"),
    ({"directions": 1}, "directions"),
    ({"directions": True}, "directions"),
    ({"restarts": 0}, "restarts"),
    ({"steps": 0}, "steps"),
    ({"workers": 0}, "workers"),
    ({"depth": -1}, "depth"),
    ({"batch_tokens": 0}, "batch_tokens"),
    ({"plane": 4}, "plane"),
    ({"plane": 1}, "plane"),
    ({"plane": -3}, "plane"),
    ({"items": "other"}, "items"),
    ({"memory": "ram"}, "memory"),
    ({"through": ("a", "b", "c")}, "through"),
    ({"through": ("a",), "plane": 0}, "through"),
    ({"through": ("a",), "filter_normalised": True}, "through"),
    ({"tasks": ()}, "tasks"),
    ({"ladder": "1:2"}, "ladder"),
    ({"ladder": "a:b:c"}, "ladder"),
    ({"ladder": "0:1:8"}, "ladder"),
    ({"ladder": "1:0.1:8"}, "ladder"),
    ({"ladder": "nan:1:8"}, "ladder"),
    ({"ladder": "0.1:inf:8"}, "ladder"),
    ({"ladder": "0.1:1:7"}, "ladder"),
    ({"ladder": "0.1:1:8.5"}, "ladder"),
]


@pytest.mark.parametrize(
    ("options", "said"), WRONG, ids=[f"{k}={v}" for o, _ in WRONG for k, v in [next(iter(o.items()))]]
)
def test_settings_that_mean_nothing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ScanSettings("m", **options)


def test_settings_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "scan.yaml"
    path.write_text("tasks: recall\nthrough: other\nbudget: 90\nfilter-normalised: false\nplane: 5\n")
    values = read_config(path, ScanSettings)
    settings = ScanSettings("m", **values)
    assert (settings.tasks, settings.through, settings.seconds, settings.plane) == (("recall",), ("other",), 90.0, 5)
    for line, said in (
        ("direction: 3", "Did you mean 'directions'"),
        ("plane: wide", "plane"),
        ("ladder: [1, 2]", "ladder"),
    ):
        path.write_text(line)
        with pytest.raises(InputError, match=said):
            read_config(path, ScanSettings)


def test_items_to_attack_with_are_never_judged() -> None:
    attack, judged = split(ground(), 16)
    assert len(attack) == 16
    assert len(judged) == 24
    assert not set(attack) & set(judged)
    assert set(attack) | set(judged) == {item.id for item in ITEMS}
    again = split(ground(39), 16)  # an item more or less moves few others
    assert len(set(again[0]) & set(attack)) >= 15
    few = split(ground(10), 16)
    assert (len(few[0]), len(few[1])) == (5, 5)


@pytest.mark.parametrize("rungs", [8, 9, 15, 16])
def test_profiles_show_both_ends_of_the_ladder(rungs: int) -> None:
    design = Design(ladder(0.001, 1.0, rungs))
    scales = unit_scales(design)
    assert scales[0] == design.ladder[0]
    assert scales[-1] == design.ladder[-1]
    assert set(scales) <= set(design.ladder)
    assert 5 <= len(scales) <= 16


def test_a_task_without_answers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree")
    with pytest.raises(InputError, match="no right answers"):
        scan_tasks(ScanSettings("m", tasks=(str(tmp_path / "prompts.txt"),)))


def test_the_text_is_one_more_task_unless_there_is_one(tmp_path: Path) -> None:
    prose = tmp_path / "prose.jsonl"
    prose.write_text("\n".join(json.dumps({"text": f"some text number {k}"}) for k in range(20)))
    recall = ScanSettings("m", tasks=(task(),), text="none")  # type: ignore[arg-type]
    assert [t.name for t in scan_tasks(recall)] == ["t"]
    assert [t.name for t in scan_tasks(dataclasses.replace(recall, text=str(prose)))] == ["t", "prose"]
    given = dataclasses.replace(recall, tasks=(task(), str(prose)), text="text")  # type: ignore[arg-type]
    assert [t.name for t in scan_tasks(given)] == ["t", "prose"]
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text(
        "\n".join(json.dumps({"prompt": f"{k}?", "choices": ["a", "b"], "gold": k % 2}) for k in range(20))
    )
    with pytest.raises(InputError, match="--text"):
        scan_tasks(dataclasses.replace(recall, text=str(labelled)))


def asking(out: Path, budget: str = "10m", **options: Any) -> ScanSettings:
    return ScanSettings("m", out=out, budget=budget, **options)


def earlier(settings: ScanSettings) -> Earlier:
    """What a run with these settings takes up."""
    return take_up(settings, [task()])


def journal_of(settings: ScanSettings, notes: Notes = Notes()) -> Journal:  # noqa: B008 - frozen
    return Journal(settings.out, ask(settings, [task()]), Clock(settings.seconds), notes, writes=True)


def written(out: Path, finished: bool, now: list[float], panels: tuple[Panel, ...] = (), **options: Any) -> None:
    first = journal_of(asking(out, **options))
    now[0] += 120
    first.write(panels, finished=finished)


PANELS = (Panel("plane", "Plane", False, 0.0, 12.5), Panel("basins", "Basins", True, 40.0))


def test_a_killed_scan_goes_on_with_its_clock(now: list[float], tmp_path: Path) -> None:
    written(tmp_path, False, now)
    again = earlier(asking(tmp_path))
    assert not again.finished
    assert again.spent == 120


def test_a_finished_scan_is_not_measured_again(now: list[float], tmp_path: Path) -> None:
    written(tmp_path, True, now, PANELS)
    for budget in ("10m", "1m"):  # what was bought stays, and so does what it cost
        again = earlier(asking(tmp_path, budget))
        assert again.finished
        assert again.budget == 600
        assert again.panels == PANELS
    more = earlier(asking(tmp_path, "20m"))
    assert not more.finished
    assert not more.panels
    assert Clock(1200, more.spent).left == pytest.approx(1200 - RESERVE - 120)


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"tau": 0.2}, {"limit": 64}, {"directions": 4}, {"through": ("other",)}, {"text": "none"}]
)
def test_another_question_has_a_clock_of_its_own(now: list[float], tmp_path: Path, options: dict[str, Any]) -> None:
    written(tmp_path, True, now)
    other = earlier(asking(tmp_path, **options))
    assert not other.finished
    assert other.spent == 0


@pytest.mark.parametrize("options", [{"workers": 4}, {"memory": "low"}])
def test_how_it_is_measured_is_no_other_question(now: list[float], tmp_path: Path, options: dict[str, Any]) -> None:
    written(tmp_path, True, now)
    assert earlier(asking(tmp_path, **options)).finished


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"ask": 1', "null", '{"ask": {}, "budget": "x"}'])
def test_a_damaged_plan_is_no_plan(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    assert earlier(asking(tmp_path)) == Earlier()


def test_what_was_learnt_of_the_machine_is_kept(now: list[float], tmp_path: Path) -> None:
    notes = Notes(speed=1234.5, point=0.25, middle=0.01, batch_tokens=8192, found={"basins": 7}, own={"t": 9})
    journal_of(asking(tmp_path), notes).write()
    assert earlier(asking(tmp_path)).notes == notes
    more = earlier(asking(tmp_path, "20m")).notes  # more time may pay for more of the model's own scores
    assert more == dataclasses.replace(notes, own={})
    assert earlier(asking(tmp_path, seed=1)).notes == Notes()


def test_a_replay_leaves_the_plan_as_it_is(now: list[float], tmp_path: Path) -> None:
    written(tmp_path, True, now, PANELS)
    before = (tmp_path / "plan.json").read_text()
    silent = journal_of(asking(tmp_path))
    silent.writes = False
    silent.write(())
    assert (tmp_path / "plan.json").read_text() == before
    silent.writing().write(())
    assert (tmp_path / "plan.json").read_text() != before


def test_looks_at_the_clock_are_written_now_and_then(tmp_path: Path) -> None:
    looked = journal_of(asking(tmp_path))
    assert [looked.due(spent, 5.0) for spent in (1.0, 5.0, 6.0, 9.9, 10.0, 30.0)] == [
        False, True, False, False, True, True,
    ]  # fmt: skip


def test_what_is_asked_copies_no_model_and_takes_tasks_of_ones_own(tmp_path: Path) -> None:
    class Model:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("a model was copied")

    own = task()
    settings = dataclasses.replace(asking(tmp_path), model=Model(), tasks=(own,), through=("other",))
    question = ask(settings, [own])
    assert question["tasks"] == ["t"]
    assert question["hashes"] == {"t": own.hash()}
    assert question["through"] == ["other"]
    assert "model" not in question


def test_a_store_of_ones_own_lasts_as_long_as_the_process() -> None:
    code = (
        "from catchment.commands.scan import opened; f = opened._own_store(); assert f.is_dir(); "
        "(f / 'row').write_text('x'); print(f)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert "catchment-rank-" in said
    assert not Path(said).exists()


# -------------------------------------------------------------------------------------- what can be decided at all


RULER = Ruler(1.0, "matrices", 1.0)


@dataclasses.dataclass
class Made:
    """As much of a scan as its design needs."""

    settings: ScanSettings
    grounds: list[Ground]
    tasks: list[Task]

    def unreachable(self, ground: Ground, design: Design) -> list[str]:
        return out_of_reach(self.settings, self.tasks, ground, design)


def many(name: str, count: int, tau: float, scorer: Any = "choice") -> tuple[Task, Ground]:
    items = tuple(Item(f"{k}?", ("a", "b"), k % 2, id=f"i{k}") for k in range(count))
    made = Task(name, items, scorer, (Format("plain"),))
    rows = {i.id: Row(i.id, 1.0, "a") for i in items}
    return made, Ground(Prepared(made, Format("plain"), (), 0, 1, 1), rows, tuple(rows), 0.5, tau)


def designed(*pairs: tuple[Task, Ground], **options: Any) -> tuple[Made, Design]:
    settings = ScanSettings("m", **{"alpha": 0.05, "depth": 2, **options})
    made = Made(settings, [g for _, g in pairs], [t for t, _ in pairs])
    return made, design_of(settings, RULER, 1.0, made.grounds)


def test_a_task_that_can_never_be_inside_is_said_with_what_would_do() -> None:
    narrow = many("narrow", 60, 0.05)
    whole = (dataclasses.replace(narrow[0], items=many("narrow", 300, 0.05)[0].items), narrow[1])
    made, design = designed(whole, limit=60)
    (said,) = made.unreachable(whole[1], design)
    assert said.startswith("narrow: no scale can be shown to be inside")
    limit = int(re.search(r"--limit (\d+)", said).group(1))  # type: ignore[union-attr]
    assert 60 < limit <= 300
    tau = float(re.search(r"--tau ([\d.]+)", said).group(1))  # type: ignore[union-attr]
    more, other = designed(many("narrow", limit, 0.05))  # the advice holds: both of it
    assert more.unreachable(more.grounds[0], other) == []
    wider, other = designed(many("narrow", 60, tau * 0.5))
    assert wider.unreachable(wider.grounds[0], other) == []
    made, design = designed(narrow)
    assert "--limit" not in made.unreachable(narrow[1], design)[0]  # it has no more
    assert made.unreachable(dataclasses.replace(narrow[1], tau=0.0), design)


@pytest.mark.parametrize(
    ("limit", "said"),
    [(250, "expected a larger --budget or"), (64, "expected --limit 129 or"), (100, "--limit 129 with a larger --b")],
)
def test_where_the_budget_ended_before_the_items_a_smaller_limit_is_no_advice(limit: int, said: str) -> None:
    """64 of the items were measured: with 250 asked for, --limit 200 would lead to the same 64."""
    task, ground = many("narrow", 64, 0.05)
    made, design = designed((dataclasses.replace(task, items=many("narrow", 300, 0.05)[0].items), ground), limit=limit)
    (warning,) = made.unreachable(ground, design)
    assert said in warning
    assert ("--budget" in warning) == (limit > 64)
    assert ("--limit" in warning) == (limit < 200)


def test_tasks_that_cannot_be_inside_and_texts_do_not_make_units_small() -> None:
    """One of them would otherwise cost every other task its items per unit."""
    good = many("good", 256, 0.25)
    _, alone = designed(good)
    assert alone.items_each > 1
    for other in (many("few", 20, 0.05), many("prose", 60, 0.02, "text")):
        made, design = designed(good, other)
        assert design.items_each > 1
        assert made.unreachable(good[1], design) == []
        assert made.unreachable(other[1], design)
    _, fixed = designed(good, items="fixed")
    assert fixed.items_each == 8


# ------------------------------------------------------------------------------------------ batches, for both verbs


class SideOf:
    """A side whose model is on a device."""

    classifies = False

    def __init__(self, device: str) -> None:
        self.card = SimpleNamespace(device=device)
        self.made = SimpleNamespace(batch_tokens=1024)

    def engine(self, batch_tokens: int) -> Any:
        return self.made


def test_padded_tokens_are_measured_where_it_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    from catchment.measuring import subject as subjects

    monkeypatch.setattr(subjects, "measure_speed", lambda engine: SimpleNamespace(batch_tokens=8192))
    cpu, gpu = SideOf("cpu"), SideOf("cuda:0")
    assert subjects.batch_tokens(cpu, None) == subjects.CPU_BATCH  # type: ignore[arg-type]
    assert subjects.batch_tokens(gpu, 300) == 300  # type: ignore[arg-type]
    assert subjects.batch_tokens(gpu, None) == 8192  # type: ignore[arg-type]
    assert gpu.made.batch_tokens == 8192  # the engine that was measured with uses it
    monkeypatch.setattr(subjects.processes, "count", lambda: 2)
    assert subjects.batch_tokens(gpu, None) == subjects.CPU_BATCH  # type: ignore[arg-type]
