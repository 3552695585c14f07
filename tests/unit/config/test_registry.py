"""The registries: every entry resolves, a lookup of an unknown name says what there is, and nothing is imported early."""

from __future__ import annotations

import inspect
import math
import re
import statistics
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import get_args

import pytest
from added import points, registry_of

from ual_ray.config import ArmConfig, registry
from ual_ray.config.registry import BASE_MAPS, BENCHMARKS, ENGINES, ESTIMATORS, FORMATS, MAPS, REMOTE_ENGINES, Registry
from ual_ray.errors import UserError

REGISTRIES = {name: found for name, found in vars(registry).items() if isinstance(found, Registry)}
PAGE = Path(__file__).parents[3] / "docs" / "extending.md"
PACKAGES = PAGE.read_text(encoding="utf-8").partition("## From a package of your own")[2]
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


# --- what other packages add -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTRIES)
def test_packages_add_to_the_group_that_the_page_names(name: str) -> None:
    named = {group.strip("`") for group in re.findall(r"`ual_ray\.\w+`", PACKAGES)}
    assert REGISTRIES[name].group in named and len(named) == len({found.group for found in REGISTRIES.values()})


def test_a_package_adds_to_a_group_of_any_plural(monkeypatch: pytest.MonkeyPatch) -> None:
    found = points("losses", mine="statistics:mean")
    added = registry_of(monkeypatch, found, "loss", {"sft": "math:sqrt"}, plural="losses", holds="function")
    assert (list(added), added["mine"]) == (["sft", "mine"], statistics.mean)


@pytest.mark.parametrize(
    ("entries", "got"),
    [
        ([("linear", "math:sqrt")], "ual_ray.smooth.maps:linear, math:sqrt of a package"),
        ([("mine", "math:sqrt"), ("mine", "math:exp")], "math:sqrt of a package, math:exp of a package"),
    ],
)
def test_a_name_for_two_things_is_refused(entries: list[tuple[str, str]], got: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group = EntryPoints(EntryPoint(name, value, "ual_ray.maps") for name, value in entries)
    added = registry_of(monkeypatch, group, "map", {"linear": "ual_ray.smooth.maps:linear"}, holds="function")
    name = entries[0][0]
    for use in (added.__getitem__, added.check):
        with pytest.raises(UserError, match=f"the map '{name}' could be two things") as error:
            use(name)
        assert f"  got: {got}\n" in str(error.value)


def test_a_package_that_is_found_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = EntryPoints(EntryPoint("mine", "math:sqrt", "ual_ray.maps") for _ in range(2))
    added = registry_of(monkeypatch, twice, "map", {}, holds="function")
    added.check("mine")
    assert added["mine"] is math.sqrt


@pytest.mark.parametrize(
    ("found", "name"), [(ESTIMATORS, "ensemble"), (ESTIMATORS, "auto"), (FORMATS, "auto"), (FORMATS, "demo")]
)
def test_words_of_the_configuration_are_no_names(found: Registry, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group = points(found.group.removeprefix("ual_ray."), **{name: "math:sqrt"})
    again = registry_of(monkeypatch, group, found.kind, {}, reserved=found.reserved)
    assert list(again) == []


@pytest.mark.parametrize(
    ("target", "what", "got"),
    [
        ("no_such_package:f", "cannot be imported", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("math:no_such_function", "cannot be imported", "AttributeError"),
        ("math", "cannot be imported", "AttributeError"),
        ("fractions:Fraction", "is not a function", "fractions:Fraction, a class"),
        ("math:pi", "is not a function", "math:pi, a float 3.14"),
    ],
)
def test_what_cannot_be_used_is_named(target: str, what: str, got: str, monkeypatch: pytest.MonkeyPatch) -> None:
    added = registry_of(monkeypatch, points("maps", mine=target), "map", {}, holds="function")
    assert "mine" in added
    with pytest.raises(UserError, match=f"the map 'mine' {what}") as error:
        added.check("mine")
    assert got in str(error.value) and "in the group ual_ray.maps" in str(error.value)


def test_a_function_is_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="the engine 'mine' is not a class"):
        registry_of(monkeypatch, points("engines", mine="math:sqrt"), "engine", {})["mine"]


@pytest.mark.parametrize("name", REGISTRIES)
def test_what_is_registered_here_is_its_own(name: str) -> None:
    found = REGISTRIES[name]
    assert all(found.is_own(entry) and found.version(entry) is None for entry in found)


def test_an_error_within_an_addition_names_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    added = registry_of(monkeypatch, points("maps", mine="statistics:mean"), "map", {}, holds="function")
    message = r"the map 'mine' fails\n  got: StatisticsError: .* \(line \d+ of .*statistics.py\)"
    with pytest.raises(UserError, match=message), added.calling("mine"):
        added["mine"]([])
    with pytest.raises(UserError, match=r"\Aplain\Z"), added.calling("mine"):
        raise UserError("plain")
