"""Loss and gradients of eight small networks in training: all at once, and one after the other.

`python benchmarks/inner_step.py`. The rule's own step is not part of it.
"""

import torch
from measure import cpu_seconds, median, report
from torch import Tensor, nn

from scalegmn_opt.graph import stack_parameters
from scalegmn_opt.meta.task import draw_batches, each_loss, stacked_losses
from scalegmn_opt.tasks import SupervisedTask, digits
from scalegmn_opt.tasks.models import CharTransformer, conv_net, mlp
from scalegmn_opt.tasks.sources import text

TASKS, REPEATS = 8, 100


def milliseconds(task: SupervisedTask, losses: object) -> float:
    """Median CPU milliseconds of batches, losses and gradients of ``TASKS`` networks."""
    generator, tasks = torch.Generator().manual_seed(0), [task] * TASKS
    params = stack_parameters([task.init(generator) for _ in tasks])
    leaves: list[Tensor] = [p.requires_grad_() for p in params.values()]

    def step() -> None:
        found = losses(tasks, params, draw_batches(tasks, generator))
        torch.autograd.grad(found.sum(), leaves)

    return 1e3 * median(cpu_seconds(step, repeats=REPEATS))


if __name__ == "__main__":
    torch.set_num_threads(1)
    loss, data = "cross-entropy", digits()
    networks = {
        "MLP 64-32-32-10": SupervisedTask(data, mlp((64, 32, 32, 10), nn.ReLU), loss=loss),
        "CNN 16-32, 8x8": SupervisedTask(
            data, conv_net(data.shape, (16, 32), 10, activation=nn.ReLU), loss=loss
        ),
        "CNN 16-32 with BatchNorm": SupervisedTask(
            data, conv_net(data.shape, (16, 32), 10, activation=nn.ReLU, norm=True), loss=loss
        ),
        "transformer, 1 block of 32": SupervisedTask(
            text(late=False),
            CharTransformer(96, 24, width=32, heads=2, depth=1),
            loss=loss,
            batch_size=8,
        ),
    }
    rows = []
    for name, task in networks.items():
        together, alone = (milliseconds(task, f) for f in (stacked_losses, each_loss))
        rows.append(
            {
                "networks": f"{TASKS} x {name}",
                "batch": task.batch_size,
                "ms at once": together,
                "ms one by one": alone,
                "times faster": alone / together,
            }
        )
    report("inner_step", rows)
