"""Read, merge, check and write configurations.

`load(path, overrides)` merges defaults <- YAML file <- KEY=VALUE overrides (OmegaConf) and checks the result (pydantic).
An unknown key is an error that names the nearest known one.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from ual_ray.config import Config, Section
from ual_ray.errors import UserError

# What a key of a kind takes, by pydantic's name of the error.
RULES = {
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list, such as [a, b]",
    "model_type": "a section of keys",
    "dict_type": "a section of keys",
    "missing": "a value",
}

# OmegaConf's `${key}`, which may name any key, and its mark of a value that is left to the default.
NEEDS_DEFAULTS = ("${", "???")


def load(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge defaults, a YAML file and KEY=VALUE overrides, and check the result.

    A file's `arms`, `benchmarks` and `scenarios` replace the default ones; overrides change single values. Raises UserError.
    """
    base = Config().model_dump(mode="json")
    file = _read_yaml(Path(path)) if path is not None else {}
    if "arms" in file:
        base["arms"] = {}
    if isinstance(file.get("evaluate"), dict) and "benchmarks" in file["evaluate"]:
        base["evaluate"]["benchmarks"] = {}
    if isinstance(file.get("experiment"), dict) and "scenarios" in file["experiment"]:
        base["experiment"]["scenarios"] = {}
    for key, value in file.items():
        if isinstance(base.get(key), dict) and not isinstance(value, dict):
            raise UserError(f"'{key}' is a section of keys, not a value", got=value, fix="`ual config` prints every key")
    for item in overrides:
        if "=" not in item or item.startswith("="):
            raise UserError(
                "an override is not KEY=VALUE",
                got=item,
                expected="such as train.epochs=3",
                fix="a file is given by --config FILE; what a command reads is before all overrides",
            )
    try:
        given = OmegaConf.merge(file, OmegaConf.from_dotlist([*overrides]))
        if any(mark in f"{file} {overrides}" for mark in NEEDS_DEFAULTS):
            values = OmegaConf.to_container(OmegaConf.merge(base, given), resolve=True)
        else:  # most of the time of a load would be spent on wrapping the defaults
            values = _merged(base, OmegaConf.to_container(given))
    except (OmegaConfBaseException, YAMLError, LookupError, TypeError, ValueError, RecursionError) as error:
        source = ", ".join([*([str(path)] if path is not None else []), *overrides])
        raise UserError(
            "the configuration cannot be merged",
            got=f"{source}: {error}",
            fix="quote values that contain special characters of YAML: 'key=\"*.jsonl\"'",
        ) from error
    return validate(values)


def _merged(base: Any, given: Any) -> Any:
    """Merge what is given into the defaults, section by section."""
    if isinstance(base, dict) and isinstance(given, dict):
        return base | {key: _merged(base.get(key), value) for key, value in given.items()}
    return given


