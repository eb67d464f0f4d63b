"""Step sizes of the controls, in units of the gauge, on the families of `rule_settings.py`.

`python benchmarks/control_steps.py`: one network of each family, one start, 500 steps on the same
batches. Final losses are averages of 50 steps; the target is Adam's at the best of four rates. Of
these sizes `GaugeAdam` takes the one of least final loss relative to the target, as geometric mean
over families, and of the least for the worst family: 0.3. `GaugeMuon` has its 0.3 from elsewhere;
here 0.1 is a little better in the mean, 0.3 on four of nine. No held-out task is here.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from measure import report
from rule_settings import FAMILIES, RATES, STEPS
from torch import nn
from torch.optim import Adam, Optimizer
from tqdm import tqdm

from scalegmn_opt.meta.scores import steps_to, trailing_mean
from scalegmn_opt.optim import GaugeAdam, GaugeMuon
from scalegmn_opt.tasks import FamilySuite, SupervisedTask

SIZES = (0.03, 0.1, 0.3, 1.0, 3.0)
CONTROLS = (GaugeAdam, GaugeMuon)


def losses(task: SupervisedTask, make: Callable[[nn.Module], Optimizer]) -> list[float]:
    """Training losses before each step."""
    generator = torch.Generator().manual_seed(5)
    model = copy.deepcopy(task.module)
    model.load_state_dict(task.init(generator), strict=False)
    optimizer, params, found = make(model), dict(model.named_parameters()), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = task.loss(params, task.batch(generator))
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def measure(family: str) -> Iterable[dict[str, Any]]:
    """A row for each control and size."""
    (task,) = FamilySuite([FAMILIES[family]]).sample(torch.Generator().manual_seed(3), 1)
    adam = (losses(task, lambda m, lr=lr: Adam(m.parameters(), lr=lr)) for lr in RATES)
    target = min(trailing_mean(curve)[-1] for curve in adam)
    for control in CONTROLS:
        for size in SIZES:
            lr = size / control._rule.size
            curve = losses(
                task, lambda m, c=control, lr=lr: c.for_model(m, task.example_inputs, lr=lr)
            )
            final = trailing_mean(curve)[-1]
            yield {
                "family": family,
                "optimizer": control.__name__,
                "size": size,
                "target": target,
                "steps to target": steps_to(curve, target),
                "final loss": final,
                "final loss / target": final / target,
            }


if __name__ == "__main__":
    torch.set_num_threads(1)
    report("control_steps", [row for name in tqdm(FAMILIES) for row in measure(name)])
