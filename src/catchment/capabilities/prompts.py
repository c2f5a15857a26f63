"""From an item to token ids: prompt formats, shots, chat templates, and exactly one BOS."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from catchment.capabilities.tasks import CHOICE_SCORERS, GENERATED_SCORERS, Format, Item, Task
from catchment.errors import InputError, TaskError
from catchment.models import template_hash, tokenizer_hash

DATE = datetime(2024, 7, 26)
"""What a chat template is told that today is, on whatever day it is asked: else rows of two days would belong to
different prompts. It is the day that the templates of Llama 3 take where they are told none."""
NO_SYSTEM = "the chat template leaves the system prompt out: the model is asked without it"
CODES = "aAwdebhBmyYHIpMSfjUWVGucxXFTDR%"
"""Of ``strftime``; each also as ``%-d`` is, without zeros before it."""


@dataclass(frozen=True)
class Encoded:
    """One item as token ids.

    Attributes:
        item: Where it came from.
        text: The whole prompt as text, as the model saw it.
        prompt: Token ids of the prompt, one BOS included when the tokenizer uses one.
        answers: Token ids of each answer to be scored after the prompt: the choices; the right answer alone
            (generations whose answer is known); nothing otherwise.
        sizes: UTF-8 length of each answer, for scores per byte.
    """

    item: Item
    text: str
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class PromptOptions:
    """How a model is asked. One of these goes to whatever encodes an item or a row, so that the same item becomes the
    same tokens wherever it is scored.

    Attributes:
        chat_template: ``"auto"``: the tokenizer's own; ``"none"``; or the path of a Jinja file. Applied to tasks of
            style ``"ask"`` and to conversations.
        system: System prompt in place of the tasks' own; ``None``: each task's own, where it has one.
        jinja: The text of that file. It is read once, when this is made: what the file becomes later changes nothing.

    Raises:
        InputError: ``chat_template`` is none of these, or the file is no text.

    >>> PromptOptions("none", "Be brief.").conditions(None)["system"]
    'Be brief.'
    """

    chat_template: str = "auto"
    system: str | None = None
    jinja: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chat_template", str(self.chat_template))
        if self.chat_template not in ("auto", "none") and self.jinja is None:
            object.__setattr__(self, "jinja", _read_template(self.chat_template))

    @classmethod
    def of(cls, given: PromptOptions | None, chat_template: str, system: str | None) -> PromptOptions:
        """What a caller has given: the object, or its two parts.

        Raises:
            InputError: Both.
        """
        if given is None:
            return cls(chat_template, system)
        if chat_template != "auto" or system is not None:
            raise InputError(
                f"chat_template {chat_template!r} and system {system!r} beside prompt_options={given}; expected either "
                "the two or the object that holds them."
            )
        return given

    def template(self, tokenizer: Any) -> str | None:
        """The Jinja text to apply; ``None`` without any.

        Raises:
            InputError: The tokenizer has several templates and none of them is the default.
        """
        if self.chat_template != "auto":
            return self.jinja
        own = getattr(tokenizer, "chat_template", None)
        if not isinstance(own, Mapping):
            return own
        if "default" not in own:
            raise InputError(
                f"the tokenizer has the chat templates {sorted(own)} and no default; expected the path of a file with "
                "one of them as chat_template (--chat-template), or 'none'."
            )
        return own["default"]

    def template_for(self, tokenizer: Any, task: Task) -> str | None:
        """The template that wraps the task's prompts; ``None`` for a task that continues text."""
        return None if task.style == "continue" else self.template(tokenizer)

    def note_for(self, tokenizer: Any, task: Task) -> str | None:
        """What a reader must know of the prompts."""
        template, system = self.template_for(tokenizer, task), self.system_for(task)
        left_out = bool(template is not None and system and _alike(tokenizer, template, (system, None), ("a",)))
        notes = [date_note(template), f"{task.name}: {NO_SYSTEM}" if left_out else None]
        return "; ".join(note for note in notes if note) or None

    def system_for(self, task: Task) -> str | None:
        """The system prompt of the task's items."""
        return task.system if self.system is None or task.keeps_system else self.system

    @property
    def key(self) -> str:
        """``chat_template``, a file by its content: what a folder of results remembers."""
        if self.jinja is None:
            return self.chat_template
        return f"sha256:{hashlib.sha256(self.jinja.encode()).hexdigest()}"

    def conditions(self, tokenizer: Any) -> dict[str, Any]:
        """What decides the tokens of an item beside its task; equal conditions give equal tokens."""
        return {
            "chat_template": self.key,
            "template": template_hash(tokenizer) if self.chat_template == "auto" else "",
            "system": self.system,
            "tokenizer": tokenizer_hash(tokenizer),
        }


