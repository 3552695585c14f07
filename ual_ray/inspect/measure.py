"""Metrics of scored rows, to check before training on them; no drawing.

Reads the Parquet folder column by column, so that a million rows fit; messages are read only of the displayed rows,
and the elicitor's replies about them from the store that the rows were scored into.
Every value of an Inspection is a plain Python value; unknown or undefined values are None, never 0 or NaN.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from ual_ray import columns as col
from ual_ray.config import ENSEMBLE, EngineConfig
from ual_ray.config.files import read_json
from ual_ray.data.labels import match_labels, read_labels
from ual_ray.engines.requests import count_cut
from ual_ray.errors import UserError
from ual_ray.formatting import number, shorten, shorten_message
from ual_ray.inspect.columns import Columns
from ual_ray.inspect.summary import Agreement, Cost, Inspection, Labelled, Reply, Score, SelfCheckResult, Shown, warnings_of
from ual_ray.parquet import RowFiles
from ual_ray.run.stage_cache import DONE_FILE
from ual_ray.stats import score_quality as quality
from ual_ray.stats.score_quality import Numbers, median

EXTREME_ROWS = 10
# Only the largest sources get charts and displayed rows, to limit the size of the page; the others are counted.
MAX_SOURCES = 12
MAX_REASONS = 12
MAX_MESSAGES = 4
MAX_CHARACTERS = 700
# Reasons of failure for which a row never got a reply; it does not count in the parse rate.
UNASKED = ("overlong", "engine", "template")
NO_SOURCE = "(none)"
logger = logging.getLogger(__name__)
SCHEMA = pa.schema(col.fields(col.ID, col.REPLIES))
MAX_REPLIES = 8
LONGEST_REPLY = 300
# Of a long scale the likeliest are enough.
MAX_CHOICES = 10


def inspect(scored: Path, labels: Path | None = None, engine: EngineConfig | None = None) -> Inspection:
    """Inspect scored rows and the labels of some of them; `engine` has the prices, if any.

    Raises UserError when there are no rows, or no label matches a row.
    """
    verdicts = read_labels(labels) if labels is not None else None
    columns = Columns(scored)
    sources, codes = _sources(columns)
    shown = dict(list(sources.items())[:MAX_SOURCES])
    groups = {name: codes == place for place, name in enumerate(shown)}
    names = [col.UNCERTAINTY, *columns.estimators, *([ENSEMBLE] if columns.has_ensemble else [])]
    asked = ~np.isin(_reasons(columns), UNASKED)
    statuses = columns.counts(col.STATUS)
    quarantined = statuses.get(col.STATUS_QUARANTINED, 0)
    correct = _match(columns, verdicts) if verdicts is not None else None
    most, least = _extremes(columns, groups, names, scored)
    pairs = {pair: quality.spearman(*map(columns.score, pair)) for pair in combinations(names[1:], 2)}
    inspection = Inspection(
        path=str(scored),
        rows=columns.rows,
        sources=sources,
        shown_sources=list(shown),
        statuses=statuses,
        quarantined=quarantined,
        quarantined_share=quarantined / columns.rows,
        reasons=_count_reasons(columns),
        truncated=columns.total(col.TRUNCATED),
        elicitors=sorted(columns.counts(col.ELICITOR)),
        prompt_hashes=sorted(columns.counts(col.PROMPT_HASH)),
        estimators=columns.estimators,
        score_of=_score_of(columns),
        scores={name: _score(columns, name, groups, asked) for name in names},
        agreement=[Agreement(*pair, found.spearman, found.n) for pair, found in pairs.items()],
        most_uncertain=most,
        least_uncertain=least,
        cost=_cost(columns, scored, engine),
        labelled=None
        if correct is None
        else Labelled(str(labels), len(verdicts or {}), int(np.isfinite(correct).sum()), int((correct == 0).sum())),
        self_check=_self_check(scored.resolve().parent / col.SELF_CHECK_FILE),
        quality={} if correct is None else {name: quality.against_labels(columns.score(name), correct) for name in names},
    )
    inspection.warnings.extend(warnings_of(inspection))
    return inspection


def _sources(columns: Columns) -> tuple[dict[str, int], NDArray[np.int64]]:
    """Count rows by source, the largest first, and return for every row the index of its source in that order."""
    values = columns.arrow(col.SOURCE).cast(pa.string()).fill_null(NO_SOURCE)
    counts = {item["values"]: item["counts"] for item in values.value_counts().to_pylist()}
    sources = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return sources, pa.compute.index_in(values, value_set=pa.array(list(sources), pa.string())).to_numpy()


def _reasons(columns: Columns) -> NDArray[Any]:
    """Return the kind of every row's error, the text before the first colon; empty without an error."""
    if col.ERROR not in columns:
        return np.full(columns.rows, "")
    texts = columns.arrow(col.ERROR).cast(pa.string()).fill_null("")
    return pa.compute.replace_substring_regex(texts, r"(?s):.*", "").to_numpy()


