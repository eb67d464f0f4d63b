"""The command line: `scalegmn-opt demo | meta-train | evaluate | fit | edit | info`."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import BaseModel
from torch import set_num_threads
from tqdm import tqdm

from scalegmn_opt.cli_images import edit, fit
from scalegmn_opt.recipe import load_recipe, one_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from scalegmn_opt.editors.training import EditingObjective, EditorRecipe
    from scalegmn_opt.graph import WeightGraph
    from scalegmn_opt.meta import MetaTrainer

_RECIPE = "recipe.json"  # of a run, beside its weights

app = typer.Typer(
    help="Learned optimizers and weight editing on scale-equivariant graph metanetworks.",
    epilog="Runs on one thread; set OMP_NUM_THREADS for more.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Tracker = Literal["tensorboard", "wandb", "trackio"]
KINDS = ("rule", "editor")


class _AnyTraining(BaseModel):
    """A recipe of meta-training, of which only the kind is known."""

    kind: Annotated[str, one_of("kind", KINDS)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake becomes one line on stderr and exit code 1."""
    # Users name their own modules; unlike `python -m`, a script does not look where it is run.
    sys.path.append(os.getcwd())
    # Networks this small gain little by a second thread, and on busy cores lose a factor of ten.
    if "OMP_NUM_THREADS" not in os.environ:
        set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned()
            app(arguments)
    except (ValueError, TypeError, OSError, ImportError) as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            typer.echo(f"error: {line}", err=True)
        raise SystemExit(1) from error


def _warned() -> Callable[..., None]:
    """Shows each warning as one line on stderr, once."""
    known: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in known:
            known.add(str(message))
            tqdm.write(f"warning: {message}", file=sys.stderr)  # beside a progress bar

    return show


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for pictures and report.")] = Path(
        "demo-output"
    ),
) -> None:
    """See all of it in two minutes: train with the learned optimizer, edit images, meta-train."""
    from scalegmn_opt.demo import REPORT, run_demo

    report = run_demo(out)
    optimizer, edit, meta = (report[part] for part in ("optimizer", "edit", "meta"))
    learned, adam = optimizer["learned"], optimizer["adam"]
    lines = {
        "optimizer.png": f"training loss after {optimizer['steps']} steps: "
        f"{learned['training_loss']:.3g} learned, {adam['training_loss']:.3g} Adam "
        f"(learning rate {optimizer['adam_learning_rate']:g}, the best of "
        f"{len(optimizer['adam_of_each_learning_rate'])})",
        "edit.png": f"dilation of {edit['count']} networks: MSE {edit['total']['mse']:.3g}, "
        f"{edit['total']['mse_do_nothing']:.3g} without the edit",
        "meta.png": f"meta-loss of a new rule in {meta['meta_steps']} meta-steps: "
        f"{meta['meta_loss_first_quarter']:.3g} -> {meta['meta_loss_last_quarter']:.3g}",
        REPORT: "all numbers",
    }
    for name, line in lines.items():
        typer.echo(f"{out / name}: {line}")


