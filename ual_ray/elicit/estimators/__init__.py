"""Estimators of a pair's uncertainty: each declares the requests it needs and reduces their results to an estimate.

contract.py has what an estimator declares, sampling.py how several sample replies; config/registry.py lists them. Pure: no
Ray, no vLLM, no MLflow.
"""

from collections.abc import Mapping

from ual_ray.columns import Messages
from ual_ray.config import ElicitConfig
from ual_ray.config.registry import ESTIMATORS
from ual_ray.elicit.estimators.contract import MISSING, Estimate, Estimator
from ual_ray.engines.requests import Request
from ual_ray.errors import UserError

__all__ = ["ESTIMATORS", "MISSING", "Estimate", "Estimator", "make_estimators", "requests_of"]


def make_estimators(config: ElicitConfig, seed: int = 0) -> dict[str, Estimator]:
    """Build the configured estimators, in order. Raises UserError for an unusable template file, and for too few samples."""
    for name in config.estimators:
        if config.samples < (least := ESTIMATORS[name].min_samples):
            raise UserError(f"{name} needs at least {least} samples to compare", got=config.samples, fix="raise elicit.samples")
    return {name: ESTIMATORS[name].build(config, seed) for name in config.estimators}


def requests_of(estimators: Mapping[str, Estimator], messages: Messages, attempt: int = 0) -> dict[Request, list[str]]:
    """Return the different requests of an attempt about a row, with the names of the estimators that share each."""
    shared: dict[Request, list[str]] = {}
    for name, estimator in estimators.items():
        for request in estimator.asked(messages, attempt):
            shared.setdefault(request, []).append(name)
    return shared
