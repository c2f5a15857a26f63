"""One model under test: how it is asked, its rows, what fails and how, progress, and the verdicts from rows."""

from catchment.measuring.clock import SLACK, Clock, OutOfTimeError, reserve
from catchment.measuring.failures import failure, short_of
from catchment.measuring.fill import Measured, fill
from catchment.measuring.headlines import (
    Headline,
    TuneHeadline,
    diverged,
    harmful,
    headline_of,
    room_state,
    too_few,
    tune_headline,
)
from catchment.measuring.progress import Progress
from catchment.measuring.ranking import Ranked, State, estimate_of, gap, middle, narrower, ranked, state_of, together
from catchment.measuring.sentences import decide_note, family, short_note, verdict_sentence, with_verdict
from catchment.measuring.subject import CPU_BATCH, POLICY, Subject, batch_tokens, environment, text_task, with_tokenizer
from catchment.measuring.verdicts import (
    agreement_result,
    chance_of,
    companion,
    flips,
    format_result,
    shown_drops,
    task_result,
    text_result,
)

__all__ = [
    "CPU_BATCH",
    "POLICY",
    "SLACK",
    "Clock",
    "Headline",
    "Measured",
    "OutOfTimeError",
    "Progress",
    "Ranked",
    "State",
    "Subject",
    "TuneHeadline",
    "agreement_result",
    "batch_tokens",
    "chance_of",
    "companion",
    "decide_note",
    "diverged",
    "environment",
    "estimate_of",
    "failure",
    "family",
    "fill",
    "flips",
    "format_result",
    "gap",
    "harmful",
    "headline_of",
    "middle",
    "narrower",
    "ranked",
    "reserve",
    "room_state",
    "short_note",
    "short_of",
    "shown_drops",
    "state_of",
    "task_result",
    "text_result",
    "text_task",
    "together",
    "too_few",
    "tune_headline",
    "verdict_sentence",
    "with_tokenizer",
    "with_verdict",
]
