"""Scoring under Ray with the fake engine: nothing is sent twice, and what is made of the scores asks nothing again.

The command line runs where its output matters; elsewhere the step runs in this process, on one Ray for the module.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elicited import ESTIMATORS, FAKE, Score, Scored, alpaca, files_of, measured, newest, write

from ual_ray import columns as col
from ual_ray.errors import UserError
from ual_ray.parquet import read_table

# --- again, with other settings and other rows -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(ual: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Score 40 rows by command."""
    out = tmp_path_factory.mktemp("scored")
    data = write(tmp_path_factory.mktemp("data") / "rows.jsonl", alpaca(0, 40))
    done = ual("elicit", data, *FAKE, f"elicit.model={tiny_model}", "--out", out)
    assert done.code == 0, done.output
    folder = newest(out)
    return Scored(folder, json.loads((folder / "done.json").read_text())["figures"], done.output)


def test_every_row_is_scored_once(first: Scored) -> None:
    rows = first.rows
    assert read_table(first.folder / "scored").schema.equals(col.scored_schema(ESTIMATORS))
    assert read_table(first.folder / "rows").schema.equals(col.ROWS)
    assert len(rows) == len({row["id"] for row in rows}) == 40 == first.figures["rows"]
    assert all(row["status"] == "ok" and 0 <= row["uncertainty"] <= 1 for row in rows)
    assert {row["given_id"] for row in rows} == {f"q{n}" for n in range(40)}
    assert first.figures["calls"] == sum(row["calls"] for row in rows) == 40 * 4
    assert "40 of 40 rows scored" in first.printed and "format: alpaca" in first.printed


def test_other_settings_score_beside_the_old(first: Scored, ual: Any, tiny_model: Path, tmp_path: Path) -> None:
    out, before = first.folder.parent, files_of(first.folder.parent)
    data = write(tmp_path / "moved.jsonl", alpaca(0, 40))
    done = ual("elicit", data, *FAKE, f"elicit.model={tiny_model}", "elicit.scale=1-5", "--out", out)
    assert done.code == 0, done.output
    assert newest(out) != first.folder
    assert {name: time for name, time in files_of(out).items() if name in before} == before
    raw = [row["raw_verbalized_error"] for row in read_table(newest(out) / "scored").to_pylist()]
    assert len(raw) == 40 and min(raw) >= 1 and max(raw) <= 5
    smoothed = ual("smooth", out, "--out", tmp_path / "smoothed")
    assert smoothed.code == 0, smoothed.output


