"""What an experiment will cost and can find, before it starts; and the pilot that measures how much seeds differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from ual_ray.config import ArmConfig, Config, ReportConfig
from ual_ray.config.files import read_json
from ual_ray.config.names import SHUFFLED
from ual_ray.config.registry import BASE_MAPS
from ual_ray.config.report import ADJUSTED_NLL
from ual_ray.data.peek import peek
from ual_ray.elicit.forecast import forecast
from ual_ray.elicit.stage import expected_rows
from ual_ray.errors import UserError
from ual_ray.experiment.checks import without_likelihoods
from ual_ray.experiment.hours import hours
from ual_ray.formatting import plural
from ual_ray.report.findings import FINDINGS_FILE, REPORT_FOLDER, Findings
from ual_ray.report.power import power_lines, power_title, unknown_rate
from ual_ray.run.stage_cache import DONE_FILE
from ual_ray.stats.bootstrap import MIN_SEEDS

PILOT_SUFFIX = "-pilot"


def pilot_of(config: Config, rows: int) -> Config:
    """Reduce an experiment to its first arm that uses uncertainty, and the control that shuffles that arm's alphas.

    The control keeps the arm's own settings but its map, `shuffled_within` sources and lengths, and its weight, which reads
    uncertainty too. Nothing is judged, and no learning rate is tried. The seeds are MIN_SEEDS, of which the experiment's come
    first, and what decides is the adjusted NLL. Raises UserError when no arm smooths by uncertainty, and without adjusted NLL.
    """
    arm = next((name for name, spec in config.arms.items() if spec.map in BASE_MAPS), None)
    if arm is None:
        raise UserError(
            "no arm smooths by uncertainty",
            got=", ".join(config.arms),
            expected=f"a map of {', '.join(BASE_MAPS)}",
            fix="add such an arm, such as arms.ual.map=mean_matched",
        )
    if missing := without_likelihoods(config):
        raise UserError("a pilot compares likelihoods", got=missing)
    spec = config.arms[arm]
    control = SHUFFLED if arm != SHUFFLED else f"{SHUFFLED}-control"
    unweighted = {"weight": "none", "filter_share": ArmConfig().filter_share}
    own = {"map": "shuffled_within", "base": spec.map, **unweighted}
    shuffled = ArmConfig.model_validate(spec.model_dump() | own)
    taken = min(rows, config.data.max_rows or rows)
    given = config.experiment.seeds
    seeds = [*given, *(seed for seed in range(len(given) + MIN_SEEDS) if seed not in given)]
    return config.model_copy(
        update={
            "arms": {control: shuffled, arm: spec},
            "data": config.data.model_copy(update={"max_rows": taken}),
            "judge": config.judge.without_judges(),
            "report": ReportConfig(primary=(ADJUSTED_NLL,)),
            "experiment": config.experiment.model_copy(
                update={"seeds": tuple(seeds[:MIN_SEEDS]), "learning_rates": (), "primary": {}}
            ),
            "output": str(pilot_folder(Path(config.output))),
        }
    )


def pilot_folder(output: Path) -> Path:
    """Return the output folder of the pilot of the experiment in `output`."""
    return output.with_name(f"{output.name}{PILOT_SUFFIX}")


def print_forecast(config: Config, output: Path, console: Console, rates: Mapping[str, float] | None = None) -> None:
    """Print calls, tokens and money of elicitation, the number of trainings, times where they were measured, and the power.

    rates: given ones, in place of those that were measured.
    """
    seen = peek(config.data)
    given, arms = config.experiment, len(config.arms)
    pilot = pilot_folder(output)
    # The best trial of an arm is the training of its first seed.
    trials = max(0, len(given.learning_rates) - 1)
    trainings = arms * (len(given.seeds) + trials) * len(given.scenarios)
    rows = expected_rows(config, seen)
    lines = [(f"elicitation, {name}", text) for name, text in forecast(config, seen, rows).lines()]
    seeds = plural(len(given.seeds), "seed")
    if trials:
        seeds = f"({seeds} + {plural(trials, 'learning rate')})"
    by = f"{plural(arms, 'arm')} x {seeds} x {plural(len(given.scenarios), 'scenario')}"
    evaluated = (arms * len(given.seeds) + 1) * len(given.scenarios)
    lines += [("trainings", f"{trainings} ({by}); {plural(evaluated, 'model')} to evaluate")]
    lines += [*_finished(output, "here"), *_finished(pilot, "in the pilot")]
    lines += hours(config, rows, [pilot, output], trials, rates or {}) if rows else []
    for name, text in lines:
        console.print(f"{name:<32} {text}", highlight=False, markup=False)
    if not (power := [*_power(config, ((output, "what ran here"), (pilot, "the pilot, which has fewer questions")))]):
        power = ["smallest effect                  not known: run `ual pilot CONFIG`, which measures how much seeds differ"]
    for line in power:
        console.print(line, highlight=False, markup=False)


def _power(config: Config, measured: Sequence[tuple[Path, str]]) -> Iterator[str]:
    """Word what each scenario can find, by what was measured in folders that are called so."""
    for folder, where in measured:
        for scenario, findings in _findings(folder):
            if scenario in config.experiment.scenarios:
                seeds, measures = [len(config.experiment.seeds)], config.in_scenario(scenario).primary_measures()
                if lines := power_lines(findings, seeds, measures):
                    yield power_title(f"in '{scenario}', by {where},") + ":"
                    yield from (f"  {line}" for line in (*lines, *filter(None, [unknown_rate(findings, measures)])))


def _finished(output: Path, where: str) -> Iterator[tuple[str, str]]:
    done = [read_json(file) for file in output.glob(f"*/seed-*/arms/*/train/*/{DONE_FILE}")]
    if done:
        rows = sorted(content["figures"]["train_rows"] for content in done)
        counted = f"{rows[0]:,}" if rows[0] == rows[-1] else f"{rows[0]:,} to {rows[-1]:,}"
        seconds = np.mean([float(content["seconds"]) for content in done])
        yield f"trainings finished {where}", f"{len(done)}, {seconds:.0f} s each over {counted} rows"


def _findings(output: Path) -> Iterator[tuple[str, Findings]]:
    """Read the findings of the scenarios in an output folder."""
    for file in sorted(output.glob(f"*/{REPORT_FOLDER}/{FINDINGS_FILE}")):
        if (content := read_json(file)) is not None:
            yield file.parents[1].name, Findings.from_dict(content)
