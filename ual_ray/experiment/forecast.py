"""What an experiment will cost and can find, and what keeps it from an answer, before it starts; and the pilot.

How long it takes and what its devices cost follows from rates that the pilot, or what of the experiment ran, measured; how
much seeds differ from the pilot too.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from ual_ray.config import BASE, ArmConfig, Config, ReportConfig
from ual_ray.config.evaluate import ADJUSTED_NLL
from ual_ray.config.experiment import ELICIT_FOLDER
from ual_ray.config.files import read_json
from ual_ray.config.names import SHUFFLED
from ual_ray.config.registry import BASE_MAPS
from ual_ray.data.peek import peek
from ual_ray.elicit.forecast import forecast
from ual_ray.elicit.stage import expected_rows
from ual_ray.errors import UserError
from ual_ray.formatting import GIB, duration, plural
from ual_ray.models.resolve import parameter_count
from ual_ray.plan.outline import Outline, time_calibration, time_evaluation, time_scoring, time_training, totals
from ual_ray.plan.rates import Trial, read_trial
from ual_ray.report.findings import FINDINGS_FILE, REPORT_FOLDER, Findings
from ual_ray.report.power import Planned, power_lines, power_title, unknown_rate
from ual_ray.run.stage_cache import DONE_FILE
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import Role, pairs_of, role_of
from ual_ray.train.estimate.state import heaviest, least_bytes

# What is timed, and the rate that it needs.
NEEDED = {
    "scoring": "elicit.rows_per_second",
    "training": "train.tokens_per_second",
    "evaluation": "evaluate.seconds_per_question",
    "calibration": "calibrate.seconds_per_token",
}
PILOT_SUFFIX = "-pilot"


def check_questions(config: Config) -> None:
    """Raise UserError when there are no test rows for what is measured on them."""
    if config.data.test_share > 0:
        return
    reads = [f"evaluate.benchmarks.{name}" for name, benchmark in config.evaluate.benchmarks.items() if benchmark.path is None]
    reads += ["evaluate.calibration"] if config.evaluate.calibration.enabled else []
    if reads:
        raise UserError(
            "data.test_share=0 leaves no rows to measure the models on",
            got=f"{', '.join(reads)} read the test rows",
            fix="set data.test_share above 0, or give the benchmarks a path and set evaluate.calibration.enabled=false",
        )


def check_parallel(config: Config, available: int) -> None:
    """Raise UserError when experiment.parallel trainings need more than the available bytes of this machine together.

    Not checked: `auto`, which counts memory itself, GPU workers, clusters, and models on the hub, whose size is not known.
    """
    given, train = config.experiment.parallel, heaviest(config)
    elsewhere = config.runtime.joined or not config.runtime.check_memory
    if given == "auto" or train.gpus_per_worker or elsewhere:
        return
    needed = given * least_bytes(parameter_count(config.model) or 0, train)
    if needed > available:
        raise UserError(
            f"experiment.parallel={given}: the trainings do not fit into memory together",
            got=f"{needed / GIB:.1f} GiB needed at least, {available / GIB:.1f} GiB free",
            fix="lower it, or set experiment.parallel=auto; runtime.check_memory=false skips this check",
        )


def without_likelihoods(config: Config) -> str | None:
    """State why the likelihoods of the arms will not be compared, with the keys to set; None where they will be."""
    needed = config.lacking().get(ADJUSTED_NLL)
    return f"{ADJUSTED_NLL} will not be compared, which needs {needed}" if needed else None


def cautions(config: Config) -> Iterator[str]:
    """List what the experiment will not be able to answer, with what to set."""
    seeds = len(config.experiment.seeds)
    if seeds < MIN_SEEDS:
        have = "1 training seed gives" if seeds == 1 else f"{seeds} training seeds give"
        yield f"{have} no verdict, which needs {MIN_SEEDS}: add some to experiment.seeds"
    if missing := without_likelihoods(config):
        yield missing
    roles = _roles(config)
    if not pairs_of(roles):
        yield (
            "no arms are compared with each other, only with the model before training: add an arm without smoothing "
            "(arms.sft.map=none), and arms that use uncertainty"
        )
    elif "ual" in roles.values() and "control" not in roles.values():
        yield (
            "there is no control, so a difference may come from smoothing as such, not from uncertainty: add one, such as "
            "arms.shuffled_within.map=shuffled_within"
        )


def _roles(config: Config) -> dict[str, Role]:
    """Return the roles of the arms, which follow from their settings."""
    arms = ((name, arm) for name, arm in config.arms.items() if name != BASE)
    return {name: role_of(arm.map, arm.weight, arm.training(config.train).loss) for name, arm in arms}


def hours(
    config: Config, rows: int, folders: Sequence[Path], trials: int, given: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    """Yield the time of every stage, and of all, as if each step ran alone; what is finished counts too.

    rows: that are scored. folders: outputs of experiments, of which the last that measured a stage counts. trials: learning
    rates that are tried besides, per arm. given: rates in place of measured ones.
    """
    settings, whole, missing, notes = config.experiment, Outline(), list[str](), dict[str, None]()
    several = len(settings.scenarios) > 1
    models = _times(config, len(settings.seeds))
    for number, name in enumerate(settings.scenarios):
        found = [*_measured(folders, config, name)]
        plan, where = Outline(), f" ({name})" if several else ""
        for stage, rate in NEEDED.items():
            if (stage == "scoring" and number) or (stage == "calibration" and not config.evaluate.calibration.enabled):
                continue
            trial = next((one for one in reversed(found) if rate in one.rates), Trial())
            trial.rates |= given
            if rate in trial.rates and stage == "scoring":
                time_scoring(plan, config, rows, trial.rates, seed=0)
            elif rate in trial.rates and stage == "training":
                trained = round(rows * trial.trained / trial.rows) if trial.rows else rows
                time_training(plan, _times(config, len(settings.seeds) + trials), trained, trial.rates)
            elif rate in trial.rates:
                (time_evaluation if stage == "evaluation" else time_calibration)(plan, models, rows, trial)
            if stage not in plan.seconds:
                missing.append(f"{stage}{where}")
                notes |= dict.fromkeys(note for one in found for note in one.notes)
        yield from ((f"{text}{where}", line) for text, line in plan.lines if text.endswith(", time"))
        whole.device_hours += plan.device_hours
        whole.seconds[name] = sum(plan.seconds.values())
    if whole.device_hours:
        known = " of what is known" if missing else ""
        yield "time, in all", f"{duration(sum(whole.seconds.values()))}{known}, one step after another"
        yield from totals(whole, given)
    left_out = {"judging": config.judge.model, "tasks of lm-evaluation-harness": config.evaluate.lm_eval}
    if any(left_out.values()):
        yield "time, not counted", " and ".join(what for what, asked in left_out.items() if asked)
    if missing:
        yield "time, not known", "; ".join([f"of {', '.join(missing)}: run `ual pilot CONFIG`, which measures it", *notes])


def _measured(folders: Sequence[Path], config: Config, scenario: str) -> Iterator[Trial]:
    for folder in folders:
        if any(folder.glob(f"{ELICIT_FOLDER}/*/{DONE_FILE}")):
            yield read_trial(folder, config.train.num_workers, config.engine.max_actors, f"{scenario}/seed-*/")


def _times(config: Config, count: int) -> Config:
    """Repeat every arm, once per training."""
    arms = {f"{name} {number}": arm for name, arm in config.arms.items() for number in range(count)}
    return config.model_copy(update={"arms": arms})


def pilot_of(config: Config, rows: int) -> Config:
    """Reduce an experiment to its first arm that uses uncertainty, and the control that shuffles that arm's alphas.

    The control keeps the arm's own settings but its map, `shuffled_within` sources and lengths, and its weight, which reads
    uncertainty too. The deciding judge, if there is one, compares both, and no learning rate is tried. The seeds are MIN_SEEDS,
    of which the experiment's come first, and what decides is the adjusted NLL. Raises UserError when no arm smooths by
    uncertainty, and without adjusted NLL.
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
            "judge": config.judge.model_copy(update={"against": control, "more_models": ()}),
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
    roles: dict[str, Role] = {BASE: "base", **_roles(config)}
    planned = Planned(roles, config.judge.references)
    for folder, where in measured:
        for scenario, findings in _findings(folder):
            if scenario in config.experiment.scenarios:
                seeds, measures = [len(config.experiment.seeds)], config.in_scenario(scenario).primary_measures()
                if lines := power_lines(findings, seeds, measures, planned):
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
