"""Learned editors: symmetry, strengths, chunks and files."""

import pytest
import torch
from torch import nn

from scalegmn_opt import UpdateRule, random_transform
from scalegmn_opt.editors import LearnedEdit, LearnedEditor, dilation
from scalegmn_opt.editors.targets import dilate
from scalegmn_opt.inr import SirenSpec, initial_parameters, siren_graph

SPEC = SirenSpec(hidden=(7, 5))
SIZE = {"probes": 4, "node_channels": 6, "edge_channels": 4, "hidden_channels": 8, "num_layers": 2}


def params(count=3, spec=SPEC, dtype=torch.float32):
    drawn = initial_parameters(spec, count, torch.Generator().manual_seed(0))
    return {name: value.to(dtype) for name, value in drawn.items()}


def editor(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LearnedEditor(**SIZE)
        with torch.no_grad():
            for p in made.parameters():
                p += 0.3 * torch.randn(p.shape)
    return made


@pytest.fixture
def weights(tmp_path):
    editor().save_pretrained(tmp_path / "editor.safetensors")
    return tmp_path / "editor.safetensors"


def edit(weights):
    return LearnedEdit("dilate", "share", weights=weights, target=dilate)


def difference(one, other):
    scale = max(float(value.abs().max()) for value in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in other) / scale


def asymmetry(function, seed):
    """Largest relative difference between f(g·θ) and g·f(θ)."""
    transform = random_transform(siren_graph(SPEC), torch.Generator().manual_seed(seed))
    start = params(dtype=torch.float64)
    return difference(function(transform.apply(start)), transform.apply(function(start)))


@pytest.mark.parametrize("seed", range(4))
def test_permutations_and_signs_pass_through(seed):
    double, strength = editor().double(), torch.full((3,), 0.7, dtype=torch.float64)
    with torch.no_grad():
        assert asymmetry(lambda p: double(p, SPEC, strength), seed) <= 1e-9


def test_an_editor_that_adds_to_hidden_neurons_does_not():
    class Biased(nn.Module):
        def forward(self, start):
            return {name: value + 0.1 * value.abs() for name, value in start.items()}

    assert asymmetry(Biased(), 0) > 1e-3


def test_every_tensor_changes_and_reads_the_strength():
    strengths = torch.tensor([0.5, 1.0, 1.0])
    with torch.no_grad():
        edited = editor()(params(), SPEC, strengths)
        half = editor()(params(), SPEC, strengths / 2)
    start = params()
    for name, value in edited.items():
        assert not torch.allclose(value, start[name])
        linear = start[name] + (value - start[name]) / 2
        assert not torch.allclose(half[name], linear)


def test_no_strength_is_no_change_exactly(weights):
    start = params()
    edited = edit(weights).apply(start, SPEC, 0.0)
    assert all(torch.equal(edited[name], start[name]) for name in start)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), float("inf")])
def test_strengths_outside_the_trained_range(weights, strength):
    with pytest.raises(ValueError, match="strength of dilate"):
        edit(weights).apply(params(), SPEC, strength)


def test_chunks_give_the_same(weights, monkeypatch):
    start = params(count=7)
    whole = edit(weights).apply(start, SPEC, 0.8)
    monkeypatch.setattr("scalegmn_opt.editors.learned._CHUNK", 3)
    pieces = edit(weights).apply(start, SPEC, 0.8)
    assert difference(pieces, whole) < 1e-5


def test_inputs_are_not_modified_and_the_dtype_follows(weights):
    for dtype in (torch.float64, torch.float32):
        start = params(dtype=dtype)
        kept = {name: value.clone() for name, value in start.items()}
        edited = edit(weights).apply(start, SPEC, 1.0)
        assert list(edited) == list(start)
        assert all(torch.equal(start[name], kept[name]) for name in start)
        assert all(value.dtype == dtype and not value.requires_grad for value in edited.values())


def test_other_architectures(weights):
    spec = SirenSpec(hidden=(4, 9, 3), out_features=3)
    edited = edit(weights).apply(params(spec=spec), spec, 1.0)
    assert {name: tuple(v.shape[1:]) for name, v in edited.items()} == spec.parameter_shapes
    with pytest.raises(ValueError, match="params must"):
        edit(weights).apply(params(), spec, 1.0)


def test_a_zero_tensor_is_read_and_changed_by_finite_numbers(weights):
    start = params()
    start["layers.1.bias"] = torch.zeros_like(start["layers.1.bias"])
    edited = edit(weights).apply(start, SPEC, 1.0)
    assert all(value.isfinite().all() for value in edited.values())


def test_files(weights, tmp_path):
    loaded = LearnedEditor.from_pretrained(weights)
    assert loaded.config == SIZE
    assert not any(p.requires_grad for p in loaded.parameters())
    strength = torch.ones(3)
    with torch.no_grad():
        expected = editor()(params(), SPEC, strength)
    assert difference(loaded(params(), SPEC, strength), expected) == 0.0
    UpdateRule(channels=4, message_channels=2, hidden_channels=4).save_pretrained(tmp_path / "r")
    with pytest.raises(ValueError, match="'editor'"):
        LearnedEditor.from_pretrained(tmp_path / "r")
    with pytest.raises(FileNotFoundError, match="no weights 'nothing'"):
        edit("nothing").apply(params(), SPEC, 1.0)


def test_dilation_loads_its_weights_late():
    made = dilation()
    assert made.mechanism == "learned"
    images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.target(images, 1.0), dilate(images, 1.0))
    assert "editor" not in vars(made)