def _count_reasons(columns: Columns) -> dict[str, int]:
    """Count the quarantined rows by reason, most frequent first."""
    if col.STATUS not in columns:
        return {}
    quarantined = pa.compute.equal(columns.arrow(col.STATUS).fill_null(""), col.STATUS_QUARANTINED).to_numpy()
    kinds, counts = np.unique(_reasons(columns)[quarantined].astype(str), return_counts=True)
    named = [(str(kind) or "unknown", int(count)) for kind, count in zip(kinds, counts, strict=True)]
    return {shorten(kind, 80): count for kind, count in sorted(named, key=lambda item: (-item[1], item[0]))[:MAX_REASONS]}


def _score_of(columns: Columns) -> str | None:
    """Find the column that the uncertainty was copied from: the one that equals it in every row that has one."""
    score = columns.score(col.UNCERTAINTY)
    there = np.isfinite(score)
    names = [*columns.estimators, *([ENSEMBLE] if columns.has_ensemble else [])]
    # A quarantined row has no uncertainty but may have a value of the estimator.
    equal = (name for name in names if there.any() and np.array_equal(score[there], columns.score(name)[there]))
    return next(equal, None)


def _score(columns: Columns, name: str, groups: Mapping[str, NDArray[np.bool_]], asked: NDArray[np.bool_]) -> Score:
    values = columns.score(name)
    there = np.isfinite(values)
    measured = _score_of(columns) if name == col.UNCERTAINTY else name
    again = columns.numbers(col.retest_column(measured)) if measured in columns.estimators else None
    finish = col.finish_column(name)
    cut, replies = count_cut(columns.arrow(finish)) if finish in columns else (0, 0)
    # A value shows that this reply was parsed, even if the row has an error from another estimator.
    replied = asked | there
    return Score(
        missing=int((~there).sum()),
        null_rate=float((~there).mean()),
        parse_rate=float(there[replied].mean()) if name in columns.estimators and replied.any() else None,
        distribution=quality.distribution(values),
        by_source={source: quality.distribution(values[group]) for source, group in groups.items()},
        noise=None if again is None else quality.retest_noise(values, again),
        length=quality.spearman(values, columns.lengths),
        length_by_source={source: quality.spearman(values[group], columns.lengths[group]) for source, group in groups.items()},
        mass=median(columns.numbers(col.mass_column(name))),
        cut=cut / replies if replies else None,
    )


def _extremes(columns: Columns, groups: Mapping[str, NDArray[np.bool_]], names: list[str], scored: Path) -> tuple[Any, Any]:
    """Find the most and the least uncertain rows of every source; ties are ordered by id."""
    score = columns.score(col.UNCERTAINTY)
    table = pa.table(
        {col.ID: columns.arrow(col.ID).cast(pa.string()), col.UNCERTAINTY: score, "place": np.arange(columns.rows)}
    )
    chosen: dict[str, dict[str, list[int]]] = {order: {name: [] for name in groups} for order in ("descending", "ascending")}
    for source, group in groups.items():
        inside = table.filter(pa.array(group & np.isfinite(score)))
        # Arrow fails to select from a table without rows.
        for order, by_source in chosen.items() if len(inside) else ():
            best = pa.compute.select_k_unstable(inside, EXTREME_ROWS, [(col.UNCERTAINTY, order), (col.ID, "ascending")])
            by_source[source] = inside["place"].take(best).to_pylist()
    places = sorted({place for by_source in chosen.values() for found in by_source.values() for place in found})
    replies = replies_of(scored, table[col.ID].take(pa.array(places, pa.int64())).to_pylist())
    rows = _show(columns, places, names[1:], table, replies)
    most, least = ({source: [rows[i] for i in found] for source, found in chosen[order].items()} for order in chosen)
    return most, least


