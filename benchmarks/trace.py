"""Cost of tracing models of usual sizes: CPU seconds, and memory apart from that of their data.

Each model runs in a process of its own, on one thread, behind a tiny one that pays for imports.
Parameters and inputs are on the meta device: they have shapes and no data. One row has the same
model with data, for comparison.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import peak_bytes, report
from torch import Tensor, nn

from scalegmn_opt.graph import TraceWarning, WeightGraph, trace

Built = tuple[nn.Module, tuple[Tensor, ...]]


def perceptron(layers: int = 100, width: int = 1024) -> Built:
    """ReLU layers of one width."""
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts[:-1]), (torch.zeros(8, width),)


class Wrapped(nn.Module):
    """A transformers model that is called with one input, and returns logits."""

    def __init__(self, architecture: str, name: str, **settings: Any) -> None:
        super().__init__()
        import transformers

        model_class = getattr(transformers, architecture)
        self.model, self.name = model_class(model_class.config_class(**settings)), name

    def forward(self, x: Tensor) -> Tensor:
        """The logits of ``x``."""
        return self.model(**{self.name: x}).logits


def resnet50() -> Built:
    """ResNet-50, 1000 classes, on 224 x 224 pixels."""
    model = Wrapped("ResNetForImageClassification", "pixel_values", num_labels=1000)
    return model, (torch.zeros(2, 3, 224, 224),)


def gpt2() -> Built:
    """GPT-2 small: 12 layers of width 768, on 128 tokens."""
    model = Wrapped("GPT2LMHeadModel", "input_ids", use_cache=False)
    return model, (torch.zeros(1, 128, dtype=torch.long),)


def llama() -> Built:
    """The sizes of Llama 3.2 1B: 16 layers of width 2048, on 128 tokens."""
    model = Wrapped(
        "LlamaForCausalLM",
        "input_ids",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return model, (torch.zeros(1, 128, dtype=torch.long),)


@dataclass
class Watch:
    """CPU seconds in a function, summed over its calls."""

    function: Callable[..., Any]
    seconds: float = 0.0

    def __call__(self, *args: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return self.function(*args, **options)
        finally:
            self.seconds += time.process_time() - began


def forget_peak() -> None:
    """Let :func:`peak_bytes` start anew from what is in use now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def permutable(graph: WeightGraph) -> int:
    """Neurons that may be reordered: none, had the trace given up."""
    return sum(group.size for group in graph.groups if group.symmetry.permutes)


def timed(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[WeightGraph, float, float]:
    """The graph, the CPU seconds of its trace, and those of the export in it."""
    export = Watch(torch.export.export)
    whole = Watch(trace)
    with patch("torch.export.export", export), warnings.catch_warnings():
        warnings.simplefilter("error", TraceWarning)  # nothing is left out
        graph = whole(module, inputs)
    return graph, whole.seconds, export.seconds


def measure(name: str, device: str) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, first, _ = timed(nn.Linear(2, 2), (torch.zeros(1, 2),))
    with torch.device(device):
        module, inputs = MODELS[name]()
    forget_peak()
    baseline = peak_bytes()
    graph, seconds, exporting = timed(module, inputs)
    parameters = list(module.parameters())
    return {
        "model": name,
        "device": device,
        "M parameters": sum(p.numel() for p in parameters) / 1e6,
        "their MB": sum(p.numel() * p.element_size() for p in parameters) / 1e6,
        "groups": len(graph.groups),
        "blocks": len(graph.blocks),
        "permutable": permutable(graph),
        "trace CPU s": seconds,
        "export": exporting,
        "rest": seconds - exporting,
        "peak extra MB": (peak_bytes() - baseline) / 1e6,
        "first trace": first,
    }


MODELS: dict[str, Callable[[], Built]] = {
    "MLP, 100 layers": perceptron,
    "ResNet-50": resnet50,
    "GPT-2 small": gpt2,
    "Llama, 1 B": llama,
}

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    rows = []
    for case in [*((name, "meta") for name in MODELS), ("GPT-2 small", "cpu")]:
        with context.Pool(1) as pool:
            rows.append(pool.apply(measure, case))
    report("trace", rows)
