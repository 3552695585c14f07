"""Estimators of a pair's uncertainty: each declares the requests it needs and reduces their results to an estimate.

contract.py has what an estimator declares, sampling.py how several sample replies; config/registry.py lists them. Pure: no
Ray, no vLLM, no MLflow.
"""

from collections.abc import Mapping

from ual_ray.columns import Message, Messages
from ual_ray.config import ElicitConfig, EngineConfig
from ual_ray.config.registry import ESTIMATORS
from ual_ray.elicit.estimators.contract import MISSING, WRONG_ESTIMATE, Estimate, Estimator, checked
from ual_ray.engines.requests import EngineSpec, Likelihood, Request
from ual_ray.errors import UserError

# What estimators of other packages are tried on.
TRIED: Messages = [Message(role="user", content="What is 2 + 3?"), Message(role="assistant", content="5")]

__all__ = ["ESTIMATORS", "MISSING", "Estimate", "Estimator", "check_estimates", "make_estimators", "requests_of"]


def make_estimators(config: ElicitConfig, seed: int = 0) -> dict[str, Estimator]:
    """Build the configured estimators, in order. Raises UserError for an unusable template file, and for too few samples."""
    for name in config.estimators:
        if config.samples < (least := ESTIMATORS[name].min_samples):
            raise UserError(f"{name} needs at least {least} samples to compare", got=config.samples, fix="raise elicit.samples")
    return {name: _build(name, config, seed) for name in config.estimators}


def _build(name: str, config: ElicitConfig, seed: int) -> Estimator:
    with ESTIMATORS.calling(name):
        built: Estimator = ESTIMATORS[name].build(config, seed)
    return built


def check_estimates(estimators: Mapping[str, Estimator]) -> None:
    """Try estimators of other packages with a fake engine on a made-up pair. Raises UserError for unusable ones."""
    for name in estimators:
        if not ESTIMATORS.is_own(name):
            _try(name, estimators[name])


def _try(name: str, estimator: Estimator) -> None:
    from ual_ray.engines.fake import FakeEngine  # with transformers, which other estimators do not wait for

    engine = FakeEngine(EngineSpec(EngineConfig(kind="fake"), "fake"))
    with ESTIMATORS.calling(name):
        requests = [*estimator.asked(TRIED)]
        results = engine.run(requests) if requests and all(isinstance(one, Request) for one in requests) else []
        found = checked(estimator.estimate(results, TRIED)) if results else MISSING
    problem = None
    if not results:
        problem = f"{requests!r:.100}", "one Choice, Likelihood or Completion or more from requests()"
    elif (found.reason or "").startswith(WRONG_ESTIMATE):
        problem = f"{found.reason}", "Estimate(uncertainty, raw), the former in [0, 1]; missing(reason) for none"
    elif not estimator.needs_likelihood and any(isinstance(one, Likelihood) for one in requests):
        problem = "a Likelihood among its requests", "needs_likelihood = True in the class, as servers do not offer it"
    elif not isinstance(getattr(estimator, "summary", None), str):
        problem = "no summary", "summary, a sentence for the reports, in the class"
    if problem:
        what, fix = f"the estimator '{name}' cannot be used", f"correct {ESTIMATORS.where(name)}"
        raise UserError(what, got=problem[0], expected=problem[1], fix=fix)


def requests_of(estimators: Mapping[str, Estimator], messages: Messages, attempt: int = 0) -> dict[Request, list[str]]:
    """Return the different requests of an attempt about a row, with the names of the estimators that share each."""
    shared: dict[Request, list[str]] = {}
    for name, estimator in estimators.items():
        for request in estimator.asked(messages, attempt):
            shared.setdefault(request, []).append(name)
    return shared
