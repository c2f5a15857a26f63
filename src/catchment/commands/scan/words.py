"""What a scan says in plain words, the same in the terminal, on the page and in the record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from catchment.measuring import gap, middle, narrower, ranked, state_of, together
from catchment.pages import NAMED_AT_MOST, duration, join, named, ruler_name, sigma
from catchment.records import Admission, Basin, Panel, SubspaceCard, Worst

PLACES: dict[str, tuple[str, str]] = {
    "prompt": ("modelling the text itself", "what is scored is the text, word by word"),
    "inside": ("reading the answer off the prompt", "the answer stands in the prompt"),
    "outside": ("knowing the answer", "the answer stands nowhere in the prompt"),
}


def of_rms(value: float, subspace: SubspaceCard) -> str:
    """A scale as percent of the ruler of the weights that were moved; empty where there is none, or it is 0."""
    rms = subspace.ruler.rms if subspace.ruler is not None else 0.0
    return f"{float(f'{100 * value / rms:.2g}'):g}%" if rms > 0 else ""


def between(low: float, high: float | None, text: str = "{}") -> str:
    """A bracket of scales; an open end is said in words.

    >>> between(0.0011, 0.0016), between(0.0, 0.0006), between(0.004, None), between(0.0, None)
    ('0.0011 to 0.0016', 'below 6e-4', 'above 0.004', 'no bracket')
    """
    if high is None:
        return f"above {text.format(sigma(low))}" if low > 0 else "no bracket"
    return f"{sigma(low)} to {text.format(sigma(high))}" if low > 0 else f"below {text.format(sigma(high))}"


def between_of_rms(basin: Basin, subspace: SubspaceCard) -> str:
    """The bracket in percent of the ruler; empty without a bracket or a ruler."""
    low, high = basin.low, basin.high
    if not of_rms(1.0, subspace) or (low == 0 and high is None):
        return ""
    if high is None:
        return f"above {of_rms(low, subspace)}"
    return f"{of_rms(low, subspace)} to {of_rms(high, subspace)}" if low > 0 else f"below {of_rms(high, subspace)}"


def reading(basin: Basin) -> str:
    """What a reader must know beside the bracket, in one clause."""
    state, found = state_of(basin), gap(basin)
    between_words = f"undecided from {sigma(found[0])} to {sigma(found[1])}" if found else ""
    if found and found[0] == found[1]:
        between_words = f"undecided at {sigma(found[0])}"
    notes = {
        "bracketed": "both ends decided",
        "undecided": between_words,
        "open below": floor_words(basin) or "shown to hold at no scale that was tried",
        "open above": "shown to break at no scale that was tried",
        "open": "undecided at every scale that was tried",
    }
    crossing = "; an earlier crossing was seen" if basin.earlier == "yes" else ""
    return notes[state] + crossing


def floor_words(basin: Basin) -> str:
    """Where a basin has no lower end because the number format has none; else empty."""
    if not basin.floor or basin.high is None:
        return ""
    return f"outside down to the smallest step that {basin.floor} can hold ({sigma(basin.high)})"


def scan_title(basins: Sequence[Basin]) -> str:
    """The scan as a title of a few words; it ranks only what the brackets rank."""
    if not basins:
        return "No basin could be measured"
    if len(basins) == 1:
        return f"The basin of {basins[0].task}: {between(basins[0].low, basins[0].high)}"
    order = ranked(basins)
    narrow = [found.basin.task for found in order if found.last == 1]
    wide = [found.basin.task for found in order if found.first == len(order)]
    parts = [f"{word}: {names[0]}" for word, names in (("narrowest", narrow), ("widest", wide)) if names]
    title = "; ".join(parts) or f"{len(basins)} basins, none shown to be the narrowest"
    return title[:1].upper() + title[1:]


def scan_sentence(
    basins: Sequence[Basin], worst: Sequence[Worst], subspace: SubspaceCard, admissions: Sequence[Admission] = ()
) -> str:
    """One paragraph: the narrowest and the widest capability, the sizes, the worst case, and what is open.

    A basin is called narrower than another only where the two brackets are disjoint. An attack is named as an upper
    bound on the worst-case radius, and finding none as no proof.

    Args:
        basins: Most-case basins of one model in one subspace.
        worst: Worst-case searches in the same subspace; may be empty.
        subspace: The weights that were moved; its ``ruler`` is the unit of the percentages.
        admissions: Every task that was asked for; those not admitted are named as not measurable.

    Returns:
        Two to seven sentences. Scales are RMS displacements per weight.
    """
    parts = [*_widths(basins, subspace), _open_ends(basins), _worst(worst, subspace), _left_out(subspace)]
    refused = [admission.task for admission in admissions if not admission.admitted]
    if refused:
        parts.append(f"Not measurable on this model: {named(refused)}.")
    if basins:
        level = f"{100 * together(basins):.4g}%"
        all_of = f"The {len(basins)} brackets hold together" if len(basins) > 1 else "The bracket holds"
        parts.append(
            f"{all_of} with at least {level} confidence; random moves say nothing about the one that "
            "a fine-tune makes, which may cost far more."
        )
    return " ".join(part for part in parts if part)


def _widths(basins: Sequence[Basin], subspace: SubspaceCard) -> list[str]:
    if not basins:
        return ["No basin was measured."]
    order = ranked(basins)
    where = f"random moves of {subspace.what} ({subspace.size:,})"
    if len(order) == 1:
        return [f"Under {where} the model keeps {_size(order[0].basin, subspace, full=True)}."]
    narrow = next((found for found in order if found.last == 1), None)
    wide = next((found for found in order if found.first == len(order)), None)
    if narrow:
        sentences = [
            f"Under {where} {narrow.basin.task} has the narrowest of {len(order)} basins: the model keeps "
            f"{_size(narrow.basin, subspace, full=True)}."
        ]
    else:
        sentences = [f"Under {where} no capability is shown to have the narrowest basin, as brackets overlap."]
    if wide:
        size = _size(wide.basin, subspace, full=not narrow)
        sentences.append(f"The widest is that of {wide.basin.task}: the model keeps {size}.")
    elif narrow:
        sentences.append("Which is the widest is not decided, as brackets overlap.")
    rest = [found.basin for found in order if found not in (narrow, wide)]
    units = not (narrow or wide)
    listed = [_size(basin, subspace, full=units and basin is rest[0]) for basin in rest]
    if len(listed) > NAMED_AT_MOST + 2:
        listed = [*listed[:NAMED_AT_MOST], f"{len(listed) - NAMED_AT_MOST} more (see the table)"]
    if listed:
        sentences.append(f"{'The model' if units else 'It also'} keeps {join(listed)}.")
    return sentences


def _size(basin: Basin, subspace: SubspaceCard, full: bool) -> str:
    """``recall up to between a and b RMS per weight (p to q of the RMS of the matrices)``."""
    share, low, high = between_of_rms(basin, subspace), sigma(basin.low), basin.high
    unit = " RMS per weight" if full else ""
    of = f" of the {ruler_name(subspace.ruler)}" if full and subspace.ruler is not None else ""
    percent = f" ({share}{of})" if share else ""
    if high is None:
        text = f"up to {low}{unit} at least" if basin.low > 0 else "up to a scale that is not known"
    elif basin.low == 0:
        text = f"up to somewhere below {sigma(high)}{unit}"
    else:
        text = f"up to between {low} and {sigma(high)}{unit}"
    return f"{basin.task} {text}{percent}"


def _open_ends(basins: Sequence[Basin]) -> str:
    """What is undecided, task by task."""
    found = [(basin, gap(basin)) for basin in basins]
    clauses = [
        f"{basin.task} at {sigma(ends[0])}" if ends[0] == ends[1] else f"{basin.task} from {_ends(ends)}"
        for basin, ends in found
        if ends
    ]
    parts = [f"Undecided within the directions that were allowed: {join(clauses)}."] if clauses else []
    ended = [f"{basin.task} is {said}" for basin in basins if (said := floor_words(basin))]
    parts += [f"No scale is left below: {join(ended)}."] if ended else []
    earlier = [basin.task for basin in basins if basin.earlier == "yes"]
    if earlier:
        parts.append(f"An earlier crossing was seen for {named(earlier)}, so the first one may lie lower.")
    return " ".join(parts)


def _ends(ends: tuple[float, float]) -> str:
    return f"{sigma(ends[0])} to {sigma(ends[1])}"


def _worst(worst: Sequence[Worst], subspace: SubspaceCard) -> str:
    broken = [w for w in sorted(worst, key=lambda w: w.radius or 0.0) if w.radius is not None]
    spared = [w for w in worst if w.radius is None]
    parts = []
    if broken:
        quoted = [
            f"{w.task} at {sigma(w.radius)}" + (f" ({share})" if (share := of_rms(w.radius, subspace)) else "")
            for w in broken
            if w.radius is not None
        ]
        parts.append(
            f"A search for the worst move broke {join(quoted)}: upper bounds on the worst-case radius, "
            "which may be smaller still."
        )
    if spared:
        quoted = [w.task + (f" (tried up to {sigma(w.survived)})" if w.survived else "") for w in spared]
        parts.append(f"For {join(quoted)} no attack was found, which proves nothing.")
    return " ".join(parts)


def _left_out(subspace: SubspaceCard) -> str:
    """A ruler that does not stand on all matrices says so."""
    if subspace.ruler is None or not subspace.ruler.left_out:
        return ""
    return f"The RMS leaves out {named(subspace.ruler.left_out)}, far larger than the other {subspace.ruler.of}."


def by_place(basins: Sequence[Basin]) -> list[tuple[str, list[Basin]]]:
    """The places that have basins, the one with the smaller middle first, with their basins from narrow to wide."""
    groups = {place: [found.basin for found in ranked(basins) if found.basin.place == place] for place in PLACES}
    filled = [(place, found) for place, found in groups.items() if found]

    def typical(group: tuple[str, list[Basin]]) -> float:
        middles = sorted(middle(basin) for basin in group[1])
        return middles[(len(middles) - 1) // 2]

    return sorted(filled, key=typical)


def place_sentence(basins: Sequence[Basin]) -> str:
    """What breaks first, by where the answer stands; a pair of places is ordered only where all brackets of the one
    lie below all brackets of the other."""
    groups = by_place(basins)
    if len(groups) < 2:
        only = f"All basins are of one kind: {PLACES[groups[0][0]][0]}." if groups else "No basin was measured."
        return f"{only} What breaks first by where the answer stands needs tasks of another kind."
    shown, unclear = [], []
    for index, (place, mine) in enumerate(groups):
        for other, theirs in groups[index + 1 :]:
            pair = PLACES[place][0], PLACES[other][0]
            if all(narrower(a, b) for a in mine for b in theirs):
                shown.append(f"{pair[0]} breaks before {pair[1]}")
            elif all(narrower(b, a) for a in mine for b in theirs):
                shown.append(f"{pair[1]} breaks before {pair[0]}")
            else:
                unclear.append(f"{pair[0]} and {pair[1]}")
    parts = []
    if shown:
        parts.append(f"Shown by disjoint brackets: {'; '.join(shown)}.")
    if unclear:
        parts.append(f"Not ordered, as brackets overlap: {'; '.join(unclear)}.")
    return " ".join(parts)


def offer(panel: Panel, panels: Sequence[Panel], plan: Mapping[str, object]) -> str:
    """What a panel that was not bought would take, and the budget that buys it.

    The budget is that of the plan (``budget_seconds``), or the seconds that were spent, plus the price, in whole
    minutes upwards. A panel without a price but with a note was refused: its note says why.
    """
    if panel.price is None:
        return "no budget buys it here" if panel.note else "its price here is not known"
    planned = plan.get("budget_seconds")
    spent = float(planned) if isinstance(planned, (int, float)) else sum(p.seconds for p in panels if p.bought)
    minutes = max(1, math.ceil((spent + panel.price) / 60 - 1e-9))
    return f"about {duration(panel.price)} more; run again with --budget {minutes}m"
