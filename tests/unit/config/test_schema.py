"""The configuration: merging, files, and messages that name an unknown key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from config_files import at, reload, write
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ual_ray.config import ArmConfig, BenchmarkConfig, Config, Section, TrainConfig
from ual_ray.config.load import dump, load
from ual_ray.config.redact import redact
from ual_ray.errors import UserError

# --- defaults, dump and load -----------------------------------------------------------------------------------------


def test_no_file_gives_the_defaults() -> None:
    config = load()
    assert config == Config()
    assert (config.data.path, config.model, config.elicit.model) == ("demo", "demo", "demo")
    assert {name: arm.map for name, arm in config.arms.items()} == {"sft": "none", "ual": "mean_matched"}


def test_defaults_survive_dump_and_load(tmp_path: Path) -> None:
    assert reload(Config(), tmp_path) == Config()


def test_everything_changed_survives_dump_and_load(tmp_path: Path) -> None:
    config = load(
        overrides=[
            "data.path='a # b: {c}.jsonl'",
            "data.max_rows=7",
            "data.columns={instruction: 'the question', id: key}",
            "engine.endpoint.url=http://host:1/v1",
            "engine.endpoint.requests_per_minute=0.5",
            "elicit.templates='my prompts.yaml'",
            "elicit.scale=0-100",
            "elicit.splits=[train,test]",
            "train.learning_rate=1e-7",
            "elicit.estimators=[nll,p_true]",
            "elicit.uncertainty=nll",
            "arms.half.map=constant",
            "arms.half.alpha_mean=0.25",
            "engine.arguments.hf_overrides.rope={type: linear, factor: 2.5}",
            "engine.arguments.quantization=null",
            "tracking.uri=sqlite:///a.db",
            "trust_remote_code=true",
        ]
    )
    assert config != Config()
    assert reload(config, tmp_path) == config


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="$\\?"))


@settings(max_examples=10)
@example(texts=["rows/😀.jsonl", 'a "quoted": # {odd} one\n', "", "~", "a"])
@given(texts=st.lists(TEXTS, min_size=5, max_size=5))
@pytest.mark.slow
def test_any_text_survives_dump_and_load(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    output, model, path, experiment, judge = texts
    values = {"data": {"path": path}, "tracking": {"experiment": experiment or "x"}, "judge": {"model": judge}}
    config = Config.model_validate({"output": output or "x", "model": model, **values})
    assert reload(config, tmp_path_factory.mktemp("c")) == config


@pytest.mark.parametrize("arm", ["ual-2", "ual_half", "42", "1e3", "1_000", "null", "true", "off", "é"])
def test_any_legal_name_of_an_arm_survives_dump_and_load(arm: str, tmp_path: Path) -> None:
    config = Config(arms={arm: ArmConfig(map="rank")})
    assert reload(config, tmp_path) == config


def test_dump_explains_every_key() -> None:
    lines = [line for line in dump(Config()).splitlines() if not re.fullmatch(r' +"?(sft|ual|held_out|gsm8k)"?:', line)]
    assert all(re.fullmatch(r" *\w+:.*  # \w.*", line) for line in lines)
    keys = {line.split(":")[0].strip() for line in lines}
    assert {"data", "path", "learning_rate", "alpha_cap", "kv_cache_gb", "experiment", "seed"} <= keys


def sections(section: type[Section]) -> list[type[Section]]:
    inner = [field.annotation for field in section.model_fields.values()]
    found = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, Section)]
    return [section, *(deeper for kind in found for deeper in sections(kind))]


@pytest.mark.parametrize("section", [*sections(Config), ArmConfig], ids=lambda section: section.__name__)
def test_every_key_has_a_default_and_a_description(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name


def test_configurations_are_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 1  # type: ignore[misc]


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=3", 3),
        ("data.path=rows.jsonl", "rows.jsonl"),
        ("data.path=a=b.jsonl", "a=b.jsonl"),
        ("data.max_rows=50", 50),
        ("data.max_rows=null", None),
        ("train.learning_rate=3e-5", 3e-5),
        ("train.warmup_share=0", 0.0),
        ("trust_remote_code=true", True),
        ("elicit.estimators=[verbalized_error,nll]", ("verbalized_error", "nll")),
        ("elicit.splits=[train,test]", ("train", "test")),
        ("arms.ual.alpha_mean=0.2", 0.2),
        ("engine.arguments.max_num_seqs=4", 4),
        ("runtime.address=ray://head:10001", "ray://head:10001"),
        ("tracking.uri=http://localhost:5000", "http://localhost:5000"),
        ("output=runs/seed-${seed}", "runs/seed-0"),
        ("train.epochs=???", TrainConfig().epochs),
    ],
)
def test_an_override_changes_one_value(override: str, expected: object) -> None:
    key = override.split("=")[0]
    changed = load(overrides=[override])
    assert at(changed, key) == expected
    assert type(at(changed, key)) is type(expected)
    untouched = Config.model_fields.keys() - {key.split(".")[0]}
    assert changed.model_dump(include=untouched) == Config().model_dump(include=untouched)


def test_an_override_in_an_arm_leaves_its_other_values_and_arms_alone() -> None:
    arms = load(overrides=["arms.ual.alpha_mean=0.2"]).arms
    assert arms == {"sft": ArmConfig(map="none"), "ual": ArmConfig(map="mean_matched", alpha_mean=0.2)}


def test_an_override_may_add_an_arm() -> None:
    arms = load(overrides=["arms.shuffled.map=shuffled"]).arms
    assert [*arms] == ["sft", "ual", "shuffled"]


def test_overrides_beat_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\ntrain:\n  epochs: 5\n  max_steps: 9\n")
    config = load(path, ["seed=2", "train.epochs=6"])
    assert (config.seed, config.train.epochs, config.train.max_steps) == (2, 6, 9)
    assert config.train.global_batch_size == TrainConfig().global_batch_size


def test_the_last_override_of_a_key_counts() -> None:
    assert load(overrides=["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["seed", "=3", "data.path rows.jsonl", ""])
def test_an_override_without_key_or_value_is_shown(override: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"got: {override}")) as error:
        load(overrides=[override])
    assert "KEY=VALUE" in str(error.value) and "--config FILE" in str(error.value)
    assert "what a command reads is before all overrides" in str(error.value)


@pytest.mark.parametrize(
    "override",
    ["data.path=[", "data.path=*.jsonl", "data.path=@x", "data.path=a: b: c", "data=[1]", "output=${nosuch}"],
)
def test_an_override_that_cannot_be_merged_is_a_user_error(override: str) -> None:
    with pytest.raises(UserError) as error:
        load(overrides=["seed=1", override])
    assert override.split("=")[0] in str(error.value)


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_arms_of_a_file_replace_the_default_arms(tmp_path: Path) -> None:
    path = write(tmp_path, "arms:\n  half:\n    map: constant\n    alpha_mean: 0.05\n")
    assert load(path).arms == {"half": ArmConfig(map="constant", alpha_mean=0.05)}
    assert load(path, ["arms.half.alpha_mean=0.3"]).arms == {"half": ArmConfig(map="constant", alpha_mean=0.3)}


def test_the_benchmarks_of_a_file_replace_the_default_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "evaluate:\n  benchmarks:\n    maths: {kind: math, path: x.jsonl}\n  resamples: 500\n")
    evaluate = load(path).evaluate
    assert evaluate.benchmarks == {"maths": BenchmarkConfig(kind="math", path="x.jsonl")}
    assert (evaluate.resamples, evaluate.dtype) == (500, Config().evaluate.dtype)
    added = load(None, ["evaluate.benchmarks.maths.kind=math"]).evaluate.benchmarks
    assert [*added] == ["held_out", "gsm8k", "maths"]


def test_an_unknown_key_of_a_benchmark_is_explained() -> None:
    with pytest.raises(UserError, match=r"unknown key 'evaluate.benchmarks.gsm8k.shot'(?s:.*)shots"):
        load(None, ["evaluate.benchmarks.gsm8k.shot=5"])


def test_a_file_without_arms_keeps_them(tmp_path: Path) -> None:
    assert load(write(tmp_path, "seed: 1\n")).arms == Config().arms


@pytest.mark.parametrize("arms", ["{}", "null", "[]"])
def test_a_file_needs_an_arm(arms: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="arms"):
        load(write(tmp_path, f"arms: {arms}\n"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)does not exist.*nowhere\.yaml.*ual config"):
        load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["- data\n- train\n", "just words\n", "42\n"])
def test_a_file_that_is_not_a_mapping_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)not (a mapping|YAML).*config\.yaml"):
        load(write(tmp_path, text))


@pytest.mark.parametrize("text", ["data: [1, 2\n", "data:\n\tpath: x\n", "a: b: c\n", "seed: 1\nseed: 2\n"])
def test_a_file_that_is_not_yaml_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)not YAML.*config\.yaml"):
        load(write(tmp_path, text))


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load(write(tmp_path, "# only a comment\n")) == Config()


def test_a_folder_is_not_taken_for_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the configuration file is a folder"):
        load(tmp_path)


def test_a_file_of_other_tools_and_systems_is_read_or_named(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(b"\xef\xbb\xbftrain: {max_steps: 7}\r\noutput: runs/a\r\n")
    assert (load(file).train.max_steps, load(file).output) == (7, "runs/a")
    for content in ("train: {max_steps: 7}".encode("utf-16"), b"train:\n\tmax_steps: 7\n"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="(?s)not YAML.*in UTF-8 and without tabs"):
            load(file)


def test_dotted_keys_of_a_file_are_shown_in_their_sections(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("train.lora.rank: 16\n")
    with pytest.raises(UserError, match=re.escape("is in its section: train: {lora: {rank: ...}}")):
        load(tmp_path / "my.yaml")


# --- unknown keys ----------------------------------------------------------------------------------------------------

UNKNOWN = [
    ("sed=1", "unknown key 'sed'", "runtime, output, seed", "'seed'"),
    ("trian.epochs=1", "unknown key 'trian'", "data, model", "'train'"),
    ("train.learning_rat=1", "unknown key 'train.learning_rat'", "num_workers, ", "'train.learning_rate'"),
    ("engine.argumets.x=1", "unknown key 'engine.argumets'", "kind, min_actors", "'engine.arguments'"),
    ("engine.endpoint.uri=x", "unknown key 'engine.endpoint.uri'", "url, api_key_env", "'engine.endpoint.url'"),
    ("elicit.scales=0-9", "unknown key 'elicit.scales'", "model, adapter, estimators", "'elicit.scale'"),
    ("arms.ual.alpha_mena=0.2", "unknown key 'arms.ual.alpha_mena'", "map, base, alpha_mean", "'arms.ual.alpha_mean'"),
    ("map=rank", "unknown key 'map'", "data, model", "'arms.sft.map' or 'arms.ual.map'"),
    ("arms.new.alpha_cpa=0.2", "unknown key 'arms.new.alpha_cpa'", "map, base, alpha_mean", "'arms.new.alpha_cap'"),
]


@pytest.mark.parametrize(("override", "unknown", "known", "near"), UNKNOWN)
def test_an_unknown_key_names_the_known_and_the_nearest(override: str, unknown: str, known: str, near: str) -> None:
    with pytest.raises(UserError) as error:
        load(overrides=[override])
    first, second, third = str(error.value).splitlines()
    assert first == unknown
    assert second.startswith("  expected: ")
    assert known in second
    assert third == f"  fix: did you mean {near}?"


def test_an_unknown_key_in_a_file_is_found_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)unknown key 'train\.epoch'.*did you mean 'train\.epochs'"):
        load(write(tmp_path, "train:\n  epoch: 1\n"))


def test_an_unknown_key_like_no_other_points_to_the_list() -> None:
    with pytest.raises(UserError, match=r"(?s)unknown key 'data\.zzz'.*path, format.*ual config"):
        load(overrides=["data.zzz=1"])


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(UserError) as error:
        load(overrides=["sed=1", "train.epochs=0", "data.pat=x"])
    assert all(key in str(error.value) for key in ("'sed'", "'train.epochs'", "'data.pat'"))


def test_secrets_are_masked_in_what_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abc123")
    given = load(None, ["engine.arguments={hf_token: '${oc.env:A_TOKEN}', seed: 1}", "tracking.uri='http://me:pw@host:1'"])
    assert given.engine.arguments == {"hf_token": "abc123", "seed": 1}
    written = dump(redact(given))
    assert "abc123" not in written and "me:pw" not in written
    assert load(None).engine == redact(load(None)).engine


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ("arms.a-vs-b.map=rank", "arm 'a-vs-b' has 'vs' between dashes"),
        ("arms.vs.map=rank", "arm 'vs' has"),
        ("arms.UAL.map=rank", "arms that differ in capitals alone"),
    ],
)
def test_arms_that_could_be_taken_for_others_are_refused(arms: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load(overrides=[arms])
    assert words in str(error.value)
    assert "canvas" in load(overrides=["arms.canvas.map=rank"]).arms


@pytest.mark.parametrize(
    "override",
    ["experiment=''", f"experiment={'x' * 501}", "register_as=team/model", "register_as=a:b", 'register_as="it\'s"']
    + [f"register_as={'x' * 151}"],
)
def test_a_name_that_mlflow_refuses_is_refused_before_anything_runs(override: str) -> None:
    with pytest.raises(UserError, match=f"tracking.{override.partition('=')[0]}"):
        load(None, [f"tracking.{override}"])


def test_names_that_mlflow_takes() -> None:
    tracking = load(None, ["tracking.experiment='team/a: b'", "tracking.register_as=catalog.schema.my model"]).tracking
    assert (tracking.experiment, tracking.register_as) == ("team/a: b", "catalog.schema.my model")
