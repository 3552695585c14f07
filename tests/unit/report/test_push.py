"""What is pushed to a hub, a local one: model, card with verdicts, scored rows; private, and with the environment's token."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage import write
from hub_server import Hub, Repository
from huggingface_hub import constants

from ual_ray.cli.app import main
from ual_ray.config.files import sums_of, write_sums
from ual_ray.report.findings import Findings
from ual_ray.stats.comparison import PRIMARY, Comparison, Comparisons, Role

SECRET = "hf_planted_secret_token"
MODEL, DATA = "models/me/ual", "datasets/me/ual-scored"

NUMBERS = {"difference": -0.1, "ci_low": -0.2, "ci_high": -0.01, "p_value": 0.01, "p_holm": 0.02, "n": 200, "seeds": 3}
FOUND = Findings(
    {},
    Comparisons((Comparison("ual", "sft", *PRIMARY, verdict="better", primary=True, **NUMBERS),), 0.95, 100, 0),  # type: ignore[arg-type]
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    # The stand-in has no content-addressed store.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with one trained arm, `ual`, and its report."""
    files = {
        "report/findings.json": json.dumps(FOUND.as_dict()),
        "arms/ual/train/k/done.json": json.dumps({"figures": {}, "seconds": 1}),
        "arms/ual/train/k/model/README.md": "---\ntags: [a]\n---\n\n# A card\n",
        "arms/ual/train/k/model/config.json": "{}",
        "arms/ual/train/k/model/model.safetensors": "weights",
        "elicit/newest": "e",
        "elicit/e/started.json": "{}",
        "elicit/e/done.json": json.dumps({"figures": {"rows": 7, "uncertainty": "p_true"}, "seconds": 1}),
        "elicit/e/scored/0.parquet": "rows",
    }
    for name, text in files.items():
        file = tmp_path / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "run"


def push(run: Path, *options: str, name: str = "me/ual") -> int:
    """Run the command; return its exit code."""
    arguments, sys.argv = sys.argv, ["ual"]
    try:
        main("push", str(run), name, *options)
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = arguments
    return 0


