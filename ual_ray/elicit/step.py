"""Elicitation as a step of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import ray

from ual_ray import columns as col
from ual_ray.config import AUTO, Config
from ual_ray.config.files import read_json
from ual_ray.config.keys import affecting
from ual_ray.config.redact import redact_uri, redact_values
from ual_ray.data.fingerprint import fingerprint
from ual_ray.data.formats import BadRow
from ual_ray.data.peek import DataPeek, peek
from ual_ray.elicit.known import Shared, asked_of, note_asked, stores_without_replies
from ual_ray.elicit.replies import Known, no_replies
from ual_ray.engines.reading import READING_VERSION
from ual_ray.engines.row_store import RowStore
from ual_ray.errors import UserError
from ual_ray.formatting import count_list
from ual_ray.mirror.remote import open_place
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import content_digest, file_digest
from ual_ray.plots import training as plots
from ual_ray.run.machines import here
from ual_ray.run.progress import meter
from ual_ray.run.stage_cache import STARTED_FILE, Done, stage_digest
from ual_ray.run.step import (
    LINEAGE_MODEL,
    LINEAGE_PROMPTS,
    LINEAGE_SCORED,
    LINEAGE_UNCERTAINTY,
    Place,
    Run,
    Session,
    Step,
    quarantined,
    run_logged_step,
)
from ual_ray.stats.score_quality import Quality, auroc_text, self_check_warning, truncation_warning

if TYPE_CHECKING:
    from ual_ray.elicit.forecast import KeptReplies
    from ual_ray.elicit.shared_store import SharedStore


def elicit_step(session: Session, place: Place, *, retry: bool = False) -> Done:
    """Read and score the data; `folder`/rows holds the canonical rows of all splits, `folder`/scored the scored ones.

    Answers of the elicitor are kept in the place's store, by a key of their own: rows that several data sets share are sent
    once. `retry` sends the rows again that failed with an engine error.
    """
    config = session.config
    key = measuring(config)
    store = place.store_folder(key)
    inputs: dict[str, Any] = {
        "source": fingerprint(config.data),
        "data": affecting(config.data, "rows"),
        "measuring": key,
        "elicit": affecting(config.elicit, "uncertainty"),
        "labels": file_digest(Path(config.elicit.calibrate_with).expanduser()) if config.elicit.calibrate_with else None,
    }
    step = Step("elicit", "elicit", inputs, place, {LINEAGE_MODEL: config.elicit.model}, store, retry)

    if "elicit" in session.force and (shared := _shared(config, store, key)) is not None:
        shared.forget()

    def work(run: Run, folder: Path) -> dict[str, Any]:
        shared = _shared(config, store, key, inputs["source"])
        return _elicit_and_log(session, run, inputs["source"], folder, store, shared)

    done = run_logged_step(session, step, work, partial(_line, config))
    for text in _warnings(config, done.metrics):
        session.say("elicit", text, "yellow")
    return done


def _shared(config: Config, store: Path, key: Mapping[str, Any], data: str | None = None) -> SharedStore | None:
    """Open elicit.store for a run with these rows of its own; None where there is none, or it is the run's own store."""
    from ual_ray.elicit.shared_store import SharedStore

    if config.elicit.store is None:
        return None
    remote = open_place(config.elicit.store, "elicit.store")
    return None if remote.root == str(store.parent.absolute()) else SharedStore(remote, store, asked_of(key), data)


def kept_replies(config: Config, place: Place, retry: bool) -> KeptReplies | None:
    """Find where the replies of earlier elicitations are, for a forecast; None where there was none. Changes no folder."""
    from ual_ray.elicit.forecast import KeptReplies

    key = measuring(config)
    store, copy = place.store_folder(key), None
    if config.elicit.store is not None:
        copy = TemporaryDirectory(prefix="ual-")
        store, own = Path(copy.name, "store", store.name), store.parent
        if own.is_dir():
            shutil.copytree(own.absolute(), store.parent, copy_function=os.symlink)
        if (shared := _shared(config, store, key)) is not None:
            shared.fetch()
    return KeptReplies(store, asked_of(key), retry, copy) if store.parent.is_dir() else None


