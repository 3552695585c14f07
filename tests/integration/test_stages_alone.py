"""Every stage as a command of its own, on paths, each reading what the one before wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ual_ray.parquet import read_table
from ual_ray.stats.results import read_metrics, read_results


def test_five_commands_in_a_row(ual: Any, small: list[str], rows_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = [item for item in small if item.split("=")[0] not in ("data.path", "model")] + ["train.num_workers=1"]
    scored, smoothed, trained = tmp_path / "scored", tmp_path / "ual", tmp_path / "trained"

    done = ual("elicit", rows_file, *settings, "--out", scored)
    assert done.code == 0, done.output
    done = ual("smooth", scored, "arms.ual.map=rank", "arms.ual.alpha_max=0.3", "--out", smoothed)
    assert done.code == 0, done.output
    assert "█" in done.output
    assert max(read_table(smoothed / "smoothed.parquet")["alpha"].to_pylist()) == 0.3

    done = ual("train", smoothed, f"model={tiny_model}", *settings, "--validation", scored, "--out", trained)
    assert done.code == 0, done.output
    assert (trained / "model" / "model.safetensors").is_file()

    for name, model in (("base", tiny_model), ("ual", trained / "model")):
        out = tmp_path / "results" / name
        done = ual(
            "evaluate", model, *settings, "evaluate.calibration.enabled=false", "--rows", scored, "--name", name, "--out", out
        )
        assert done.code == 0, done.output
        newest = out / "evaluate" / (out / "evaluate" / "newest").read_text()
        title, figures = read_metrics(newest)
        assert title == name
        assert {figure.metric for figure in figures} == {"nll", "exact_match_strict", "exact_match_flexible"}
        assert {row["model"] for row in read_results(newest).to_pylist()} == {name}
    done = ual("report", tmp_path / "results", "--out", tmp_path / "report")
    assert done.code == 0, done.output
    assert "| metric | n | base | ual |" in (tmp_path / "report" / "report.md").read_text()

    again = ual("elicit", rows_file, *settings, "--out", scored)
    assert again.output.count("cached") == 1
    other = ual("train", smoothed, f"model={tiny_model}", *settings, "train.epochs=3", "--out", trained)
    assert other.code == 2
    assert "belongs to another configuration" in other.output
