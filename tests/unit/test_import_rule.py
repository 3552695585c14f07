"""The import rule: pure modules stay pure, stages do not know each other, heavy imports wait until they are needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ual_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"ray", "vllm", "mlflow", "torch", "transformers"}
STAGES = ("sources", "elicit", "smooth", "train", "evaluate", "report")
PURE = [
    "config.py",
    "settings.py",
    "errors.py",
    "records.py",
    "rendering.py",
    "smooth/maps.py",
    "elicit/requests.py",
    "elicit/prompts.py",
    "elicit/estimators.py",
    "elicit/scoring.py",
    "elicit/grouping.py",
    "elicit/choice_tree.py",
    "elicit/adjust.py",
    "elicit/quality.py",
    "elicit/labels.py",
    "elicit/finish.py",
    "elicit/engines/__init__.py",
    "sources/formats.py",
    "sources/claims.py",
    "sources/piece.py",
    "sources/prepare.py",
    "report/inspection.py",
    "train/loss.py",
    "train/packing.py",
    "train/metrics.py",
    "train/progress.py",
    "train/memory.py",
    "templates.py",
    "environment.py",
    "promote.py",
    *(f"evaluate/{name}.py" for name in ("metrics", "statistics", "calibration", "clustering", "benchmark", "answering")),
    *(f"evaluate/{name}.py" for name in ("judge", "judge_prompts", "judging", "pairs", "verdicts", "alpaca_eval")),
    *(
        f"report/{name}.py"
        for name in ("comparison", "findings", "table", "plots", "charts", "caveats", "examples", "story", "story_html")
    ),
    *sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.glob("evaluate/benchmarks/*.py")),
]


def name_of(path: Path) -> str:
    """Name a file's module, such as ual_ray.elicit.stage."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(node: ast.AST, module: str = "", *, top_only: bool = False) -> Iterator[str]:
    """Yield the dotted names a piece of code imports; `top_only`: only what runs when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = module.split(".")[: -child.level] if child.level else []
            source = ".".join([*package, *filter(None, [child.module])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in child.names)
        elif top_only and (isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or for_types(child)):
            continue
        else:
            yield from imports(child, module, top_only=top_only)


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def calls(node: ast.AST) -> set[str]:
    return {ast.unparse(child.func) for child in ast.walk(node) if isinstance(child, ast.Call)}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def packages(names: Iterator[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def loaded_with(module: str) -> set[str]:
    """Every module that importing `module` imports, through the package's own modules too."""
    known = {name_of(path): path for path in FILES}
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in known:
            waiting += imports(parsed(known[name]), name, top_only=True)
            waiting += [name.rsplit(".", 1)[0]] if "." in name else []
    return seen


# --- the reader of imports -------------------------------------------------------------------------------------------

SOURCE = """
import os.path, json as j
from ual_ray.elicit import stage
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import vllm
try:
    import mlflow
except ImportError:
    pass
class A:
    import torch
    def f(self):
        import ray
        ray.init(address="local")
async def g():
    from transformers import AutoTokenizer
"""


def test_the_reader_finds_imports_wherever_they_stand() -> None:
    tree = ast.parse(SOURCE)
    everything = packages(imports(tree))
    assert everything == {"os", "json", "ual_ray", "typing", "vllm", "mlflow", "torch", "ray", "transformers"}
    assert packages(imports(tree, top_only=True)) == {"os", "json", "ual_ray", "typing", "mlflow", "torch"}
    assert "ual_ray.elicit.stage" in set(imports(tree))
    assert calls(tree) == {"ray.init"}


def test_the_reader_follows_relative_imports() -> None:
    tree = ast.parse("from . import stage\nfrom ..train.stage import run")
    assert {"ual_ray.elicit.stage", "ual_ray.train.stage"} <= set(imports(tree, "ual_ray.elicit.scoring"))


def test_the_reader_follows_the_packages_own_modules() -> None:
    assert {"ual_ray.records", "pyarrow", "hashlib"} <= loaded_with("ual_ray.elicit.prompts")
    assert "ray" in loaded_with("ual_ray.runtime")


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PURE)
def test_pure_modules_never_import_ray_vllm_or_mlflow(path: str) -> None:
    assert packages(imports(parsed(PACKAGE / path))) & {"ray", "vllm", "mlflow"} == set()


@pytest.mark.parametrize("path", PURE)
def test_pure_modules_do_not_load_them_through_others(path: str) -> None:
    assert packages(iter(loaded_with(name_of(PACKAGE / path)))) & {"ray", "vllm", "mlflow"} == set()


def test_only_runtime_starts_ray() -> None:
    starters = [path.name for path in FILES if any(call.endswith("ray.init") for call in calls(parsed(path)))]
    assert starters == ["runtime.py"]
    renamed = [path.name for path in FILES if "ray.init" in set(imports(parsed(path)))]
    assert renamed == []


def test_only_tracking_imports_mlflow() -> None:
    importers = {path.relative_to(PACKAGE).parts[0] for path in FILES if "mlflow" in packages(imports(parsed(path)))}
    assert importers == {"tracking"}


@pytest.mark.parametrize("path", [path for path in FILES if path.relative_to(PACKAGE).parts[0] in STAGES], ids=name_of)
def test_no_stage_imports_another_stage(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0]
    others = {f"ual_ray.{stage}.stage" for stage in STAGES if stage != own}
    assert set(imports(parsed(path), name_of(path))) & others == set()


def test_the_command_line_is_light() -> None:
    assert packages(iter(loaded_with("ual_ray.cli"))) & HEAVY == set()


def test_the_bottom_knows_nothing_above_it() -> None:
    known = {"errors.py": (), "config.py": (), "records.py": ("ual_ray.config",)}
    for path, below in known.items():
        own = [name for name in imports(parsed(PACKAGE / path)) if name.startswith("ual_ray")]
        assert [name for name in own if not name.startswith(below)] == [], path
