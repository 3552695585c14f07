"""Configurations and texts without their secrets."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from ual_ray.config import Config

# Names of keys, headers and environment variables whose values are secrets.
_NAMES = (
    r"token|passw(?:or)?ds?|passphrase|secrets?|signature|credentials?|cookies?|authorization|connection[-_]?string"
    r"|(?:api|access|private|secret|subscription|account)[-_]?keys?|(?<=[-_])(?:key|pwd|pat|auth)"
)
SECRET_KEY = re.compile(rf"(?i)({_NAMES})(?:[-_]?\d+)?$")
# A header's value that is a secret whatever the header's name is; the digit tells it from words.
CREDENTIALS = re.compile(r"(?i)(?:bearer|basic)\s+(?=\S*\d)\S{8,}")
# The value of a parameter of an address; `sig` is the signature of a shared access to Azure.
PARAMETER = re.compile(rf"(?i)([?&](?:sig|[^=?&#\s]*?(?:{_NAMES}))=)[^&#\s]+")
# Up to the last @, as a password may hold one that is not escaped; a path object has dropped the second slash. Not
# a container of Azure's, as in abfs://CONTAINER@ACCOUNT.
USER_PART = re.compile(r"(?<=://)(?!(?:(?<=abfs://)|(?<=abfss://))[^/?#\s:@]+@)[^/?#\s]+@|(?<=:/)[^/?#\s:]+:[^/?#\s]*@")
# Shorter values of variables are words that also occur elsewhere.
SHORTEST_SECRET = 8
MASK = "***"


def redact(config: Config) -> Config:
    """Copy a configuration with its secrets masked, for files, MLflow and the terminal."""
    return Config.model_validate(redact_values(config.model_dump(mode="json")))


def redact_values(values: Any, key: str = "") -> Any:
    """Mask the values of keys that name a secret, and in other texts what `redact_uri` masks."""
    if isinstance(values, dict):
        return {name: redact_values(value, str(name)) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_values(value, key) for value in values]
    if isinstance(values, str):
        return MASK if SECRET_KEY.search(key) or CREDENTIALS.fullmatch(values) else redact_uri(values)
    return values


def redact_uri(text: str) -> str:
    """Mask what is secret of addresses such as http://user:password@host?token=..., and values of the environment's secrets."""
    return hide(PARAMETER.sub(rf"\1{MASK}", USER_PART.sub(f"{MASK}@", text)), environment_secrets())


def hide(text: str, values: Iterable[str]) -> str:
    """Mask values in a text, the longest first, as they are and as addresses and JSON have them, without space around them."""
    spelled = {way(value.strip()) for value in values for way in (str, _in_address, _in_json)}
    for value in sorted(filter(None, spelled), key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def _in_address(value: str) -> str:
    return quote(value, safe="", errors="replace")  # an environment may hold bytes that are not UTF-8


def _in_json(value: str) -> str:
    return json.dumps(value)[1:-1]


def hidden_values(variables: Mapping[str, str]) -> list[str]:
    """Return the values of variables that a text must not show: of those that name a secret, and long ones."""
    return [value for name, value in variables.items() if SECRET_KEY.search(name) or len(value) >= SHORTEST_SECRET]


def environment_secrets() -> list[str]:
    """Return the values of environment variables whose names are those of secrets, such as HF_TOKEN and OPENAI_API_KEY."""
    # Threads of other libraries change the environment meanwhile: `os.environ.items()` raises KeyError then.
    found = (os.environ.get(name, "") for name in os.environ if SECRET_KEY.search(name))
    return [value for value in found if len(value.strip()) >= SHORTEST_SECRET]
