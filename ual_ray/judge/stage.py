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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.dataset

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import Config
from ual_ray.config.keys import engine_settings
from ual_ray.errors import UserError
from ual_ray.judge.alpaca_eval import export, read_model_outputs
from ual_ray.judge.pairs import PAIRS, QUESTION, Side, make_pairs
from ual_ray.judge.prompts import load_judge_prompts
from ual_ray.judge.verdicts import VERDICTS_FILE, win_rates
from ual_ray.parquet import file_digest, write_rows
from ual_ray.run.progress import Meter

if TYPE_CHECKING:
    pass

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
    complete = [pair for pair in pairs if pair[col.ERROR] is None]
    judged = _judge(config, judging, complete) if complete else {}
    rows = [_verdict(pair, judged) for pair in pairs]
    write_rows(rows, col.VERDICTS, judging.folder / VERDICTS_FILE)
    export(rows, judging.folder)
    result = win_rates(rows, config.evaluate, config.seed)
    (judging.folder / col.WIN_RATES_FILE).write_text(json.dumps(result, indent=2))
    return result


def side(path: Path, name: str | None, folder: Path) -> Side:
    """Take answers from a Parquet file or folder of results, or from AlpacaEval's model_outputs.json, as rows in `folder`.

    Raises UserError for a file of another form.
    """
    if path.suffix != ".json":
        return Side(path, name)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / f"outputs-{file_digest(path)}.parquet"
    write_rows(read_model_outputs(path), col.RESULTS, results)
    return Side(results, name)


def open_ended_benchmarks(config: Config) -> list[str] | None:
    """Name the configured benchmarks whose answers a judge compares; None where none is configured (then by the rows)."""
    return sorted(name for name, item in config.evaluate.benchmarks.items() if item.kind == "open_ended") or None


def _judge(config: Config, judging: Judging, pairs: Sequence[Row]) -> dict[str, Row]:
    """Send the pairs that the store has no verdict of through the pool, a few first; return all verdicts by id."""
    from ual_ray.engines import EngineSpec
    from ual_ray.engines.pool import Job
    from ual_ray.judge.task import JudgeRows

    settings = config.judge
    model = settings.model or _no_judge()
    failed = judging.store / FAILED
    shutil.rmtree(failed, ignore_errors=True)  # the rows in it are sent again now
    failed.mkdir(parents=True)
    task = JudgeRows(model, settings.mode, settings.templates, digest(_engine_settings(config)), config.seed)
    engine = config.engine.model_copy(update={"dtype": settings.dtype})
    spec = EngineSpec(engine, model, trust_remote_code=config.trust_remote_code)
    job = Job(spec, task, col.VERDICTS, judging.store / JUDGED, failed)
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
    settings, missing = config.judge, [row for row in known.values() if row[col.PREFERENCE] is None]
    read = len(known) - len(missing)
    judging.say(f"tried {settings.model} as a judge: {read} of {len(known)} verdicts can be read ({read / len(known):.0%})")
    if read / len(known) < settings.min_parse_share:
        reasons = Counter(row[col.ERROR] for row in missing)
        raise UserError(
            f"{settings.model} will not do as a judge: {len(missing)} of {len(known)} verdicts are missing",
            got="; ".join(f"{count} {reason}" for reason, count in reasons.most_common(3)),
            expected=f"a share read of at least judge.min_parse_share = {settings.min_parse_share}",
            fix="for overlong pairs raise engine.max_model_len; else try another judge, judge.mode or judge.templates",
        )


def _send(judging: Judging, job: Any, pairs: Sequence[Row], file: str, title: str) -> None:
    import ray

    from ual_ray.engines.monitor import Limits
    from ual_ray.engines.pool import map_rows, start_monitor

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
    wanted = pyarrow.dataset.field(col.ID).isin([pair[col.ID] for pair in pairs])
    tables = [pyarrow.dataset.dataset(file, schema=col.VERDICTS, format="parquet").to_table(filter=wanted) for file in whole]
    return {row[col.ID]: row for table in tables for row in table.to_pylist()}


def _verdict(pair: Row, judged: Mapping[str, Row]) -> Row:
    """Give a pair its verdict, under the question's id and the names it has here: another candidate may have said the same."""
    if pair[col.ERROR] is not None:
        row = {name: pair.get(name) for name in col.VERDICTS.names} | {col.STATUS: col.STATUS_QUARANTINED}
    elif pair[col.ID] in judged:
        row = judged[pair[col.ID]] | {col.CANDIDATE: pair[col.CANDIDATE], col.REFERENCE: pair[col.REFERENCE]}
    else:
        raise UserError("verdicts are missing from the store", got=f"pair {pair[col.ID]}", fix="--force judges all pairs again")
    return row | {col.ID: pair[QUESTION]}


def _measuring(config: Config) -> dict[str, Any]:
    """What a verdict depends on besides the two answers."""
    from ual_ray.models.resolve import model_fingerprint

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
    return engine_settings(config.engine, "verdicts") | {"dtype": config.judge.dtype}


def _no_judge() -> str:
    raise UserError("no judge is configured", expected="judge.model: a hub name, a directory, 'demo', or the server's name")