def _elicit_and_log(
    session: Session, run: Run, source: str, folder: Path, store: Path, shared: SharedStore | None
) -> dict[str, Any]:
    from ual_ray.elicit.traces import sampled_traces

    config = session.config
    seen = peek(config.data)
    session.say("rows", seen.describe(redact_uri(config.data.path)))
    for remark in seen.remarks:
        session.say("warning", remark)
    run.params(redact_values({"elicit": config.elicit.model_dump(), "engine": config.engine.model_dump()}))
    _log_prompts(run, config)
    run.dataset("rows", config.data.path, source, seen.estimated_rows or 0, "scoring", seen.hub)
    _explain_old_stores(session, store)
    asked = asked_of(measuring(config))
    note_asked(store, asked)
    with shared.held(partial(session.say, "store")) if shared else nullcontext():
        metrics = _score(session, seen, folder, store, asked)
    run.metrics(metrics)
    run.plot(plots.uncertainty_by_source(metrics["histograms"]), "plots/uncertainty_by_source.png")
    scored = content_digest(folder / col.SCORED_FOLDER, col.SMOOTHING_READS)
    prompts = ", ".join(metrics["prompt_hashes"])
    run.tags({LINEAGE_SCORED: scored, LINEAGE_PROMPTS: prompts, LINEAGE_UNCERTAINTY: metrics["uncertainty"]})
    if config.tracking.traces:
        sampled = ray.remote(sampled_traces).options(**here())
        run.traces(lambda: ray.get(sampled.remote(config, folder / col.SCORED_FOLDER, store, asked)))
    return metrics


def _score(session: Session, seen: DataPeek, folder: Path, store: Path, asked: str) -> dict[str, Any]:
    """Score the rows that the store lacks, after a trial of the server and the self-check; return the figures."""
    from ual_ray.elicit import self_check_stage as self_checks
    from ual_ray.elicit import stage

    config = session.config
    measured = col.measured_schema(config.elicit.estimators)
    for place in (store, store / self_checks.STORE_FOLDER):
        RowStore(place, measured).retry_failed()  # before the replies about them are looked for

    if config.engine.remote and not RowStore(store, measured).count():
        good = (messages for _, messages in seen.records if not isinstance(messages, BadRow))
        for note in stage.try_server(config, [*islice(good, stage.TRIAL_ROWS)], asked, _known(session, store)):
            session.say("server", note)
    checked: dict[str, Any] = {}
    if config.elicit.self_check:
        candidates = self_checks.candidates_in_data(config, seen)
        checked = {"self_check": _self_check(session, candidates, folder, store)}
        selected = config.elicit.model_copy(update={"uncertainty": checked["self_check"]["uncertainty"]})
        config = config.model_copy(update={"elicit": selected})
    with meter(session.console, "elicit", stage.expected_rows(config, seen), "rows") as shown:
        return stage.elicit(config, seen, folder, store, shown, asked, _known(session, store)) | checked


def _log_prompts(run: Run, config: Config) -> None:
    from ual_ray.elicit.prompts import load_prompts

    prompts = load_prompts(config.elicit.templates, config.elicit.examples)
    for estimator in config.elicit.estimators:
        if (template := prompts.template(estimator)) is not None:
            run.prompt(f"elicit.{estimator}", template)


def check_scored(session: Session, scored: Path) -> None:
    """Self-check the elicitor of rows that are scored already; self_check.json is written next to them.

    Raises UserError where the configuration is not that of the scores.
    """
    from ual_ray.elicit.self_check_stage import candidates_in_scores

    folder, key = scored.parent, measuring(session.config)
    made_by = ((read_json(folder / STARTED_FILE) or {}).get("inputs") or {}).get("measuring") or key
    if stage_digest(made_by) != stage_digest(key):
        changed = [name for name in key if stage_digest({"": made_by.get(name)}) != stage_digest({"": key[name]})]
        raise UserError(
            "the scores were made with other settings",
            got=f"{scored}; different: {', '.join(changed)}",
            fix="give the --config and the overrides that the scores were made with",
        )
    session.connect()
    store = Place(folder.parent).store_folder(key)
    candidates = candidates_in_scores(session.config, scored)
    shared = _shared(session.config, store, key)
    with shared.held(partial(session.say, "store")) if shared else nullcontext():
        _self_check(session, candidates, folder, store)


def _known(session: Session, store: Path) -> Known:
    """Return the replies that need not be asked for again; none where the step is forced."""
    return no_replies if "elicit" in session.force else Shared(store, asked_of(measuring(session.config)))


