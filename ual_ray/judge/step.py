"""Judging as a step of a run, and a sample of the judges' calls as traces, made again from the pairs and stored verdicts."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ual_ray import columns as col
from ual_ray.config import Config
from ual_ray.config.keys import affecting
from ual_ray.config.redact import redact_values
from ual_ray.engines.traces import Trace, call, sample
from ual_ray.judge.alpaca_eval import ANNOTATIONS_FILE, OUTPUTS_FILE, REFERENCE_OUTPUTS_FILE
from ual_ray.judge.pairs import PAIRING_VERSION, QUESTION, AnswerSet, load_judge_prompts, name_of
from ual_ray.judge.stage import SAMPLED_ROWS, Judging, judge_pairs, measuring, open_ended_benchmarks, shown_pairs
from ual_ray.judge.task import JudgeRows
from ual_ray.judge.verdicts import VERDICTS_FILE, metrics, win_rate_line
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import content_digest, read_table
from ual_ray.run.progress import meter
from ual_ray.run.stage_cache import Done
from ual_ray.run.step import ARM_TAG, LINEAGE_PROMPTS, Place, Run, Session, Step, run_logged_step

JUDGE_TAG = "ual_ray.judge"
# The metrics that models are ranked by: win rates of the deciding judge, without their intervals and counts.
RANKED = re.compile(r"(length_controlled_)?win_rate\.(?!.*\.(ci_low|ci_high|n)$)")
READ = (col.ID, col.CANDIDATE_FIRST, col.JUDGE, col.PREFERENCE, col.MASS, col.FINISH, col.STATUS, col.ERROR)


def judge_step(
    session: Session,
    candidate: AnswerSet,
    reference: AnswerSet,
    place: Place,
    *,
    model: str | None = None,
    retry: bool = False,
) -> Done:
    """Judge a candidate's answers against a reference's; `folder`/win_rates.json and `folder`/verdicts.parquet.

    Verdicts are kept in the place's store, by a key of judge, prompt and engine settings: one that is added is asked alone.
    model: the candidate's, whose metrics the win rates are in MLflow too. `retry` sends the pairs again that failed with an
    engine error.
    """
    config = session.config
    judges = {model: measuring(config, model) for model in config.judge.models}
    stores = {model: place.store_folder(what) for model, what in judges.items()}
    inputs: dict[str, Any] = {
        "candidate": content_digest(candidate.results, [*col.JUDGED]) if candidate.results else None,
        "reference": content_digest(reference.results, [*col.JUDGED]) if reference.results else None,
        "names": [name_of(candidate), name_of(reference)],
        "pairing": PAIRING_VERSION,
        "benchmarks": open_ended_benchmarks(config),
        "figures": affecting(config.evaluate, "win_rates") | affecting(config.judge, "win_rates"),
        "measuring": list(judges.values()),
    }
    tags = {ARM_TAG: name_of(candidate), JUDGE_TAG: ", ".join(judges)}
    step = Step(
        "judge", f"judge {name_of(candidate)} - {name_of(reference)}", inputs, place, tags, tuple(stores.values()), retry
    )

    def work(run: Run, folder: Path) -> dict[str, Any]:
        make_meter = partial(meter, session.console, unit="rows")
        judging = Judging(candidate, reference, folder, stores, make_meter, partial(session.say, step.title))
        name = name_of(candidate)
        logged = session.logged_model(model, name, col.digest(model_fingerprint(model))) if model else None
        return _judge_and_log(config, run, judging, logged)

    return run_logged_step(session, step, work, win_rate_line)


def _judge_and_log(config: Config, run: Run, judging: Judging, model: Mapping[str, str] | None) -> dict[str, Any]:
    names = {"candidate": name_of(judging.candidate), "reference": name_of(judging.reference)}
    run.params(redact_values({"judge": config.judge.model_dump() | names, "engine": config.engine.model_dump()}))
    run.prompt("judge.comparison", load_judge_prompts(config.judge.templates).template)
    result = judge_pairs(config, judging)
    rows = judging.folder / VERDICTS_FILE
    judged = judged_set(rows, names["reference"])
    run.dataset(judged[0], rows, judged[1], result["rows"], "judging")
    named = metrics(result)
    rates = {key: value for key, value in named.items() if RANKED.match(key)}
    run.metrics(rates, model=model, dataset=judged)
    run.metrics({key: value for key, value in named.items() if key not in rates})
    run.tags({LINEAGE_PROMPTS: ", ".join(result["prompt_hashes"])})
    for file in (col.WIN_RATES_FILE, VERDICTS_FILE, ANNOTATIONS_FILE, OUTPUTS_FILE, REFERENCE_OUTPUTS_FILE):
        run.artifact(judging.folder / file)
    if config.tracking.traces:
        run.traces(lambda: sampled_traces(config, judging))
    run.table(_sample(rows), "tables/verdicts.json")
    return result


def judged_set(verdicts: Path, reference: str) -> tuple[str, str]:
    """Return name and digest of what was judged: the questions, which all candidates share, so that MLflow ranks them."""
    questions = sorted({*read_table(verdicts, [col.ID])[col.ID].to_pylist()})
    return f"questions judged against {reference}", col.digest(questions)


def _sample(verdicts: Path) -> dict[str, list[Any]]:
    """Print the first verdicts in full: the question, both answers, and the judge's preference."""
    columns = [col.ID, col.MESSAGES, col.TEXT_CANDIDATE, col.TEXT_REFERENCE, col.CANDIDATE_FIRST, col.PREFERENCE, col.ERROR]
    columns.append(col.JUDGE)
    table: pa.Table = read_table(verdicts, columns).slice(0, SAMPLED_ROWS)
    shown = {name: table[name].to_pylist() for name in columns}
    shown[col.MESSAGES] = [messages[-1]["content"] if messages else "" for messages in shown[col.MESSAGES]]
    return shown


def sampled_traces(config: Config, judging: Judging) -> list[Trace]:
    """Make a trace of each of `tracking.traces` verdicts, with the prompt that asked for it."""
    pairs = {(pair[QUESTION], pair[col.CANDIDATE_FIRST]): pair for pair in shown_pairs(config, judging)}
    verdicts = {
        col.digest([row[col.ID], row[col.CANDIDATE_FIRST], row[col.JUDGE]]): row
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
