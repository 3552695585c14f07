"""The page of a made-up run: what is gathered, what is listed as missing, and that untrusted rows stay text."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from ual_ray import columns as col
from ual_ray.report.caveats import at_floor, caveats_of
from ual_ray.report.findings import Findings
from ual_ray.report.page import draw, to_html
from ual_ray.report.page_data import collect
from ual_ray.report.step import results_from
from ual_ray.stats.alignment import COLUMNS
from ual_ray.stats.comparison import Comparisons, Role, compare_models
from ual_ray.stats.metrics import measure
from ual_ray.stats.primary import settle

UNTRUSTED = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>{{ 7*7 }}"
ARMS = ("sft", "constant", "shuffled", "ual")
TWO_ARMS = ("sft", "ual")  # half the panels to draw
SHIFTS = {"base": 0.4, "sft": 0.02, "constant": 0.015, "shuffled": 0.01, "ual": -0.01}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def result_rows(model: str, said: str, n: int = 300) -> pa.Table:
    """Make result rows; what is shared by all models comes from one seed."""
    shared, own = np.random.default_rng(5), np.random.default_rng([5, list(SHIFTS).index(model)])
    tokens, hard, luck = shared.integers(5, 90, n), shared.gamma(4, 0.5, n), shared.random(n)
    rows = []
    for place in range(n):
        messages = [{"role": "user", "content": f"{said} {place}"}, {"role": "assistant", "content": said}]
        nll = float(tokens[place] * (hard[place] + own.normal(SHIFTS[model], 0.05)))
        source = "metamath" if place % 3 else "dolly"
        held = {"id": f"h{place}", "benchmark": "held_out", "source": source, "messages": messages}
        rows.append({**held, "nll_sum": nll, "target_tokens": int(tokens[place]), "scores": []})
        right = float(luck[place] < 0.02 - SHIFTS[model] / 50)
        scores = [("exact_match_strict", right), ("exact_match_flexible", right)]
        rows.append({"id": f"g{place}", "benchmark": "gsm8k", "source": "gsm8k", "messages": messages, "scores": scores})
    return pa.Table.from_pylist(rows, schema=col.RESULTS)


def calibration_of(tokens: int = 19_871) -> dict[str, Any]:
    def part(over: float) -> dict[str, Any]:
        sure = [(place + 0.5) / 15 for place in range(15)]
        right = [max(0.0, at - over * at) for at in sure[:-1]] + [None]
        bins = {"count": [1300] * 14 + [0], "confidence": sure, "accuracy": right}
        figures = {"ece_width": over / 2, "ece_mass": over / 2, "brier": 0.71, "accuracy": 0.41, "nll": 2.1 - over}
        return {"n": tokens, "nll_standard_error": 0.03, "reliability": bins, **figures}

    return {"temperature": 1.27, "token": {"raw": part(0.3), "scaled": part(0.05)}, "answer": {}}


ROLES: dict[str, Role] = {"base": "base", "sft": "sft", "shuffled": "control", "constant": "control", "ual": "ual"}


def training(place: Path, arm: str) -> None:
    lines = [{"step": 0, "validation_nll": 2.9}]
    for step in range(1, 401):
        loss = 1.9 + 1.0 * np.exp(-step / 80) + 0.05 * np.sin(step) + SHIFTS[arm]
        line = {"step": step, "nll": loss, "smoothed_loss": loss + 0.5}
        line |= {f"nll/uncertainty_bin_{number}": loss + 0.25 * number for number in range(1, 5)}
        lines.append(line | ({"validation_nll": loss + 0.1} if step % 100 == 0 else {}))
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 401, "nl')
    done = {"steps": 400, "train_rows": 700, "dropped_rows": 0, "median_tokens_per_second": 812.0}
    write(place / "done.json", {"figures": done | {"uncertainty_bin_edges": [0.1, 0.3, 0.5, 0.7, 0.95]}, "seconds": 100.0})
    write(place / "started.json", {"digest": "t" * 16, "inputs": {}})


def smoothing(place: Path, arm: str) -> None:
    place.mkdir(parents=True)
    random = np.random.default_rng(1)
    alpha = np.clip(random.gamma(4, 0.025, 700), 0, 0.4) if arm in ("ual", "shuffled") else np.full(700, 0.1 * (arm != "sft"))
    pa.parquet.write_table(pa.table({"alpha": alpha}), place / "smoothed.parquet")
    summary = {"map": {"ual": "mean_matched", "sft": "none"}.get(arm, arm), "missing": 3, "rows": 700.0, "excluded": 0.0}
    summary |= {
        "mean": alpha.mean(),
        "std": alpha.std(),
        "min": alpha.min(),
        "median": float(np.median(alpha)),
        "max": alpha.max(),
    }
    write(place / "done.json", {"figures": summary, "seconds": 0.1})
    write(place / "started.json", {"digest": "a" * 16, "inputs": {}})


def elicitation(place: Path, said: str) -> None:
    random = np.random.default_rng(2)
    counts = {
        name: np.histogram(random.beta(*shape, n), 20, (0, 1))[0].tolist()
        for name, shape, n in ((f"metamath {said}", (2, 6), 470), ("dolly", (5, 3), 227))
    }
    found = {
        "total_rows": 1000,
        "duplicates": 12,
        "splits": {"train": 700, "validation": 100, "test": 200},
        "format": "messages",
        "sources": {f"metamath {said}": 660, "dolly": 340},
        "bad": 2,
        "bad_reasons": {f"no response {said}": 2},
        "rows": 700,
        "quarantined": 3,
        "reasons": {f"overlong {said}": 3},
        "histograms": counts,
        "mean_uncertainty": {"verbalized_error": 0.41, "p_true": None},
        "calls": 2134,
        "prompt_tokens": 123456,
        "generated_tokens": 2000,
        "uncertainty": "verbalized_error",
        "warnings": {"p_true": [f"p_true: half of the scores are equal {said}"]},
        "self_check": {
            "rows": 64,
            "swapped": 13,
            "estimators": {
                "verbalized_error": dict(
                    n=64, wrong=13, left_out=0, auroc=0.71, auroc_error=0.05, prr=0.3, auroc_low=0.56, auroc_high=0.83
                )
            },
        },
    }
    write(place / "done.json", {"figures": found, "seconds": 312.0})
    write(place / "started.json", {"digest": "e" * 16, "inputs": {"elicit": {"uncertainty": "verbalized_error"}}})


def rate(value: float) -> dict[str, Any]:
    ends = {
        f"{name}_{end}": value + shift
        for name in ("win_rate", "length_controlled")
        for end, shift in (("low", -6), ("high", 6))
    }
    rates = {"win_rate": value, "length_controlled_win_rate": value - 2, "n": 120, "n_valid": 117, "longer": 0.5}
    return rates | ends | {"mean_length_candidate": 512.0, "mean_length_reference": 498.0}


def points() -> dict[str, Any]:
    random = np.random.default_rng(3)
    classes = np.repeat(np.arange(4), 25)
    return {
        "texts": np.array([" the", "\n", "$1", "_x"]),
        "classes": classes,
        "pca": random.normal(size=(100, 2)) + classes[:, None],
        "mueller": random.normal(size=(75, 2)) + classes[:75, None],
        "mueller_classes": classes[:75],
        "mueller_templates": np.array([[0.0, 0], [1, 0], [0, 1]]),
    }


def tokens_of(table: pa.Table) -> pa.Table:
    """Make token statistics whose adjusted NLL is the row's own."""
    rows = [row for row in table.to_pylist() if row["benchmark"] == "held_out"]
    tokens = [{"id": row["id"], "adjusted_nll": row["nll_sum"] / row["target_tokens"]} for row in rows]
    return pa.Table.from_pylist(tokens, schema=col.TOKEN_STATISTICS)


