"""Smoothing as a step of a run."""

from pathlib import Path
from typing import Any

from ual_ray import columns as col
from ual_ray.config import ArmConfig
from ual_ray.config.files import read_json
from ual_ray.config.keys import affecting, check_added
from ual_ray.models.chat import RENDERING_VERSION
from ual_ray.models.resolve import model_fingerprint
from ual_ray.parquet import rows_digest
from ual_ray.run.stage_cache import DONE_FILE, STARTED_FILE, Done
from ual_ray.run.step import Place, Session, Step, run_step
from ual_ray.smooth.maps import IMPUTED_VERSION, INVERTED_VERSION
from ual_ray.smooth.stage import (
    MIXTURE_VERSION,
    check_columns,
    columns_read,
    histogram,
    rendered_tokens,
    smooth,
    stored_tokens,
)
from ual_ray.smooth.weights import EXCLUDED_VERSION
from ual_ray.stats.comparison import role_of
from ual_ray.stats.score_quality import FOLLOWS, following_warning

BAR_WIDTH = 30
# Of the inputs of elicitation: what scores depend on besides the rows, and what was chosen by trying it.
MAKING, CHOSEN = ("measuring", "elicit", "labels"), "uncertainty"


def smooth_step(session: Session, name: str, spec: ArmConfig, scored: Path, place: Place, tokens: Path | None = None) -> Done:
    """Assign every training row its alpha in `folder`/smoothed.parquet, with its texts, and print the distribution.

    tokens: the rendered rows that arms share, and the texts in them; None = the rows are rendered here to be counted.
    """
    check_added(spec)
    check_columns(scored, spec)
    config = session.config
    digest = rows_digest(scored, columns_read(spec))
    inputs = {
        "scored": digest,
        "spec": affecting(spec, "alphas"),
        **({"maps": INVERTED_VERSION} if spec.map == "inverted" else {}),
        **({"imputed": IMPUTED_VERSION} if spec.missing == "impute" and {"minmax", "rank"} & {spec.map, spec.base} else {}),
        **({"weights": EXCLUDED_VERSION} if spec.weight != "none" and spec.missing == "exclude" else {}),
        **({"mixture": MIXTURE_VERSION} if config.train.mixture else {}),
        "seed": config.seed,
        "tokens": model_fingerprint(config.model),
        "trained": affecting(config.train, "tokens") | {"mixture": config.train.mixture, "rendering": RENDERING_VERSION},
        "scores": made_by(scored),
    }

    def work(folder: Path) -> dict[str, Any]:
        counted = None
        if spec.map != "none" or spec.weight != "none":
            counted = rendered_tokens(scored, config) if tokens is None else stored_tokens(tokens)
        return smooth(
            scored, spec, config.seed, folder, digest, tokens=counted, mixture=config.train.mixture, texts=tokens is None
        )

    def line(found: dict[str, Any]) -> str:
        means = f"{found['mean']:.3f} per row, {found['mean_by_length']:.3f} per {found['length']}"
        span = f"alpha mean {means}, {found['min']:.3f} to {found['max']:.3f}" if found["max"] else "alpha 0"
        text = f"{found['map']}: {span}"
        if spec.weight != "none":
            text += (
                f"; weight {spec.weight}, {found['weight_min']:.3f} to {found['weight_max']:.3f}, mean 1 per {found['length']}"
            )
        if found.get(FOLLOWS) is not None:
            text += f"; rank correlation with the uncertainty {found[FOLLOWS]:+.2f}"
        return f"{text}; {found['missing']} scores missing ({spec.missing}), {found['excluded']:.0f} rows excluded"

    done = run_step(session, Step("smooth", f"smooth {name}", inputs, place, written=[col.SMOOTHED_FILE]), work, line)
    role = role_of(spec.map, spec.weight, spec.loss)
    for text in following_warning(name, done.metrics.get(FOLLOWS)) if role == "control" else ():
        session.say("smooth", text, "yellow")
    bars = histogram(done.folder / col.SMOOTHED_FILE)
    longest = max(count for _, _, count in bars)
    for low, high, count in bars if len(bars) > 1 else ():
        bar = "█" * round(BAR_WIDTH * count / longest)
        session.console.print(f"{'':<15}{low:.3f} - {high:.3f} {bar} {count}", highlight=False)
    return done


def made_by(scored: Path) -> dict[str, Any] | None:
    """Return what made scores, apart from rows and seed, as the stage that wrote them recorded it; None for foreign ones.

    Arms of one name whose scores were made in different ways are different methods, whatever their maps are.
    """
    inputs = (read_json(scored.parent / STARTED_FILE) or {}).get("inputs") or {}
    if "scores" in inputs:  # rows of a scenario, which are copies
        return inputs["scores"]
    if not all(key in inputs for key in MAKING):
        return None
    found = {key: inputs[key] for key in MAKING}
    found["measuring"] = {key: value for key, value in found["measuring"].items() if key != "seed"}
    figures = (read_json(scored.parent / DONE_FILE) or {}).get("figures") or {}
    return found | {"chosen": figures.get(CHOSEN)}
