"""docs/extending.md, followed literally: its files and lines go into a copy of the package, and each addition is used there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("extending_worker.py")
MOST_LINES = 30
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
*SECTIONS, PACKAGES = (part.split("\n", 1) for part in PAGE.split("\n## ")[1:])
ADDITIONS = {title.lower().replace(" ", "_"): text for title, text in SECTIONS}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE, LINE = re.compile(r"# (ual_ray/\S+\.py)\n"), re.compile(r"# (ual_ray/config/registry\.py), in (\w+)\n(.+)\n")


def overrides_of(section: str) -> list[str]:
    """The overrides of a section's command."""
    (command,) = re.findall(r"^Use: `(ual .*?)`", section, re.MULTILINE)
    return [word for word in shlex.split(command) if "=" in word]


def follow(section: str, root: Path) -> None:
    """Write the section's file, and put its line at the end of its registry."""
    (_, file), (_, line) = BLOCK.findall(section)
    path = FILE.match(file)
    assert path and not (root / path[1]).exists()
    (root / path[1]).write_text(file, encoding="utf-8")
    found = LINE.fullmatch(line)
    assert found
    registry = root / found[1]
    entries = re.compile(rf"^({found[2]} = Registry\(\n.*?)^    \}},$", re.DOTALL | re.MULTILINE)
    text, count = entries.subn(lambda match: f"{match[1]}        {found[3]}\n    }},", registry.read_text(encoding="utf-8"))
    assert count == 1
    registry.write_text(text, encoding="utf-8")


def faults(names: list[str], *path: Path) -> dict[str, str | None]:
    """Use additions in a process that imports the package from `path`: a traceback by addition, None if there is none."""
    asked = json.dumps({name: overrides_of(ADDITIONS[name]) for name in names})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run([sys.executable, WORKER, asked], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "ual_ray", root / "ual_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for section in ADDITIONS.values():
        follow(section, root)
    return faults(list(ADDITIONS), root)


@pytest.mark.parametrize("name", ADDITIONS)
@pytest.mark.slow
def test_every_addition_works_as_the_page_shows_it(name: str, found: dict[str, str | None]) -> None:
    assert found[name] is None, found[name]


def test_every_kind_is_shown() -> None:
    assert set(ADDITIONS) == {"an_estimator", "a_map", "a_weight", "a_loss", "a_format", "a_benchmark", "an_engine"}


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_is_short(name: str) -> None:
    assert len([line for line in ADDITIONS[name].splitlines() if line.strip()]) < MOST_LINES


@pytest.mark.slow
def test_a_package_adds_an_estimator_without_a_change_to_this_one(tmp_path: Path) -> None:
    ((kind, points),) = BLOCK.findall(PACKAGES[1])
    assert kind == "toml"
    ((group, entries),) = tomllib.loads(points)["project"]["entry-points"].items()
    ((name, target),) = entries.items()
    (_, file), _ = BLOCK.findall(ADDITIONS["an_estimator"])
    module = tmp_path.joinpath(*target.partition(":")[0].split(".")).with_suffix(".py")
    module.parent.mkdir()
    module.write_text(file, encoding="utf-8")
    metadata = tmp_path / "my_package-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    assert faults(["an_estimator"], tmp_path, ROOT) == {"an_estimator": None}
