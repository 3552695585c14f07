"""The rows of a scenario: those of some sources, of every split."""

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from ual_ray import columns as col
from ual_ray.benchmarks import make_benchmarks
from ual_ray.config import Config
from ual_ray.config.evaluate import OPEN_ENDED, WIN_RATE
from ual_ray.data.canonical import usable_rows
from ual_ray.data.peek import peek
from ual_ray.errors import UserError
from ual_ray.formatting import count_list
from ual_ray.parquet import RowFiles, content_digest, write_tables
from ual_ray.run.step import Place, Session, Step, run_step
from ual_ray.smooth.step import made_by
from ual_ray.train.mixture import check_names

# Rows that are read before anything starts.
PEEKED = 20_000


def check_scenarios(config: Config) -> None:
    """Raise UserError for a scenario without rows of a source, of a split or of train.mixture, where few rows tell it.

    And where the first PEEKED rows are all and hold no question that its primary measures need.
    """
    scenarios = config.experiment.scenarios
    if not any(scenarios.values()) and not config.experiment.primary:
        return
    seen = peek(config.data)
    rows = usable_rows(config.data, seen.pieces, seen.format_name)
    test = ((row[col.SOURCE], row[col.MESSAGES]) for row in islice(rows, PEEKED) if row[col.SPLIT] == col.TEST)
    if (missing := without_questions(config, test)) and next(rows, None) is None:
        raise _no_question(config, missing)
    if seen.complete and any(scenarios.values()):
        found = {(row[col.SOURCE], row[col.SPLIT]) for row in usable_rows(config.data, seen.pieces, seen.format_name)}
        check_sources({source for source, _ in found}, config.experiment.scenarios)
        check_splits(found, config)
        for name, sources in config.experiment.scenarios.items() if config.train.mixture else ():
            own = {source for source, split in found if split == col.TRAIN and (not sources or source in sources)}
            check_names(config.train.mixture, sorted(own), rows=f"the training rows of experiment.scenarios.{name}")


def check_primary(rows: Path, config: Config) -> None:
    """Raise UserError for a scenario without test rows that ask what its primary measures need; rows: canonical ones."""
    if not config.experiment.primary:
        return
    files = RowFiles(rows)
    test = pa.compute.field(col.SPLIT) == col.TEST
    batches = files.to_batches(columns=[col.SOURCE, col.MESSAGES], filter=test, batch_size=1000)
    asked = ((row[col.SOURCE], row[col.MESSAGES]) for batch in batches for row in batch.to_pylist())
    if missing := without_questions(config, asked):
        raise _no_question(config, missing)


def without_questions(config: Config, rows: Iterable[tuple[str, col.Messages]]) -> dict[tuple[str, str], set[str]]:
    """Find the primary measures of scenarios for which no test row is a question: by both, the benchmarks that lack one.

    rows: source and messages of test rows; no more are read than needed. Benchmarks with a path have questions of their own.
    """
    benchmarks = make_benchmarks(config.evaluate.benchmarks)
    open_ended = [name for name, one in benchmarks.items() if one.kind == OPEN_ENDED]
    missing: dict[tuple[str, str], set[str]] = {}
    for scenario, measures in config.experiment.primary.items():
        for measure in measures:
            needed = open_ended if measure == WIN_RATE else [measure.rpartition(".")[0]]
            if all(name in benchmarks and benchmarks[name].config.path is None for name in needed):
                missing[scenario, measure] = {*needed}
    for source, messages in rows if missing else ():
        asked = {name for name in set().union(*missing.values()) if benchmarks[name].question(messages, source) is not None}
        for scenario, measure in [*missing]:
            sources = config.experiment.scenarios[scenario]
            if asked & missing[scenario, measure] and (not sources or source in sources):
                del missing[scenario, measure]
        if not missing:
            break
    return missing


def _no_question(config: Config, missing: Mapping[tuple[str, str], set[str]]) -> UserError:
    (scenario, measure), names = next(iter(missing.items()))
    sources = config.experiment.scenarios[scenario]
    return UserError(
        f"experiment.primary.{scenario}: '{measure}' cannot decide, as no test row of the scenario asks for it",
        got=f"{', '.join(sources) or 'all sources'}: no question of evaluate.benchmarks.{' or '.join(sorted(names))}",
        fix="name another measure, add sources to the scenario, or give the benchmark a path",
    )


def check_sources(there: Iterable[str], scenarios: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError for a scenario that names a source which is not there."""
    known = sorted(there)
    for name, sources in scenarios.items():
        if unknown := sorted(set(sources) - set(known)):
            raise UserError(
                f"experiment.scenarios.{name}: there are no such sources",
                got=unknown,
                expected=", ".join(known),
                fix="name sources of the data (`ual preview` shows them)",
            )


def check_splits(there: Set[tuple[str, str]], config: Config) -> None:
    """Raise UserError for a scenario without a row of a split that has a share; there: pairs of source and split."""
    for name, sources in config.experiment.scenarios.items():
        found = {split for source, split in there if not sources or source in sources}
        if missing := [split for split, share in config.data.split_shares().items() if share > 0 and split not in found]:
            raise UserError(
                f"experiment.scenarios.{name}: no row of its sources is in the split '{missing[0]}'",
                got=f"{', '.join(sources) or 'all sources'}: rows in {', '.join(sorted(found)) or 'no split'}",
                fix="add rows or sources to the scenario, or raise the split's share in the section data",
            )


def read_splits(rows: Path) -> set[tuple[str, str]]:
    """Read the pairs of source and split that canonical rows have."""
    table = RowFiles(rows).to_table([col.SOURCE, col.SPLIT])
    pairs = table.group_by([col.SOURCE, col.SPLIT]).aggregate([])
    return set(zip(pairs[col.SOURCE].to_pylist(), pairs[col.SPLIT].to_pylist(), strict=True))


def count_sources(rows: Path) -> dict[str, int]:
    """Count the rows by source."""
    sources = RowFiles(rows).to_table(columns=[col.SOURCE])[col.SOURCE]
    return {str(entry["values"]): entry["counts"] for entry in pa.compute.value_counts(sources).to_pylist()}


def select_step(session: Session, sources: Sequence[str], rows: Path, scored: Path, place: Place) -> tuple[Path, Path]:
    """Return the folders of the rows and of the scored rows of these sources: copies, or the given ones if sources is empty."""
    if not sources:
        return rows, scored
    inputs = {
        "rows": content_digest(rows, [col.ID, col.SPLIT, col.SOURCE]),
        "scored": content_digest(scored, col.SMOOTHING_READS),
        "sources": sorted(sources),
        "scores": made_by(scored),
    }

    def work(folder: Path) -> dict[str, Any]:
        for given in (rows, scored):
            files = RowFiles(given)
            batches = files.to_batches(filter=pa.compute.field(col.SOURCE).isin([*sources]))
            tables = (pa.Table.from_batches([batch]) for batch in batches)
            write_tables(tables, files.schema, folder / given.name)
        return {"sources": count_sources(folder / rows.name)}

    def line(metrics: dict[str, Any]) -> str:
        return f"{sum(metrics['sources'].values())} rows ({count_list(metrics['sources'])})"

    folder = run_step(session, Step("scenario", "rows", inputs, place), work, line).folder
    return folder / rows.name, folder / scored.name
