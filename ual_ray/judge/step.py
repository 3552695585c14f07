"""Judging as a step of a run."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset

from ual_ray.judge.alpaca_eval import ANNOTATIONS_FILE, OUTPUTS_FILE, REFERENCE_OUTPUTS_FILE
from ual_ray.judge.pairs import Side, name_of
from ual_ray.judge.verdicts import VERDICTS_FILE, metrics, win_rate_line
from ual_ray.parquet import content_digest, read_table
from ual_ray.run.progress import Meter, meter

if TYPE_CHECKING:
    from ual_ray.run.stage_cache import Done
    from ual_ray.run.step import Place, Session
from ual_ray import columns as col
from ual_ray.judge.stage import SAMPLED_ROWS, Judging, _measuring, judge_pairs, open_ended_benchmarks


def judge_step(
    session: Session, candidate: Side, reference: Side, place: Place, store_place: Place, *, retry: bool = False
) -> Done:
    """Judge a candidate's answers against a reference's; `folder`/win_rates.json and `folder`/verdicts.parquet.

    Verdicts are kept at `store_place`, by a key of judge, prompt and engine settings. `retry` sends the pairs again that an
    engine failed on.
    """
    from ual_ray.run.stage_cache import DONE_FILE, run_stage, stage_digest

    config = session.config
    measuring = _measuring(config)
    store = store_place(stage_digest(measuring))
    columns = [col.ID, col.BENCHMARK, col.PREDICTION, col.EXTRACTED, col.REFERENCE]
    inputs: dict[str, Any] = {
        "candidate": content_digest(candidate.results, columns) if candidate.results else None,
        "reference": content_digest(reference.results, columns) if reference.results else None,
        "names": [name_of(candidate), name_of(reference)],
        "benchmarks": open_ended_benchmarks(config),
        "figures": config.evaluate.model_dump(include={"resamples", "confidence"}),
        "measuring": measuring,
    }
    folder = place(stage_digest(inputs))
    if force := "judge" in session.force:
        shutil.rmtree(store, ignore_errors=True)
    if retry:
        (folder / DONE_FILE).unlink(missing_ok=True)
    title = f"judge {name_of(candidate)}"

    def work() -> dict[str, Any]:
        session.connect()
        make_meter = partial(_make_meter, session)
        judging = Judging(candidate, reference, folder, store, make_meter, partial(session.say, title))
        return _judge_and_log(session, judging, title)

    done = run_stage(folder, inputs, work, force=force)
    return session.finish(title, done, win_rate_line(done.figures))


def _make_meter(session: Session, name: str, total: int) -> AbstractContextManager[Meter]:
    return meter(session.console, name, total, "rows")


def _judge_and_log(session: Session, judging: Judging, title: str) -> dict[str, Any]:
    from ual_ray.config.redact import redact_values
    from ual_ray.run.step import ARM_TAG, LINEAGE_PROMPTS, STAGE_TAG

    config = session.config
    names = {"candidate": name_of(judging.candidate), "reference": name_of(judging.reference)}
    tags = {STAGE_TAG: "judge", ARM_TAG: names["candidate"], "ual_ray.judge": str(config.judge.model)}
    with session.tracked(f"{title} against {names['reference']}", judging.folder, tags) as run:
        run.params(redact_values({"judge": config.judge.model_dump() | names, "engine": config.engine.model_dump()}))
        result = judge_pairs(config, judging)
        rows = judging.folder / VERDICTS_FILE
        run.dataset("verdicts", rows, content_digest(rows, [col.ID, col.PREFERENCE]), result["rows"], "judging")
        run.metrics(metrics(result))
        run.tags({LINEAGE_PROMPTS: ", ".join(result["prompt_hashes"])})
        for file in (col.WIN_RATES_FILE, VERDICTS_FILE, ANNOTATIONS_FILE, OUTPUTS_FILE, REFERENCE_OUTPUTS_FILE):
            run.artifact(judging.folder / file)
        run.table(_sample(rows), "tables/verdicts.json")
        return result


def _sample(verdicts: Path) -> dict[str, list[Any]]:
    """Show the first verdicts whole: what was asked, both answers, and what the judge made of them."""
    columns = [col.ID, col.MESSAGES, col.TEXT_CANDIDATE, col.TEXT_REFERENCE, col.CANDIDATE_FIRST, col.PREFERENCE, col.ERROR]
    table: pa.Table = read_table(verdicts, columns).slice(0, SAMPLED_ROWS)
    shown = {name: table[name].to_pylist() for name in columns}
    shown[col.MESSAGES] = [messages[-1]["content"] if messages else "" for messages in shown[col.MESSAGES]]
    return shown
