"""The fence on a move whose drop is a known function of its length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from catchment.capabilities import CONTINUE, NON_FINITE, Item, PromptOptions, Task
from catchment.errors import InputError, ModelError, StoreError
from catchment.records import Row
from catchment.training.fence import CHUNK, Fence, due
from catchment.training.looks import spend, verdict
from catchment.training.moves import slow_down
from catchment.training.pilot import Scorer
from tests import tiny

torch.set_num_threads(1)
TOKENIZER = tiny.tiny_tokenizer()
COUNT = 200


def task_of(name: str = "t", count: int = COUNT) -> Task:
    return Task(name, tuple(Item(f"{name} {k}", gold="x", id=f"{name}{k:04d}") for k in range(count)), "exact")


class Toy:
    """A move of length ``x``; of a task the share ``drop(x)`` of the items is lost, the first ones by number."""

    def __init__(self, *, exact: bool = False, **drops: Callable[[float], float]) -> None:
        self.x, self.drops = 0.0, drops or {"t": lambda x: x}
        self.calls: list[float] = []
        self.scored: list[tuple[str, int]] = []
        if exact:
            self.snapshot = lambda: self.x
            self.restore = self._restore

    def _restore(self, state: float) -> None:
        self.x = state

    def scale(self, factor: float) -> None:
        self.calls.append(factor)
        self.x *= factor

    def score(self, task: Task) -> list[Row]:
        """Item number k of n is wrong where a fixed shuffle puts it below the drop."""
        self.scored.append((task.name, len(task.items)))
        lost = self.drops[task.name](self.x) * COUNT
        place = np.random.default_rng(5).permutation(COUNT)
        return [Row(i.id, float(place[int(i.id[-4:])] >= round(lost)), "") for i in task.items]

    def drop(self, name: str = "t") -> float:
        return round(self.drops[name](self.x) * COUNT) / COUNT


class Loop:
    """What a Trainer does around a fence: ``lr`` is added to the move at each step."""

    def __init__(self, fence: Fence, toy: Toy, *, steps: int = 40, rate: float = 0.01, **state: Any) -> None:
        self.fence, self.toy = fence, toy
        weight = torch.nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.SGD([weight], lr=rate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda k: 1 - k / (2 * steps))
        self.args = SimpleNamespace(fsdp="", load_best_model_at_end=False, device="cpu")
        self.state = SimpleNamespace(global_step=0, max_steps=steps, is_world_process_zero=True, log_history=[])
        self.state.__dict__.update(state)
        self.control = SimpleNamespace(should_training_stop=False)

    @property
    def given(self) -> dict[str, Any]:
        return {"model": None, "optimizer": self.optimizer, "lr_scheduler": self.scheduler}

    def begin(self) -> Loop:
        self.control.should_training_stop = False
        self.fence.on_train_begin(self.args, self.state, self.control, **self.given)
        return self

    def step(self) -> None:
        self.toy.x += self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.scheduler.step()
        self.state.global_step += 1
        self.control.should_training_stop = self.state.global_step >= self.state.max_steps
        self.fence.on_step_end(self.args, self.state, self.control, **self.given)

    def run(self, until: int | None = None) -> Loop:
        while self.state.global_step < (until or self.state.max_steps) and not self.control.should_training_stop:
            self.step()
        if until is None:
            self.fence.on_train_end(self.args, self.state, self.control, **self.given)
        return self


def fenced(toy: Toy, **settings: Any) -> Fence:
    tasks = [task_of(name) for name in toy.drops]
    given = {"max_drop": 0.1, "eval_steps": 8, "slow": 1.0, **settings}
    return Fence(tasks, move=toy, score=toy.score, **given)


@pytest.mark.parametrize("exact", [False, True])
def test_a_move_is_kept_inside(exact: bool) -> None:
    toy = Toy(exact=exact)
    fence = fenced(toy)
    Loop(fence, toy, steps=40, rate=0.01).begin().run()
    assert toy.drop() <= 0.1
    assert fence.stopped is None
    assert [look.step for look in fence.history] == [1, 2, 4, 8, 16, 24, 32, 40]
    assert fence.history[0].outcome == "inside"
    pulled = [look for look in fence.history if look.factor < 1]
    assert pulled
    for look in pulled:
        assert look.drop > 0.1
        assert look.after is not None
        assert look.after <= 0.075
        # the largest of the 16ths: one more would be out, because the drop is linear in the factor
        true = round(look.drop * COUNT) / COUNT * (look.factor + 1 / 16)
        assert true > 0.075 - 1 / COUNT
    assert pulled[-1].after == pytest.approx(toy.drop())
    for look in fence.history:
        assert look.low <= look.drop <= look.high


def test_a_pull_takes_at_most_four_evaluations_and_ends_at_its_factor() -> None:
    toy = Toy()
    fence = fenced(toy, eval_steps=1, max_drop=0.0625, near=0.8)
    loop = Loop(fence, toy, steps=1, rate=0.0).begin()
    toy.x, toy.scored = 0.08, []
    loop.step()
    (look,) = fence.history
    assert (look.outcome, look.evidence, look.factor) == ("broken", "estimated", 10 / 16)  # 0.0500 of 0.08
    assert toy.x == pytest.approx(0.05)
    assert 4 * -(-COUNT // CHUNK) < len(toy.scored) <= 5 * -(-COUNT // CHUNK)
    assert np.prod(toy.calls) == pytest.approx(10 / 16)


def test_a_factor_is_given_up_at_the_first_items_that_decide() -> None:
    """Task "u" stands worse and so comes first; at 1/2 its drop is 0.5, so the first 32 of 200 items lose more than the
    10 that the bound leaves, and no item of a base that is right everywhere can be won back."""
    toy = Toy(t=lambda x: 0.1 * x, u=lambda x: x)
    fence = fenced(toy, eval_steps=1)
    loop = Loop(fence, toy, steps=9, rate=0.0).begin()
    toy.x = 1.0
    loop.step()
    looks = -(-COUNT // CHUNK)  # "t" at 0.1 is "near" at most at its last chunk; "u" is shown at its first
    tried = toy.scored[toy.scored.index(("u", CHUNK), 2 * looks) + 1 :]
    assert tried[:2] == [("u", CHUNK), ("u", CHUNK)]  # 1/2 and 1/4: one chunk each
    assert [name for name, _ in tried].count("t") <= looks
    assert fence.history[-1].factor < 0.1


@pytest.mark.parametrize("right", [1.0, 0.5])
def test_giving_up_early_changes_no_factor(right: float) -> None:
    """Against means over all items, for bases that can and cannot win items back."""
    generator = np.random.default_rng(3)
    items = task_of().items
    for _ in range(300):
        base = (generator.random(COUNT) < right).astype(float)
        now = np.where(generator.random(COUNT) < 0.1, 1 - base, base)
        rows = [dict(zip((item.id for item in items), values.tolist(), strict=True)) for values in (base, now)]
        fence = Fence(task_of(), max_drop=0.08, move=Toy(), score=lambda task, rows=rows: [
            Row(item.id, rows[1][item.id], "") for item in task.items])  # fmt: skip
        fence._base, fence._score = {"t": rows[0]}, fence._given_score
        found, mean = fence._all_inside(["t"]), float((base - now).mean())
        assert (found is None) == (mean > 0.06 + 1e-12)
        assert found is None or found["t"] == pytest.approx(mean)


def test_with_a_snapshot_factors_are_applied_to_the_state_before() -> None:
    toy = Toy(exact=True)
    fence = fenced(toy, eval_steps=1, max_drop=0.0625, near=0.8)
    loop = Loop(fence, toy, steps=1, rate=0.0).begin()
    toy.x = 0.08
    loop.step()
    assert toy.calls == [1 / 2, 3 / 4, 5 / 8, 11 / 16, 5 / 8]
    assert toy.x == 0.08 * 5 / 8


def test_every_task_is_kept_inside() -> None:
    """The tightest of them decides the factor."""
    toy = Toy(a=lambda x: 0.2 * x, b=lambda x: x, c=lambda x: 0.0)
    fence = fenced(toy)
    Loop(fence, toy, steps=40, rate=0.01).begin().run()
    assert toy.drop("b") <= 0.075
    for step in {look.step for look in fence.history}:
        looks = [look for look in fence.history if look.step == step]
        assert [look.task for look in looks] == ["a", "b", "c"]
        assert len({look.factor for look in looks}) == 1
    assert all(look.outcome == "inside" for look in fence.history if look.task == "c")


def test_a_rate_far_too_high_is_caught_before_the_first_regular_look() -> None:
    """A true drop of 0.2 per step, shown by few items."""
    toy = Toy(t=lambda x: min(x, 1.0))
    fence = fenced(toy, eval_steps=80, patience=9)
    loop = Loop(fence, toy, steps=200, rate=0.02).begin().run(until=10)
    (look,) = fence.history
    assert (look.step, look.outcome, look.evidence) == (10, "broken", "shown")
    assert look.n < COUNT
    assert look.low > 0.1
    assert toy.drop() <= 0.075
    assert not loop.control.should_training_stop


def test_estimated_and_shown_are_told_apart() -> None:
    """0.11 on 200 items is above 0.1, but not shown to be; 0.3 is."""
    for drop, outcome, evidence in (
        (0.0, "inside", "shown"), (0.075, "inside", "estimated"), (0.08, "near", "estimated"),
        (0.1, "near", "estimated"), (0.11, "broken", "estimated"), (0.3, "broken", "shown"),
    ):  # fmt: skip
        toy = Toy()
        fence = fenced(toy, eval_steps=1)
        loop = Loop(fence, toy, rate=0.0).begin()
        toy.x = drop
        loop.step()
        assert (fence.history[0].outcome, fence.history[0].evidence) == (outcome, evidence), drop
        assert (fence.history[0].factor < 1) == (outcome == "broken")


def test_no_factor_helps_then_the_base_does() -> None:
    toy = Toy(t=lambda x: 0.5 if x > 1e-9 else 0.0)
    fence = fenced(toy, eval_steps=8)
    loop = Loop(fence, toy, steps=40, rate=0.01).begin()
    with pytest.warns(UserWarning, match="stopped the training: step 2, after 1 pulls: only a factor of 0 is inside"):
        loop.run()
    assert [(look.step, look.factor, look.after) for look in fence.history] == [(1, 0.0, 0.0), (2, 0.0, 0.0)]
    assert toy.x == 0.0
    assert fence.stopped is not None


def test_patience_ends_with_the_weights_inside() -> None:
    toy = Toy(t=lambda x: min(x, 1.0))
    fence = fenced(toy, eval_steps=8, patience=2)
    loop = Loop(fence, toy, steps=400, rate=0.05).begin()
    with pytest.warns(UserWarning, match=r"after 2 pulls: the drop of t \+0\.\d+ \[\+0\.\d+, .*above 0\.1 again"):
        loop.run()
    assert loop.control.should_training_stop
    assert len([look for look in fence.history if look.factor < 1]) == 3
    assert fence.history[-1].outcome == "broken"
    assert loop.state.global_step == fence.history[-1].step < 400
    assert toy.drop() <= 0.075


def test_the_last_look_pulls_on_all_items_wherever_the_training_ends() -> None:
    toy = Toy()
    fence = fenced(toy, eval_steps=100)
    Loop(fence, toy, steps=7, rate=0.02).begin().run()  # 100 // 8 = 12 is never reached
    assert [(look.step, look.n) for look in fence.history] == [(7, COUNT)]
    assert toy.drop() <= 0.075
    other = fenced(toy := Toy(), eval_steps=100)  # something else ends the training, after this callback
    loop = Loop(other, toy, steps=99, rate=0.02).begin().run(until=8)
    assert other.history == []
    other.on_train_end(loop.args, loop.state, loop.control, **loop.given)
    assert [look.step for look in other.history] == [8]
    assert toy.drop() <= 0.075
    other.on_train_end(loop.args, loop.state, loop.control, **loop.given)
    assert len(other.history) == 1


def test_looks_grow_at_first() -> None:
    assert [s for s in range(1, 50) if due(s, 16)] == [2, 4, 8, 16, 32, 48]
    assert [s for s in range(1, 7) if due(s, 2)] == [1, 2, 4, 6]
    assert [s for s in range(1, 4) if due(s, 1)] == [1, 2, 3]


def test_the_errors_add_up_to_alpha() -> None:
    assert sum(spend(0.05, j, 3) for j in range(1, 200_000)) * 3 == pytest.approx(0.05, rel=1e-5)


def test_the_rate_is_slowed_for_good() -> None:
    """The scheduler's next rates are the old ones times 1/2, whatever its kind; checkpoints hold them."""

    def rates(kind: str, slowed: bool) -> list[float]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler: Any = {
            "lambda": lambda: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k)),
            "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
            "after": lambda: torch.optim.lr_scheduler.SequentialLR(
                optimizer,
                [torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=4),
                 torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)], [4],
            ),
        }[kind]()  # fmt: skip
        seen = []
        for k in range(8):
            if k == 3 and slowed:
                slow_down(optimizer, SimpleNamespace(scheduler=scheduler), 0.5)
                assert scheduler.state_dict()
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return seen

    for kind in ("lambda", "cosine", "after"):
        plain, slowed = rates(kind, False), rates(kind, True)
        assert slowed[:3] == plain[:3]
        assert slowed[3:] == pytest.approx([rate / 2 for rate in plain[3:]]), kind
    slow_down(None, None, 0.5)


