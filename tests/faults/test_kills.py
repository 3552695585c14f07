"""Processes are killed in the middle of `ual elicit`: no row is lost, none that was finished is sent again.

Every test ends with the rows and the scores of an undisturbed run. `pytest -s` shows what was sent and redone.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from damage import damaged
from elicitation_checks import (
    BLOCK_CALLS,
    REQUESTS_PER_ROW,
    ROWS,
    ROWS_PER_BLOCK,
    UNWRITTEN_CALLS,
    assert_equal,
    assert_resumed,
    redone,
    sent_again,
    transcript,
)

from ual_ray.errors import UserError
from ual_ray.parquet import RowFiles, send_again

SLOW = 0.4
ENGINE_ACTOR = "ray::MapWorker(MapBatches(EngineActor))"


def tear_files(run: Any) -> None:
    """Leave what a kill in the middle of a write leaves: half a file, and the note that says so."""
    torn = "torn_000000_000000"
    whole = next(run.store.glob("finished/*.parquet")).read_bytes()
    (run.store / "finished" / f"{torn}-0.parquet").write_bytes(whole[: len(whole) // 2])
    note = next(run.store.glob("checkpoint/*.parquet")).read_bytes()
    (run.store / "checkpoint" / f"{torn}.pending.parquet").write_bytes(note)


def test_an_actor_the_monitor_and_twice_the_driver_are_killed_and_no_finished_row_is_sent_again(
    elicit: Any, undisturbed: Any
) -> None:
    run = elicit(seconds_per_run=SLOW)
    run.start()
    first = run.until_finished(40)
    run.process(ENGINE_ACTOR).kill()
    run.until_finished(len(first) + 3 * ROWS_PER_BLOCK)
    # What all actors report to.
    run.process("ray::Monitor").kill()
    run.wait(code=1)
    without_monitor, at_monitor = run.finished(), len(run.calls())
    assert 0 <= redone(run) <= BLOCK_CALLS, "an actor's death costs a block"
    assert len(without_monitor) < ROWS

    run.start()
    run.until_finished(len(without_monitor) + 16)
    run.signal(signal.SIGTERM)
    run.wait(code=128 + signal.SIGTERM)
    at_sigterm, terminated, killed = len(run.calls()), run.finished(), run.mlflow_run()
    assert killed.info.status == "KILLED"
    assert len(terminated) < ROWS
    assert_resumed(run, without_monitor, at_monitor, at_sigterm)

    run.start()
    run.until_finished(len(terminated) + 16)
    left = run.kill()
    at_kill, finished = len(run.calls()), run.finished()
    assert len(finished) < ROWS
    assert_resumed(run, terminated, at_sigterm, at_kill)
    assert not [name for name in left if name.startswith(ENGINE_ACTOR)], "engines end with the driver"
    tear_files(run)

    run.run()
    transcript(
        "an actor, the monitor and twice the driver killed", rows=ROWS,
        finished_at_each_end=[len(ids) for ids in (without_monitor, terminated, finished)],
        calls_at_each_end=[at_monitor, at_sigterm, at_kill, len(run.calls())], redone=redone(run), left_for_20_seconds=left,
    )  # fmt: skip
    assert_equal(run, undisturbed)
    assert_resumed(run, finished, at_kill)
    assert not run.failed(), "one death is nobody's fault"
    ended = run.mlflow_run()
    assert (ended.info.run_id, ended.info.status) == (killed.info.run_id, "FINISHED")


def test_rows_that_an_engine_dies_or_hangs_on_are_set_aside_alone(elicit: Any, undisturbed: Any) -> None:
    bad = {"engine.arguments.crash_on": "row-137", "engine.arguments.hang_on": "row-055", "engine.hang_seconds": 3}
    run = elicit(seconds_per_run=0.0, **bad)
    printed = run.run()
    names = run.names()
    guilty = frozenset({names["row-137"], names["row-055"]})
    transcript("an engine dies on one row, hangs on another", rows=ROWS, calls=len(run.calls()), redone=redone(run),
               seconds=round(run.seconds))  # fmt: skip
    assert "2 quarantined (2 engine)" in printed
    assert {row["id"]: row["error"] for row in run.failed()} == dict.fromkeys(
        guilty, "engine: it died or hung on this row 2 times"
    )
    assert_equal(run, undisturbed, without=guilty)
    assert {identity for identity, row in run.scored().items() if row["status"] == "quarantined"} == guilty
    assert not guilty & run.finished(), "what may pass another time is not remembered as finished"
    # Twice with the batch and twice alone; the rows before it in the batch once more, when it is passed over.
    assert {run.sent()[identity] for identity in guilty} == {4 * REQUESTS_PER_ROW}
    assert max(run.sent().values()) <= 5 * REQUESTS_PER_ROW
    assert sum(count > REQUESTS_PER_ROW for count in run.sent().values()) <= 2 * ROWS_PER_BLOCK

    before = len(run.calls())
    run.run()
    assert "cached" in run.printed
    run.run("--retry-failed")
    transcript("--retry-failed", calls=len(run.calls()) - before, seconds=round(run.seconds))
    assert run.sent(since=before).keys() == guilty
    assert {row["id"] for row in run.failed()} == guilty
    assert_equal(run, undisturbed, without=guilty)


def test_too_many_rows_without_a_result_end_it_and_what_was_done_is_kept(elicit: Any, long_rows_file: Path) -> None:
    # Every third row is too long for the engine, which the fake one counts in words.
    run = elicit(seconds_per_run=0.1, data=long_rows_file, **{"elicit.max_quarantine_share": 0.2})
    printed = run.run(code=2)
    finished, before = run.finished(), len(run.calls())
    assert "more than elicit.max_quarantine_share = 0.2 allows" in printed
    assert "Traceback" not in printed

    run.run("elicit.max_quarantine_share=0.5")
    transcript(
        "too many without a score", rows=ROWS, finished_by_then=len(finished), calls_before=before,
        calls_after=len(run.calls()) - before, redone=redone(run),
    )  # fmt: skip
    assert 100 <= len(finished) < ROWS
    assert len(finished) * REQUESTS_PER_ROW == before, "what was sent is kept"
    assert redone(run) == 0
    statuses = [row["status"] for row in run.scored().values()]
    assert (statuses.count("ok"), statuses.count("quarantined")) == (ROWS - ROWS // 3, ROWS // 3)


@pytest.fixture(scope="module")
def undisturbed_vllm(vllm_elicit: Any) -> Any:
    """Score a few rows with vLLM, with nothing in the way."""
    run = vllm_elicit()
    run.run()
    return run


@pytest.mark.parametrize(("multiprocessing", "in_flight"), [("0", 2), ("1", 1)])
def test_kill_9_of_a_vllm_engine(vllm_elicit: Any, undisturbed_vllm: Any, multiprocessing: str, in_flight: int) -> None:
    run = vllm_elicit({"VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing}, **{"engine.batches_in_flight": in_flight})
    run.start()
    actor = run.process(ENGINE_ACTOR)
    engine = run.process("VLLM::EngineCore") if multiprocessing == "1" else actor
    finished = run.until_finished(4)
    assert engine.is_running(), "it has to be killed at work"
    engine.kill()
    run.wait()
    scored, expected = run.scored(), undisturbed_vllm.scored()
    worst = max(abs(scored[identity]["uncertainty"] - row["uncertainty"]) for identity, row in expected.items())
    transcript(
        f"vLLM killed, {'its own process' if multiprocessing == '1' else 'in the actor'}", rows=len(expected),
        finished_at_the_kill=len(finished), largest_difference=f"{worst:.1e}", seconds=round(run.seconds),
    )  # fmt: skip
    assert len(finished) < len(expected)
    assert scored.keys() == expected.keys()
    assert worst < 1e-3
    assert not actor.is_running(), "an actor whose engine is dead ends itself"


# --- a changed bit ---------------------------------------------------------------------------------------------------


def test_a_changed_bit_in_any_byte_of_a_footer_that_ray_data_wrote_is_told(undisturbed: Any) -> None:
    file = max(undisturbed.store.glob("finished/*.parquet"), key=lambda one: one.stat().st_size)
    content = file.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for byte in range(start, len(content)):
        copy = bytearray(content)
        copy[byte] ^= 1 << byte % 8
        with damaged(file, bytes(copy)), pytest.raises(UserError, match=f"{file.name} cannot be read"):
            RowFiles([file], fix=send_again)
    RowFiles([file], fix=send_again)


# --- a full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_with_room_again_the_run_goes_on(elicit: Any, undisturbed: Any, small_disk: Any) -> None:
    run = elicit(seconds_per_run=0.0)
    # MLflow's tables take 930 kB of it, and the results of all rows 500 kB.
    small_disk(run.out, "1300k")
    run.start()
    run.wait(code=2)
    assert "a disk is full" in run.printed and "No space left on device" in run.printed and "Traceback" not in run.printed
    before = len(run.calls())
    assert before > 0
    small_disk(run.out, "64m")
    run.run()
    assert_equal(run, undisturbed)
    again = sent_again(run, before)
    transcript("the disk was full", calls=len(run.calls()), sent_before=before, sent_again=again)
    assert again <= UNWRITTEN_CALLS and redone(run) == again
