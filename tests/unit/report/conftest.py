"""What tests of reports share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ual_ray.config.files import STORE_FILE


@pytest.fixture
def report_folder(tmp_path: Path, empty_store: Path) -> Path:
    """Make a folder of a report with a store in which it is logged."""
    folder = tmp_path / "report"
    folder.mkdir()
    shutil.copy(empty_store, folder / STORE_FILE)
    return folder
