"""The primary measures of a run: recorded before its first results, and compared with what the configuration names later."""

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from ual_ray import columns as col
from ual_ray.config import Config, EvaluateConfig
from ual_ray.config.evaluate import WIN_RATE
from ual_ray.config.files import read_json, write_json
from ual_ray.config.names import HELD_OUT
from ual_ray.run.output import recorded_config
from ual_ray.run.stage_cache import DONE_FILE
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import UNRECORDED, described
from ual_ray.stats.results import read_tokens, token_sums

PRIMARY_FILE = "primary.json"
CONFIDENCE, SEEDS = "confidence", "seeds"
SEED_FOLDER = "seed-"
# Results of trained models, below the folder of a run or of an experiment's scenario.
RESULTS = (f"arms/*/evaluate/*/{col.FIGURES_FILE}", f"{SEED_FOLDER}*/arms/*/evaluate/*/{col.FIGURES_FILE}")


def record(config: Config, root: Path) -> dict[str, Any]:
    """Write the primary measures with their digest, the level and the seeds to `root`/primary.json; return what it has.

    Where there are results, it stays as it is, but for seeds that were too few for a verdict: nobody can have stopped at one.
    They may be replaced by enough without results, which alone are planned then: who looks at two seeds, and then chooses the
    number of further ones, would find an effect that is not there in 9% of simulations in place of 5%.
    """
    file, seeds = root / PRIMARY_FILE, {SEEDS: [*config.experiment.seeds]}
    recorded = described(config.primary_measures()) | {CONFIDENCE: config.evaluate.confidence} | seeds
    if any(next(root.glob(pattern), None) for pattern in RESULTS):
        known = read_json(file)
        if known is None or len(known.get(SEEDS, seeds[SEEDS])) >= MIN_SEEDS:
            return known or described(UNRECORDED)
        wanted = set(seeds[SEEDS])
        planned = wanted | {seed for seed in known.get(SEEDS, ()) if _has_results(root, seed)}
        if len(planned) >= MIN_SEEDS:
            planned = {seed for seed in wanted if not _has_results(root, seed)}
            if len(planned) < MIN_SEEDS:
                return known
        recorded = known | {SEEDS: sorted(planned)}
    root.mkdir(parents=True, exist_ok=True)
    write_json(file, recorded)
    return recorded


def _has_results(root: Path, seed: int) -> bool:
    return next(root.glob(f"{SEED_FOLDER}{seed}/{RESULTS[0]}"), None) is not None


def measured_before(root: Path, measures: Set[str]) -> set[str]:
    """Return which of the measures trained models below `root` have results of, whether or not these are in the report."""
    places, found = ("", f"{SEED_FOLDER}*/"), set[str]()
    if any(next(root.glob(f"{place}judge/*/*/{DONE_FILE}"), None) for place in places):
        found.add(WIN_RATE)
    if others := measures - {WIN_RATE}:
        files = (file for pattern in RESULTS for file in root.glob(pattern))
        figures = (entry for file in files for entry in (read_json(file) or {}).get("figures", ()))
        found |= {f"{entry['benchmark']}.{entry['metric']}" for entry in figures}
        counted = [file for place in places for file in root.glob(f"{place}arms/*/calibrate/*/{col.TOKENS_FILE}")]
        if counted and any(measure.startswith(f"{HELD_OUT}.") for measure in others - found):
            found |= {f"{HELD_OUT}.{metric}" for metric in token_sums(read_tokens(counted[0].parent))[1]}
    return found & measures


def decisive(roots: Sequence[Path]) -> tuple[tuple[str, ...], bool]:
    """Return the measures that decide a report on these folders, and whether they were chosen after the results.

    They are those that the first folder's configuration names, else those that were recorded. Where another folder recorded
    others, or a record was changed, they were chosen after the results, and so where evaluate.confidence is not the recorded
    one. Folders without a record are of versions that knew one primary measure, those without a level did not record it.
    """
    records = [_record(root) for root in roots]
    content = recorded_config(roots[0])
    level = (content.get("evaluate") or {}).get(CONFIDENCE, EvaluateConfig().confidence)
    measures = tuple((content.get("report") or {}).get("primary") or records[0].get("measures") or UNRECORDED)
    wanted = described(measures) | {CONFIDENCE: level}
    known = [{CONFIDENCE: level} | {key: value for key, value in found.items() if key != SEEDS} for found in records]
    return measures, any(found != wanted for found in known)


def planned_seeds(roots: Sequence[Path]) -> set[int]:
    """Return the training seeds of an experiment's scenario that were planned before their results; empty for runs.

    roots: the scenario's folder, those of its seeds, or that of an experiment of one scenario.
    """
    records = [_record(root) for root in roots if any(map(_is_of_scenario, [root, *_home(root).glob(f"{SEED_FOLDER}*")]))]
    return {seed for record in records for seed in record.get(SEEDS, ())}


def not_counted(seeds: Sequence[int], planned: int) -> str:
    """Write which training seeds do not count, and how others will. planned: how many do."""
    fix = "Plan them in a new output folder" if planned >= MIN_SEEDS else f"Name {MIN_SEEDS} or more without results"
    listed = ", ".join(map(str, seeds))
    return f"{listed} do not count: no plan of {MIN_SEEDS} or more named them before the first results. {fix}."


def _record(root: Path) -> dict[str, Any]:
    return read_json(_home(root) / PRIMARY_FILE) or described(UNRECORDED)


def _home(root: Path) -> Path:
    """Return the folder with the record: of a seed of an experiment, or of an experiment of one scenario, the scenario's."""
    if _is_of_scenario(root):
        return root.parent
    scenarios = {home.parent for home in root.glob(f"*/{SEED_FOLDER}*") if _is_of_scenario(home)}
    return scenarios.pop() if len(scenarios) == 1 else root


def _is_of_scenario(root: Path) -> bool:
    """Tell the folder of a seed of an experiment from a run that is called so: it has no record of its own, its parent has."""
    return root.name.startswith(SEED_FOLDER) and not (root / PRIMARY_FILE).is_file() and (root.parent / PRIMARY_FILE).is_file()
