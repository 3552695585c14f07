"""Precisions that are measured: a dtype `auto` is the faster one of the machine, and stays that of its output folder."""

import threading
from pathlib import Path

from ual_ray.config import Config
from ual_ray.config.files import write_text
from ual_ray.config.keys import replaced
from ual_ray.config.names import AUTO
from ual_ray.errors import UserError

TRAIN_FILE, INFERENCE_FILE = "train_dtype", "inference_dtype"
DTYPES = "float32", "bfloat16"
ON_GPUS = "bfloat16"
# Trainings side by side measure once.
_measuring = threading.Lock()


def with_train_dtype(config: Config, output: Path | None) -> Config:
    """Replace train.dtype = auto by the dtype recorded in this output folder, or measure and record it; None = measure alone.

    So all arms of a run use the same dtype, and a resumed one keeps it, even on another machine. Raises UserError for a record
    that is damaged.
    """
    if config.train.dtype != AUTO:
        return config
    return replaced(config, {"train.dtype": measured_dtype(config.train.gpus_per_worker, output and output / TRAIN_FILE)})


def with_inference_dtype(config: Config, output: Path, *, keep: bool = True) -> Config:
    """Replace `auto` of engine.dtype, evaluate.dtype and judge.dtype likewise: the scores of a row depend on the dtype.

    keep: record what is measured. Raises UserError for a record that is damaged.
    """
    engine = config.engine
    dtypes = {"engine.dtype": engine.dtype, "evaluate.dtype": config.evaluate.dtype, "judge.dtype": config.judge.dtype}
    if not (unknown := [key for key, dtype in dtypes.items() if dtype == AUTO]):
        return config
    # A server has a dtype of its own, but the models that are trained here are evaluated here.
    measured = engine.kind == "vllm" or (engine.remote and config.evaluate.dtype == AUTO)
    dtype = measured_dtype(engine.gpus_per_actor, output / INFERENCE_FILE, keep=keep) if measured else ON_GPUS
    return replaced(config, dict.fromkeys(unknown, dtype))


def measured_dtype(gpus: float, file: Path | None = None, *, keep: bool = True) -> str:
    """Return bfloat16 with GPUs, else what the file has, or what is faster here: measured once, and kept in the file."""
    if gpus:
        return ON_GPUS
    with _measuring:
        if file is None or not file.exists():
            from ual_ray.models.product_speed import faster_dtype

            if file is None or not keep:
                return faster_dtype()
            write_text(file, faster_dtype())
    dtype = file.read_text(errors="replace").strip()
    if dtype not in DTYPES:
        was = "that of the results in this folder, which their done.json has as dtype"
        raise UserError(f"{file} is damaged", got=repr(dtype), expected=" or ".join(DTYPES), fix=f"write {was} there")
    return dtype
