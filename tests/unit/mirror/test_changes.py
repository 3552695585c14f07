"""What is copied of a working folder, and when."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ual_ray.mirror.changes import Changes, Version, changes, refers, scan

SETTLED = 100.0
OLD, NEW = Version(1, 50), Version(1, 150)
STORE = "elicit/store/key"
IDS, PENDING, ROWS = (
    f"{STORE}/checkpoint/a_0.parquet",
    f"{STORE}/checkpoint/a_0.pending.parquet",
    f"{STORE}/finished/a_0-0.parquet",
)
DONE, RESULT = "elicit/key/done.json", "elicit/key/rows/part-00000.parquet"


def of(found: dict[str, Version], known: dict[str, Version] | None = None) -> Changes:
    return changes(known or {}, found, found, SETTLED)


def test_a_folder_is_copied_once_and_what_changed_again() -> None:
    assert of({RESULT: OLD, DONE: OLD}) == ([], [RESULT], [DONE])
    assert of({RESULT: OLD, DONE: OLD}, {RESULT: OLD, DONE: OLD}) == ([], [], [])
    assert of({RESULT: Version(2, 50), DONE: OLD}, {RESULT: OLD, DONE: OLD}) == ([], [RESULT], [])


def test_a_removed_file_is_removed_there_and_what_refers_to_others_first() -> None:
    assert of({}, {RESULT: OLD, DONE: OLD}) == ([DONE, RESULT], [], [])


def test_a_stage_that_was_done_again_is_not_done_there_while_its_files_are_replaced() -> None:
    again = Version(1, 60)
    assert of({RESULT: again, DONE: again}, {RESULT: OLD, DONE: OLD}) == ([DONE], [RESULT], [DONE])


def test_what_may_be_half_written_waits_with_what_refers_to_it() -> None:
    assert of({RESULT: NEW, DONE: OLD}) == ([], [], [])
    assert of({RESULT: NEW, DONE: OLD, "other/done.json": OLD}) == ([], [], ["other/done.json"])
    assert of({ROWS: NEW, IDS: OLD}) == ([], [], []), "ids are written before their rows, and renamed after"
    assert of({ROWS: NEW, IDS: OLD, IDS.replace("a_0", "b_0"): OLD}) == ([], [], [IDS.replace("a_0", "b_0")])
    assert of({"train/metrics.jsonl": NEW}) == ([], ["train/metrics.jsonl"], [])


def test_rows_whose_ids_are_not_committed_wait_and_so_do_their_ids() -> None:
    other = ROWS.replace("a_0", "b_0")
    assert of({PENDING: OLD, ROWS: OLD, other: OLD}) == ([], [other], [])
    assert changes({}, {PENDING: OLD, ROWS: OLD}, {IDS: OLD, ROWS: OLD}, SETTLED) == ([], [], []), "committed between the scans"
    assert of({IDS: OLD, ROWS: OLD}) == ([], [ROWS], [IDS])


def test_what_refers_to_others_counts_from_the_first_scan_alone() -> None:
    assert changes({}, {}, {DONE: OLD, RESULT: OLD}, SETTLED) == ([], [RESULT], [])
    assert changes({}, {DONE: OLD}, {RESULT: OLD}, SETTLED) == ([], [RESULT], [])


@pytest.mark.parametrize("stopped", range(6))
def test_a_kill_between_any_two_copies_leaves_no_reference_without_its_file(stopped: int) -> None:
    there = {DONE: OLD, RESULT: OLD}
    again = Version(1, 60)
    wanted = of({DONE: again, RESULT: again, IDS: again, ROWS: again}, there)
    steps = [*((name, None) for name in wanted.erased), *((name, again) for name in (*wanted.copied, *wanted.last))]
    for name, version in itertools.islice(steps, stopped):
        there = {key: value for key, value in there.items() if key != name} | ({name: version} if version else {})
    assert DONE not in there or there[DONE] == there[RESULT]
    assert IDS not in there or ROWS in there


def test_a_scan_leaves_out_what_is_half_written_and_what_sqlite_works_with(tmp_path: Path) -> None:
    names = [
        "a.part",
        ".lock",
        "sub/.lock",
        "mlflow.db",
        "mlflow.db-journal",
        "mlflow.db-wal",
        "mlflow.db-shm",
        "sub/sub/rows.parquet",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = scan(tmp_path)
    assert found.keys() == {"mlflow.db", "sub/sub/rows.parquet"}
    assert {version.size for version in found.values()} == {1}


def test_what_refers_to_others() -> None:
    names = [DONE, IDS, "elicit/newest", "a/checkpoints/step-1/progress.json"]
    assert [name for name in (*names, RESULT, ROWS) if refers(name)] == names
