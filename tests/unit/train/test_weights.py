"""Where loaded parameters are kept."""

from __future__ import annotations

import torch
from torch import nn

from ual_ray.train.weights import _move_parameters


def test_moved_parameters_stay_tied_and_keep_what_is_trained() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    model[1].weight.requires_grad_(False)
    _move_parameters(model, torch.device("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model[2].weight is model[0].weight and model[1].weight is not model[0].weight
    assert [model[at].weight.requires_grad for at in range(3)] == [True, False, True]
    assert len(list(model.parameters())) == 5
