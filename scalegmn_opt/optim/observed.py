"""A gauge from what a model computes: sizes of pre-activations and activities, read by hooks."""

import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, distributed, nn
from torch._C._functorch import CInterpreter, peek_interpreter_stack
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import get_proxy_mode

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
# Not in torch 2.6, where an export counts as compiling.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)
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
    enabled and computes with numbers, from its start to its end: what is computed again in a
    backward pass counts once, a pass of ``torch.export`` or ``torch.func.vmap`` does not. Linear
    and convolutional layers and normalisations are read; a parameter of another module, or of
    several ones, is not. The hooks do nothing afterwards, and go with :meth:`remove` or the
    observer. That forward pass runs without compilation where ``called`` is a compiled module.

    Args:
        called: what is called in training: ``model``, or a compiled module around it.
    """

    _depth = 0  # calls of the model that are under way in the pass that is read: it may call itself
    _done = False
    _call: FrameType | None = None
    _stance: Any = None
    _handles: Sequence[Any] = ()

    def __init__(self, model: nn.Module, called: nn.Module) -> None:
        owners = Counter(id(p) for module in model.modules() for p in _own(module).values())
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if _channel_axis(module) is not None
            and all(owners[id(p)] == 1 for p in _own(module).values())
        }
        self._sums: dict[str, list[Tensor]] = {}
        self._handles = [  # of several observers, the last begins first and ends last
            called.register_forward_pre_hook(_Hook(self, "_begin"), prepend=True),
            *(m.register_forward_hook(_Hook(self, "_read", n)) for n, m in self._modules.items()),
            called.register_forward_hook(_Hook(self, "_end"), always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks away; what was read is kept."""
        for handle in self._handles:
            handle.remove()
        self._handles = ()
        if self._depth:  # an interrupt
            self._finish(done=False)

    __del__ = remove

    def _begin(self, model: nn.Module, inputs: Any) -> None:
        if self._depth and not _under_way(self._call):  # an interrupt, which calls no hook
            self._finish(done=False)
        if self._depth:
            self._depth += 1
        elif not self._done and model.training and torch.is_grad_enabled() and _real(inputs):
            self._depth, self._sums = 1, {}
            if not torch.compiler.is_compiling():  # what is compiled may have been without hooks
                self._call = sys._getframe(2)  # of the hook's caller, to the end of the forward
                self._stance = torch.compiler.set_stance("force_eager")

    def _end(self, _: nn.Module, inputs: Any, outputs: Any) -> None:
        if self._depth > 1:
            self._depth -= 1
        elif self._depth:
            self._finish(done=outputs is not None or sys.exc_info()[0] is None)

    def _finish(self, *, done: bool) -> None:
        self._depth, self._done, self._call = 0, done, None
        self._sums = self._sums if done else {}
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None

    def _read(self, name: str, _: nn.Module, inputs: Any, outputs: Any) -> None:
        """Add the sums of squares and the counts of one call of a module."""
        if not self._depth or not inputs:  # none of its own, as by keyword
            return
        pair = (outputs, inputs[0])
        dense = all(isinstance(x, Tensor) and x.layout == torch.strided for x in pair)
        if not dense or not _real(pair):  # a tuple, or inside of a vmap of the model's own
            return
        axis = _channel_axis(self._modules[name])
        found = [part for x in pair for part in _sums(x.detach(), axis)]
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
        for module, means in self._means().items():
            for key, p in _own(self._modules[module]).items():
                name = f"{module}.{key}" if module else key
                blocks, own = graph.parameters.get(name), state.get(name)
                if blocks is None or own is None:
                    continue
                dims = _dimensions(self._modules[module], p)
                squares = [_along(p, dim, mean) for dim, mean in zip(dims, means, strict=True)]
                scales = [
                    [_scale(graph, block, swept[end], end, squares[end]) for end in (0, 1)]
                    for block, swept in zip(blocks, block_ends(blocks, own), strict=True)
                ]
                target, source = (torch.cat(parts, 1) for parts in zip(*scales, strict=True))
                found[name] = {**own, "target": target, "source": source}
        return found

    def _means(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean squares of the channels of outputs and inputs, by module, those that were seen."""
        together = distributed.is_available() and distributed.is_initialized()
        sums = self._shared() if together else self._sums
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
        split = iter(joint.split([len(part) for part in parts]))
        return {name: [next(split) for _ in range(4)] for name in self._modules}


class _Hook:
    """Calls a method of an observer that an optimizer has.

    The hooks of a copy are of the observer's copy. That of a model alone, as for an average of
    weights, has no optimizer to keep it: it is gone once the copy is made, and so are its hooks.
    """

    def __init__(self, observer: Observer | None, method: str, *arguments: str) -> None:
        self._observer = weakref.ref(observer) if observer else lambda: None
        self._method, self._arguments = method, arguments

    def __call__(self, *call: Any) -> None:
        if observer := self._observer():
            getattr(observer, self._method)(*self._arguments, *call)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (self._observer(), self._method, *self._arguments)


def _under_way(call: FrameType | None) -> bool:
    """Whether a call is one of those that lead here; None, of a compiled one, counts as such."""
    frame: FrameType | None = sys._getframe() if call else None
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is call


def _real(values: Any) -> bool:
    """Whether numbers are computed: nothing is fake, traced, or transformed by ``torch.func``."""
    if _is_exporting() or isinstance(peek_interpreter_stack(), CInterpreter):
        return False
    if torch.compiler.is_compiling():  # to be run
        return True
    traced = torch.jit.is_tracing() or get_proxy_mode() is not None
    return not traced and detect_fake_mode(values) is None


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
    shape = [len(values) if i == dim else 1 for i in range(p.ndim)]
    return values.reshape(shape).expand(p.shape)[None]


def _scale(
    graph: WeightGraph, block: WeightBlock, swept: Tensor, end: int, squares: Tensor | None
) -> Tensor:
    """The scales (1, nodes) at one end of a block, from mean squares of its parameter's shape."""
    if squares is None or (end == 1 and block.is_vector):
        return swept
    group = graph.group[block.source if end else block.target]
    square = block.unfold(block.pack(squares).mean((2 - end, 3)), end)
    if not group.symmetry.rescales or group.symmetry.common:
        square = square.mean(1, keepdim=True).expand_as(square)
    found = square.sqrt().to(swept)
    found = found if end else found.clamp_max(largest_change(group))
    return found.clamp(swept / _LIMIT, swept * _LIMIT)
