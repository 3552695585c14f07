"""What configuration keys mean, read from their fields: what a key affects, and which keys name something on this machine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from ual_ray.config.engine import EngineConfig
from ual_ray.config.registry import BASE_MAPS, BENCHMARKS, ENGINES, ESTIMATORS, FORMATS, LOSSES, MAPS, WEIGHTS, Registry
from ual_ray.config.schema import Config
from ual_ray.config.section import Affected, Named, Section

# Sections have keys of these names for members of the registries alone; benchmarks have versions of their own.
_REGISTRIES = {
    "estimators": ESTIMATORS,
    "map": MAPS,
    "base": BASE_MAPS,
    "weight": WEIGHTS,
    "loss": LOSSES,
    "format": FORMATS,
}
ADDED = "added"


def affecting(section: Section, result: Affected) -> dict[str, Any]:
    """Return the values of a section's keys that affect a result, for its cache key; nested sections whole.

    ADDED has the versions of what they name in other packages, where they name any: with other code the result is another one.
    """
    values = section.model_dump()
    found = {name: values[name] for name, field in type(section).model_fields.items() if result in _meaning(field)["affects"]}
    named = ((registry, name) for key, registry, name in _registered(section) if key in found)
    versions = {f"{registry.kind} {name}": version for registry, name in named if (version := registry.version(name))}
    return found | ({ADDED: versions} if versions else {})


def check_added(*sections: Section) -> None:
    """Raise UserError where a section names something of another package that cannot be imported."""
    for section in sections:
        for _, registry, name in _registered(section):
            registry.check(name)


def _registered(section: Section) -> Iterator[tuple[str, Registry, str]]:
    """Return each member of a registry that a section names, with its key."""
    kinds = {"kind": ENGINES if isinstance(section, EngineConfig) else BENCHMARKS}
    for key, registry in (_REGISTRIES | kinds).items():
        value = getattr(section, key, None)
        yield from ((key, registry, name) for name in (value if isinstance(value, tuple) else (value,)) if name in registry)


def engine_settings(engine: EngineConfig, result: Affected) -> dict[str, Any]:
    """Return the engine's settings that affect a result; those of its endpoint are None where it has none."""
    endpoint = affecting(engine.endpoint, result) if engine.remote else None
    return affecting(engine, result) | {"endpoint": endpoint}


def naming(config: Config, *kinds: Named) -> dict[str, str]:
    """Return the keys, dotted, whose value names something of these kinds, with their values; null ones are left out."""
    return {key: value for key, value, kind in _names(config) if kind in kinds and value is not None}


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
    """Copy a configuration with the values of some dotted keys replaced, and check it again. Raises pydantic's errors."""
    plain = config.model_dump()
    for key, value in values.items():
        plain = _with(plain, key.split("."), value)
    return Config.model_validate(plain)


def _with(plain: Any, place: Sequence[str], value: Any) -> Any:
    """Copy nested values with the one at a place replaced; a member of a tuple is named by its number."""
    if not place:
        return value
    first, rest = place[0], place[1:]
    if isinstance(plain, tuple):
        return tuple(_with(part, rest, value) if str(at) == first else part for at, part in enumerate(plain))
    return plain | {first: _with(plain[first], rest, value)}


def map_names(config: Config, change: Callable[[str], str], *kinds: Named) -> Config:
    """Copy a configuration with what names things of these kinds changed by a function."""
    return replaced(config, {key: change(value) for key, value in naming(config, *kinds).items()})


def _names(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        parts = value if isinstance(value, dict) else {}
        if isinstance(value, Section):
            yield from _names(value, f"{key}.")
        elif any(isinstance(part, Section) for part in parts.values()):
            for part, nested in parts.items():
                yield from _names(nested, f"{key}.{part}.")
        elif (kind := _meaning(field).get("names")) is not None:
            several = isinstance(value, tuple)
            yield from ((f"{key}.{at}", one, kind) for at, one in enumerate(value)) if several else [(key, value, kind)]


def _meaning(field: FieldInfo) -> dict[str, Any]:
    assert isinstance(field.json_schema_extra, dict), "declare every key with `schema.key`"
    return field.json_schema_extra
