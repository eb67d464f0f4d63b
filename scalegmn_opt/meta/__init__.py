"""Meta-training: tasks, inner runs, estimators of the meta-gradient, and the trainer."""

from scalegmn_opt.meta.estimators import Objective, TruncatedBackprop, Worker
from scalegmn_opt.meta.task import ModuleTask, Task, TaskSuite
from scalegmn_opt.meta.trainer import MetaTrainer
from scalegmn_opt.meta.unroll import InnerRun

__all__ = [
    "InnerRun",
    "MetaTrainer",
    "ModuleTask",
    "Objective",
    "Task",
    "TaskSuite",
    "TruncatedBackprop",
    "Worker",
]