def test_a_pull_slows_the_training_and_looks_inside_give_the_rate_back() -> None:
    toy = Toy()
    fence = fenced(toy, slow=0.5)
    loop = Loop(fence, toy, steps=40, rate=0.01).begin()
    pulled, seen = False, []
    while loop.state.global_step < 40:
        before = len(fence.history)
        loop.step()
        if len(fence.history) > before:
            pulled = fence.history[-1].factor < 1
            seen.append(pulled)
        assert loop.scheduler.base_lrs[0] == pytest.approx(0.005 if pulled else 0.01)
    assert [True, True] in [seen[k : k + 2] for k in range(len(seen))]
    assert [True, False] in [seen[k : k + 2] for k in range(len(seen))]


@pytest.mark.parametrize(("true", "most"), [(0.0, 0.0), (0.01, 0.05), (0.02, 0.05)])
def test_broken_is_rarely_shown_without_cause(true: float, most: float) -> None:
    """2,000 trainings of 4 looks at other weights each, with flips both ways and a true drop of 0, half of max_drop
    (0.02) and all of it: the last is the hardest case that is no break. What was shown after a chunk stays shown, so
    that one verdict at the end sees all chunks."""
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(2000):
        for look in range(1, 5):
            lost = generator.random(2 * CHUNK) < true + 0.02
            gained = ~lost & (generator.random(2 * CHUNK) < 0.02 / (1 - true - 0.02))
            drops = (lost.astype(float) - gained).tolist()
            if verdict(drops, 0.02, 0.5, spend(0.05, look, 1), last=True) == ("broken", "shown"):
                wrong += 1
                break
    assert wrong / 2000 <= most + 2 * np.sqrt(most * (1 - most) / 2000)


