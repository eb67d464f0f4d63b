"""Small, randomly initialised networks of many architectures, each with inputs and a loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

Built = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """A network with example inputs, and a loss of its outputs that training lowers."""

    name: str
    make: Callable[[], Built]
    loss: Callable[[Any], Tensor]


ZOO: dict[str, Case] = {}


def _make(build: Callable[[], Built]) -> Built:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, inputs = build()
        for p in module.parameters():
            # Zero biases and norm weights of one look the same in any order of the neurons, and
            # zero ones under any scaling: a test could not see them mistreated.
            if p.numel() > 1 and (p == p.flatten()[0]).all():
                p.data.add_(0.1 * torch.randn_like(p))
    return module.train(), inputs


def _add(name: str, loss: Callable[[Any], Tensor], build: Callable[[], Built]) -> None:
    assert name not in ZOO
    ZOO[name] = Case(name, partial(_make, build), loss)


def _case(loss: Callable[[Any], Tensor]) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Registers a builder under its own name."""

    def register(build: Callable[[], Built]) -> Callable[[], Built]:
        _add(build.__name__, loss, build)
        return build

    return register


# Inputs and losses. A loss knows its target from the shape of the outputs alone, so that a case
# needs no state: targets and tokens come from a generator of their own.


def tokens(batch: int, length: int, vocabulary: int) -> Tensor:
    """Fixed token indices; of the same shape, always the same."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (batch, length), generator=generator)


def classify(logits: Tensor) -> Tensor:
    """Cross-entropy of (N, classes, ...) against the classes in turn."""
    labels = torch.arange(logits[:, 0].numel()) % logits.shape[1]
    return F.cross_entropy(logits, labels.view_as(logits[:, 0]))


def next_token(logits: Tensor) -> Tensor:
    """Cross-entropy of (N, length, vocabulary) against the inputs of `tokens`, one step ahead."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens(*logits.shape)[:, 1:].flatten())


def regress(outputs: Tensor) -> Tensor:
    """Mean squared error against a fixed normal target."""
    generator = torch.Generator().manual_seed(2)
    return F.mse_loss(outputs, torch.randn(outputs.shape, generator=generator))


# Networks of fully connected layers.


@_case(classify)
def mlp() -> Built:
    layers = nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 13), nn.ReLU(), nn.Linear(13, 3)
    return nn.Sequential(*layers), (torch.randn(5, 7),)


@_case(regress)
def mlp_tanh_deep() -> Built:
    sizes = [6, 10, 11, 12, 13, 14, 4]
    layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.Tanh())]
    return nn.Sequential(*layers[:-1]), (torch.randn(5, 6),)


@_case(classify)
def mlp_batch_norm() -> Built:
    hidden = nn.Linear(7, 11, bias=False), nn.BatchNorm1d(11), nn.ReLU()
    more = nn.Linear(11, 13), nn.BatchNorm1d(13), nn.LeakyReLU(0.1)
    return nn.Sequential(*hidden, *more, nn.Linear(13, 3)), (torch.randn(6, 7),)


class SquaredReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@_case(classify)
def mlp_squared_relu() -> Built:
    layers = nn.Linear(7, 11), SquaredReLU(), nn.Linear(11, 13), SquaredReLU(), nn.Linear(13, 3)
    return nn.Sequential(*layers), (torch.randn(5, 7),)


@_case(classify)
def mlp_weight_norm() -> Built:
    layers = weight_norm(nn.Linear(7, 11)), nn.ReLU(), weight_norm(nn.Linear(11, 13)), nn.Tanh()
    return nn.Sequential(*layers, nn.Linear(13, 3)), (torch.randn(5, 7),)


@_case(classify)
def mlp_frozen() -> Built:
    first = nn.Linear(7, 11).requires_grad_(False)
    second = nn.Linear(11, 13)
    second.bias.requires_grad_(False)
    layers = first, nn.ReLU(), second, nn.ReLU(), nn.Linear(13, 3)
    return nn.Sequential(*layers), (torch.randn(5, 7),)


@_case(classify)
def mlp_prelu() -> Built:
    layers = nn.Linear(7, 11), nn.PReLU(11), nn.Linear(11, 13), nn.PReLU(), nn.Linear(13, 3)
    return nn.Sequential(*layers), (torch.randn(5, 7),)


