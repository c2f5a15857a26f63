"""What decides the result of a tune, and what its record tells of the settings."""

from __future__ import annotations

from catchment.commands.tune.conditions import fingerprint, settings_told
from tests.unit.commands.tune.test_opening import opened, preferred


def test_what_stops_a_tune_is_part_of_what_it_is() -> None:
    task = preferred("echo", 240)
    stops = fingerprint(opened(tasks=(task,), eval_steps=1, on_drop="stop", eval_limit=50))
    assert (stops["eval_limit"], stops["tasks"], stops["margin"]) == (50, ["echo"], 0.02)
    assert "eval_limit" not in fingerprint(opened(tasks=(task,), eval_steps=1))
    assert fingerprint(opened(protect=(task,), alpha=0.1))["alpha"] == 0.1
    assert "alpha" not in fingerprint(opened(alpha=0.1))


def test_what_the_record_tells_of_the_settings() -> None:
    told = settings_told(opened(sparsity=0.05, learning_rate=0.5, batch_size=3))
    assert (told["sparsity"], told["rule"], told["learning_rate"], told["batch_size"]) == (0.05, "gradient", 0.5, 3)


def test_what_a_record_tells_of_a_protection() -> None:
    told = settings_told(opened(protect=(preferred("echo", 240),), pull=0.1, training_args=("adam_beta1=0.8",)))
    assert (told["pull"], told["replay"], told["training_args"]) == (0.1, 0.25, ["adam_beta1=0.8"])
    assert "pull" not in settings_told(opened())