def test_what_was_shown_early_stays_shown() -> None:
    generator = np.random.default_rng(2)
    found = set()
    for rate in (0.05, 0.1, 0.2):
        drops = (generator.random(300) < rate).astype(float)
        early = [verdict(drops[:n].tolist(), 0.02, 0.5, 0.01, last=False) for n in range(20, 300, 20)]
        shown = [k for k, one in enumerate(early) if one == ("broken", "shown")]
        assert shown == list(range(min(shown, default=len(early)), len(early)))
        found |= set(early)
    assert found == {None, ("broken", "shown")}


def test_whole_trainings_inside_are_left_alone() -> None:
    """Without a drop nothing is ever done; a drop of 0.2 is found at every first look that meets it."""
    for seed in range(30):
        toy = Toy(t=lambda x: 0.0)
        fence = fenced(toy, max_drop=0.02, seed=seed)
        Loop(fence, toy, steps=16).begin().run()
        assert {(look.outcome, look.factor) for look in fence.history} == {("inside", 1.0)}
        assert toy.calls == []
        toy = Toy(t=lambda x: 0.2 if x > 0.019 else 0.0)
        fence = fenced(toy, max_drop=0.02, seed=seed)
        Loop(fence, toy, steps=16).begin().run(until=2)
        assert [(look.step, look.outcome, look.evidence) for look in fence.history] == [
            (1, "inside", "estimated"), (2, "broken", "shown"),
        ]  # fmt: skip


