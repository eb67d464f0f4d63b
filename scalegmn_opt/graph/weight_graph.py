"""Which network is this? Groups of neurons and the weights between them, without any tensor."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod

from scalegmn_opt.graph.blocks import CONSTANT, WeightBlock
from scalegmn_opt.graph.groups import FIXED, Activation, Symmetry
from scalegmn_opt.graph.order import fewest_missing_first


class Role(StrEnum):
    """The place of a neuron group in its network."""

    CONSTANT = "constant"  # the neuron 1 that biases start from
    INPUT = "input"
    HIDDEN = "hidden"
    OUTPUT = "output"
    FIXED = "fixed"  # not understood by the tracer: processed, but no symmetry claimed


@dataclass(frozen=True)
class Axis:
    """Indices that are reordered together wherever they occur: channels, heads, a head's width.

    With ``within`` there is an order of its own for each index of these axes, as for the channels
    of each head.
    """

    name: str
    size: int
    permutes: bool
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """Multipliers ``q``, one for each index of ``axes``: one number in all if there are none."""

    name: str
    axes: tuple[str, ...]
    flips: bool
    rescales: bool
    erased: bool = False  # a normalisation divides it out, but for its epsilon


@dataclass(frozen=True)
class NeuronGroup:
    """Neurons that are acted on together, e.g. the channels of one feature map.

    ``symmetry`` is what layers have to respect. Which elements it has together with other groups is
    in ``axes``, the product of axes that the neurons are (major first), and in ``scales``, the
    powers of multipliers whose product is a neuron's ``q``. Without them a group has an axis and
    multipliers of its own.
    """

    name: str
    size: int
    role: Role
    symmetry: Symmetry = FIXED
    activation: Activation | None = None  # None: none, or more than one
    axes: tuple[str, ...] = ()
    scales: tuple[tuple[str, int], ...] = ()
    reason: str = ""  # why neurons, or a part of their axes, may not be reordered


@dataclass(frozen=True)
class WeightGraph:
    """The neuron groups and weight blocks of one network: frozen, hashable, without tensors.

    ``axes`` and ``scales`` are those that groups name; a group that names none has its own.

    Raises:
        ValueError: if two groups, blocks, axes or scales share a name, a block names an unknown
            group or a group an unknown axis or scale, or sizes differ.
    """

    groups: tuple[NeuronGroup, ...]
    blocks: tuple[WeightBlock, ...]
    axes: tuple[Axis, ...] = ()
    scales: tuple[Scale, ...] = ()

    def __post_init__(self) -> None:
        _require_unique("groups", [group.name for group in self.groups])
        _require_unique("blocks", [block.name for block in self.blocks])
        _require_unique("axes", [axis.name for axis in self.every_axis])
        _require_unique("scales", [scale.name for scale in self.every_scale])
        for group in self.groups:
            self._check_group(group)
        for block in self.blocks:
            self._check_block(block)

    def _check_group(self, group: NeuronGroup) -> None:
        for what, names, known in (
            ("axis", group.axes, self.axis),
            ("scale", [name for name, _ in group.scales], self.scale),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"group {group.name!r}: no {what} {name!r}")
        size = prod(self.axis[name].size for name in self.group_axes(group))
        if size != group.size:
            raise ValueError(
                f"axes of group {group.name!r}: expected {group.size} neurons, got {size}"
            )

    def _check_block(self, block: WeightBlock) -> None:
        out, source, _ = block.shape
        for end, name, size in (("target", block.target, out), ("source", block.source, source)):
            if name not in self.group:
                raise ValueError(f"{end} of block {block.name!r}: no group {name!r}")
            size = size if end == "source" and block.is_vector else size * block.folds
            if self.group[name].size != size:
                raise ValueError(
                    f"{end} of block {block.name!r}: expected {self.group[name].size} "
                    f"neurons of group {name!r}, got {size}"
                )

    @classmethod
    def from_parameters(cls, shapes: Mapping[str, Iterable[int]]) -> "WeightGraph":
        """The graph of parameters of which only shapes are known: isolated fixed blocks."""
        parts = [isolated(name, tuple(shape)) for name, shape in shapes.items()]
        groups = [group for groups, _ in parts for group in groups]
        return cls((constant_group(), *groups), tuple(block for _, block in parts))

    @cached_property
    def group(self) -> dict[str, NeuronGroup]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @cached_property
    def block(self) -> dict[str, WeightBlock]:
        """Blocks by name."""
        return {block.name: block for block in self.blocks}

    @cached_property
    def parameters(self) -> dict[str, tuple[WeightBlock, ...]]:
        """The blocks of each parameter, in order."""
        blocks: dict[str, tuple[WeightBlock, ...]] = {}
        for block in self.blocks:
            blocks[block.parameter] = (*blocks.get(block.parameter, ()), block)
        return blocks

    @cached_property
    def every_axis(self) -> tuple[Axis, ...]:
        """The named axes, and the one of each group that names none."""
        own = (Axis(g.name, g.size, g.symmetry.permutes) for g in self.groups if not g.axes)
        return (*self.axes, *own)

    @cached_property
    def every_scale(self) -> tuple[Scale, ...]:
        """The named scales, and the one of each group that rescales or flips and names none."""
        return (*self.scales, *(_own_scale(g) for g in self.groups if _owns_scale(g)))

    @cached_property
    def axis(self) -> dict[str, Axis]:
        """Axes by name."""
        return {axis.name: axis for axis in self.every_axis}

    @cached_property
    def scale(self) -> dict[str, Scale]:
        """Scales by name."""
        return {scale.name: scale for scale in self.every_scale}

    def group_axes(self, group: NeuronGroup) -> tuple[str, ...]:
        """Names of the axes whose product is a group's neurons, major first."""
        return group.axes or (group.name,)

    def group_scales(self, group: NeuronGroup) -> tuple[tuple[str, int], ...]:
        """Names and powers of the scales whose product is a group's multipliers."""
        return ((group.name, 1),) if _owns_scale(group) else group.scales

    @cached_property
    def incoming(self) -> dict[str, tuple[WeightBlock, ...]]:
        """Blocks by the name of their target group."""
        found: dict[str, list[WeightBlock]] = {name: [] for name in self.group}
        for block in self.blocks:
            found[block.target].append(block)
        return {name: tuple(blocks) for name, blocks in found.items()}

    def self_inverse(self, block: WeightBlock) -> bool:
        """Whether gradients of a block transform as its weights do (no positive scale)."""
        return all(self.group[e].symmetry.self_inverse for e in (block.target, block.source))

    @cached_property
    def node_vectors(self) -> tuple[WeightBlock, ...]:
        """The blocks that start at the constant neuron: biases and other vectors on neurons."""
        return tuple(block for block in self.blocks if block.is_vector)

    @cached_property
    def fan_in(self) -> dict[str, int]:
        """Incoming weights of one neuron, biases not counted, by group name (at least 1)."""
        weights = {
            name: sum(b.shape[1] * b.shape[2] for b in blocks if not b.is_vector)
            for name, blocks in self.incoming.items()
        }
        return {name: max(count, 1) for name, count in weights.items()}

    @cached_property
    def fan_out(self) -> dict[str, int]:
        """Outgoing weights of one neuron by group name (at least 1)."""
        counts = dict.fromkeys(self.group, 0)
        for block in self.blocks:
            counts[block.source] += block.shape[0] * block.shape[2]
        return {name: max(count, 1) for name, count in counts.items()}

    @cached_property
    def derived(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """Groups without incoming blocks whose multipliers are powers of other groups' ones.

        By name, with the first group that has each multiplier and the power to raise it to:
        queries over heads that share a key, squared activations, the output of an attention.
        """
        owners: dict[str, tuple[str, int]] = {}
        for group in self.groups:
            scales = self.group_scales(group)
            if len(scales) == 1 and self.incoming[group.name] and abs(scales[0][1]) == 1:
                owners.setdefault(scales[0][0], (group.name, scales[0][1]))
        return {
            group.name: tuple(
                (owners[name][0], power * owners[name][1])
                for name, power in self.group_scales(group)
                if name in owners
            )
            for group in self.groups
            if group.scales and not self.incoming[group.name]
        }

    @cached_property
    def sweep(self) -> tuple[tuple[str, tuple[WeightBlock, ...]], ...]:
        """Groups in forward order, each with the incoming blocks whose sources come before it."""
        begun = {b.target for b in self.node_vectors if b.target != b.source}
        needs = {name: self._needs(name) for name in self.group}
        steps: dict[str, tuple[WeightBlock, ...]] = {}
        for name in fewest_missing_first(needs, begun=begun, every=self.derived):
            steps[name] = tuple(b for b in self.incoming[name] if b.source in steps)
        return tuple(steps.items())

    def _needs(self, name: str) -> list[str]:
        """Groups that the scales of one come from, once for each weight or power."""
        if name in self.derived:
            return [owner for owner, _ in self.derived[name]]
        blocks = (b for b in self.incoming[name] if not b.is_vector)
        return [block.source for block in blocks if block.source != name]

    @cached_property
    def depth(self) -> dict[str, int]:
        """Number of weight blocks on the way to a group, along the forward sweep."""
        depth = dict.fromkeys(self.group, 0)
        for name, blocks in self.sweep:
            sources = [depth[b.source] for b in blocks if not b.is_vector and b.source != name]
            sources += [depth[owner] - 1 for owner, _ in self.derived.get(name, ())]
            depth[name] = 1 + max(sources) if sources else 0
        return depth


def _owns_scale(group: NeuronGroup) -> bool:
    return not group.scales and not group.symmetry.scalar_free


def _own_scale(group: NeuronGroup) -> Scale:
    symmetry = group.symmetry
    axes = () if symmetry.common else group.axes or (group.name,)
    return Scale(group.name, axes, symmetry.flips, symmetry.rescales)


def constant_group() -> NeuronGroup:
    """The group of the one neuron whose activation is 1."""
    return NeuronGroup(CONSTANT, 1, Role.CONSTANT)


def isolated(
    name: str, shape: tuple[int, ...], *, reason: str = ""
) -> tuple[list[NeuronGroup], WeightBlock]:
    """The fixed groups and the block of a parameter that nothing is known about."""
    axes = ["out", "src", *(f"k{i}" for i in range(len(shape) - 2))][: len(shape)]
    sizes = tuple(zip(axes, shape, strict=True))
    size = dict(sizes)
    target = NeuronGroup(f"{name}:out", size.get("out", 1), Role.FIXED, reason=reason)
    if "src" not in size:
        return [target], WeightBlock(name, target.name, CONSTANT, " ".join(axes), sizes)
    source = NeuronGroup(f"{name}:in", size["src"], Role.FIXED, reason=reason)
    return [source, target], WeightBlock(name, target.name, source.name, " ".join(axes), sizes)


def _require_unique(what: str, names: list[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"{what}: expected distinct names, got {twice} more than once")
