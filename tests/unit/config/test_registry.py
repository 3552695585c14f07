"""The registries: every entry resolves, a lookup of an unknown name says what there is, and nothing is imported early."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from ual_ray.config import ArmConfig, registry
from ual_ray.config.registry import BASE_MAPS, BENCHMARKS, ENGINES, ESTIMATORS, FORMATS, MAPS, REMOTE_ENGINES, Registry
from ual_ray.errors import UserError

REGISTRIES = {name: found for name, found in vars(registry).items() if isinstance(found, Registry)}
ENTRIES = [(name, entry) for name, found in REGISTRIES.items() for entry in found]


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_every_entry_resolves(name: str, entry: str) -> None:
    assert callable(getattr(REGISTRIES[name][entry], "convert", REGISTRIES[name][entry]))


def test_no_two_entries_are_the_same_object() -> None:
    for found in REGISTRIES.values():
        assert len(set(found.targets.values())) == len(found) > 0


def test_every_class_declares_what_the_rest_derives_from_it() -> None:
    assert {name: benchmark.kind for name, benchmark in BENCHMARKS.items()} == {name: name for name in BENCHMARKS}
    assert all(estimator.summary.endswith(".") for estimator in ESTIMATORS.values())
    assert len({estimator.summary for estimator in ESTIMATORS.values()}) == len(ESTIMATORS)
    assert not [estimator for estimator in ESTIMATORS.values() if inspect.isabstract(estimator)]
    assert not [engine for engine in REMOTE_ENGINES.values() if not callable(engine.check)]


def test_the_configuration_offers_what_is_registered() -> None:
    fields = ArmConfig.model_fields
    assert (get_args(fields["map"].annotation), get_args(fields["base"].annotation)) == (tuple(MAPS), tuple(BASE_MAPS))
    assert set(BASE_MAPS) < set(MAPS) and set(REMOTE_ENGINES) < set(ENGINES)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError) as error:
        FORMATS["alpacca"]
    assert str(error.value).splitlines() == [
        *("unknown format", "  got: alpacca", f"  expected: {', '.join(FORMATS)}", "  fix: did you mean 'alpaca'?")
    ]


def test_only_a_lookup_imports() -> None:
    lazy = Registry("thing", {"gone": "ual_ray.no_such_module:Thing"})
    assert ("gone" in lazy, "other" in lazy, list(lazy), len(lazy)) == (True, False, ["gone"], 1)
    with pytest.raises(ModuleNotFoundError):
        lazy["gone"]