@_case(classify)
def mlp_rms_norm() -> Built:
    layers = nn.Linear(7, 11), nn.RMSNorm(11, eps=1e-6), nn.GELU(), nn.Linear(11, 13), nn.SiLU()
    return nn.Sequential(*layers, nn.RMSNorm(13), nn.Linear(13, 3)), (torch.randn(5, 7),)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30.0 * x)


@_case(regress)
def siren() -> Built:
    layers = [nn.Linear(2, 11), Sine(), nn.Linear(11, 13), Sine(), nn.Linear(13, 3)]
    for layer in (layers[2], layers[4]):
        bound = math.sqrt(6 / layer.in_features) / 30
        nn.init.uniform_(layer.weight, -bound, bound)
    return nn.Sequential(*layers), (torch.rand(17, 2) * 2 - 1,)


class GatedMLP(nn.Module):
    """A SwiGLU block with separate gate and value, and a GLU that halves one layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(7, 11, bias=False), nn.Linear(7, 11, bias=False)
        self.down, self.both, self.head = nn.Linear(11, 9), nn.Linear(9, 26), nn.Linear(13, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.silu(self.gate(x)) * self.value(x))
        return self.head(F.glu(self.both(x), dim=-1))


@_case(classify)
def mlp_gated() -> Built:
    return GatedMLP(), (torch.randn(5, 7),)


class BilinearNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(7, 9), nn.Linear(6, 10)
        self.join, self.head = nn.Bilinear(9, 10, 11), nn.Linear(11, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(F.relu(self.join(F.relu(self.left(x)), F.relu(self.right(y)))))


@_case(classify)
def bilinear() -> Built:
    return BilinearNet(), (torch.randn(5, 7), torch.randn(5, 6))


class ScaledResidual(nn.Module):
    """A residual block whose branch is scaled by one parameter per channel."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, hidden)
        self.down, self.gamma = nn.Linear(hidden, width), nn.Parameter(torch.rand(width) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.down(F.gelu(self.up(self.norm(x))))


@_case(classify)
def mlp_layer_scale() -> Built:
    blocks = ScaledResidual(11, 15), ScaledResidual(11, 17)
    return nn.Sequential(nn.Linear(7, 11), *blocks, nn.Linear(11, 3)), (torch.randn(5, 7),)


class TiedAutoencoder(nn.Module):
    """The decoder is the transpose of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(9, 12), nn.Linear(12, 5)
        self.hidden_bias, self.out_bias = (
            nn.Parameter(torch.randn(12)),
            nn.Parameter(torch.randn(9)),
        )

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.second(torch.tanh(self.first(x))))
        hidden = torch.tanh(F.linear(code, self.second.weight.t(), self.hidden_bias))
        return F.linear(hidden, self.first.weight.t(), self.out_bias)


@_case(regress)
def autoencoder_tied() -> Built:
    return TiedAutoencoder(), (torch.randn(6, 9),)


class DeepSets(nn.Module):
    """Sums an encoding over the elements of each set."""

    def __init__(self) -> None:
        super().__init__()
        self.element = nn.Sequential(nn.Linear(4, 11), nn.ReLU(), nn.Linear(11, 12))
        self.whole = nn.Sequential(nn.Linear(12, 13), nn.ReLU(), nn.Linear(13, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(self.element(x).sum(dim=1))


@_case(classify)
def deep_sets() -> Built:
    return DeepSets(), (torch.randn(5, 7, 4),)


class SoftExperts(nn.Module):
    """Experts stacked in one parameter each layer, mixed by a softmax gate."""

    def __init__(self, experts: int = 2) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(7, 9), nn.Linear(9, experts)
        self.up = nn.Parameter(torch.randn(experts, 9, 11) / 3)
        self.bias = nn.Parameter(torch.randn(experts, 11) / 3)
        self.down = nn.Parameter(torch.randn(experts, 11, 8) / 3)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        hidden = F.relu(torch.einsum("bi,eih->beh", x, self.up) + self.bias)
        out = torch.einsum("beh,eho->beo", hidden, self.down)
        return self.head(torch.einsum("be,beo->bo", self.gate(x).softmax(-1), out))


@_case(classify)
def experts_soft() -> Built:
    return SoftExperts(), (torch.randn(5, 7),)


# Convolutional networks.


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return [conv, nn.BatchNorm2d(outputs)]


def _pooled(classes_from: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(classes_from, 5)]


@_case(classify)
def vgg_bn() -> Built:
    first = *_conv_bn(3, 6), nn.ReLU(inplace=True), nn.MaxPool2d(2)
    second = *_conv_bn(6, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()
    head = nn.Linear(8 * 3 * 2, 14), nn.ReLU(inplace=True), nn.Linear(14, 5)
    return nn.Sequential(*first, *second, *head), (torch.randn(4, 3, 12, 8),)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv_bn(inputs, outputs, stride=stride))
        self.conv2 = nn.Sequential(*_conv_bn(outputs, outputs))
        same = inputs == outputs and stride == 1
        self.short = (
            nn.Identity() if same else nn.Sequential(*_conv_bn(inputs, outputs, 1, stride=stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.short(x))


@_case(classify)
def resnet() -> Built:
    stem = *_conv_bn(3, 6), nn.ReLU()
    blocks = BasicBlock(6, 6, 1), BasicBlock(6, 8, 2), BasicBlock(8, 8, 1)
    return nn.Sequential(*stem, *blocks, *_pooled(8)), (torch.randn(4, 3, 12, 10),)


class PreActivationBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(2, inputs), nn.GroupNorm(4, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        x = x if self.short is None else self.short(h)
        return x + self.conv2(F.relu(self.norm2(self.conv1(h))))


@_case(classify)
def resnet_preactivation() -> Built:
    blocks = PreActivationBlock(8, 8, 1), PreActivationBlock(8, 12, 2)
    layers = nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.GroupNorm(4, 12), nn.ReLU(), *_pooled(12)
    return nn.Sequential(*layers), (torch.randn(4, 3, 11, 10),)


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], dim=1)


@_case(classify)
def densenet() -> Built:
    dense = DenseLayer(6, 4), DenseLayer(10, 4)
    transition = nn.BatchNorm2d(14), nn.ReLU(), nn.Conv2d(14, 7, 1, bias=False), nn.AvgPool2d(2)
    layers = nn.Conv2d(3, 6, 3, padding=1), *dense, *transition, DenseLayer(7, 4)
    return nn.Sequential(*layers, nn.ReLU(), *_pooled(11)), (torch.randn(4, 3, 12, 10),)


class UNet(nn.Module):
    """Two levels with a skip; up by a transposed convolution, or by resizing."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(6, 11, 3, padding=1), nn.BatchNorm2d(11), nn.ReLU())
        upsampling = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(11, 7, 1)
        self.up = nn.ConvTranspose2d(11, 7, 2, 2) if transposed else nn.Sequential(*upsampling)
        self.join, self.head = nn.Conv2d(6 + 7, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        low = self.down2(F.max_pool2d(skip, 2))
        return self.head(F.relu(self.join(torch.cat([skip, self.up(low)], dim=1))))


@_case(classify)
def unet_transposed() -> Built:
    return UNet(True), (torch.randn(4, 3, 12, 10),)


@_case(classify)
def unet_upsample() -> Built:
    return UNet(False), (torch.randn(4, 3, 12, 10),)


@_case(classify)
def mobilenet() -> Built:
    layers = [*_conv_bn(3, 6, stride=2), nn.ReLU6()]
    for inputs, outputs in ((6, 8), (8, 10)):
        layers += [*_conv_bn(inputs, inputs, groups=inputs), nn.ReLU6()]
        layers += [*_conv_bn(inputs, outputs, 1), nn.ReLU6()]
    return nn.Sequential(*layers, *_pooled(10)), (torch.randn(4, 3, 12, 14),)


class ShuffleBlock(nn.Module):
    """Grouped convolutions with the channels of the groups interleaved between them."""

    def __init__(self, channels: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.first = nn.Sequential(*_conv_bn(channels, hidden, 1, groups=groups))
        self.depthwise = nn.Sequential(*_conv_bn(hidden, hidden, groups=hidden))
        self.last = nn.Sequential(*_conv_bn(hidden, channels, 1, groups=groups))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        n, c, *size = h.shape
        h = h.view(n, self.groups, c // self.groups, *size).transpose(1, 2).reshape(n, c, *size)
        return F.relu(x + self.last(self.depthwise(h)))


@_case(classify)
def shufflenet() -> Built:
    blocks = ShuffleBlock(6, 8, 2), nn.Conv2d(6, 9, 3), nn.ReLU(), ShuffleBlock(9, 18, 3)
    return nn.Sequential(nn.Conv2d(3, 6, 3), *blocks, *_pooled(9)), (torch.randn(4, 3, 13, 11),)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*_conv_bn(channels, channels))
        self.squeeze, self.excite = nn.Linear(channels, reduced), nn.Linear(reduced, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]


@_case(classify)
def squeeze_excite() -> Built:
    blocks = SqueezeExcite(8, 6), nn.Hardswish(), SqueezeExcite(8, 7)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, *_pooled(8)), (torch.randn(4, 3, 13, 11),)


@_case(regress)
def autoencoder_conv() -> Built:
    down = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU()
    up = (
        nn.ConvTranspose2d(8, 7, 4, 2, 1),
        nn.ELU(),
        nn.ConvTranspose2d(7, 3, 4, 2, 1),
        nn.Sigmoid(),
    )
    return nn.Sequential(*down, *up), (torch.randn(4, 3, 16, 20),)


@_case(classify)
def conv1d_instance_norm() -> Built:
    first = nn.Conv1d(3, 6, 5), nn.InstanceNorm1d(6, affine=True), nn.Softplus()
    second = nn.Conv1d(6, 8, 3, dilation=2), nn.InstanceNorm1d(8), nn.Mish()
    head = nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 5)
    return nn.Sequential(*first, *second, *head), (torch.randn(4, 3, 20),)


@_case(classify)
def conv3d() -> Built:
    layers = nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(6, 8, 2)
    head = nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers, *head), (torch.randn(4, 2, 8, 9, 10),)


