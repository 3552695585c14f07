"""From the store to the results at hand: each answer once, under the name at hand, and where the extractions differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ual_ray import columns as col
from ual_ray.config import BenchmarkConfig, Config, EngineConfig, EvaluateConfig
from ual_ray.config.keys import engine_settings
from ual_ray.engines.row_store import RowStore
from ual_ray.errors import UserError
from ual_ray.evaluate import stage
from ual_ray.evaluate.stage import (
    DISAGREEMENTS_FILE,
    check_engine,
    disagreements,
    engine_of,
    model_digest,
    sample_table,
)
from ual_ray.parquet import write_rows, write_tables
from ual_ray.stats.results import metrics_of, read_results


def row(identity: str, strict: str | None = "7", flexible: str | None = "7", **more: Any) -> dict[str, Any]:
    extracted = [("strict", strict), ("flexible", flexible)]
    values = {"id": identity, "benchmark": "gsm8k", "source": "s", "model": "old", "prediction": f"says {flexible}"}
    scores = [("exact_match_strict", float(strict == "7")), ("exact_match_flexible", float(flexible == "7"))]
    messages = [{"role": "user", "content": f"q {identity}"}]
    full = values | {"status": "ok", "answer": "7", "extracted": extracted, "scores": scores, "messages": messages}
    return {name: (full | more).get(name) for name in col.RESULTS.names}


@pytest.fixture
def store(tmp_path: Path) -> RowStore:
    store = RowStore(tmp_path / "store", col.RESULTS)
    store.finished.mkdir(parents=True)
    write_rows([row("a"), row("b", None, "7"), row("other benchmark")], col.RESULTS, store.finished / "1.parquet")
    write_rows([row("a", "8", "8"), row("c", "7", "9")], col.RESULTS, store.finished / "2.parquet")
    failed = row("d", status="quarantined", error="engine: away", scores=[], extracted=[], prediction=None)
    store.add_failed(pa.Table.from_pylist([failed], col.RESULTS))
    return store


def select(store: RowStore, folder: Path, *wanted: str) -> None:
    results = stage.with_model(store.select(pa.chunked_array([list(wanted)])), "ual")
    write_tables(results, col.RESULTS, folder / col.RESULTS_FOLDER)


def test_the_answers_at_hand_are_taken_once_and_renamed(store: RowStore, tmp_path: Path) -> None:
    select(store, tmp_path, "d", "a", "b", "c", "lost")
    results = read_results(tmp_path)
    assert results.schema.equals(col.RESULTS)
    assert results["id"].to_pylist() == ["a", "b", "c", "d"]
    assert set(results["model"].to_pylist()) == {"ual"}
    assert dict(results["extracted"].to_pylist()[0])["strict"] == "7", "the first answer stays"
    select(store, tmp_path, "a")
    assert len(read_results(tmp_path, ["id"])) == 1, "an earlier selection is replaced"


def test_disagreements_are_listed_and_written(store: RowStore, tmp_path: Path) -> None:
    select(store, tmp_path, "a", "b", "c", "d")
    found = sorted(disagreements(tmp_path), key=lambda one: one["id"])
    assert [(one["id"], one["strict"], one["flexible"]) for one in found] == [("b", None, "7"), ("c", "7", "9")]
    assert found[0]["prediction"] == "says 7"
    assert stage._write_disagreements(tmp_path) == 2
    lines = (tmp_path / DISAGREEMENTS_FILE).read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {"b", "c"}
    select(store, tmp_path, "a")
    assert stage._write_disagreements(tmp_path) == 0
    assert not (tmp_path / DISAGREEMENTS_FILE).exists()


def test_what_is_told_of_a_model(store: RowStore, tmp_path: Path) -> None:
    select(store, tmp_path, "a", "b", "c", "d")
    told = stage._describe("ual", read_results(tmp_path, stage.NUMBERS))
    assert (told["name"], told["rows"], told["quarantined"], told["reasons"]) == ("ual", 4, 1, {"engine": 1})
    assert told["benchmarks"] == {"gsm8k": {"rows": 4, "quarantined": 1}}
    values = metrics_of(told["figures"])
    assert values["gsm8k.exact_match_strict.overall"] == pytest.approx(2 / 3), "a failed row is not wrong"
    assert values["gsm8k.exact_match_strict.overall.n"] == 3


def test_a_table_for_people(store: RowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SAMPLED_ROWS", 3)
    select(store, tmp_path, "a", "b", "c", "d")
    columns = sample_table(tmp_path)
    assert {len(values) for values in columns.values()} == {3}
    assert columns["question"][0] == "q a"
    assert json.loads(columns["extracted"][0]) == {"strict": "7", "flexible": "7"}
    json.dumps(columns)


def test_what_affects_an_answer_is_in_the_engines_digest() -> None:
    def settings(config: Config) -> dict[str, Any]:
        return engine_settings(engine_of(config), "answers")

    base, same = Config(), Config(engine=EngineConfig(max_actors=4, batch_size=8, dtype="float32"))
    assert settings(base) == settings(same), "evaluation has a dtype of its own"
    others = [Config(evaluate=EvaluateConfig(dtype="bfloat16")), Config(engine=EngineConfig(max_model_len=512))]
    assert all(settings(other) != settings(base) for other in others)
    assert len(model_digest(base, "hub/model")) == 16 and model_digest(base, "hub/model") != model_digest(base, "hub/other")


def test_a_server_cannot_give_likelihoods() -> None:
    likelihood = EvaluateConfig(benchmarks={"arc": BenchmarkConfig(kind="multiple_choice", path="x")})
    check_engine(Config(evaluate=likelihood))
    server = Config.model_construct(engine=EngineConfig(kind="openai"), evaluate=likelihood)
    with pytest.raises(UserError, match="arc: a server does not give the likelihood"):
        check_engine(server)
    answers = EvaluateConfig(benchmarks={"g": BenchmarkConfig(kind="gsm8k", path="x")})
    check_engine(Config.model_construct(engine=EngineConfig(kind="openai"), evaluate=answers))
