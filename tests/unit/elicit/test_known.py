"""Scores taken over from the store of other settings: only what they concern is asked again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ual_ray import columns as col
from ual_ray.config import Config, EngineConfig
from ual_ray.config.load import load
from ual_ray.elicit.estimators import make_estimators
from ual_ray.elicit.known import KnownScores, estimator_keys, find_known, note_estimators
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.elicit.step import measuring
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines.requests import Request, Result
from ual_ray.engines.row_store import RowStore
from ual_ray.parquet import write_table

BASE = ("elicit.estimators=[verbalized_error,nll]", "engine.kind=fake", "elicit.retest_share=0")
TEXTS = [f"question {number}" for number in range(12)]


class Counting:
    """The fake engine, which counts its requests by kind."""

    template_hash = "counted"

    def __init__(self) -> None:
        self._engine = make_engine(EngineSpec(EngineConfig(kind="fake"), "fake"))
        self.calls: Counter[str] = Counter()

    def run(self, requests: Sequence[Request]) -> list[Result]:
        self.calls.update(type(request).__name__ for request in requests)
        return self._engine.run(requests)


def config_of(*overrides: str) -> Config:
    return load(None, [*BASE, *overrides])


def keys_of(config: Config) -> dict[str, str]:
    return estimator_keys(make_estimators(config.elicit, config.seed), measuring(config))


def rows() -> list[dict[str, Any]]:
    said = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in TEXTS]
    return [
        {"id": f"{place:016x}", "source": "s", "split": "train", "given_id": None, "messages": messages}
        for place, messages in enumerate(said)
    ]


def score(config: Config, stores: Path, name: str, *, take: bool = True) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Score all rows as an actor does, and leave them in the store of that name."""
    store, engine = RowStore(stores / name, col.measured_schema(config.elicit.estimators)), Counting()
    note_estimators(store.folder, keys_of(config))
    known = find_known(store.folder, keys_of(config)) if take else KnownScores({})
    scored = ScoreRows(config.elicit, seed=config.seed, known=known.of)(rows(), engine)
    store.finished.mkdir(parents=True)
    write_table(pa.Table.from_pylist(scored, store.schema), store.finished / "a.parquet")
    return scored, engine.calls


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ("elicit.estimators=[verbalized_error,nll,p_true]", {"Choice": 2 * len(TEXTS)}),
        ("elicit.estimators=[nll,verbalized_error]", {}),
        ("elicit.estimators=[verbalized_error,nll,self_consistency]", {"Completion": len(TEXTS)}),
        ("engine.max_model_len=2048", {}),
        ("seed=7", {}),
        ("elicit.samples=16", {}),
        ("elicit.scale=1-5", {"Choice": len(TEXTS)}),
        ("elicit.min_choice_mass=0.5", {"Choice": len(TEXTS)}),
    ],
)
def test_a_changed_setting_asks_only_what_it_concerns(change: str, asked: dict[str, int], tmp_path: Path) -> None:
    score(config_of(), tmp_path, "first")
    config = config_of(change)
    taken, calls = score(config, tmp_path, "second")
    assert calls == Counter(asked)
    anew, _ = score(config, tmp_path / "elsewhere", "alone", take=False)
    for name in config.elicit.estimators:
        for column in (col.uncertainty_column(name), col.raw_column(name), col.mass_column(name), col.finish_column(name)):
            assert [row[column] for row in taken] == [row[column] for row in anew], column
    assert [row[col.STATUS] for row in taken] == [row[col.STATUS] for row in anew]


def test_a_seed_concerns_what_is_sampled(tmp_path: Path) -> None:
    sampled = ("elicit.estimators=[nll,self_consistency]", "elicit.uncertainty=nll")
    score(config_of(*sampled), tmp_path, "first")
    assert score(config_of(*sampled, "seed=7"), tmp_path, "second")[1] == Counter(Completion=len(TEXTS))


def test_rows_of_another_layout_are_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys_of(config_of())
    monkeypatch.setattr(col, "SCHEMA_VERSION", col.SCHEMA_VERSION + 1)
    assert not set(before.values()) & set(keys_of(config_of()).values())


@pytest.mark.parametrize("change", ["elicit.model=gpt", "elicit.retries=5", "engine.dtype=float32"])
def test_what_concerns_all_scores_takes_none_over(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ual_ray.elicit.step.model_fingerprint", lambda name: name)
    assert not set(keys_of(config_of()).values()) & set(keys_of(config_of(change)).values())


def test_a_row_without_a_score_and_a_shortened_one_are_asked_again(tmp_path: Path) -> None:
    config = config_of()
    scored, _ = score(config, tmp_path, "first")
    scored[0][col.uncertainty_column("nll")] = None
    scored[1][col.TRUNCATED] = True
    store = RowStore(tmp_path / "first", col.measured_schema(config.elicit.estimators))
    write_table(pa.Table.from_pylist(scored, store.schema), store.finished / "a.parquet")
    known = find_known(tmp_path / "second", keys_of(config)).of([row["id"] for row in scored[:3]])
    assert [sorted(own) for own in known] == [["verbalized_error"], [], ["nll", "verbalized_error"]]


def test_no_store_and_no_row_give_nothing(tmp_path: Path) -> None:
    assert find_known(tmp_path / "own", keys_of(config_of())).found == {}
    assert KnownScores({}).of(["a", "b"]) == [{}, {}]


def test_a_retest_is_taken_over_with_its_score(tmp_path: Path) -> None:
    all_twice = "elicit.retest_share=1"
    first, _ = score(config_of(all_twice), tmp_path, "first")
    second, calls = score(config_of(all_twice, "elicit.estimators=[verbalized_error,nll,p_true]"), tmp_path, "second")
    column = col.retest_column("verbalized_error")
    assert any(row[column] is not None for row in first)
    assert [row[column] for row in first] == [row[column] for row in second]
    # p_true in both orders, twice.
    assert calls == Counter(Choice=4 * len(TEXTS))
