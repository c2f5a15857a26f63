"""What a user of ``compare`` may choose."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from catchment.options import (
    SHARE,
    AskOptions,
    BudgetOption,
    ContentOptions,
    Count,
    DeviceMapOption,
    HeadOption,
    MarginOption,
    MeasureOptions,
    ModelOptions,
    Object,
    OutputOptions,
    Real,
    checked,
)


@checked
class CompareSettings(
    BudgetOption,
    MeasureOptions,
    MarginOption,
    ContentOptions,
    AskOptions,
    ModelOptions,
    DeviceMapOption,
    HeadOption,
    OutputOptions,
):
    """What did the fine-tune lose? Compare two models task by task.

    Attributes:
        base: The model before: hub id, folder, GGUF file or package; or a model in memory (Python).
        tuned: The model after: the same, or BASE+ADAPTER, or BASE+INCREMENT.safetensors.
        budget: Time to spend, e.g. 4m, reading the models included. Chooses the items; says what width of intervals
            that buys.
        fail_if_drop: Exit with 1 when a drop is shown and estimated to be larger than this, e.g. 0.02, on any task.
        recover: Folder for the best model between base and tuned, chosen on half of the items, judged on the rest.
        room: Where the tune stands on its own way: how much further, or less far, it could have gone.
        prompts: File of your own unlabelled prompts (one a line, or .jsonl): agreement with the base.
        formats: Prompt formats per task, for the sensitivity to the prompt. 1 leaves it out.
        dtype: "auto", "float32", "bfloat16" or "float16"; both models the same.
        revision: Branch, tag or commit of BASE on the hub.
        tuned_revision: The same for TUNED.
        store: Folder of measured rows, shared between comparisons. Default: in the cache folder.
    """

    base: Object = field(kw_only=False)
    tuned: Object = field(kw_only=False)
    fail_if_drop: Annotated[Real, Field(ge=0, le=1), SHARE] | None = None
    recover: Path | None = None
    room: bool = True
    prompts: Path | None = None
    formats: Count = 3
    tuned_revision: str | None = None
