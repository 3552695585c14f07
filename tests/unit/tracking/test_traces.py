"""Traces in a real local store: found by their run, shown as calls, logged once, and without secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tracked import Network, tracker_of

from ual_ray.engines.traces import FIRST_DIGIT, LONGEST_TEXT, call, sample, sampled
from ual_ray.tracking.run import Run
from ual_ray.tracking.tracker import Tracker

ASK = (("system", "Be brief."), ("user", "Right?"))


def trace(identity: str = "a", text: str = "Yes.") -> dict[str, Any]:
    root = {"name": "elicit", "type": "CHAIN", "inputs": {"row": identity}, "outputs": {"uncertainty": 0.25}, "attributes": {}}
    calls = [call("p_true", ASK, sampled([text], ["stop"]), {"seed": 3}), call("nll", None, {"nll_sum": 1.5}, {})]
    return {"id": identity, "name": "elicit", "spans": [root, *calls]}


def found(tracker: Tracker, run: Run) -> list[Any]:
    return list(tracker.client.search_traces(locations=[tracker.experiment_id], run_id=run.id))


@pytest.mark.slow
def test_a_trace_has_its_calls_with_prompt_reply_and_finish_reason(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("elicit", tmp_path, {}) as run:
        run.traces(lambda: [trace("a"), trace("b")])
    assert tracker.failures == 0
    logged = {one.info.client_request_id: one for one in found(tracker, run)}
    assert sorted(logged) == ["a", "b"]
    root, rating, likelihood = logged["a"].data.spans
    assert (root.parent_id, root.inputs, root.outputs, root.span_type) == (None, {"row": "a"}, {"uncertainty": 0.25}, "CHAIN")
    assert {rating.parent_id, likelihood.parent_id} == {root.span_id}
    assert (rating.name, rating.span_type, rating.attributes["seed"]) == ("p_true", "CHAT_MODEL", 3)
    assert rating.inputs == {"messages": [{"role": role, "content": text} for role, text in ASK]}
    assert rating.outputs["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
    ]
    assert (likelihood.inputs, likelihood.outputs) == ({"messages": "not stored"}, {"nll_sum": 1.5})
    assert logged["a"].info.tags["mlflow.traceName"] == "elicit"
    assert logged["a"].info.request_preview == '{"row": "a"}'


@pytest.mark.slow
def test_the_trace_of_a_row_that_failed_says_so(tmp_path: Path, network: Network) -> None:
    failed, fine = trace("a"), trace("b")
    failed["spans"][0]["outputs"] = {"uncertainty": None, "status": "quarantined", "error": "parse: no number"}
    fine["spans"][0]["outputs"] = {"uncertainty": 0.5, "status": "ok", "error": "one of two replies has no number"}
    tracker = tracker_of(tmp_path)
    with tracker.run("elicit", tmp_path, {}) as run:
        run.traces(lambda: [failed, fine])
    states = {one.info.client_request_id: (one.info.state, one.data.spans[0].status.status_code) for one in found(tracker, run)}
    assert states == {"a": ("ERROR", "ERROR"), "b": ("OK", "OK")}


@pytest.mark.slow
def test_traces_wait_for_a_server_that_is_away_and_are_logged_once(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("elicit", tmp_path, {}) as run:
        network.loses_answers = True
        run.traces(lambda: [trace("a")])
        network.away = network.loses_answers = False
    assert tracker.close(30) == 0
    assert network.applied.count("traces") == 2
    run.traces(lambda: [trace("a", "No.")])
    (one,) = found(tracker, run)
    assert [span.outputs for span in one.data.spans if span.name == "p_true"] == [sampled(["No."], ["stop"])]


@pytest.mark.slow
def test_secrets_are_masked(tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "planted-secret-value")
    tracker = tracker_of(tmp_path)
    with tracker.run("elicit", tmp_path, {}) as run:
        run.traces(lambda: [trace("a", "It is planted-secret-value at http://me:pass@host/x")])
    (one,) = found(tracker, run)
    assert "planted-secret-value" not in one.to_json() and "me:pass" not in one.to_json()
    assert "It is *** at http://***@host/x" in one.to_json()


@pytest.mark.slow
def test_what_cannot_be_sampled_is_counted_and_stops_nothing(tmp_path: Path, network: Network) -> None:
    tracker = tracker_of(tmp_path)
    with tracker.run("elicit", tmp_path, {}) as run:
        run.traces(lambda: [{}[0]])
        run.traces(list)
    assert tracker.failures == 1
    assert "traces" not in network.applied


def test_the_sample_is_the_same_whatever_the_order_and_ignores_the_digits_of_splits() -> None:
    ids = [f"{number:04x}{(number * 7919) % 65521:012x}" for number in range(1000)]
    chosen = sample(ids, 50)
    assert sorted(sample(reversed(ids), 50)) == sorted(chosen) and len(set(chosen)) == 50
    assert chosen == sorted(ids, key=lambda identity: identity[FIRST_DIGIT:])[:50]
    assert len({identity[:FIRST_DIGIT] > "01f4" for identity in chosen}) == 2
    assert set(sample(ids, 20)) < set(chosen)


def test_long_texts_are_truncated() -> None:
    long = "x" * (LONGEST_TEXT + 1)
    span = call("p_true", (("user", long),), sampled([long], [None]), {})
    texts = span["inputs"]["messages"][0]["content"], span["outputs"]["choices"][0]["message"]["content"]
    assert {len(text) for text in texts} == {LONGEST_TEXT}
