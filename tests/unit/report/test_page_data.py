"""The page of a made-up run: what is gathered, what is listed as missing, and that untrusted rows stay text."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_run import TWO_ARMS, UNTRUSTED, elicitation, made_up_run, training

from ual_ray.report.findings import Findings
from ual_ray.report.page import draw, to_html
from ual_ray.report.page_data import collect
from ual_ray.report.step import results_from


def page_of(root: Path) -> str:
    data = collect(root)
    return to_html(data, draw(data))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def whole(whole_run: Path) -> str:
    return page_of(whole_run)


@pytest.mark.slow
def test_a_whole_page_in_order(whole: str, read_page: Any) -> None:
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", whole)
    assert heads == [
        *("Primary comparisons", "Data", "Uncertainty", "Arms", "Training", "Results"),
        *("Rows with the largest differences", "Calibration", "Clusters", "Caveats", "Provenance"),
    ]
    text = re.sub(r"\s+", " ", read_page(whole).text)
    assert "better ual is better than shuffled: -0.0" in text
    assert "inconclusive constant is inconclusive against sft" in text, "a null is told in the same place as a win"
    for said in (
        "1,000 rows, without 12 duplicates, were read",
        "700",
        "mean_matched",
        "117 of 120",
        "51.4 [47.4, 59.4]",
        "ual is inconclusive against sft: 51.4% [47.4, 59.4], 117 of 120 pairs, 1 training seed; a verdict needs 3 seeds",
        "Whether uncertainty helps stays open after 1 training seed. ual experiment CONFIG measures it on your data",
        "what was measured so far is in docs/results.md .",
        "What more training seeds would find Smallest true difference that would be conclusive in 80% of experiments",
        "arm - reference 3 seeds 5 seeds 8 seeds 12 seeds tests deviation between seeds from seeds n",
        "held_out.nll_adjusted : NLL per token after removing temperature and smoothing floor, nats; lower is better",
        "Against the model before training 4 comparisons better ual is better than base",
        "constant 19,871 15.0% 2.5% 1.27",
        "arm map rows mean alpha per row per token",
        "arms/ual/evaluate/v1",
        "19,871",
        "verbalized_error (used for smoothing)",
        "13 of them with another row's response",
        "verbalized_error : AUROC 0.71 (0.56 to 0.83)",
        "half of the scores are equal",
        "Forgetting What training cost or gained",
        "gsm8k: exact match, strict, points ↑ ual inconclusive 1.3% ± 0.7",
        "big (decides)",
        "small (shown)",
        "ual - sft 291 81.2% 0.60",
    ):
        assert said in text, said
    assert "Not in this folder" not in text
    assert not re.search(r"\b(nan|NaN|None|inf|null)\b", text)
    assert whole.count('<svg viewBox="') == 8
    assert len(whole) < 500_000


@pytest.mark.slow
def test_nothing_comes_from_elsewhere(whole: str, read_page: Any) -> None:
    found = read_page(whole)
    assert {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"} == set()
    addresses = [value or "" for _, attributes in found.tags for name, value in attributes.items() if name in {"src", "href"}]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in addresses)
    assert sum(value.startswith("data:") for value in addresses) == 10, "two panels of points per model"
    assert (
        set(re.findall(r"url\((.)", whole)) == {"#"}
        and "@import" not in whole
        and "http://" not in whole
        and "https://" not in whole
    )
    policy = next(attributes for tag, attributes in found.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_the_ids_of_a_page_are_unique(whole: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', whole)
    assert len(ids) == len(set(ids)) > 20


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_run(tmp_path_factory.mktemp("runs") / "small", arms=TWO_ARMS, n=40)


@pytest.mark.slow
def test_untrusted_rows_stay_text(tmp_path: Path, read_page: Any) -> None:
    found = read_page(page_of(made_up_run(tmp_path / "run", UNTRUSTED, TWO_ARMS, n=20)))
    assert not [tag for tag, _ in found.tags if tag in ("script", "img")]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert found.text.count("<script>alert(1)</script>") > 10 and "{{ 7*7 }}" in found.text


def test_an_empty_folder_says_what_is_missing(tmp_path: Path, read_page: Any) -> None:
    assert len(collect(tmp_path).missing) == 8
    text = read_page(page_of(tmp_path)).text
    assert text.count("Not in this folder") == 12
    assert "has no primary result" in text


@pytest.mark.parametrize("part", ["elicit", "arms", "report", "config.yaml"])
@pytest.mark.slow
def test_a_missing_part_is_said_and_hides_nothing_else(tmp_path: Path, part: str, small: Path, read_page: Any) -> None:
    root = shutil.copytree(small, tmp_path / "run")
    (root / part).rename(tmp_path / "elsewhere")
    missing = collect(root).missing
    assert missing if part != "config.yaml" else not missing
    text = read_page(page_of(root)).text
    assert "Not in this folder" in text
    assert not re.search(r"\b(nan|NaN|None|inf|null)\b", text)


@pytest.mark.slow
def test_what_is_of_one_training_seed_is_told_and_validation_is_the_mean_over_all(small: Path, read_page: Any) -> None:
    found = Findings.from_dict(json.loads((small / "report" / "findings.json").read_text()))
    curves = [[[0, 3.0], [8, 2.0]], [[0, 3.2], [8, 2.5]], [[0, 3.1], [4, 2.1], [8, 2.4]]]
    data = collect(small, replace(found, seeds={"base": 1, "sft": 3, "ual": 3}, validation={"sft": curves}))
    drawn = draw(data)
    text = re.sub(r"\s+", " ", read_page(to_html(data, drawn)).text)
    assert "sft 400 700 0 3.100 2.300 812" in text and "Validation NLL in the table: means over all training seeds." in text
    for said in ("Alphas", "All else here is", "Answers", "Curves", "States"):
        assert re.search(rf"{said} of the first of 3 training seeds", text), said
    assert "stays open" not in text
    assert "of the first of" not in to_html(collect(small), drawn)


@pytest.mark.slow
def test_measures_are_named_once_in_the_order_of_their_tests_with_what_all_their_verdicts_lack(
    small: Path, read_page: Any
) -> None:
    found = Findings.from_dict(json.loads((small / "report" / "findings.json").read_text()))
    late = tuple(replace(entry, reason="exploratory, as x comes first") for entry in found.comparisons.entries)
    ordered = replace(found.comparisons, entries=late, primary=("win_rate", "held_out.nll_adjusted"))
    text = re.sub(r"\s+", " ", read_page(to_html(collect(small, replace(found, comparisons=ordered)), {})).text)
    first, second = (
        text.index("win_rate : of the deciding judge"),
        text.index("lower is better; exploratory, as x comes first "),
    )
    assert first < second and text.count("exploratory, as x comes first") == 1
    assert "of held_out.nll_adjusted Training seeds 8 " in text, "what the questions are of, not of the first measure"
    alone = replace(ordered, entries=(), primary=("win_rate",))
    assert "Training seeds 1 " in re.sub(
        r"\s+", " ", read_page(to_html(collect(small, replace(found, comparisons=alone)), {})).text
    )


def test_arms_that_train_otherwise_are_not_said_to_differ_in_alpha_alone(small: Path, read_page: Any) -> None:
    found = Findings.from_dict(json.loads((small / "report" / "findings.json").read_text()))
    data = collect(small, replace(found, trainings={"sft": {"loss": "dft"}, "ual": {"loss": "sft"}}))
    text = re.sub(r"\s+", " ", read_page(to_html(data, {})).text)
    assert "they differ in the label smoothing (alpha) of each row, and in loss (sft dft, ual sft)" in text
    assert "only the label smoothing (alpha) of each row differs" in read_page(to_html(collect(small), {})).text


def test_the_results_are_linked_where_the_page_is_in_a_clone(tmp_path: Path, small: Path, read_page: Any) -> None:
    clone = Path(__file__).parents[3]
    assert results_from(clone / "runs" / "demo" / "report" / "report.html") == "../../../docs/results.md"
    assert results_from(tmp_path / "report.html") is None
    links = [attributes for tag, attributes in read_page(to_html(collect(small), {}, "../docs/results.md")).tags if tag == "a"]
    assert {"href": "../docs/results.md"} in links


def test_an_unfinished_training_is_named(tmp_path: Path, small: Path) -> None:
    root = shutil.copytree(small, tmp_path / "run")
    (root / "arms" / "ual" / "train" / "t1" / "done.json").unlink()
    assert collect(root).missing == ["training of ual (not finished)"]


@pytest.mark.parametrize("below", ["", "seed-1"])
def test_the_page_of_a_scenario_has_the_elicitation_of_its_experiment(tmp_path: Path, below: str) -> None:
    elicitation(tmp_path / "experiment" / "elicit" / "e1", "said")
    root = tmp_path / "experiment" / "mixed"
    (root / "seed-1").mkdir(parents=True)
    found = collect(root / below).elicit
    assert found is not None and found.metrics["total_rows"] == 1000
    assert collect(tmp_path / "experiment" / "elicit").elicit and collect(tmp_path).elicit is None


def test_a_torn_line_of_metrics_is_ignored(tmp_path: Path) -> None:
    training(tmp_path / "run" / "arms" / "ual" / "train" / "t1", "ual")
    (arm,) = collect(tmp_path / "run").arms
    assert [line["step"] for line in arm.steps] == list(range(401))
    assert arm.validation is not None and arm.validation[0] == 2.9


def test_examples_run_from_the_best_to_the_worst(small: Path) -> None:
    examples = collect(small).examples
    assert len(examples) == 6
    assert [row.difference for row in examples] == sorted(row.difference for row in examples)
    assert (examples[0].arm, examples[0].reference) == ("ual", "sft")
    assert examples[0].messages[0]["content"].startswith("What is 2 + 2?")


def test_a_primary_measure_without_likelihoods_leaves_examples_to_another(small: Path) -> None:
    """Answers to GSM8K have no likelihood; alone, they give no examples."""
    findings = Findings.from_dict(json.loads((small / "report" / "findings.json").read_text()))
    entries = findings.comparisons.entries
    answers = replace(entries[0], arm="ual", reference="sft", benchmark="gsm8k", metric="exact_match_strict", primary=True)
    both = replace(findings, comparisons=replace(findings.comparisons, entries=(answers, *entries)))
    assert collect(small, both).examples == collect(small).examples != []
    alone = replace(findings, comparisons=replace(findings.comparisons, entries=(answers,)))
    assert collect(small, alone).examples == []


def test_metrics_by_bin_have_the_names_that_their_writer_gives_them() -> None:
    from ual_ray.plots import training as plots
    from ual_ray.train import metrics

    columns = ["target_tokens", *metrics.AVERAGES]
    written = metrics.averages(1.0, [[1.0] * len(columns)] * 3, columns)
    assert plots.bins_of(written) == [1, 2]


# --- caveats ---------------------------------------------------------------------------------------------------------


def test_caveats_fit_the_run(whole_run: Path) -> None:
    text = " ".join(collect(whole_run).caveats)
    assert "trained once" in text and "at the floor" in text and "3 rows have no score" in text and "not comparable" in text
    assert "control" not in text and "questions. Bootstrap" not in text


def test_few_rows_and_no_controls_are_said(small: Path) -> None:
    text = " ".join(collect(small).caveats)
    assert "has 40 questions" in text and "No arm is a control" in text
