"""From the store to the scored rows: which rows, which columns, which figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ual_ray import columns as col
from ual_ray import parquet
from ual_ray.config import ElicitConfig
from ual_ray.config.load import load
from ual_ray.elicit.assemble import Assembly, read_figures
from ual_ray.elicit.stage import check
from ual_ray.engines.row_store import RowStore
from ual_ray.errors import UserError
from ual_ray.parquet import content_digest, read_table, write_rows
from ual_ray.stats.score_quality import BINS

NAMES = ("nll", "p_true")
FIXES = [
    ("overlong", "raise engine.max_model_len"),
    ("cut", "raise elicit.reply_tokens"),
    ("unparsable", "give a model that thinks elicit.thinking_tokens"),
    ("mass", "the elicitor gives"),
    ("engine", "correct what it names"),
    ("template", "correct what it names"),
]
Row = dict[str, Any]


def name(number: int) -> str:
    return f"{number:016x}"


def row(number: int, split: str = "train", source: str = "s", given_id: str | None = None) -> Row:
    messages = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a" * number}]
    return {"id": name(number), "source": source, "split": split, "given_id": given_id, "messages": messages}


def measured(number: int, nll: float | None = 0.5, p_true: float | None = 0.5, **columns: Any) -> Row:
    defaults = {
        "uncertainty_nll": nll,
        "raw_nll": nll,
        "uncertainty_p_true": p_true,
        "raw_p_true": p_true,
        "response_length": number,
        "truncated": False,
        "status": "ok",
        "elicitor": "big",
        "prompt_hash": "h",
        "prompt_tokens": 10,
        "generated_tokens": 2,
        "calls": 3,
    }
    return row(number) | defaults | columns


def died(number: int) -> Row:
    """Make a row as the pool leaves it when engines died on it."""
    return row(number) | {"status": "quarantined", "error": "engine: it died or hung on this row 2 times"}


class Place:
    """A data set's folder and a store, made by hand."""

    def __init__(self, root: Path, rows: list[Row]) -> None:
        self.folder, self.store = root / "elicit", RowStore(root / "store", col.measured_schema(NAMES))
        (self.folder / "rows").mkdir(parents=True)
        write_rows(rows, col.ROWS, self.folder / "rows" / "part.parquet")

    def add(self, file: str, *rows: Row, failed: bool = False) -> None:
        folder = self.store.failed if failed else self.store.finished
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(rows, col.measured_schema(NAMES), folder / f"{file}.parquet")

    def finish(self, **options: Any) -> tuple[dict[str, Any], dict[str, Row]]:
        settings = ElicitConfig(**{"estimators": NAMES, "uncertainty": "nll"} | options)
        figures = Assembly(self.folder, self.store, settings).run()
        table = read_table(self.folder / col.SCORED_FOLDER)
        assert table.schema.equals(col.scored_schema(NAMES))
        return figures, {one["id"]: one for one in table.to_pylist()}


def uncertainties(scored: dict[str, Row], column: str = "uncertainty") -> list[float | None]:
    return [one[column] for one in scored.values()]


# --- which rows ------------------------------------------------------------------------------------------------------


def test_the_rows_of_the_data_set_alone_and_each_once(tmp_path: Path) -> None:
    place = Place(tmp_path, [row(number) for number in (1, 2, 3)])
    place.add("a", measured(1, 0.1), measured(77, 0.9))  # 77 is of another version of the data
    place.add("b", measured(2, 0.2), measured(1, 0.8))
    place.add("c", measured(3, 0.3))
    figures, scored = place.finish()
    assert uncertainties(scored) == [0.1, 0.2, 0.3]
    assert (figures["rows"], figures["total_rows"], figures["quarantined"]) == (3, 3, 0)


