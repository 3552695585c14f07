"""Replies taken over from the stores of other settings: only what a change concerns is asked again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from driver_only import DRIVER, elsewhere

from ual_ray import columns as col
from ual_ray.config import Config, EngineConfig
from ual_ray.config.load import load
from ual_ray.elicit.known import OLD_FILE, asked_of, find_known, note_asked, stores_without_replies
from ual_ray.elicit.replies import Known, no_replies
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.elicit.step import measuring
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines.requests import Choice, Completion, Failure, Request, Result
from ual_ray.engines.row_store import RowStore
from ual_ray.parquet import write_table

BASE = ("elicit.estimators=[verbalized_error,nll]", "engine.kind=fake", "elicit.retest_share=0")
SAMPLED = ("elicit.estimators=[nll,self_consistency]", "elicit.uncertainty=nll", "elicit.samples=8")
TEXTS = [f"question {number}" for number in range(12)]
ROWS = len(TEXTS)


class Counting:
    """The fake engine, which counts its requests by kind, and the replies that are sampled."""

    template_hash = "counted"

    def __init__(self) -> None:
        self._engine = make_engine(EngineSpec(EngineConfig(kind="fake"), "fake"))
        self.calls: Counter[str] = Counter()

    def run(self, requests: Sequence[Request]) -> list[Result]:
        self.calls.update(type(request).__name__ for request in requests)
        self.calls["samples"] += sum(request.n for request in requests if isinstance(request, Completion))
        return self._engine.run(requests)


def config_of(*overrides: str) -> Config:
    return load(None, [*BASE, *overrides])


def rows() -> list[dict[str, Any]]:
    said = [[{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in TEXTS]
    return [
        {"id": f"{place:016x}", "source": "s", "split": "train", "given_id": None, "messages": messages}
        for place, messages in enumerate(said)
    ]


def score(config: Config, stores: Path, name: str, *, take: bool = True) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Score all rows as an actor does, and leave them in the store of that name."""
    store, engine = RowStore(stores / name, col.measured_schema(config.elicit.estimators)), Counting()
    asked = asked_of(measuring(config))
    note_asked(store.folder, asked)
    known: Known = find_known(store.folder, asked) if take else no_replies
    scored = ScoreRows(config.elicit, seed=config.seed, asked=asked, known=known)(rows(), engine)
    store.finished.mkdir(parents=True, exist_ok=True)
    write_table(pa.Table.from_pylist(scored, store.schema), store.finished / "a.parquet")
    return scored, engine.calls


def same_but_for_cost(taken: list[dict[str, Any]], anew: list[dict[str, Any]]) -> bool:
    cost = (col.PROMPT_TOKENS, col.GENERATED_TOKENS, col.CALLS)
    free = [{name: value for name, value in row.items() if name not in cost} for row in (*taken, *anew)]
    return free[: len(taken)] == free[len(taken) :]


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ("elicit.estimators=[verbalized_error,nll,p_true]", {"Choice": 2 * ROWS}),
        ("elicit.estimators=[nll,verbalized_error]", {}),
        ("elicit.estimators=[verbalized_error,nll,nll_sum]", {}),
        ("elicit.estimators=[verbalized_error,nll,self_consistency]", {"Completion": ROWS, "samples": 8 * ROWS}),
        ("engine.max_model_len=2048", {}),
        ('engine.arguments={"gpu_memory_utilization":0.5}', {}),
        ('engine.arguments={"enforce_eager":true,"max_num_seqs":8}', {}),
        ("seed=7", {}),
        ("elicit.samples=16", {}),
        ("elicit.retries=5", {}),
        ("elicit.scale=1-5", {"Choice": ROWS}),
        ("elicit.min_choice_mass=0.5", {}),
        ("elicit.estimators=[nll] elicit.uncertainty=nll", {}),
        ("elicit.uncertainty=ensemble", {}),
    ],
)
def test_a_changed_setting_asks_only_what_it_concerns(change: str, asked: dict[str, int], tmp_path: Path) -> None:
    score(config_of(), tmp_path, "first")
    config = config_of(*change.split())
    taken, calls = score(config, tmp_path, "second")
    assert calls == Counter(asked)
    assert sum(row[col.CALLS] for row in taken) == calls.total() - calls["samples"]
    assert same_but_for_cost(taken, score(config, tmp_path / "elsewhere", "alone", take=False)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ("elicit.grouping=lexical", {}),
        ("elicit.grouping=answer", {}),
        ("elicit.similarity=0.2", {}),
        ("elicit.estimators=[nll,self_consistency,semantic_entropy]", {}),
        ("elicit.samples=4", {}),
        ("elicit.samples=12", {"Completion": ROWS, "samples": 4 * ROWS}),
        ("seed=3", {"Completion": ROWS, "samples": 3 * ROWS}),
        ("elicit.temperature=0.5", {"Completion": ROWS, "samples": 8 * ROWS}),
        ("elicit.max_new_tokens=99", {"Completion": ROWS, "samples": 8 * ROWS}),
    ],
)
def test_sampled_replies_are_read_anew_without_being_asked_for(change: str, asked: dict[str, int], tmp_path: Path) -> None:
    score(config_of(*SAMPLED), tmp_path, "first")
    config = config_of(*SAMPLED, change)
    taken, calls = score(config, tmp_path, "second")
    assert calls == Counter(asked)
    assert same_but_for_cost(taken, score(config, tmp_path / "elsewhere", "alone", take=False)[0])


