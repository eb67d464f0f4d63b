"""Meta-training: tasks, inner runs, estimators of the meta-gradient, and the trainer."""

from scalegmn_opt.meta.estimators import Objective, TruncatedBackprop, Worker
from scalegmn_opt.meta.task import HeldOutTask, ModuleTask, StackedTask, Task, TaskSuite
from scalegmn_opt.meta.trainer import MetaTrainer
from scalegmn_opt.meta.unroll import InnerRun

__all__ = [
    "HeldOutTask",
    "InnerRun",
    "MetaTrainer",
    "ModuleTask",
    "Objective",
    "StackedTask",
    "Task",
    "TaskSuite",
    "TruncatedBackprop",
    "Worker",
]