def _show(
    columns: Columns, places: list[int], names: list[str], table: pa.Table, replies: Mapping[str, list[Reply]]
) -> dict[int, Shown]:
    messages = columns.messages(set(places))
    at = pa.array(places, pa.int64())
    ids = table[col.ID].take(at).to_pylist()
    given = (
        columns.arrow(col.GIVEN_ID).cast(pa.string()).take(at).to_pylist() if col.GIVEN_ID in columns else [None] * len(places)
    )
    score = table[col.UNCERTAINTY].take(at).to_pylist()
    scores = {name: columns.score(name)[places] for name in names}
    return {
        place: Shown(
            id=ids[i],
            given_id=given[i],
            score=score[i],
            scores={name: float(values[i]) if np.isfinite(values[i]) else None for name, values in scores.items()},
            messages=[shorten_message(message, MAX_CHARACTERS) for message in messages.get(place, [])[-MAX_MESSAGES:]],
            earlier=max(0, len(messages.get(place, [])) - MAX_MESSAGES),
            replies=replies.get(ids[i], []),
        )
        for i, place in enumerate(places)
    }


def _cost(columns: Columns, scored: Path, engine: EngineConfig | None) -> Cost:
    prompt, generated = columns.total(col.PROMPT_TOKENS), columns.total(col.GENERATED_TOKENS)
    known = [tokens for tokens in (prompt, generated) if tokens is not None]
    money = engine.cost(prompt or 0, generated or 0) if engine is not None else 0
    seconds = _seconds(scored.resolve().parent / DONE_FILE)
    return Cost(
        prompt_tokens=prompt,
        generated_tokens=generated,
        calls=columns.total(col.CALLS),
        tokens_per_row=sum(known) / columns.rows if known else None,
        money=money or None,
        seconds=seconds,
        rows_per_second=columns.rows / seconds if seconds else None,
    )


def _self_check(file: Path) -> SelfCheckResult | None:
    found = read_json(file)
    if found is None:
        return None
    estimators = {name: quality.Quality(**values) for name, values in found["estimators"].items()}
    return SelfCheckResult(**found | {"estimators": estimators})


def _seconds(done: Path) -> float | None:
    """Read the stage's duration in seconds; None if it is missing or in an unknown format."""
    try:
        seconds = float(json.loads(done.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return seconds if np.isfinite(seconds) and seconds >= 0 else None


def _match(columns: Columns, verdicts: Mapping[str, bool]) -> Numbers:
    given = columns.arrow(col.GIVEN_ID) if col.GIVEN_ID in columns else pa.chunked_array([pa.nulls(columns.rows)])
    return match_labels(verdicts, columns.arrow(col.ID), given)


def replies_of(scored: Path, ids: Sequence[str]) -> dict[str, list[Reply]]:
    """Read the replies about rows by id; without those of which none are kept."""
    wanted = pa.compute.field(col.ID).isin(pa.array(ids, pa.string()))
    found: dict[str, list[Reply]] = {}
    for file in _files(scored.resolve().parent):
        try:
            table = RowFiles([file], SCHEMA).to_table([col.ID, col.REPLIES], wanted)
        except UserError as error:  # perhaps another run writes to this store, and is not done with the file
            logger.warning("its replies are not shown: %s", str(error).splitlines()[0])
            continue
        found |= {row[col.ID]: [_reply(entry) for entry in row[col.REPLIES]] for row in table.to_pylist() if row[col.REPLIES]}
    return found


def _files(folder: Path) -> list[Path]:
    """List the files of the store that the scores in a folder were made from; none if it is not known or gone."""
    try:
        store = folder / json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))["figures"][col.STORE]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return sorted([*store.glob("finished/*.parquet"), *store.glob("failed/*.parquet")])


def _reply(entry: Mapping[str, Any]) -> Reply:
    about = ", ".join(entry["asked_by"])
    if entry["log_probabilities"] is not None:
        return Reply(about, [_choices(entry)], 0)
    if entry["nll_sum"] is not None:
        return Reply(about, [f"{entry['nll_sum']:.4g} nats over {entry['target_tokens']} tokens"], 0)
    replies = zip(entry["texts"], entry["finish_reasons"], strict=True)
    shown = [f"{shorten(text, LONGEST_REPLY)} [{finish or 'unknown end'}]" for text, finish in replies]
    return Reply(about, shown[:MAX_REPLIES], max(0, len(shown) - MAX_REPLIES))


def _choices(entry: Mapping[str, Any]) -> str:
    shares = sorted(zip(map(math.exp, entry["log_probabilities"]), entry["choices"], strict=True), key=lambda pair: -pair[0])
    return ", ".join(f"{choice}: {number(share, 3)}" for share, choice in shares[:MAX_CHOICES])
