"""Environment variables that a job gets by name, with the values that they have where the job is submitted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from ual_ray.config.redact import MASK
from ual_ray.errors import UserError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read_environment(names: Iterable[str]) -> dict[str, str]:
    """Return the values of environment variables. Raises UserError, which shows no value, for what is not set or not a name."""
    values = {}
    for given in names:
        name = given.split("=")[0]
        if given != name or not NAME.fullmatch(name):
            raise UserError(
                "--env takes the name of an environment variable, without a value",
                got=f"{name}={MASK}" if given != name else given,
                expected="such as --env HF_TOKEN",
                fix="set the variable in your shell; a value on the command line would be seen by others",
            )
        if not os.environ.get(name):
            raise UserError(
                "--env names a variable that is not set here", got=name, fix=f"export {name}=..., or leave --env {name} out"
            )
        values[name] = os.environ[name]
    return values
