"""What an experiment cannot answer is printed or refused before it costs anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.experiment import forecast
from ual_ray.experiment.forecast import cautions, check_parallel, check_questions

ARMS = {
    "sft": "{map: none}",
    "dft": "{map: none, loss: dft}",
    "constant": "{map: constant}",
    "shuffled": "{map: shuffled}",
    "ual": "{map: rank}",
    "kept": "{map: none, weight: filter}",
}


def cautioned(tmp_path: Path, *arms: str, overrides: tuple[str, ...] = ()) -> str:
    listed = ", ".join(f"{name}: {ARMS[name]}" for name in arms)
    (tmp_path / "e.yaml").write_text(f"arms: {{{listed}}}")
    return " | ".join(cautions(load(tmp_path / "e.yaml", [*overrides])))


@pytest.mark.parametrize("arms", [("sft", "constant"), ("shuffled", "ual"), ("sft", "dft", "kept"), ("sft", "constant", "ual")])
def test_an_experiment_that_can_answer_has_no_cautions(tmp_path: Path, arms: tuple[str, ...]) -> None:
    assert cautioned(tmp_path, *arms) == ""


@pytest.mark.parametrize("arms", [("ual",), ("sft",), ("constant", "shuffled"), ("ual", "kept")])
def test_arms_that_are_not_compared_are_named(tmp_path: Path, arms: tuple[str, ...]) -> None:
    assert cautioned(tmp_path, *arms).startswith("no arms are compared with each other")


@pytest.mark.parametrize("arms", [("sft", "ual"), ("sft", "kept")])
def test_a_missing_control_is_named(tmp_path: Path, arms: tuple[str, ...]) -> None:
    assert cautioned(tmp_path, *arms).startswith("there is no control")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("experiment.seeds=[4]", "1 training seed gives no verdict, which needs 3"),
        ("experiment.seeds=[4, 5]", "2 training seeds give no verdict, which needs 3"),
        (
            "evaluate.calibration.enabled=false",
            "held_out.nll_adjusted will not be compared, which needs evaluate.calibration.enabled=true",
        ),
        ("data.validation_share=0", "which needs evaluate.calibration.enabled=true and data.validation_share above 0"),
    ],
)
def test_what_leaves_a_comparison_open_is_named(tmp_path: Path, override: str, words: str) -> None:
    assert words in cautioned(tmp_path, "sft", "shuffled", "ual", overrides=(override,))


def test_models_that_nothing_would_measure_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)data\.test_share=0.*held_out.*evaluate\.calibration.*above 0"):
        check_questions(load(None, ["data.test_share=0"]))
    (tmp_path / "e.yaml").write_text("evaluate: {benchmarks: {maths: {kind: gsm8k, path: x.jsonl}}}\ndata: {test_share: 0}")
    with pytest.raises(UserError, match=r"got: evaluate\.calibration read"):
        check_questions(load(tmp_path / "e.yaml"))
    check_questions(load(tmp_path / "e.yaml", ["evaluate.calibration.enabled=false"]))
    check_questions(load(None, []))


@pytest.mark.parametrize("text", ["arms: {}", "experiment: {seeds: []}", "experiment: {scenarios: {}}"])
def test_empty_lists_are_refused_in_plain_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(UserError, match=r"(?s)bad value for '(arms|experiment\.\w+)'.*expected: at least 1, not 0"):
        load(tmp_path / "e.yaml")


def test_trainings_that_do_not_fit_into_memory_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # 28 bytes a parameter and 0.6 GB a worker: 14.6 GB each.
    monkeypatch.setattr(forecast, "parameter_count", lambda _: 500_000_000)
    one = "train.num_workers=1"
    check_parallel(load(None, [one, "experiment.parallel=2"]), 30 * 10**9)
    with pytest.raises(UserError, match=r"(?s)experiment\.parallel=3.*40\.8 GiB needed.*27\.9 GiB free"):
        check_parallel(load(None, [one, "experiment.parallel=3"]), 30 * 10**9)
    for other in ("experiment.parallel=auto", "train.gpus_per_worker=1", "runtime.address=auto", "runtime.check_memory=false"):
        check_parallel(load(None, [one, "experiment.parallel=3", other]), 30 * 10**9)


@pytest.mark.parametrize("folder", ["elicit", "answers", "mlflow-artifacts", "mlflow-spool"])
def test_a_scenario_takes_no_name_of_another_folder(folder: str) -> None:
    with pytest.raises(UserError, match=f"scenarios: '{folder}' is the name of another folder"):
        load(None, [f"experiment.scenarios={{{folder}: []}}"])


@pytest.mark.parametrize("seeds", ["[-1]", "[1, 1]", f"[{2**64}]"])
def test_seeds_that_training_would_not_take_are_refused(seeds: str) -> None:
    with pytest.raises(UserError, match=r"seeds = .* must be different, and from 0 to 2\^64 - 1"):
        load(None, [f"experiment.seeds={seeds}"])
    assert load(None, [f"experiment.seeds=[{2**64 - 1}]"]).experiment.seeds == (2**64 - 1,)