def made_up_run(root: Path, said: str = "What is 2 + 2?", arms: tuple[str, ...] = ARMS, n: int = 300) -> Path:
    """Write a run's folder with every part, as the stages leave it."""
    elicitation(root / "elicit" / "e1", said)
    (root / "elicit" / "newest").write_text("e1")
    names = {"base": "base"} | {arm: f"arms/{arm}" for arm in arms}
    tables, folders = {}, {"evaluated": {}, "calibrated": {}, "judged": {"ual-vs-sft": ["judge/ual-vs-sft/j1"]}}
    for model, place in names.items():
        if model != "base":
            smoothing(root / place / "smooth" / "s1", model)
            training(root / place / "train" / "t1", model)
        tables[model] = result_rows(model, said, n)
        folder = root / place / "evaluate" / "v1" / "results"
        folder.mkdir(parents=True)
        pa.parquet.write_table(tables[model], folder / "results.parquet")
        write(folder.parent / "started.json", {"digest": "v" * 16, "inputs": {}})
        folders["evaluated"][model] = [f"{place}/evaluate/v1"]
        folders["calibrated"][model] = [f"{place}/calibrate/c1"]
        (root / place / "calibrate" / "c1").mkdir(parents=True)
        np.savez(root / place / "calibrate" / "c1" / "clusters.npz", **points())
    roles = {model: ROLES[model] for model in tables}
    judged: dict[str, Any] = {"candidate": "ual", "reference": "sft", "win_rates": {"overall": rate(53.4)}, "judge": "big"}
    judged |= {
        "others": {"small": judged | {"judge": "small"}},
        "agreement": {"big and small": {"n": 291, "share": 0.812, "kappa": 0.604}},
    }
    findings = Findings(
        {model: measure(table) for model, table in tables.items()},
        settle(
            compare_models(
                {model: dict.fromkeys(range(8), table.select(COLUMNS)) for model, table in tables.items()},
                roles,
                {model: dict.fromkeys(range(8), tokens_of(table)) for model, table in tables.items()},
                resamples=400,
            ),
            roles,
        )[0],
        roles,
        alphas={arm: 0.1 * (arm != "sft") for arm in arms},
        seeds=dict.fromkeys(names, 1),
        calibration={model: calibration_of() for model in names},
        clusters={model: {"after_norm": {"n": 100, "nc1": 2.5, "silhouette": 0.1, "scatter_ratio": 0.8}} for model in names},
        win_rates={"ual": judged},
        folders=folders,
    )
    write(root / "report" / "findings.json", findings.as_dict())
    (root / "config.yaml").write_text(
        f"data:\n  path: {json.dumps('rows.jsonl ' + said)}\nmodel: SmolLM2-135M\narms:\n"
        + "".join(f"  {arm}: {{}}\n" for arm in arms)
    )
    return root


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
        "arm - reference 3 seeds 5 seeds 8 seeds 12 seeds deviation between seeds from seeds n",
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


