"""The import rule: pure modules stay pure, stages do not know each other, heavy imports wait until they are needed."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ual_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"ray", "vllm", "mlflow", "torch", "transformers"}
# The house from the ground up. A room imports rooms of lower floors only, so rooms of one floor do not know each other:
# no stage imports another stage, the report, tracking's callers or the command line; there is no circle of rooms.
FLOORS = (
    ("errors", "formatting"),
    ("config",),
    ("columns",),
    ("sorting",),
    ("parquet",),
    ("stats",),
    ("data", "models", "plots", "tracking"),
    ("run",),
    ("engines",),
    ("benchmarks", "mirror"),
    ("elicit", "smooth", "train", "evaluate", "judge", "calibrate", "inspect", "report"),
    ("integrations", "pipeline", "preflight", "jobs"),
    ("doctor", "plan"),
    ("experiment",),
    ("cli",),
    ("__main__",),
)
STAGES = ("elicit", "smooth", "train", "evaluate", "judge", "calibrate")
MOST_ROOT_MODULES = 9
# Folders and files of pure maths and plain data: they neither import nor load Ray, vLLM or MLflow.
PURE = sorted(
    str(path.relative_to(PACKAGE))
    for pattern in (
        *(
            "errors.py",
            "formatting.py",
            *("columns.py", "sorting.py", "parquet.py"),
            "config/*.py",
            "stats/*.py",
            "plots/*.py",
            "benchmarks/*.py",
        ),
        *("models/chat.py", "models/truncate.py"),
        *(
            f"data/{name}.py"
            for name in ("answers", "labels", "formats", "column_names", "known_formats", "dedup", "shard", "canonical")
        ),
        *(f"engines/{name}.py" for name in ("__init__", "requests", "prompt_files", "reply_text", "thoughts", "reading")),
        *(f"elicit/{name}.py" for name in ("prompts", "scoring", "grouping", "adjust", "assemble")),
        "elicit/estimators/*.py",
        *("smooth/maps.py", "evaluate/answering.py"),
        *(
            f"train/{name}.py"
            for name in ("loss", "batches", "metrics", "progress", "optimizer_step", "estimate/memory", "estimate/state")
        ),
        *(f"judge/{name}.py" for name in ("win_rate", "task", "pairs", "verdicts", "alpaca_eval")),
        *(f"calibrate/{name}.py" for name in ("metrics", "clustering")),
        "plan/simulate.py",
        *("experiment/truth.py", "experiment/findings.py"),
        *(f"inspect/{name}.py" for name in ("summary", "measure", "columns", "page")),
        *(
            f"report/{name}.py"
            for name in ("findings", "comparable", "gather", "compare", "table", "caveats", "page_data", "page")
        ),
    )
    for path in (sorted(PACKAGE.glob(pattern)) or [PACKAGE / pattern])
)


def name_of(path: Path) -> str:
    """Name a file's module, such as ual_ray.elicit.stage."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


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
    return isinstance(node, ast.If) and any(
        "TYPE_CHECKING" in (getattr(part, "id", ""), getattr(part, "attr", "")) for part in ast.walk(node.test)
    )


def starts_ray(tree: ast.AST) -> bool:
    """Whether something that ends in ray.init is called."""
    called = (child.func for child in ast.walk(tree) if isinstance(child, ast.Call))
    return any(isinstance(f, ast.Attribute) and f.attr == "init" and ast.unparse(f).endswith("ray.init") for f in called)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def top_imports(path: Path) -> frozenset[str]:
    return frozenset(imports(parsed(path), name_of(path), top_only=True))


@cache
def all_imports(path: Path) -> frozenset[str]:
    return frozenset(imports(parsed(path), name_of(path)))