def validate(values: Any) -> Config:
    """Check plain values against the schema. Raises UserError that names every invalid key."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # An element that is refused is not counted, so its list is also reported as too short.
        problems = error.errors()
        inner = {problem["loc"][:-1] for problem in problems}
        told = (problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in inner)
        raise UserError("\n".join(explain(Config, problem) for problem in told)) from error


def section_at(path: Sequence[str | int]) -> type[Section] | None:
    """Find the section class at a path of keys, which may pass through the name of an arm or a benchmark."""
    section: type[Section] | None = Config
    named: type[Section] | None = None
    for key in path:
        if named is not None:
            section, named = named, None
            continue
        if section is None or str(key) not in section.model_fields:
            return None
        annotation = section.model_fields[str(key)].annotation
        section = _section(annotation)
        named = next(filter(None, map(_section, get_args(annotation))), None)
    return section


def _section(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def dump(config: Config) -> str:
    """Write the configuration as YAML, with the description of every key as a comment; `load` reads it back unchanged."""
    return "\n".join(_dump_section(config, indent=0)) + "\n"


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"the configuration file {what}", got=path, fix="`ual config > my.yaml` writes one")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        # OmegaConf reads a bare text as a key without a value; only then is the file parsed again, which takes as long.
        one_key = isinstance(content, dict) and [*content.values()] == [None]
        is_text = one_key and isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), str)
    except Exception as error:  # OmegaConf and PyYAML raise errors of many types
        raise UserError(
            "the configuration file is not YAML",
            got=f"{path}: {error}",
            fix="correct it, in UTF-8 and without tabs; `ual config` prints a valid file",
        ) from error
    if not isinstance(content, dict) or is_text:
        raise UserError("the configuration file is not a mapping", got=path, expected="sections such as 'data:' and 'train:'")
    return {str(key): value for key, value in content.items()}


def explain(root: type[Section], problem: Mapping[str, Any]) -> str:
    """Describe one of pydantic's errors about `root`: the key, what it got, what is expected."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    name, colon, value = location[-1].rpartition(":") if location else ("", "", "")
    if colon and value and problem["input"] is None:
        right = f"write '{name}: {value}', with a space behind the colon"
        return str(UserError("a key without a value", got=key, expected="KEY: VALUE", fix=right))
    if problem["type"] == "extra_forbidden":
        return _explain_unknown(root, location)
    if problem["type"] == "value_error":  # keys of a section that do not go together; the message names them
        message = str(problem["msg"]).removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    legal = re.findall(r"'([^']*)'", problem.get("ctx", {}).get("expected", ""))
    near = difflib.get_close_matches(str(problem["input"]), legal, n=1)
    fix = f"did you mean '{near[0]}'?" if near else None
    return str(UserError(f"bad value for '{key}'", got=repr(problem["input"]), expected=_rule(problem), fix=fix))


def _rule(problem: Mapping[str, Any]) -> str:
    """Word what pydantic expects for people who do not know it."""
    kind = str(problem["type"])
    if kind in RULES:
        return RULES[kind]
    if kind == "too_short":
        return f"at least {problem['ctx']['min_length']}, not {problem['ctx']['actual_length']}"
    return str(problem["msg"]).removeprefix("Input should be ").removeprefix("a valid ")


def _explain_unknown(root: type[Section], location: list[str]) -> str:
    """Describe a key that does not exist, with the nearest one that does."""
    key = ".".join(location)
    section = (section_at(location[:-1]) if root is Config else None) or root
    expected = list(section.model_fields)
    prefix = ".".join([*location[:-1], ""])
    near = [f"{prefix}{name}" for name in difflib.get_close_matches(location[-1], expected, n=1)]
    if not near and root is Config:
        near = [name for name in dotted_keys(Config().model_dump()) if name.endswith(f".{location[-1]}")]
    fix = f"did you mean {' or '.join(map(repr, near))}?" if near else "`ual config` prints every key"
    if dots := location[-1].count("."):
        fix = f"in a file, a key is in its section: {location[-1].replace('.', ': {')}: ...{'}' * dots}"
    return f"unknown key '{key}'\n  expected: {', '.join(expected)}\n  fix: {fix}"


def dotted_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of the values of a configuration, without those of whole sections."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from dotted_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _dump_section(section: Section, indent: int) -> list[str]:
    pad = "  " * indent
    lines: list[str] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        comment = f"  # {field.description}" if field.description else ""
        if isinstance(value, Section):
            lines += [f"{pad}{name}:{comment}", *_dump_section(value, indent + 1)]
        elif isinstance(value, dict) and value and all(isinstance(item, Section) for item in value.values()):
            lines.append(f"{pad}{name}:{comment}")
            for key, item in value.items():
                lines += [f"{pad}  {_dump_key(key)}:", *_dump_section(item, indent + 2)]
        else:
            lines.append(f"{pad}{name}: {_dump_value(value)}{comment}")
    return lines


def _dump_key(key: str) -> str:
    return key if isinstance(yaml.safe_load(key), str) and key.isascii() and not key[0].isdigit() else _dump_value(key)


def _dump_value(value: Any) -> str:
    text = json.dumps(list(value) if isinstance(value, tuple) else value)
    # YAML has no surrogate pairs: characters outside the basic plane are written unescaped.
    return re.sub(r"\\u(d[89ab]..)\\u(d[c-f]..)", lambda pair: json.loads(f'"{pair[0]}"'), text)
