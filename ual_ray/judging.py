"""Judging as a step of a run: pairs of answers in, verdicts as rows and win rates with their intervals out.

Verdicts are kept in a store of their own, by judge, prompt and engine settings: a pair that was judged is not judged again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset

from ual_ray.config import Config
from ual_ray.errors import UserError
from ual_ray.evaluate.alpaca_eval import ANNOTATIONS_FILE, OUTPUTS_FILE, REFERENCE_OUTPUTS_FILE, export, read_model_outputs
from ual_ray.evaluate.judge_prompts import load_judge_prompts
from ual_ray.evaluate.pairs import PAIRS, QUESTION, Side, make_pairs, name_of
from ual_ray.evaluate.verdicts import VERDICTS_FILE, WIN_RATES_FILE, metrics, win_rate_line, win_rates
from ual_ray.progress import Meter, meter
from ual_ray.records import (
    BENCHMARK,
    CANDIDATE,
    CANDIDATE_FIRST,
    ERROR,
    EXTRACTED,
    ID,
    MESSAGES,
    PREDICTION,
    PREFERENCE,
    REFERENCE,
    RESULTS,
    STATUS,
    STATUS_QUARANTINED,
    TEXT_CANDIDATE,
    TEXT_REFERENCE,
    VERDICTS,
    content_digest,
    digest,
    file_digest,
    read_table,
    write_rows,
)

if TYPE_CHECKING:
    from ual_ray.steps import Place, Session
    from ual_ray.workspace import Done

PAIRS_FILE = "pairs.parquet"
TRIAL_FILE = "trial.parquet"
JUDGED = "judged"
FAILED = "failed"
SAMPLED_ROWS = 50

Row = dict[str, Any]
MakeMeter = Callable[[str, int], AbstractContextManager[Meter]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Judging:
    """Which pairs are judged (`candidate` against `reference`), where results go and where verdicts are kept.

    `make_meter` shows progress, given a name and the number of rows; `say` prints a line.
    """

    candidate: Side
    reference: Side
    folder: Path
    store: Path
    make_meter: MakeMeter
    say: Say


def judge_pairs(config: Config, judging: Judging) -> dict[str, Any]:
    """Judge all pairs that were not judged before; write verdicts.parquet, win_rates.json and AlpacaEval's files.

    A few pairs are judged first. Raises UserError when too few of their verdicts can be read, when nothing can be paired,
    and when no pair gets a verdict; what was judged is kept.
    """
    pairs = make_pairs(judging.candidate, judging.reference, config.seed, open_ended_benchmarks(config))
    complete = [pair for pair in pairs if pair[ERROR] is None]
    judged = _judge(config, judging, complete) if complete else {}
    rows = [_verdict(pair, judged) for pair in pairs]
    write_rows(rows, VERDICTS, judging.folder / VERDICTS_FILE)
    export(rows, judging.folder)
    result = win_rates(rows, config.evaluate, config.seed)
    (judging.folder / WIN_RATES_FILE).write_text(json.dumps(result, indent=2))
    return result


def judge_step(
    session: Session, candidate: Side, reference: Side, place: Place, store_place: Place, *, retry: bool = False
) -> Done:
    """Judge a candidate's answers against a reference's; `folder`/win_rates.json and `folder`/verdicts.parquet.

    Verdicts are kept at `store_place`, by a key of judge, prompt and engine settings. `retry` sends the pairs again that an
    engine failed on.
    """
    from ual_ray.workspace import DONE_FILE, run_stage, stage_digest

    config = session.config
    measuring = _measuring(config)
    store = store_place(stage_digest(measuring))
    columns = [ID, BENCHMARK, PREDICTION, EXTRACTED, REFERENCE]
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


def side(path: Path, name: str | None, folder: Path) -> Side:
    """Take answers from a Parquet file or folder of results, or from AlpacaEval's model_outputs.json, as rows in `folder`.

    Raises UserError for a file of another form.
    """
    if path.suffix != ".json":
        return Side(path, name)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / f"outputs-{file_digest(path)}.parquet"
    write_rows(read_model_outputs(path), RESULTS, results)
    return Side(results, name)


def open_ended_benchmarks(config: Config) -> list[str] | None:
    """Name the configured benchmarks whose answers a judge compares; None where none is configured (then by the rows)."""
    return sorted(name for name, item in config.evaluate.benchmarks.items() if item.kind == "open_ended") or None


def _judge(config: Config, judging: Judging, pairs: Sequence[Row]) -> dict[str, Row]:
    """Send the pairs that the store has no verdict of through the pool, a few first; return all verdicts by id."""
    from ual_ray.elicit.engines import EngineSpec
    from ual_ray.elicit.pool import Job
    from ual_ray.evaluate.judging import JudgeRows

    settings = config.judge
    model = settings.model or _no_judge()
    failed = judging.store / FAILED
    shutil.rmtree(failed, ignore_errors=True)  # the rows in it are sent again now
    failed.mkdir(parents=True)
    task = JudgeRows(model, settings.mode, settings.templates, digest(_engine_settings(config)), config.seed)
    engine = config.engine.model_copy(update={"dtype": settings.dtype})
    spec = EngineSpec(engine, model, trust_remote_code=config.trust_remote_code)
    job = Job(spec, task, VERDICTS, judging.store / JUDGED, failed)
    known = _stored(judging.store, pairs)
    trial = pairs[: settings.trial_rows]
    if len(known) < len(trial):
        one = replace(job, spec=replace(spec, config=engine.model_copy(update={"min_actors": 1, "max_actors": 1})))
        _send(judging, one, trial, TRIAL_FILE, "judge: trial")
        known = _stored(judging.store, pairs)
    _check_parse_share(config, judging, known)
    if len(known) < len(pairs):
        _send(judging, job, pairs, PAIRS_FILE, "judge")
        known = _stored(judging.store, pairs)
    return known


def _check_parse_share(config: Config, judging: Judging, known: Mapping[str, Row]) -> None:
    """Show how many of the first verdicts can be read. Raises UserError when that are too few."""
    settings, missing = config.judge, [row for row in known.values() if row[PREFERENCE] is None]
    read = len(known) - len(missing)
    judging.say(f"tried {settings.model} as a judge: {read} of {len(known)} verdicts can be read ({read / len(known):.0%})")
    if read / len(known) < settings.min_parse_share:
        reasons = Counter(row[ERROR] for row in missing)
        raise UserError(
            f"{settings.model} will not do as a judge: {len(missing)} of {len(known)} verdicts are missing",
            value="; ".join(f"{count} {reason}" for reason, count in reasons.most_common(3)),
            legal=f"a share read of at least judge.min_parse_share = {settings.min_parse_share}",
            fix="for overlong pairs raise engine.max_model_len; else try another judge, judge.mode or judge.templates",
        )


def _send(judging: Judging, job: Any, pairs: Sequence[Row], file: str, title: str) -> None:
    import ray

    from ual_ray.elicit.monitor import Limits
    from ual_ray.elicit.pool import map_rows, start_monitor

    path = judging.folder / file
    write_rows(pairs, PAIRS, path)
    monitor = start_monitor(Limits())
    try:
        with judging.make_meter(title, len(pairs)) as shown:
            map_rows(lambda: ray.data.read_parquet(str(path)), len(pairs), job, monitor, shown)
    finally:
        ray.kill(monitor)


def _stored(store: Path, pairs: Sequence[Row]) -> dict[str, Row]:
    """Read the verdicts there are on pairs, by id; those of rows that an engine failed on too, unless it did not later."""
    # A file that was being written when a run was killed may be half a file; Ray Data removes it when it starts.
    notes = (store / f"{JUDGED}.finished").glob("*.pending.parquet")
    torn = tuple(note.name.removesuffix(".pending.parquet") for note in notes)
    files = [*(store / FAILED).glob("*.parquet"), *(store / JUDGED).glob("*.parquet")]
    whole = [str(file) for file in files if not file.name.startswith(torn)]
    if not whole:
        return {}
    wanted = pyarrow.dataset.field(ID).isin([pair[ID] for pair in pairs])
    tables = [pyarrow.dataset.dataset(file, schema=VERDICTS, format="parquet").to_table(filter=wanted) for file in whole]
    return {row[ID]: row for table in tables for row in table.to_pylist()}


def _verdict(pair: Row, judged: Mapping[str, Row]) -> Row:
    """Give a pair its verdict, under the question's id and the names it has here: another candidate may have said the same."""
    if pair[ERROR] is not None:
        row = {name: pair.get(name) for name in VERDICTS.names} | {STATUS: STATUS_QUARANTINED}
    elif pair[ID] in judged:
        row = judged[pair[ID]] | {CANDIDATE: pair[CANDIDATE], REFERENCE: pair[REFERENCE]}
    else:
        raise UserError("verdicts are missing from the store", value=f"pair {pair[ID]}", fix="--force judges all pairs again")
    return row | {ID: pair[QUESTION]}


