"""The plan of a configuration: calls, tokens, hours, money and memory, each from a count or from a measured rate.

What was not measured stays unknown; the plan then names the trial that measures it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from ual_ray import preflight
from ual_ray.benchmarks import make_benchmarks
from ual_ray.config import Config
from ual_ray.data.peek import DataPeek
from ual_ray.elicit.forecast import forecast
from ual_ray.engines.pool import block_size
from ual_ray.errors import UserError
from ual_ray.formatting import GIB, amount, duration, gib, plural, share
from ual_ray.models.resolve import parameter_count
from ual_ray.plan.rates import Trial
from ual_ray.plan.simulate import WORTH, Outcome, Point, Pool, expected_failures, expected_seconds, simulate, sweep
from ual_ray.train.estimate.state import heaviest, least_bytes

SIMULATED_SEEDS = 3
# Of a block, on average; and of blocks with their tries, of which a simulation takes a minute.
MOST_TRIES, MOST_EVENTS = 100, 3e7
UNKNOWN = "not known: nothing was measured"
STARTS = {
    "scoring": "elicit.start_seconds",
    "training": "train.start_seconds",
    "evaluation": "evaluate.start_seconds",
    "calibration": "calibrate.start_seconds",
}
TRIAL = (
    "run a trial (`ual elicit DATA -c CONFIG data.max_rows=50 engine.batch_size=8 engine.max_actors=1 --out trial`), give it "
    "as --trial"
)


@dataclass
class Outline:
    """Lines of the plan, a name and a text each; the sweep over actors and the simulations, if scoring was timed.

    seconds: of the stages that were timed, by name.
    """

    lines: list[tuple[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    device_hours: float = 0.0


def outline(config: Config, seen: DataPeek, rows: int, trial: Trial, seed: int = 0) -> Outline:
    """Plan a run of `rows` scored rows, from what was measured; what was not is unknown."""
    plan, rates = Outline(), trial.rates
    plan.lines += _scoring(config, seen, rows, rates)
    if "elicit.rows_per_second" in rates:
        time_scoring(plan, config, rows, rates, seed)
    else:
        plan.lines.append(("scoring, time", f"{UNKNOWN}; {TRIAL}, or --rate elicit.rows_per_second=..."))
    time_training(plan, config, rows, rates)
    time_evaluation(plan, config, rows, trial)
    time_calibration(plan, config, rows, trial)
    if unknown := [key for stage, key in STARTS.items() if stage in plan.seconds and key not in rates]:
        text = f"counted as 0 s, as nothing was measured: {', '.join(unknown)}; give --rate {unknown[0]}=..."
        plan.lines.append(("starts", text))
    plan.lines += totals(plan, rates)
    plan.lines += _memory(config)
    return plan


def _scoring(config: Config, seen: DataPeek, rows: int, rates: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield rows, calls, tokens and money: measured per row, or else estimated from the first rows."""
    per_row = [rates.get(f"elicit.{name}_per_row") for name in ("calls", "prompt_tokens", "generated_tokens")]
    yield "rows", f"{rows:,}"
    if None in per_row:
        yield from ((f"scoring, {name}", text) for name, text in forecast(config, seen, rows).lines()[1:])
        return
    calls, read, written = (round(rows * float(rate or 0)) for rate in per_row)
    yield "scoring, calls", f"{amount(calls)} (as in the trial, by row)"
    yield "scoring, tokens", f"{amount(read)} of prompts, {amount(written)} generated (as in the trial, by row)"
    if money := config.engine.cost(read, written):
        yield "scoring, cost", f"{money:,.2f} for tokens, by engine.price_per_million_*"


def pool_of(config: Config, rows: int, rates: Mapping[str, float]) -> Pool:
    """Return the pool that scores `rows`: its unit is a block, the most that an actor repeats after a crash."""
    engine = config.engine
    actors = min(engine.max_actors, rows)
    block = min(engine.rows_per_block or block_size(rows, actors, engine.batch_size), math.ceil(rows / actors))
    return Pool(
        units=math.ceil(rows / block),
        actors=actors,
        unit_seconds=block / rates["elicit.rows_per_second"],
        start_seconds=rates.get("elicit.start_seconds", 0.0),
        failures_per_hour=rates.get("failures_per_actor_hour", 0.0),
    )