def test_what_is_of_one_training_seed_is_told_and_validation_is_the_mean_over_all(small: Path, read_page: Any) -> None:
    found = Findings.from_dict(json.loads((small / "report" / "findings.json").read_text()))
    curves = [[[0, 3.0], [8, 2.0]], [[0, 3.2], [8, 2.5]], [[0, 3.1], [4, 2.1], [8, 2.4]]]
    data = collect(small, replace(found, seeds={"base": 1, "sft": 3, "ual": 3}, validation={"sft": curves}))
    text = re.sub(r"\s+", " ", read_page(to_html(data, draw(data))).text)
    assert "sft 400 700 0 3.100 2.300 812" in text and "Validation NLL in the table: means over all training seeds." in text
    for said in ("Alphas", "All else here is", "Answers", "Curves", "States"):
        assert re.search(rf"{said} of the first of 3 training seeds", text), said
    assert "stays open" not in text
    one = collect(small)
    assert "of the first of" not in to_html(one, draw(one))


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


def test_no_results_have_one_caveat() -> None:
    assert len(caveats_of(None, 0)) == 1


def test_a_judge_that_prefers_a_position_is_a_caveat() -> None:
    def caveats(difference: float | None, error: float | None) -> str:
        bias = {"position_bias": {"difference": difference, "standard_error": error}}
        return "\n".join(caveats_of(Findings({}, Comparisons((), 0.95, 1, 0), win_rates={"ual": bias}), 0))

    assert "prefers the answer that it reads second" in caveats(-0.97, 0.003) and "0.97 of at most 1" in caveats(-0.97, 0.003)
    assert "reads first" in caveats(0.5, 0.1)
    for harmless in ((0.09, 0.001), (0.5, 0.3), (0.5, None), (None, None)):
        assert "judge" not in caveats(*harmless), harmless


def test_the_floor() -> None:
    from ual_ray.stats.metrics import MetricValue

    assert at_floor(MetricValue("b", "accuracy", "overall", 0.02, 0.01, 300))
    assert at_floor(MetricValue("b", "accuracy", "overall", 0.2, 0.1, 10)), "two standard errors"
    assert not at_floor(MetricValue("b", "accuracy", "overall", 0.2, 0.02, 300))
