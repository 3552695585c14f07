"""`torch.compile` of the decoder layers, whose shapes may differ from batch to batch."""

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ual_ray.errors import UserError
from ual_ray.train.compat_torch import mark_shapes_dynamic
from ual_ray.train.sharding import find_layers

# Graphs beyond which torch runs a layer uncompiled. There is one for each of: one row or several, with a mask or without,
# with a gradient of the input or without; times the kinds of layers of the model. torch's own limit is 8.
MOST_GRAPHS = 64


def check_compiler() -> None:
    """Raise UserError where torch.compile cannot build for this machine's CPU: no C++ compiler, or no headers of Python."""
    compiler, header = os.environ.get("CXX", "g++"), Path(sysconfig.get_path("include")) / "Python.h"
    missing = [] if shutil.which(compiler) else [f"no C++ compiler: {compiler} is not in PATH"]
    missing += [] if header.exists() else [f"no headers of Python: {header} does not exist"]
    if missing:
        raise UserError(
            "train.compile=true cannot compile on this machine",
            got="; ".join(missing),
            fix="install them (on Debian and Ubuntu: apt-get install g++ python3-dev), name a compiler in CXX, or set "
            "train.compile=false",
        )


def compile_layers(body: nn.Module) -> None:
    """Compile what each decoder layer computes in training, in place: its weights keep their names.

    Activation checkpointing and FSDP stay around what is compiled. Passes without gradients are not compiled.
    """
    for layer in find_layers(body):
        layer.forward = _compiled(layer.forward)


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    in_training = torch.compile(forward, recompile_limit=MOST_GRAPHS)

    def either(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Not torch.compile(dynamic=True): below FSDP it also takes settings of layers, such as the size of a head, for
        # variables, and mistakes them for the lengths that they equal.
        mark_shapes_dynamic((args, kwargs))
        return in_training(*args, **kwargs)

    return either
