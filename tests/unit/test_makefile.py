"""`make setup` ends in an environment whatever pip is set to, and whatever of uv and the indexes is there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands for python, pip and uv: writes its arguments down, prints CONFIG for `pip config list`, fails at what FAILS matches.
PROGRAM = """#!/bin/sh
call="$(basename "$0") $*"
echo "$call" >> "$CALLS"
case "$call" in
*"config list") printf '%s' "$CONFIG"; exit ;;
*"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/uv" ;;
esac
! echo "$call" | grep -qE "$FAILS"
"""
NOTHING, NO_UV, UV_FAILS, NO_TORCH = (
    "^$",
    "constraints.txt uv$",
    "^uv ",
    "^uv |install --quiet --constraint constraints.txt --edit",
)
UV, PIP, PIP_WITH_TORCH = "uv pip install", "python -m pip", "python -m pip --extra-index-url"


@pytest.mark.parametrize(
    ("config", "fails", "installs"),
    [
        ("", NOTHING, [UV]),
        (":env:.find-links='/wheels'\nglobal.extra-index-url='https://more'\n", NOTHING, [UV]),
        ("global.index-url='https://mirror/simple'\n", NOTHING, [PIP]),
        (":env:.no-index='1'\n", NOTHING, [PIP]),
        ("", NO_UV, [PIP]),
        ("", UV_FAILS, [UV, PIP]),
        ("", NO_TORCH, [UV, PIP, PIP_WITH_TORCH]),
    ],
)
def test_setup_ends_in_an_environment(tmp_path: Path, config: str, fails: str, installs: list[str]) -> None:
    program, calls, venv = tmp_path / "python", tmp_path / "calls", tmp_path / "venv"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    settings = {"CALLS": str(calls), "CONFIG": config, "FAILS": fails, "MAKEFLAGS": ""}
    command = ["make", "setup", f"PYTHON={program}", f"VENV={venv}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (venv / ".ready").is_file(), done.stderr
    of_packages = [line for line in calls.read_text().splitlines() if "gguf" in line]
    assert len(of_packages) == len(installs)
    for line, words in zip(of_packages, installs, strict=True):
        assert all(word in line for word in words.split()), line
        assert line.startswith("uv ") == (words == UV) and ("--extra-index-url" in line) == (words == PIP_WITH_TORCH)
