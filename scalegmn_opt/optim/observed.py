"""A gauge from what a model computes: sizes of pre-activations and activities, read by hooks."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, distributed, nn

from scalegmn_opt.graph import WeightBlock, WeightGraph
from scalegmn_opt.optim.guard import frames_inside
from scalegmn_opt.optim.state import State
from scalegmn_opt.optim.units import block_ends
from scalegmn_opt.symmetry import largest_change

GaugeName = Literal["swept", "observed"]
_LIMIT = 10.0  # how many times the sweep's scale an observed one may be, or a part of it
_NOT_SEEN = (
    'gauge="observed": no training forward of the model was seen before the first step; its scales'
    " are those of the sweep"
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORMS = (*_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def check_gauge(gauge: str, model: nn.Module | None) -> None:
    """Raise for an unknown gauge, and for one to observe without a model."""
    if gauge not in get_args(GaugeName):
        raise ValueError(f"gauge: expected one of {get_args(GaugeName)}, got {gauge!r}")
    if gauge == "observed" and model is None:
        raise ValueError("gauge: expected a model to observe, got none; give model=")


class Observer:
    """Mean squares of what goes into and out of the modules of ``model`` in training.

    They are read in the first forward pass of the model that is in training mode with gradients
    enabled, from its start to its end: what is computed again in a backward pass counts once.
    Linear and convolutional layers and normalisations are read; a parameter of another module, or
    of several ones, is not. The hooks do nothing afterwards, and :meth:`remove` takes them away.
    That forward pass runs without compilation where ``model`` is a compiled module.
    """

    def __init__(self, model: nn.Module) -> None:
        owners = Counter(id(p) for module in model.modules() for p in _own(module).values())
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if _channel_axis(module) is not None
            and all(owners[id(p)] == 1 for p in _own(module).values())
        }
        self._sums: dict[str, list[Tensor]] = {}
        self._reading = self._done = False
        self._stance: Any = None
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            *(m.register_forward_hook(_Reading(self, n)) for n, m in self._modules.items()),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks away; what was read is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, model: nn.Module, _: Any) -> None:
        self._reading = model.training and torch.is_grad_enabled() and not self._done
        if self._reading:
            self._sums = {}
            if not torch.compiler.is_compiling():  # what is compiled may have been without hooks
                self._stance = torch.compiler.set_stance("force_eager")

    def _end(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        if self._reading:
            self._done, self._reading = outputs is not None, False  # None: the forward failed
            if self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None

    def read(self, name: str, inputs: Any, outputs: Any) -> None:
        """Add the sums of squares and the counts of one call of a module."""
        if not self._reading or not inputs:  # none of its own, as by keyword
            return
        axis = _channel_axis(self._modules[name])
        found = [part for x in (outputs, inputs[0]) for part in _sums(x.detach(), axis)]
        known = self._sums.get(name)
        self._sums[name] = [a + b for a, b in zip(known, found, strict=True)] if known else found

    def gauge(self, graph: WeightGraph, state: State) -> State:
        """``state`` with the scales that were seen, and the sweep's for the other groups.

        Where processes train together, of what they have seen together. A scale that a group has
        in common is the root mean square, and none is more than ten times the sweep's, or less
        than a tenth, so that a neuron that hardly ever answers does not get endless steps.
        """
        if not self._done:
            warnings.warn(_NOT_SEEN, RuntimeWarning, stacklevel=frames_inside())
        found = dict(state)
        for module, (outputs, inputs) in self._means().items():
            for key, p in _own(self._modules[module]).items():
                name = f"{module}.{key}" if module else key
                blocks, own = graph.parameters.get(name), state.get(name)
                if blocks is None or own is None:
                    continue
                dims = _dimensions(self._modules[module], p)
                ends = block_ends(blocks, own)
                found[name] = {
                    **own,
                    "target": _scales(graph, blocks, ends, 0, _along(p, dims[0], outputs)),
                    "source": _scales(graph, blocks, ends, 1, _along(p, dims[1], inputs)),
                }
        return found

    def _means(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean squares of the channels of outputs and inputs, by module, those that were seen."""
        sums = self._shared() if _together() else self._sums
        return {
            name: (out / out_count, into / in_count)
            for name, (out, out_count, into, in_count) in sums.items()
            if out_count > 0 and bool(out.isfinite().all() & into.isfinite().all())
        }

    def _shared(self) -> dict[str, list[Tensor]]:
        """The sums over all processes, in one message: each has to know the sizes beforehand."""
        parts = []
        for name, module in self._modules.items():
            like = next(iter(_own(module).values())).detach()
            sizes = [n for size in _channels(module) for n in (size, 1)]
            empty = [like.new_zeros(n, dtype=torch.float64) for n in sizes]
            seen = self._sums.get(name, empty)
            parts += [a.reshape(b.shape).to(b) for a, b in zip(seen, empty, strict=True)]
        joint = torch.cat(parts)
        distributed.all_reduce(joint)
        split = joint.split([len(part) for part in parts])
        places = zip(self._modules, range(0, len(parts), 4), strict=True)
        return {name: list(split[i : i + 4]) for name, i in places}


