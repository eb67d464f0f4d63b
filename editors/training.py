"""Training a learned editor: an objective for the meta-trainer, and its recipe."""

import os
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scalegmn_opt.inr import INRStore, evaluate, pixel_grid
from scalegmn_opt.meta.recipe import TrainerOptions
from scalegmn_opt.meta.task import moved
from scalegmn_opt.pretrained import weights_kind
from scalegmn_opt.recipe import choice_message

from .inpainting import InpaintingEditor
from .learned import MEANINGS
from .learned_editor import LearnedEditor
from .masks import Inpaint
from .picture import one_hot

_FLOOR = 1e-4  # squared errors below it hardly count: 40 dB
_EXTRA_ROUNDS = 1  # trained for, beyond those that the editor takes
_EVERY = 8  # one network of so many takes the rounds, which cost more than imagining pictures
_SHARE = 0.25  # of the batches that take rounds at all
_HOLE = torch.tensor([0.1, 0.45])  # sides of a region to fill, in sides of the picture
_SHARED = 4  # networks that one region is drawn for
Params = dict[str, Tensor]
Trained = Literal["all", "pictures", "steps"]


class EditingWorker:
    """Draws networks, edits and strengths; a virtual worker of :class:`EditingObjective`."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Everything a copy needs to go on exactly."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.generator.set_state(state["generator"])


class EditingObjective(nn.Module):
    """How far the imagined pictures are from the edited images, and the renders of every round.

    The loss is the mean of ``log(MSE + 1e-4)``, so that edits that change much and edits that
    change little count alike. Some networks of some batches take the rounds, toward the true edited
    images. Every batch has each edit, at a strength uniform between 0 and the largest. :meth:`save`
    writes an exponential moving average of the weights.

    Args:
        editor: the editor to train.
        store: fitted networks.
        images: what they were fitted to, (networks, channels, size, size).
        batch_size: networks in one loss, about as many for every edit.
        trained: ``pictures`` to imagine them only, ``steps`` to reach them only, then by all
            networks of a batch.
        decay: of the moving average, per step.

    Raises:
        ValueError: if ``images`` and ``store`` differ in length, images and editor in size, or
            there are fewer networks in a batch than edits.
    """

    def __init__(
        self,
        editor: LearnedEditor,
        *,
        store: INRStore,
        images: Tensor,
        batch_size: int = 64,
        trained: Trained = "all",
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        if len(images) != len(store):
            raise ValueError(
                f"images: expected {len(store)}, one for each network, got {len(images)}"
            )
        if images.shape[2:] != (editor.size, editor.size):
            raise ValueError(
                f"images: expected {editor.size} pixels a side, got {tuple(images.shape[2:])}"
            )
        if batch_size < len(editor.edits):
            raise ValueError(
                f"batch_size: expected at least {len(editor.edits)}, one for each edit, "
                f"got {batch_size}"
            )
        self.editor, self.batch_size, self.trained = editor, batch_size, trained
        editor.picture.requires_grad_(trained != "steps")
        editor.step.requires_grad_(trained != "pictures")
        self.average = AveragedModel(editor, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.average.requires_grad_(False)
        self._store, self._images = store, images

    def new_worker(self, seed: int) -> EditingWorker:
        return EditingWorker(seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        self.average.module.save_pretrained(path)

    def forward(self, worker: EditingWorker) -> tuple[Tensor, dict[str, float]]:
        self.average.update_parameters(self.editor)
        drawn = self._draw(worker.generator)
        params, strengths, targets = moved(drawn, self.editor.coords.device)
        if self.trained == "steps":
            return self._round_errors(params, targets), {}
        loss = _log_error(self.editor.imagine(params, self._store.spec, strengths), targets)
        logs = {"imagined": loss.item()}
        rounds = torch.rand((), generator=worker.generator) < _SHARE
        if rounds and self.trained == "all":
            params = {name: value[::_EVERY] for name, value in params.items()}
            loss = loss + self._round_errors(params, targets[::_EVERY])
        return loss, logs

    def _round_errors(self, params: Params, targets: Tensor) -> Tensor:
        """The sum over rounds; each is one step, and what it begins with is constant."""
        spec, rounds = self._store.spec, self.editor.rounds + _EXTRA_ROUNDS
        return sum(
            _log_error(evaluate(edited, spec, self.editor.coords), targets)
            for edited in self.editor.approach(params, spec, targets, rounds=rounds)
        )

    def _draw(self, generator: torch.Generator) -> tuple[Params, Tensor, Tensor]:
        """Networks, their strengths (batch, edits) and edited images (batch, points, channels)."""
        chosen = torch.randint(len(self._images), (self.batch_size,), generator=generator)
        params = {name: value[chosen] for name, value in self._store.params.items()}
        if isinstance(self.editor, InpaintingEditor):
            regions = self._regions(generator).to(self._images)
            return params, regions, self._images[chosen].flatten(2).mT
        names = list(self.editor.edits)
        strengths, targets = [], []
        for name, some in zip(names, chosen.tensor_split(len(names)), strict=True):
            strength = self.editor.edits[name] * torch.rand((), generator=generator).item()
            strengths.append(one_hot(names, name, torch.full((len(some),), strength)))
            targets.append(MEANINGS[name][0](self._images[some], strength))
        return params, torch.cat(strengths).to(self._images), torch.cat(targets).flatten(2).mT

    def _regions(self, generator: torch.Generator) -> Tensor:
        """Boxes and turned ellipses (batch, size, size) to fill, each for a few networks."""
        size, count = self.editor.size, -(-self.batch_size // _SHARED)
        drawn = torch.rand(count, 6, generator=generator)
        sides = torch.lerp(*_HOLE, drawn[:, None, 2:4]).clamp_min(1.5 / size)  # not empty
        centres = (2 * drawn[:, None, :2] - 1) * (1 - sides)
        boxes = drawn[:, 4:5] < 0.5
        angle = torch.where(boxes, 0.0, torch.pi * drawn[:, 5:])
        x, y = (pixel_grid(size, size).to(drawn) - centres).unbind(2)
        turned = torch.stack([x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()])
        across, along = (turned.movedim(0, 2) / sides).abs().unbind(2)
        inside = torch.where(boxes, across.maximum(along), across.hypot(along)) <= 1
        regions = inside.unflatten(1, (size, size))
        return regions.repeat_interleave(_SHARED, 0)[: self.batch_size]


def _log_error(pictures: Tensor, targets: Tensor) -> Tensor:
    return ((pictures - targets).square().mean((1, 2)) + _FLOOR).log().mean()


def _known(edits: dict[str, float]) -> dict[str, float]:
    if Inpaint.name in edits and edits != {Inpaint.name: 1.0}:
        raise ValueError("an editor that inpaints learns nothing else, up to 1")
    for name, largest in edits.items():
        if name not in (*MEANINGS, Inpaint.name):
            raise ValueError(choice_message("edit", name, (*MEANINGS, Inpaint.name)))
        if not largest > 0:
            raise ValueError(f"largest strength of {name} must be positive, got {largest}")
    return edits


class EditorSize(BaseModel):
    """Size of a learned editor, see :class:`LearnedEditor`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    rounds: int = Field(default=2, ge=1)
    picture_channels: int = Field(default=16, ge=1)
    iterations: int = Field(default=2, ge=1)
    probes: int = Field(default=5, ge=1)
    node_channels: int = Field(default=16, ge=1)
    edge_channels: int = Field(default=8, ge=1)
    hidden_channels: int = Field(default=32, ge=1)
    num_layers: int = Field(default=1, ge=1)
    gradient: bool = False


