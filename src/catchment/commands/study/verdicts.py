"""Several tuned models of one base: a verdict on each, simultaneous over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from catchment.capabilities import gates
from catchment.commands.study.analysis.index import Key, Refusals
from catchment.commands.study.record import Verdicts
from catchment.commands.study.standing import Site, Stand
from catchment.measuring import task_result, verdict_sentence
from catchment.records import Row


def verdicts_of(site: Site, stands: Sequence[Stand], refusals: Refusals) -> tuple[Verdicts, ...]:
    """Verdicts on every tuned model that was there before the study, under the first format of each task; none in a
    grid of several checkpoints.

    The intervals hold together over all tasks of all models: a Bonferroni family of their product. A change that a gate
    refused has no verdict.
    """
    design = site.design
    ready = [recipe for recipe in design.recipes if recipe.model]
    if len(design.places) != 1 or not ready or len(ready) != len(design.recipes):
        return ()
    firsts: dict[str, Stand] = {}
    tables: dict[tuple[str, str], Stand] = {}
    for stand in stands:
        if firsts.setdefault(stand.question.name, stand).question.format == stand.question.format:
            tables.setdefault((stand.unit.tuning, stand.question.name), stand)
    family = len(ready) * len(firsts)
    return tuple(_verdicts(site, tables, recipe.label, list(firsts), family, refusals) for recipe in ready)


def _verdicts(
    site: Site, tables: Mapping[tuple[str, str], Stand], tuning: str, tasks: Sequence[str], family: int,
    refusals: Refusals,
) -> Verdicts:  # fmt: skip
    """One tuned model."""
    s, place = site.design.settings, site.design.places[0].checkpoint
    refused = [name for name in tasks if refusals.change(Key(place.model, place.revision, tuning, name))]
    results, unmeasured = [], list(refused)
    for name in tasks:
        if name in refused:
            continue
        pair = [tables.get((who, name)) for who in ("base", tuning)]
        if any(stand is None or stand.status != "done" for stand in pair):
            unmeasured.append(name)
            continue
        base, tuned = (_rows(site, stand) for stand in pair if stand is not None)
        task = pair[0].question.task if pair[0] else None
        assert task is not None
        results.append(task_result(task, base, tuned, margin=s.margin, alpha=s.alpha, family=family,
                                   warnings=gates.check_duplicates(task)))  # fmt: skip
    if not results:
        return Verdicts(tuning, "open", "a gate refused it" if refused else "nothing was measured", ())
    headline, sentence = verdict_sentence(results, s.margin, s.alpha, subject=tuning, unmeasured=unmeasured)
    return Verdicts(tuning, headline, sentence, tuple(results))


def _rows(site: Site, stand: Stand) -> dict[str, Row]:
    rows = site.store.cell(stand.key, {}).rows()
    return {item.id: rows[item.id] for item in stand.question.items if item.id in rows}
