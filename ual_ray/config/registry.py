"""Every estimator, map, weight, loss, format, benchmark and engine, by the name that the configuration uses: one line each.

An entry is "module:attribute", imported when it is looked up, because configuration is below the folders it names. Another
package adds entries through entry points of the group "ual_ray.estimators" (maps, formats, ...); see docs/extending.md.
"""

import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from ual_ray.errors import UserError


class Registry(Mapping[str, Any]):
    """Objects of one kind by name. Iteration gives the names and imports nothing; a lookup imports one object."""

    def __init__(self, kind: str, targets: Mapping[str, str]) -> None:
        """Take the kind in the singular, and "module:attribute" by name; installed packages cannot replace these names."""
        self.kind = kind
        self.targets = dict(targets)
        for point in _installed().select(group=f"ual_ray.{kind}s".replace(" ", "_")):
            self.targets.setdefault(point.name, point.value)

    def __getitem__(self, name: str) -> Any:
        """Import and return an object. Raises UserError for an unknown name."""
        if name not in self.targets:
            close = difflib.get_close_matches(name, self, n=1)
            fix = f"did you mean '{close[0]}'?" if close else None
            raise UserError(f"unknown {self.kind}", got=name, expected=", ".join(self), fix=fix)
        module, _, attribute = self.targets[name].partition(":")
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        """Check for a name without importing its object."""
        return name in self.targets

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)


@cache
def _installed() -> Any:
    return entry_points()  # read once: it opens the metadata of every installed package


ESTIMATORS = Registry(
    "estimator",
    {
        "verbalized_error": "ual_ray.elicit.estimators.verbalized:VerbalizedError",
        "verbalized_diversity": "ual_ray.elicit.estimators.verbalized:VerbalizedDiversity",
        "p_true": "ual_ray.elicit.estimators.p_true:PTrue",
        "nll": "ual_ray.elicit.estimators.likelihood:NegativeLogLikelihood",
        "nll_sum": "ual_ray.elicit.estimators.likelihood:SummedNegativeLogLikelihood",
        "self_consistency": "ual_ray.elicit.estimators.samples:SelfConsistency",
        "semantic_entropy": "ual_ray.elicit.estimators.samples:SemanticEntropy",
    },
)

# Maps whose alphas depend on the row's uncertainty: those that a control may start from.
BASE_MAPS = Registry(
    "map",
    {
        "linear": "ual_ray.smooth.maps:linear",
        "minmax": "ual_ray.smooth.maps:minmax",
        "mean_matched": "ual_ray.smooth.maps:mean_matched",
        "rank": "ual_ray.smooth.maps:rank",
    },
)
MAPS = Registry(
    "map",
    {
        **BASE_MAPS.targets,
        "none": "ual_ray.smooth.maps:none",
        "constant": "ual_ray.smooth.maps:constant",
        "per_source_constant": "ual_ray.smooth.maps:per_source_constant",
        "shuffled": "ual_ray.smooth.maps:shuffled",
        "shuffled_within": "ual_ray.smooth.maps:shuffled_within",
        "inverted": "ual_ray.smooth.maps:inverted",
    },
)

# How much a row counts in the loss, from its uncertainty.
WEIGHTS = Registry(
    "weight",
    {
        "none": "ual_ray.smooth.weights:none",
        "certainty": "ual_ray.smooth.weights:certainty",
        "filter": "ual_ray.smooth.weights:most_certain",
        "flow": "ual_ray.smooth.weights:flow",
    },
)

# How much a token counts in the loss, from what the model gives it while it trains.
LOSSES = Registry(
    "loss",
    {
        "sft": "ual_ray.train.token_losses:sft",
        "dft": "ual_ray.train.token_losses:dft",
        "eaft": "ual_ray.train.token_losses:eaft",
        "prior_leaning": "ual_ray.train.token_losses:prior_leaning",
        "profit": "ual_ray.train.token_losses:profit",
    },
)

# The most specific first: detection takes the first format that fits a row.
FORMATS = Registry(
    "format",
    {
        "messages": "ual_ray.data.known_formats:MESSAGES",
        "sharegpt": "ual_ray.data.known_formats:SHAREGPT",
        "alpaca_eval": "ual_ray.data.known_formats:ALPACA_EVAL",
        "alpaca": "ual_ray.data.known_formats:ALPACA",
        "gsm8k": "ual_ray.data.known_formats:GSM8K",
        "metamath": "ual_ray.data.known_formats:METAMATH",
        "prompt_completion": "ual_ray.data.known_formats:PROMPT_COMPLETION",
    },
)

BENCHMARKS = Registry(
    "benchmark",
    {
        "held_out": "ual_ray.benchmarks.held_out:HeldOut",
        "gsm8k": "ual_ray.benchmarks.gsm8k:Gsm8k",
        "math": "ual_ray.benchmarks.math:Math",
        "multiple_choice": "ual_ray.benchmarks.multiple_choice:MultipleChoice",
        "open_ended": "ual_ray.benchmarks.open_ended:OpenEnded",
    },
)

# Engines that ask a server: no model on this machine, no likelihood of a given text.
REMOTE_ENGINES = Registry("remote engine", {"openai": "ual_ray.engines.openai_engine:OpenAIEngine"})
ENGINES = Registry(
    "engine",
    {
        "vllm": "ual_ray.engines.vllm_engine:VLLMEngine",
        **REMOTE_ENGINES.targets,
        "fake": "ual_ray.engines.fake:FakeEngine",
    },
)
