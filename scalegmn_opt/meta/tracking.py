"""Trackers of experiments, by accelerate."""

import os
from typing import Literal

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

Tracker = Literal["tensorboard", "wandb", "trackio"]


def tracked_accelerator(
    tracker: Tracker | None, output: str | os.PathLike[str], *, project: str
) -> Accelerator:
    """An accelerator on the CPU whose ``log`` goes to ``tracker``, too, if one is named.

    Raises:
        ImportError: if the tracker is not installed.
    """
    if tracker is None:
        return Accelerator(cpu=True)
    if tracker not in {str(found) for found in get_available_trackers()}:
        raise ImportError(f"--tracker: {tracker} is not installed: pip install {tracker}")
    accelerator = Accelerator(cpu=True, log_with=tracker, project_dir=str(output))
    accelerator.init_trackers(project)
    return accelerator