# Networks of sequences.


class BagOfWords(nn.Module):
    """The mean embedding of the words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(23, 9), nn.Linear(9, 11), nn.Linear(11, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.embed(words).mean(dim=1))))


@_case(classify)
def bag_of_words() -> Built:
    return BagOfWords(), (tokens(5, 7, 23),)


class Recurrent(nn.Module):
    """An embedding, a recurrent network and a head, on every step or on the mean over steps."""

    def __init__(self, cell: type[nn.RNNBase], outputs: int, pool: bool, **options: Any) -> None:
        super().__init__()
        self.embed, self.pool = nn.Embedding(23, 9), pool
        self.cell = cell(9, 11, batch_first=True, **options)
        self.head = nn.Linear(22 if self.cell.bidirectional else 11, outputs)

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.cell(self.embed(words))
        return self.head(states.mean(dim=1) if self.pool else states)


@_case(next_token)
def gru_language_model() -> Built:
    return Recurrent(nn.GRU, 23, pool=False, num_layers=2), (tokens(5, 7, 23),)


@_case(classify)
def lstm_classifier() -> Built:
    return Recurrent(nn.LSTM, 3, pool=True, bidirectional=True), (tokens(5, 7, 23),)


class EncoderClassifier(nn.Module):
    """nn.TransformerEncoder over learned positions, and the mean of its outputs."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(23, 12), nn.Parameter(torch.randn(7, 12) / 2)
        layer = nn.TransformerEncoderLayer(
            12, 4, 17, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        for p in self.encoder.parameters():
            if p.dim() > 1:  # the layers are copies of one
                nn.init.xavier_uniform_(p)
        self.head = nn.Linear(12, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(words) + self.positions).mean(dim=1))


