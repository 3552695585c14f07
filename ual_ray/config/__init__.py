"""The configuration: every key and default is declared in the file of its stage, `schema.Config` holds them all.

load.py reads and writes it, keys.py reads what its keys mean, redact.py masks secrets.
"""

from ual_ray.config.data import DataConfig
from ual_ray.config.elicit import ElicitConfig
from ual_ray.config.engine import EndpointConfig, EngineConfig
from ual_ray.config.evaluate import (
    BenchmarkConfig,
    CalibrationConfig,
    ClusteringConfig,
    EvaluateConfig,
    JudgeConfig,
    ReportConfig,
)
from ual_ray.config.names import AUTO, BASE, DEMO, ENSEMBLE, REFERENCE_ANSWERS, DtypeName, ReadingName
from ual_ray.config.schema import Config, RuntimeConfig, TrackingConfig
from ual_ray.config.section import Section
from ual_ray.config.smooth import ArmConfig, SmoothConfig
from ual_ray.config.train import LoraConfig, TrainConfig
