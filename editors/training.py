"""Training a learned editor: an objective for the meta-trainer, and its recipe."""

import os
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from scalegmn_opt.inr import INRStore, SirenSpec, evaluate, pixel_grid
from scalegmn_opt.meta.recipe import TrainerOptions
from scalegmn_opt.recipe import one_of

from .edit import Edit
from .learned import LearnedEditor, dilation

TRAINABLE: dict[str, Edit] = {edit.name: edit for edit in (dilation(),)}


class EditingWorker:
    """Draws networks and strengths; a virtual worker of :class:`EditingObjective`."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Everything a copy needs to go on exactly."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.generator.set_state(state["generator"])


class EditingObjective(nn.Module):
    """Mean squared error between the renders of edited networks and the edited images.

    Half of the strengths are 1, the others uniform in [0, 1].

    Args:
        editor: the editor to train.
        edit: the image-space meaning; its ``target`` must be linear in the strength.
        store: fitted networks.
        images: what they were fitted to, (networks, channels, height, width).
        batch_size: networks in one loss.

    Raises:
        ValueError: if ``images`` and ``store`` differ in length.
    """

    def __init__(
        self,
        editor: LearnedEditor,
        edit: Edit,
        *,
        store: INRStore,
        images: Tensor,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        if len(images) != len(store):
            raise ValueError(
                f"images: expected {len(store)}, one for each network, got {len(images)}"
            )
        self.editor, self.batch_size = editor, batch_size
        self._store, self._images, self._edited = store, images, edit.target(images, 1.0)
        self._coords = pixel_grid(*images.shape[2:]).to(images)

    def new_worker(self, seed: int) -> EditingWorker:
        return EditingWorker(seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        self.editor.save_pretrained(path)

    def forward(self, worker: EditingWorker) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(self._images), (self.batch_size,), generator=worker.generator)
        strength = torch.rand(self.batch_size, generator=worker.generator)
        strength[: self.batch_size // 2] = 1.0
        strength = strength.to(self._images)
        params = {name: value[chosen] for name, value in self._store.params.items()}
        share = strength[:, None, None, None]
        target = (1 - share) * self._images[chosen] + share * self._edited[chosen]
        spec: SirenSpec = self._store.spec
        render = evaluate(self.editor(params, spec, strength), spec, self._coords)
        loss = (render - target.flatten(2).mT).square().mean()
        return loss, {}


class EditorSize(BaseModel):
    """Size of a learned editor, see :class:`LearnedEditor`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    probes: int = Field(default=14, ge=1)
    node_channels: int = Field(default=32, ge=1)
    edge_channels: int = Field(default=16, ge=1)
    hidden_channels: int = Field(default=64, ge=1)
    num_layers: int = Field(default=4, ge=1)


class EditorRecipe(BaseModel):
    """Train a learned editor on networks fitted to images."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    kind: Literal["editor"]
    name: str
    description: str = ""
    edit: Annotated[str, one_of("edit", TRAINABLE)]
    images: list[str] = Field(min_length=1)  # "digits", or image files of the data folder
    count: int = Field(ge=2)  # images of each source, from its beginning
    size: int = Field(default=28, ge=2)  # pixels along each side
    editor: EditorSize = EditorSize()
    batch_size: int = Field(default=64, ge=2)
    trainer: TrainerOptions
    seed: int = 0

    def objective(self, store: INRStore, images: Tensor) -> EditingObjective:
        """The objective to train; the editor's initial weights depend on ``seed`` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            editor = LearnedEditor(**self.editor.model_dump())
        edit = TRAINABLE[self.edit]
        return EditingObjective(
            editor, edit, store=store, images=images, batch_size=self.batch_size
        )


def resize(images: Tensor, size: int) -> Tensor:
    """Images (batch, channels, height, width) enlarged to ``size`` pixels a side, bicubically."""
    if images.shape[2:] == (size, size):
        return images
    resized = interpolate(images, (size, size), mode="bicubic", align_corners=False)
    return resized.clamp(0, 1)