def time_scoring(plan: Outline, config: Config, rows: int, rates: Mapping[str, float], seed: int) -> None:
    """Time the scoring of `rows`, simulated too; needs elicit.rows_per_second."""
    pool = pool_of(config, rows, rates)
    if pool.failure_rate * pool.unit_seconds > math.log(MOST_TRIES):
        raise UserError(
            f"actors fail more than {MOST_TRIES} times before they have finished a block",
            got=f"failures_per_actor_hour={pool.failures_per_hour:g}, {duration(pool.unit_seconds)} per block",
            fix="set a smaller engine.rows_per_block, or give other rates",
        )
    least = _limit_seconds(config, rows, rates)
    seconds = max(expected_seconds(pool), pool.start_seconds + least)
    plan.points = sweep(pool, least)
    devices, unit = _devices(config.engine.gpus_per_actor, config.engine.cpus_per_actor)
    _add_hours(plan, "scoring, time", seconds, devices * pool.actors, unit, plural(pool.actors, "actor"))
    if least > expected_seconds(pool) - pool.start_seconds:
        plan.lines.append(("", "the server's limit (engine.endpoint.*_per_minute) sets the pace; more actors do not help"))
    if pool.units + expected_failures(pool) > MOST_EVENTS:
        plan.lines.append(("  simulated", f"not done for {plural(pool.units, 'block')}; set a larger engine.rows_per_block"))
        return
    plan.outcomes = [simulate(pool, seed + number) for number in range(SIMULATED_SEEDS if pool.failures_per_hour else 1)]
    times = sorted(outcome.seconds for outcome in plan.outcomes)
    failed = sum(outcome.failures for outcome in plan.outcomes) / len(plan.outcomes)
    lost = sum(outcome.lost_seconds for outcome in plan.outcomes) / len(plan.outcomes) / 3600
    text = f"{plural(pool.units, 'block')} of at most {plural(math.ceil(rows / pool.units), 'row')}: {duration(times[0])}"
    text += f" to {duration(times[-1])}" if times[-1] != times[0] else ""
    if pool.failures_per_hour:
        text += f", {plural(failed, 'failure')} ({expected_failures(pool):,.1f} expected)"
        text += f", {lost:,.1f} actor hours of work repeated"
    plan.lines.append(("  simulated", text if pool.failures_per_hour else f"{text}; no failures: give failures_per_actor_hour"))


def _limit_seconds(config: Config, rows: int, rates: Mapping[str, float]) -> float:
    """Seconds that an endpoint's rate limits take at least; 0 without one, or where calls and tokens were not measured."""
    limits = config.engine.endpoint
    if not config.engine.remote:
        return 0.0
    tokens = rates.get("elicit.prompt_tokens_per_row", 0.0) + rates.get("elicit.generated_tokens_per_row", 0.0)
    by_calls = rates.get("elicit.calls_per_row", 0.0) / limits.requests_per_minute if limits.requests_per_minute else 0.0
    by_tokens = tokens / limits.tokens_per_minute if limits.tokens_per_minute else 0.0
    return 60 * rows * max(by_calls, by_tokens)


def time_training(plan: Outline, config: Config, rows: int, rates: Mapping[str, float]) -> None:
    """Time the trainings of all arms on `rows`, one after another."""
    train = config.train
    if not {"train.tokens_per_second", "train.tokens_per_row"} <= rates.keys():
        fix = "give the output of a `ual run` as --trial, or --rate train.tokens_per_second=... --rate train.tokens_per_row=..."
        plan.lines.append(("training, time", f"{UNKNOWN}; {fix}"))
        return
    training = [arm.training(train) for arm in config.arms.values()]
    tokens = [rows * rates["train.tokens_per_row"] * arm.epochs for arm in training]
    if train.max_steps:
        plan.lines.append(("training", f"train.max_steps = {train.max_steps} may end it earlier"))
    seconds = sum(count / rates["train.tokens_per_second"] + rates.get("train.start_seconds", 0.0) for count in tokens)
    devices, unit = _devices(train.gpus_per_worker, train.cpus_per_worker)
    what = f"{plural(len(training), 'training')} of {amount(max(tokens))} tokens, {plural(train.num_workers, 'worker')}"
    _add_hours(plan, "training, time", seconds, devices * train.num_workers, unit, what)


def time_evaluation(plan: Outline, config: Config, rows: int, trial: Trial) -> None:
    """Time the answers of all arms and of the model before training, one model after another. rows: scored ones."""
    rates, questions = trial.rates, _questions(config, rows, trial)
    if "evaluate.seconds_per_question" not in rates or questions is None:
        fix = "give the output of a short `ual run` with these benchmarks as --trial, and set max_rows where it reached its own"
        plan.lines.append(("evaluation, time", f"{UNKNOWN}; {fix}"))
        return
    models = len(config.arms) + 1
    each = rates.get("evaluate.start_seconds", 0.0) + questions * rates["evaluate.seconds_per_question"]
    devices, unit = _devices(config.engine.gpus_per_actor, config.engine.cpus_per_actor)
    what = f"{plural(models, 'model')}, {plural(questions, 'question')} each"
    _add_hours(plan, "evaluation, time", models * each, devices * config.engine.max_actors, unit, what)


