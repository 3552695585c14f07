"""What a job takes along: the configuration and the files it names, and nothing that points back at the submitter's disk."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ual_ray.config.load import load
from ual_ray.errors import UserError
from ual_ray.jobs.pack import ENTRYPOINT, LARGEST_UPLOAD_MB, entrypoint, pack

FILES = ("data.path", "elicit.templates", "elicit.calibrate_with", "train.accelerate_config")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with data, prompts and labels, as a user does."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("rows.jsonl", "prompts.yaml", "labels.csv"):
        (folder / name).write_text(name)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Give the folder that is uploaded."""
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


def test_files_of_benchmarks_and_prompts_of_the_judge_travel(here: Path, there: Path) -> None:
    keys = ["evaluate.benchmarks.maths.kind=math", "evaluate.benchmarks.maths.path=rows.jsonl", "judge.templates=prompts.yaml"]
    packed = pack(load(None, [*keys, "output=/shared/out"]), there)
    assert packed.uploads == {"evaluate.benchmarks.maths.path": "rows.jsonl", "judge.templates": "prompts.yaml"}
    sent = load(there / "config.yaml")
    assert (sent.evaluate.benchmarks["maths"].path, sent.judge.templates) == ("rows.jsonl", "prompts.yaml")


@pytest.mark.parametrize("prefix", ["", "absolute"])
def test_the_files_travel_and_the_paths_change(here: Path, there: Path, prefix: str) -> None:
    start = f"{here}/" if prefix else ""
    files = [
        f"data.path={start}rows.jsonl",
        f"elicit.templates={start}prompts.yaml",
        f"elicit.calibrate_with={start}labels.csv",
    ]
    packed = pack(load(None, [*files, "output=/shared/out", "train.epochs=5"]), there)
    assert {file.name: file.read_text() for file in there.iterdir() if file.name != "config.yaml"} == {
        name: name for name in ("rows.jsonl", "prompts.yaml", "labels.csv")
    }
    sent = load(there / "config.yaml")
    assert (sent.data.path, sent.runtime.address, sent.output, sent.train.epochs) == ("rows.jsonl", "auto", "/shared/out", 5)
    assert entrypoint(packed).startswith(ENTRYPOINT)
    assert shlex.split(entrypoint(packed).replace("$here", "/job"))[-3:] == [
        "elicit.calibrate_with=/job/labels.csv",
        "elicit.templates=/job/prompts.yaml",
        "data.path=/job/rows.jsonl",
    ]
    assert str(here) not in (there / "config.yaml").read_text()


def test_files_of_one_name_do_not_meet(here: Path, there: Path) -> None:
    (here / "other").mkdir()
    (here / "other" / "rows.jsonl").write_text("labels")
    (here / "config.yaml").write_text("prompts")
    files = ["data.path=rows.jsonl", "elicit.templates=config.yaml", "elicit.calibrate_with=other/rows.jsonl"]
    packed = pack(load(None, [*files, "output=/shared/out"]), there)
    assert {key: (there / name).read_text() for key, name in packed.uploads.items()} == {
        "data.path": "rows.jsonl",
        "elicit.templates": "prompts",
        "elicit.calibrate_with": "labels",
    }
    assert load(there / "config.yaml").output == "/shared/out"


def test_a_name_is_nothing_that_the_shell_would_run(here: Path, there: Path) -> None:
    name = 'a "b" $(touch c) `d`; ü.jsonl'
    (here / name).write_text("{}")
    packed = pack(
        load(None, ["output=/shared/out"]).model_copy(update={"data": load().data.model_copy(update={"path": name})}), there
    )
    assert packed.uploads == {"data.path": "a__b____touch_c___d___ü.jsonl"}


@pytest.mark.parametrize(
    "path",
    ["/shared/rows.parquet", "/shared/folder", "owner/name", "gsm8k", "s3://bucket/rows", "file:///shared/rows.jsonl", "demo"],
)
def test_data_elsewhere_stays_where_it_is(here: Path, there: Path, path: str) -> None:
    packed = pack(load(None, [f"data.path={path}", "output=/shared/out"]), there)
    assert packed.config.data.path == path
    assert packed.uploads == {} and entrypoint(packed) == ENTRYPOINT


