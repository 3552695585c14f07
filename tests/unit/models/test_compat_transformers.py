"""transformers' undocumented parts are still there; what they do is checked in tests/unit/train/test_export.py."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ual_ray.models import compat_transformers
from ual_ray.models.compat_transformers import (
    attention_implementation,
    float32_names,
    keeps_rows,
    mark_initialized,
    optional_file,
    pack_masks,
    takes_any_attention,
)

FIX = f"transformers has changed what ual_ray uses of it: do what is written at the top of {compat_transformers.__file__}"


def parameters_of(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_parts_that_are_used_are_there() -> None:
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model, revert_weight_conversion
    from transformers.modeling_utils import LoadStateDictConfig

    assert parameters_of(get_model_conversion_mapping)[0] == "model", FIX
    assert parameters_of(convert_and_load_state_dict_in_model)[:4] == [
        *("model", "state_dict", "load_config", "disk_offload_index")
    ], FIX
    assert parameters_of(revert_weight_conversion)[:2] == ["model", "state_dict"], FIX
    finalize: Any = PreTrainedModel._finalize_model_loading
    assert parameters_of(finalize) == ["model", "load_config", "loading_info"], FIX
    used = {"pretrained_model_name_or_path", "device_map", "dtype", "weight_mapping"}
    assert used <= set(parameters_of(LoadStateDictConfig)), FIX


def test_models_tell_whether_their_attention_can_be_exchanged() -> None:
    from transformers import BloomForCausalLM, LlamaForCausalLM, PreTrainedModel

    assert {"_supports_attention_backend", "_supports_sdpa"} <= set(vars(PreTrainedModel)), FIX
    assert takes_any_attention(LlamaForCausalLM) and not takes_any_attention(BloomForCausalLM), FIX


def test_the_attributes_that_are_set_are_read() -> None:
    from transformers import core_model_loading, initialization

    # A wrong name here would go unnoticed: the export would keep names of its own, adapters would be initialised twice.
    assert "_weight_conversions" in inspect.getsource(core_model_loading), FIX
    assert "_is_hf_initialized" in inspect.getsource(initialization), FIX


def test_what_is_float32_in_any_precision_is_known_by_name() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9}
    config = AutoConfig.for_model("glm4_moe", **settings, moe_intermediate_size=4, n_routed_experts=2, first_k_dense_replace=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    is_float32 = float32_names(model)
    assert [name for name in model.state_dict() if is_float32(name)] == ["model.layers.0.mlp.gate.e_score_correction_bias"], FIX


def test_masks_of_packs_are_made_of_positions_by_kind_of_layer() -> None:
    from transformers import AutoConfig

    def masks(*kinds: str) -> Any:
        config = AutoConfig.for_model("gpt_oss", layer_types=list(kinds), num_hidden_layers=len(kinds), sliding_window=2)
        config._attn_implementation = "sdpa"
        return pack_masks(SimpleNamespace(config=config), torch.tensor([[0, 1, 2, 0, 1]]), torch.float32)

    found = masks("sliding_attention", "full_attention")
    whole, window = (found[kind][0, 0].tolist() for kind in ("full_attention", "sliding_attention"))
    assert [[at for at, seen in enumerate(row) if seen] for row in whole] == [[0], [0, 1], [0, 1, 2], [3], [3, 4]], FIX
    assert [[at for at, seen in enumerate(row) if seen] for row in window] == [[0], [0, 1], [1, 2], [3], [3, 4]], FIX
    assert masks("linear_attention", "full_attention") is None


def test_a_parameter_that_is_marked_is_not_initialised_again() -> None:
    from transformers import initialization

    marked, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    mark_initialized(marked)
    initialization.zeros_(marked)
    initialization.zeros_(other)
    assert (marked.sum(), other.sum()) == (3, 0), FIX


def test_only_weights_whose_rows_stay_rows_can_be_read_in_shards() -> None:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    mixtral, other = (get_checkpoint_conversion_mapping(name) for name in ("mixtral", "hrm_text"))
    assert mixtral and all(map(keeps_rows, mixtral)), FIX
    assert other and not all(map(keeps_rows, other)), FIX


def test_a_file_that_is_missing_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert optional_file(str(tmp_path), "config.json") == str(tmp_path / "config.json")
    assert optional_file(str(tmp_path), "generation_config.json") is None, FIX


def test_the_attention_of_a_model_is_named() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    for name in ("eager", "sdpa"):
        assert attention_implementation(AutoModelForCausalLM.from_config(config, attn_implementation=name)) == name, FIX
