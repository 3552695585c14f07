"""The command line: its grammar, its help, what it imports, and how it refuses input."""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import typer.main

import ual_ray
from ual_ray.cli import app as cli
from ual_ray.config.load import dump, load
from ual_ray.errors import UserError

JOBS = Path(__file__).parents[3] / "jobs"
CONFIGS = sorted((JOBS / "configs").glob("*.yaml"))
SCRIPTS = sorted(JOBS.glob("*.py"))
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
OVERRIDING = sorted(COMMANDS.keys() - {"report", "ui", "sync", "promote", "push", "jobs"})


@pytest.fixture
def ual(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run `ual ...` in this process, in an empty folder; return its exit code and all that it printed, on one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "end_on_sigterm", lambda: None)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ual", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), " ".join((printed.out + printed.err).split())

    return run


def options(command: str) -> Iterator[click.Option]:
    return (option for option in COMMANDS[command].params if option.param_type_name == "option")


def test_the_version_is_the_packages(ual: Any) -> None:
    assert ual("--version") == (0, f"ual {ual_ray.__version__}")


def test_no_usage_statistics_are_sent_unless_the_user_says_so(ual: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"MLFLOW_DISABLE_TELEMETRY": "false"}
    monkeypatch.setattr(cli.os, "environ", variables)
    ual("--version")
    assert variables.items() >= {"MLFLOW_DISABLE_TELEMETRY": "false", "RAY_USAGE_STATS_ENABLED": "0"}.items()


@pytest.mark.parametrize("command", [*sorted(COMMANDS), *(f"jobs {name}" for name in sorted(COMMANDS["jobs"].commands))])
def test_every_command_option_and_argument_has_a_help_text(command: str) -> None:
    group, _, name = command.partition(" ")
    found = COMMANDS[group].commands[name] if name else COMMANDS[group]
    assert found.help
    for parameter in found.params:
        assert parameter.help, parameter.name  # type: ignore[attr-defined]
        assert re.match(r"[A-Z].*\.$", parameter.help), parameter.help  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", OVERRIDING)
def test_one_grammar_overrides_come_last_and_the_file_is_an_option(command: str) -> None:
    arguments = [parameter for parameter in COMMANDS[command].params if parameter.param_type_name == "argument"]
    assert [argument.name for argument in arguments if argument.nargs == -1] == ["overrides"]
    assert arguments[-1].name == "overrides"
    assert all(argument.required for argument in arguments[:-1])
    # An experiment's configuration is its input, as the data is that of the others.
    named = {name for option in options(command) for name in option.opts} | {argument.metavar for argument in arguments}
    assert named & {"--config", "CONFIG"}


