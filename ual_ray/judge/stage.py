"""Judging: pairs of answers in, verdicts as rows and win rates with their intervals out.

Verdicts are kept in a row store per judge, prompt and engine settings: a pair that has a verdict is not judged again. A pair
is shown in both orders unless judge.orders=random; the verdicts of every judge are kept apart.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from ual_ray import columns as col
from ual_ray.benchmarks.open_ended import OpenEnded
from ual_ray.config import Config, EngineConfig
from ual_ray.config.files import write_record
from ual_ray.config.keys import affecting, engine_settings
from ual_ray.engines import EngineSpec
from ual_ray.engines.pool import PoolJob, map_file
from ual_ray.engines.reading import READING_VERSION
from ual_ray.engines.row_store import RowStore
from ual_ray.errors import UserError
from ual_ray.judge.alpaca_eval import export, read_model_outputs
from ual_ray.judge.pairs import (
    PAIRS,
    QUESTION,
    AnswerSet,
    in_other_order,
    load_judge_prompts,
    longest_context,
    make_pairs,
    needed_context,
)
from ual_ray.judge.task import JudgeRows
from ual_ray.judge.verdicts import VERDICTS_FILE, by_question, each_once, figures_of_judges
from ual_ray.models.chat import load_renderer
from ual_ray.models.resolve import model_fingerprint, resolve_model
from ual_ray.parquet import file_digest, write_rows
from ual_ray.run.progress import Meter

PAIRS_FILE = "pairs.parquet"
SAMPLED_ROWS = 50

Row = dict[str, Any]
MakeMeter = Callable[[str, int], AbstractContextManager[Meter]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Judging:
    """Which pairs are judged (`candidate` against `reference`), where results go, and every judge's row store of verdicts.

    `make_meter` shows progress, given a name and the number of rows; `say` is called with lines to print.
    """

    candidate: AnswerSet
    reference: AnswerSet
    folder: Path
    stores: Mapping[str, Path]
    make_meter: MakeMeter
    say: Say


def judge_pairs(config: Config, judging: Judging) -> dict[str, Any]:
    """Judge all pairs that the store has no verdict on; write verdicts.parquet, win_rates.json and AlpacaEval's files.

    AlpacaEval's files hold the deciding judge's verdicts, one per question. `judge.trial_rows` pairs are judged first. Raises
    UserError when too few of their verdicts can be parsed, when nothing can be paired, and when no pair gets a verdict;
    verdicts are kept.
    """
    pairs = shown_pairs(config, judging)
    complete = [pair for pair in pairs if pair[col.ERROR] is None]
    rows: dict[str, list[Row]] = {}
    for model in config.judge.models or _no_judge():
        judged = _judge(config, judging, model, complete) if complete else {}
        rows[model] = [_verdict(pair, judged, model) for pair in pairs]
    write_rows([row for own in rows.values() for row in own], col.VERDICTS, judging.folder / VERDICTS_FILE)
    # In the order in which rates are computed, by which AlpacaEval's package finds the same ones.
    export(sorted(each_once(by_question(next(iter(rows.values())))), key=itemgetter(col.ID)), judging.folder)
    result = figures_of_judges(rows, config.evaluate, config.seed)
    write_record(judging.folder / col.WIN_RATES_FILE, result)
    return result


def shown_pairs(config: Config, judging: Judging) -> list[Row]:
    """Make the pairs in every order in which they are shown. Raises UserError when nothing can be paired."""
    pairs = make_pairs(judging.candidate, judging.reference, config.seed, open_ended_benchmarks(config))
    return [shown for pair in pairs for shown in (pair, in_other_order(pair))] if config.judge.orders == "both" else pairs


def read_answers(path: Path, name: str | None, folder: Path) -> AnswerSet:
    """Read answers: a Parquet file or folder of results, or AlpacaEval's model_outputs.json, converted to rows in `folder`.

    Raises UserError for a file in another format.
    """
    if path.suffix != ".json":
        return AnswerSet(path, name)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / f"outputs-{file_digest(path)}.parquet"
    write_rows(read_model_outputs(path), col.RESULTS, results)
    return AnswerSet(results, name)


def open_ended_benchmarks(config: Config) -> list[str] | None:
    """Name the configured benchmarks whose answers a judge compares; None = none is configured, and the rows decide."""
    return sorted(name for name, item in config.evaluate.benchmarks.items() if item.kind == OpenEnded.kind) or None


def _judge(config: Config, judging: Judging, model: str, pairs: Sequence[Row]) -> dict[str, Row]:
    """Have one judge judge the pairs that it has no verdict on, a few with one actor first; return all its verdicts by id."""
    settings, engine = config.judge, config.engine.model_copy(update={"dtype": config.judge.dtype})
    store = RowStore(judging.stores[model], col.VERDICTS)
    store.retry_failed()
    task = JudgeRows(
        model,
        settings.mode,
        settings.templates,
        col.digest(_engine_settings(config)),
        config.seed,
        settings.reply_tokens,
        settings.thinking_tokens,
        settings.min_choice_mass,
    )
    engine = _with_context(config, engine, model, task, pairs, judging.say)
    job = PoolJob(EngineSpec(engine, model, trust_remote_code=config.trust_remote_code), task, store)
    known = _by_id(store.select(pa.chunked_array([[pair[col.ID] for pair in pairs]], pa.string())))
    trial = pairs[: settings.trial_rows * (2 if settings.orders == "both" else 1)]
    if len(known) < len(trial):
        one_actor = engine.model_copy(update={"min_actors": 1, "max_actors": 1})
        known = _send(judging, replace(job, spec=replace(job.spec, config=one_actor)), trial, "judge: trial")
    _check_parse_share(config, judging, model, known)
    return _send(judging, job, pairs, "judge") if len(known) < len(pairs) else known


def _with_context(
    config: Config, engine: EngineConfig, model: str, task: JudgeRows, pairs: Sequence[Row], say: Say
) -> EngineConfig:
    """Raise engine.max_model_len to what the longest pair needs, as far as the judge was made for it."""
    if engine.kind != "vllm":
        return engine
    path, trusted = resolve_model(model), config.trust_remote_code
    renderer = load_renderer(path, trusted, engine.chat_template_kwargs)
    needed = needed_context(task.prompts(pairs), task.longest_reply, renderer, thinking=task.thinking_tokens > 0)
    length = min(needed, longest_context(path, trusted) or needed)
    if length <= engine.max_model_len:
        return engine
    say(f"context of {length:,} tokens for the longest pair, above engine.max_model_len = {engine.max_model_len:,}")
    return engine.model_copy(update={"max_model_len": length})


def _check_parse_share(config: Config, judging: Judging, model: str, known: Mapping[str, Row]) -> None:
    """Print how many of the first verdicts can be parsed. Raises UserError when these are too few."""
    settings, missing = config.judge, [row for row in known.values() if row[col.PREFERENCE] is None]
    read = len(known) - len(missing)
    judging.say(f"tried {model} as judge: {read} of {len(known)} verdicts can be parsed ({read / len(known):.0%})")
    if read / len(known) < settings.min_parse_share:
        reasons = Counter(row[col.ERROR] for row in missing)
        raise UserError(
            f"{model} is unusable as judge: {len(missing)} of {len(known)} verdicts are missing",
            got="; ".join(f"{count} {reason}" for reason, count in reasons.most_common(3)),
            expected=f"a parsed share of at least judge.min_parse_share = {settings.min_parse_share}",
            fix="for overlong pairs raise engine.max_model_len; otherwise use another judge, judge.mode or judge.templates",
        )


def _send(judging: Judging, job: PoolJob, pairs: Sequence[Row], title: str) -> dict[str, Row]:
    """Send pairs through the pool; return their verdicts by id."""
    path = judging.folder / PAIRS_FILE
    write_rows(pairs, PAIRS, path)
    with judging.make_meter(title, len(pairs)) as shown:
        return _by_id(map_file(path, job, shown))


def _by_id(verdicts: Iterable[pa.Table]) -> dict[str, Row]:
    return {row[col.ID]: row for table in verdicts for row in table.to_pylist()}


def _verdict(pair: Row, judged: Mapping[str, Row], model: str) -> Row:
    """Return a pair's row, with the id of its question and its names: another candidate may have given the same answer."""
    if pair[col.ERROR] is not None:
        row = {name: pair.get(name) for name in col.VERDICTS.names} | {col.STATUS: col.STATUS_QUARANTINED}
    else:
        row = judged[pair[col.ID]] | {col.CANDIDATE: pair[col.CANDIDATE], col.REFERENCE: pair[col.REFERENCE]}
    return row | {col.ID: pair[QUESTION], col.JUDGE: model}


def measuring(config: Config, model: str) -> dict[str, Any]:
    """Return what a verdict of one judge depends on apart from the two answers."""
    settings, local = config.judge, not config.engine.remote
    return {
        "model": model_fingerprint(model) if local else model,
        "prompts": load_judge_prompts(settings.templates).hash,
        "judge": affecting(settings, "verdicts"),
        "engine": _engine_settings(config),
        "seed": config.seed,
        "reading": READING_VERSION if settings.mode == "sampled" or settings.thinking_tokens else None,
    }


def _engine_settings(config: Config) -> dict[str, Any]:
    return engine_settings(config.engine, "verdicts") | {"dtype": config.judge.dtype}


def _no_judge() -> NoReturn:
    raise UserError(
        "no judge is configured",
        expected="judge.model: a hub name, a directory, 'demo', or the server's name",
        fix="set judge.model=NAME",
    )
