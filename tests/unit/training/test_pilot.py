"""Items set aside, the first step of a tune, and the room along it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from catchment.capabilities import CONTINUE, NON_FINITE, Item, PromptOptions, Task, make_engine, prepare, run
from catchment.errors import InputError, ModelError
from catchment.landscape import Stored, Subspace, accumulate_gradient, answer_batches, displaced
from catchment.models import named_weights, weights_hash
from catchment.records import Row
from catchment.training.pilot import (
    LineSearch,
    Scorer,
    first_direction,
    pilot_room,
    split_items,
    steps_of_room,
)
from tests.tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
TOKENIZER = tiny_tokenizer()
NOUNS = ("cat", "dog", "garden", "stone", "door", "city", "book", "tree")
ITEMS = tuple(Item(f"The {a} and {b} are", ("there", "here"), 0) for a in NOUNS for b in NOUNS)
TASK = Task("places", ITEMS, "choice", CONTINUE, "continue")


def rows_of(model: Any, task: Task) -> list[Row]:
    return run(make_engine(model, TOKENIZER, 512), prepare(TOKENIZER, task))


def easy() -> tuple[Any, Task]:
    """A model and a task that it solves: gold is what it answers."""
    model = tiny_llama()
    said = {row.item: row.prediction for row in rows_of(model, TASK)}
    gold = [item.choices.index(said[item.id]) for item in ITEMS]
    items = tuple(Item(i.prompt, i.choices, g) for i, g in zip(ITEMS, gold, strict=True))
    return model, TASK.with_items(items)


def wrong_batches(model: Any, task: Task) -> list[Any]:
    """What teaches the opposite of the task."""
    items = tuple(Item(i.prompt, i.choices, 1 - i.gold) for i in task.items[:32])  # type: ignore[operator]
    return answer_batches(prepare(TOKENIZER, task.with_items(items)), None, 512, 0)


def test_parts_are_disjoint_and_of_their_sizes() -> None:
    task = Task("t", tuple(Item(str(k), gold="x") for k in range(333)), "exact")
    split = split_items(task, seed=4)
    sets = [{item.id for item in part.items} for part in split]
    assert [len(s) for s in sets] == [33, 133, 167]
    assert len(set.union(*sets)) == 333
    assert all(part.name == "t" for part in split)
    assert [i.id for i in split.guard.items] == [i.id for i in task.items if i.id in sets[1]]
    backwards = split_items(task.with_items(task.items[::-1]), seed=4)
    assert [{i.id for i in part.items} for part in backwards] == sets
    assert {i.id for i in split_items(task, seed=5).guard.items} != sets[1]
    assert sum(len(part.items) for part in split_items(task, shares=(0.1, 0.2, 0.3))) == 33 + 66 + 99


@pytest.mark.parametrize("shares", [(0.1, 0.4, 0.5), (0.15, 0.35, 0.5), (1 / 3, 1 / 3, 1 / 3), (0.2, 0.3, 0.1)])
def test_too_few_items_say_how_many_are_needed(shares: tuple[float, ...]) -> None:
    def of(count: int) -> Task:
        return Task("t", tuple(Item(str(k), gold="x") for k in range(count)), "exact")

    needed = math.ceil(16 / min(shares) - 1e-9)
    with pytest.raises(InputError, match=f"task 't' has {needed - 1} items; expected at least {needed}, so that"):
        split_items(of(needed - 1), shares=shares)
    for count in range(needed, needed + 25):
        assert min(len(part.items) for part in split_items(of(count), shares=shares)) >= 16


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.0, 0.5, 0.5), (0.5, 0.5, 0.5)])
def test_shares_out_of_range(shares: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="expected three numbers above 0"):
        split_items(TASK, shares=shares)


def test_a_scorer_gives_0_to_an_item_that_is_not_finite_and_to_no_other() -> None:
    """One chunk of the fence: the others' rows are those of a model that is whole."""
    model, task = tiny_llama(), TASK.with_items(ITEMS[:9])
    scorer = Scorer(model, TOKENIZER, PromptOptions(), 512)
    healthy = {row.item: row for row in scorer(task)}
    token, victim = only_token(scorer, task)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = math.nan
    rows = {row.item: row for row in scorer(task)}
    assert rows.pop(victim) == Row(victim, 0.0, "", flags=(NON_FINITE,))
    assert rows == {item: row for item, row in healthy.items() if item != victim}


def only_token(scorer: Scorer, task: Task) -> tuple[int, str]:
    """A token that one item's prompt holds and no other's, and the item."""
    held = {e.item.id: set(e.prompt) for e in scorer.prepared(task).encoded}
    return next((t, i) for i, ids in held.items() for t in ids if sum(t in other for other in held.values()) == 1)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_first_direction_is_the_first_adamw_step(sparse: bool) -> None:
    """Against torch's own AdamW, one step of lr on the same loss."""
    model, task = easy()
    batches = wrong_batches(model, task)
    generator = torch.Generator().manual_seed(0)
    support = None
    if sparse:
        names = [n for n, w in named_weights(model).items() if w.ndim == 2][:4]
        support = {n: torch.randperm(named_weights(model)[n].numel(), generator=generator)[:50] for n in names}
    way = first_direction(model, batches, support)
    moving = way.address["moving"]
    squares = sum(float(way.delta(n).square().sum()) for n in way.subspace.shapes)
    assert squares / way.subspace.size == pytest.approx(1, rel=1e-5)
    lr = 1e-3
    before = {n: w.detach().clone() for n, w in named_weights(model).items()}
    with displaced(model, way, lr * math.sqrt(moving)):
        moved = {n: w.detach() - before[n] for n, w in named_weights(model).items()}
    _, gradient = accumulate_gradient(model, named_weights(model), batches)
    for name, weight in named_weights(model).items():
        weight.grad = gradient[name]
    torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, eps=1e-16).step()
    for name, weight in named_weights(model).items():
        step = (weight.detach() - before[name]).reshape(-1)
        inside = torch.ones_like(step, dtype=torch.bool)
        if support is not None:
            inside[:] = False
            inside[support.get(name, torch.zeros(0, dtype=torch.long))] = True
        # relative to a gradient of 1e-12 the root of its square underflows in float32
        sure = inside & ((gradient[name].reshape(-1).abs() > 1e-9) | (gradient[name].reshape(-1) == 0))
        assert torch.allclose(moved[name].reshape(-1)[sure], step[sure], atol=2e-6)
        assert bool((moved[name].reshape(-1)[~inside] == 0).all())