def test_a_damaged_model_is_not_pushed(run: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    model = run / "arms/ual/train/k/model"
    write_sums(model, sums_of(model.iterdir()))
    write(model / "model.safetensors", b"heights")
    assert push(run) == 2
    printed = capfd.readouterr().err
    assert f"the model in {model} is damaged" in printed and "model.safetensors does not match checksums.sha256" in printed
    assert not hub.repositories


def test_model_card_and_rows_are_there_and_private(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run) == 0
    assert set(hub.repositories) == {MODEL, DATA}
    assert all(repository.private for repository in hub.repositories.values())
    model, data = hub.repositories[MODEL].files, hub.repositories[DATA].files
    assert sorted(model) == ["README.md", "config.json", "model.safetensors"]
    assert (model["model.safetensors"], model["config.json"]) == (b"weights", b"{}")
    card = model["README.md"].decode()
    assert card.startswith("---\ntags: [a]\n---\n\n# A card\n\n## Verdicts\n\n- ")
    assert re.search(r"against sft: better, difference -0.1 \(-0.2 to -0.01\).* 3 of at least 3 training seeds", card)
    assert data["data/0.parquet"] == b"rows"
    assert "- rows: 7\n- uncertainty: p_true\n" in data["README.md"].decode()
    assert hub.tokens == {f"Bearer {SECRET}"}
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.slow
def test_pushed_again_only_what_changed_is_sent_and_old_shards_go(run: Path, hub: Hub) -> None:
    assert push(run) == 0
    assert push(run) == 0
    assert [len(hub.repositories[name].commits) for name in (MODEL, DATA)] == [1, 1]
    (run / "elicit/e/scored/0.parquet").rename(run / "elicit/e/scored/1.parquet")
    (run / "arms/ual/train/k/model/config.json").write_text('{"a": 1}')
    hub.repositories[MODEL].files |= {"LICENSE": b"of the owner", "model.safetensors.index.json": b"{}"}
    assert push(run) == 0
    assert hub.repositories[MODEL].commits[1:] == [["config.json", "model.safetensors.index.json"]]
    assert sorted(hub.repositories[DATA].files) == ["README.md", "data/1.parquet"]
    assert "LICENSE" in hub.repositories[MODEL].files


def test_a_dry_run_lists_files_and_sends_nothing(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert push(run, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "model me/ual (private): 3 files" in shown and "dataset me/ual-scored (private): 2 files" in shown
    assert re.search(r"\b7 bytes  model.safetensors", shown) and re.search(r"\b4 bytes  data/0.parquet", shown)
    assert (hub.repositories, hub.tokens) == ({}, set())


def test_the_model_alone_and_public(run: Path, hub: Hub) -> None:
    assert push(run, "--no-data", "--public") == 0
    assert {name: repository.private for name, repository in hub.repositories.items()} == {MODEL: False}


def test_nothing_is_pushed_into_a_public_repository_unasked(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repositories[MODEL] = Repository(private=False)
    assert push(run) == 2
    assert "the repository is public" in capsys.readouterr().err
    assert hub.repositories[MODEL].files == {}


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("report/findings.json", "there is no report of a run"),
        ("arms/ual/train/k/model/README.md", "the model has no card"),
        ("arms/ual/train/k/done.json", "no finished training"),
        ("elicit/e/scored/0.parquet", "no scored rows"),
    ],
)
def test_what_is_not_finished_is_not_pushed(
    run: Path, hub: Hub, missing: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / missing).unlink()
    assert push(run) == 2
    assert words in capsys.readouterr().err
    assert hub.repositories == {}


def test_an_arm_without_a_verdict_is_not_pushed(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run, "--arm", "sft") == 2
    assert "no verdict on the arm 'sft'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_link_out_of_the_folder_is_refused(run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "private.txt").write_text("mine")
    (run / "arms/ual/train/k/model/notes.txt").symlink_to(tmp_path / "private.txt")
    assert push(run) == 2
    assert "a link is not pushed" in capsys.readouterr().err
    assert hub.repositories == {}


def test_the_token_comes_from_the_environment_and_goes_nowhere_unencrypted(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert push(run, "--endpoint", "http://hub.example.org") == 2
    assert "unencrypted" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert push(run) == 2
    assert "HF_TOKEN is not set" in capsys.readouterr().err
    assert hub.tokens == set()


def test_a_refusal_is_an_error_without_the_token(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.refuses = True
    assert push(run) == 2
    shown = "".join(capsys.readouterr())
    assert "the hub did not take me/ual" in shown and "403" in shown
    assert SECRET not in shown


def report(run: Path, **changes: Any) -> None:
    """Write another report of the run."""
    (run / "report").mkdir(parents=True, exist_ok=True)
    (run / "report/findings.json").write_text(json.dumps(replace(FOUND, **changes).as_dict()))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [False, True])
def test_the_rows_are_those_that_the_report_is_about(run: Path, hub: Hub, scenario: bool) -> None:
    """Rows that were scored again since belong to no model of the report; scenarios of an experiment share theirs."""
    (run / "elicit/f/scored").mkdir(parents=True)
    (run / "elicit/f/scored/0.parquet").write_text("other rows")
    for name in ("started.json", "done.json"):
        (run / "elicit/f" / name).write_text((run / "elicit/e" / name).read_text())
    (run / "elicit/newest").write_text("f")
    root = run
    if scenario:
        root = run / "all"
        (root / "seed-0").mkdir(parents=True)
        (run / "arms").rename(root / "seed-0/arms")
    trained = ["seed-0/arms/ual/train/k"] if scenario else ["arms/ual/train/k"]
    report(root, folders={"elicited": {"rows": ["../elicit/e" if scenario else "elicit/e"]}, "trained": {"ual": trained}})
    assert push(root) == 0
    assert hub.repositories[DATA].files["data/0.parquet"] == b"rows"
    report(root, folders={"trained": {"ual": trained}})
    assert push(root) == 0
    assert hub.repositories[DATA].files["data/0.parquet"] == b"other rows", "of a report that names none, the newest"


def test_the_card_has_the_verdicts_of_the_judge_too_and_tells_measures_that_were_chosen_later(run: Path, hub: Hub) -> None:
    lost = {"length_controlled_win_rate": 30.0, "length_controlled_low": 28.0, "length_controlled_high": 32.0}
    overall = lost | {"n": 99, "n_valid": 99, "longer": 0.5}
    roles: dict[str, Role] = {"sft": "sft", "ual": "ual"}
    judged = {"candidate": "ual", "reference": "sft", "win_rates": {"overall": overall}, "benchmarks": ["chat"]}
    folders = {"judged": {"ual-vs-sft": ["0", "1", "2"]}}
    late = replace(FOUND.comparisons, chosen_after=True)
    for comparisons in (FOUND.comparisons, replace(late, entries=())):
        report(run, comparisons=comparisons, roles=roles, win_rates={"ual-vs-sft": judged}, folders=folders)
        assert push(run) == 0
        card = hub.repositories[MODEL].files["README.md"].decode()
        assert (
            "- win rate at equal lengths: ual is worse than sft: 30.0% [28.0, 32.0], 99 of 99 pairs, 3 training seeds" in card
        )
        assert (
            "the primary measures, held_out.nll_adjusted, were chosen after the results" in card
        ) == comparisons.chosen_after
        assert ("against sft: better" in card) != comparisons.chosen_after


def test_a_model_that_was_trained_again_since_the_report_is_not_pushed(
    run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    answered = run / "arms/ual/evaluate/k"
    answered.mkdir(parents=True)
    inputs = {"model": "another", "engine": {}, "kind": "vllm"}
    (answered / "started.json").write_text(json.dumps({"digest": "", "inputs": inputs | {"engine": {"dtype": "float32"}}}))
    report(run, folders={"evaluated": {"ual": ["arms/ual/evaluate/k"]}, "trained": {"ual": ["arms/ual/train/k"]}})
    assert push(run) == 2
    assert "it was trained again since" in capsys.readouterr().err and not hub.repositories


@pytest.mark.parametrize("name", ["ual", "me/", "/ual", "me/ual/x", "me/my model", "mé/ual", "me/u--al", f"me/{'x' * 93}", ""])
def test_a_name_that_hubs_do_not_take_is_refused_before_anything_is_read(
    run: Path, hub: Hub, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(run, "--dry-run", name=name) == 2
    told = "".join(capsys.readouterr())
    assert "hubs do not take this name of a repository" in told and repr(name) in told and "OWNER/NAME" in told


def test_the_folder_of_an_experiment_names_those_of_its_scenarios(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "arms").mkdir(exist_ok=True)
    home = run.parent / "experiment"
    run_there = home / "open ended"
    home.mkdir()
    run.rename(run_there)
    assert push(home) == 2
    assert f"a scenario's folder of `ual experiment`, {run_there}" in "".join(capsys.readouterr())


@pytest.mark.parametrize(("model", "shown"), [("/home/me/models/base", "base"), ("me/base", "me/base"), ("demo", "demo")])
def test_the_card_does_not_tell_where_a_base_model_is_on_this_machine(run: Path, hub: Hub, model: str, shown: str) -> None:
    (run / "config.yaml").write_text(f"model: {model}\n")
    (run / "arms/ual/train/k/model/README.md").write_text(f"# {model}, fine-tuned\n\n| base | {model} |\n")
    assert push(run) == 0
    card = hub.repositories[MODEL].files["README.md"].decode()
    assert card.startswith(f"# {shown}, fine-tuned\n\n| base | {shown} |\n")
