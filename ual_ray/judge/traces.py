"""A sample of the judges' calls as traces: the prompts are made again from the pairs, and stand with the stored verdicts."""

from __future__ import annotations

from typing import Any

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import Config
from ual_ray.engines.traces import Trace, call, sample
from ual_ray.judge.pairs import QUESTION
from ual_ray.judge.stage import Judging, shown_pairs
from ual_ray.judge.task import JudgeRows
from ual_ray.judge.verdicts import VERDICTS_FILE
from ual_ray.parquet import read_table

READ = (col.ID, col.CANDIDATE_FIRST, col.JUDGE, col.PREFERENCE, col.MASS, col.FINISH, col.STATUS, col.ERROR)


def sampled_traces(config: Config, judging: Judging) -> list[Trace]:
    """Make a trace of each of `tracking.traces` verdicts, with the prompt that asked for it."""
    pairs = {(pair[QUESTION], pair[col.CANDIDATE_FIRST]): pair for pair in shown_pairs(config, judging)}
    verdicts = {
        digest([row[col.ID], row[col.CANDIDATE_FIRST], row[col.JUDGE]]): row
        for row in read_table(judging.folder / VERDICTS_FILE, [*READ]).to_pylist()
        if pairs[row[col.ID], row[col.CANDIDATE_FIRST]][col.ERROR] is None  # others were not sent
    }
    chosen = {key: verdicts[key] for key in sample(verdicts, config.tracking.traces)}
    return [_trace(config, key, row, pairs[row[col.ID], row[col.CANDIDATE_FIRST]]) for key, row in chosen.items()]


def _trace(config: Config, key: str, row: dict[str, Any], pair: dict[str, Any]) -> Trace:
    (prompt,) = JudgeRows(row[col.JUDGE], templates=config.judge.templates).prompts([pair])
    outputs = {name: row[name] for name in (col.PREFERENCE, col.MASS, col.STATUS, col.ERROR)} | {
        "finish_reason": row[col.FINISH]
    }
    names = (QUESTION, col.BENCHMARK, col.CANDIDATE, col.REFERENCE, col.CANDIDATE_FIRST)
    attributes = {"model": row[col.JUDGE]} | {name: pair[name] for name in names}
    return {"id": key, "name": "judge", "spans": [call("judge", prompt, outputs, attributes)]}