def test_an_absolute_folder_is_not_uploaded(here: Path, there: Path) -> None:
    packed = pack(load(None, [f"data.path={here}", "output=/shared/out"]), there)
    assert packed.uploads == {} and [file.name for file in there.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("key", ["data.path", "elicit.templates", "elicit.calibrate_with"])
def test_a_large_file_is_refused(here: Path, there: Path, key: str) -> None:
    with (here / "large.jsonl").open("wb") as file:
        file.truncate((LARGEST_UPLOAD_MB << 20) + 1)
    with pytest.raises(UserError, match=f"{key} is too large"):
        pack(load(None, [f"{key}=large.jsonl", "output=/shared/out"]), there)
    assert not any(there.iterdir())


def test_files_are_counted_together(here: Path, there: Path) -> None:
    for name, megabytes in (("large.jsonl", LARGEST_UPLOAD_MB - 1), ("labels.csv", 2)):
        with (here / name).open("wb") as file:
            file.truncate(megabytes << 20)
    files = ["data.path=large.jsonl", "elicit.calibrate_with=labels.csv"]
    with pytest.raises(
        UserError, match=r"(?s)data.path is too large.*large.jsonl: 99.0 MB, .*labels.csv: 2.0 MB.*100 MB in all"
    ):
        pack(load(None, [*files, "output=/shared/out"]), there)


def test_the_digest_follows_configuration_and_contents(here: Path, tmp_path: Path) -> None:
    def digest(*overrides: str) -> str:
        folder = tmp_path / f"packed-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return pack(load(None, ["data.path=rows.jsonl", "output=/shared/out", *overrides]), folder).digest

    first = digest()
    assert digest() == first
    assert digest(f"data.path={here}/rows.jsonl") == first, "the same file by another path"
    assert digest("train.epochs=5") != first
    (here / "rows.jsonl").write_text("other rows")
    assert digest() != first


@pytest.mark.parametrize(
    ("says", "override"),
    [
        (r"secret.*got: engine\.arguments\.hf_token=\*\*\*\n", "engine.arguments={hf_token: abc}"),
        (r"secret.*got: tracking\.uri=http://\*\*\*@host\n.*--env", "tracking.uri='http://me:pw@host'"),
        *[("path of this machine", f"{key}=mine") for key in ("model", "elicit.adapter", "elicit.embedding_model")],
        ("path of this machine", "train.storage=mine"),
        ("path of this machine", "model=runs/mine/model"),
        ("working directory", "tracking.uri=sqlite:///mlflow.db"),
        *[("path of this machine", f"{key}=./mine") for key in ("model", "elicit.embedding_model")],
        *[("path of this machine", f"{key}=~/mine") for key in ("elicit.model", "elicit.adapter")],
        *[("folders are not uploaded.*shared storage", f"data.path={path}") for path in ("mine", "./mine", "owner/name")],
        *[(f"{key} does not exist.*nowhere", f"{key}=nowhere.x") for key in FILES],
        ("data.path does not exist.*nowhere", "data.path=./nowhere"),
        ("not an absolute path.*s3://", "output=relative"),
    ],
)
def test_secrets_and_what_the_cluster_does_not_have_are_refused(here: Path, there: Path, says: str, override: str) -> None:
    for folder in ("mine", "owner/name"):
        (here / folder).mkdir(parents=True)
    grouping = ["elicit.grouping=embedding"] if "embedding" in override else []
    with pytest.raises(UserError, match=f"(?s){says}"):
        pack(load(None, ["output=/shared/out", *grouping, override]), there)


def test_absolute_models_and_hub_names_pass(there: Path) -> None:
    models = ["model=/shared/model", "elicit.model=owner/model", "elicit.adapter=/shared/adapter"]
    encoder = ["elicit.grouping=embedding", "elicit.embedding_model=owner/encoder"]
    packed = pack(load(None, [*models, *encoder, "elicit.templates=/shared/prompts.yaml", "output=/shared/out"]), there)
    assert packed.config.elicit.adapter == "/shared/adapter"
    assert packed.uploads == {}


def test_the_settings_of_accelerate_travel(here: Path, there: Path) -> None:
    (here / "fsdp.yaml").write_text("fsdp_config: {}\n")
    packed = pack(load(None, ["train.accelerate_config=fsdp.yaml", "output=/shared/out"]), there)
    assert (there / "fsdp.yaml").is_file() and packed.config.train.accelerate_config == "fsdp.yaml"
    assert entrypoint(packed).endswith('"train.accelerate_config=$here/fsdp.yaml"')


def test_checkpoints_go_where_all_nodes_see_them(there: Path) -> None:
    for storage in ("s3://bucket/checkpoints", "/shared/checkpoints"):
        assert pack(load(None, [f"train.storage={storage}", "output=/shared/out"]), there).config.train.storage == storage


def test_an_output_at_a_uri_is_as_absolute_as_a_path(here: Path, there: Path) -> None:
    assert pack(load(None, ["data.path=demo", "output=s3://bucket/run"]), there).config.output == "s3://bucket/run"