def test_a_gradient_of_zero_is_refused() -> None:
    model, task = easy()
    batches = wrong_batches(model, task)
    unused = next(t for t in range(319, 0, -1) if not any((b.input_ids == t).any() for b in batches))
    model.config.tie_word_embeddings = False
    with pytest.raises(ModelError, match="the gradient is 0 in every weight"):
        first_direction(model, batches, {"model.embed_tokens.weight": torch.tensor([32 * unused])})


def test_steps_of_room() -> None:
    assert steps_of_room(0.02, 1e-3) == pytest.approx(20)
    assert steps_of_room(0.02, 1e-3, 0.25) == pytest.approx(40)
    with pytest.raises(InputError, match="lr 0"):
        steps_of_room(0.02, 0)


def test_the_room_is_between_the_scales_that_were_measured() -> None:
    """The tune's own direction breaks the task earlier than random ones; each point is what the model scores there."""
    model, task = easy()
    state, torch_state = weights_hash(model), torch.get_rng_state()
    way = first_direction(model, wrong_batches(model, task))
    found = pilot_room(model, TOKENIZER, task, way, LineSearch(0.1), batch_tokens=512)["places"]
    assert weights_hash(model) == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert found.items == 64
    assert found.way.estimate is not None
    assert found.random is not None
    assert found.way.low < found.way.estimate
    assert found.random.estimate is None or found.way.estimate < found.random.estimate
    for scale, drop in found.way.points:
        with displaced(model, way, scale):
            assert 1 - sum(r.score for r in rows_of(model, task)) / 64 == pytest.approx(drop.estimate)
    lows = [drop.high <= 0.1 for _, drop in found.way.points]
    shown = [scale for k, (scale, _) in enumerate(found.way.points) if all(lows[: k + 1])]
    assert found.way.low == max(shown, default=0.0)
    assert found.way.high == next((s for s, d in found.way.points if d.low > 0.1), None)
    above = [d.estimate > 0.1 for _, d in found.way.points]
    assert found.way.high is not None or above[-2:] == [True, True]
    assert not any(a and b for a, b in pairwise(above[:-1]))  # it stopped as soon as it could


def test_the_ways_do_not_share_rows() -> None:
    """Random directions are measured, not read from the first direction's table."""
    model, task = easy()
    still = Stored(Subspace.glob(model, "*mlp*"), {n: torch.zeros(1) for n in ()}, {"of": "nothing"})
    still = Stored(
        still.subspace, {n: torch.zeros(math.prod(s)) for n, s in still.subspace.shapes.items()}, {"of": "nothing"}
    )
    scales = [0.2 * 1.5**k for k in range(8)]
    found = pilot_room(model, TOKENIZER, task, still, LineSearch(0.05, scales), batch_tokens=512)["places"]
    assert found.way.estimate is None
    assert found.way.reach == scales[-1]
    assert [drop.estimate for _, drop in found.way.points] == [0.0] * 8
    assert found.random is not None
    assert found.random.below == scales[0], "lost at the first rung: there is no saying where below"
    assert found.random.estimate is None
    assert len(found.random.points) < 8


def test_warnings_name_the_steps() -> None:
    model, task = easy()
    way = first_direction(model, wrong_batches(model, task))
    room = pilot_room(model, TOKENIZER, task, way, LineSearch(0.1, directions=0), batch_tokens=512)["places"]
    assert room.random is None
    assert room.way.estimate is not None
    lr = room.way.estimate / math.sqrt(room.moving) / 12
    assert room.steps(lr) == pytest.approx((12, 12 * room.way.low / room.way.estimate))
    assert room.warning(lr, 100) is not None
    assert "after about 12 of 100 steps" in str(room.warning(lr, 100))
    assert "less than 1 step" in str(room.warning(lr * 20, 100))
    assert room.warning(lr, 11) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": 0}, "max_drop 0, directions 2"),
        ({"directions": -1}, "directions -1"),
        ({"tasks": []}, "0 tasks"),
        ({"scales": [0.2, 0.1]}, "expected rising scales"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    model, task = easy()
    way = Stored(Subspace.glob(model, "*norm*"), {}, {})
    given = {"tasks": task, "max_drop": 0.1, **settings}
    with pytest.raises(InputError, match=message):
        pilot_room(model, TOKENIZER, given.pop("tasks"), way, LineSearch(**given))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers
def test_an_adapter_alone_is_moved() -> None:
    """Under LoRA the first step moves B only: A has no gradient while B is 0."""
    peft = pytest.importorskip("peft")
    model, task = easy()
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    way = first_direction(wrapped, wrong_batches(wrapped, task))
    assert 0 < way.address["moving"] < 0.7
    assert all("lora_" in name for name in way.subspace.shapes)
    room = pilot_room(wrapped, TOKENIZER, task, way, LineSearch(0.1, directions=1), batch_tokens=512)["places"]
    assert room.way.points[0][1].estimate < room.way.points[-1][1].estimate
    assert make_engine(wrapped, TOKENIZER, 512).model is wrapped
