"""Translate the FSDP settings of an `accelerate config` file into keys of `train`; unsupported ones are errors.

Only the file is read: `accelerate` itself would also read the environment, and needs a GPU to create its FSDP plugin.
"""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ual_ray.config import TrainConfig
from ual_ray.config.load import explain
from ual_ray.errors import UserError

PREFIX = "parallelism_config_"

_Meanings = dict[Any, dict[str, Any]]

_RESHARD: _Meanings = {
    True: {"reshard_after_forward": True},
    False: {"reshard_after_forward": False},
    "FULL_SHARD": {"reshard_after_forward": True},
    "SHARD_GRAD_OP": {"reshard_after_forward": False},
}
_SWITCH = {key: {True: {key: True}, False: {key: False}} for key in ("cpu_offload", "activation_checkpointing")}

# The supported values and the keys of `train` that they set; None or an absent field sets nothing.
FSDP_FIELDS: Mapping[str, _Meanings] = {
    "fsdp_version": {1: {}, 2: {}},
    "fsdp_reshard_after_forward": _RESHARD,
    "fsdp_sharding_strategy": _RESHARD | {1: _RESHARD["FULL_SHARD"], 2: _RESHARD["SHARD_GRAD_OP"]},
    "fsdp_offload_params": _SWITCH["cpu_offload"],
    "fsdp_activation_checkpointing": _SWITCH["activation_checkpointing"],
    "fsdp_activation_checkpointing_offload": {False: {}},
    "fsdp_auto_wrap_policy": {"TRANSFORMER_BASED_WRAP": {}},
    # No effect: checkpoints are always sharded, the export is always a full model.
    "fsdp_state_dict_type": {"SHARDED_STATE_DICT": {}, "FULL_STATE_DICT": {}},
    "fsdp_forward_prefetch": {False: {}},
}
# Ignored fields: always the case here, or meaningless under FSDP2 (layers are detected, every rank loads its own rows).
FSDP_FIELDS_OF_NO_EFFECT = {
    "fsdp_transformer_layer_cls_to_wrap",
    "fsdp_backward_prefetch",
    "fsdp_use_orig_params",
    "fsdp_sync_module_states",
    "fsdp_cpu_ram_efficient_loading",
}
FIELDS: Mapping[str, _Meanings] = {
    "compute_environment": {"LOCAL_MACHINE": {}},
    "distributed_type": {"FSDP": {}},
    "mixed_precision": {"BF16": {"dtype": "bfloat16"}, "NO": {"dtype": "float32"}, False: {"dtype": "float32"}},
    "downcast_bf16": {"NO": {}, False: {}},
}
# Sections of other features of accelerate, which must be empty.
EMPTY_FIELDS = ("deepspeed_config", "megatron_lm_config", "fp8_config", "mpirun_config", "dynamo_config")
PARALLELISM_FIELDS: Mapping[str, _Meanings] = {
    f"{PREFIX}tp_size": {1: {}},
    f"{PREFIX}cp_size": {1: {}},
    f"{PREFIX}sp_size": {1: {}},
}


def read_accelerate_config(path: str | Path, config: TrainConfig) -> TrainConfig:
    """Return `config` with the sharding keys that the YAML (or JSON) file of `accelerate config` sets.

    Ray decides where to run: of the launcher's fields only num_processes is checked, and must equal train.num_workers.
    Raises UserError for a file that cannot be read, and for an unsupported field or value.
    """
    file = _read(path)
    # Fields of no section that are not in FIELDS are the launcher's.
    updates = _read_fields(path, {name: file.get(name) for name in FIELDS}, FIELDS)
    updates |= _read_fields(path, file["fsdp_config"], FSDP_FIELDS, FSDP_FIELDS_OF_NO_EFFECT)
    for name in EMPTY_FIELDS:
        if file.get(name):
            raise _refused(path, name, file[name], "an empty section")
    updates |= _read_parallelism(path, file["parallelism_config"], config)
    if file["num_processes"] not in (-1, config.num_workers):
        raise _refused(path, "num_processes", file["num_processes"], f"{config.num_workers}, as train.num_workers")
    try:
        return TrainConfig.model_validate(config.model_dump() | updates)
    except ValidationError as error:
        problems = "\n".join(explain(TrainConfig, problem) for problem in error.errors())
        raise UserError(
            "train.accelerate_config conflicts with the other settings",
            got=f"{path}: {problems}",
            fix="change the file, or train.*",
        ) from error


def _read(path: str | Path) -> dict[str, Any]:
    from accelerate.commands.config.config_args import load_config_from_file
    from yaml import YAMLError

    try:
        return vars(load_config_from_file(str(path)))
    # AttributeError: the file is not a mapping.
    except (OSError, ValueError, TypeError, AttributeError, YAMLError) as error:
        raise UserError(
            "train.accelerate_config cannot be read", got=path, expected="a file written by `accelerate config`", fix=str(error)
        ) from error


def _read_fields(
    path: str | Path, section: Mapping[str, Any], known: Mapping[str, _Meanings], of_no_effect: Container[str] = ()
) -> dict[str, Any]:
    """Look up every field's value. Raises UserError for one that is not known."""
    updates: dict[str, Any] = {}
    for name, value in section.items():
        if value is None or name in of_no_effect:
            continue
        if name not in known:
            raise _refused(path, name, value, f"one of {', '.join(sorted(known))}, or left out")
        found = _plain(value)
        if found not in known[name]:
            raise _refused(path, name, value, " or ".join(str(value) for value in known[name]))
        for key, update in known[name][found].items():
            if updates.setdefault(key, update) != update:
                raise _refused(path, name, value, f"the value of {key} that the file's other fields set")
    return updates


def _read_parallelism(path: str | Path, section: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    sizes = dict(section)
    replicas = sizes.pop(f"{PREFIX}dp_replicate_size", None) or config.replicas
    shards = sizes.pop(f"{PREFIX}dp_shard_size", None)
    if shards not in (None, 1) and shards * replicas != config.num_workers:
        expected = f"train.num_workers = {config.num_workers} over {replicas} replicas"
        raise _refused(path, f"{PREFIX}dp_shard_size", shards, expected)
    _read_fields(path, sizes, PARALLELISM_FIELDS)
    return {"replicas": replicas}


def _plain(value: Any) -> Any:
    """Normalize an enum, or a name in any case, to the spelling in the tables."""
    value = getattr(value, "value", value)
    if not isinstance(value, str):
        # Other types, such as a list, are never a value in a table.
        return value if isinstance(value, int | bool) else repr(value)
    return {"TRUE": True, "FALSE": False}.get(value.upper(), value.upper())


def _refused(path: str | Path, name: str, value: object, expected: str) -> UserError:
    return UserError(
        f"train.accelerate_config: unsupported value of {name}",
        got=f"{value} in {path}",
        expected=expected,
        fix="change it there, or omit the file and set train.* (`ual config` lists the keys)",
    )
