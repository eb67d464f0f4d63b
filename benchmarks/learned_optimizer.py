"""Rules against tuned optimizers on all held-out tasks, five starts each; hours on one core.

`python benchmarks/learned_optimizer.py mnist.npz [--weights NAME_OR_FILE ...] [--against NAME ...]
[--tasks NAME ...] [--result NAME] [--jobs 2]`. Runs are kept in `--out`, so that an interrupted
benchmark goes on where it was. The results here were made by

    --weights general permutation --against no-graph untrained adam soap muon
        --tasks mnist-64 ...
    --weights general permutation --against no-graph untrained adam soap muon
        --result learned_optimizer_all
    --weights general permutation --against no-graph soap nadamw adamw sgd --tasks mnist-64 ...
        --result learned_optimizer_baselines
    --against muon gauge-adam gauge-muon --tasks mnist-64 ... --result learned_optimizer_muon
    --against soap muon nadamw adamw sgd --tasks digits-long --result learned_optimizer_long

    --weights general permutation --against no-graph soap muon gauge-adam gauge-muon untrained
        --tasks text-transformer photo-siren mnist-64 digits-5-layers mnist-autoencoder
        --result learned_optimizer_again
    --weights general --against gauge-adam untrained --tasks mnist-64 ...
        --result learned_optimizer_gauge
    --weights general permutation --against no-graph adam soap muon
        --result learned_optimizer_apart, and learned_optimizer_narrow

the second on all tasks, those of `--tasks mnist-64 ...` on the ones of 500 steps. All but the first
two are earlier, and of the rules before these; in the last two the three rules are those of the
first and the second attempt on the suite `apart` (docs/meta_training.md).
"""

import argparse
import shutil
from pathlib import Path

import torch
from measure import RESULTS
from rich.console import Console

from scalegmn_opt.evaluation import REPORT, Evaluation
from scalegmn_opt.evaluation_figures import tables
from scalegmn_opt.meta.contenders import CONTENDERS, LEARNED
from scalegmn_opt.optim.optimizer import DEFAULT_RULE
from scalegmn_opt.tasks import HELD_OUT

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--weights", nargs="+", default=[DEFAULT_RULE])
    parser.add_argument("--against", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--tasks", nargs="+", default=list(HELD_OUT), choices=list(HELD_OUT))
    parser.add_argument("--result", default="learned_optimizer")
    parser.add_argument("--out", type=Path, default=Path("runs/learned_optimizer"))
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    learned = [f"{LEARNED}{name}" for name in arguments.weights]
    evaluation = Evaluation(
        arguments.tasks,
        [*learned, *arguments.against],
        arguments.out,
        data=arguments.mnist,
        jobs=arguments.jobs,
    )
    for table in tables(evaluation.run()):
        Console(width=120, highlight=False).print(table)
    shutil.copyfile(arguments.out / REPORT, RESULTS / f"{arguments.result}.json")
