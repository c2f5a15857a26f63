"""What a person sees: the terminal table, the page and the notebook display, all from one record."""

from catchment.commands.compare.record import Comparison
from catchment.report.page import notebook_html, page_html, tune_html, write_page, write_tune_page
from catchment.report.scan_page import scan_html, write_scan_page
from catchment.report.scan_terminal import basin_table, print_scan
from catchment.report.scan_words import scan_sentence, scan_title
from catchment.report.terminal import comparison_table, print_comparison, room_table
from catchment.report.tune_terminal import print_tune
from catchment.report.tune_words import tune_sentence
from catchment.report.words import Headline, headline_label, percent, points, verdict_sentence

__all__ = [
    "Headline",
    "basin_table",
    "comparison_table",
    "headline_label",
    "notebook_html",
    "page_html",
    "percent",
    "points",
    "print_comparison",
    "print_scan",
    "print_tune",
    "room_table",
    "scan_html",
    "scan_sentence",
    "scan_title",
    "tune_html",
    "tune_sentence",
    "verdict_sentence",
    "write_page",
    "write_scan_page",
    "write_tune_page",
]

# A record that is displayed in a notebook shows itself; records know nothing of pages.
Comparison._repr_html_ = notebook_html  # type: ignore[attr-defined]
