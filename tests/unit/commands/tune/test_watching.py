"""What watches a tune sees no judged item."""

from __future__ import annotations

from catchment.commands.tune.watching import watch_of
from tests.unit.commands.tune.test_opening import opened, preferred


def test_the_watch_sees_no_judged_item() -> None:
    task = preferred("echo", 240)
    job = opened(protect=(task,), tasks=(task,), eval_steps=1, limit=None)
    watch = watch_of(job, "protected")
    assert watch is not None
    seen = {item.id for watched in watch.tasks for item in watched.items}
    assert seen == {item.id for item in job.protected[0].guard.items}
    assert not seen & {item.id for item in job.protected[0].judged.items}
