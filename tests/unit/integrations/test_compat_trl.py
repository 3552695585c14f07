"""TRL's undocumented parts are still there; that they are called is checked in tests/integration/test_trl.py."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

FIX = "TRL has changed what ual_ray uses of it: do what is written at the top of ual_ray/integrations/compat_trl.py"


def test_the_parts_that_are_used_are_there() -> None:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL is not installed: pip install 'ual_ray[trl]'")
    # Read, not imported: the import takes longer than all other unit tests of this folder.
    source = (Path(spec.origin).parent / "trainer" / "sft_trainer.py").read_text(encoding="utf-8")
    (trainer,) = [x for x in ast.parse(source).body if isinstance(x, ast.ClassDef) and x.name == "SFTTrainer"]
    arguments = {x.name: [arg.arg for arg in x.args.args] for x in trainer.body if isinstance(x, ast.FunctionDef)}
    assert arguments.get("_prepare_dataset") == [
        *("self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name")
    ], FIX
    assert arguments.get("_set_signature_columns_if_needed") == ["self"], FIX
    assert arguments.get("compute_loss") == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"], FIX
    assert arguments.get("log") == ["self", "logs", "start_time"], FIX
    text = ast.unparse(trainer)
    used = ["self._signature_columns", "self._metrics[mode]", "pack_dataset(", "packing_strategy", "shuffle_dataset"]
    assert [name for name in used if name not in text] == [], FIX
