"""Stage 1: any data set in, canonical rows and scored rows out.

Two rows are sent to a server before all others: it states what it refuses while nothing is paid for yet.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

import pyarrow.compute
import ray

from ual_ray import columns as col
from ual_ray.columns import Messages
from ual_ray.config import Config
from ual_ray.data.canonical import QUARANTINE_FOLDER, ReadOptions, check_splits
from ual_ray.data.dedup import Deduplicator
from ual_ray.data.peek import DataPeek
from ual_ray.elicit.assemble import Assembly
from ual_ray.elicit.estimators import make_estimators
from ual_ray.elicit.known import Shared
from ual_ray.elicit.replies import Known, answer, asked_with, no_replies, request_key
from ual_ray.elicit.scoring import ScoreRows, needed
from ual_ray.engines import Engine, EngineSpec, make_engine
from ual_ray.engines.monitor import Limits
from ual_ray.engines.pool import PoolJob, map_rows, pool_size
from ual_ray.engines.requests import Failure
from ual_ray.engines.row_store import RowStore
from ual_ray.errors import UserError
from ual_ray.formatting import plural
from ual_ray.run.machines import here, on_this_node, read_source, row_source
from ual_ray.run.progress import Meter

# What to do about the commonest kind of rows without a score.
REMEDIES = {
    "overlong": "raise engine.max_model_len, or set engine.overlong=truncate",
    "cut": "raise elicit.reply_tokens, elicit.max_new_tokens or elicit.thinking_tokens, whichever it names",
    "unparsable": "give a model that thinks elicit.thinking_tokens, or turn its thinking off; else change elicit.templates",
    "mass": "the elicitor gives other replies than it is asked for: take another one, or elicit.mode=sampled",
}
OTHERWISE = "correct what it names, and run the command again with --retry-failed"
TRIAL_ROWS = 2
# What to set, by a word of the server's refusal.
ADVICE = {
    **dict.fromkeys(("quota", "billing"), "raise the quota at the server, or wait until it allows requests again"),
    "rate limit": "wait, and set engine.endpoint.requests_per_minute or tokens_per_minute to what the server allows",
    **dict.fromkeys(("logprobs", "log-probabilities"), "set engine.endpoint.logprobs=false elicit.mode=sampled"),
    "max_completion_tokens": "set engine.endpoint.max_tokens_field=max_completion_tokens",
    "temperature": "set engine.endpoint.temperature=null",
    "thinking": "set elicit.thinking_tokens, engine.endpoint.chat_template_kwargs={enable_thinking: false}, "
    "or engine.endpoint.extra_body={enable_thinking: false}",
    "effort": "set engine.endpoint.reasoning_effort",
    "stream": "use another model or server: replies in streams are not read",
}
OTHER_ADVICE = "set what the server asks for in engine.endpoint.extra_body"


def elicit(
    config: Config, seen: DataPeek, folder: Path, store_folder: Path, meter: Meter, asked: str, known: Known = no_replies
) -> dict[str, Any]:
    """Score the rows of the configured splits into `folder`/scored; `folder` gets canonical rows and quarantine too.

    Measurements are kept in the row store at `store_folder`; rows that it has finished are not measured again; nor are
    requests whose reply is `known`. asked: whom the run asks (`known.asked_of`). Returns counts and means. Raises UserError
    when too many rows are bad or without a score; finished rows are kept.
    """
    settings = config.elicit
    for written in (folder / col.ROWS_FOLDER, folder / QUARANTINE_FOLDER):
        shutil.rmtree(written, ignore_errors=True)
        written.mkdir(parents=True)
    store = RowStore(store_folder, col.measured_schema(settings.estimators))
    spec = EngineSpec(config.engine, settings.model, settings.adapter, config.trust_remote_code)
    late = isinstance(known, Shared) and known.any()
    job = PoolJob(spec, ScoreRows(settings, config.engine.overlong, config.seed, asked, known), store, late)
    limits = Limits(config.data.max_bad_share, settings.max_quarantine_share)
    # The status of a stored row is about the uncertainty that was configured when it was measured.
    failed = reduce(or_, (pyarrow.compute.field(col.uncertainty_column(name)).is_null() for name in needed(settings)))
    claims = on_this_node(Deduplicator)
    source = partial(row_source, seen.pieces, ReadOptions(config.data, seen.format_name, folder), settings.splits, claims)
    started = time.monotonic()
    expected = expected_rows(config, seen)
    map_rows(lambda monitor: read_source(source(monitor), len(seen.pieces)), expected, job, meter, limits, failed)
    scoring_seconds, rate = time.monotonic() - started, meter.rate()
    duplicates = ray.get(claims.duplicates.remote())
    ray.kill(claims)
    figures = ray.get(ray.remote(Assembly.run).options(**here()).remote(Assembly(folder, store, settings)))
    check(config, figures, folder)
    return figures | {
        col.STORE: os.path.relpath(store_folder, folder),
        "format": seen.format_name,
        "duplicates": duplicates,
        "scoring_seconds": scoring_seconds,
        "rows_per_second": rate,
        "sent_rows": round(meter.rate_done),
        "actors": config.engine.max_actors if expected is None else pool_size(config.engine, expected),
    }


def expected_rows(config: Config, seen: DataPeek) -> int | None:
    """Estimate how many rows will be scored, from the shares of the splits; None when the size of the data is unknown."""
    total = seen.estimated_rows
    shares = config.data.split_shares()
    return None if total is None else max(1, round(total * sum(shares[split] for split in config.elicit.splits)))


def check(config: Config, figures: dict[str, Any], folder: Path) -> None:
    """Raise UserError when too many rows are bad or without a score, or a split that later stages need has none."""
    data, settings = config.data, config.elicit
    if figures["bad"] / max(1, figures["bad"] + figures["total_rows"]) > data.max_bad_share:
        raise UserError(
            f"{figures['bad']} of {figures['bad'] + figures['total_rows']} rows of {data.path} are bad",
            got=f"{figures['bad_reasons']}; the rows are in {folder / QUARANTINE_FOLDER}",
            expected=f"a share of at most data.max_bad_share = {data.max_bad_share}",
            fix="fix the rows, or raise data.max_bad_share to leave them out",
        )
    check_splits({split for split, rows in figures["splits"].items() if rows}, figures["total_rows"], data)
    commonest = max(figures["reasons"], key=figures["reasons"].get, default="")
    if figures["quarantined"] / max(1, figures["rows"]) > settings.max_quarantine_share:
        raise UserError(
            f"{figures['quarantined']} of {figures['rows']} rows got no score",
            got=f"{figures['reasons']}, most often {figures.get('commonest_error')!r}; "
            f"what was scored is in {folder / col.SCORED_FOLDER}",
            expected=f"a share of at most elicit.max_quarantine_share = {settings.max_quarantine_share}",
            fix=f"see the column 'error'; {REMEDIES.get(commonest, OTHERWISE)}",
        )


def try_server(config: Config, rows: Sequence[Messages], asked: str = "", known: Known = no_replies) -> list[str]:
    """Send the rows, but for `known` replies, and return notes on what was adapted and what has no score.

    Raises UserError, in the server's words, when it answers no request about these rows.
    """
    spec = EngineSpec(config.engine.model_copy(update={"max_actors": 1, "min_actors": 1}), config.elicit.model)
    engine = make_engine(spec)
    try:
        return [*_unscored(config, rows, engine, asked, known), *getattr(engine, "adaptations", [])]
    finally:
        if (close := getattr(engine, "close", None)) is not None:
            close()


def _unscored(config: Config, rows: Sequence[Messages], engine: Engine, asked: str, known: Known) -> list[str]:
    estimators = {
        name: made for name, made in make_estimators(config.elicit, config.seed).items() if name in needed(config.elicit)
    }
    wanted = [(estimator, messages, list(estimator.asked(messages))) for messages in rows for estimator in estimators.values()]
    whom = asked_with(asked, engine.template_hash)
    results = answer(engine, {request: request_key(whom, request) for *_, own in wanted for request in own}, known)
    refused = [
        result.reason for result in results.values() if isinstance(result, Failure) and result.reason.startswith("engine:")
    ]
    if refused and len(refused) == len(results):
        words = Counter(refused).most_common(1)[0][0]
        advice = next((text for word, text in ADVICE.items() if word in words.lower()), OTHER_ADVICE)
        raise UserError(
            f"{config.elicit.model} answers none of {plural(len(results), 'request')} about {plural(len(rows), 'row')}",
            got=words,
            fix=advice,
        )
    estimates = [estimator.estimate([results[request] for request in own], messages) for estimator, messages, own in wanted]
    failed = [result.reason for result in results.values() if isinstance(result, Failure)]
    reasons = Counter(
        [*failed, *(estimate.reason for estimate in estimates if estimate.reason and estimate.reason not in failed)]
    )
    return [f"{plural(len(rows), 'row')} tried: {count} without a score, {reason}" for reason, count in reasons.most_common(2)]
