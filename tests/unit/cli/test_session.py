"""How a command finds the output of another stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from ual_ray.cli.arguments import find
from ual_ray.cli.stages import elicit
from ual_ray.errors import UserError
from ual_ray.mirror import output as outputs
from ual_ray.mirror.remote import Remote


def test_a_folder_of_another_stage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ual.log").touch()
    with pytest.raises(UserError, match=r"there is no 'smoothed.parquet' in the folder(?s:.*)ual smooth"):
        find(tmp_path, "smoothed.parquet", "ual smooth")
    (tmp_path / "ual.log").rename(tmp_path / ".hidden")
    (tmp_path / "part.parquet").touch()
    assert find(tmp_path, "smoothed.parquet", "ual smooth") == tmp_path
    (tmp_path / "smoothed.parquet").touch()
    assert find(tmp_path, "smoothed.parquet", "ual smooth") == tmp_path / "smoothed.parquet"


@pytest.mark.parametrize("place", ["", "elicit"])
def test_the_newest_result_is_taken(place: str, tmp_path: Path) -> None:
    for key in ("aaaa", "bbbb"):
        (tmp_path / place / key / "scored").mkdir(parents=True)
        (tmp_path / place / key / "scored" / "part.parquet").touch()
        (tmp_path / place / "newest").write_text(key)
    assert find(tmp_path, "scored", "ual elicit") == tmp_path / place / "bbbb" / "scored"


def test_an_input_that_does_not_exist_or_is_not_parquet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="(?s)does not exist.*ual elicit"):
        find(tmp_path / "no.parquet", "scored", "ual elicit")
    (tmp_path / "rows.csv").write_text("a")
    with pytest.raises(UserError, match="is not a Parquet file"):
        find(tmp_path / "rows.csv", "scored", "ual elicit")


def test_a_folder_of_another_stage_is_not_taken_for_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    for name in ("part.parquet", "_SUCCESS", ".part.crc"):
        (rows / name).touch()
    assert find(rows, "smoothed.parquet", "ual smooth") == rows
    (rows / "done.json").touch()
    for place in (rows, tmp_path):
        with pytest.raises(UserError, match=r"(?s)no 'smoothed.parquet' in the folder.*ual smooth"):
            find(place, "smoothed.parquet", "ual smooth")


@pytest.mark.slow
def test_a_dry_run_only_reads_what_is_at_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Remote("hdfs://bucket/run", LocalFileSystem(), str(tmp_path / "there"), "--out")
    monkeypatch.setattr(outputs, "open_remote", lambda uri, key: there)
    monkeypatch.setattr(outputs, "LocalFileSystem", type("Other", (), {}))
    monkeypatch.setenv("UAL_CACHE", str(tmp_path / "cache"))
    elicit(data="demo", out="hdfs://bucket/run", dry_run=True)
    assert not (tmp_path / "there").exists() and not (tmp_path / "cache" / "outputs").exists()
