"""Trackers of experiments, by accelerate."""

import os
from typing import Literal

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

Tracker = Literal["tensorboard", "wandb", "trackio"]


def tracked_accelerator(
    tracker: Tracker | None,
    output: str | os.PathLike[str],
    *,
    project: str,
    device: str = "cpu",
) -> Accelerator:
    """An accelerator of processes on ``device``, whose ``log`` goes to ``tracker``, too, if named.

    Args:
        device: ``cpu``, or the kind of device that accelerate finds here, such as ``cuda``.

    Raises:
        ImportError: if the tracker is not installed.
        ValueError: if there is no such device.
    """
    if tracker not in (None, *(str(found) for found in get_available_trackers())):
        raise ImportError(f"--tracker: {tracker} is not installed: pip install {tracker}")
    accelerator = Accelerator(cpu=device == "cpu", log_with=tracker, project_dir=str(output))
    found = accelerator.device.type
    if found != device:
        known = "cpu" if found == "cpu" else f"cpu or {found}"
        raise ValueError(f"--device: expected {known}, which is what is here, got {device!r}")
    if tracker is not None:
        accelerator.init_trackers(project, init_kwargs={"wandb": {"dir": str(output)}})
    return accelerator
