"""Score a batch of rows with one engine: gather the requests, send each different one once, reduce to scalars.

Pure glue: it runs inside an actor, so nothing token-sized ever leaves it, and inside a unit test as it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from ual_ray import columns as col
from ual_ray.config import AUTO, ENSEMBLE, ElicitConfig
from ual_ray.elicit.estimators import Estimate, make_estimators
from ual_ray.elicit.estimators.contract import checked
from ual_ray.elicit.prompts import load_prompts, prompt_hash
from ual_ray.elicit.replies import Kept, Known, answer, asked_with, keep, no_replies, request_key
from ual_ray.engines import Engine
from ual_ray.engines.reply_text import CUT
from ual_ray.engines.requests import ChoiceResult, CompletionResult, Failure, Overlong, Request, Result
from ual_ray.models.truncate import MOST_CUTS, shorten

Row = dict[str, Any]

# A retest asks with seeds that no retry of the first test has used.
RETEST_ATTEMPT = 1000


@dataclass
class Measurement:
    """What is known of one row: an estimate per estimator, every result, and what was asked: last, and ever by whom.

    messages: what is asked about, which may be cut. whole: the row as it is, whose response the elicitor's answers are compared
    with.
    """

    messages: col.Messages
    whole: col.Messages
    estimates: dict[str, Estimate] = field(default_factory=dict)
    results: dict[Request, Result] = field(default_factory=dict)
    keys: dict[Request, int] = field(default_factory=dict)
    asked_by: dict[Request, dict[str, None]] = field(default_factory=dict)
    asked: dict[str, Sequence[Request]] = field(default_factory=dict)
    truncated: bool = False

    def ask(self, name: str, requests: Sequence[Request], key: Callable[[Request], int]) -> None:
        """Note an estimator's requests of a new attempt; `key` makes the key of a request."""
        self.asked[name] = requests
        for request in requests:
            self.asked_by.setdefault(request, {})[name] = None
            if request not in self.keys:
                self.keys[request] = key(request)

    def failures(self, name: str) -> list[Failure]:
        """The failed requests of an estimator's last attempt."""
        results = [self.results[request] for request in self.asked[name]]
        return [result for result in results if isinstance(result, Failure)]

    def mass(self, name: str) -> float | None:
        """The least probability of all choices together in an estimator's last attempt; None without log-probabilities."""
        results = [self.results[request] for request in self.asked[name]]
        return min((result.mass for result in results if isinstance(result, ChoiceResult)), default=None)

    def finish_reasons(self, name: str) -> list[str | None] | None:
        """Why the replies of an estimator's last attempt ended; None where no reply was sampled."""
        sampled = [result for request in self.asked[name] if isinstance(result := self.results[request], CompletionResult)]
        return [finish for result in sampled for _, finish in result.replies] if sampled else None

    def kept(self) -> list[Kept]:
        """The replies to keep, of every attempt."""
        entries = (keep(self.keys[asked], asked, result, [*self.asked_by[asked]]) for asked, result in self.results.items())
        return [entry for entry in entries if entry is not None]

    def reason(self, name: str) -> str:
        """Why an estimator has no value."""
        return f"{self.estimates[name].reason} ({name})" if self.estimates[name].reason else unparsable([name])

    def too_long(self) -> Overlong | None:
        """The overlong request that is furthest over the limit, if any."""
        found = [failure for name in self.asked for failure in self.failures(name) if isinstance(failure, Overlong)]
        return max(found, key=lambda failure: failure.tokens or 0, default=None)


