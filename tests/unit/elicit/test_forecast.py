"""What an elicitation will cost, and the two rows that are sent before all others."""

from __future__ import annotations

from typing import Any

import pytest

from ual_ray.config import Config
from ual_ray.config.load import load
from ual_ray.data.peek import peek
from ual_ray.elicit import stage
from ual_ray.elicit.forecast import forecast
from ual_ray.engines.requests import ChoiceResult, CompletionResult, Failure, Request, Result
from ual_ray.errors import UserError

ROWS = [[{"role": "user", "content": f"q{at}"}, {"role": "assistant", "content": "a"}] for at in range(2)]


def config(*overrides: str) -> Config:
    return load(None, ["elicit.estimators=[verbalized_error]", "elicit.retest_share=0", *overrides])


def test_calls_tokens_and_money_are_estimated_from_the_rows() -> None:
    prices = ["engine.price_per_million_prompt_tokens=2", "engine.price_per_million_generated_tokens=8"]
    given = config("data.path=demo", *prices)
    told = forecast(given, peek(given.data), 1000)
    assert (told.rows, told.calls, told.generated_tokens) == (1000, 1000, 1000)
    assert told.money == pytest.approx((2 * told.prompt_tokens + 8 * 1000) / 1e6)
    assert dict(told.lines())["cost"] == f"at most {told.money:,.2f}"


@pytest.mark.parametrize(("overrides", "calls", "generated"), [
    (["elicit.mode=sampled"], 100, 100 * 8 * 32), (["elicit.thinking_tokens=500"], 200, 100 * 533),
    (["elicit.scale=0-100"], 1100, 1100), (["elicit.scale=1-5"], 100, 100),
    (["elicit.retest_share=0.5"], 150, 150), (["elicit.self_check=20"], 120, 120),
    (["elicit.estimators=[verbalized_error,self_consistency,semantic_entropy]", "elicit.max_new_tokens=10"], 200, 100 * 81),
    (["elicit.estimators=[nll]", "elicit.uncertainty=nll"], 100, 0),
])  # fmt: skip
def test_every_request_counts_once(overrides: list[str], calls: int, generated: int) -> None:
    given = config("data.path=demo", *overrides)
    told = forecast(given, peek(given.data), 100)
    assert (told.calls, told.generated_tokens) == (calls, generated)
    assert "not known" in dict(told.lines())["cost"]


def test_a_server_thinks_and_rates_in_one_call() -> None:
    given = config("data.path=demo", "engine.kind=openai", "elicit.model=m", "elicit.thinking_tokens=500")
    told = forecast(given, peek(given.data), 100)
    assert (told.calls, told.generated_tokens) == (100, 100 * 532)


class Engine:
    template_hash = "t"
    adaptations = ("n > 1 sent as n requests of one",)

    def __init__(self, result: Result) -> None:
        self.result, self.closed = result, False

    def run(self, requests: Any) -> list[Result]:
        self.asked: list[Request] = list(requests)
        return [self.result] * len(self.asked)

    def close(self) -> None:
        self.closed = True


def tried(monkeypatch: pytest.MonkeyPatch, result: Result) -> tuple[Engine, list[str]]:
    engine = Engine(result)
    monkeypatch.setattr(stage, "make_engine", lambda spec: engine)
    return engine, stage.try_server(config("engine.kind=openai"), ROWS)


def test_a_trial_asks_about_two_rows_and_says_what_was_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, notes = tried(monkeypatch, ChoiceResult((-3.0,) * 10, 1))
    assert (len(engine.asked), engine.closed, notes) == (2, True, ["n > 1 sent as n requests of one"])


def test_a_trial_names_what_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    _, notes = tried(monkeypatch, CompletionResult(("<think>hm",), 1, 1))
    assert notes[0] == "2 rows tried: 2 without a score, unparsable: the thought did not end"


@pytest.mark.parametrize(("words", "advice"), [
    ("'logprobs' is not supported", "engine.endpoint.logprobs=false elicit.mode=sampled"),
    ("malformed reply, no log-probabilities", "engine.endpoint.logprobs=false elicit.mode=sampled"),
    ("'temperature' is odd", "engine.endpoint.temperature=null"), ("give a frobnicator", "engine.endpoint.extra_body"),
    ("You exceeded your current quota", "raise the quota"),
    ("rate limit 429: slow down", "engine.endpoint.requests_per_minute"),
    ("Logprobs is not enabled for this model", "engine.endpoint.logprobs=false elicit.mode=sampled"),
    ("parameter.enable_thinking must be set to false", "engine.endpoint.extra_body={enable_thinking: false}"),
    ("only support stream mode, please enable the stream parameter", "another model or server: replies in streams"),
])  # fmt: skip
def test_a_server_that_refuses_all_stops_in_its_own_words(words: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as raised:
        tried(monkeypatch, Failure(f"engine: refused by the server 400: {words}"))
    assert words in str(raised.value) and advice in str(raised.value)
