"""State dicts on their way into an optimizer: refused as a whole if wrong, and not cast."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from scalegmn_opt.optim.checks import check_state

if TYPE_CHECKING:
    from scalegmn_opt.optim.base import GraphOptimizer


@contextmanager
def checked_loading(
    optimizer: "GraphOptimizer", expected: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[None]:
    """While a state dict is loaded: it has to be as ``expected``, and is kept as precise as it is.

    Torch would cast it to the parameters' dtype.

    Args:
        expected: state (1, ...) by parameter.

    Raises:
        ValueError: if the state is of another optimizer, network or version.
    """
    loaded: dict[str, Any] = {}

    def check(_: Optimizer, given: dict[str, Any]) -> None:  # after hooks that may change it
        loaded.update(given)
        names = {id(p): name for name, p in optimizer.named_parameters().items()}
        for p, state in _states(optimizer, given):
            if state:
                name = names[id(p)]
                check_state(type(optimizer).__name__, name, state, expected.get(name, {}))

    def restore(_: Optimizer) -> None:
        for p, state in _states(optimizer, loaded):
            for key, value in state.items():
                optimizer.state[p][key] = value.detach().clone().to(p.device)

    hooks = (
        optimizer.register_load_state_dict_pre_hook(check),
        optimizer.register_load_state_dict_post_hook(restore, prepend=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _states(
    optimizer: Optimizer, state_dict: Mapping[str, Any]
) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
    """The optimizer's parameters, each with what a state dict has of it."""
    saved = (index for group in state_dict["param_groups"] for index in group["params"])
    own = (p for group in optimizer.param_groups for p in group["params"])
    for index, p in zip(saved, own, strict=False):  # torch tells if they are not as many
        yield p, state_dict["state"].get(index, {})