def test_only_new_rows_are_sent_and_rows_that_are_gone_are_left_out(score: Score, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", alpaca(0, 30))
    old = score(data, tmp_path / "out")
    assert len(measured(old.store)) == old.figures["rows"] == 30

    anew = score(data, tmp_path / "out")
    assert "cached" in anew.printed and anew.folder == old.folder

    write(data, [*alpaca(5, 40), *alpaca(38, 40)])
    new = score(data, tmp_path / "out", "data.max_bad_share=0")
    assert new.folder != old.folder and new.store == old.store
    sent = measured(new.store)
    assert len(sent) == len({row["id"] for row in sent}) == 40, "the ten new rows, each once"
    assert {row["given_id"] for row in new.rows} == {f"q{n}" for n in range(5, 40)}
    assert new.figures["bad"] == 0, "rows that occur again are scored once, and are not bad"
    assert new.figures["duplicates"] == 2 and "2 duplicates left out" in new.printed
    scores = {row["id"]: row["uncertainty"] for row in old.rows}
    assert all(scores.get(row["id"], row["uncertainty"]) == row["uncertainty"] for row in new.rows)


@pytest.mark.parametrize("damage", ["changed", "cut", "removed"])
def test_damaged_ids_of_finished_rows_send_none_of_them_again(score: Score, tmp_path: Path, damage: str) -> None:
    """Ray Data writes them without checksums."""
    before = score(write(tmp_path / "some.jsonl", alpaca(0, 12)), tmp_path / "out")
    files = sorted(before.store.glob("*/checkpoint/*.parquet"))
    assert files
    for file in files:
        content = bytearray(file.read_bytes())
        for place in range(20, 60, 4):
            content[place] ^= 1
        file.write_bytes({"changed": bytes(content), "cut": content[: len(content) // 2], "removed": b""}[damage])
        if damage == "removed":
            file.unlink()
    after = score(write(tmp_path / "more.jsonl", alpaca(0, 16)), tmp_path / "out")
    assert len(after.rows) == 16
    ids = [row[col.ID] for row in measured(after.store)]
    assert len(ids) == len({*ids}) == 16


def test_damaged_rows_of_the_store_stop_a_run_that_sends_others(score: Score, tmp_path: Path) -> None:
    before = score(write(tmp_path / "some.jsonl", alpaca(0, 8)), tmp_path / "out")
    file = min(before.store.glob("*/finished/*.parquet"))
    content = bytearray(file.read_bytes())
    content[30] ^= 1  # of the ids
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"(?s){file.name} cannot be read: it is damaged.*delete .*{file.name}"):
        score(write(tmp_path / "more.jsonl", alpaca(0, 12)), tmp_path / "out")


def test_equal_rows_are_scored_once_wherever_they_lie(score: Score, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{key: value for key, value in row.items() if key != "id"} for row in alpaca(0, 20)]
    write(folder / "a.jsonl", rows)
    write(folder / "b.jsonl", rows[10:] + [{"instruction": "Only here?", "output": "Yes."}])
    done = score(folder, tmp_path / "out", "data.max_bad_share=0")
    assert len(done.rows) == len(measured(done.store)) == 21
    assert done.figures["bad"] == 0


# --- looking at it ---------------------------------------------------------------------------------------------------


def test_the_self_check_selects_an_estimator_and_asks_nothing_again(
    score: Score, ual: Any, tiny_model: Path, tmp_path: Path
) -> None:
    data, auto = write(tmp_path / "rows.jsonl", alpaca(0, 40)), ["elicit.uncertainty=auto", "elicit.self_check=25"]
    checked = score(data, tmp_path / "out", *auto)
    found = json.loads((checked.folder / "self_check.json").read_text())
    assert (found["rows"], found["swapped"], [*found["estimators"]]) == (25, 5, [*ESTIMATORS])
    taken = max(ESTIMATORS, key=lambda name: found["estimators"][name]["auroc"])
    assert taken == found["uncertainty"] == checked.figures["uncertainty"]
    assert f"uncertainty = {taken}, highest AUROC" in checked.printed and "25 rows, 5 of them" in checked.printed
    assert len(checked.rows) == 40 and all(row["uncertainty"] == row[f"uncertainty_{taken}"] for row in checked.rows)
    assert len(measured(checked.store)) == 40, "the rows of the self-check are kept apart"
    before = files_of(checked.store)
    again = score(data, tmp_path / "out", *auto, "elicit.length_residual=true")
    assert again.folder != checked.folder and files_of(again.store) == before

    done = ual("inspect", checked.folder, "--self-check", "20", *FAKE, f"elicit.model={tiny_model}")
    assert done.code == 0, done.output
    assert "20 rows, 4 of them" in done.output and "Self-check" in (checked.folder / "inspection.html").read_text()
    other = ual("inspect", checked.folder, "--self-check", "20", *FAKE, f"elicit.model={tiny_model}", "elicit.scale=1-5")
    assert other.code == 2 and "made with other settings" in other.output


@pytest.fixture(scope="module")
def labels(first: Scored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Verdicts on most of the rows, by their own id or by the content's."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    rows = first.rows[4:]
    names = [row["given_id"] if at % 2 else row["id"] for at, row in enumerate(rows)]
    path.write_text("id,correct\n" + "".join(f"{name},{at % 3 > 0:d}\n" for at, name in enumerate(names)))
    return path


def test_inspect_writes_a_page_a_table_and_into_mlflow(first: Scored, ual: Any, labels: Path) -> None:
    from mlflow import MlflowClient

    out = first.folder.parent
    done = ual("inspect", first.folder, "--labels", labels)
    assert done.code == 0, done.output
    page = (first.folder / "inspection.html").read_text()
    assert "<html" in page and "verbalized_error" in page and "AUROC" in page
    assert json.loads((first.folder / "inspection.json").read_text())
    assert "verbalized_error" in done.output and "AUROC" in done.output
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    experiment = client.get_experiment_by_name("ual_ray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    logged = {run.info.run_id: {file.path for file in client.list_artifacts(run.info.run_id)} for run in runs}
    with_page = [run for run, files in logged.items() if {"inspection.html", "inspection.json"} <= files]
    assert len(with_page) == 1 and "plots" in logged[with_page[0]], "into the run of the scoring itself"
    assert all(run.info.status == "FINISHED" for run in runs)


def test_inspect_without_labels_takes_the_newest(first: Scored, ual: Any, tmp_path: Path) -> None:
    done = ual("inspect", first.folder.parent, "--html", tmp_path / "page.html")
    assert done.code == 0, done.output
    assert (tmp_path / "page.html").is_file() and (tmp_path / "page.json").is_file()
    assert "AUROC" not in done.output


def test_preview_shows_rows_before_anything_runs(ual: Any, tiny_model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [*alpaca(0, 5), {"instruction": "Why?", "output": ""}])
    done = ual("preview", data, "-n", 2, *FAKE, f"model={tiny_model}", f"elicit.model={tiny_model}", cwd=tmp_path)
    assert done.code == 0, done.output
    assert "row 2" in done.output and "row 3" not in done.output
    assert done.output.count("«0 + 0 = 0<|im_end|>»") == 2, "scored by nll, and trained on"
    assert "1 of all 6 rows cannot be used" in done.output and "no response" in done.output
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


# --- what is made of the scores --------------------------------------------------------------------------------------


def test_ensemble_length_residual_and_calibration_need_no_model(
    first: Scored, ual: Any, tiny_model: Path, labels: Path, tmp_path: Path
) -> None:
    from ual_ray.data.labels import read_labels
    from ual_ray.elicit.adjust import calibrate, length_residual, mean_rank

    out = first.folder.parent
    before = files_of(out / "store")
    chosen = ["elicit.uncertainty=ensemble", "elicit.ensemble=[verbalized_error,p_true]", "elicit.length_residual=true"]
    data = write(tmp_path / "rows.jsonl", alpaca(0, 40))
    labelled = f"elicit.calibrate_with={labels}"
    done = ual("elicit", data, *FAKE, f"elicit.model={tiny_model}", *chosen, labelled, "--out", out)
    assert done.code == 0, done.output
    assert files_of(out / "store") == before
    rows = read_table(newest(out) / "scored").to_pylist()
    ranks = mean_rank([np.array([row[f"uncertainty_{name}"] for row in rows]) for name in ("verbalized_error", "p_true")])
    assert [row["uncertainty_ensemble"] for row in rows] == pytest.approx(ranks)
    truth = read_labels(labels)
    correct = np.array([float(truth.get(row["id"], truth.get(row["given_id"], np.nan))) for row in rows])
    lengths = np.array([row["response_length"] for row in rows])
    expected = calibrate(length_residual(ranks, lengths, np.zeros(40)), correct, [row["id"] for row in rows])
    assert np.isfinite(correct).sum() == 36
    assert [row["uncertainty"] for row in rows] == pytest.approx(expected)
    assert [row["uncertainty_verbalized_error"] for row in rows] == [row["uncertainty_verbalized_error"] for row in first.rows]
