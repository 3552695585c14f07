"""Two rows sent to a server before all others: it states what it refuses while nothing is paid for yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ual_ray.columns import Messages
from ual_ray.config import Config
from ual_ray.elicit.estimators import make_estimators
from ual_ray.elicit.replies import Known, answer, asked_with, no_replies, request_key
from ual_ray.elicit.scoring import needed
from ual_ray.engines import Engine, EngineSpec, make_engine
from ual_ray.engines.requests import Failure
from ual_ray.errors import UserError
from ual_ray.formatting import plural

TRIAL_ROWS = 2
# What to set, by a word of the server's refusal.
ADVICE = {
    **dict.fromkeys(("logprobs", "log-probabilities"), "set engine.endpoint.logprobs=false elicit.mode=sampled"),
    "max_completion_tokens": "set engine.endpoint.max_tokens_field=max_completion_tokens",
    "temperature": "set engine.endpoint.temperature=null",
    "thinking": "set elicit.thinking_tokens, or engine.endpoint.chat_template_kwargs",
    "effort": "set engine.endpoint.reasoning_effort",
}
OTHERWISE = "set what the server asks for in engine.endpoint.extra_body"


def try_server(config: Config, rows: Sequence[Messages], asked: str = "", known: Known = no_replies) -> list[str]:
    """Send the rows, but for `known` replies, and return notes on what was adapted and what has no score.

    Raises UserError, in the server's words, when it answers no request about these rows.
    """
    spec = EngineSpec(config.engine.model_copy(update={"max_actors": 1, "min_actors": 1}), config.elicit.model)
    engine = make_engine(spec)
    try:
        return [*_unscored(config, rows, engine, asked, known), *getattr(engine, "adaptations", [])]
    finally:
        if (close := getattr(engine, "close", None)) is not None:
            close()


def _unscored(config: Config, rows: Sequence[Messages], engine: Engine, asked: str, known: Known) -> list[str]:
    estimators = {
        name: made for name, made in make_estimators(config.elicit, config.seed).items() if name in needed(config.elicit)
    }
    wanted = [(estimator, messages, list(estimator.asked(messages))) for messages in rows for estimator in estimators.values()]
    whom = asked_with(asked, engine.template_hash)
    results = answer(engine, {request: request_key(whom, request) for *_, own in wanted for request in own}, known)
    refused = [
        result.reason for result in results.values() if isinstance(result, Failure) and result.reason.startswith("engine:")
    ]
    if refused and len(refused) == len(results):
        words = Counter(refused).most_common(1)[0][0]
        advice = next((text for word, text in ADVICE.items() if word in words), OTHERWISE)
        raise UserError(
            f"{config.elicit.model} answers none of {plural(len(results), 'request')} about {plural(len(rows), 'row')}",
            got=words,
            fix=advice,
        )
    estimates = [estimator.estimate([results[request] for request in own], messages) for estimator, messages, own in wanted]
    failed = [result.reason for result in results.values() if isinstance(result, Failure)]
    reasons = Counter(
        [*failed, *(estimate.reason for estimate in estimates if estimate.reason and estimate.reason not in failed)]
    )
    return [f"{plural(len(rows), 'row')} tried: {count} without a score, {reason}" for reason, count in reasons.most_common(2)]