class ScoreRows:
    """Add the columns of `columns.measured_schema` to rows.

    A row is quarantined, with its reason, when an estimator that `elicit.uncertainty` needs failed on it.
    """

    def __init__(
        self,
        config: ElicitConfig,
        overlong: Literal["drop", "truncate"] = "drop",
        seed: int = 0,
        asked: str = "",
        known: Known = no_replies,
    ) -> None:
        """Build the estimators. Raises UserError for an invalid template file.

        asked: identifies the elicitor in the keys of its replies (`known.asked_of`). known: those that need not be asked for.
        """
        self._config = config
        self._asked = asked
        self._known = known
        self._truncate = overlong == "truncate"
        self._estimators = make_estimators(config, seed)
        self._prompts = load_prompts(config.templates, config.examples)
        self._needed = needed(config)

    def __call__(self, rows: Sequence[Row], engine: Engine) -> list[Row]:
        """Score the rows."""
        measured = self._measure([Measurement(row[col.MESSAGES], row[col.MESSAGES]) for row in rows], engine)
        again = [index for index, row in enumerate(rows) if position(row[col.ID]) < self._config.retest_share][::-1]
        # In another order and company: what is measured is the noise of the score, not the engine's memory.
        retested = self._measure([measured[index] for index in again], engine, RETEST_ATTEMPT)
        second = dict(zip(again, retested, strict=True))
        prompts = prompt_hash(self._prompts, engine.template_hash)
        return [row | self._columns(row, measured[at], second.get(at), prompts) for at, row in enumerate(rows)]

    def _measure(self, of: Sequence[Measurement], engine: Engine, attempt: int = 0) -> list[Measurement]:
        measured = [Measurement(one.messages, one.whole) for one in of]
        everything = [*self._estimators]
        self._ask(dict.fromkeys(range(len(measured)), everything), measured, engine, attempt)
        for _ in range(MOST_CUTS if self._truncate else 0):
            cut = [index for index, measurement in enumerate(measured) if self._cut(measurement)]
            if not cut:
                break
            self._ask(dict.fromkeys(cut, everything), measured, engine, attempt)
        for retry in range(1, self._config.retries + 1):
            unparsed = {index: self._unparsed(measurement, attempt + retry) for index, measurement in enumerate(measured)}
            self._ask({index: names for index, names in unparsed.items() if names}, measured, engine, attempt + retry)
        return measured

    def _ask(self, wanted: Mapping[int, list[str]], measured: list[Measurement], engine: Engine, attempt: int) -> None:
        """Ask what the named estimators of the numbered rows need, all at once, and reduce."""
        whom, retest = asked_with(self._asked, engine.template_hash), attempt >= RETEST_ATTEMPT
        for index, names in wanted.items():
            measurement = measured[index]
            for name in names:
                requests = self._estimators[name].asked(measurement.messages, attempt)
                measurement.ask(name, requests, partial(request_key, whom, retest=retest))
        new = {index: _unanswered(measured[index], names) for index, names in wanted.items()}
        keys = {request: measured[index].keys[request] for index, requests in new.items() for request in requests}
        results = answer(engine, keys, self._known)
        for index, names in wanted.items():
            measurement = measured[index]
            measurement.results |= {request: results[request] for request in new[index]}
            for name in names:
                own = [measurement.results[request] for request in measurement.asked[name]]
                measurement.estimates[name] = checked(self._estimators[name].estimate(own, measurement.whole))

    def _cut(self, measurement: Measurement) -> bool:
        """Shorten the conversation if it is too long; tell whether it was."""
        failure = measurement.too_long()
        if failure is None:
            return False
        measurement.messages = shorten(measurement.messages, failure.tokens, failure.limit)
        measurement.truncated = True
        return True

    def _unparsed(self, measurement: Measurement, attempt: int) -> list[str]:
        """Name the estimators whose replies could not be read and whose next attempt asks something else."""
        return [
            name
            for name, estimator in self._estimators.items()
            if measurement.estimates[name].uncertainty is None
            and not (measurement.estimates[name].reason or "").startswith(CUT.reason)  # the next one would be cut as well
            and not measurement.failures(name)
            and list(estimator.asked(measurement.messages, attempt)) != list(measurement.asked[name])
        ]

    def _columns(self, row: Row, measurement: Measurement, second: Measurement | None, prompts: str) -> Row:
        columns: Row = {}
        for name in self._estimators:
            estimate = measurement.estimates[name]
            columns[col.uncertainty_column(name)] = estimate.uncertainty
            columns[col.raw_column(name)] = estimate.raw
            columns[col.retest_column(name)] = second.estimates[name].uncertainty if second is not None else None
            columns[col.mass_column(name)] = measurement.mass(name)
            columns[col.finish_column(name)] = measurement.finish_reasons(name)
        missing = [name for name in self._needed if measurement.estimates[name].uncertainty is None]
        failures = {failure.reason for name in measurement.asked for failure in measurement.failures(name)}
        unread = {measurement.reason(name) for name in missing} if not failures else set()
        paid = [*measurement.results.values(), *(second.results.values() if second is not None else ())]
        return columns | {
            col.RESPONSE_LENGTH: response_length(row[col.MESSAGES]),
            col.TRUNCATED: measurement.truncated,
            col.STATUS: col.STATUS_QUARANTINED if missing else col.STATUS_OK,
            col.ERROR: "; ".join(sorted(failures | unread)) or None,
            col.ELICITOR: self._config.model,
            col.PROMPT_HASH: prompts,
            col.PROMPT_TOKENS: sum(result.prompt_tokens for result in paid),
            col.GENERATED_TOKENS: sum(result.generated_tokens for result in paid),
            col.CALLS: sum(result.calls for result in paid),
            col.REPLIES: [*measurement.kept(), *(second.kept() if second is not None else ())],
        }


def needed(config: ElicitConfig) -> tuple[str, ...]:
    """Name the estimators without whose score a row is quarantined; all of them while none is selected."""
    if config.uncertainty == AUTO:
        return config.estimators
    return (config.ensemble or config.estimators) if config.uncertainty == ENSEMBLE else (config.uncertainty,)


def unparsable(names: Iterable[str]) -> str:
    """Write the error of a row on which these estimators have no parsable reply."""
    return f"unparsable: no usable reply for {', '.join(names)}"


def response_length(messages: col.Messages) -> int:
    """Count the characters of all replies that are trained on."""
    return sum(len(col.response_of(messages[at])) for at in col.trained_replies(messages))


def position(identity: str) -> float:
    """Place a row by its id, in [0, 1), independent of the splits, which go by the id's first digits."""
    digits = identity[::-1][:13]  # as many as a float holds exactly
    return int(digits, 16) / 16 ** len(digits)


def _unanswered(measurement: Measurement, names: Iterable[str]) -> list[Request]:
    """List what has not been asked before: a shorter response leaves the questions without it as they were."""
    asked = (request for name in names for request in measurement.asked[name])
    return [request for request in asked if request not in measurement.results]
