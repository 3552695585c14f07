"""The forecast leaves out what is answered already, whoever asked it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from ual_ray import columns as col
from ual_ray.cli.app import app
from ual_ray.config import Config
from ual_ray.config.load import load
from ual_ray.data.canonical import usable_rows
from ual_ray.data.peek import peek
from ual_ray.elicit import forecast as module
from ual_ray.elicit.forecast import Forecast, ask_sample, forecast
from ual_ray.elicit.known import find_known, note_asked
from ual_ray.elicit.replies import no_replies
from ual_ray.elicit.scoring import ScoreRows
from ual_ray.elicit.step import kept_replies
from ual_ray.engines import EngineSpec, make_engine
from ual_ray.engines.row_store import RowStore
from ual_ray.parquet import read_table, write_table
from ual_ray.run.step import Place

MakeConfig = Callable[..., Config]
ROWS = 40
BASE = ("engine.kind=fake", "engine.dtype=float32", "elicit.retest_share=0", "data.validation_share=0", "data.test_share=0")
SCORED = ("elicit.estimators=[verbalized_error,self_consistency]", "elicit.samples=8")


@pytest.fixture
def config_of(tmp_path: Path) -> MakeConfig:
    lines = (json.dumps({"instruction": f"What is {at}?", "output": str(at)}) for at in range(ROWS))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))

    def make(*overrides: str) -> Config:
        return load(None, [f"data.path={tmp_path / 'rows.jsonl'}", *BASE, *(overrides or SCORED)])

    return make


def score(config: Config, out: Path, rows: slice = slice(None), folder: str = "finished") -> None:
    """Score some of the rows as an actor does, and leave them in the store of the configuration."""
    (out / "store").mkdir(parents=True, exist_ok=True)
    kept = kept_replies(config, Place(out), retry=False)
    assert kept is not None
    store = RowStore(kept.folder, col.measured_schema(config.elicit.estimators))
    note_asked(kept.folder, kept.asked)
    seen = peek(config.data)
    given = [*usable_rows(config.data, seen.pieces, seen.format_name)][rows]
    engine = make_engine(EngineSpec(config.engine, config.elicit.model))
    scored = ScoreRows(config.elicit, seed=config.seed, asked=kept.asked, known=no_replies)(given, engine)
    (store.folder / folder).mkdir(parents=True, exist_ok=True)
    write_table(pa.Table.from_pylist(scored, store.schema), store.folder / folder / f"{rows.start}.parquet")


def told(config: Config, out: Path, *, retry: bool = False) -> Forecast:
    seen, kept = peek(config.data), kept_replies(config, Place(out), retry)
    return forecast(config, seen, ROWS, ask_sample(config, seen, kept) if kept else None)


def test_nothing_was_answered_where_there_is_no_store(config_of: MakeConfig, tmp_path: Path) -> None:
    assert kept_replies(config_of(), Place(tmp_path), retry=False) is None
    assert told(config_of(), tmp_path).answered is None
    assert not any("answered" in text for _, text in told(config_of(), tmp_path).lines())


@pytest.mark.slow
def test_rows_of_the_own_store_are_not_sent_again(config_of: MakeConfig, tmp_path: Path) -> None:
    config = config_of()
    score(config, tmp_path, slice(0, 10))
    found = told(config, tmp_path)
    assert (found.calls, found.answered, found.generated_tokens) == (60, 20, 30 * (1 + 8 * config.elicit.max_new_tokens))
    assert ("", "20 of 80 calls already answered") in found.lines()
    score(config, tmp_path, slice(10, None))
    assert (told(config, tmp_path).calls, told(config, tmp_path).prompt_tokens, told(config, tmp_path).answered) == (0, 0, 80)


@pytest.mark.slow
def test_rows_of_a_shared_store_count_with_the_own_ones_and_nothing_is_written(config_of: MakeConfig, tmp_path: Path) -> None:
    score(config_of(), tmp_path / "first", slice(0, 10))
    score(config_of(), tmp_path / "second", slice(10, 30))
    shared = tmp_path / "first" / "store"
    (rows,) = shared.glob("*/finished/*.parquet")
    (rows.parent.parent / "checkpoint").mkdir()
    write_table(read_table(rows, ["id"]), rows.parent.parent / "checkpoint" / rows.name)
    before = {file: file.stat() for file in tmp_path.rglob("*")}
    config = config_of(*SCORED, f"elicit.store={shared}")
    assert [told(config, tmp_path / out).answered for out in ("none", "second", "first")] == [20, 60, 20]
    assert {file: file.stat() for file in tmp_path.rglob("*")}.keys() == before.keys()
    assert all(file.stat().st_mtime_ns == found.st_mtime_ns for file, found in before.items())


def test_failed_rows_are_sent_again_where_they_are_retried(config_of: MakeConfig, tmp_path: Path) -> None:
    score(config_of(), tmp_path, folder="failed")
    assert told(config_of(), tmp_path).calls == 0
    assert told(config_of(), tmp_path, retry=True).calls == 80


@pytest.mark.parametrize(
    ("overrides", "calls", "known"),
    [
        (("elicit.estimators=[verbalized_error,self_consistency,semantic_entropy]", "elicit.samples=8"), 0, 80),
        (("elicit.estimators=[verbalized_error,p_true]",), 80, 40),
        ((*SCORED[:1], "elicit.samples=12"), 40, 40),
        ((*SCORED, "elicit.scale=1-5"), 40, 40),
        ((*SCORED, "elicit.max_new_tokens=9"), 40, 40),
        ((*SCORED, "elicit.model=another"), 80, 0),
        ((*SCORED, "elicit.retest_share=0.999999"), 80, 80),
        ((*SCORED, "elicit.self_check=20"), 40, 80),
    ],
)
def test_a_changed_setting_asks_what_it_concerns(
    overrides: Sequence[str], calls: int, known: int, config_of: MakeConfig, tmp_path: Path
) -> None:
    score(config_of(), tmp_path)
    found = told(config_of(*overrides), tmp_path)
    assert (found.calls, found.answered) == (calls, known)


def test_the_forecast_is_what_a_run_asks(config_of: MakeConfig, tmp_path: Path) -> None:
    score(config_of(), tmp_path)
    config = config_of(*SCORED, "elicit.estimators=[verbalized_error,self_consistency,p_true]", "elicit.retest_share=0.5")
    kept = kept_replies(config, Place(tmp_path), retry=False)
    assert kept is not None
    seen = peek(config.data)
    rows = [*usable_rows(config.data, seen.pieces, seen.format_name)]
    engine = make_engine(EngineSpec(config.engine, config.elicit.model))
    scorer = ScoreRows(config.elicit, seed=config.seed, asked=kept.asked, known=find_known(kept.folder, kept.asked))
    sent = sum(row[col.CALLS] for row in scorer(rows, engine))
    everything, missing = ask_sample(config, seen, kept)
    assert 0 < len(missing) == sent < len(everything)


def test_a_sample_is_even_where_the_data_can_be_read(
    config_of: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(config_of(), tmp_path, slice(0, 20))
    monkeypatch.setattr(module, "EVEN_SAMPLE", 10)
    assert told(config_of(), tmp_path).answered == 40
    monkeypatch.setattr(module, "READ_AT_MOST", 10)
    assert told(config_of(), tmp_path).answered == 80, "the first rows alone are looked at"


@pytest.mark.slow
def test_the_command_states_it_and_a_forced_run_asks_everything(config_of: MakeConfig, tmp_path: Path) -> None:
    score(config_of(), tmp_path / "out")
    command = ["elicit", str(tmp_path / "rows.jsonl"), *BASE, *SCORED, "--out", str(tmp_path / "out"), "--dry-run"]
    shown = CliRunner().invoke(app, command).output
    assert "calls             about 0\n" in shown and "80 of 80 calls already answered" in shown
    forced = CliRunner().invoke(app, [*command, "--force"]).output
    assert "calls             about 80\n" in forced and "answered" not in forced


def test_data_that_the_command_refuses_have_no_forecast(config_of: MakeConfig, tmp_path: Path) -> None:
    config_of()
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write('\n{"instruction": "", "output": "4"}' * (2 * ROWS))
    done = CliRunner().invoke(app, ["elicit", str(tmp_path / "rows.jsonl"), *BASE, "--out", str(tmp_path / "out"), "--dry-run"])
    assert done.exit_code and "80 of 120 rows" in str(done.exception) + done.output
