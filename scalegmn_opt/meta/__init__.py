"""Meta-training: tasks, inner runs, estimators of the meta-gradient, and the trainer."""

from scalegmn_opt.meta.check import TaskError, check_task
from scalegmn_opt.meta.estimators import Objective, RuleObjective, TruncatedBackprop, Worker
from scalegmn_opt.meta.evolution import EvolutionStrategies, PersistentES
from scalegmn_opt.meta.task import HeldOutTask, ModuleTask, StackedTask, Task, TaskSuite
from scalegmn_opt.meta.trainer import MetaTrainer
from scalegmn_opt.meta.unroll import InnerRun, RunOptions
from scalegmn_opt.meta.validation import RuleValidation

__all__ = [
    "EvolutionStrategies",
    "HeldOutTask",
    "InnerRun",
    "MetaTrainer",
    "ModuleTask",
    "Objective",
    "PersistentES",
    "RuleObjective",
    "RuleValidation",
    "RunOptions",
    "StackedTask",
    "Task",
    "TaskError",
    "TaskSuite",
    "TruncatedBackprop",
    "Worker",
    "check_task",
]
