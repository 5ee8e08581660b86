"""What a run is asked to be: typed, checked, and reduced to the identity that defines it.

No torch here, so that a mistake is reported before anything heavy is imported. Each class mirrors
one Hydra group in conf/; `__post_init__` raises ValueError with the value, the rule and the way out.
"""

from .data import DataConfig
from .measure import MeasureConfig
from .model import ModelConfig
from .norm import NormConfig
from .optim import OptimConfig, RecipeConfig, ScheduleConfig
from .run import RunConfig, from_mapping
from .trainer import LoggerConfig, TrainerConfig

__all__ = [
    "DataConfig",
    "LoggerConfig",
    "MeasureConfig",
    "ModelConfig",
    "NormConfig",
    "OptimConfig",
    "RecipeConfig",
    "RunConfig",
    "ScheduleConfig",
    "TrainerConfig",
    "from_mapping",
]
