"""Every estimator, map, weight, loss, format, benchmark and engine, by the name that the configuration uses: one line each.

An entry is "module:attribute", imported when it is looked up, because configuration is below the folders it names. Another
package adds entries through entry points of the group "ual_ray.estimators" (maps, formats, ...); see docs/extending.md.
"""

import difflib
import hashlib
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ual_ray.errors import UserError

OWN = __name__.partition(".")[0]


class Registry(Mapping[str, Any]):
    """Objects of one kind by name. Iteration gives the names and imports nothing; a lookup imports one object."""

    def __init__(
        self,
        kind: str,
        targets: Mapping[str, str],
        *,
        plural: str | None = None,
        holds: Literal["class", "function", "value"] = "class",
        reserved: Collection[str] = (),
    ) -> None:
        """Take the kind in the singular, and "module:attribute" by name, to which installed packages add.

        plural: of the kind, in the name of the group of entry points; with an s by default. holds: what every object is.
        reserved: names that mean something else, which packages cannot add. A name that two of them, or a package and this one,
        give to different things is refused when it is looked up: either could be meant.
        """
        self.kind, self.group = kind, f"ual_ray.{plural or f'{kind}s'}".replace(" ", "_")
        self.targets = dict(targets)
        self.reserved, self._holds = reserved, holds
        self._added: dict[str, list[EntryPoint]] = defaultdict(list)
        self._refused: set[str] = set()
        for point in _installed().select(group=self.group):
            if point.name in reserved:
                continue
            if self.targets.setdefault(point.name, point.value) != point.value:
                self._refused.add(point.name)
            self._added[point.name].append(point)

    def __getitem__(self, name: str) -> Any:
        """Import and return an object.

        Raises UserError for an unknown name, for one that means two things, and for an object that cannot be imported or is of
        the wrong kind.
        """
        if name not in self.targets:
            close = difflib.get_close_matches(name, self, n=1)
            fix = f"did you mean '{close[0]}'?" if close else None
            raise UserError(f"unknown {self.kind}", got=name, expected=", ".join(self), fix=fix)
        if name in self._refused:
            raise self._ambiguous(name)
        module, _, attribute = self.targets[name].partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except Exception as error:  # the module is anyone's code
            if self.is_own(name):
                raise
            raise UserError(
                f"the {self.kind} '{name}' cannot be imported",
                got=f"{self.where(name)}: {type(error).__name__}: {error}",
                expected="MODULE:NAME of a package that is installed on this machine and on every node of the cluster",
                fix=f"correct the module, or the entry point in the group {self.group}, and install the package again",
            ) from error
        self._check(name, found)
        return found

    def __contains__(self, name: object) -> bool:
        """Check for a name without importing its object."""
        return name in self.targets

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def version(self, name: str) -> str | None:
        """Hash the file of an object that is not this package's own, for cache keys; None for its own, and where there is none.

        The package's own results have versions of their own.
        """
        if self.is_own(name):
            return None
        try:
            spec = find_spec(self.targets[name].partition(":")[0])
        except ImportError:
            return None
        file = Path(spec.origin) if spec and spec.has_location and spec.origin else None
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file and file.is_file() else None

    def check(self, name: str) -> None:
        """Import an object that is not this package's own. Raises UserError as a lookup does."""
        if name in self._refused or not self.is_own(name):
            self[name]

    def where(self, name: str) -> str:
        """Describe what a name stands for, for errors: "MODULE:NAME", with the package that added it."""
        packages = sorted({point.dist.name for point in self._added.get(name, ()) if point.dist})
        return self.targets[name] + (f" of the package {', '.join(packages)}" if packages else "")

    def is_own(self, name: str) -> bool:
        """Tell whether an object is in this package's code, which raises versions where its results change."""
        return self.targets[name].partition(".")[0] == OWN

    @contextmanager
    def calling(self, name: str, *meant: type[Exception]) -> Iterator[None]:
        """Within it, raise UserError for an error of an object of another package, with the line that raised it.

        meant: errors by which such an object tells something.
        """
        try:
            yield
        except Exception as error:  # it is anyone's code
            if isinstance(error, (UserError, *meant)) or self.is_own(name):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"the {self.kind} '{name}' fails",
                got=f"{type(error).__name__}: {error} (line {frame.lineno} of {frame.filename})",
                fix=f"correct {self.where(name)}",
            ) from error

    def _check(self, name: str, found: Any) -> None:
        """Raise UserError for a class in place of a function, a function in place of a class, and the like."""
        kind = "class" if isinstance(found, type) else "function" if callable(found) else "value"
        if kind != self._holds:
            plain = f"{type(found).__name__} {found!r}" if kind == "value" else kind
            raise UserError(
                f"the {self.kind} '{name}' is not a {self._holds}",
                got=f"{self.where(name)}, a {plain}",
                expected=f"a {self._holds}",
                fix=f"correct it, or the entry point in the group {self.group}, and install the package again",
            )

    def _ambiguous(self, name: str) -> UserError:
        values = [f"{point.value} of {point.dist.name if point.dist else 'a package'}" for point in self._added[name]]
        own = self.targets[name] not in {point.value for point in self._added[name]}
        return UserError(
            f"the {self.kind} '{name}' could be two things",
            got=", ".join(dict.fromkeys([*([self.targets[name]] if own else []), *values])),
            expected=f"names that are in neither ual_ray nor another package, in the group {self.group} of entry points",
            fix="rename the entry point and install its package again, or uninstall it",
        )


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
    reserved=("ensemble", "auto"),
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
    holds="function",
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
    holds="function",
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
    holds="function",
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
    plural="losses",
    holds="function",
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
    holds="value",
    reserved=("auto", "demo"),
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
