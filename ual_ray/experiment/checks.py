"""What keeps an experiment from an answer, found before anything expensive starts: errors, and cautions to print."""

from __future__ import annotations

from collections.abc import Iterator

from ual_ray.config import BASE, Config
from ual_ray.config.report import ADJUSTED_NLL
from ual_ray.errors import UserError
from ual_ray.formatting import GIB
from ual_ray.models.resolve import parameter_count
from ual_ray.stats.bootstrap import MIN_SEEDS
from ual_ray.stats.comparison import pairs_of, role_of
from ual_ray.train.estimate.state import least_bytes


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
    given, train = config.experiment.parallel, config.train
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
    roles = {
        name: role_of(arm.map, arm.weight, arm.training(config.train).loss) for name, arm in config.arms.items() if name != BASE
    }
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
