"""What holds for every command that measures: its help, plan, record, settings file, resume, OUT and exit codes.

A new command needs one line in EXAMPLES. Everything runs on tiny models, through the command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import catchment.commands
from catchment.cli.table import COMMANDS, Command
from tests import freeze
from tests.freeze import left_in, masked, said

torch.set_num_threads(1)

PARTS = ("settings", "plan", "run", "record", "table", "page")
"""Files of a command that the runner opens."""
HEAVY = ("torch", "transformers", "peft", "accelerate", "scipy", "datasets", "pandas")
HELP_SECONDS, BARE_SECONDS = 0.5, 0.011
"""Processor seconds of ``--help`` at most, and of an empty Python at the speed that this is meant for."""


@dataclass(frozen=True)
class Example:
    """How a command is called, in a folder beside the models.

    Attributes:
        words: Arguments of a run that ends with exit code 0 within seconds.
        breaking: Words that, given beside them on the same OUT, ask for a bound that is broken; ``None``: a command
            without bounds.
        spoil: What is done to OUT before, so that it is broken.
    """

    words: tuple[str, ...]
    breaking: tuple[str, ...] | None = None
    spoil: Callable[[Path], None] = field(default=lambda out: None)


def deliver_the_plain_tune(out: Path) -> None:
    """The tune without protection stands where the protected one stood, and is judged anew."""
    shutil.copyfile(out / "plain/increment.safetensors", out / "protected/increment.safetensors")
    shutil.rmtree(out / "compare-protected")
    (out / "tune.json").unlink()


EXAMPLES = {
    "compare": Example(
        ("../base", "../tuned", "--tasks", "../echo.jsonl", "--text", "none", "--formats", "2", "--limit", "64",
         "--batch-tokens", "256"),
        breaking=("--fail-if-drop", "0.02"),
    ),
    "scan": Example(
        ("../base", "--tasks", "../echo.jsonl", "--text", "none", "--tau", "0.5", "--alpha", "0.5", "--depth", "0",
         "--ladder", "0.0002:168:8", "--directions", "2", "--plane", "3", "--restarts", "1", "--steps", "1", "--limit",
         "64"),
    ),
    "tune": Example(
        ("../base", "--data", "../sums.jsonl", "--tasks", "../echo.jsonl", "--protect", "../echo.jsonl", "--max-steps",
         "6", "--fence-steps", "3", "--max-drop", "0.05", "--held-out", "0.2", "--learning-rate", "0.3", "--max-length",
         "64", "--limit", "60", "--replay", "0"),
        breaking=(),
        spoil=deliver_the_plain_tune,
    ),
    "study": Example(("run", "../study.yaml"), breaking=("--fail-if-drop", "0.02")),
}  # fmt: skip


CUT_SHORT = "was not written to its end and is passed over"


def whole(part: Any) -> Any:
    """A record without what it says of a kill: that a checkpoint was cut short, and an earlier one taken up."""
    if isinstance(part, dict):
        return {name: whole(value) for name, value in part.items()}
    if isinstance(part, list):
        return [
            whole(value) for value in part if not str(value).endswith("was not written to its end and is passed over")
        ]
    return part


def test_every_command_has_an_example_and_all_its_files() -> None:
    (root,) = map(Path, catchment.commands.__path__)
    folders = {path.parent.name for path in root.glob("*/__init__.py")}
    assert folders == set(COMMANDS) == set(EXAMPLES)
    for name in folders:
        assert [part for part in PARTS if not (root / name / f"{part}.py").is_file()] == []


def record_file(verb: str) -> str:
    command: Command = COMMANDS[verb]
    return str(command.part("record").FILE)


class Moments:
    """Counts the moments at which something becomes durable, and acts at one of them."""

    def __init__(self, stop: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.count, self.stop, self.act, self.flush = 0, stop, act, os.fsync

    def __call__(self, descriptor: int) -> None:
        self.count += 1
        if self.count == self.stop:
            self.act()
        self.flush(descriptor)


KILLER = """
import json, os, signal, sys
import torch, transformers, catchment.commands
from catchment.cli import main
for line in sys.stdin:
    folder, stop, words = json.loads(line)
    child = os.fork()
    if child == 0:
        count, flush = 0, os.fsync
        def counted(descriptor):
            global count
            count += 1
            if count == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(descriptor)
        os.fsync = counted
        os.chdir(folder)
        os.environ["CATCHMENT_HOME"] = "home"
        torch.set_num_threads(1)
        sys.stdout = sys.stderr = open(os.devnull, "w")
        main(words)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
"""Runs each command in a process of its own, which is killed when so many things have become durable; the libraries
are loaded once for all of them."""
HELD = """
import sys
from catchment.runs import Store
with Store(sys.argv[1]).lock("held"):
    print(flush=True)
    sys.stdin.read()
"""
"""A process that holds a folder."""
LOADED = f"""
import sys
from catchment.cli import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
"""A command that says which heavy packages it loaded."""


def run(verb: str, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; the command's own filters of warnings end with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return said(verb, *words)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("commands")
    freeze.write_inputs(root)
    return root


@pytest.fixture
def case(inputs: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of this test beside the models, with a cache of its own, as the current directory."""
    folder = inputs / request.node.name.replace("[", "-").replace("]", "")
    folder.mkdir()
    with freeze.place(folder):
        yield folder


