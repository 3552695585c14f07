"""What more training seeds would show, from the variances between seeds and over questions that were measured. Pure."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ual_ray.config.evaluate import WIN_RATE
from ual_ray.report.findings import Findings
from ual_ray.report.judged import JudgedVerdict, judged_chains
from ual_ray.report.table import Grid, TableRow
from ual_ray.stats.bootstrap import MIN_SEEDS, POWER, detectable_difference, deviation_interval, question_error
from ual_ray.stats.comparison import Comparison, Role
from ual_ray.stats.metrics import difference_unit, metric_of
from ual_ray.stats.primary import measure_of, tests_of
from ual_ray.stats.results import EVEN

SEEDS = (MIN_SEEDS, 5, 8, 12)
RATE, RATE_UNIT = "win rate at equal lengths", "points from 50%"


@dataclass(frozen=True)
class Planned:
    """The models of an experiment by role, and what answers are judged against: tests of all of them share the level."""

    roles: Mapping[str, Role]
    judged: Collection[str]


def power_title(where: str = "") -> str:
    """Head lines or a table; where: such as the scenario."""
    place = where and f" {where}"
    return f"Smallest true difference{place} that would be conclusive in {POWER:.0%} of experiments or more, after correction"


def power_lines(
    findings: Findings, seeds: Sequence[int] = (), measures: Sequence[str] = (), planned: Planned | None = None
) -> list[str]:
    """Word the smallest difference that each number of seeds would show, for every primary comparison over seeds.

    seeds: numbers of seeds in addition to SEEDS; measures: those that are primary elsewhere. planned: of an experiment with
    other arms, None = those of the findings. A comparison in which no answer differs, as at the floor, tells nothing.
    """
    level, lines = findings.comparisons.level, []
    for entry in _comparisons(findings, measures):
        lines.append(f"{entry.benchmark}, {power_line(entry, level, seeds, _tests(findings, planned, entry))}")
    for one in _rates(findings, measures):
        tests = _tests(findings, planned, one)
        told = _line(_power_of_rate(one, level, _numbers(seeds), tests), seeds, one.seeds, tests)
        lines.append(
            f"{RATE}, {RATE_UNIT}, {one.rate.arm} against {one.rate.reference}: {told}; n = {one.rate.valid or 0:,} pairs)"
        )
    return lines


def _tests(findings: Findings, planned: Planned | None, one: Comparison | JudgedVerdict) -> int:
    """Count the tests by which the correction may divide the level of one; win rates against one role are tested at once."""
    if planned is None:
        unknown: dict[str, Role] = dict.fromkeys(findings.models, "unknown")
        judged = {found.rate.reference for chain in judged_chains(findings).values() for step in chain for found in step}
        planned = Planned({**unknown, **findings.roles}, judged)
    if isinstance(one, Comparison):
        return tests_of(one.arm, one.reference, planned.roles)
    roles: dict[str, Role] = {**findings.roles, **planned.roles}
    alike = {name for name in planned.judged if roles.get(name) == roles.get(one.rate.reference)}
    return tests_of(one.rate.arm, one.rate.reference, planned.roles, alike)


def unknown_rate(findings: Findings, measures: Sequence[str]) -> str | None:
    """State that the power of win rates is not known where they decide and none was judged over seeds; None where it is."""
    if WIN_RATE not in measures or _rates(findings, measures):
        return None
    return f"{RATE}: not known, as no answers were judged there with several training seeds"


def power_line(entry: Comparison, level: float, seeds: Sequence[int] = (), tests: int = 1) -> str:
    """Word one comparison's power as one of so many tests, and how well its seeds tell the deviation that it rests on."""
    told = _line(_power(entry, level, _numbers(seeds), tests), seeds, entry.seeds, tests)
    return f"{difference_unit(entry.metric)[0]}, {entry.arm} - {entry.reference}: {told}; n = {entry.n:,})"


def _line(power: tuple[list[str], list[str]], seeds: Sequence[int], known: int, tests: int) -> str:
    (deviation, low, high), differences = power
    found = ", ".join(f"{n} seeds {difference}" for n, difference in zip(_numbers(seeds), differences, strict=True))
    corrected = f"corrected for {tests} tests; " if tests > 1 else ""
    return f"{found} ({corrected}deviation between seeds {deviation}, from {known} seeds: {low} to {high}"


