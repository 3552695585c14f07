"""Values of the configuration: each one's rule, and those that do not go together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from config_files import reload

from ual_ray import columns as col
from ual_ray.config import ArmConfig, BenchmarkConfig, CalibrationConfig, Config, EndpointConfig, Section, TrainConfig
from ual_ray.config.load import load, section_at
from ual_ray.errors import UserError

# --- bad values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epochs=0", "greater than or equal to 1"),
        ("train.epochs=many", "integer"),
        ("train.epochs=1.5", "integer"),
        ("train.epochs=True", "an integer"),
        ("train.max_steps=False", "an integer"),
        ("train.learning_rate=True", "a number"),
        ("experiment.seeds=[True, 2]", "an integer"),
        ("train.mixture={'a': True}", "a number"),
        ("train.learning_rate=0", "greater than 0"),
        ("train.learning_rate=.nan", "finite"),
        ("train.learning_rate=.inf", "finite"),
        ("train.dtype=int8", "'auto', 'float32' or 'bfloat16'"),
        ("data.max_rows=0", "greater than or equal to 1"),
        ("data.format=csv", "'auto', 'messages', 'sharegpt'"),
        ("data.max_bad_share=1.5", "less than or equal to 1"),
        ("engine.kind=tgi", "'vllm', 'openai' or 'fake'"),
        ("engine.overlong=split", "'drop' or 'truncate'"),
        ("engine.hang_seconds=0", "greater than 0"),
        ("engine.endpoint.concurrency=0", "greater than or equal to 1"),
        ("engine.endpoint.requests_per_minute=0", "greater than 0"),
        ("engine.endpoint.max_retries=-1", "greater than or equal to 0"),
        ("engine.price_per_million_prompt_tokens=-1", "greater than or equal to 0"),
        ("elicit.uncertainty=mean", "'ensemble'"),
        ("elicit.uncertainty=verbalized", "'verbalized_error'"),
        ("arms.ual.uncertainty=auto", "'ensemble'"),
        ("elicit.scale=1-10", "'0-9', '1-5' or '0-100'"),
        ("elicit.mode=greedy", "'logprobs' or 'sampled'"),
        ("elicit.samples=0", "greater than or equal to 1"),
        ("elicit.temperature=0", "greater than 0"),
        ("elicit.temperature=2.5", "less than or equal to 2"),
        ("elicit.retries=-1", "greater than or equal to 0"),
        ("elicit.grouping=entailment", "'embedding' or 'nli'"),
        ("elicit.similarity=0", "greater than 0"),
        ("elicit.retest_share=1.1", "less than or equal to 1"),
        ("elicit.splits=[]", "at least 1"),
        ("elicit.estimators=[]", "at least 1"),
        ("elicit.estimators=nll", "a list, such as [a, b]"),
        ("arms.ual.alpha_mean=1", "less than 1"),
        ("arms.ual.alpha_mean=-0.1", "greater than or equal to 0"),
        ("arms.ual.alpha_mean=.nan", "finite"),
        ("arms.ual.map=sigmoid", "'mean_matched'"),
        ("arms.ual.base=none", "'rank'"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=99999999999999999999", "less than or equal to"),
        ("output=''", "not empty"),
        ("data=rows.jsonl", "a section of keys"),
        ("train.packing=maybe", "true or false"),
        ("train.learning_rate=fast", "a number"),
        ("elicit.splits={}", "a list, such as [a, b]"),
        ("train.lora=[]", "a section of keys"),
    ],
)
def test_a_bad_value_names_the_key_the_rule_and_the_value(override: str, says: str) -> None:
    key, value = override.split("=")
    with pytest.raises(UserError) as error:
        load(overrides=[override])
    first, got, expected, *fix = str(error.value).splitlines()
    assert first.startswith(f"bad value for '{key}")
    assert got.startswith("  got: ") and value.strip("[].'") in got
    assert expected.startswith("  expected: ") and says in expected
    assert all(line.startswith("  fix: did you mean") for line in fix)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "says"),
    [
        (f"arms.{'a' * 101}.map=none", "at most 100 bytes"),
        (f"evaluate.benchmarks.{'é' * 51}.kind=gsm8k", "at most 100 bytes"),
        (f"experiment.scenarios.{'a' * 101}=[data.label_noise=0.1]", "at most 100 bytes"),
        (f"{'a.' * 3000}b=1", "recursion depth"),
    ],
)
def test_a_name_that_is_too_long_is_an_error(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(overrides=[override])


@pytest.mark.parametrize(
    ("override", "key", "right"),
    [
        ("train.mixture={math:2}", "train.mixture.math:2", "math: 2"),
        ("train={epochs:3}", "train.epochs:3", "epochs: 3"),
        ("arms={a: {map:linear}}", "arms.a.map:linear", "map: linear"),
    ],
)
def test_a_colon_without_a_space_is_told_so(override: str, key: str, right: str) -> None:
    with pytest.raises(UserError) as error:
        load(overrides=[override])
    assert str(error.value).splitlines() == [
        "a key without a value",
        f"  got: {key}",
        "  expected: KEY: VALUE",
        f"  fix: write '{right}', with a space behind the colon",
    ]


def test_a_value_that_is_nearly_right_is_told_so() -> None:
    with pytest.raises(UserError) as error:
        load(overrides=["train.dtype=bf16"])
    assert str(error.value).splitlines() == [
        "bad value for 'train.dtype'",
        "  got: 'bf16'",
        "  expected: 'auto', 'float32' or 'bfloat16'",
        "  fix: did you mean 'bfloat16'?",
    ]
    with pytest.raises(UserError, match="fix: did you mean 'shuffled'"):
        load(overrides=["arms.ual.map=shufled"])
    for key in ("uncertainty=verbalized", "estimators=[verbalized]", "ensemble=[verbalized]"):  # its name until version 0.1
        with pytest.raises(UserError, match="fix: did you mean 'verbalized_error'"):
            load(overrides=[f"elicit.{key}"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("elicit.estimators=[nll,perplexity]", "'semantic_entropy'"),
        ("elicit.splits=[train,dev]", "'train', 'validation' or 'test'"),
    ],
)
def test_a_bad_item_of_a_list_is_named_with_its_place(override: str, says: str) -> None:
    key, value = override.split("=")
    with pytest.raises(UserError) as error:
        load(overrides=[override])
    first, got, expected, *_ = str(error.value).splitlines()
    assert first == f"bad value for '{key}.1'" and says in expected
    assert got == f"  got: {value.strip('[]').split(',')[1]!r}"


SERVER = ["engine.kind=openai", "elicit.estimators=[verbalized_error,p_true]"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.validation_share=0.5", "data.test_share=0.5"], "validation_share + test_share must be below 1"),
        (["engine.min_actors=3"], "min_actors (3) must not be above max_actors (2)"),
        (["elicit.estimators=[nll]"], "uncertainty 'verbalized_error' must be one of estimators ['nll']"),
        (["elicit.estimators=[verbalized_error,nll,nll]"], "estimators ['verbalized_error', 'nll', 'nll'] names one twice"),
        (
            ["elicit.ensemble=[nll,nll_sum]"],
            "ensemble ['nll_sum'] must be among estimators ['verbalized_error', 'p_true', 'nll']",
        ),
        (
            ["elicit.uncertainty=auto"],
            "uncertainty 'auto' takes the estimator that does best in the self-check; set",
        ),
        (["elicit.self_check=19"], "self_check (19) must be 0 or at least 20 rows"),
        (["elicit.grouping=embedding"], "grouping 'embedding' needs elicit.embedding_model"),
        (["elicit.grouping=nli", "elicit.embedding_model=e"], "embedding_model is used by grouping 'embedding' alone"),
        (["elicit.grouping=nli"], "grouping 'nli' needs elicit.nli_model"),
        (["elicit.nli_model=n"], "nli_model is used by grouping 'nli' alone"),
        (["elicit.embedding_model=e"], "embedding_model is used by grouping 'embedding' alone"),
        (["engine.kind=openai"], "elicit.estimators ['nll']: a server does not give the likelihood of a text"),
        (["engine.kind=openai"], "set elicit.estimators=[verbalized_error,p_true], also where it only judges, or use engine"),
        (["engine.kind=openai", "elicit.estimators=[nll]", "elicit.uncertainty=nll"], "=[verbalized_error,p_true], also"),
        (
            ["engine.kind=openai", "elicit.estimators=[nll_sum,verbalized_error,nll]"],
            "elicit.estimators ['nll', 'nll_sum']: a server does not give the likelihood of a text",
        ),
        ([*SERVER, "elicit.scale=0-100"], "elicit.mode=logprobs needs a scale of one-token numbers"),
        ([*SERVER, "engine.endpoint.logprobs=false"], "a server with log-probabilities"),
        ([*SERVER, "elicit.adapter=a"], "elicit.adapter is for engine.kind=vllm"),
        ([*SERVER, "engine.batches_in_flight=2"], "batches_in_flight (2) must be 1 for engine.kind=openai"),
        (["engine.tensor_parallel_size=2"], "tensor_parallel_size (2) must not be above gpus_per_actor (0)"),
        (
            ["engine.gpus_per_actor=4", "engine.tensor_parallel_size=2"],
            "must not be below gpus_per_actor (4), or GPUs would be",
        ),
        (
            ["engine.gpus_per_actor=3", "engine.arguments={pipeline_parallel_size: 2}"],
            "size (1) x pipeline_parallel_size (2) must",
        ),
        (["engine.arguments={pipeline_parallel_size: 2}"], "x pipeline_parallel_size (2) must not be above gpus_per_actor (0)"),
        (["engine.arguments={pipeline_parallel_size: two}"], "pipeline_parallel_size ('two') must be a whole number"),
        (["engine.arguments={tensor_parallel_size: 2}"], "must be set as engine.tensor_parallel_size"),
        (["arms.ual.alpha_min=0.3"], "alpha_min (0.3) must not be above alpha_max (0.2)"),
        (["arms.ual.alpha_mean=0.5"], "alpha_mean (0.5) must not be above alpha_cap (0.4)"),
        (["arms.base.map=none"], "arm 'base'"),
        (["arms.a/b.map=none"], "arm 'a/b'"),
        (["arms.reference.map=none"], "arm 'reference'"),
        (["evaluate.benchmarks.a/b.kind=math"], "evaluate.benchmarks: 'a/b'"),
        (["evaluate.benchmarks.overall.kind=math"], "and not 'overall', the name of all of them"),
        (["judge.more_models=[a]"], "judge.more_models needs judge.model, the judge that decides"),
        (
            ["judge.model=a", "judge.more_models=[b, a]"],
            "judge.more_models: every judge once, and not judge.model; got a, b, a",
        ),
        (["judge.model=demo", "judge.against=nobody"], "judge.against 'nobody' must be one of sft, ual, base, reference"),
        (
            ["judge.model=demo", "judge.against=[sft, nobody]"],
            "judge.against 'nobody' must be one of sft, ual, base, reference",
        ),
        (
            ["train.prior=base", "train.lora.rank=4", "train.continue_from=a"],
            "prior=base smooths towards `model`, which with continue_from is not the model before this training",
        ),
        (
            ["train.activation_checkpointing=selective", "train.compile=true"],
            "activation_checkpointing=selective does nothing with compile=true",
        ),
        (["train.prior=base", "train.continue_from=a"], "prior=base smooths towards `model`"),
        (["judge.against=[]"], "judge.against: one reference or more, each once; got none"),
        (["judge.against=[sft, sft]"], "judge.against: one reference or more, each once; got sft, sft"),
    ],
)
def test_values_that_do_not_go_together_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        load(overrides=overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        SERVER,
        [*SERVER, "elicit.scale=1-5"],
        [*SERVER, "elicit.mode=sampled", "elicit.scale=0-100", "engine.endpoint.logprobs=false"],
        ["engine.kind=openai", "elicit.estimators=[self_consistency,verbalized_error]", "elicit.samples=1"],
        ["elicit.estimators=[nll,nll_sum]", "elicit.uncertainty=ensemble"],
        ["elicit.uncertainty=ensemble", "elicit.ensemble=[nll]"],
        ["elicit.estimators=[nll,p_true]", "elicit.uncertainty=auto", "elicit.self_check=20"],
        ["elicit.grouping=embedding", "elicit.embedding_model=e"],
        ["elicit.grouping=nli", "elicit.nli_model=n"],
        ["elicit.scale=0-100", "elicit.adapter=a"],
    ],
)
def test_values_that_go_together_are_taken_and_survive_dump_and_load(overrides: list[str], tmp_path: Path) -> None:
    config = load(overrides=overrides)
    assert config != Config()
    assert reload(config, tmp_path) == config


def test_a_list_whose_only_element_is_refused_is_not_called_too_short_as_well() -> None:
    with pytest.raises(UserError, match="bad value for 'elicit.estimators.0'") as refused:
        load(None, ["elicit.estimators=[nl]"])
    assert str(refused.value).count("bad value") == 1
    with pytest.raises(UserError, match="(?s)bad value for 'elicit.estimators'.*at least 1, not 0"):
        load(None, ["elicit.estimators=[]"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["arms.d.map=rank", "arms.d.alpha_mean=0.3"],
            "arms.d: map=rank, weight=none and missing=impute do not read alpha_mean=0.3: drop it",
        ),
        (["arms.d.map=mean_matched", "arms.d.alpha_min=0.1"], "do not read alpha_min=0.1"),
        (["arms.d.map=none", "arms.d.alpha_mean=0.2", "arms.d.base=rank"], "do not read alpha_mean=0.2, base=rank: drop them"),
        (["arms.d.map=constant", "arms.d.base=rank", "arms.d.alpha_mean=0.3"], "map=constant of base=rank, .* alpha_mean"),
        (["arms.d.map=shuffled", "arms.d.alpha_max=0.3"], "map=shuffled of base=mean_matched, .* alpha_max"),
        (["arms.d.map=none", "arms.d.filter_share=0.3"], "do not read filter_share"),
        (["arms.d.map=rank", "arms.d.missing_alpha=0.3"], "do not read missing_alpha"),
        (["arms.sft.map=none", "arms.sft.uncertainty=nll"], "map=none, .* do not read uncertainty=nll: drop it"),
        (["arms.d.map=none", "arms.d.missing=default", "arms.d.uncertainty=nll"], "do not read uncertainty=nll"),
        (["arms.d.map=none", "arms.d.missing=default", "arms.d.missing_alpha=0.1"], "do not read missing_alpha=0.1"),
        (["arms.d.map=constant", "arms.d.uncertainty=nll"], "base=mean_matched, .* do not read uncertainty=nll"),
        (["arms.sft.map=none", "arms.sft.prior=unigram"], "arms.sft: .* prior=unigram, but map=none does not smooth"),
        (
            ["arms.d.map=mean_matched", "arms.d.alpha_mean=0", "arms.d.prior=unigram"],
            "arms.d: .* prior=unigram, but .*alpha_mean=0",
        ),
        (
            ["arms.d.map=constant", "arms.d.alpha_mean=0", "arms.d.prior=unigram"],
            "arms.d: .* prior=unigram, but .*alpha_mean=0",
        ),
        (["arms.d.map=rank", "arms.d.alpha_max=0", "arms.d.prior=unigram"], "arms.d: .* prior=unigram, but .*alpha_max=0"),
        (
            ["arms.d.map=shuffled", "arms.d.base=rank", "arms.d.alpha_max=0", "arms.d.prior_file=q.npy", "arms.d.prior=file"],
            "arms.d: .* prior=file, but .*alpha_max=0",
        ),
        (["arms.ual.map=none", "train.prior=unigram"], "train.prior=unigram is used by no arm .*arms.sft: map=none"),
        (
            ["arms.ual.alpha_mean=0", "train.prior=unigram"],
            "train.prior=unigram is used by no arm .*arms.ual: alpha_mean=0",
        ),
        (
            ["arms.ual.prior=uniform", "train.prior=unigram"],
            "train.prior=unigram is used by no arm .*prior=uniform",
        ),
        (["arms.flow.weight=flow", "elicit.uncertainty=ensemble"], "made from the uncertainty 'nll'; got 'ensemble'"),
        (["arms.flow.weight=flow", "arms.flow.uncertainty=p_true"], "made from the uncertainty 'nll'; got 'p_true'"),
    ],
)
def test_settings_of_an_arm_that_would_do_nothing_or_another_thing_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(None, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["arms.d.map=constant", "arms.d.alpha_mean=0.5", "arms.d.alpha_cap=0.5"],
        ["arms.d.map=inverted", "arms.d.base=rank", "arms.d.alpha_max=0.3"],
        ["arms.d.map=none", "arms.d.weight=filter", "arms.d.uncertainty=p_true"],
        ["arms.d.map=none", "arms.d.missing=exclude", "arms.d.uncertainty=p_true"],
        ["arms.d.map=constant", "arms.d.missing=default", "arms.d.missing_alpha=0.1", "arms.d.uncertainty=p_true"],
        ["arms.d.map=constant", "arms.d.base=rank", "arms.d.uncertainty=p_true", "arms.d.prior=unigram"],
        ["arms.d.map=rank", "arms.d.alpha_max=0", "arms.d.missing=default", "arms.d.missing_alpha=0.1", "arms.d.prior=unigram"],
        ["arms.sft.map=none", "arms.d.map=rank", "train.prior=unigram"],
        [
            "arms.d.map=rank",
            "arms.d.missing=default",
            "arms.d.missing_alpha=0.1",
            "arms.d.weight=filter",
            "arms.d.filter_share=0.3",
        ],
    ],
)
def test_settings_of_an_arm_that_are_read_are_taken_and_can_be_written_and_read(overrides: list[str], tmp_path: Path) -> None:
    found = load(None, overrides)
    assert reload(found, tmp_path) == found


def test_a_loss_or_prior_of_its_own_does_not_take_the_settings_of_the_others() -> None:
    train = TrainConfig(loss="dft", loss_strength=0.5, prior="file", prior_file="q.npy")
    plain = ArmConfig(loss="sft", prior="uniform").training(train)
    assert (plain.loss, plain.loss_strength, plain.prior, plain.prior_file) == ("sft", None, "uniform", None)
    assert ArmConfig(loss="eaft").training(train).loss_strength is None, "that of dft is no exponent of eaft"
    assert ArmConfig(loss="eaft", loss_strength=2.0).training(train).loss_strength == 2.0
    same = ArmConfig(learning_rate=1e-5).training(train)
    assert (same.loss_strength, same.prior_file) == (0.5, "q.npy")
    assert ArmConfig(loss="dft", loss_strength=0.7).training(train).loss_strength == 0.7


def test_the_shares_of_the_splits_add_up() -> None:
    shares = load(overrides=["data.validation_share=0.25", "data.test_share=0.5"]).data.split_shares()
    assert shares == {"train": 0.25, "validation": 0.25, "test": 0.5}
    assert tuple(shares) == col.SPLITS


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (["engine", "endpoint"], EndpointConfig),
        ([], Config),
        (["train"], TrainConfig),
        (["arms", "ual"], ArmConfig),
        (["arms"], None),
        (["evaluate", "benchmarks", "gsm8k"], BenchmarkConfig),
        (["evaluate", "benchmarks"], None),
        (["evaluate", "calibration"], CalibrationConfig),
        (["seed"], None),
        (["nothing"], None),
    ],
)
def test_section_at(path: list[str], expected: type[Section] | None) -> None:
    assert section_at(path) is expected


@pytest.mark.parametrize("override", ["[=None", "[]=1", "a[=1"])
def test_an_override_whose_key_cannot_be_parsed_is_a_users_mistake(override: str) -> None:
    with pytest.raises(UserError):
        load(None, [override])


def test_a_file_with_a_text_that_ends_in_a_tab_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xe1\x80\x80\t")
    with pytest.raises(UserError, match="is not YAML"):
        load(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], 1),
        (["engine.gpus_per_actor=1"], 2),
        (["engine.cpus_per_actor=2"], 2),
        (["engine.cpus_per_actor=2", "engine.kind=fake"], 1),
        (["engine.gpus_per_actor=0.5", "engine.batches_in_flight=1"], 1),
        (["engine.batches_in_flight=3"], 3),
        (["engine.kind=fake", "engine.gpus_per_actor=1"], 1),
        ([*SERVER, "engine.gpus_per_actor=1"], 1),
    ],
)
def test_batches_in_flight_fill_what_computes_at_the_same_time(settings: list[str], expected: int) -> None:
    assert load(None, settings).engine.in_flight == expected
