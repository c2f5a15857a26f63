"""``make test-newest``: a core of the tests against the newest transformers, PEFT and accelerate.

They are installed into an environment of their own on top of the pinned one, which stays as it is: what is newer hides
what is pinned, and torch is shared. Warnings are reported and fail nothing. Exit status 1 when a test of loading,
evaluation or tuning fails; other failures, and a registry that cannot be reached, are said and nothing more. Where no
release is newer than the pinned one nothing is run.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = ("transformers", "peft", "accelerate")
PIP = ("-q", "--upgrade", "--no-compile", "--disable-pip-version-check", "--retries", "1", "--timeout", "20")
PYTEST = ("-q", "-W", "default", "-p", "no:cacheprovider", "--continue-on-collection-errors")
CORE = {
    "loading": (
        "tests/unit/models/test_loading.py",
    ),
    "evaluation": (
        "tests/unit/models/test_compat.py",
        "tests/unit/capabilities/test_engine.py",
        "tests/unit/capabilities/test_evaluate.py",
    ),
    "tuning": (
        "tests/unit/training/test_batches.py",
        "tests/unit/methods/test_trainer.py::test_full_equals_the_plain_trainer",
        "tests/unit/methods/test_trainer.py::test_a_loss_that_is_not_finite_ends_the_training_before_the_step",
        "tests/unit/methods/test_trainer.py::test_finish_comes_before_the_callbacks_and_the_best_model_is_taken_up",
        "tests/integration/test_tune.py::test_what_is_saved_is_what_was_trained[prompt-sift]",
        "tests/integration/test_tune.py::test_what_is_saved_is_what_was_trained[messages-lora]",
        "tests/integration/test_tune.py::test_what_is_saved_is_what_was_trained[text-full]",
        "tests/integration/test_tune.py::test_what_is_saved_is_what_was_trained[classification-lora]",
        "tests/integration/test_tune.py::test_packing_learns_from_the_same_tokens",
        "tests/integration/test_tune_resume.py::test_a_killed_tune_goes_on_to_the_same_bytes[sift]",
        "tests/integration/test_tune_resume.py::test_a_loss_that_is_no_number[lora]",
    ),
}  # fmt: skip
"""What must work with every release: a failure is fatal."""
MORE = {
    "comparing": (
        "tests/integration/test_compare.py::test_rows_become_results",
        "tests/integration/test_compare.py::test_second_run_measures_nothing",
    ),
    "scanning": (
        "tests/integration/test_scan.py::test_a_model_in_memory",
    ),
}  # fmt: skip
"""A failure is reported."""


def main() -> int:
    python = environment(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / ".venv-newest").absolute())
    say(install(python))
    newest = versions(python)
    say(", ".join(f"{name} {newest[name]} (pinned: {version(name)})" for name in LIBRARIES))
    if all(newest[name] == version(name) for name in LIBRARIES):
        say("no release here is newer than the pinned one, on which all tests run anyway")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return run(python, CORE, Path(folder) / "core.xml") | run(python, MORE, Path(folder) / "more.xml")


def run(python: Path, groups: dict[str, tuple[str, ...]], report: Path) -> int:
    """Run the tests of some groups; 1 when one that belongs to the core fails. Core and others are not run together,
    because pytest runs none at all where a file of a test that is named cannot be imported."""
    chosen = [test for tests in groups.values() for test in tests]
    ended = subprocess.run([python, "-m", "pytest", *PYTEST, f"--junitxml={report}", *chosen], cwd=ROOT, check=False)
    if ended.returncode in (0, 1) and report.is_file():
        return judged(report, groups)
    fatal = groups is CORE
    say(f"{', '.join(groups)}: pytest ended with {ended.returncode}, the tests did not run{' (fatal)' * fatal}")
    return int(fatal)


def environment(folder: Path) -> Path:
    """Python of an environment that sees this one's packages after its own."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    shared = "\n".join([str(ROOT / "src"), sysconfig.get_paths()["purelib"], ""])
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / name / "site-packages" / "pinned.pth").write_text(shared)
    return python


def install(python: Path) -> str:
    """Bring the libraries up to date, with torch as it is; what came of it."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(f"torch=={version('torch').partition('+')[0]}\n")
        constraints.flush()
        command = [python, "-m", "pip", "install", *PIP, "-c", constraints.name, *LIBRARIES]
        pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode == 0:
        return "the newest releases are installed"
    said = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or [pip.stderr[-200:]]
    return f"the newest releases cannot be installed ({said[0].strip()}), so this goes on with what is here"


def versions(python: Path) -> dict[str, str]:
    code = f"from importlib.metadata import version; print(*map(version, {LIBRARIES}))"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(LIBRARIES, told, strict=True))


def judged(report: Path, groups: dict[str, tuple[str, ...]] = CORE | MORE) -> int:
    """Say what failed, by group; 1 when it belongs to the core."""
    passed: Counter[str] = Counter()
    failed: dict[str, list[str]] = {}
    for case in ET.parse(report).iter("testcase"):
        group = group_of(case)
        if case.find("failure") is not None or case.find("error") is not None:
            failed.setdefault(group, []).append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is None:
            passed[group] += 1
    for group in groups:
        broken = failed.get(group, [])
        fatal = " (fatal)" if broken and group in CORE else ""
        say(f"{group}: {passed[group]} fine, {len(broken)} broken{fatal}")
        for test in broken:
            say(f"  {test}")
    return int(any(group in CORE for group in failed))


def group_of(case: ET.Element) -> str:
    """The group whose list names this test's file."""
    file = (case.get("classname") or case.get("name") or "").replace(".", "/") + ".py"  # no class: it was not collected
    named = [group for group, tests in (CORE | MORE).items() if any(test.split("::")[0] == file for test in tests)]
    return named[0] if named else "loading"


def say(line: str) -> None:
    print(f"newest: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