@app.command("meta-train")
def meta_train(
    recipe: Annotated[str, typer.Argument(help="File or packaged name; kind: rule or editor.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/NAME if not given.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the recipe's image files.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where OUT ended.")] = False,
    processes: Annotated[
        int | None, typer.Option(help="Fail unless torchrun started as many.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="cpu, or what is here: cuda, xpu, ...; each process has its own."),
    ] = "cpu",
    tracker: Annotated[
        Tracker | None, typer.Option(help="Log there, too, and not to OUT/log.jsonl alone.")
    ] = None,
) -> None:
    """Train an update rule or an editor from a recipe; the weights go to OUT."""
    from scalegmn_opt.editors.training import EditorRecipe
    from scalegmn_opt.meta import MetaTrainer
    from scalegmn_opt.meta.checkpoint import latest
    from scalegmn_opt.meta.recipe import RuleRecipe
    from scalegmn_opt.meta.tracking import tracked_accelerator
    from scalegmn_opt.meta.validation import RuleValidation
    from scalegmn_opt.tasks import resolve_suite

    is_rule = load_recipe(recipe, _AnyTraining).kind == "rule"
    loaded = load_recipe(recipe, RuleRecipe if is_rule else EditorRecipe)
    out = out or Path("runs") / loaded.name
    accelerator = tracked_accelerator(tracker, out, project=loaded.name, device=device)
    _check_processes(accelerator, processes)
    if latest(out / "checkpoints"):
        if not resume:
            raise FileExistsError(
                f"--out: {out} holds checkpoints; add --resume, or choose another"
            )
        _check_resumed(loaded, out)
    validation = None
    if isinstance(loaded, RuleRecipe):
        if loaded.validation is not None:
            options = loaded.validation.model_dump()
            validation = RuleValidation(resolve_suite(options.pop("suite")), **options)
        objective = loaded.build(resolve_suite(loaded.suite))
    else:
        objective = _editing(loaded, data, out, accelerator, resume=resume)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        temporary = out / f"{_RECIPE}.partial"  # other processes may be reading the old one
        temporary.write_text(loaded.model_dump_json(indent=1) + "\n")
        os.replace(temporary, out / _RECIPE)
    trainer = MetaTrainer(
        objective,
        out,
        seed=loaded.seed,
        validation=validation,
        accelerator=accelerator,
        **loaded.trainer.model_dump(),
    )
    _train(trainer, resume=resume)


def _editing(
    recipe: "EditorRecipe",
    data: Path | None,
    out: Path,
    accelerator: "Accelerator",
    *,
    resume: bool,
) -> "EditingObjective":
    """What trains an editor, on networks that the main process fits, or has fitted before."""
    from scalegmn_opt.editor_data import training_images, training_networks

    images, names = training_images(recipe, data)
    out.mkdir(parents=True, exist_ok=True)
    with accelerator.main_process_first():
        fresh = accelerator.is_main_process and not resume
        store = training_networks(recipe, images, names, out=out, fresh=fresh)
    return recipe.objective(store, images)


def _check_resumed(recipe: BaseModel, out: Path) -> None:
    """A run that goes on may be longer, or saved more often, but it is the same."""
    path = out / _RECIPE
    if not path.is_file():
        return
    found, known = json.loads(recipe.model_dump_json()), json.loads(path.read_text())
    for kept in (found, known):
        kept.pop("description")
        for key in ("steps", "seconds", "checkpoint_every"):
            kept["trainer"].pop(key)
    for key, value in found.items():
        if known.get(key) != value:
            raise ValueError(f"--resume: the run in {out} has {key} {known.get(key)}, not {value}")


@app.command()
def evaluate(
    weights: Annotated[
        list[str] | None, typer.Argument(help="Rules: packaged names or files.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of report, curves and cache.")],
    data: Annotated[Path | None, typer.Option(help="mnist.npz, or its folder.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A held-out task or package.module:NAME; all held-out if none is given."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="An optimizer to compare with, or no-graph:WEIGHTS for a rule without a model; "
            "all optimizers if none is given, Adam in any case."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each optimizer.")] = 5,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Compare meta-trained rules with tuned optimizers on tasks of no meta-training."""
    from rich.console import Console

    from scalegmn_opt.evaluation import REPORT, Evaluation
    from scalegmn_opt.evaluation_figures import tables
    from scalegmn_opt.meta.contenders import CONTENDERS, LEARNED
    from scalegmn_opt.tasks import HELD_OUT

    learned = [f"{LEARNED}{name}" for name in weights or []]
    report = Evaluation(
        task or list(HELD_OUT),
        [*learned, *(against or CONTENDERS)],
        out,
        data=data,
        seeds=seeds,
        jobs=jobs,
    ).run()
    console = Console(highlight=False)
    for table in tables(report):
        console.print(table)
    typer.echo(f"all numbers: {out / REPORT}")


app.command()(fit)
app.command()(edit)


@app.command()
def info(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE|symmetries",
            help="package.module:factory that returns (module, example_inputs), a store, weights, "
            "a recipe, or symmetries: what is claimed for each operator and activation.",
        ),
    ],
    *,
    plot: Annotated[Path | None, typer.Option(help="Draw the model's graph: a PNG.")] = None,
) -> None:
    """Describe a model's weight graph, stored networks, weights, a recipe or all symmetries."""
    from rich.console import Console

    from scalegmn_opt.info import describe

    if plot and not plot.absolute().parent.is_dir():
        raise FileNotFoundError(f"--plot must lie in an existing folder, got {plot}")
    description = describe(subject)
    console = Console(highlight=False, soft_wrap=True)
    for part in description.parts:
        console.print(part)
    if plot:
        _draw(description.graph, subject, plot)
    if not description.ok:
        raise typer.Exit(1)


def _draw(graph: "WeightGraph | None", subject: str, path: Path) -> None:
    from scalegmn_opt.graph_figure import draw_graph

    if graph is None:
        raise ValueError(f"--plot: expected a model, package.module:factory, got {subject!r}")
    draw_graph(graph, title=subject).savefig(path, dpi=150)
    typer.echo(f"graph: {path}")


def _check_processes(accelerator: "Accelerator", processes: int | None) -> None:
    running = accelerator.num_processes
    if processes is not None and processes != running:
        raise ValueError(
            f"--processes: expected {processes}, got {running} running; start it with: torchrun "
            f"--nproc_per_node {processes} -m scalegmn_opt.cli meta-train ..."
        )


def _train(trainer: "MetaTrainer", *, resume: bool) -> None:
    """Train, and draw the log."""
    trainer.train(resume=resume)
    trainer.accelerator.end_training()
    if trainer.accelerator.is_main_process:
        _show_run(trainer.output)
    if trainer.accelerator.num_processes > 1:
        sys.stdout.flush()
        os._exit(0)  # torch's teardown aborts now and then after all is done, a failure to torchrun


def _show_run(out: Path) -> None:
    from scalegmn_opt.figures import draw_losses
    from scalegmn_opt.meta.trainer import read_log

    for name in ("weights", "best"):
        if (out / f"{name}.safetensors").exists():
            typer.echo(f"{name}: {out / name}.safetensors")
    try:
        losses, validation = (read_log(out, key) for key in ("loss", "validation"))
        figure = draw_losses(list(losses.values()), label="meta-loss", validation=validation)
        figure.savefig(out / "meta.png", dpi=150)
    except ImportError as error:
        typer.echo(f"no picture of the meta-loss: {error}")
    else:
        typer.echo(f"meta-loss: {out / 'meta.png'}")


if __name__ == "__main__":
    main()
