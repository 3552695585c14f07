"""What one GPU shows of the loss and of training, in one command: right or wrong, how fast, how large. JSON, in 8 minutes.

    PYTHONPATH=. python bench/gpu_check.py [OUT.json] [--small] [--only loss|training|ranks]     (from the repository's root)

Needs torch, transformers, peft, accelerate, pyarrow, psutil and pydantic; no Ray, vLLM, MLflow or network. `make gpu-bundle`
makes a folder to copy to a machine with a card. --small: the same checks of tiny models, on a CPU in a minute. OUT.json is
written after every case, with an "error" in place of the results of a case that failed, and "ok" where a case can be wrong;
by default it is bench/results/gpu_check_CARD.json.

Not covered on one card: NCCL between ranks, and the traffic of HSDP.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Training has to do without them, also where they are installed.
for absent in ("ray", "vllm", "mlflow", "datasets", "omegaconf", "openai"):
    sys.modules.setdefault(absent, None)  # type: ignore[arg-type]
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch  # noqa: E402
from gpu_common import CUDA, Report, device_name  # noqa: E402

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS / f"gpu_check_{device_name().replace(' ', '_')}.json")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", choices=("loss", "training", "ranks"))
    parser.add_argument("--minutes", type=float, default=8, help="start no case after so many")
    options = parser.parse_args()
    from gpu_loss import check_loss
    from gpu_ranks import check_ranks
    from gpu_training import check_training

    started = time.perf_counter()
    report = Report(options.out, machine(), 60 * options.minutes)
    for name, check in (("loss", check_loss), ("training", check_training), ("ranks", check_ranks)):
        if options.only in (None, name):
            report.case("whole parts", name, check, report, options.small)
    bad = list(failures(report.content))
    print(f"{options.out}: {time.perf_counter() - started:.0f} s; {len(bad)} failures{': ' * bool(bad)}{'; '.join(bad)}")


def machine() -> dict[str, Any]:
    """Describe what was measured."""
    facts = {"device": device_name(), "when": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count()}
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "pyarrow")}
    if CUDA:
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        facts |= {"memory GB": memory, "cuda": torch.version.cuda, "capability": torch.cuda.get_device_capability(0)}
    return facts | versions | {"python": platform.python_version()}


def failures(content: dict[str, Any]) -> Any:
    """Name the cases with an error, or not ok."""
    for part, cases in content.items():
        for name, found in cases.items() if isinstance(cases, dict) else ():
            if isinstance(found, dict) and ("error" in found or found.get("ok") is False):
                yield f"{part}, {name}"


if __name__ == "__main__":
    main()
