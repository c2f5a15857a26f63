"""What a user may choose: one dataclass per verb, checked when made, read from YAML or the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from catchment.errors import InputError, did_you_mean

LARGEST = 1e4
"""RMS displacement per weight at most: beyond it float16 weights are no numbers any more."""


def cache_dir() -> Path:
    """Folder for what can be made again: ``$CATCHMENT_HOME``, or ``~/.cache/catchment``. It may not exist yet."""
    home = os.environ.get("CATCHMENT_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "catchment"


def parse_seconds(budget: str | float | None) -> float | None:
    """``"90s"``, ``"4m"``, ``"1.5h"`` or a number of seconds.

    >>> parse_seconds("4m"), parse_seconds("1h30m"), parse_seconds(20)
    (240.0, 5400.0, 20.0)
    """
    if budget is None:
        return None
    if isinstance(budget, (int, float)):
        seconds = float(budget)
    else:
        parts = re.fullmatch(r"\s*(?:([\d.]+)h)?\s*(?:([\d.]+)m)?\s*(?:([\d.]+)s?)?\s*", budget)
        try:
            seconds = sum(
                float(value) * unit for value, unit in zip(parts.groups(), (3600, 60, 1), strict=True) if value
            ) if parts else 0.0  # fmt: skip
        except ValueError:
            seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"budget {budget!r}: expected a time such as 90s, 4m or 1h30m.")
    return seconds


@dataclass(frozen=True)
class CompareSettings:
    """What did the fine-tune lose? Compare two models task by task.

    Attributes:
        base: The model before: hub id, folder, GGUF file or package; or a model in memory (Python).
        tuned: The model after: the same, or BASE+ADAPTER, or BASE+INCREMENT.safetensors.
        out: Folder for the record and the page.
        tasks: Built-in tasks, "default", "stories", files (.jsonl, .yaml), or lm-eval:NAME. Default: "default".
        limit: Items per task, a seeded random subset.
        budget: Time to spend, e.g. 4m, reading the models included. Chooses the items; says what width of intervals
            that buys.
        margin: Largest drop that still counts as kept.
        alpha: Error rate of all verdicts together.
        fail_if_drop: Exit with 1 when a drop is shown and estimated to be larger than this, e.g. 0.02, on any task.
        recover: Folder for the best model between base and tuned, chosen on half of the items, judged on the rest.
        room: Where the tune stands on its own way: how much further, or less far, it could have gone.
        prompts: File of your own unlabelled prompts (one a line, or .jsonl): agreement with the base.
        text: Built-in text, or a file, for bits per byte; "none" to leave out.
        formats: Prompt formats per task, for the sensitivity to the prompt. 1 leaves it out.
        chat_template: "auto", "none", or a Jinja file.
        system: System prompt, in place of the tasks' own.
        seed: Chooses the items.
        batch_tokens: Padded tokens per forward pass. Default: 1024 on a CPU, else found on this machine.
        drop_long: Leave out items longer than the context instead of refusing the task.
        dtype: "auto", "float32", "bfloat16" or "float16"; both models the same.
        device: "cpu", "cuda", "cuda:1", "mps".
        device_map: For models larger than one device, e.g. "auto".
        attn_implementation: "sdpa", "eager", "flash_attention_2".
        revision: Branch, tag or commit of BASE on the hub.
        tuned_revision: The same for TUNED.
        head: "causal-lm", "sequence-classification", "image-classification" or "auto".
        trust_remote_code: Run Python code that comes with a model.
        store: Folder of measured rows, shared between comparisons. Default: in the cache folder.
        dry_run: Print the plan and stop.
    """

    base: str
    tuned: str
    out: Path | None = None
    tasks: tuple[str, ...] = ("default",)
    limit: int | None = None
    budget: str | None = None
    margin: float = 0.02
    alpha: float = 0.05
    fail_if_drop: float | None = None
    recover: Path | None = None
    room: bool = True
    prompts: Path | None = None
    text: str = "text"
    formats: int = 3
    chat_template: str = "auto"
    system: str | None = None
    seed: int = 0
    batch_tokens: int | None = None
    drop_long: bool = False
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    tuned_revision: str | None = None
    head: str = "auto"
    trust_remote_code: bool = False
    store: Path | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        parse_seconds(self.budget)
        _between("margin", self.margin, 0, 1)
        _between("alpha", self.alpha, 0, 1)
        if self.fail_if_drop is not None:
            _between("fail-if-drop", self.fail_if_drop, 0, 1, closed=True)
        for name in ("limit", "batch_tokens", "formats"):
            _whole(name, getattr(self, name), 1)
        if not self.tasks:
            raise InputError("tasks is empty: expected at least one, e.g. 'default'.")

    @property
    def seconds(self) -> float | None:
        return parse_seconds(self.budget)

    def model_options(self) -> dict[str, Any]:
        """What both models are loaded with."""
        names = ("dtype", "device", "device_map", "attn_implementation", "trust_remote_code", "head")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ScanSettings:
    """How far can this model move before it loses what it can do?

    Attributes:
        model: Hub id, folder, GGUF file or package; or a model in memory (Python).
        out: Folder for the record and the page.
        tasks: Built-in tasks, "default", "stories", files (.jsonl, .yaml), or lm-eval:NAME. Default: "default".
        limit: Items per task, a seeded random subset.
        budget: Time to spend; buys base scores, brackets, worst case, profiles, plane and curvature, in this order.
        subspace: What may move: "all", patterns of names ("*.mlp.*"), "sparse:INCREMENT.safetensors", "frame:RANK".
        tau: Tolerated drop, as a share of what the model has above chance.
        tau_absolute: Tolerated drop in score, instead of --tau.
        alpha: Error rate of all brackets together.
        directions: Antithetic pairs of random directions per scale of a profile.
        ladder: Scales as LOW:HIGH:RUNGS, RMS displacement per weight. Default: from 1/256 to 1/2 of the RMS of the
            matrices that may move, 15 rungs; further down where nothing is shown to be inside, as far as the number
            format goes.
        depth: Bisections after the rungs.
        items: "fresh": a statement about the population of the items; "fixed": about these items.
        text: Built-in text, or a file, as one more capability; "none" to leave out.
        restarts: Starts of the worst-case ascent per radius.
        steps: Steps of the ascent.
        plane: Points per side of the plane, odd; 0 leaves it out.
        through: Up to two models that the plane goes through.
        filter_normalised: Filter-normalised axes for the plane; its scales compare with nothing else.
        gradients: Also ask how few weights hold the gradient, and how rough the landscape is, against random weights.
        workers: Processes that measure directions; each loads the model. GPUs are given out in turns.
        memory: Clean weights from "mapped" files, a "copy", or "low" memory; "auto" chooses.
        chat_template: "auto", "none", or a Jinja file.
        system: System prompt, in place of the tasks' own.
        seed: Chooses items and directions.
        batch_tokens: Padded tokens per forward pass. Default: 1024 on a CPU, else found on this machine.
        drop_long: Leave out items longer than the context instead of refusing the task.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "cpu", "cuda", "cuda:1", "mps".
        device_map: For models larger than one device, e.g. "auto".
        attn_implementation: "sdpa", "eager", "flash_attention_2".
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run Python code that comes with a model.
        store: Folder of measured rows, shared with comparisons. Default: in the cache folder.
        dry_run: Print what would be measured, and its cost, and stop.
    """

    model: str
    out: Path | None = None
    tasks: tuple[str, ...] = ("default",)
    limit: int | None = 256
    budget: str = "10m"
    subspace: str = "all"
    tau: float = 0.1
    tau_absolute: float | None = None
    alpha: float = 0.05
    directions: int = 20
    ladder: str | None = None
    depth: int = 2
    items: str = "fresh"
    text: str = "text"
    restarts: int = 2
    steps: int = 6
    plane: int = 11
    through: tuple[str, ...] = ()
    filter_normalised: bool = False
    gradients: bool = False
    workers: int = 1
    memory: str = "auto"
    chat_template: str = "auto"
    system: str | None = None
    seed: int = 0
    batch_tokens: int | None = None
    drop_long: bool = False
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    store: Path | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        parse_seconds(self.budget)
        _between("tau", self.tau, 0, 1)
        _between("alpha", self.alpha, 0, 1)
        if self.tau_absolute is not None:
            _between("tau-absolute", self.tau_absolute, 0, 1)
        _whole("limit", self.limit, 1)
        _whole("batch_tokens", self.batch_tokens, 1)
        for name, least in (("directions", 2), ("restarts", 1), ("steps", 1), ("workers", 1), ("depth", 0)):
            _whole(name, getattr(self, name), least)
        if self.plane != 0 and (self.plane < 3 or self.plane % 2 == 0):
            raise InputError(f"plane {self.plane}: expected an odd number of points per side, e.g. 11, or 0 for none.")
        if self.items not in ("fresh", "fixed"):
            raise InputError(f"items {self.items!r}: expected 'fresh' or 'fixed'.")
        if self.memory not in ("auto", "mapped", "copy", "low"):
            raise InputError(f"memory {self.memory!r}: expected 'auto', 'mapped', 'copy' or 'low'.")
        if len(self.through) > 2:
            raise InputError(
                f"through names {len(self.through)} models; a plane goes through this one and at most two."
            )
        if self.through and (self.filter_normalised or not self.plane):
            raise InputError("through draws the plane; expected a plane above 0, and no filter-normalised axes.")
        if not self.tasks:
            raise InputError("tasks is empty: expected at least one, e.g. 'default'.")
        self.scales(1.0)

    @property
    def seconds(self) -> float:
        return parse_seconds(self.budget) or 600.0

    def scales(self, rms: float) -> tuple[float, float, int]:
        """(lowest, highest, rungs) of the ladder, for weights whose ruler is this."""
        if self.ladder is None:
            return rms / 256, rms / 2, 15
        try:
            low, high, rungs = self.ladder.split(":")
            found = float(low), float(high), int(rungs)
        except ValueError:
            raise InputError(f"ladder {self.ladder!r}: expected LOW:HIGH:RUNGS, e.g. 0.0005:0.05:15.") from None
        if not 0 < found[0] < found[1] <= LARGEST or not 8 <= found[2] <= 1000:
            raise InputError(
                f"ladder {self.ladder!r}: expected 0 < LOW < HIGH <= {LARGEST:g} and 8 to 1000 rungs, e.g. "
                "0.0005:0.05:15."
            )
        return found

    def model_options(self) -> dict[str, Any]:
        """What the model is loaded with."""
        names = ("dtype", "device", "device_map", "attn_implementation", "trust_remote_code", "revision")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class TuneSettings:
    """Fine-tune a model, and see what it cost.

    Attributes:
        base: Hub id, folder, GGUF file or package; or a model in memory (Python).
        data: File (.jsonl, .json, .csv, .tsv, .parquet) or data set with `messages`, `prompt`/`completion`, `text` or
            classification rows; or rows (Python).
        out: Folder for the tuned model or increment, the record and the page.
        method: "sift", "lora", "full", "l2-sp", "sam" or "wise-ft".
        sparsity: SIFT: share of the targeted weights that train.
        method_args: Further settings of the method, as key=value: rule=random, scope=global, r=16 ...
        learning_rate: Default: 1e-3 (sift), 2e-4 (lora), 2e-5 (others).
        epochs: Passes over the data.
        max_steps: Optimizer steps, instead of epochs.
        batch_size: Rows per step and device.
        accumulation: Batches per optimizer step.
        max_length: Tokens per row; longer rows are cut.
        packing: Several rows in one sequence, which do not see each other.
        training_args: Fields of transformers.TrainingArguments, as key=value: bf16=true, report_to=wandb, fsdp=...
        held_out: Rows (or share of them) that are not trained on, for the gain.
        protect: Tasks that the tune may not lose: a fence looks at them while it runs, and pulls the move back.
        max_drop: Largest tolerated drop of a protected task.
        replay: With --protect: share of rows, on top of the data, on which the tuned model's next-token distributions
            are held to the base's: its own texts, and its answers to set-aside items of the protected tasks; 0: none.
        replay_weight: What a nat of their divergence counts against a nat of the data's loss.
        pull: Strength of a decay towards the base (L2-SP).
        fence_steps: Optimizer steps between two looks of the fence. Default: an eighth of the training.
        no_plain: With --protect, do not tune without protection beside it.
        eval_steps: Also measure tasks every so many steps, on a fixed subset, before and during training.
        eval_limit: Items per task of those evaluations.
        on_drop: What a shown loss in them does: "warn" or "stop".
        save_steps: Optimizer steps between checkpoints. Default: a fifth of the training.
        tasks: What is compared at the end: built-in tasks, "default", "stories", files, or lm-eval:NAME; "none".
        limit: Items per task at the end, a seeded random subset.
        margin: Largest drop that still counts as kept.
        alpha: Error rate of all verdicts together.
        chat_template: "auto", "none", or a Jinja file; for data and tasks.
        system: System prompt of every task, of rows that have none of their own, and of what the base writes.
        seed: Data order, selection, items.
        batch_tokens: Padded tokens per forward pass of an evaluation.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "cpu", "cuda", "cuda:1", "mps".
        attn_implementation: "sdpa", "eager", "flash_attention_2".
        revision: Branch, tag or commit on the hub.
        head: "causal-lm", "sequence-classification" or "auto": as the data.
        trust_remote_code: Run Python code that comes with a model.
        store: Folder of measured rows, shared with comparisons. Default: in the cache folder.
        dry_run: Print what would be trained, and its cost, and stop.
    """

    base: str
    data: str = ""
    out: Path | None = None
    method: str = "sift"
    sparsity: float | None = None
    method_args: tuple[str, ...] = ()
    learning_rate: float | None = None
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 8
    accumulation: int = 1
    max_length: int = 1024
    packing: bool = False
    training_args: tuple[str, ...] = ()
    held_out: float = 0.1
    protect: tuple[str, ...] = ()
    max_drop: float = 0.02
    replay: float = 0.25
    replay_weight: float = 2.0
    pull: float = 0.0
    fence_steps: int | None = None
    no_plain: bool = False
    eval_steps: int | None = None
    eval_limit: int = 100
    on_drop: str = "warn"
    save_steps: int | None = None
    tasks: tuple[str, ...] = ("default",)
    limit: int | None = 200
    margin: float = 0.02
    alpha: float = 0.05
    chat_template: str = "auto"
    system: str | None = None
    seed: int = 0
    batch_tokens: int | None = None
    dtype: str = "auto"
    device: str | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    head: str = "auto"
    trust_remote_code: bool = False
    store: Path | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.data, str) and not self.data:
            raise InputError("--data is missing: expected a file such as data.jsonl, or a data set's name.")
        _between("max-drop", self.max_drop, 0, 1)
        _between("margin", self.margin, 0, 1)
        _between("alpha", self.alpha, 0, 1)
        for name, least in (
            ("max_steps", 1), ("batch_size", 1), ("accumulation", 1), ("max_length", 2), ("fence_steps", 1),
            ("eval_steps", 1), ("eval_limit", 1), ("save_steps", 1), ("limit", 1), ("batch_tokens", 1),
        ):  # fmt: skip
            _whole(name, getattr(self, name), least)
        _whole("seed", self.seed, 0)
        if self.seed >= 2**32:
            raise InputError(f"seed {self.seed}: expected a whole number below 2**32, as numpy's.")
        if not 0 <= self.replay < 1:
            raise InputError(f"replay {self.replay}: expected a share of the rows, from 0 to below 1, e.g. 0.25.")
        if self.sparsity is not None and not 0 < self.sparsity <= 1:
            raise InputError(
                f"sparsity {self.sparsity}: the share of the targeted weights that train; expected more than 0 (which "
                "selects nothing) and at most 1, e.g. 0.01."
            )
        if not 0 < self.replay_weight < float("inf"):
            raise InputError(f"replay-weight {self.replay_weight}: expected a number above 0, e.g. 2.")
        if not 0 <= self.pull < float("inf"):
            raise InputError(f"pull {self.pull}: expected a number of at least 0.")
        if not 0 < self.epochs < float("inf"):
            raise InputError(f"epochs {self.epochs}: expected a number above 0.")
        if not (0 <= self.held_out < 1 or (self.held_out >= 2 and float(self.held_out).is_integer())):
            raise InputError(f"held-out {self.held_out}: expected a share below 1, or a number of rows of at least 2.")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning-rate {self.learning_rate}: expected a number above 0, e.g. 2e-4.")
        if self.on_drop not in ("warn", "stop"):
            raise InputError(f"on-drop {self.on_drop!r}: expected 'warn' or 'stop'.")
        if not self.tasks:
            raise InputError("tasks is empty: expected at least one, e.g. 'default', or 'none'.")

    def model_options(self) -> dict[str, Any]:
        """What the model is loaded with."""
        names = ("dtype", "device", "attn_implementation", "trust_remote_code", "revision")
        return {name: getattr(self, name) for name in names}


def _whole(name: str, value: int | None, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InputError(f"{name} {value!r}: expected a whole number of at least {least}.")


def _between(name: str, value: float, low: float, high: float, closed: bool = False) -> None:
    if not isinstance(value, (int, float)) or not (low < value < high or (closed and value in (low, high))):
        raise InputError(f"{name} {value}: expected a fraction between {low} and {high}, e.g. 0.02 for two points.")


def read_config(path: Path, kind: type) -> dict[str, Any]:
    """Settings from a YAML file; an unknown key is an error with a suggestion.

    Raises:
        InputError: no such file, not a mapping, unknown keys.
    """
    import yaml
    from pydantic import TypeAdapter, ValidationError

    if not path.is_file():
        raise InputError(f"--config {str(path)!r}: no such file; expected a YAML file of settings.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"--config {str(path)!r} is not YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(content, Mapping):
        raise InputError(f"--config {str(path)!r} holds a {type(content).__name__}; expected `key: value` lines.")
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in types:
            raise InputError(f"--config {str(path)!r}: unknown key {key!r}.{did_you_mean(name, types)}")
        if name in ("tasks", "through", "protect", "method_args", "training_args") and isinstance(value, str):
            value = (value,)
        if name == "budget" and value is not None:
            value = str(value)
        try:
            values[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise InputError(f"--config {str(path)!r}: {key} is {value!r}; {said[0].lower()}{said[1:]}.") from error
    return values
