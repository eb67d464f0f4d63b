"""How a rule reads a step's parameters: averages renewed, momentum whitened, blocks stacked."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scalegmn_opt.optim.decline import Trend, rows_of, trends
from scalegmn_opt.optim.edges import Edges
from scalegmn_opt.optim.state import State
from scalegmn_opt.optim.together import Given, below, given_back, joint, together
from scalegmn_opt.optim.units import block_ends

if TYPE_CHECKING:
    from scalegmn_opt.optim.rule import UpdateRule


class Reading:
    """The blocks of a step as :class:`Edges`, each worked out when it is asked for.

    Attributes:
        renewed: the next state, of what has been read.
    """

    def __init__(self, rule: "UpdateRule", given: Given) -> None:
        self.rule, self.given = rule, given
        self.renewed: State = {}

    def edges(self) -> Iterator[Edges]:
        """What is read of the blocks, biases last and as one."""
        given = self.given
        names = tuple(name for name in given.graph.parameters if name in given.grads)
        stacks, biases = together(given.graph, names, alone=self.rule.terms is not None)
        every = [*stacks, biases] if biases else stacks
        gains = self._gains([joint(given.states(names, "step")) + 1 for names in every])
        found = trends(given, stacks, biases, decay=self.rule.decays["square"])
        for names, own, trend in zip(stacks, gains, found, strict=False):
            parts = self._parts(names, own, trend)
            yield from _given_away(parts)
            del parts
        if biases:
            yield self._biases(biases, gains[-1], found[-1])

    def _parts(self, names: Sequence[str], gains: dict[str, Tensor], trend: Trend) -> list[Edges]:
        """The blocks of congruent parameters, which are stacked along the batch axis."""
        rule, given = self.rule, self.given
        blocks = given.graph.parameters[names[0]]
        own = {key: joint(given.states(names, key)) for key in given.state[names[0]]}
        grad = joint([given.grads[n] for n in names])
        # By the worst of its blocks: one gradient, one factor.
        grad = grad * trend.outlier.amin(1).reshape(-1, *[1] * (grad.ndim - 1))
        mains, own = rule.main_directions(blocks, grad, rule.advanced(own, grad) | trend.state)
        if len(names) == 1:
            self.renewed[names[0]] = own
        else:
            keys = ("step", *rule.decays, *trend.state)
            self._keep(names, {key: own[key].chunk(len(names)) for key in keys})
        members = zip(*(given.graph.parameters[n] for n in names), strict=True)
        shares = (rule.decline * trend.decline).exp().unbind(1)
        parts = []
        for block, stack, main, ends, share in zip(
            blocks, members, mains, block_ends(blocks, own), shares, strict=True
        ):
            like = {key: _each(value, block.folds) for key, value in gains.items()}
            copies = len(like["length"]) // len(stack)
            factor, scale = (
                x[:, None].expand(-1, copies).reshape(-1, 1, 1, 1)
                for x in (given.kind_factors(stack), given.scales(stack))
            )
            like["length"] = (
                like["length"] * factor * _each(share, block.folds).reshape(-1, 1, 1, 1)
            )
            parts.append(
                Edges(
                    stack,
                    joint([given.weights[b.name] for b in stack]),
                    *(block.pack(own[key]) for key in rule.decays),
                    main,
                    **like,
                    scale=scale,
                    target=block.fold(ends[0], 0)[:, :, None, None],
                    source=block.fold(ends[1], 1)[:, None, :, None],
                )
            )
        return parts

    def _biases(self, names: Sequence[str], gains: dict[str, Tensor], trend: Trend) -> Edges:
        """Biases one below the other, so that many small ones cost as little as one."""
        rule, given = self.rule, self.given
        blocks = [given.graph.parameters[n][0] for n in names]
        counts = [block.shape[0] for block in blocks]
        own = {key: below(given.states(names, key)) for key in (*rule.decays, "target")}
        own["step"] = joint(given.states(names, "step"))
        grad = below([given.grads[n] for n in names])
        index = rows_of(counts, grad.device)
        grad = grad * trend.outlier[:, index]
        own = rule.advanced(own, grad)
        changed = {key: own[key].split(counts, 1) for key in rule.decays}
        changed |= {key: x.split(1, 1) for key, x in trend.state.items()}
        changed["step"] = own["step"].chunk(len(names))
        self._keep(names, changed)
        # (biases · batch, 1, 1, 1) by parameter -> (batch, neurons, 1, 1)
        gains = {key: x.reshape(len(names), -1).mT[:, index] for key, x in gains.items()}
        shares = given.kind_factors(blocks) * (rule.decline * trend.decline).exp()
        gains["length"] = gains["length"] * shares[:, index]
        weights = below([given.weights[block.name] for block in blocks])
        return Edges(
            blocks,
            *(x[:, :, None, None] for x in (weights, *(own[key] for key in rule.decays))),
            None,
            **{key: x[:, :, None, None] for key, x in gains.items()},
            scale=given.scales(blocks)[index].expand_as(grad)[:, :, None, None],
            target=own["target"][:, :, None, None],
            source=torch.ones_like(grad[:, :1, None, None]),
            index=index,
        )

    def _gains(self, steps: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Factors (batch, 1, 1, 1) of momenta over noise, and lengths of steps, of each of steps.

        Worked out for all at once.
        """
        every, decays = joint(steps), self.rule.decays
        noise = (1 - decays["square"] ** every).sqrt()
        gains = {f"{k}_gain": -noise / (1 - decays[k] ** every) for k in ("fast", "slow")}
        gains["length"] = self.rule.step_length(every)
        sizes = [len(own) for own in steps]
        split = (x.reshape(-1, 1, 1, 1).split(sizes) for x in gains.values())
        return [dict(zip(gains, own, strict=True)) for own in zip(*split, strict=True)]

    def _keep(self, names: Sequence[str], changed: dict[str, Sequence[Tensor]]) -> None:
        overwrites = self.rule.overwrites
        self.renewed |= given_back(names, self.given.state, changed, overwrites=overwrites)


def _given_away(parts: list[Edges]) -> Iterator[Edges]:
    """The elements of ``parts``, which is empty then, so that nothing holds them any longer."""
    parts.reverse()
    while parts:
        yield parts.pop()


def _each(values: Tensor, folds: int) -> Tensor:
    """Values (batch, ...) for all folds (batch · folds, ...)."""
    return values if folds == 1 else values.repeat_interleave(folds, 0)