@dataclass(frozen=True)
class Finished:
    """A run to the end: its OUT, stdout, stderr, and the moments at which something became durable."""

    out: Path
    printed: str
    errors: str
    moments: int

    def copy(self) -> str:
        """The folder in the current directory, as if the run had been made here."""
        shutil.copytree(self.out, "out")
        shutil.copytree(self.out.parent / "home", "home", dirs_exist_ok=True)
        return "out"


@pytest.fixture(scope="module")
def finished(inputs: Path) -> Callable[[str], Finished]:
    """Each command's example, run once with ``--json``."""
    runs: dict[str, Finished] = {}

    def finish(verb: str) -> Finished:
        if verb not in runs:
            folder = inputs / f"finished-{verb}"
            folder.mkdir()
            moments = Moments()
            with freeze.place(folder), mock.patch("os.fsync", moments):
                code, printed, errors = run(verb, *EXAMPLES[verb].words, "--out", "out", "--json")
            assert code == 0, errors
            runs[verb] = Finished(folder / "out", printed, errors, moments.count)
        return runs[verb]

    return finish


@pytest.fixture(scope="module")
def killed() -> Iterator[Callable[[Path, int, tuple[str, ...]], int]]:
    """Runs a command in a folder until so many things have become durable, and gives its exit code."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def kill(folder: Path, stop: int, words: tuple[str, ...]) -> int:
            print(json.dumps([str(folder), stop, words]), file=asked, flush=True)
            return int(answers.readline())

        yield kill
        asked.close()


@contextlib.contextmanager
def heard_interrupt() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background of a shell, which ignores it for them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


Finish = Callable[[str], Finished]
Killed = Callable[[Path, int, tuple[str, ...]], int]


def state(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def one_line(message: str) -> bool:
    return message.startswith("catchment: ") and message.count("\n") == 1


def seconds(command: list[str]) -> float:
    """Processor seconds of a process, the least of five: other load on the machine counts little."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(5))