class _Reading:
    """The hook of one module."""

    def __init__(self, observer: Observer, name: str) -> None:
        self._observer, self._name = observer, name

    def __call__(self, _: nn.Module, inputs: Any, outputs: Any) -> None:
        self._observer.read(self._name, inputs, outputs)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _own(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters(recurse=False))


def _channel_axis(module: nn.Module) -> int | None:
    """The axis of a module's inputs and outputs that has the neurons; None: not read."""
    if not _own(module):
        return None
    if isinstance(module, _CONVOLUTIONS):
        return -1 - len(module.kernel_size)
    if isinstance(module, (*_BATCH_NORMS, nn.GroupNorm)):
        return 1
    last = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) == 1
    return -1 if last or isinstance(module, nn.Linear) else None


def _channels(module: nn.Module) -> tuple[int, int]:
    """Number of neurons of a module's outputs and inputs."""
    weight = module.weight if isinstance(module, _NORMS) else None
    if weight is not None:
        return len(weight), len(weight)
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels


def _dimensions(module: nn.Module, p: Tensor) -> tuple[int | None, int | None]:
    """Dimensions of a parameter that are the module's outputs and inputs."""
    if p.ndim == 1:
        return 0, None
    if isinstance(module, _CONVOLUTIONS) and module.groups > 1:  # some inputs for some outputs
        return (None, None) if isinstance(module, _TRANSPOSED) else (0, None)
    return (1, 0) if isinstance(module, _TRANSPOSED) else (0, 1)


def _sums(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Sums of squares (channels,), and of how many numbers each."""
    dims = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    squares = x.to(torch.promote_types(x.dtype, torch.float32)).square()
    count = x.numel() // x.shape[axis]
    return squares.sum(dims) if dims else squares, squares.new_tensor(float(count))


def _along(p: Tensor, dim: int | None, values: Tensor) -> Tensor | None:
    """``values`` along a dimension of ``p``, the same along the others: (1, *shape)."""
    if dim is None or p.shape[dim] != len(values):
        return None
    shape = [1] * p.ndim
    shape[dim] = len(values)
    return values.reshape(shape).expand(p.shape)[None]


def _scales(
    graph: WeightGraph,
    blocks: Sequence[WeightBlock],
    ends: Sequence[tuple[Tensor, Tensor]],
    end: int,
    squares: Tensor | None,
) -> Tensor:
    """The scales (1, nodes) at one end of a parameter's blocks, from mean squares of its shape."""
    swept = [own[end] for own in ends]
    if squares is None:
        return torch.cat(swept, 1)
    return torch.cat(
        [_scale(graph, b, s, end, squares) for b, s in zip(blocks, swept, strict=True)], 1
    )


def _scale(
    graph: WeightGraph, block: WeightBlock, swept: Tensor, end: int, squares: Tensor
) -> Tensor:
    if end == 1 and block.is_vector:
        return swept
    group = graph.group[block.source if end else block.target]
    square = block.unfold(block.pack(squares).mean((2 - end, 3)), end)
    if not group.symmetry.rescales or group.symmetry.common:
        square = square.mean(1, keepdim=True).expand_as(square)
    found = square.sqrt().to(swept)
    found = found if end else found.clamp_max(largest_change(group))
    return found.clamp(swept / _LIMIT, swept * _LIMIT)
