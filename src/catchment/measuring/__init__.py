"""One model under test: how it is asked, its rows, what fails and how, progress, and the verdicts from rows."""

from catchment.measuring.clock import SLACK, Clock, OutOfTimeError, reserve
from catchment.measuring.failures import failure, short_of
from catchment.measuring.fill import Measured, fill
from catchment.measuring.progress import Progress
from catchment.measuring.subject import CPU_BATCH, POLICY, Subject, batch_tokens, environment, with_tokenizer
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
    "Measured",
    "OutOfTimeError",
    "Progress",
    "Subject",
    "agreement_result",
    "batch_tokens",
    "chance_of",
    "companion",
    "environment",
    "failure",
    "fill",
    "flips",
    "format_result",
    "reserve",
    "short_of",
    "shown_drops",
    "task_result",
    "text_result",
    "with_tokenizer",
]
