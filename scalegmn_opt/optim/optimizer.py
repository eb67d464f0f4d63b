"""LearnedOptimizer: a meta-trained rule as a ``torch.optim.Optimizer``."""

import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from scalegmn_opt.optim.base import GraphOptimizer
from scalegmn_opt.optim.observed import GaugeName
from scalegmn_opt.optim.rule import UpdateRule

DEFAULT_RULE = "general"
DEFAULT_RULE_WITHOUT_MODEL = "no-graph"


class LearnedOptimizer(GraphOptimizer):
    """A drop-in optimizer whose update is computed by a meta-trained, scale-equivariant rule.

    ``θ <- (1 - lr · weight_decay) θ + lr · rule(θ, ∇L, state)``. With ``model`` and
    ``example_inputs`` the rule sees the weight graph of the whole model, and training from
    permuted, rescaled or sign-flipped parameters gives the same function at each step. Without
    them each parameter is a block of its own.

    Entries of a gradient that are not finite count as zero, with a warning, and an update that
    is not finite or explodes is replaced by the rule's plain momentum step; :meth:`health` counts.
    With ``record = True`` each step is kept for :meth:`explain`.

    Args:
        params: parameters or parameter groups, named or not; a group may have its own ``lr`` and
            ``weight_decay``.
        model: the module that the parameters belong to; it is traced, not kept.
        example_inputs: positional arguments of one forward call of ``model``.
        rule: an :class:`UpdateRule`, the name of packaged weights, or a path to some; None:
            ``"general"`` with a model, ``"no-graph"`` without.
        lr: multiplier of the rule's own step; 1.0 is the step it was trained with. At 1.0 an
            aligned step of an untrained rule changes a pre-activation by about its initial size.
        weight_decay: share of each parameter removed per step at ``lr=1``.
        maximize: climb instead of descend; a group may have its own.
        differentiable: let autograd run through :meth:`step`, from the new parameters and states to
            the old ones, the gradients and a tensor ``lr``, not to the rule's weights. As in torch,
            parameters may then be no leaves, and are changed in place. The factor by which
            ``max_change`` scales a step counts as a constant.
        max_change: the largest change of a pre-activation by an aligned step, relative to its
            initial size; a larger step of a parameter is scaled down. None: no limit.
        gauge: where the sizes of pre-activations and activities come from. ``"swept"``: the initial
            weights and the root mean square of ``example_inputs``. ``"observed"``: hooks on the
            modules of ``model`` read them in the first training forward (training mode, gradients
            enabled) and are gone after the first step, or after :meth:`stop_observing`. All
            processes of ``torch.distributed``, if it is initialised, count together. What is not
            seen keeps the sweep's values.
        compile: run the rule, one with ``channels=0``, as a program of ``torch.compile``: a step of
            a small network takes half the time, and the first step half a minute, or some minutes
            for dozens of layers; so does a step after other parameters require gradients. Needs
            what torch.compile needs, on a CPU a C++ compiler.

    State: ``fast``, ``slow``, ``square`` of the parameter's shape in float32 (float64 if there are
    float64 parameters), 12 bytes a parameter; ``whitener``, ``n²`` numbers of each matrix whose
    smaller side ``n`` is 257 to 2048, at most 4 bytes a parameter; ``step``; ``level`` and
    ``peak``, the mean squared gradient of a block now and at its largest; ``target`` and
    ``source``, the gauge at the first step, one number a neuron.

    Raises:
        ValueError: for a negative ``lr`` or ``weight_decay``, ``model`` without ``example_inputs``
            or the reverse, ``compile`` with ``differentiable`` or with a rule that has a graph
            network, and ``gauge="observed"`` without a model or with a rule that has none.
        TypeError: for complex and sharded parameters and sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        model: nn.Module | None = None,
        example_inputs: Sequence[Any] | None = None,
        rule: UpdateRule | str | os.PathLike[str] | None = None,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        differentiable: bool = False,
        max_change: float | None = None,
        gauge: GaugeName = "swept",
        compile: bool = False,
    ) -> None:
        if rule is None:
            rule = DEFAULT_RULE_WITHOUT_MODEL if model is None else DEFAULT_RULE
        own = deepcopy(rule) if isinstance(rule, UpdateRule) else UpdateRule.from_pretrained(rule)
        if gauge == "observed" and own.symmetry == "permutation":
            raise ValueError('gauge: expected "swept" for a rule of permutations only')
        if compile and own.config["channels"]:
            raise ValueError(
                f"compile: expected a rule with channels=0, got {own.config['channels']}"
            )
        super().__init__(
            params,
            own,
            model=model,
            example_inputs=example_inputs,
            lr=lr,
            weight_decay=weight_decay,
            maximize=maximize,
            differentiable=differentiable,
            max_change=max_change,
            gauge=gauge,
            compile=compile,
        )