def time_calibration(plan: Outline, config: Config, rows: int, trial: Trial) -> None:
    """Time the calibration of all arms and of the model before training, one model after another. rows: scored ones."""
    rates, settings = trial.rates, config.evaluate.calibration
    if not settings.enabled:
        return
    if "calibrate.seconds_per_token" not in rates or not trial.rows:
        plan.lines.append(("calibration, time", f"{UNKNOWN}; give the output of a short `ual run` as --trial"))
        return
    models = len(config.arms) + 1
    tokens = sum(min(settings.max_tokens, round(count * rows / trial.rows)) for count in trial.tokens.values())
    each = rates.get("calibrate.start_seconds", 0.0) + tokens * rates["calibrate.seconds_per_token"]
    devices, unit = _devices(config.engine.gpus_per_actor, config.engine.cpus_per_actor)
    _add_hours(
        plan, "calibration, time", models * each, devices, unit, f"{plural(models, 'model')}, {amount(tokens)} tokens each"
    )


def _questions(config: Config, rows: int, trial: Trial) -> int | None:
    """Count the questions of all benchmarks; those made of the test split grow with the rows.

    Of a benchmark that the trial took a part of, as many are counted as the plan allows. None: the trial does not tell.
    """
    benchmarks = make_benchmarks(config.evaluate.benchmarks)
    if not trial.rows or not benchmarks.keys() <= trial.questions.keys():
        return None
    counts = 0
    for name, benchmark in benchmarks.items():
        count, most = trial.questions[name], benchmark.max_rows
        if name in trial.capped:
            if most is None:
                return None
            count = max(count, most)
        elif benchmark.config.path is None:
            count = round(count * rows / trial.rows)
        counts += min(count, most or count)
    return counts


def _devices(gpus: float, cpus: float) -> tuple[float, str]:
    return (gpus, "GPU hours") if gpus else (cpus, "core hours")


def _add_hours(plan: Outline, name: str, seconds: float, devices: float, unit: str, what: str) -> None:
    hours = devices * seconds / 3600
    plan.seconds[name.removesuffix(", time")] = seconds
    plan.device_hours += hours
    plan.lines.append((name, f"{duration(seconds)}, {hours:,.2f} {unit} ({what})"))


def totals(plan: Outline, rates: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Yield the hours of what was timed, and their price."""
    if not plan.device_hours:
        return
    price = rates.get("price_per_device_hour")
    money = f"; cost {plan.device_hours * price:,.2f}" if price else "; cost not known: give --rate price_per_device_hour=..."
    yield "devices, in all", f"{plan.device_hours:,.2f} device hours of what is timed above{money}"


def _memory(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the memory of an actor and of a training rank."""
    engine, train = config.engine, config.train
    elicitor = None if engine.remote else parameter_count(config.elicit.model)
    if engine.remote:
        yield "memory per actor", "a client of the server"
    elif elicitor is None:
        yield "memory per actor", f"not known: {config.elicit.model} is neither a directory nor in the hub's cache here"
    else:
        size = elicitor * preflight.dtype_bytes(engine.dtype, engine.gpus_per_actor)
        weights = size / (engine.tensor_parallel_size or max(1, engine.gpus_per_actor))
        cpu = f"{preflight.actor_gb(config, config.elicit.model, engine.dtype):.2f} GiB with KV cache and process (an estimate)"
        gpu = f"{gib(weights)} of weights per GPU; vLLM takes most of the rest for its KV cache"
        yield "memory per actor", gpu if engine.gpus_per_actor else cpu
    if (trained := parameter_count(config.model)) is None:
        yield "memory per rank", f"not known: {config.model} is neither a directory nor in the hub's cache here"
    else:
        least = least_bytes(trained, heaviest(config)) / train.num_workers / GIB
        yield (
            "memory per rank",
            f"at least {least:.2f} GiB without activations; `ual train --dry-run` estimates all, of smoothed rows",
        )


def show(plan: Outline, notes: Sequence[str], console: Console) -> None:
    """Print the lines of a plan, its sweep over actors, and notes on the trial."""
    for name, text in plan.lines:
        console.print(f"{name:<26} {text}", markup=False, highlight=False)
    for text in sweep_lines(plan):
        console.print(text, markup=False, highlight=False)
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, style="yellow")


def sweep_lines(plan: Outline) -> Iterator[str]:
    """Yield the table of the sweep; the knee is marked."""
    if plan.points:
        yield f"\n{'actors':>8} {'scoring takes':>16} {'actor hours':>12} {'time on rows':>13}"
    for point in plan.points:
        mark = "  <- knee" if point.knee else ""
        row = f"{point.actors:>8,} {duration(point.seconds):>16} {point.actor_hours:>12,.2f} {share(point.useful):>13}"
        yield f"{row}{mark}"
    if any(point.useful >= WORTH for point in plan.points):
        yield "knee: the most actors, up to one per block, of whose time at least half goes to rows"
    elif plan.points:
        yield "knee: one actor, as less than half of the time goes to rows with any number"
