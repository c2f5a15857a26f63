"""Groups of options that commands share. A command's settings are made of groups and have their fields."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from catchment.options.refusals import checked
from catchment.options.values import Check, Count, Duration, Integer, Object, Share, SomeNames, Text, parse_seconds

EXECUTOR = Check(
    '{name} {value!r}: expected "processes", "ray" or "ray://HOST:PORT".',
    lambda name: re.fullmatch(r"processes|ray|ray://[^:/]+:\d+", name) is not None,
)


def cache_dir() -> Path:
    """Folder for what can be made again: ``$CATCHMENT_HOME``, ``$XDG_CACHE_HOME/catchment`` or ``~/.cache/catchment``.
    It may not exist yet. An empty variable counts as unset, and so does a relative ``XDG_CACHE_HOME``, which the XDG
    Base Directory Specification calls invalid."""
    home = os.environ.get("CATCHMENT_HOME")
    if home:
        return Path(home).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "catchment"


@dataclass(frozen=True)
class Options:
    """Base of all groups. A command's settings are made of groups, and have their fields."""

    positional: ClassVar[tuple[str, ...]] = ()
    """What stands on the command line without a name, where that is more than the settings without a default."""
    named_by: ClassVar[tuple[str, ...]] = ()
    """What the folder of results is named after, where that is not the settings without a default."""

    @classmethod
    def config_in(cls, arguments: Sequence[str]) -> str | None:
        """A YAML file of settings that stands among the arguments without ``--config``."""
        return None

    def shared(self, *groups: type[Options]) -> dict[str, Any]:
        """The values of these groups' options, as keywords for other settings that have them.

        >>> @checked
        ... class Example(AskOptions, OutputOptions): ...
        >>> Example(system="Be brief.").shared(AskOptions)
        {'chat_template': 'auto', 'system': 'Be brief.'}
        """
        return {f.name: getattr(self, f.name) for group in groups for f in dataclasses.fields(group)}


@checked
class MeasureOptions(Options):
    """What is measured, on how many items.

    Attributes:
        tasks: Built-in tasks, "default", "stories", files (.jsonl, .yaml), or lm-eval:NAME. Default: "default".
        limit: Items per task, a seeded random subset.
        alpha: Error rate of all verdicts together.
        seed: Chooses the items.
        batch_tokens: Padded tokens per forward pass. Default: 1024 on a CPU, else found on this machine.
    """

    tasks: SomeNames = ("default",)
    limit: Count | None = None
    alpha: Share = 0.05
    seed: Integer = 0
    batch_tokens: Count | None = None


@checked
class MarginOption(Options):
    """Which drop does not matter.

    Attributes:
        margin: Largest drop that still counts as kept.
    """

    margin: Share = 0.02


@checked
class BudgetOption(Options):
    """How long a command may take.

    Attributes:
        budget: Time to spend, e.g. 4m, reading the models included.
    """

    budget: Duration | None = None

    @property
    def seconds(self) -> float | None:
        """The budget in seconds."""
        return parse_seconds(self.budget)


@checked
class ContentOptions(Options):
    """What is measured beside the tasks, and what is left out.

    Attributes:
        text: Built-in text, or a file, for bits per byte; "none" to leave out.
        drop_long: Leave out items longer than the context instead of refusing the task.
    """

    text: Text = "text"
    drop_long: bool = False


@checked
class AskOptions(Options):
    """How a model is asked, in words; read into a :class:`~catchment.capabilities.PromptOptions`.

    Attributes:
        chat_template: "auto", "none", or a Jinja file.
        system: System prompt, in place of the tasks' own.
    """

    chat_template: Text = "auto"
    system: str | None = None


@checked
class ModelOptions(Options):
    """How a model is loaded.

    Attributes:
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "cpu", "cuda", "cuda:1", "mps".
        attn_implementation: "sdpa", "eager", "flash_attention_2".
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run Python code that comes with a model.
    """

    dtype: Object = "auto"
    device: Object | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def model_options(self) -> dict[str, Any]:
        """What a model is loaded with: the arguments of :func:`catchment.load`."""
        return self.shared(*(group for group in (ModelOptions, DeviceMapOption, HeadOption) if isinstance(self, group)))


@checked
class DeviceMapOption(Options):
    """Where parts of a model go.

    Attributes:
        device_map: For models larger than one device, e.g. "auto".
    """

    device_map: Object | None = None


@checked
class HeadOption(Options):
    """What a model gives out.

    Attributes:
        head: "causal-lm", "sequence-classification", "image-classification" or "auto".
    """

    head: str = "auto"


@checked
class ExecutorOptions(Options):
    """Who does the work.

    Attributes:
        workers: Processes at a time, one GPU each where there are any. With Ray 1 leaves their number to the cluster.
        executor: "processes" of this machine, "ray" or "ray://HOST:PORT".
    """

    workers: Count = 1
    executor: Annotated[str, EXECUTOR] = "processes"


@checked
class OutputOptions(Options):
    """Where results go.

    Attributes:
        out: Folder for the record and the page.
        store: Folder of measured rows, shared between commands. Default: in the cache folder.
        dry_run: Print the plan and stop.
    """

    shown: ClassVar[str] = "the table"
    """What a person sees of the record in the terminal, and ``--json`` prints it instead of."""

    out: Path | None = None
    store: Path | None = None
    dry_run: bool = False

    @property
    def foreign(self) -> bool:
        """Whether no model is read, because what was measured is somebody else's."""
        return False

    @property
    def writes(self) -> bool:
        """Whether a run writes a record and its page."""
        return True

    @property
    def planned(self) -> bool:
        """Whether nothing is to be done but a plan."""
        return self.dry_run

    @property
    def store_folder(self) -> Path:
        """Where measured rows are."""
        return self.store or cache_dir() / "store"