def _measuring(config: Config) -> dict[str, Any]:
    """What a verdict depends on besides the two answers."""
    from ual_ray.sources.models import model_fingerprint

    settings, local = config.judge, config.engine.kind != "openai"
    model = settings.model or _no_judge()
    return {
        "model": model_fingerprint(model) if local else model,
        "prompts": load_judge_prompts(settings.templates).hash,
        "mode": settings.mode,
        "engine": _engine_settings(config),
        "seed": config.seed,
    }


def _engine_settings(config: Config) -> dict[str, Any]:
    engine = config.engine
    endpoint = engine.endpoint.model_dump(include={"url", "logprobs"}) if engine.kind == "openai" else None
    return engine.model_dump(include={"kind", "max_model_len", "arguments"}) | {
        "dtype": config.judge.dtype,
        "endpoint": endpoint,
    }


def _no_judge() -> str:
    raise UserError("no judge is configured", legal="judge.model: a hub name, a directory, 'demo', or the server's name")


def _make_meter(session: Session, name: str, total: int) -> AbstractContextManager[Meter]:
    return meter(session.console, name, total, "rows")


def _judge_and_log(session: Session, judging: Judging, title: str) -> dict[str, Any]:
    from ual_ray.settings import redact_values
    from ual_ray.steps import ARM_TAG, LINEAGE_PROMPTS, STAGE_TAG

    config = session.config
    names = {"candidate": name_of(judging.candidate), "reference": name_of(judging.reference)}
    tags = {STAGE_TAG: "judge", ARM_TAG: names["candidate"], "ual_ray.judge": str(config.judge.model)}
    with session.tracked(f"{title} against {names['reference']}", judging.folder, tags) as run:
        run.params(redact_values({"judge": config.judge.model_dump() | names, "engine": config.engine.model_dump()}))
        result = judge_pairs(config, judging)
        rows = judging.folder / VERDICTS_FILE
        run.dataset("verdicts", rows, content_digest(rows, [ID, PREFERENCE]), result["rows"], "judging")
        run.metrics(metrics(result))
        run.tags({LINEAGE_PROMPTS: ", ".join(result["prompt_hashes"])})
        for file in (WIN_RATES_FILE, VERDICTS_FILE, ANNOTATIONS_FILE, OUTPUTS_FILE, REFERENCE_OUTPUTS_FILE):
            run.artifact(judging.folder / file)
        run.table(_sample(rows), "tables/verdicts.json")
        return result


def _sample(verdicts: Path) -> dict[str, list[Any]]:
    """Show the first verdicts whole: what was asked, both answers, and what the judge made of them."""
    columns = [ID, MESSAGES, TEXT_CANDIDATE, TEXT_REFERENCE, CANDIDATE_FIRST, PREFERENCE, ERROR]
    table: pa.Table = read_table(verdicts, columns).slice(0, SAMPLED_ROWS)
    shown = {name: table[name].to_pylist() for name in columns}
    shown[MESSAGES] = [messages[-1]["content"] if messages else "" for messages in shown[MESSAGES]]
    return shown
