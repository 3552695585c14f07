"""The inspection of scored rows: hand-computed figures, what is missing, and the short form on the terminal."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from rich.console import Console
from scored_rows import SCORE, folder_of, inspected, labels_of, many, row

from ual_ray.config import EngineConfig
from ual_ray.errors import UserError
from ual_ray.formatting import number, share
from ual_ray.inspect.measure import Columns, inspect
from ual_ray.inspect.page import to_console
from ual_ray.inspect.summary import Inspection
from ual_ray.stats.score_quality import against_labels

# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_by_hand(tmp_path: Path) -> None:
    rows = [
        row("1", 0.2, uncertainty_nll=0.1, truncated=True),
        row("2", 0.4, uncertainty_nll=None, source="b", error="engine: it broke"),
        row("3", None, uncertainty_nll=0.3, error="overlong: 9 tokens: limit 8"),
        row("4", None, uncertainty_nll=None, error="unparsable: no number", source="b", elicitor="other"),
        row("5", 0.4, uncertainty_nll=0.5, source=None),
    ]
    found = inspected(tmp_path, rows)
    assert (found.rows, found.sources) == (5, {"a": 2, "b": 2, "(none)": 1})
    assert found.statuses == {"ok": 3, "quarantined": 2}
    assert (found.quarantined, found.quarantined_share, found.reasons) == (2, 0.4, {"overlong": 1, "unparsable": 1})
    assert (found.truncated, found.elicitors, found.prompt_hashes) == (1, ["model", "other"], ["hash"])
    assert (found.estimators, found.score_of, list(found.scores)) == (
        ["verbalized_error", "nll"],
        "verbalized_error",
        ["uncertainty", "verbalized_error", "nll"],
    )
    rated, nll = found.scores["verbalized_error"], found.scores["nll"]
    # Rows 1, 2, 4 and 5 got replies for verbalized_error, or have a value; only row 4's could not be read.
    assert (rated.missing, rated.null_rate, rated.parse_rate) == (2, 0.4, 0.75)
    # Row 3 was overlong for another estimator and has its nll; row 2 failed in the engine.
    assert (nll.missing, nll.null_rate, nll.parse_rate) == (2, 0.4, 0.75)
    assert found.scores["uncertainty"].parse_rate is None
    assert rated.distribution is not None and rated.distribution.mode_share == pytest.approx(2 / 3)
    by_source = rated.by_source
    assert by_source["a"] is not None and by_source["a"].n == 1 and by_source["a"].deviation is None


def test_cost_by_hand(tmp_path: Path) -> None:
    (tmp_path / "done.json").write_text('{"seconds": 4, "figures": {}}')
    cost = inspected(
        tmp_path,
        [row("1"), row("2")],
        engine=EngineConfig(price_per_million_prompt_tokens=2.0, price_per_million_generated_tokens=10.0),
    ).cost
    assert (cost.prompt_tokens, cost.generated_tokens, cost.calls, cost.tokens_per_row) == (200, 20, 4, 110)
    assert cost.money == pytest.approx((200 * 2 + 20 * 10) / 1e6)
    assert (cost.seconds, cost.rows_per_second) == (4.0, 0.5)


@pytest.mark.parametrize("done", [None, "", "[]", "{}", '{"seconds": null}', '{"seconds": NaN}', '{"seconds": -1}'])
def test_unknown_cost_is_none(tmp_path: Path, done: str | None) -> None:
    if done is not None:
        (tmp_path / "done.json").write_text(done)
    nothing = {"prompt_tokens": None, "generated_tokens": None, "calls": None, "truncated": None}
    found = inspected(tmp_path, [row("1", **nothing)], engine=EngineConfig(price_per_million_prompt_tokens=1.0))
    assert set(vars(found.cost).values()) == {None}
    assert found.truncated is None


def test_free_is_not_nothing(tmp_path: Path) -> None:
    assert inspected(tmp_path, [row("1")]).cost.money is None


def test_length_agreement_and_noise_by_hand(tmp_path: Path) -> None:
    scores = [(0.1, 0.9), (0.2, 0.8), (0.3, 0.7), (0.4, None)]
    rows = [
        row(str(n), a, uncertainty_nll=b, response_length=n, retest_verbalized_error=a + 0.1) for n, (a, b) in enumerate(scores)
    ]
    found = inspected(tmp_path, rows)
    assert [(pair.first, pair.second, pair.n) for pair in found.agreement] == [("verbalized_error", "nll", 3)]
    assert found.agreement[0].spearman == pytest.approx(-1.0)
    assert found.scores["uncertainty"].length.spearman == pytest.approx(1.0)
    assert found.scores["nll"].length_by_source["a"].spearman == pytest.approx(-1.0)
    noise = found.scores["verbalized_error"].noise
    assert noise is not None and noise.n == 4 and noise.mean_difference == pytest.approx(0.1)
    assert found.scores["uncertainty"].noise == noise, "the uncertainty is a copy, with the same noise"
    assert found.scores["nll"].noise is None


def test_the_score_is_recognised_where_it_was_given(tmp_path: Path) -> None:
    # Quarantined for another estimator's sake: verbalized_error has a value, the uncertainty has none.
    rows = [row("1", 0.2), row("2", 0.4), row("3", 0.6, uncertainty=None, status="quarantined")]
    assert inspected(tmp_path, rows).score_of == "verbalized_error"


def test_a_calibrated_score_is_of_no_estimator(tmp_path: Path) -> None:
    found = inspected(tmp_path, [row("1", 0.2, uncertainty=0.3), row("2", 0.4)])
    assert (found.score_of, found.scores["uncertainty"].noise) == (None, None)


def test_an_ensemble_is_shown_when_it_has_a_value(tmp_path: Path) -> None:
    found = inspected(tmp_path, [row("1", uncertainty_ensemble=0.25, uncertainty=0.25)])
    assert (list(found.scores)[-1], found.score_of, found.estimators) == ("ensemble", "ensemble", ["verbalized_error", "nll"])


# --- extremes --------------------------------------------------------------------------------------------------------


def test_extremes_with_ties_by_id(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [row(f"{n:03}", float(random.integers(0, 4)) / 4, source="ab"[n % 2], given_id=f"g{n}") for n in range(200)]
    rows += [row("zzz", None), row("nan", float("nan"))]
    found = inspect(folder_of(tmp_path, rows, files=3))
    for source in "ab":
        mine = [each for each in rows if each["source"] == source and each["uncertainty"] == each["uncertainty"]]
        mine = [each for each in mine if each["uncertainty"] is not None]
        most = sorted(mine, key=lambda each: (-each["uncertainty"], each["id"]))[:10]
        least = sorted(mine, key=lambda each: (each["uncertainty"], each["id"]))[:10]
        for expected, shown in ((most, found.most_uncertain[source]), (least, found.least_uncertain[source])):
            assert [each.id for each in shown] == [each["id"] for each in expected]
            assert [each.score for each in shown] == [each["uncertainty"] for each in expected]
            assert [each.given_id for each in shown] == [each["given_id"] for each in expected]
            assert [each.messages for each in shown] == [each["messages"] for each in expected]
    assert found.most_uncertain["a"][0].scores == {"verbalized_error": 0.75, "nll": None}


def test_long_messages_are_cut_and_early_ones_left_out(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": f"{n} " + "x" * 5000} for n in range(7)]
    (shown,) = inspected(tmp_path, [row("1", messages=messages)]).most_uncertain["a"]
    assert (shown.earlier, [message["content"][0] for message in shown.messages]) == (3, ["3", "4", "5", "6"])
    assert all(len(message["content"]) == 700 and message["content"].endswith("…") for message in shown.messages)


def test_only_blocks_with_shown_rows_give_their_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = Columns(folder_of(tmp_path, [row(str(n)) for n in range(9)]))
    read: list[int] = []
    original = pa.parquet.ParquetFile.read_row_group

    def spy(self: Any, group: int, **options: Any) -> Any:
        read.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(pa.parquet.ParquetFile, "read_row_group", spy)
    assert columns.messages({7, 8})[8][0]["content"] == "question 8"
    assert read == [2]


def test_many_sources_are_counted_and_a_few_shown(tmp_path: Path) -> None:
    rows = [row(f"{n}-{k}", source=f"s{n:02}") for n in range(20) for k in range(2 if n == 19 else 1)]
    found = inspected(tmp_path, rows)
    assert (len(found.sources), found.shown_sources[0], len(found.shown_sources)) == (20, "s19", 12)
    assert list(found.most_uncertain) == found.shown_sources


# --- little ----------------------------------------------------------------------------------------------------------


def test_one_row(tmp_path: Path) -> None:
    found = inspected(tmp_path, [row("1")])
    assert found.scores["nll"].distribution is None
    assert found.scores["uncertainty"].length.spearman is None
    assert "only 1 row has a score: all metrics are imprecise" in found.warnings
    assert "nll has no value in any row" in found.warnings


def test_no_row_with_a_score(tmp_path: Path) -> None:
    found = inspected(tmp_path, [row("1", None, error="engine: gone"), row("2", None)])
    assert found.warnings[0] == "100% of rows have no score (engine 1, unknown 1)"
    assert found.most_uncertain == {"a": []}
    assert found.score_of is None


def test_constant_scores(tmp_path: Path) -> None:
    found = inspected(tmp_path, [row(str(n), 0.5, uncertainty_nll=n / 40, response_length=n) for n in range(40)])
    assert found.agreement[0].spearman is None
    assert found.scores["verbalized_error"].length.spearman is None
    assert "verbalized_error is 0.50 in every row: smoothing by it treats all rows alike" in found.warnings


def test_a_null_typed_block_and_missing_columns(tmp_path: Path) -> None:
    scored = tmp_path / "scored"
    scored.mkdir()
    for name, score in (("a", pa.nulls(1)), ("b", pa.array([0.5]))):
        table = pa.table({"id": [name], "source": ["s"], "uncertainty": score, "uncertainty_nll": score})
        pa.parquet.write_table(table, scored / f"{name}.parquet")
    found = inspect(scored)
    assert (found.rows, found.scores["nll"].missing, found.most_uncertain["s"][0].id) == (2, 1, "b")
    assert (found.quarantined, found.truncated, found.elicitors, found.most_uncertain["s"][0].messages) == (0, None, [], [])


def test_a_single_file_will_do(tmp_path: Path) -> None:
    assert inspect(folder_of(tmp_path, [row("1")]) / "part-0.parquet").rows == 1


def test_what_is_no_scored_folder(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other.parquet"
    pa.parquet.write_table(pa.table({"id": ["1"]}), other)
    text = tmp_path / "text.parquet"
    text.write_text("not Parquet")
    none = folder_of(tmp_path, [])
    for path, message in (
        (tmp_path / "no", "do not exist"),
        (empty, "has no column"),
        (other, r"has no column \['source', 'uncertainty'\]"),
        (text, "cannot be read"),
        (none, "holds no row"),
    ):
        with pytest.raises(UserError, match=message):
            inspect(path)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_quality_by_hand(tmp_path: Path) -> None:
    rows = [row("1", 0.9), row("2", 0.1, given_id="two"), row("3", 0.5, uncertainty_nll=0.5), row("4", None), row("5", 0.2)]
    found = inspected(tmp_path, rows, labels=labels_of(tmp_path, {"1": 0, "two": 1, "3": 1, "4": 0, "elsewhere": 1}))
    assert found.labelled is not None
    assert (found.labelled.labels, found.labelled.rows, found.labelled.wrong) == (5, 4, 2)
    rated = found.quality["verbalized_error"]
    assert (rated.n, rated.wrong, rated.left_out) == (3, 1, 1)
    assert (rated.auroc, rated.prr) == (1.0, 1.0)
    nll = found.quality["nll"]
    assert (nll.n, nll.left_out, nll.auroc, nll.prr) == (1, 3, None, None)


def test_labels_of_other_rows_and_of_one_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no label matches any row"):
        inspected(tmp_path, [row("1")], labels=labels_of(tmp_path, {"9": 1}))
    found = inspect(tmp_path / "scored", labels_of(tmp_path, {"1": 1}))
    assert "all labelled responses are good: AUROC and PRR are undefined" in found.warnings


# --- the self-check ---------------------------------------------------------------------------------------------------


def test_the_self_check_next_to_the_scores_is_reported(tmp_path: Path) -> None:
    assert inspected(tmp_path, many()).self_check is None
    found = against_labels(SCORE, (SCORE < 0.8).astype(float))
    estimators = {"nll": asdict(found), "p_true": asdict(against_labels(SCORE, np.full(200, np.nan)))}
    check = {"rows": 200, "swapped": 40, "estimators": estimators, "uncertainty": "nll", "reason": "as configured"}
    (tmp_path / "self_check.json").write_text(json.dumps(check))
    inspection = inspect(tmp_path / "scored")
    assert inspection.self_check is not None and inspection.self_check.estimators["nll"] == found
    assert json.loads(json.dumps(asdict(inspection)))["self_check"] == check
    text = printed(inspection)
    assert "self-check: 200 rows, 40 of them with another row's response" in text
    assert f"  nll                  AUROC 1.00 ({found.auroc_low:.2f} to 1.00)" in text
    assert "  p_true               no AUROC: 0 wrong of 0 rows with a score" in text


# --- terminal --------------------------------------------------------------------------------------------------------


def printed(inspection: Inspection) -> str:
    console = Console(file=io.StringIO(), width=120)
    to_console(inspection, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_short_form(tmp_path: Path) -> None:
    rows = many()
    found = inspected(tmp_path, rows, labels=labels_of(tmp_path, {each["id"]: int(each["uncertainty"] < 0.5) for each in rows}))
    text = printed(found)
    assert "200 rows of 1 source, 200 with a score = verbalized_error" in text and "no warnings" in text
    quality = found.quality["verbalized_error"]
    assert f"1.00 ({quality.auroc_low:.2f} to 1.00)" in text and "AUROC" in text
    assert "AUROC" not in printed(replace(found, labelled=None))


def test_missing_values_are_dashes_and_brackets_stay(tmp_path: Path) -> None:
    found = inspected(tmp_path, [row("1", None, error="[red]odd[/red]: x")])
    text = printed(found)
    assert "[red]odd[/red] 1" in text and "nan" not in text.lower()
    (line,) = [line for line in text.splitlines() if "│ nll " in line]
    assert line.count("–") == 5


def test_numbers_in_words() -> None:
    assert [number(None), number(-0.001), number(0.126), number(2, 0)] == ["–", "0.00", "0.13", "2"]
    assert [share(None), share(0), share(0.001), share(0.5), share(0.999), share(1)] == [
        "–",
        "0%",
        "<1%",
        "50%",
        ">99%",
        "100%",
    ]
