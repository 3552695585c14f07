"""The precision of exported weights. Without torch, as commands that train nothing read it."""

from ual_ray.config import Config


def with_export_dtype(config: Config) -> Config:
    """Replace train.export_dtype = auto: bfloat16 if models are evaluated in bfloat16, else float32.

    An engine in bfloat16 rounds float32 weights to the same bits, so exporting them loses nothing; in a float32 evaluation the
    rounding of weights would be added to the differences between arms.
    """
    if config.train.export_dtype != "auto":
        return config
    dtype = "bfloat16" if config.evaluate.dtype == "bfloat16" else "float32"
    return config.model_copy(update={"train": config.train.model_copy(update={"export_dtype": dtype})})