def test_rows_that_engines_failed_on_are_there_without_a_score(tmp_path: Path) -> None:
    place = Place(tmp_path, [row(number) for number in (1, 2, 3)])
    place.add("a", measured(1, 0.1))
    place.add("x", died(2), measured(3, None, 0.4, status="quarantined", error="engine: too hot; overlong: 9"), failed=True)
    place.add("y", died(1), failed=True)  # it was measured after all
    figures, scored = place.finish()
    assert [*scored] == [name(1), name(2), name(3)]
    assert uncertainties(scored) == [0.1, None, None]
    assert uncertainties(scored, "uncertainty_p_true") == [0.5, None, 0.4]
    assert (figures["rows"], figures["quarantined"], figures["reasons"]) == (3, 2, {"engine": 2})


@pytest.mark.parametrize(("splits", "expected"), [(("train",), [1]), (("train", "test"), [1, 3]), (("validation",), [2])])
def test_only_the_wanted_splits_are_scored(splits: tuple[str, ...], expected: list[int], tmp_path: Path) -> None:
    place = Place(tmp_path, [row(1), row(2, "validation"), row(3, "test")])
    place.add("a", *(measured(number) | {"split": split} for number, split in ((1, "train"), (2, "validation"), (3, "test"))))
    figures, scored = place.finish(splits=splits)
    assert [*scored] == [name(number) for number in expected]
    assert figures["splits"] == {"train": 1, "validation": 1, "test": 1}
    assert (figures["rows"], figures["total_rows"]) == (len(expected), 3)


def test_an_empty_store_gives_no_rows_and_every_column(tmp_path: Path) -> None:
    figures, scored = Place(tmp_path, [row(1, "test")]).finish(length_residual=True, uncertainty="ensemble")
    assert scored == {}
    Place(tmp_path / "other", [row(1, "test")]).finish(calibrate_with="there are no rows to calibrate")
    assert (figures["rows"], figures["total_rows"], figures["quarantined"]) == (0, 1, 0)
    assert figures["mean_uncertainty"] == {"nll": None, "p_true": None, "ensemble": None}
    assert (figures["histograms"], figures["prompt_hashes"], figures["truncated"]) == ({}, [], 0)


def test_rows_that_the_store_lost_are_reported(tmp_path: Path) -> None:
    place = Place(tmp_path, [row(1), row(2), row(3, "test")])
    place.add("a", measured(77), measured(2))
    place.add("b")
    with pytest.raises(UserError, match="1 of 2 rows are finished, but missing from the store"):
        place.finish()


def test_what_was_scored_before_is_replaced(tmp_path: Path) -> None:
    place = Place(tmp_path, [row(number) for number in (1, 2)])
    place.add("a", measured(1), measured(2))
    place.finish()
    write_rows([row(1)], col.ROWS, place.folder / "rows" / "part.parquet")
    assert [*place.finish()[1]] == [name(1)]


@pytest.mark.slow
def test_many_rows_are_cut_into_files_and_keep_their_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_FILE", 4)
    place = Place(tmp_path, [row(number) for number in range(1, 21)])
    for number in range(1, 21):
        place.add(f"{20 - number:02d}", measured(number, number / 20))
    _, scored = place.finish(uncertainty="ensemble")
    assert len([*(place.folder / col.SCORED_FOLDER).glob("*.parquet")]) == 5
    assert uncertainties(scored, "uncertainty_nll") == [number / 20 for number in range(1, 21)]
    # Ranks 0.5 to 19.5 of 20, and the middle, as all p_true are the same.
    assert uncertainties(scored) == pytest.approx([((number - 0.5) / 20 + 0.5) / 2 for number in range(1, 21)])


# --- which uncertainty -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", NAMES)
def test_the_uncertainty_is_the_chosen_estimators(chosen: str, tmp_path: Path) -> None:
    place = Place(tmp_path, [row(number) for number in (1, 2)])
    place.add("a", measured(1, 0.1, 0.9), measured(2, 0.2, 0.3))
    _, scored = place.finish(uncertainty=chosen)
    assert uncertainties(scored) == uncertainties(scored, f"uncertainty_{chosen}")
    assert uncertainties(scored, "uncertainty_ensemble") == pytest.approx([0.5, 0.5])