@pytest.mark.parametrize("verb", list(COMMANDS))
class TestCommand:
    def test_help_is_fast(self, verb: str) -> None:
        allowed = HELP_SECONDS * max(1.0, seconds([sys.executable, "-c", "pass"]) / BARE_SECONDS)
        assert seconds([sys.executable, "-m", "catchment", verb, "--help"]) < allowed

    def test_help_loads_nothing_heavy(self, verb: str) -> None:
        process = subprocess.run(
            [sys.executable, "-c", LOADED, verb, "--help"], capture_output=True, text=True, check=True
        )
        assert process.stderr.strip() == "[]"
        assert process.stdout.startswith(f"usage: catchment {verb} ")

    def test_a_dry_run_prints_a_plan_and_writes_nothing(self, verb: str, case: Path) -> None:
        code, printed, errors = run(verb, *EXAMPLES[verb].words, "--out", "out", "--dry-run")
        assert (code, errors) == (0, "")
        assert "echo" in printed
        assert len(printed.splitlines()) > 2
        assert [path.name for path in case.iterdir() if path.name != "home"] == []
        assert list((case / "home").rglob("*.jsonl")) == []

    def test_json_prints_the_record_and_nothing_else(self, verb: str, finished: Finish) -> None:
        done = finished(verb)
        record = (done.out / record_file(verb)).read_text(encoding="utf-8")
        assert done.printed.strip() == record.strip()
        assert json.loads(record)["created"]
        assert (done.out / "report.html").is_file()

    def test_people_see_the_page_and_a_table(self, verb: str, case: Path, finished: Finish) -> None:
        out = finished(verb).copy()
        code, printed, errors = run(verb, *EXAMPLES[verb].words, "--out", out)
        assert (code, errors) == (0, "")
        assert f"page: {out}/report.html" in printed
        assert "echo" in printed

    def test_an_unknown_key_in_config(self, verb: str, case: Path) -> None:
        (case / "settings.yaml").write_text("seeed: 1\n")
        code, printed, errors = run(verb, *EXAMPLES[verb].words, "--config", "settings.yaml", "--out", "out")
        assert (code, printed) == (2, "")
        assert one_line(errors)
        assert "'seeed'" in errors
        assert "Did you mean 'seed'?" in errors
        assert not Path("out").exists()

    def test_config_stands_below_the_command_line(self, verb: str, case: Path) -> None:
        (case / "settings.yaml").write_text("alpha: 3\n")
        code, _, errors = run(verb, *_without(EXAMPLES[verb].words, "--alpha"), "--config", "settings.yaml")
        assert code == 2
        assert one_line(errors)
        assert "alpha 3" in errors
        code, _, errors = run(
            verb, *EXAMPLES[verb].words, "--config", "settings.yaml", "--alpha", "0.1", "--out", "out", "--dry-run"
        )
        assert (code, errors) == (0, "")

    def test_interrupted_and_killed_runs_go_on_to_the_same_record(
        self, verb: str, case: Path, finished: Finish, killed: Killed
    ) -> None:
        """Ctrl-C after a third, kill -9 after a third of what the next run does, then to the end."""
        example, done = EXAMPLES[verb], finished(verb)
        assert done.moments >= 6
        third = done.moments // 3
        words = (verb, *example.words, "--out", "out")
        with mock.patch("os.fsync", Moments(third, lambda: signal.raise_signal(signal.SIGINT))), heard_interrupt():
            code, _, errors = run(*words)
        assert code == 130
        assert errors.splitlines()[-1].startswith("catchment: interrupted; ")
        assert "Traceback" not in errors
        assert not (case / "out" / record_file(verb)).exists()
        assert killed(case, third, words) == -signal.SIGKILL
        assert not (case / "out" / record_file(verb)).exists()
        with mock.patch("os.fsync", Moments()) as last:
            code, _, errors = run(*words)
        assert code == 0, errors
        assert last.count < done.moments  # not all was done again
        one, two = ((out / record_file(verb)).read_text(encoding="utf-8") for out in (done.out, case / "out"))
        assert masked(whole(json.loads(two))) == masked(json.loads(one))
        assert left_in(case / "out") == left_in(done.out)

    def test_a_second_run_on_a_finished_out(self, verb: str, case: Path, finished: Finish) -> None:
        example, done = EXAMPLES[verb], finished(verb)
        code, printed, errors = run(verb, *example.words, "--out", done.copy(), "--json")
        assert code == 0, errors
        assert masked(json.loads(printed)) == masked(json.loads(done.printed))

    def test_out_in_use_by_another_process(self, verb: str, case: Path, finished: Finish) -> None:
        out = finished(verb).copy()
        with subprocess.Popen(
            [sys.executable, "-c", HELD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "\n"
            before = state(Path(out))
            with mock.patch("catchment.commands.study.output.PATIENCE", 0.1):  # it waits for a driver that ends, too
                code, printed, errors = run(verb, *EXAMPLES[verb].words, "--out", out)
            assert (code, state(Path(out))) == (2, before)
            assert f"process {holder.pid}" in errors
            assert one_line(errors)
            assert "page:" not in printed
            holder.communicate("")

    def test_out_of_another_command(self, verb: str, case: Path, finished: Finish) -> None:
        other = list(COMMANDS)[list(COMMANDS).index(verb) - 1]
        out = finished(other).copy()
        before = state(Path(out))
        code, printed, errors = run(verb, *EXAMPLES[verb].words, "--out", out)
        assert code == 2
        assert one_line(errors)
        assert "holds another" in errors
        assert "page:" not in printed
        assert state(Path(out)) == before

    def test_a_broken_bound_is_exit_code_1(self, verb: str, case: Path, finished: Finish) -> None:
        example = EXAMPLES[verb]
        if example.breaking is None:
            assert not any(name in freeze.options(said(verb, "--help")[1]) for name in ("--fail-if-drop", "--max-drop"))
            return
        out = finished(verb).copy()
        example.spoil(Path(out))
        code, printed, errors = run(verb, *example.words, *example.breaking, "--out", out, "--json")
        assert code == 1, errors
        assert errors.splitlines()[-1].startswith("catchment: echo dropped by ")
        assert json.loads(printed) == json.loads((Path(out) / record_file(verb)).read_text(encoding="utf-8"))
        assert (Path(out) / "report.html").is_file()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (("nowhere/model",), "nowhere/model"),
            (("--alpha", "3"), "alpha 3"),
            (("--tasks", "arithmetik"), "Did you mean 'arithmetic'"),
            (("--seeed", "1"), "--seeed"),
        ],
        ids=["model", "range", "task", "option"],
    )
    def test_bad_input_is_exit_code_2(self, verb: str, case: Path, wrong: tuple[str, ...], message: str) -> None:
        words = EXAMPLES[verb].words
        if wrong[0] == "--tasks" and verb == "study":  # its tasks are in its file
            words, wrong = ("run", "../misspelt.yaml"), ("--limit", "9")
        given = (*wrong, *words[1:]) if len(wrong) == 1 else (*words, *wrong)
        code, _, errors = run(verb, *given, "--out", "out")
        assert code == 2
        assert message in errors
        assert one_line(errors) or message == "--seeed"  # the parser draws a box
        assert "Traceback" not in errors
        assert not Path("out").exists()

    def test_report_writes_the_page_again(self, verb: str, case: Path, finished: Finish) -> None:
        out = Path(finished(verb).copy())
        page = (out / "report.html").read_text(encoding="utf-8")
        (out / "report.html").unlink()
        before = state(out)
        code, printed, errors = run("report", str(out))
        assert (code, errors) == (0, "")
        assert (out / "report.html").read_text(encoding="utf-8") == page
        assert state(out) == {**before, "report.html": page.encode()}
        assert "page: out/report.html" in printed


def _without(words: tuple[str, ...], option: str) -> tuple[str, ...]:
    place = words.index(option) if option in words else len(words)
    return words[:place] + words[place + 2 :]
