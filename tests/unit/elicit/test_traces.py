"""Traces of the elicitor's calls: prompts that are made again and found with the stored replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scoring_engines import Row, row

from ual_ray import columns as col
from ual_ray.columns import digest
from ual_ray.config import Config
from ual_ray.config.load import load
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.elicit.traces import sampled_traces
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines.requests import turns
from ual_ray.engines.row_store import RowStore
from ual_ray.engines.traces import chat, sample
from ual_ray.parquet import write_rows

ESTIMATORS = ("verbalized_error", "p_true", "nll", "self_consistency")
SETTINGS = ["engine.kind=fake", f"elicit.estimators=[{','.join(ESTIMATORS)}]", "elicit.uncertainty=p_true", "elicit.model=big"]


def scored(folder: Path, config: Config, rows: list[Row], **changed: Any) -> list[Row]:
    """Score rows into a store and a folder of scores, as the stage does."""
    schema = col.measured_schema(config.elicit.estimators)
    engine = make_engine(EngineSpec(config.engine, config.elicit.model))
    task = ScoreRows(config.elicit, config.engine.overlong, config.seed, "asked", **changed)
    measured = task(rows, engine)
    store = RowStore(folder / "store", schema)
    for place in (store.finished, folder / "scored"):
        place.mkdir(parents=True)
        write_rows(measured, schema, place / "a.parquet")
    return measured


def traces_of(folder: Path, config: Config) -> dict[str, Any]:
    return {trace["id"]: trace for trace in sampled_traces(config, folder / "scored", folder / "store", "asked")}


def test_every_reply_of_a_sampled_row_stands_with_its_prompt(tmp_path: Path) -> None:
    config = load(None, [*SETTINGS, "tracking.traces=7", "elicit.retest_share=1"])
    rows = [row(digest(number), f"Question {number}?", f"Answer {number}.") for number in range(20)]
    measured = {one[col.ID]: one for one in scored(tmp_path, config, rows)}
    traces = traces_of(tmp_path, config)
    assert list(traces) == sample(measured, 7)
    for identity, trace in traces.items():
        one = measured[identity]
        root, *calls = trace["spans"]
        assert root["inputs"] == chat(turns(one[col.MESSAGES]))
        assert root["outputs"]["uncertainty"] == {name: one[col.uncertainty_column(name)] for name in ESTIMATORS}
        assert len(calls) == len(one[col.REPLIES]) > len(ESTIMATORS)
        assert {name for span in calls for name in span["attributes"]["estimators"]} == set(ESTIMATORS)
        for span, entry in zip(calls, one[col.REPLIES], strict=True):
            question = one[col.MESSAGES][0]["content"]
            assert any(question in message["content"] for message in span["inputs"]["messages"])
            if entry.get("texts") is not None:
                replies = [(choice["message"]["content"], choice["finish_reason"]) for choice in span["outputs"]["choices"]]
                assert replies == [*zip(entry["texts"], entry["finish_reasons"], strict=True)]
            if entry.get("choices"):
                assert list(span["outputs"]["probabilities"]) == entry["choices"]
                assert sum(span["outputs"]["probabilities"].values()) == pytest.approx(1)


def test_a_truncated_row_has_its_replies_without_the_prompts_that_were_cut(tmp_path: Path) -> None:
    config = load(None, [*SETTINGS, "engine.overlong=truncate", "engine.max_model_len=120", "elicit.retest_share=0"])
    long = " ".join(f"word{number}" for number in range(400))
    (one,) = scored(tmp_path, config, [row(digest(0), "What?", long)])
    assert one[col.TRUNCATED]
    (trace,) = traces_of(tmp_path, config).values()
    inputs = [span["inputs"]["messages"] for span in trace["spans"][1:]]
    assert len(inputs) == len(one[col.REPLIES]) > 0
    assert "not stored" in inputs
    assert trace["spans"][0]["attributes"]["truncated"] is True


def test_another_elicitor_s_replies_get_no_prompt_of_this_one(tmp_path: Path) -> None:
    config = load(None, SETTINGS)
    scored(tmp_path, config, [row(digest(0))])
    (trace,) = sampled_traces(config, tmp_path / "scored", tmp_path / "store", "asked otherwise")
    assert {span["inputs"]["messages"] for span in trace["spans"][1:]} == {"not stored"}
