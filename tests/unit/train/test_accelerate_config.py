"""`accelerate config` files: what they say of sharding is followed, and what cannot be followed is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from ual_ray.config import TrainConfig
from ual_ray.errors import UserError
from ual_ray.train.accelerate_config import FSDP_FIELDS, FSDP_FIELDS_OF_NO_EFFECT, read_accelerate_config

# As `accelerate config` of 1.15 writes them.
FSDP2 = {
    "fsdp_version": 2,
    "fsdp_reshard_after_forward": False,
    "fsdp_offload_params": True,
    "fsdp_activation_checkpointing": True,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    "fsdp_cpu_ram_efficient_loading": True,
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
}
FSDP1 = {
    "fsdp_version": 1,
    "fsdp_sharding_strategy": "FULL_SHARD",
    "fsdp_reshard_after_forward": "FULL_SHARD",
    "fsdp_offload_params": False,
    "fsdp_activation_checkpointing": False,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_backward_prefetch": "BACKWARD_PRE",
    "fsdp_forward_prefetch": False,
    "fsdp_use_orig_params": True,
    "fsdp_cpu_ram_efficient_loading": True,
    "fsdp_sync_module_states": True,
    "fsdp_state_dict_type": "FULL_STATE_DICT",
}
FILE = {
    "compute_environment": "LOCAL_MACHINE",
    "debug": False,
    "distributed_type": "FSDP",
    "downcast_bf16": "no",
    "enable_cpu_affinity": False,
    "machine_rank": 0,
    "main_training_function": "main",
    "mixed_precision": "bf16",
    "num_machines": 1,
    "num_processes": 8,
    "rdzv_backend": "static",
    "same_network": True,
    "tpu_env": [],
    "tpu_use_cluster": False,
    "tpu_use_sudo": False,
    "use_cpu": False,
}
CONFIG = TrainConfig(num_workers=8, dtype="float32", epochs=3)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Read a file of FILE and what a test puts in its place."""

    def read_file(fsdp: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
        path = tmp_path / "accelerate.yaml"
        path.write_text(yaml.safe_dump({**FILE, "fsdp_config": FSDP2 if fsdp is None else fsdp, **changes}))
        return read_accelerate_config(path, CONFIG)

    return read_file


def test_fsdp2_settings_replace_ours_and_nothing_else(read: Any) -> None:
    expected = {
        "dtype": "bfloat16",
        "reshard_after_forward": False,
        "cpu_offload": True,
        "activation_checkpointing": True,
    }
    assert read() == CONFIG.model_copy(update=expected)


def test_fsdp1_is_read_as_what_it_means_under_fsdp2(read: Any) -> None:
    assert read(FSDP1, mixed_precision="no") == CONFIG
    assert not read(
        {**FSDP1, "fsdp_sharding_strategy": None, "fsdp_reshard_after_forward": "SHARD_GRAD_OP"}
    ).reshard_after_forward
    assert not read({"fsdp_sharding_strategy": 2}).reshard_after_forward


def test_what_is_left_out_stays_as_it_is(read: Any) -> None:
    assert read({"fsdp_version": 2}, mixed_precision=None) == CONFIG


def test_replicas_come_from_the_parallelism_section(read: Any) -> None:
    section = {
        "parallelism_config_dp_replicate_size": 2,
        "parallelism_config_dp_shard_size": 4,
        "parallelism_config_tp_size": 1,
    }
    assert read(parallelism_config=section).replicas == 2


@pytest.mark.parametrize(
    ("fsdp", "changes", "named"),
    [
        ({**FSDP2, "fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}, {}, "fsdp_auto_wrap_policy"),
        ({**FSDP2, "fsdp_activation_checkpointing_offload": True}, {}, "fsdp_activation_checkpointing_offload"),
        ({**FSDP2, "fsdp_ignored_modules": "lm_head"}, {}, "fsdp_ignored_modules"),
        ({**FSDP2, "fsdp_state_dict_type": "LOCAL_STATE_DICT"}, {}, "fsdp_state_dict_type"),
        ({**FSDP2, "fsdp_offload_params": ["all"]}, {}, "fsdp_offload_params"),
        ({**FSDP1, "fsdp_sharding_strategy": "HYBRID_SHARD"}, {}, "fsdp_sharding_strategy"),
        ({**FSDP1, "fsdp_sharding_strategy": "SHARD_GRAD_OP"}, {}, "reshard_after_forward"),
        ({**FSDP1, "fsdp_forward_prefetch": True}, {}, "fsdp_forward_prefetch"),
        ({**FSDP1, "fsdp_min_num_params": 2000}, {}, "fsdp_min_num_params"),
        ({"fsdp_version": 3}, {}, "fsdp_version"),
        (None, {"mixed_precision": "fp8"}, "mixed_precision"),
        (None, {"mixed_precision": "fp16"}, "mixed_precision"),
        (None, {"distributed_type": "MULTI_GPU"}, "distributed_type"),
        (None, {"num_processes": 4}, "num_processes"),
        (None, {"deepspeed_config": {"zero_stage": 3}}, "deepspeed_config"),
        (None, {"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "dynamo_config"),
        (None, {"parallelism_config": {"parallelism_config_tp_size": 2}}, "parallelism_config_tp_size"),
        (
            None,
            {"parallelism_config": {"parallelism_config_dp_replicate_size": 2, "parallelism_config_dp_shard_size": 8}},
            "parallelism_config_dp_shard_size",
        ),
        (None, {"no_such_key": 1}, "no_such_key"),
    ],
)
def test_what_cannot_be_followed_is_an_error_that_names_it(
    fsdp: dict[str, Any] | None, changes: dict[str, Any], named: str, read: Any
) -> None:
    with pytest.raises(UserError, match=named) as error:
        read(fsdp, **changes)
    assert "expected" in str(error.value)


def test_what_the_settings_do_not_allow_together_is_said_as_they_say_it(read: Any) -> None:
    with pytest.raises(UserError, match=r"(?s)accelerate_config conflicts.*accelerate\.yaml.*replicas = 3 does not divide"):
        read(parallelism_config={"parallelism_config_dp_replicate_size": 3})


@pytest.mark.parametrize("text", [None, "a: [", "just words", "fsdp_config: {}"])
def test_a_file_that_is_none_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "accelerate.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        read_accelerate_config(path, CONFIG)


def test_every_field_of_accelerates_plugin_is_decided_on(read: Any) -> None:
    from accelerate import FullyShardedDataParallelPlugin

    in_files = {
        "fsdp_version": "version",
        "cpu_offload": "offload_params",
        "transformer_cls_names_to_wrap": "transformer_layer_cls_to_wrap",
    }
    fields = {f"fsdp_{in_files.get(field.name, field.name)}" for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    known = set(FSDP_FIELDS) | FSDP_FIELDS_OF_NO_EFFECT
    refused = {"fsdp_ignored_modules", "fsdp_min_num_params", "fsdp_limit_all_gathers"}
    not_in_files = {"mixed_precision_policy", "state_dict_config", "optim_state_dict_config", "param_init_fn"}
    assert fields - {f"fsdp_{name}" for name in not_in_files} == known | refused
    for name in refused:
        with pytest.raises(UserError, match=name):
            read({**FSDP2, name: 1})


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("offload", [True, False])
def test_it_means_what_accelerates_plugin_makes_of_it(reshard: bool, offload: bool, read: Any) -> None:
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, reshard_after_forward=reshard, cpu_offload=offload, activation_checkpointing=not offload
    )
    ours = read(
        {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": str(reshard).lower(),
            "fsdp_offload_params": offload,
            "fsdp_activation_checkpointing": not offload,
        }
    )
    assert ours.reshard_after_forward == plugin.reshard_after_forward
    assert ours.cpu_offload == isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    assert ours.activation_checkpointing == plugin.activation_checkpointing