def packages(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def loaded_with(module: str) -> set[str]:
    """Every module that importing `module` imports, through the package's own modules too."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in MODULES:
            waiting += top_imports(MODULES[name])
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
    assert starts_ray(tree) and not starts_ray(ast.parse("ray.initialise(); init(); other.init()"))


def test_the_reader_follows_relative_imports() -> None:
    tree = ast.parse("from . import stage\nfrom ..train.stage import run")
    assert {"ual_ray.elicit.stage", "ual_ray.train.stage"} <= set(imports(tree, "ual_ray.elicit.scoring"))


def test_the_reader_follows_the_packages_own_modules() -> None:
    assert {"ual_ray.columns", "pyarrow", "hashlib"} <= loaded_with("ual_ray.elicit.prompts")
    assert "ray" in loaded_with("ual_ray.run.cluster")


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", PURE)
def test_pure_modules_never_import_ray_vllm_or_mlflow_nor_load_them_through_others(path: str) -> None:
    file = PACKAGE / path
    assert packages(all_imports(file) | loaded_with(name_of(file))) & {"ray", "vllm", "mlflow"} == set()


@pytest.mark.parametrize("module", ["train.loop", "train.export", "train.estimate.dry_run", "experiment.training"])
def test_training_and_its_dry_run_load_where_there_is_no_cluster(module: str) -> None:
    absent = {"ray", "vllm", "mlflow", "omegaconf", "datasets", "openai"}
    assert packages(loaded_with(f"ual_ray.{module}")) & absent == set()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cli.app", HEAVY),
        ("engines.monitor", {"ray.data"}),
        ("train.worker", {"torch"}),
        ("train.stage", {"torch.distributed", "transformers"}),
        ("pipeline", {"scipy.stats", "sklearn", "torch", "transformers"}),
    ],
)
def test_processes_that_start_often_load_nothing_that_few_of_them_use(module: str, absent: set[str]) -> None:
    loaded = {f"{name}." for name in loaded_with(f"ual_ray.{module}")}
    assert [name for name in loaded if name.startswith(tuple(f"{heavy}." for heavy in absent))] == []


@pytest.mark.slow
def test_only_the_cluster_module_starts_ray() -> None:
    starters = [path.relative_to(PACKAGE).as_posix() for path in FILES if starts_ray(parsed(path))]
    assert starters == ["run/cluster.py"]
    renamed = [path.name for path in FILES if "ray.init" in all_imports(path)]
    assert renamed == []


def test_only_tracking_imports_mlflow() -> None:
    importers = {room_of(path) for path in FILES if "mlflow" in packages(all_imports(path))}
    assert importers == {"tracking"}


def room_of(path: Path) -> str:
    """Name the room of a file: its folder below the package, or the module itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """List the package's own modules that a file imports, anywhere in it, for types too."""
    return {name for name in all_imports(path) if name in MODULES and name != "ual_ray"}


def forbidden(path: Path, modules: set[str]) -> list[str]:
    """List the modules that a file may not import: those of other rooms on its own floor, or above."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    own = room_of(path)
    rooms = {module: module.split(".")[1] for module in modules}
    return sorted(module for module, room in rooms.items() if room != own and floor[room] >= floor[own])


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} == {room for rooms in FLOORS for room in rooms}


def test_rooms_import_lower_floors_only() -> None:
    files = [path for path in FILES if room_of(path) != "__init__"]
    assert {name_of(path): found for path in files if (found := forbidden(path, imported(path)))} == {}


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("elicit/stage.py", "ual_ray.train.loss"),
        ("train/step.py", "ual_ray.report.step"),
        ("judge/stage.py", "ual_ray.cli.app"),
        ("plots/scores.py", "ual_ray.smooth.maps"),
        ("tracking/run.py", "ual_ray.evaluate.stage"),
        ("stats/bootstrap.py", "ual_ray.run.step"),
    ],
)
def test_a_broken_rule_is_found(file: str, module: str) -> None:
    assert forbidden(PACKAGE / file, {module}) == [module]


def test_stages_do_not_import_tracking() -> None:
    found = {module for path in FILES if room_of(path) in STAGES for module in imported(path)}
    assert "ual_ray.columns" in found and not any(module.startswith("ual_ray.tracking") for module in found)


def test_no_circle_of_files() -> None:
    graph = {name_of(path): imported(path) - {name_of(path)} for path in FILES}
    assert circle_in(graph) is None
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c", "a"]


def circle_in(graph: dict[str, set[str]]) -> list[str] | None:
    """Return a circle of imports as a path that ends where it starts; None when there is none."""
    finished: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return None
        found = next(filter(None, (walk(other, [*path, name]) for other in sorted(graph[name]))), None)
        finished.add(name)
        return found

    return next(filter(None, (walk(name, []) for name in graph)), None)


def test_the_root_is_small_and_every_stage_has_its_parts() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_ROOT_MODULES
    assert [
        f"{stage}/{part}" for stage in STAGES for part in ("stage.py", "step.py") if not (PACKAGE / stage / part).is_file()
    ] == []


# --- private parts of other libraries --------------------------------------------------------------------------------

# Names that begin with an underscore and are documented all the same: of os and of named tuples.
DOCUMENTED = {"_exit", "_replace", "_asdict", "_fields", "_make"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def names_made_in(tree: ast.Module) -> set[str]:
    """Functions, classes, variables and attributes of self that a file defines."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def private_parts(tree: ast.Module) -> Iterator[str]:
    """Yield what a file uses of other libraries' private parts: imports, attributes, arguments, and attributes it replaces."""
    own = names_made_in(tree)
    foreign = {name.split(".")[0] for name in imports(tree)} - {"ual_ray", "sys"}  # sys.stdout may be replaced
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom(level=0):
                named = set(imports(ast.Module([node], [])))
                yield from sorted(x for x in named if not x.startswith("ual_ray") and any(map(is_private, x.split("."))))
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name) if is_private(name):
                yield ast.unparse(node)
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                yield ast.unparse(node)
            case ast.Attribute(ctx=ast.Store()) if ast.unparse(node).split(".")[0] in foreign:
                yield f"{ast.unparse(node)} = ..."
            case ast.keyword(arg=str(name)) if is_private(name):
                yield f"{name}="
            case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]):
                if is_private(name) and name not in own:
                    yield ast.unparse(node)


