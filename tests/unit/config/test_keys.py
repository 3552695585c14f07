"""What keys mean: what they affect, and what they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_args

import pytest

from ual_ray.config import Config, EngineConfig, Section
from ual_ray.config.keys import affecting, engine_settings, map_names, naming, replaced
from ual_ray.config.load import load
from ual_ray.config.section import Affected, key


def sections(section: Section) -> Iterator[Section]:
    """Yield a section and all sections in it."""
    yield section
    for name in type(section).model_fields:
        value = getattr(section, name)
        for part in value.values() if isinstance(value, dict) else [value]:
            if isinstance(part, Section):
                yield from sections(part)


@pytest.mark.parametrize("section", sections(Config()), ids=lambda section: type(section).__name__)
def test_every_key_says_what_it_affects(section: Section) -> None:
    for name, field in type(section).model_fields.items():
        assert isinstance(field.json_schema_extra, dict), name
        assert set(field.json_schema_extra["affects"]) <= set(get_args(Affected)), name
        assert field.description, name


def test_every_result_is_affected_by_something() -> None:
    for result in get_args(Affected):
        assert any(affecting(section, result) for section in sections(Config())), result


def test_a_result_that_is_not_known_is_a_programmers_error() -> None:
    with pytest.raises(AssertionError, match="nonsense"):
        key(1, affects="scores nonsense", description="a key")


def test_scores_depend_on_what_is_asked_and_how_it_is_read() -> None:
    # A setting that changes what is asked, or how it is read, makes new scores; the files of models are hashed instead.
    assert set(affecting(Config().elicit, "scores")) == {
        *("estimators", "scale", "mode", "samples", "temperature", "max_new_tokens", "retries"),
        *("grouping", "similarity", "retest_share"),
        *("thinking_tokens", "reply_tokens", "min_choice_mass"),
    }
    assert set(affecting(Config().elicit, "uncertainty")) == {
        *("splits", "uncertainty", "ensemble", "length_residual", "self_check"),
    }


def test_weights_do_not_depend_on_where_and_how_fast_they_are_trained() -> None:
    weights = affecting(Config().train, "weights")
    assert {"epochs", "learning_rate", "lora", "dtype", "global_batch_size", "max_length", "packing"} <= set(weights)
    assert not {"num_workers", "micro_batch_size", "checkpoint_every", "storage", "activation_checkpointing", "compile"} & set(
        weights
    )
    assert weights["lora"] == Config().train.lora.model_dump(), "a section that affects a result does so with all its keys"


def test_an_endpoint_counts_only_where_it_is_asked() -> None:
    assert engine_settings(EngineConfig(), "answers")["endpoint"] is None
    server = EngineConfig(kind="openai")
    asked = engine_settings(server, "answers")["endpoint"]
    sent = {"extra_body", "chat_template_kwargs", "reasoning_effort", "temperature"}
    assert asked.keys() == {"url", "logprobs"} | sent, "what is sent along, and not how fast"
    assert (asked["url"], asked["logprobs"]) == (server.endpoint.url, True)


def test_what_keys_name() -> None:
    config = load(None, ["data.path=rows.jsonl", "judge.templates=p.yaml", "evaluate.benchmarks.gsm8k.path=q.jsonl"])
    assert naming(config, "data") == {"data.path": "rows.jsonl", "evaluate.benchmarks.gsm8k.path": "q.jsonl"}
    assert naming(config, "file") == {"judge.templates": "p.yaml"}
    assert set(naming(config, "model")) == {"model", "elicit.model"}, "keys that are null name nothing"


def test_every_name_of_a_list_is_a_name() -> None:
    config = load(None, ["judge.model=a", "judge.more_models=[b, c]"])
    given = {key: value for key, value in naming(config, "model").items() if key.startswith("judge")}
    assert given == {"judge.model": "a", "judge.more_models.0": "b", "judge.more_models.1": "c"}
    assert map_names(config, str.upper, "model").judge.models == ("A", "B", "C")
    assert replaced(config, {"judge.more_models.1": "d", "seed": 4}).judge.models == ("a", "b", "d")


def test_names_are_changed_where_they_stand() -> None:
    config = load(None, ["evaluate.benchmarks.gsm8k.path=q.jsonl"])
    changed = map_names(config, lambda name: f"/here/{name}", "data")
    assert (changed.data.path, changed.evaluate.benchmarks["gsm8k"].path) == ("/here/demo", "/here/q.jsonl")
    assert replaced(changed, naming(config, "data")) == config


def test_the_meaning_of_keys_is_in_the_json_schema() -> None:
    schema = Config.model_json_schema()
    path = schema["$defs"]["DataConfig"]["properties"]["path"]
    assert (path["affects"], path["names"]) == ([], "data")
    json.dumps(schema)