class EditorRecipe(BaseModel):
    """Train a learned editor on networks fitted to images."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    kind: Literal["editor"]
    name: str
    description: str = ""
    # Largest strength by edit.
    edits: Annotated[dict[str, float], Field(min_length=1), AfterValidator(_known)]
    images: list[str] = Field(min_length=1)  # "digits", or image files of the data folder
    count: int = Field(ge=2)  # images of each source, from its beginning
    size: int = Field(default=28, ge=2)  # pixels along each side
    editor: EditorSize = EditorSize()
    # Name or file of weights to go on from, of the same size and edits. One that inpaints can begin
    # with the steps of any editor.
    start: str | None = None
    trained: Trained = "all"
    batch_size: int = Field(default=64, ge=2)
    trainer: TrainerOptions
    seed: int = 0

    def objective(self, store: INRStore, images: Tensor) -> EditingObjective:
        """The objective to train; the editor's initial weights are ``start``, or of the ``seed``.

        Raises:
            FileNotFoundError: no such weights to start from.
            ValueError: weights of an editor for other edits, or of another size.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            made = InpaintingEditor if Inpaint.name in self.edits else LearnedEditor
            editor = made(
                edits=self.edits, size=self.size, spec=store.spec, **self.editor.model_dump()
            )
        if self.start is not None:
            self._continue(editor)
        return EditingObjective(
            editor,
            store=store,
            images=images,
            batch_size=self.batch_size,
            trained=self.trained,
        )

    def _continue(self, editor: LearnedEditor) -> None:
        start, whole = self._started(editor)
        # No weight has a shape that depends on spec or size; a gradient is one more column.
        free = {"spec": None, "size": None, "gradient": editor.config["gradient"]}
        if not whole:
            free |= {"edits": None, "picture_channels": None, "rounds": None}
        wanted, found = (
            {**made.config, "edits": list(made.edits), **free} for made in (editor, start)
        )
        different = [name for name in wanted if wanted[name] != found[name]]
        if different:
            name = different[0]
            raise ValueError(
                f"start: expected {name} {wanted[name]}, got {found[name]} in {self.start}"
            )
        if start.config["gradient"] and not editor.config["gradient"]:
            raise ValueError(f"start: expected no gradient, got steps that read it in {self.start}")
        part, given = (editor, start) if whole else (editor.step, start.step)
        shapes = part.state_dict()
        part.load_state_dict(
            {name: _as_wide(value, shapes[name]) for name, value in given.state_dict().items()}
        )

    def _started(self, editor: LearnedEditor) -> tuple[LearnedEditor, bool]:
        """The editor of ``start``, and whether all of it, or its steps alone, are of use."""
        assert self.start is not None
        if not isinstance(editor, InpaintingEditor):
            return LearnedEditor.from_pretrained(self.start), True
        if weights_kind(self.start) == LearnedEditor.kind:
            return LearnedEditor.from_pretrained(self.start), False
        return InpaintingEditor.from_pretrained(self.start), True


def _as_wide(value: Tensor, like: Tensor) -> Tensor:
    """A matrix with columns of zeros at its end, where it has fewer than `like`."""
    missing = like.shape[-1] - value.shape[-1] if value.ndim else 0
    return pad(value, (0, missing)) if missing > 0 else value


def resize(images: Tensor, size: int) -> Tensor:
    """Images (batch, channels, height, width) enlarged to ``size`` pixels a side, bicubically."""
    if images.shape[2:] == (size, size):
        return images
    resized = interpolate(images, (size, size), mode="bicubic", align_corners=False)
    return resized.clamp(0, 1)