@pytest.mark.slow
def test_private_parts_of_other_libraries_are_used_in_compat_files_only() -> None:
    files = [path for path in FILES if not path.name.startswith("compat_")]
    assert {name_of(path): found for path in files if (found := [*private_parts(parsed(path))])} == {}


BROKEN = """
import os
import importlib.metadata
import ray._private.services
from ray.data._internal.stats import Timer
from torch._subclasses import FakeTensorMode
from ual_ray.train import _own
class A(Base):
    def _mine(self):
        self._prepare()
        super()._prepare()
        other._mine()
        tensor._spec
        os._exit(1)
        getattr(model, "_conversions", None)
        load(path, _raise=False)
        pair._replace(x=1)
importlib.metadata.version = other
"""


def test_private_parts_are_found() -> None:
    assert sorted(private_parts(ast.parse(BROKEN))) == [
        "_raise=",
        "getattr(model, '_conversions', None)",
        "importlib.metadata.version = ...",
        "ray._private.services",
        "ray.data._internal.stats",
        "ray.data._internal.stats.Timer",
        "super()._prepare",
        "tensor._spec",
        "torch._subclasses",
        "torch._subclasses.FakeTensorMode",
    ]


@pytest.mark.parametrize("path", [path for path in FILES if path.name.startswith("compat_")], ids=name_of)
def test_a_compat_file_has_a_canary_and_says_what_to_do(path: Path) -> None:
    canary = ROOT / "tests" / "unit" / path.parent.relative_to(PACKAGE) / f"test_{path.name}"
    assert canary.is_file()
    assert canary.name in (ast.get_docstring(parsed(path)) or "")