@pytest.mark.slow
def test_a_third_run_asks_what_none_before_it_asked(tmp_path: Path) -> None:
    for name, change in (("a", "elicit.samples=8"), ("b", "elicit.samples=12"), ("c", "seed=14")):
        score(config_of(*SAMPLED, change), tmp_path, name)
    # Seeds 0 to 11 and 14 to 21 were asked for.
    assert score(config_of(*SAMPLED, "elicit.samples=24"), tmp_path, "d")[1] == Counter(Completion=2 * ROWS, samples=4 * ROWS)


@pytest.mark.parametrize(
    "change",
    ["elicit.model=gpt", "engine.dtype=float32", "engine.chat_template_kwargs={a: 1}", "engine.arguments={quantization: fp8}"],
)
def test_what_concerns_all_replies_takes_none_over(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ual_ray.elicit.step.model_fingerprint", lambda name: name)
    assert asked_of(measuring(config_of())) != asked_of(measuring(config_of(change)))


def test_another_chat_template_takes_no_reply_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score(config_of(), tmp_path, "first")
    monkeypatch.setattr(Counting, "template_hash", "other")
    assert score(config_of("seed=1"), tmp_path, "second")[1] == Counter(Choice=ROWS, Likelihood=ROWS)


def test_a_retest_is_no_copy_of_the_test_and_is_taken_over_too(tmp_path: Path) -> None:
    score(config_of(), tmp_path, "first")
    twice = "elicit.retest_share=1"
    assert score(config_of(twice), tmp_path, "second")[1] == Counter(Choice=ROWS, Likelihood=ROWS)
    taken, calls = score(config_of(twice, "elicit.estimators=[verbalized_error,nll,p_true]"), tmp_path, "third")
    assert calls == Counter(Choice=4 * ROWS), "p_true in both orders, twice"
    assert all(row[col.retest_column("verbalized_error")] is not None for row in taken)


def test_the_replies_of_failed_rows_and_of_the_self_check_are_found(tmp_path: Path) -> None:
    config = config_of()
    score(config, tmp_path, "first")
    for where in ("first/failed", "first/self_check/finished"):
        (tmp_path / where).mkdir(parents=True)
        (tmp_path / "first/finished/a.parquet").rename(tmp_path / where / "a.parquet")
        known = find_known(tmp_path / "second", asked_of(measuring(config)))
        assert len(known.keys) == 2 * ROWS
        (tmp_path / where / "a.parquet").rename(tmp_path / "first/finished/a.parquet")
    own = find_known(tmp_path / "first", asked_of(measuring(config)))
    assert len(own.keys) == 0, "rows that the store has are not sent"


def test_the_newest_reply_counts(tmp_path: Path) -> None:
    config = config_of()
    first, _ = score(config, tmp_path, "first")
    forced = [
        row | {"replies": [entry | {"nll_sum": entry["nll_sum"] and 7.0} for entry in row["replies"]]} for row in _full(first)
    ]
    store = RowStore(tmp_path / "again", col.measured_schema(config.elicit.estimators))
    note_asked(store.folder, asked_of(measuring(config)))
    store.finished.mkdir()
    write_table(pa.Table.from_pylist(forced, store.schema), store.finished / "a.parquet")
    import os

    os.utime(store.finished / "a.parquet", ns=(2**62, 2**62))
    taken, calls = score(config_of("elicit.estimators=[verbalized_error,nll,nll_sum]"), tmp_path, "third")
    assert not calls
    assert {row["raw_nll_sum"] for row in taken} == {7.0}


def _full(scored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return pa.Table.from_pylist(scored, col.measured_schema(["verbalized_error", "nll"])).to_pylist()


def test_a_store_that_is_removed_meanwhile_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of()
    score(config, tmp_path, "first")
    known = find_known(tmp_path / "second", asked_of(measuring(config)))
    (tmp_path / "first/finished/a.parquet").unlink()
    engine = Counting()
    ScoreRows(config.elicit, asked=asked_of(measuring(config)), known=known)(rows(), engine)
    assert engine.calls == Counter(Choice=ROWS, Likelihood=ROWS)
    assert "was removed" in caplog.text


def test_an_actor_of_another_machine_reads_copies_of_the_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    score(config, tmp_path / "driver", "first")
    known = find_known(tmp_path / "driver" / "second", asked_of(measuring(config)))
    files = tuple(str(DRIVER / Path(file).relative_to(tmp_path / "driver")) for file in known.files)
    monkeypatch.setattr("ual_ray.elicit.known.output_folder", lambda: elsewhere(tmp_path / "driver", tmp_path / "copies"))
    engine = Counting()
    ScoreRows(config.elicit, asked=asked_of(measuring(config)), known=replace(known, files=files))(rows(), engine)
    assert engine.calls == Counter()


def test_a_store_of_an_earlier_version_is_named_and_not_read(tmp_path: Path) -> None:
    config = config_of()
    scored, _ = score(config, tmp_path, "old")
    schema = pa.schema([field for field in col.measured_schema(config.elicit.estimators) if field.name != col.REPLIES])
    write_table(pa.Table.from_pylist(scored, schema), tmp_path / "old/finished/a.parquet")
    (tmp_path / "old/asked.json").rename(tmp_path / "old" / OLD_FILE)
    assert stores_without_replies(tmp_path / "new") == [tmp_path / "old"]
    assert stores_without_replies(tmp_path / "old") == [], "the same settings: its rows are finished"
    # The same settings again: the store continues, with rows of both kinds.
    note_asked(tmp_path / "old", asked_of(measuring(config)))
    assert len(find_known(tmp_path / "new", asked_of(measuring(config))).keys) == 0
    store = RowStore(tmp_path / "old", col.measured_schema(config.elicit.estimators))
    assert store.count() == ROWS
    (table,) = store.select(pa.chunked_array([[row["id"] for row in scored]]))
    assert table[col.REPLIES].null_count == ROWS


@pytest.mark.parametrize(("check", "asked"), [(lambda check: check ^ 1, 2 * ROWS), (lambda check: None, 0)])
def test_replies_are_found_by_the_whole_key_where_it_is_known(check: Any, asked: int, tmp_path: Path) -> None:
    config = config_of()
    scored, _ = score(config, tmp_path, "first")
    changed = [
        row | {"replies": [entry | {"check": check(entry["check"])} for entry in row["replies"]]} for row in _full(scored)
    ]
    schema = col.measured_schema(config.elicit.estimators)
    write_table(pa.Table.from_pylist(changed, schema), tmp_path / "first/finished/a.parquet")
    assert score(config_of("elicit.retries=5"), tmp_path, "second")[1].total() == asked


def test_a_store_whose_keys_have_one_half_is_read(tmp_path: Path) -> None:
    config = config_of()
    scored, _ = score(config, tmp_path, "first")
    schema = col.measured_schema(config.elicit.estimators)
    entry = schema.field(col.REPLIES).type.value_type
    half = pa.list_(pa.struct([field for field in entry if field.name != "check"]))
    schema = schema.set(schema.get_field_index(col.REPLIES), pa.field(col.REPLIES, half))
    write_table(pa.Table.from_pylist(_full(scored), schema), tmp_path / "first/finished/a.parquet")
    assert score(config_of("elicit.retries=5"), tmp_path, "second")[1].total() == 0
    store = RowStore(tmp_path / "first", col.measured_schema(config.elicit.estimators))
    (table,) = store.select(_ids())
    assert table[col.REPLIES][0][0]["check"].as_py() is None


def test_no_store_gives_nothing(tmp_path: Path) -> None:
    known = find_known(tmp_path / "own", asked_of(measuring(config_of())))
    assert known({1, 2}) == {}


def test_a_row_that_failed_is_asked_what_failed_alone(tmp_path: Path) -> None:
    config = config_of()
    asked = asked_of(measuring(config))
    store = RowStore(tmp_path / "own", col.measured_schema(config.elicit.estimators))
    note_asked(store.folder, asked)

    class Failing(Counting):
        def run(self, requests: Sequence[Request]) -> list[Result]:
            down = Failure("engine: down")
            return [
                down if isinstance(ask, Choice) else found for ask, found in zip(requests, super().run(requests), strict=True)
            ]

    failed = ScoreRows(config.elicit, asked=asked)(rows(), Failing())
    store.add_failed(pa.Table.from_pylist(failed, store.schema))
    assert find_known(store.folder, asked)({1}) == {} and len(store.missing(_ids())) == 0
    store.retry_failed()
    assert len(store.missing(_ids())) == ROWS
    engine = Counting()
    again = ScoreRows(config.elicit, asked=asked, known=find_known(store.folder, asked))(rows(), engine)
    assert engine.calls == Counter(Choice=ROWS)
    assert same_but_for_cost(again, score(config, tmp_path / "elsewhere", "alone", take=False)[0])


def _ids() -> pa.ChunkedArray:
    return pa.chunked_array([[row["id"] for row in rows()]])
