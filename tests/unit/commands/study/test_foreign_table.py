"""Tables of scores from elsewhere: what they may look like, and what is refused."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from catchment.commands.study.analysis.whole import analyse
from catchment.commands.study.foreign_report import report
from catchment.commands.study.foreign_table import TableSettings, read_scores
from catchment.commands.study.record import BASE, Flag
from catchment.commands.study.scores import Pairs, ScoreTable
from catchment.commands.study.settings import StudySettings
from catchment.commands.study.words import fill_command
from catchment.errors import InputError, MissingExtraError
from catchment.measuring import Progress

HEAD = "checkpoint,train,eval,score\n"


def _read(folder: Path, text: str, settings: TableSettings | None = None, suffix: str = "csv") -> ScoreTable:
    path = folder / f"table.{suffix}"
    path.write_text(text, encoding="utf-8")
    return read_scores(path, settings=settings)


def test_aliases_and_optional_columns(tmp_path: Path) -> None:
    table = _read(
        tmp_path,
        "revision\ttuning\ttask\taccuracy\tmodel\tprompt\ttrain_seed\tnum_fewshot\tmetric\ttokens\tstderr\titems\n"
        "b\tbase\tqa\t0.5\tolmo\tplain\t\t5\tacc\t2e9\t0.01\t100\n"
        "b\tsft\tqa\t0.75\tolmo\tplain\t3\t5\tacc\t2e9\t0.02\t100\n"
        "a\tBase\tqa\t0.25\tolmo\tplain\t1\t5\tacc\t1e9\t0.03\t100\n",
        suffix="tsv",
    )
    assert [(c.revision, c.tokens, c.order) for c in table.checkpoints] == [("a", 1e9, 0), ("b", 2e9, 1)]
    cell, scored = next((c, s) for c, s in table.scored.items() if c.tuning == "sft")
    assert (cell.model, cell.seed, cell.format, cell.shots, cell.scorer) == ("olmo", 3, "plain", 5, "acc")
    assert (scored.mean, scored.se, scored.n) == (0.75, 0.02, 100)
    assert {c.seed for c in table.scored if c.tuning == BASE} == {None}
    missing = [r for r in table.cells if r.status == "missing"]
    assert [(r.cell.revision, r.cell.tuning, r.reason) for r in missing] == [("a", "sft", "not in the table")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["main", "18000", "1000"], ["1000", "18000", "main"]),
        (["final", "step512", "step64", "main"], ["step64", "step512", "final", "main"]),
        (["step9-tokens3B", "step100-tokens1B"], ["step100-tokens1B", "step9-tokens3B"]),
    ],
)
def test_order_of_checkpoints(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    table = _read(tmp_path, HEAD + "".join(f"{name},BASE,qa,0.5\n" for name in names))
    assert [c.revision for c in table.checkpoints] == expected


def test_an_empty_score_is_a_missing_cell(tmp_path: Path) -> None:
    table = _read(tmp_path, HEAD + "1,BASE,qa,0.5\n1,sft,qa,\n")
    assert [(r.cell.tuning, r.status, r.reason) for r in table.cells] == [
        (BASE, "done", ""),
        ("sft", "missing", "line 3 has no score"),
    ]
    assert [gap.cells for gap in analyse(table).gaps] == [1]


def test_a_tuned_score_without_its_base_is_a_gap(tmp_path: Path) -> None:
    study = analyse(_read(tmp_path, HEAD + "1,BASE,qa,0.5\n2,sft,qa,0.6\n1,sft,qa,0.7\n"))
    assert [(c.revision, c.tuned) for c in study.changes] == [("1", 0.7)]
    assert [(gap.what, gap.reason) for gap in study.gaps] == [
        ("tuning base, format default: qa (1)", "not in the table"),
        ("changes of tuning sft: qa at 2", "the base has no score there"),
    ]


def test_tasks_of_another_format_are_not_missing_in_all_others(tmp_path: Path) -> None:
    head = "checkpoint,train,eval,format,score\n"
    table = _read(tmp_path, head + "1,BASE,a,x,0.1\n1,BASE,a,y,0.1\n1,BASE,b,y,0.1\n1,BASE,c,rank,0.1\n")
    assert table.task_formats == {"a": ("x", "y"), "b": ("x", "y"), "c": ("rank",)}
    assert [(r.cell.task, r.cell.format) for r in table.cells if r.status == "missing"] == [("b", "x")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("checkpoint,train,evals,score\n1,BASE,qa,0.5\n", "no column 'eval' or 'task' or 'dataset' among"),
        ("checkpoint,train,evals,score\n1,BASE,qa,0.5\n", "Did you mean 'evals'?"),
        (HEAD + "1,BASE,qa,0.5\n1,base,qa,0.6\n", "line 3: .* stands in line 2 already"),
        (HEAD + "1,BASE,qa,good\n", "line 2: score is 'good'; expected a number"),
        (HEAD + "1,BASE,qa,nan\n", "score is 'nan'; expected a finite number"),
        (HEAD + "1,BASE,qa,-0.1\n", "score is '-0.1'; expected a finite number of at least 0"),
        (HEAD + "1,BASE,qa,54.2\n", r"score is 54.2; expected a number in \[0, 1\]. Is it a percentage"),
        (HEAD + "1,sft,qa,0.5\n", "no row is a base; .*The tunings are sft"),
        (HEAD + "1,bass,qa,0.5\n", "Did you mean 'bass'"),
        (HEAD + ",BASE,qa,0.5\n", "line 2: checkpoint is empty"),
        (HEAD, "holds no rows"),
        ("checkpoint,train,eval,score,tokens\n1,BASE,qa,0.5,10\n1,sft,qa,0.5,20\n", "line 3: checkpoint 1 has seen 20"),
        ("checkpoint,train,eval,score,seed\n1,BASE,qa,0.5,\n1,sft,qa,0.5,a\n", "line 3: seed is 'a'"),
        ("checkpoint,train,eval,score,seed\n1,BASE,qa,0.5,\n1,sft,qa,0.5,1.5\n", "seed is '1.5'; expected a whole"),
        ("checkpoint,train,eval,score,seed\n1,BASE,qa,0.5,0\n1,BASE,qa,0.5,1\n", "A base was tuned with no seed"),
        ("checkpoint,train,eval,score,se\n1,BASE,qa,0.5,5\n", "se is 5, which no score"),
        (HEAD + "1,BASE,qa,NA\n", "score is 'NA'; expected a number, or nothing where there is none"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _read(tmp_path, text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TableSettings(contrasts=[Pairs("c", (("sfd", "qa"),))]), "no tuning 'sfd'; .*Did you mean 'sft'"),
        (TableSettings(contrasts=[Pairs("c", (("sft", "qb"),))]), "no task 'qb'; .*Did you mean 'qa'"),
    ],
)
def test_settings_that_name_what_is_not_there(tmp_path: Path, settings: TableSettings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _read(tmp_path, HEAD + "1,BASE,qa,0.5\n1,sft,qa,0.5\n", settings)


def test_a_study_may_know_more_than_the_table(tmp_path: Path) -> None:
    flag = Flag("unlabelled", "gone", "no labels.", refused=True, task="gone")
    settings = TableSettings(in_domain={"sft": ["qa", "xx"], "dpo": ["qa"]}, flags=[flag])
    table = _read(tmp_path, HEAD + "1,BASE,qa,0.5\n1,sft,qa,0.5\n", settings)
    assert [card.in_domain for card in table.tunings] == [("qa",)]
    assert table.notes == ("table.csv has no tuning dpo, task xx, task gone, which the study names",)
    assert [c.refused for c in analyse(table).changes] == [False]


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no table .*expected a \.csv"):
        read_scores(tmp_path / "absent.csv")
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"is no \.csv, \.tsv or \.parquet file"):
        read_scores(tmp_path / "table.xlsx")
    (tmp_path / "table.csv").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(InputError, match="not UTF-8"):
        read_scores(tmp_path / "table.csv")


def test_seeds_that_became_fractions_beside_empty_ones_are_read(tmp_path: Path) -> None:
    table = _read(tmp_path, "checkpoint,train,eval,score,seed\n1,BASE,qa,0.5,\n1,sft,qa,0.6,2.0\n")
    assert {result.cell.seed for result in table.cells} == {None, 2}


def test_a_table_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(HEAD + "1,BASE,qa,good\n")
    settings = StudySettings(action="report", csv=tmp_path / "table.csv", out=tmp_path / "out")
    with pytest.raises(InputError):
        report(settings, Progress())
    assert not (tmp_path / "out").exists()


def test_scores_of_others_have_no_command_that_fills_their_gaps(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(HEAD + "1,BASE,qa,0.5\n1,sft,qa,\n")
    study = report(StudySettings(action="report", csv=tmp_path / "table.csv"), Progress())
    assert study.gaps
    assert fill_command(study) == ""


def test_parquet_is_read_as_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"step": 1000, "train": "BASE", "eval": "qa", "score": 0.5, "seed": None},
            {"step": 1000, "train": "sft", "eval": "qa", "score": 0.75, "seed": 1},
            {"step": 2000, "train": "BASE", "eval": "qa", "score": None, "seed": None}]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    with (tmp_path / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    one, other = read_scores(tmp_path / "table.parquet"), read_scores(tmp_path / "table.csv")
    assert one.scored == other.scored
    assert one.checkpoints == other.checkpoints
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_scores(tmp_path / "broken.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"catchment\[study\]"):
        read_scores(tmp_path / "table.parquet")