def _explain_old_stores(session: Session, store: Path) -> None:
    if store.exists():
        return
    for old in stores_without_replies(store):
        text = f"{old} is of an earlier version, which kept no replies: with changed settings its rows are asked again"
        session.say("elicit", text, "yellow")


def _self_check(session: Session, candidates: list[dict[str, Any]], folder: Path, store: Path) -> dict[str, Any]:
    """Run the self-check and print a line per estimator."""
    from ual_ray.elicit.self_check_stage import self_check

    asked = asked_of(measuring(session.config))
    with meter(session.console, "self-check", session.config.elicit.self_check, "rows") as shown:
        result = self_check(session.config, candidates, folder, store, shown, asked, _known(session, store))
    about = f"{result['rows']} rows, {result['swapped']} of them with another row's response"
    session.say("self-check", f"{about}; AUROC of telling which, with its 95% interval; 0.5 = chance")
    for name, found in result["estimators"].items():
        session.say("", f"{name:<20} {auroc_text(Quality(**found))}")
    return result


def measuring(config: Config) -> dict[str, Any]:
    """What a row's measurements depend on besides the row: elicitor, prompts, sampling, engine settings that matter."""
    from ual_ray.elicit.prompts import load_prompts

    elicit, engine = config.elicit, config.engine
    local = not engine.remote
    return {
        "model": model_fingerprint(elicit.model) if local else elicit.model,
        "grouping": model_fingerprint(grouping) if (grouping := elicit.embedding_model or elicit.nli_model) else None,
        "adapter": file_digest(Path(elicit.adapter).expanduser()) if elicit.adapter else None,
        "prompts": load_prompts(elicit.templates, elicit.examples).hash,
        "elicit": affecting(elicit, "scores"),
        "engine": affecting(engine, "scores"),
        "endpoint": None if local else affecting(engine.endpoint, "scores"),
        "seed": config.seed,
        "reading": READING_VERSION,
    }


def _warnings(config: Config, metrics: Mapping[str, Any]) -> list[str]:
    """List the warnings about the scores that smoothing reads: the configured one, its members, and those of single arms."""
    from ual_ray.elicit.scoring import needed

    selected = config.elicit.model_copy(update={"uncertainty": metrics.get("uncertainty", config.elicit.uncertainty)})
    of_arms = [arm.uncertainty for arm in config.arms.values() if arm.uncertainty is not None]
    names = dict.fromkeys([*needed(selected), col.UNCERTAINTY, *of_arms])
    of_scores = (text for name in names for text in metrics.get("warnings", {}).get(name, ()))
    estimators = metrics.get("self_check", {}).get("estimators", {})
    checked = ((name, Quality(**estimators[name])) for name in names if name in estimators)
    of_checks = (text for name, found in checked for text in self_check_warning(name, found))
    return [*truncation_warning(metrics["truncated"], metrics["rows"]), *of_checks, *of_scores]


def _line(config: Config, metrics: Mapping[str, Any]) -> str:
    means = ", ".join(f"{name} {value:.3f}" for name, value in metrics["mean_uncertainty"].items() if value is not None)
    bad = f"; {metrics['bad']} bad rows ({count_list(metrics['bad_reasons'])})" if metrics["bad"] else ""
    repeated = f"; {metrics['duplicates']} duplicates left out" if metrics.get("duplicates") else ""
    money = config.engine.cost(metrics[col.PROMPT_TOKENS], metrics[col.GENERATED_TOKENS])
    cost = f"; cost {money:.2f}" if money else ""
    if config.engine.cost(1, 1) and metrics["calls"] and not metrics[col.PROMPT_TOKENS]:
        cost = "; cost unknown, as the server counts no tokens"
    auto = config.elicit.uncertainty == AUTO
    selected = f"; uncertainty = {metrics['uncertainty']}, {metrics['self_check']['reason']}" if auto else ""
    return (
        f"{metrics['rows']} of {metrics['total_rows']} rows scored by {config.elicit.model} "
        f"({count_list(metrics['splits'])}; {count_list(metrics['sources'])}){bad}{repeated}; "
        f"mean uncertainty: {means}{selected}; {quarantined(metrics)}; {metrics['calls']:,} calls{cost}"
    )