def test_the_ensemble_is_the_mean_rank_of_its_members(tmp_path: Path) -> None:
    place = Place(tmp_path, [row(number) for number in (1, 2, 3)])
    place.add("a", measured(1, 0.1, 0.9), measured(2, 0.2, 0.8), measured(3, 0.3, None))
    _, scored = place.finish(uncertainty="ensemble", ensemble=("nll",))
    assert uncertainties(scored) == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    _, scored = place.finish(uncertainty="ensemble")
    assert uncertainties(scored) == [pytest.approx(0.5), pytest.approx(0.5), None]


def test_a_row_is_judged_by_the_score_that_is_asked_for_now(tmp_path: Path) -> None:
    place = Place(tmp_path, [row(number) for number in (1, 2, 3)])
    unparsed = measured(2, 0.2, None, status="quarantined", error="unparsable: no usable reply for p_true")
    place.add("a", measured(1, 0.1), unparsed, measured(3, None, 0.3))
    figures, scored = place.finish(uncertainty="nll")
    assert uncertainties(scored) == [0.1, 0.2, None]
    assert uncertainties(scored, "status") == ["ok", "ok", "quarantined"]
    assert uncertainties(scored, "error")[2] == "unparsable: no usable reply for nll"
    assert (figures["quarantined"], figures["reasons"]) == (1, {"unparsable": 1})
    figures, scored = place.finish(uncertainty="p_true")
    assert uncertainties(scored) == [0.5, None, 0.3]
    assert figures["quarantined"] == 1


def test_where_a_row_belongs_is_what_this_data_set_says(tmp_path: Path) -> None:
    place = Place(tmp_path, [row(1, source="new", given_id="one"), row(2, split="test")])
    place.add("a", measured(1, 0.1, source="old", split="validation"), measured(2, 0.2))
    _, scored = place.finish(splits=("train", "test"))
    assert uncertainties(scored, "split") == ["train", "test"]
    assert uncertainties(scored, "source") == ["new", "s"]
    assert uncertainties(scored, "given_id") == ["one", None]


def test_the_length_can_be_taken_out(tmp_path: Path) -> None:
    place = Place(tmp_path, [row(number) for number in (1, 10, 100)])
    place.add("a", *(measured(number, 0.2 + 0.1 * math.log1p(number)) for number in (1, 10, 100)))
    place.add("x", died(77), failed=True)
    _, scored = place.finish(length_residual=True)
    mean = 0.2 + 0.1 * sum(math.log1p(number) for number in (1, 10, 100)) / 3
    assert uncertainties(scored) == pytest.approx([mean] * 3)


def labels_of(folder: Path, verdicts: dict[str, int]) -> str:
    (folder / "labels.csv").write_text("id,correct\n" + "".join(f"{one},{right}\n" for one, right in verdicts.items()))
    return str(folder / "labels.csv")


def test_labels_turn_scores_into_error_rates(tmp_path: Path) -> None:
    """Rows up to 20 are right and the others wrong, whichever id they are labelled by; 41 is not labelled."""
    own = {3: "three", 33: "thirty-three"}
    place = Place(tmp_path, [row(number, given_id=own.get(number)) for number in range(1, 42)])
    place.add("a", *(measured(number, number / 100, given_id=own.get(number)) for number in range(1, 42)))
    verdicts = {own.get(number, name(number)): int(number <= 20) for number in range(1, 41)} | {"stranger": 1}
    _, scored = place.finish(calibrate_with=labels_of(tmp_path, verdicts))
    # Only 20 and 21 can lie between the last right and the first wrong row of the others.
    assert uncertainties(scored)[:19] == [0.0] * 19 and uncertainties(scored)[21:] == [1.0] * 20
    assert uncertainties(scored, "uncertainty_nll") == [number / 100 for number in range(1, 42)]


