"""`ual judge` as a user runs it: two models' answers, a kill in the middle, and what is sent again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from forking_ual import forking_ual
from worker_forks import WITHOUT_MODELS

from ual_ray import columns as col
from ual_ray.columns import Message
from ual_ray.parquet import write_rows

REPOSITORY = Path(__file__).parents[2]
PAIRS = 40
Ual = Callable[..., Any]


def result(number: int, model: str) -> dict[str, Any]:
    messages = [Message(role="user", content=f"Question {number}?")]
    told = {col.ID: col.content_id(messages), col.BENCHMARK: "chat", col.MESSAGES: messages, col.STATUS: col.STATUS_OK}
    return told | {col.MODEL: model, col.PREDICTION: f"{model} {number}"}


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Two models' answers, and a stand-in for a judge that writes down what it is asked."""
    for name in ("one", "two"):
        write_rows([result(at, name) for at in range(PAIRS)], col.RESULTS, tmp_path / f"{name}.parquet")
    arguments = f"engine.arguments={{seconds_per_run: 1, log: {tmp_path / 'asked'}}}"
    settings = ["engine.kind=fake", "engine.rows_per_block=4", "engine.max_actors=1", "evaluate.resamples=100", arguments]
    return [
        "judge",
        str(tmp_path / "one.parquet"),
        str(tmp_path / "two.parquet"),
        "judge.model=demo",
        "judge.orders=random",
        *settings,
    ]


def asked(folder: Path) -> list[str]:
    file = folder / "asked"
    return [json.loads(line)["text"] for line in file.read_text().splitlines()] if file.is_file() else []


def test_a_killed_judge_goes_on_where_it_was(ual: Ual, command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "judged"
    whole = [*forking_ual(WITHOUT_MODELS), *command, "-o", str(out)]
    first = subprocess.Popen(
        whole, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while len(asked(tmp_path)) < PAIRS // 2 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert first.poll() is None, "it ended before it could be killed"
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = len(asked(tmp_path))
    assert PAIRS // 2 <= before < PAIRS
    time.sleep(5)  # Ray's own processes notice that their driver is gone

    done = ual(*command, "-o", out)
    assert done.code == 0, done.output
    (place,) = (file.parent for file in (out / "judge").rglob("win_rates.json"))
    verdicts = pyarrow.parquet.read_table(place / "verdicts.parquet")
    assert verdicts.num_rows == PAIRS and verdicts["preference"].null_count == 0
    # At most what one actor had under way or unwritten was asked twice.
    again = Counter(asked(tmp_path))
    assert len(again) == PAIRS and sum(count > 1 for count in again.values()) <= 12
    figures = json.loads((place / "win_rates.json").read_text())
    assert (figures["candidate"], figures["reference"], figures["rows"]) == ("one", "two", PAIRS)

    total = len(asked(tmp_path))
    repeated = ual(*command, "-o", out)
    assert repeated.code == 0 and "cached" in repeated.output
    assert len(asked(tmp_path)) == total


def test_a_judge_that_says_nothing_readable(ual: Ual, command: list[str], tmp_path: Path) -> None:
    done = ual(*command, "judge.mode=sampled", "-o", tmp_path / "judged")
    assert done.code == 2
    assert "10 of 10 verdicts are missing" in done.output and "judge.min_parse_share" in done.output
    assert "0 of 10 verdicts can be parsed" in done.output
    # Ten pairs, each asked once and twice more.
    assert len(asked(tmp_path)) == 30