def test_force_is_the_same_flag_everywhere() -> None:
    forcing = {name: option for name in COMMANDS for option in options(name) if "--force" in option.opts}
    assert forcing.keys() == {"run", "elicit", "smooth", "train", "evaluate", "judge", "experiment", "pilot"}
    assert {(option.is_flag, option.help) for option in forcing.values()} == {
        (True, "Re-run from scratch, ignoring cached results.")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sync", "nothing"], ["the output folder does not exist", "nothing"]),
        (["preview", "rows.jsonl", "data.path=other.jsonl"], ["data.path is given twice", "leave data.path=... out"]),
        (["run", "jobs/configs/demo.yaml"], ["not KEY=VALUE", "got: jobs/configs/demo.yaml", "--config FILE"]),
        (["config", "-c", "nowhere.yaml"], ["configuration file does not exist", "nowhere.yaml"]),
        (["run", "train.learning_rat=1"], ["unknown key 'train.learning_rat'", "did you mean 'train.learning_rate'?"]),
        (["smooth", "scored", "map=rank"], ["unknown key 'map'", "'arms.ual.map'"]),
        (["run", "--rerun", "everything"], ["got: everything", "expected: elicit, smooth, train, evaluate"]),
        (["smooth", "scored", "--arm", "nobody"], ["unknown arm", "got: nobody", "expected: sft, ual"]),
        (["smooth", "scored", "arms.half.map=rank"], ["--arm is missing: 2 arms smooth", "expected: sft, ual, half"]),
        (["train", "nowhere"], ["the input does not exist", "output of `ual smooth`"]),
        (["evaluate", "demo"], ["no questions for the benchmarks held_out, gsm8k", "--rows"]),
        (["judge", "reference", "reference"], ["judge.model is not set", "judge.model=NAME"]),
        (["inspect", "nowhere", "--self-check", "5"], ["self_check (5) must be 0 or at least 20 rows"]),
        (
            ["submit", "output=/shared/x", "--address", "127.0.0.1:8265"],
            ["--address", "got: 127.0.0.1:8265", "http://HOST:8265"],
        ),
        (["submit", "output=/shared/x", "--env", "UAL_NOT_SET"], ["--env", "got: UAL_NOT_SET", "export UAL_NOT_SET=..."]),
        (["jobs", "list", "--address", "http://127.0.0.1:9"], ["job server is unreachable", "got: http://127.0.0.1:9"]),
        (["elicit", "nowhere.jsonl"], ["data.path does not exist", "nowhere.jsonl"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) and value[0] in COMMANDS else "",
)
def test_what_is_wrong_is_one_message_and_exit_code_2(ual: Any, arguments: list[str], words: list[str]) -> None:
    code, printed = ual(*arguments)
    assert code == 2 and printed.startswith("error: ")
    assert not [word for word in words if word not in printed], printed


def test_a_full_disk_is_one_message_and_other_errors_of_the_system_have_a_traceback(
    ual: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(error: OSError) -> None:
        raise error

    monkeypatch.setattr(cli, "app", lambda *_, **__: write(OSError(28, "Error writing bytes: No space left on device")))
    code, printed = ual("smooth", "scored")
    assert code == 2 and printed.startswith("error: a disk is full") and "run the same command again" in printed
    monkeypatch.setattr(cli, "app", lambda *_, **__: write(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        ual("smooth", "scored")


def test_an_error_keeps_its_brackets_and_loses_its_password(ual: Any) -> None:
    code, printed = ual("run", "data.path=s3://me:secret@[bold]/x")
    assert code == 2 and "secret" not in printed and "[bold]" in printed


def test_the_configuration_is_printed_as_a_file_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.app(["config", "train.epochs=3"], standalone_mode=False)
    text = capsys.readouterr().out
    (tmp_path / "my.yaml").write_text(text)
    assert load(tmp_path / "my.yaml") == load(None, ["train.epochs=3"])
    assert text == dump(load(None, ["train.epochs=3"]))


@pytest.mark.parametrize("given", [["train.epochs=3"], ["--config", str(CONFIGS[0])]])
def test_the_schema_takes_no_values(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=f"(?s)without values.*{re.escape(given[-1])}.*leave out --schema"):
        cli.app(["config", "--schema", *given], standalone_mode=False)
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_the_schema_accepts_every_configuration_of_the_repository_and_no_misspelled_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import yaml

    cli.app(["config", "--schema"], standalone_mode=False)
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert CONFIGS
    for file in CONFIGS:
        jsonschema.validate(yaml.safe_load(file.read_text(encoding="utf-8")), schema)
    assert schema["$defs"]["TrainConfig"]["properties"]["epochs"]["description"] == "number of passes over the training split"
    for wrong in ({"trian": {}}, {"train": {"epoch": 1}}, {"train": {"epochs": 0}}, {"arms": {"ual": {"map": "round"}}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_job_script_is_its_command(script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "end_on_sigterm", lambda: None)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(script), run_name="__main__")
    assert exit_.value.code == 0
    title, _, example = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").splitlines()
    command = title.split("`")[1]
    assert f"Usage: {command} " in capsys.readouterr().out
    _, _, arguments = example.partition(f"-- python jobs/{script.name} ")
    COMMANDS[command.split()[1]].make_context(command, arguments.split())


def test_there_is_a_job_script_for_the_pipeline_and_every_stage() -> None:
    assert {script.stem for script in SCRIPTS} == {
        "pipeline",
        "elicit",
        "smooth",
        "train",
        "evaluate",
        "report",
        "experiment",
    }


HEAVY = {"ray", "torch", "transformers", "mlflow", "vllm", "matplotlib", "pyarrow", "numpy"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (["--help"], HEAVY | {"omegaconf", "pydantic"}),
        (["run", "--help"], HEAVY | {"omegaconf"}),
        (["config"], HEAVY),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_config_wait_for_no_heavy_import(arguments: list[str], unwanted: set[str]) -> None:
    code = "import sys\nfrom ual_ray.cli.app import main\ntry:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert "typer" in done.stderr.split()
    assert not unwanted & set(done.stderr.split())


@pytest.mark.slow
def test_completion_lists_keys_and_stages() -> None:
    for words, expected in (("ual run train.ep", "train.epochs="), ("ual run --rerun ", "calibrate"), ("ual pre", "preview")):
        environment = {"_UAL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = [sys.executable, "-m", "ual_ray"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert expected in done.stdout.split(), done.stderr