@_case(classify)
def transformer_post_norm() -> Built:
    return EncoderClassifier(norm_first=False), (tokens(5, 7, 23),)


@_case(classify)
def transformer_pre_norm() -> Built:
    return EncoderClassifier(norm_first=True), (tokens(5, 7, 23),)


class CausalBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(self.norm1(x)).split(width, dim=-1)
        q, k, v = (part.view(n, length, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class NanoGPT(nn.Module):
    """A causal transformer with one fused query, key and value layer, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(23, 12), nn.Embedding(9, 12)
        self.blocks = nn.Sequential(CausalBlock(12, 4, 19), CausalBlock(12, 3, 20))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 23, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words) + self.positions(torch.arange(words.shape[1]))
        return self.head(self.norm(self.blocks(x)))


@_case(next_token)
def nano_gpt() -> Built:
    return NanoGPT(), (tokens(5, 7, 23),)


class MixerBlock(nn.Module):
    """One perceptron over the patches, one over the channels."""

    def __init__(self, patches: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.across = nn.Sequential(nn.Linear(patches, 11), nn.GELU(), nn.Linear(11, patches))
        self.within = nn.Sequential(nn.Linear(channels, 13), nn.GELU(), nn.Linear(13, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(MixerBlock(6, 8), MixerBlock(6, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


@_case(classify)
def mixer() -> Built:
    return Mixer(), (torch.randn(4, 3, 12, 8),)


# Architectures of transformers, built from configurations alone.


class Wrapped(nn.Module):
    """Calls a transformers model with positional inputs and returns one of its outputs."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.model(**dict(zip(self.names, inputs, strict=True))), self.output)


def _model(architecture: str, settings: dict[str, Any]) -> nn.Module:
    import transformers  # slow to import, and needed for these cases only

    model_class = getattr(transformers, architecture)
    return model_class(model_class.config_class(**settings))


def _text(
    name: str,
    architecture: str,
    loss: Callable[[Any], Tensor] = next_token,
    decoder: bool = False,
    output: str = "logits",
    **settings: Any,
) -> None:
    """A case on 41 tokens; an encoder-decoder also takes what it has decoded so far."""

    def build() -> Built:
        model = _model(architecture, {"vocab_size": 41, **settings})
        if decoder:
            names, inputs = ("input_ids", "decoder_input_ids"), (tokens(5, 8, 41), tokens(5, 7, 41))
        else:
            names, inputs = ("input_ids",), (tokens(5, 7, 41),)
        return Wrapped(model, names, output), inputs

    _add(name, loss, build)


def _image(
    name: str,
    architecture: str,
    loss: Callable[[Any], Tensor] = classify,
    output: str = "logits",
    size: int = 16,
    **settings: Any,
) -> None:
    """A case on square images, with five classes."""

    def build() -> Built:
        model = _model(architecture, {"num_labels": 5, **settings})
        return Wrapped(model, ("pixel_values",), output), (torch.randn(4, 3, size, size),)

    _add(name, loss, build)


# The usual names of the sizes. The default scale of initialisation, 0.02, is meant for wide layers
# and would leave networks as narrow as these nearly constant.
SCALE = {"initializer_range": 0.2}
SIZES = SCALE | {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = SIZES | {"intermediate_size": 36, "use_cache": False, "max_position_embeddings": 16}
GROUPED = DECODER | {"num_key_value_heads": 2}
DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = SIZES | DRY | {"intermediate_size": 36, "max_position_embeddings": 16}
CLASSES = {"num_labels": 3}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}  # the defaults are beyond this vocabulary
GPT = SCALE | SPECIAL | {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_inner": 36, "n_positions": 16}
GPT |= {"use_cache": False, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SEQ2SEQ = {"d_model": 24, "use_cache": False}

_text("gpt2", "GPT2LMHeadModel", **GPT)
_text("gptj", "GPTJForCausalLM", **GPT, rotary_dim=4)
_text("gpt_bigcode", "GPTBigCodeForCausalLM", **GPT, multi_query=True)
_text("codegen", "CodeGenForCausalLM", **GPT, rotary_dim=4)
_text("gpt_neox", "GPTNeoXForCausalLM", **DECODER | {"hidden_size": 32})
_text("llama", "LlamaForCausalLM", **GROUPED)
_text("qwen3", "Qwen3ForCausalLM", **GROUPED, head_dim=10)
_text("gemma", "GemmaForCausalLM", **GROUPED, head_dim=10)
_text("gemma2", "Gemma2ForCausalLM", **GROUPED, head_dim=10, sliding_window=4)
_text("olmo2", "Olmo2ForCausalLM", **GROUPED, **SPECIAL)
_text("cohere", "CohereForCausalLM", **GROUPED, **SPECIAL)
_text("nemotron", "NemotronForCausalLM", **GROUPED | {"hidden_size": 32}, **SPECIAL)
_text("phi", "PhiForCausalLM", **DECODER | {"hidden_size": 32})
_text("phi3", "Phi3ForCausalLM", **GROUPED, **SPECIAL, pad_token_id=0)

# Of the implementations of experts, "eager" loops over those that tokens chose, which no export
# can follow; "batched_mm" gathers their weights; "grouped_mm" refuses float64, in which claims are
# verified.
EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "batched_mm"}
MIXTRAL = GROUPED | EXPERTS | {"num_local_experts": 3}

_text("mixtral", "MixtralForCausalLM", **MIXTRAL)
_text(
    "gpt_oss",
    "GptOssForCausalLM",
    **GROUPED,
    **SPECIAL,
    pad_token_id=0,
    head_dim=10,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    num_local_experts=3,
    **EXPERTS,
)
_text(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    **DECODER,
    moe_intermediate_size=12,
    n_routed_experts=4,
    **EXPERTS,
    n_group=2,
    topk_group=1,
    kv_lora_rank=9,
    q_lora_rank=11,
    qk_rope_head_dim=4,
    qk_nope_head_dim=5,
    v_head_dim=7,
    first_k_dense_replace=1,
)
_text(
    "opt",
    "OPTForCausalLM",
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    ffn_dim=36,
    max_position_embeddings=16,
    word_embed_proj_dim=20,
    init_std=0.2,
    dropout=0.0,
    use_cache=False,
)
_text("bloom", "BloomForCausalLM", **SCALE, hidden_size=24, n_layer=2, n_head=4, use_cache=False)
_text(
    "mpt",
    "MptForCausalLM",
    **SCALE,
    d_model=24,
    n_layers=2,
    n_heads=4,
    expansion_ratio=2,
    max_seq_len=16,
    use_cache=False,
)
_text("falcon", "FalconForCausalLM", **SIZES, use_cache=False)
_text(
    "mamba",
    "MambaForCausalLM",
    **SCALE,
    hidden_size=12,
    num_hidden_layers=2,
    state_size=5,
    use_cache=False,
)
_text(
    "rwkv",
    "RwkvForCausalLM",
    hidden_size=12,
    num_hidden_layers=2,
    attention_hidden_size=12,
    intermediate_size=20,
    use_cache=False,
)
_text("bert_classifier", "BertForSequenceClassification", classify, **BERT, **CLASSES)
_text("bert_masked", "BertForMaskedLM", **BERT)
_text("electra", "ElectraForSequenceClassification", classify, **BERT, **CLASSES, embedding_size=10)
_text(
    "albert",
    "AlbertForSequenceClassification",
    classify,
    **BERT,
    **CLASSES,
    embedding_size=10,
    classifier_dropout_prob=0.0,
)
_text(
    "roformer", "RoFormerForSequenceClassification", classify, **BERT, **CLASSES, embedding_size=10
)
_text(
    "deberta_v2",
    "DebertaV2ForSequenceClassification",
    classify,
    **BERT,
    **CLASSES,
    relative_attention=True,
    pos_att_type=["p2c", "c2p"],
)
_text("fnet", "FNetForSequenceClassification", classify, **BERT, **CLASSES)
_text(
    "modernbert",
    "ModernBertForMaskedLM",
    **DECODER,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
)
_text(
    "xlnet",
    "XLNetForSequenceClassification",
    classify,
    **SCALE,
    **CLASSES,
    d_model=24,
    n_layer=2,
    n_head=4,
    d_inner=36,
    dropout=0.0,
    summary_last_dropout=0.0,
)
_text(
    "distilbert",
    "DistilBertForSequenceClassification",
    classify,
    **SCALE,
    **CLASSES,
    dim=24,
    n_layers=2,
    n_heads=4,
    hidden_dim=36,
    max_position_embeddings=16,
    dropout=0.0,
    attention_dropout=0.0,
    seq_classif_dropout=0.0,
)
_text(
    "t5",
    "T5ForConditionalGeneration",
    decoder=True,
    **SEQ2SEQ,
    d_kv=5,
    d_ff=36,
    num_layers=2,
    num_heads=4,
    dropout_rate=0.0,
)
_text(
    "t5_gated",
    "T5ForConditionalGeneration",
    decoder=True,
    **SEQ2SEQ,
    d_kv=5,
    d_ff=36,
    num_layers=1,
    num_heads=4,
    dropout_rate=0.0,
    feed_forward_proj="gated-gelu",
)
_text(
    "bart",
    "BartForConditionalGeneration",
    decoder=True,
    **SEQ2SEQ,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=4,
    decoder_attention_heads=3,
    encoder_ffn_dim=36,
    decoder_ffn_dim=40,
    max_position_embeddings=16,
    init_std=0.2,
    dropout=0.0,
)

PATCHES = {"image_size": 16, "patch_size": 4}
VIT = SIZES | DRY | PATCHES | {"intermediate_size": 36}
STAGES = {"hidden_sizes": [8, 12], "depths": [1, 2]}
CONVNEXT = SCALE | STAGES | {"num_stages": 2, "patch_size": 2}
PYRAMID = SCALE | {
    "num_encoder_blocks": 2,
    "hidden_sizes": [8, 12],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "drop_path_rate": 0.0,
}
TOWER = PATCHES | {
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

_image("vit", "ViTForImageClassification", **VIT)
_image(
    "dinov2",
    "Dinov2ForImageClassification",
    **SIZES,
    **DRY,
    **PATCHES,
    mlp_ratio=2,
    layerscale_value=0.5,
)
_image(
    "beit",
    "BeitForImageClassification",
    **VIT,
    layer_scale_init_value=0.5,
    drop_path_rate=0.0,
    use_relative_position_bias=True,
)
_image(
    "clip_vision",
    "CLIPVisionModel",
    regress,
    output="pooler_output",
    **TOWER,
    initializer_factor=3.0,
)
_image("siglip_vision", "SiglipVisionModel", regress, output="pooler_output", **TOWER)
_image(
    "resnet_bottleneck",
    "ResNetForImageClassification",
    **STAGES,
    embedding_size=6,
    layer_type="bottleneck",
)
_image(
    "bit",
    "BitForImageClassification",
    hidden_sizes=[8, 16],
    depths=[1, 2],
    embedding_size=8,
    num_groups=2,
    layer_type="preactivation",
)
_image(
    "regnet",
    "RegNetForImageClassification",
    embedding_size=6,
    hidden_sizes=[12, 20],
    depths=[1, 2],
    groups_width=4,
)
_image("convnext", "ConvNextForImageClassification", **CONVNEXT, layer_scale_init_value=0.5)
_image("convnext_v2", "ConvNextV2ForImageClassification", **CONVNEXT)
_image(
    "mobilenet_v2",
    "MobileNetV2ForImageClassification",
    size=32,
    depth_multiplier=0.1,
    classifier_dropout_prob=0.0,
)
_image(
    "efficientnet",
    "EfficientNetForImageClassification",
    size=32,
    **SCALE,
    width_coefficient=0.1,
    depth_coefficient=0.5,
    image_size=32,
    hidden_dim=128,
    dropout_rate=0.0,
    drop_connect_rate=0.0,
    in_channels=[32, 80, 120],
    out_channels=[80, 120, 160],
    kernel_sizes=[3, 3, 5],
    strides=[1, 2, 2],
    num_block_repeats=[1, 2, 1],
    expand_ratios=[1, 4, 4],
)
_image(
    "swin",
    "SwinForImageClassification",
    **SCALE,
    **DRY,
    image_size=16,
    patch_size=2,
    embed_dim=8,
    depths=[1, 2],
    num_heads=[2, 4],
    window_size=4,
    drop_path_rate=0.0,
)
_image(
    "segformer",
    "SegformerForImageClassification",
    size=32,
    **PYRAMID,
    **DRY,
    depths=[1, 1],
    sr_ratios=[2, 1],
    num_attention_heads=[1, 2],
    mlp_ratios=[2, 2],
    classifier_dropout_prob=0.0,
)
_image(
    "poolformer",
    "PoolFormerForImageClassification",
    size=32,
    **PYRAMID,
    depths=[1, 2],
    padding=[2, 1],
    mlp_ratio=2.0,
    layer_scale_init_value=0.5,
)
_image(
    "levit",
    "LevitForImageClassification",
    size=64,
    image_size=64,
    hidden_sizes=[16, 24, 32],
    num_attention_heads=[2, 3, 4],
    depths=[1, 1, 1],
    key_dim=[4, 4, 4],
    drop_path_rate=0,
)

SPEECH = {"d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 36}
SPEECH |= {"decoder_layers": 1, "decoder_attention_heads": 4, "vocab_size": 41, "num_mel_bins": 9}
SPEECH |= SPECIAL | {"pad_token_id": 0, "decoder_start_token_id": 1, "init_std": 0.2}


@_case(regress)
def whisper_encoder() -> Built:
    settings = SPEECH | {"max_source_positions": 10, "dropout": 0.0}
    encoder = _model("WhisperModel", settings).get_encoder()
    return Wrapped(encoder, ("input_features",), "last_hidden_state"), (torch.randn(4, 9, 20),)


@_case(classify)
def wav2vec2() -> Built:
    settings = BERT | CLASSES | {"conv_dim": [6, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2]}
    settings |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "layerdrop": 0.0}
    settings |= {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 14}
    settings |= {"activation_dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0}
    settings |= {"feat_proj_dropout": 0.0, "apply_spec_augment": False}
    model = _model("Wav2Vec2ForSequenceClassification", settings)
    return Wrapped(model, ("input_values",), "logits"), (torch.randn(4, 90),)