def power_grid(findings: Findings, seeds: Sequence[int] = ()) -> Grid:
    """Make the table of what `power_lines` words."""
    numbers, level, rows = _numbers(seeds), findings.comparisons.level, []

    def add(section: str, pair: str, power: tuple[list[str], list[str]], tests: int, known: int, n: int) -> None:
        (deviation, low, high), differences = power
        rows.append(TableRow(section, (pair, *differences, str(tests), f"{deviation} [{low}, {high}]", str(known), f"{n:,}")))

    for entry in _comparisons(findings, ()):
        section, tests = f"{entry.benchmark}: {difference_unit(entry.metric)[0]}", _tests(findings, None, entry)
        add(section, f"{entry.arm} - {entry.reference}", _power(entry, level, numbers, tests), tests, entry.seeds, entry.n)
    for one in _rates(findings, ()):
        tests, pair = _tests(findings, None, one), f"{one.rate.arm} - {one.rate.reference}"
        power = _power_of_rate(one, level, numbers, tests)
        add(f"{RATE}: {RATE_UNIT}", pair, power, tests, one.seeds, one.rate.valid or 0)
    heads = (
        "arm - reference",
        *(f"{number} seeds" for number in numbers),
        "tests",
        "deviation between seeds",
        "from seeds",
        "n",
    )
    return Grid(power_title(), heads, tuple(rows))


def _comparisons(findings: Findings, measures: Sequence[str]) -> list[Comparison]:
    """List what has a power: comparisons with the model before training only where there are no others."""
    found = [
        entry
        for entry in findings.comparisons.entries
        if (entry.primary or measure_of(entry) in measures) and entry.seed_deviation is not None and entry.error
    ]
    return [entry for entry in found if findings.roles.get(entry.reference) != "base"] or found


def _rates(findings: Findings, measures: Sequence[str]) -> list[JudgedVerdict]:
    """List the win rates that were judged over several seeds, where they decide; no variance at all tells nothing."""
    if WIN_RATE not in (*measures, *findings.comparisons.primary):
        return []
    judged = [one for chain in judged_chains(findings).values() for step in chain for one in step]
    return [one for one in judged if one.seeds > 1 and any(_parts(one))]


def _parts(one: JudgedVerdict) -> tuple[float, float]:
    return one.rate.controlled.seed_deviation or 0.0, one.rate.controlled.question_error or 0.0


def _numbers(seeds: Sequence[int]) -> list[int]:
    return sorted({*SEEDS, *(number for number in seeds if number >= MIN_SEEDS)})


def _power(entry: Comparison, level: float, numbers: Sequence[int], tests: int) -> tuple[list[str], list[str]]:
    """Write the deviation between seeds with the ends of its interval, and the difference that each number of seeds finds."""
    assert entry.seed_deviation is not None and entry.error is not None, "a comparison over seeds"
    factor = difference_unit(entry.metric)[1]
    deviation, digits = factor * entry.seed_deviation, 4 if factor == 1 else 2
    questions = question_error(factor * entry.error, deviation, entry.seeds)
    most = factor if metric_of(entry.metric).unit == "share" else math.inf
    return _smallest(deviation, questions, entry.seeds, level, numbers, tests, digits, most)


def _power_of_rate(one: JudgedVerdict, level: float, numbers: Sequence[int], tests: int) -> tuple[list[str], list[str]]:
    return _smallest(*_parts(one), one.seeds, level, numbers, tests, 1, EVEN)


def _smallest(
    deviation: float,
    questions: float,
    known: int,
    level: float,
    numbers: Sequence[int],
    tests: int,
    digits: int,
    most: float,
) -> tuple[list[str], list[str]]:
    """Write the deviation, of `known` seeds, and the differences; nothing can differ by more than `most`.

    A p-value that is below its share of 1 - level among `tests` is below what Holm's correction leaves it, whatever the others.
    """
    told = [deviation, *deviation_interval(deviation, known, level)]
    found = [detectable_difference(deviation, questions, number, 1 - (1 - level) / tests) for number in numbers]
    return [f"{one:.{digits}f}" for one in told], [f"{one:.{digits}f}" if one <= most else "none" for one in found]
