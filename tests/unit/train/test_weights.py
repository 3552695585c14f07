"""Where loaded parameters are kept, and which weights are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ual_ray.errors import UserError
from ual_ray.train.weights import _move_parameters, empty_model, load_weights


def test_moved_parameters_stay_tied_and_keep_what_is_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    model[1].weight.requires_grad_(False)
    _move_parameters(model, torch.device("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model[2].weight is model[0].weight and model[1].weight is not model[0].weight
    assert [model[at].weight.requires_grad for at in range(3)] == [True, False, True]
    assert len(list(model.parameters())) == 5


@pytest.mark.parametrize("row", [None, 0, 619])
def test_a_head_of_its_own_below_a_config_that_ties_it_is_refused(row: int | None, family_folder: Any, tmp_path: Path) -> None:
    """transformers does not tie it then, and the trained model would be another one than that of `from_pretrained`."""
    source = Path(shutil.copytree(family_folder("llama"), tmp_path / "model"))
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    if row is not None:
        weights["lm_head.weight"][row, 0] += 1
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    model: Any = empty_model(str(source))
    if row is None:
        load_weights(model, str(source), torch.device("cpu"))
        assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])
        return
    with pytest.raises(UserError, match=r"lm_head.weight and model.embed_tokens.weight differ, and config.json ties them"):
        load_weights(model, str(source), torch.device("cpu"))