def test_a_rows_content_id_beats_its_own_id(tmp_path: Path) -> None:
    """The own ids are the content ids of the others, whose labels are the opposite."""
    place = Place(tmp_path, [row(number, given_id=name(41 - number)) for number in range(1, 41)])
    place.add("a", *(measured(number, number / 100, given_id=name(41 - number)) for number in range(1, 41)))
    verdicts = {name(number): int(number <= 20) for number in range(1, 41)}
    _, scored = place.finish(calibrate_with=labels_of(tmp_path, verdicts))
    assert uncertainties(scored)[:19] == [0.0] * 19


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        ({name(number): 1 for number in range(1, 41)}, r"(?s)^elicit.calibrate_with: too few.*39 .*good and 0 .*labels\.csv"),
        ({name(number): int(number <= 30) for number in range(1, 41)}, "30 rows labelled good and 9 labelled wrong"),
        ({"stranger": 1, "other": 0}, "^no label matches any row"),
        ({"stranger": 2}, "^label is not a boolean"),
    ],
)
def test_labels_that_cannot_calibrate_are_the_users(verdicts: dict[str, int], says: str, tmp_path: Path) -> None:
    """The label of a row without a score is of no use."""
    place = Place(tmp_path, [row(number) for number in range(1, 41)])
    place.add("a", *(measured(number, number / 100) for number in range(1, 40)), measured(40, None))
    with pytest.raises(UserError, match=says):
        place.finish(calibrate_with=labels_of(tmp_path, verdicts))


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_by_hand(tmp_path: Path) -> None:
    place = Place(tmp_path, [row(1), row(2, source="t"), row(3), row(4, "test"), row(5, "validation")])
    place.add("a", measured(1, 0.0, 0.2, truncated=True), measured(2, 1.0, 0.4, source="t", prompt_hash="g"))
    place.add("b", measured(3, None, 0.51, status="quarantined", error="overlong: 9 tokens", calls=1))
    (place.folder / "quarantine").mkdir()
    reasons = ["no response: x", "no response: y", "duplicate row: the same messages occurred before"]
    lines = "".join(json.dumps({"reason": reason, "row": {}}) + "\n" for reason in reasons)
    (place.folder / "quarantine" / "a.jsonl").write_text(lines)
    (place.folder / "quarantine" / "b.jsonl.part").write_text("half a li")
    figures, _ = place.finish()
    assert figures == {
        "bad": 3,
        "bad_reasons": {"no response": 2, "duplicate row": 1},
        "total_rows": 5,
        "splits": {"train": 3, "validation": 1, "test": 1},
        "sources": {"s": 4, "t": 1},
        "rows": 3,
        "quarantined": 1,
        "reasons": {"overlong": 1},
        "commonest_error": "overlong: 9 tokens",
        "truncated": 1,
        "prompt_tokens": 30,
        "generated_tokens": 6,
        "calls": 7,
        "uncertainty": "nll",
        "mean_uncertainty": {"nll": pytest.approx(0.5), "p_true": pytest.approx(1.11 / 3)},
        "prompt_hashes": ["g", "h"],
        "histograms": {"s": [1] + [0] * (BINS - 1), "t": [0] * (BINS - 1) + [1]},
        "warnings": {"nll": [], "p_true": []},
    }
    json.dumps(figures)


def test_the_ensembles_mean_is_a_figure_where_it_is_used(tmp_path: Path) -> None:
    place = Place(tmp_path, [row(1), row(2)])
    place.add("a", measured(1, 0.1), measured(2, 0.2))
    assert place.finish(uncertainty="ensemble")[0]["mean_uncertainty"]["ensemble"] == pytest.approx(0.5)
    assert "ensemble" not in place.finish()[0]["mean_uncertainty"]