def test_an_interrupted_pull_puts_the_move_back() -> None:
    toy = Toy()
    fence = fenced(toy, eval_steps=1, max_drop=0.0625, near=0.8)
    loop = Loop(fence, toy, steps=1, rate=0.0).begin()
    toy.x = 0.08
    inner, count = toy.score, 0

    def score(task: Task) -> list[Row]:
        nonlocal count
        count += 1
        if count > 2 * -(-COUNT // CHUNK) + 1:  # in the trial of the second factor
            raise KeyboardInterrupt
        return inner(task)

    fence._score = score
    with pytest.raises(KeyboardInterrupt):
        loop.step()
    assert toy.calls[:2] == [0.5, 1.5]
    assert toy.x == pytest.approx(0.08)


def test_weights_that_are_not_finite_are_named() -> None:
    toy = Toy(t=lambda x: 0.9 if x else 0.0)
    loop = Loop(fenced(toy, eval_steps=1), toy).begin()
    broken = torch.nn.Linear(2, 2)
    broken.weight.data[0, 0] = float("nan")
    toy.x = 1.0
    loop.state.global_step = 1
    with pytest.raises(ModelError, match="step 1: 1 weights such as 'weight' are not finite"):
        loop.fence.on_step_end(loop.args, loop.state, loop.control, **{**loop.given, "model": broken})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": 0}, "max_drop 0: expected a number above 0 and below 1"),
        ({"max_drop": 1}, "max_drop 1: expected"),
        ({"alpha": 1.5}, r"alpha 1\.5: expected"),
        ({"near": 0}, "near 0: expected a number above 0 and at most 1"),
        ({"slow": 2}, "slow 2: expected"),
        ({"eval_steps": 0}, "eval_steps 0, patience 3"),
        ({"patience": -1}, "patience -1"),
        ({"tasks": []}, "expected at least one Task"),
        ({"tasks": [task_of(), task_of()]}, "distinct names"),
        ({"tasks": Task("a", (Item("x"),), "agreement")}, "not 'agreement'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    given = {"tasks": task_of(), "max_drop": 0.02, "move": Toy(), **settings}
    with pytest.raises(InputError, match=message):
        Fence(given.pop("tasks"), **given)
    assert Fence(task_of(), max_drop=0.02, move=Toy(), near=1, slow=1).near == 1


def test_trainings_it_cannot_guard_are_refused(tmp_path: Path) -> None:
    toy = Toy()
    loop = Loop(fenced(toy), toy)
    loop.args.load_best_model_at_end = True
    with pytest.raises(InputError, match="load_best_model_at_end=True puts back weights"):
        loop.begin()
    loop.args.fsdp = "full_shard"
    with pytest.raises(InputError, match="the weights are sharded"):
        loop.begin()
    with pytest.raises(InputError, match="no tokenizer"):
        Loop(Fence(task_of(), max_drop=0.1, move=toy), toy).begin()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*folder: "):
        Loop(fenced(toy, output_dir=tmp_path / "file" / "folder"), toy).begin()


def test_items_that_are_not_finite_are_lost_and_said() -> None:
    """They count as 0 one by one, in the base's scores and in looks, and a warning tells how many."""
    task = task_of(count=64)
    broken: set[str] = {task.items[3].id}

    def score(part: Task) -> list[Row]:
        sick = {i.id: i.id in broken for i in part.items}
        return [Row(i, float(not bad), "", flags=(NON_FINITE,) if bad else ()) for i, bad in sick.items()]

    toy = Toy()
    fence = Fence(task, move=toy, score=score, max_drop=0.5, eval_steps=1)
    loop = Loop(fence, toy, steps=3, rate=0.0)
    with pytest.warns(UserWarning, match=r"^step 0: outputs that are not finite \(1 of t\); they count as 0$"):
        loop.begin()
    broken.clear()
    loop.step()
    broken.update(item.id for item in task.items[:2])
    loop.state.max_steps = 2  # the last look takes all items
    with pytest.warns(UserWarning, match=r"^step 2: outputs that are not finite \(2 of t\); they count as 0$"):
        loop.step()
    assert fence.history[-1].n == 64
    assert fence.history[-1].drop == pytest.approx((2 - 1) / 64)


def test_a_look_by_the_scorer_loses_only_the_item_that_is_not_finite() -> None:
    model = tiny.tiny_llama()
    nouns = ("cat", "dog", "garden", "stone", "door", "city")
    items = tuple(Item(f"The {noun} is", (" there", " here"), 0, id=noun) for noun in nouns)
    said = {row.item: row.prediction for row in Scorer(model, TOKENIZER, PromptOptions(), 256)(
        Task("t", items, "choice", CONTINUE, "continue"))}  # fmt: skip
    items = tuple(Item(i.prompt, i.choices, i.choices.index(said[i.id]), id=i.id) for i in items)
    task = Task("t", items, "choice", CONTINUE, "continue")
    fence = Fence(task, move=Toy(), max_drop=0.5, eval_steps=1, tokenizer=TOKENIZER, batch_tokens=256)
    loop = Loop(fence, Toy(), steps=1, rate=0.0)
    loop.fence.on_train_begin(loop.args, loop.state, loop.control, model=model)
    held = {noun: set(TOKENIZER(f"The {noun} is")["input_ids"]) for noun in nouns}
    token = next(t for ids in held.values() for t in ids if sum(t in other for other in held.values()) == 1)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    loop.state.global_step = 1
    with pytest.warns(UserWarning, match=r"outputs that are not finite \(1 of t\)"):
        fence.on_step_end(loop.args, loop.state, loop.control, model=model)
    assert fence.history[-1].drop == pytest.approx(1 / 6)
