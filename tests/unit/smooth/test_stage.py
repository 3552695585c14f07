"""Smoothing as a stage: scored Parquet in, Parquet with alpha out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from ual_ray import columns as col
from ual_ray.config import ArmConfig
from ual_ray.errors import UserError
from ual_ray.parquet import content_digest, recorded_map
from ual_ray.smooth.stage import histogram, smooth

SCHEMA = col.scored_schema(["nll"])


def scored(folder: Path, uncertainty: dict[str, float | None], held_out: int = 2) -> Path:
    """Write a folder of scored training rows, and some rows of other splits."""
    rows = [{"id": name, "split": "train", "uncertainty": value} for name, value in uncertainty.items()]
    rows += [{"id": f"z{number}", "split": "test", "uncertainty": 0.99} for number in range(held_out)]
    (folder / "scored").mkdir()
    for number, row in enumerate(rows):
        table = pa.Table.from_pylist([row], schema=SCHEMA)
        pyarrow.parquet.write_table(table, folder / "scored" / f"{9 - number}.parquet")
    return folder / "scored"


def alphas(folder: Path) -> dict[str, float]:
    return {row["id"]: row["alpha"] for row in pyarrow.parquet.read_table(folder / col.SMOOTHED_FILE).to_pylist()}


def test_training_rows_get_an_alpha_and_keep_their_columns(tmp_path: Path) -> None:
    source = scored(tmp_path, {"a": 0.2, "b": 0.4, "c": 0.6})
    figures = smooth(source, ArmConfig(map="mean_matched", alpha_mean=0.1), 0, tmp_path / "deep" / "out")
    table = pyarrow.parquet.read_table(tmp_path / "deep" / "out" / col.SMOOTHED_FILE)
    assert table.column_names == [*SCHEMA.names, "alpha"]
    assert alphas(tmp_path / "deep" / "out") == pytest.approx({"a": 0.05, "b": 0.1, "c": 0.15})
    assert (figures["map"], figures["rows"], figures["missing"], figures["excluded"]) == ("mean_matched", 3, 0, 0)
    assert (figures["mean"], figures["min"], figures["max"]) == pytest.approx((0.1, 0.05, 0.15))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"map": "mean_matched"}, 1.0),
        ({"map": "inverted"}, -1.0),
        ({"map": "none"}, None),
        ({"map": "constant"}, None),
        ({"map": "shuffled_within"}, 1.0),  # each stratum of length has one row
    ],
)
def test_how_much_an_arm_follows_the_uncertainty_is_measured(
    tmp_path: Path, spec: dict[str, str], expected: float | None
) -> None:
    source = scored(tmp_path, {"a": 0.2, "b": 0.4, "c": 0.6})
    assert smooth(source, ArmConfig(**spec), 0, tmp_path / "out")["rank_correlation"] == expected


def test_without_texts_the_same_alphas_come_with_numbers_alone(tmp_path: Path) -> None:
    source, spec = scored(tmp_path, {"a": 0.2, "b": 0.4, "c": 0.6}), ArmConfig(map="mean_matched", weight="certainty")
    whole, numbers = (smooth(source, spec, 0, tmp_path / str(texts), "digest", texts=texts) for texts in (True, False))
    assert numbers == whole and alphas(tmp_path / "False") == alphas(tmp_path / "True")
    table = pyarrow.parquet.read_table(tmp_path / "False" / col.SMOOTHED_FILE)
    assert set(table.column_names) == {*col.SMOOTHING_READS, col.ALPHA, col.LOSS_WEIGHT}
    assert recorded_map(tmp_path / "False" / col.SMOOTHED_FILE) == recorded_map(tmp_path / "True" / col.SMOOTHED_FILE)


@pytest.mark.parametrize(
    ("missing", "expected", "excluded"),
    [
        ("impute", {"a": 0.1, "b": 0.2, "c": 0.3}, 0),
        ("default", {"a": 0.1, "b": 0.05, "c": 0.3}, 0),
        ("exclude", {"a": 0.1, "c": 0.3}, 1),
    ],
)
def test_rows_without_a_score(missing: str, expected: dict[str, float], excluded: int, tmp_path: Path) -> None:
    source = scored(tmp_path, {"a": 0.2, "b": None, "c": 0.6})
    spec = ArmConfig.model_validate({"map": "linear", "alpha_max": 0.5, "missing": missing, "missing_alpha": 0.05})
    figures = smooth(source, spec, 0, tmp_path / "out")
    assert alphas(tmp_path / "out") == pytest.approx(expected)
    assert (figures["rows"], figures["missing"], figures["excluded"]) == (3, 1, excluded)


@pytest.mark.slow
def test_the_seed_reaches_the_control_and_the_order_of_files_does_not(tmp_path: Path) -> None:
    uncertainty: dict[str, float | None] = {f"row{number}": number / 10 for number in range(1, 9)}
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    for folder, rows in (("1", uncertainty), ("2", dict(reversed(uncertainty.items())))):
        source = scored(tmp_path / folder, rows, held_out=1)
        for seed in (0, 1):
            smooth(source, ArmConfig(map="shuffled"), seed, tmp_path / folder / str(seed))
    assert alphas(tmp_path / "1" / "0") == alphas(tmp_path / "2" / "0")
    assert alphas(tmp_path / "1" / "0") != alphas(tmp_path / "1" / "1")


@pytest.mark.slow
def test_every_row_keeps_what_belongs_to_it(tmp_path: Path) -> None:
    """Alphas are computed in the order of ids and written in the order of files."""
    uncertainty: dict[str, float | None] = {f"row{number * 7 % 50:02d}": number / 50 for number in range(50)}
    source = scored(tmp_path, uncertainty)
    smooth(source, ArmConfig(map="linear", alpha_max=0.5), 0, tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / col.SMOOTHED_FILE).to_pylist()
    assert {row["id"]: row["uncertainty"] for row in table} == uncertainty
    assert all(row["alpha"] == pytest.approx(0.5 * row["uncertainty"]) for row in table)


def test_files_of_no_training_row_are_passed_over(tmp_path: Path) -> None:
    source = scored(tmp_path, {"a": 0.2, "b": 0.4}, held_out=5)
    pyarrow.parquet.write_table(SCHEMA.empty_table(), source / "empty.parquet")
    assert smooth(source, ArmConfig(map="rank"), 0, tmp_path / "out")["rows"] == 2
    assert set(alphas(tmp_path / "out")) == {"a", "b"}


def test_what_was_there_is_replaced_whole(tmp_path: Path) -> None:
    source = scored(tmp_path, {"a": 0.2, "b": 0.4})
    for name in ("constant", "none"):
        smooth(source, ArmConfig.model_validate({"map": name}), 0, tmp_path / "out")
    assert alphas(tmp_path / "out") == {"a": 0, "b": 0}
    assert [file.name for file in (tmp_path / "out").iterdir()] == [col.SMOOTHED_FILE]


def test_lengths_and_sources_are_read(tmp_path: Path) -> None:
    rows = [
        {"id": name, "split": "train", "source": source, "response_length": length, "uncertainty": value}
        for name, source, length, value in (("a", "x", 1, 0.2), ("b", "x", 3, 0.6), ("c", "y", 1, 0.8), ("d", "y", 1, 0.4))
    ]
    (tmp_path / "scored").mkdir()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "scored" / "0.parquet")
    spec = ArmConfig(map="per_source_constant", base="linear", alpha_max=0.5)
    figures = smooth(tmp_path / "scored", spec, 0, tmp_path / "out")
    assert alphas(tmp_path / "out") == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.3, "d": 0.3})
    assert (figures["mean"], figures["mean_by_length"]) == pytest.approx((0.275, (4 * 0.25 + 2 * 0.3) / 6))


def test_rows_that_were_never_scored_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"id": ["a"], "split": ["train"]}), path)
    with pytest.raises(UserError, match=rf"(?s){path} has no column 'uncertainty'.*ual elicit"):
        smooth(path, ArmConfig(), 0, tmp_path / "out")


def test_no_training_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)no row of the split 'train'.*elicit\.splits"):
        smooth(scored(tmp_path, {}), ArmConfig(), 0, tmp_path / "out")


@pytest.mark.parametrize("name", ["none", "mean_matched"])
def test_nothing_left_to_train_on_is_refused(name: str, tmp_path: Path) -> None:
    spec = ArmConfig.model_validate({"map": name, "missing": "exclude"})
    with pytest.raises(UserError):
        smooth(scored(tmp_path, {"a": None, "b": None}), spec, 0, tmp_path / "out")
    assert not (tmp_path / "out" / col.SMOOTHED_FILE).exists()


def test_the_map_is_recorded_in_the_file(tmp_path: Path) -> None:
    spec = ArmConfig(map="shuffled", base="rank", alpha_max=0.3)
    smooth(scored(tmp_path, {"a": 0.2, "b": 0.6}), spec, 7, tmp_path / "out")
    for path in (tmp_path / "out", tmp_path / "out" / col.SMOOTHED_FILE):
        recorded = recorded_map(path)
        assert recorded.pop("seed") == 7
        assert recorded.pop(col.SCORED_DIGEST) == content_digest(tmp_path / "scored", col.SMOOTHING_READS)
        assert ArmConfig.model_validate(recorded) == spec


def test_a_file_made_elsewhere_records_no_map(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"alpha": [0.1]}), tmp_path / "a.parquet")
    assert recorded_map(tmp_path / "a.parquet") == {}


def test_histogram_counts_every_row_once(tmp_path: Path) -> None:
    source = scored(tmp_path, {"a": 0.0, "b": 0.1, "c": 0.2, "d": 1.0})
    smooth(source, ArmConfig(map="linear", alpha_max=0.4), 0, tmp_path / "out")
    bars = histogram(tmp_path / "out" / col.SMOOTHED_FILE, bins=4)
    assert [count for *_, count in bars] == [3, 0, 0, 1]
    assert [low for low, *_ in bars] + [bars[-1][1]] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_histogram_of_one_value_is_one_bar(tmp_path: Path) -> None:
    smooth(scored(tmp_path, {"a": 0.3, "b": 0.4}), ArmConfig(map="constant"), 0, tmp_path / "out")
    ((low, high, count),) = histogram(tmp_path / "out" / col.SMOOTHED_FILE)
    assert low <= 0.1 <= high
    assert count == 2


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        ({"given_id": "alpha"}, "has a column 'alpha' already"),
        ({"given_id": "uncertainty"}, "cannot be read"),
        ({"given_id": "id"}, "cannot be read"),
        ({"id": "key"}, "has no column 'id'"),
        ({"split": "part"}, "has no column 'split'"),
    ],
)
def test_columns_that_cannot_be_smoothed_are_told(rename: dict[str, str], said: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"id": "a", "split": "train", "uncertainty": 0.5}], schema=SCHEMA)
    path = tmp_path / "scored.parquet"
    pyarrow.parquet.write_table(table.rename_columns([rename.get(name, name) for name in table.column_names]), path)
    with pytest.raises(UserError, match=said):
        smooth(path, ArmConfig(), 0, tmp_path / "out")


@pytest.mark.parametrize("ids", [["a", "a", "b"], ["a", None, "b"]])
def test_ids_that_repeat_are_refused(ids: list[str | None], tmp_path: Path) -> None:
    rows = [{"id": name, "split": "train", "uncertainty": 0.1 * at} for at, name in enumerate(ids)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "scored.parquet")
    with pytest.raises(UserError, match=r"(?s)repeats or has no value.*2 different ids in 3 training rows"):
        smooth(tmp_path / "scored.parquet", ArmConfig(), 0, tmp_path / "out")
    assert not (tmp_path / "out" / col.SMOOTHED_FILE).exists()


@pytest.mark.parametrize(("split", "got"), [(None, "2 rows of None"), ("Train", "2 rows of 'Train'"), ("", "2 rows of ''")])
def test_rows_of_a_split_that_no_stage_reads_are_refused(split: str | None, got: str, tmp_path: Path) -> None:
    """They were left out and not counted."""
    splits = ["train", split, "validation", split]
    rows = [{"id": str(at), "split": name, "uncertainty": 0.1} for at, name in enumerate(splits)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "scored.parquet")
    with pytest.raises(UserError, match=f"(?s)no stage reads.*got: {got}.*expected: train, validation, test"):
        smooth(tmp_path / "scored.parquet", ArmConfig(), 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_arm_may_read_another_uncertainty_and_weight_its_rows(tmp_path: Path) -> None:
    source = scored(tmp_path, {"a": 0.2, "b": 0.4, "c": 0.6})
    for file in source.glob("*.parquet"):
        (row,) = pyarrow.parquet.read_table(file).to_pylist()
        row["uncertainty_nll"] = 1 - row["uncertainty"]
        pyarrow.parquet.write_table(pa.Table.from_pylist([row], schema=SCHEMA), file)
    arm = ArmConfig(map="linear", alpha_max=0.5, uncertainty="nll", weight="filter", filter_share=0.3)
    figures = smooth(source, arm, 0, tmp_path / "out")
    # U = 0.8, 0.6, 0.4: the first is left out.
    assert alphas(tmp_path / "out") == pytest.approx({"b": 0.3, "c": 0.2})
    assert (figures["excluded"], figures["weight"], figures["uncertainty"]) == (1, "filter", "uncertainty_nll")
    table = pyarrow.parquet.read_table(tmp_path / "out" / col.SMOOTHED_FILE)
    assert table.column_names == [*SCHEMA.names, "alpha", "loss_weight"]
    assert table["loss_weight"].to_pylist() == [1, 1]


@pytest.mark.slow
def test_what_a_filter_leaves_out_does_not_count_for_the_mean(tmp_path: Path) -> None:
    """With it, the arm that leaves its most smoothed rows out would smooth less than its control."""
    source = scored(tmp_path, {"a": 0.2, "b": 0.4, "c": 0.6, "d": 1.0})
    figures = {
        name: smooth(source, ArmConfig(map=name, weight="filter", filter_share=0.25), 0, tmp_path / name)  # type: ignore[arg-type]
        for name in ("mean_matched", "shuffled", "inverted", "constant")
    }
    assert {name: found["excluded"] for name, found in figures.items()} == dict.fromkeys(figures, 1)
    for name, found in figures.items():
        assert found["mean_by_length"] == pytest.approx(0.1), name


def test_an_uncertainty_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    source = scored(tmp_path, {"a": 0.2})
    with pytest.raises(UserError, match="no column 'uncertainty_p_true'(.|\n)*add 'p_true' to elicit.estimators"):
        smooth(source, ArmConfig(uncertainty="p_true"), 0, tmp_path / "out")


@pytest.mark.parametrize(
    "ids", [pa.array([1, 2]), pa.array([1.0, 2.0]), pa.array([b"a", b"b"]), pa.array(["a", "b"]).dictionary_encode()]
)
def test_ids_that_training_would_refuse_are_refused_here(ids: pa.Array, tmp_path: Path) -> None:
    """Training writes ids as text."""
    table = pa.table({"id": ids, "split": ["train"] * 2, "uncertainty": [0.1, 0.5]})
    pyarrow.parquet.write_table(table, tmp_path / "scored.parquet")
    with pytest.raises(UserError, match="the column id does not hold texts"):
        smooth(tmp_path / "scored.parquet", ArmConfig(map="mean_matched"), 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_large_strings_are_text(tmp_path: Path) -> None:
    ids = pa.array(["a", "b"], pa.large_string())
    table = pa.table({"id": ids, "split": ["train"] * 2, "uncertainty": [0.2, 0.6]})
    pyarrow.parquet.write_table(table, tmp_path / "scored.parquet")
    smooth(tmp_path / "scored.parquet", ArmConfig(map="mean_matched", alpha_mean=0.1), 0, tmp_path / "out")
    assert alphas(tmp_path / "out") == pytest.approx({"a": 0.05, "b": 0.15})