@pytest.mark.slow
def test_warnings_before_training(tmp_path: Path) -> None:
    """Of the rows of this data set alone; the uncertainty has its own where it is not a copy."""
    place = Place(tmp_path, [row(number) for number in range(1, 41)])
    options = {"mass_p_true": 0.125, "finish_nll": ["stop", "length"]}
    place.add("a", *(measured(number, 0.5, number / 50, **options) for number in range(1, 31)))
    place.add("b", *(measured(number, 0.5, number / 50, mass_p_true=0.9) for number in range(31, 41)))
    place.add("c", *(measured(number, 0.1, 0.1, finish_nll=["length"]) for number in range(100, 200)))
    p_true = ["the choices of p_true together have 12% of the probability in the median row: read with caution"]
    nll = [
        "50% of the replies of nll were cut at their maximum length and do not count",
        "nll is 0.50 in every row: smoothing by it treats all rows alike",
    ]
    assert place.finish()[0]["warnings"] == {"nll": nll, "p_true": p_true}
    ensemble = place.finish(uncertainty="ensemble", ensemble=("nll",))[0]["warnings"]
    assert ensemble["uncertainty"] == ["uncertainty is 0.50 in every row: smoothing by it treats all rows alike"]


def test_nothing_was_set_aside(tmp_path: Path) -> None:
    assert read_figures(tmp_path) == {"bad": 0, "bad_reasons": {}}


# --- who wrote first does not matter ---------------------------------------------------------------------------------


@settings(max_examples=12)  # each writes and reads some files
@given(
    scores=st.lists(st.tuples(st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1))), min_size=2, max_size=12),
    order=st.randoms(use_true_random=False),
    options=st.sampled_from([{}, {"uncertainty": "ensemble"}, {"length_residual": True}]),
)
@pytest.mark.slow
def test_the_result_does_not_depend_on_files_and_order(
    scores: list[tuple[float, float | None]], order: Any, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [measured(number, nll, p_true) for number, (nll, p_true) in enumerate(scores, start=1)]
    digests = []
    for cut in (1, 3, 12):
        place = Place(tmp_path_factory.mktemp("place"), [row(number) for number in range(1, len(rows) + 1)])
        order.shuffle(rows)
        for start in range(0, len(rows), cut):
            place.add(f"{start:02d}", *rows[start : start + cut])
        place.finish(**options)
        digests.append(content_digest(place.folder / col.SCORED_FOLDER, col.SMOOTHING_READS))
    assert len(set(digests)) == 1


# --- the verdict on the figures --------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "bad": 0,
    "bad_reasons": {},
    "total_rows": 100,
    "splits": {"train": 70, "validation": 10, "test": 20},
    "rows": 70,
    "quarantined": 0,
    "reasons": {},
}


@pytest.mark.parametrize(
    ("overrides", "figures"),
    [
        ([], {}),
        (["data.max_bad_share=0.29"], {"bad": 29, "total_rows": 71}),
        (["data.max_bad_share=0"], {}),
        (["elicit.max_quarantine_share=0.29"], {"quarantined": 29, "rows": 100}),
        (["elicit.max_quarantine_share=1"], {"quarantined": 70}),
        (["data.test_share=0"], {"splits": {"train": 90, "validation": 10}}),
        (["elicit.splits=[validation]"], {"rows": 0}),
    ],
)
def test_what_is_within_the_limits_passes(overrides: list[str], figures: dict[str, Any]) -> None:
    check(load(None, overrides), GOOD | figures, Path("out"))


@pytest.mark.parametrize(
    ("overrides", "figures", "says"),
    [
        (
            ["data.max_bad_share=0.29"],
            {"bad": 30, "total_rows": 70},
            r"(?s)30 of 100 rows of demo are bad.*out/quarantine.*0\.29",
        ),
        (["data.max_bad_share=0"], {"bad": 1}, "1 of 101 rows of demo are bad"),
        ([], {"quarantined": 15}, r"(?s)15 of 70 rows got no score.*out/scored.*0\.2"),
        *(
            ([], {"quarantined": 15, "reasons": {kind: 10, "other": 5}}, f"see the column 'error'; {fix}")
            for kind, fix in FIXES
        ),
        ([], {"splits": {"train": 90, "test": 10}}, "the validation split is empty"),
        (["data.test_share=0"], {"splits": {"validation": 10}}, "the train split is empty"),
    ],
)
def test_what_is_beyond_the_limits_is_refused(overrides: list[str], figures: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(load(None, overrides), GOOD | figures, Path("out"))