def apply_template(tokenizer: Any, template: str, messages: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
    """The messages as one text; ``ask``: up to where an answer begins. A template that writes the date writes
    :data:`DATE`. It raises what the template raises."""
    return tokenizer.apply_chat_template(
        list(messages), chat_template=_dated(template), tokenize=False, add_generation_prompt=ask
    )


def _alike(tokenizer: Any, template: str, systems: Sequence[str | None], asked: Sequence[str]) -> bool:
    """Whether all these system prompts and requests become one text; ``False`` where the template refuses one."""
    texts = set()
    for system in systems:
        for content in asked:
            messages = [{"role": "system", "content": system}] if system else []
            try:
                texts.add(
                    apply_template(tokenizer, template, [*messages, {"role": "user", "content": content}], ask=True)
                )
            except Exception:  # templates are programs; what one refuses is said where an item is rendered
                return False
    return len(texts) == 1


def _dated(template: str) -> str:
    """The template with ``strftime_now`` as a macro of its own, because transformers hands no function to it. The line
    break behind the macro belongs to its tag, so the template begins where a line begins, as before."""
    if "strftime_now" not in template:
        return template
    day = ""
    for code in CODES:
        value = DATE.strftime(f"%{code}")
        day += f"|replace('%-{code}', {value.lstrip('0') or '0'!r})|replace('%{code}', {value!r})"
    return f"{{% macro strftime_now(format) %}}{{{{ format{day} }}}}{{% endmacro %}}\n{template}"


def date_note(template: str | None) -> str | None:
    """A sentence for the record where the template writes the date."""
    if template is None or "strftime_now" not in template:
        return None
    return f"the chat template writes the date; it was told {DATE:%d %B %Y}, so that measurements of all days compare"


def _read_template(chat_template: str) -> str:
    path = Path(chat_template)
    if not path.is_file():
        raise InputError(f"chat_template {chat_template!r}: expected 'auto', 'none' or the path of a Jinja file.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"chat_template {chat_template!r} cannot be read ({type(error).__name__}: {error}); expected a Jinja file "
            "in UTF-8."
        ) from error


def expected_answer(item: Item, scorer: str) -> str | None:
    """The right answer as text, where it is known.

    >>> expected_answer(Item("2 + 2?", gold=("4", "four")), "exact")
    '4'
    """
    if scorer in CHOICE_SCORERS:
        known = isinstance(item.gold, int) and 0 <= item.gold < len(item.choices)
        return item.choices[item.gold] if known else None  # type: ignore[index]
    if "answer" in item.meta:
        return str(item.meta["answer"])
    if scorer in ("exact", "rouge_l") and item.gold is not None:
        return str(item.gold[0]) if isinstance(item.gold, tuple) else str(item.gold)
    return None


def _shot_answer(task: Task, shot: Item) -> str:
    answer = expected_answer(shot, task.scorer)
    if answer is None and task.scorer == "regex" and isinstance(shot.gold, str):
        answer = shot.gold  # a shot is shown, never matched: its gold is the answer itself
    if answer is None:
        raise TaskError(f"task {task.name!r}: shot {shot.id} has no answer to show; give it a gold answer.")
    return answer


def render(tokenizer: Any, task: Task, item: Item, form: Format, template: str | None, system: str | None) -> str:
    """The prompt as text, up to where the answer begins. The separator before the answer is not part of it.

    Args:
        template, system: Of :class:`PromptOptions`, for this task.

    Raises:
        TaskError: the chat template refuses the messages (some have no system role).
    """
    if template is None:
        parts = [system] if system else []
        parts += [form.fill(shot) + form.separator + _shot_answer(task, shot) for shot in task.shots]
        return "\n\n".join([*parts, form.fill(item)])
    messages = [{"role": "system", "content": system}] if system else []
    for shot in task.shots:
        messages.append({"role": "user", "content": form.fill(shot)})
        messages.append({"role": "assistant", "content": _shot_answer(task, shot)})
    messages.append({"role": "user", "content": form.fill(item)})
    try:
        return apply_template(tokenizer, template, messages, ask=True)
    except Exception as error:  # templates are programs: they raise what they like
        raise TaskError(
            f"task {task.name!r}, item {item.id}: the chat template failed ({type(error).__name__}: {error}); expected "
            f"one that takes the roles {sorted({m['role'] for m in messages})}. Use --chat-template none, another "
            f"template, or no system prompt."
        ) from error


def adds_bos(tokenizer: Any) -> bool:
    """Whether this tokenizer puts its BOS before plain text."""
    bos = tokenizer.bos_token_id
    ids = tokenizer("a")["input_ids"]
    return bos is not None and len(ids) > 0 and ids[0] == bos


def start_token(tokenizer: Any) -> int | None:
    """The token that stands before text with no context: BOS, else EOS."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids with exactly one BOS where the tokenizer or the text uses one, whatever a chat template wrote already.

    A text that becomes no token at all gets the start token, so that its first answer token has a context.
    """
    if not texts:
        return []
    bos, adds = tokenizer.bos_token_id, adds_bos(tokenizer)
    encoded = []
    for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
        ids = list(ids)
        if bos is not None:
            while len(ids) > 1 and ids[0] == bos and ids[1] == bos:
                ids.pop(0)
            if adds and (not ids or ids[0] != bos):
                ids.insert(0, bos)
        encoded.append(ids or [start_token(tokenizer) or 0])
    return encoded


def encode(
    tokenizer: Any,
    task: Task,
    form: Format,
    *,
    items: Sequence[Item] | None = None,
    chat_template: str = "auto",
    system: str | None = None,
    prompt_options: PromptOptions | None = None,
) -> list[Encoded]:
    """Encode all items of a task under one format, asked as ``prompt_options`` say, or their two parts.

    Raises:
        TaskError: A chat template that refuses the messages or leaves the request out; an answer without a token.

    Prompt and answer are tokenized together and split at the length of the prompt alone, white space at the end of the
    prompt going to the answer: the convention of the lm-evaluation-harness, so that decisions are comparable. Where
    the answer is generated only blanks go over to it, because a line break at the end is part of the request.
    """
    items = task.items if items is None else items
    asked = PromptOptions.of(prompt_options, chat_template, system)
    template, system = asked.template_for(tokenizer, task), asked.system_for(task)
    if template is not None and _alike(tokenizer, template, (system,), ("a", "b")):
        raise TaskError(
            f"task {task.name!r}: the chat template ({asked.chat_template}) leaves the request out: every item would "
            "become the same prompt; expected one that writes the messages. Use another, or --chat-template none."
        )
    parts = [
        _parts(task, item, form, template, render(tokenizer, task, item, form, template, system)) for item in items
    ]
    prompts = encode_texts(tokenizer, [text for text, _ in parts])
    wholes = iter(encode_texts(tokenizer, [text + answer for text, group in parts for answer in group]))
    encoded = []
    for item, prompt, (text, group) in zip(items, prompts, parts, strict=True):
        # An empty prompt is the start token alone, which the tokens of prompt and answer may not begin with.
        begin = len(prompt) if text or adds_bos(tokenizer) else 0
        answers_ids = tuple(tuple(next(wholes)[begin:]) for _ in group)
        if any(not ids for ids in answers_ids):
            raise TaskError(
                f"task {task.name!r}, item {item.id}: an answer becomes no token of its own after the prompt "
                f"{text[-40:]!r}; expected a visible answer. Change the separator or the answer."
            )
        sizes = tuple(len(answer.strip().encode()) for answer in group)
        encoded.append(Encoded(item, text, tuple(prompt), answers_ids, sizes))
    return encoded


def _parts(task: Task, item: Item, form: Format, template: str | None, context: str) -> tuple[str, list[str]]:
    """The prompt as text, and what comes after it: one text per answer to be scored."""
    generated = task.scorer in (*GENERATED_SCORERS, "agreement")
    separator = "" if template is not None else form.separator
    if generated and separator.strip(" "):
        context += separator  # a line break before the answer is ours to write, not the model's
        separator = ""
    kept = context.rstrip(" " if generated else None) if template is None else context
    known = expected_answer(item, task.scorer)
    answers = item.choices if task.scorer in CHOICE_SCORERS else ([known] if known else [])
    return kept, [context[len(kept) :] + separator + answer for answer in answers]
