"""Learned editors: symmetry, strengths, copies, chunks and files."""

import pytest
import torch
from torch import nn

from scalegmn_opt import UpdateRule, random_transform
from scalegmn_opt.editors import LearnedEdit, LearnedEditor, learned_edits
from scalegmn_opt.editors.edit import widened
from scalegmn_opt.editors.learned import MEANINGS
from scalegmn_opt.editors.targets import dilate
from scalegmn_opt.inr import SirenSpec, evaluate, initial_parameters, siren_graph

SPEC = SirenSpec(hidden=(7, 5))
EDITS = {"dilate": 1.0, "blur": 2.0}
SIZE = {
    "edits": EDITS,
    "size": 6,
    "spec": SPEC,
    "rounds": 2,
    "picture_channels": 4,
    "iterations": 2,
    "probes": 3,
    "node_channels": 6,
    "edge_channels": 4,
    "hidden_channels": 8,
    "num_layers": 2,
}


def params(count=3, spec=SPEC, dtype=torch.float32):
    drawn = initial_parameters(spec, count, torch.Generator().manual_seed(0))
    return {name: value.to(dtype) for name, value in drawn.items()}


def editor(seed=0, spec=SPEC):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LearnedEditor(**{**SIZE, "spec": spec})
        with torch.no_grad():
            for p in made.parameters():
                p += 0.1 * torch.randn(p.shape)
    return made


def strengths(value=0.7, dtype=torch.float32):
    return torch.tensor([[value, 0.0], [0.0, value], [value, 0.0]], dtype=dtype)


@pytest.fixture
def weights(tmp_path):
    editor().save_pretrained(tmp_path / "editor.safetensors")
    return tmp_path / "editor.safetensors"


def difference(one, other):
    scale = max(float(value.abs().max()) for value in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in other) / scale


def asymmetry(function, seed):
    """Largest relative difference between f(g·θ) and g·f(θ)."""
    transform = random_transform(siren_graph(SPEC), torch.Generator().manual_seed(seed))
    start = params(dtype=torch.float64)
    return difference(function(transform.apply(start)), transform.apply(function(start)))


@pytest.mark.parametrize("midpoints", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_permutations_and_signs_pass_through(seed, midpoints):
    double, given = editor().double(), strengths(dtype=torch.float64)
    with torch.no_grad():
        assert asymmetry(lambda p: double(p, SPEC, given, midpoints=midpoints), seed) <= 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_both_copies_of_a_pair_follow_the_symmetry(seed):
    """The function stays, and each copy's neurons are permuted and flipped like the original's."""
    double, given = editor().double(), strengths(dtype=torch.float64)
    transform = random_transform(siren_graph(SPEC), torch.Generator().manual_seed(seed))
    start = params(dtype=torch.float64)

    def copy(pair, which):
        half = {
            name: value.unflatten(1, (2, -1))[:, which]
            for name, value in pair.items()
            if name.startswith("layers.0.") or name == "layers.1.bias"
        }
        middle, last = pair["layers.1.weight"], pair["layers.2.weight"]
        rows, columns = (slice(which * n, (which + 1) * n) for n in (5, 7))
        return {
            **half,
            "layers.1.weight": middle[:, rows, columns],
            "layers.2.weight": last[:, :, rows],
            "layers.2.bias": pair["layers.2.bias"],
        }

    with torch.no_grad():
        one = double(start, SPEC, given, copies=2)
        other = double(transform.apply(start), SPEC, given, copies=2)
    wide, coords = widened(SPEC, one), double.coords
    torch.testing.assert_close(
        evaluate(other, wide, coords), evaluate(one, wide, coords), atol=1e-9, rtol=0
    )
    for which in (0, 1):
        moved = transform.apply(copy(one, which))
        assert difference(copy(other, which), moved) <= 1e-9
    assert difference(other, one) > 1e-3  # the transform did something


def test_an_editor_that_adds_to_hidden_neurons_does_not():
    class Biased(nn.Module):
        def forward(self, start):
            return {name: value + 0.1 * value.abs() for name, value in start.items()}

    assert asymmetry(Biased(), 0) > 1e-3


def test_every_tensor_changes_and_reads_edit_and_strength():
    with torch.no_grad():
        edited = editor()(params(), SPEC, strengths(1.0))
        half = editor()(params(), SPEC, strengths(0.5))
        swapped = editor()(params(), SPEC, strengths(1.0).flip(1))
    start = params()
    for name, value in edited.items():
        assert not torch.allclose(value, start[name])
        assert not torch.allclose(value, swapped[name])
        linear = start[name] + (value - start[name]) / 2
        assert not torch.allclose(half[name], linear)


def test_no_strength_is_no_change_exactly(weights):
    start = params()
    edited = LearnedEdit("dilate", weights).apply(start, SPEC, 0.0)
    assert all(torch.equal(edited[name], start[name]) for name in start)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_strengths_that_mean_nothing(weights, strength):
    with pytest.raises(ValueError, match="strength of dilate"):
        LearnedEdit("dilate", weights).apply(params(), SPEC, strength)


def test_strengths_beyond_the_trained_range_are_warned_of(weights):
    with pytest.warns(UserWarning, match=r"strength of dilate: trained up to 1, got 1\.5"):
        edited = LearnedEdit("dilate", weights).apply(params(), SPEC, 1.5)
    assert all(value.isfinite().all() for value in edited.values())
    LearnedEdit("blur", weights).apply(params(), SPEC, 1.5)  # within its own range


@pytest.mark.parametrize("copies", [1, 2, 4, 8])
def test_chunks_give_the_same(weights, monkeypatch, copies):
    start = params(count=7, dtype=torch.float64)
    made = LearnedEdit("blur", weights, copies=copies)
    whole = made.apply(start, SPEC, 0.8)
    monkeypatch.setattr("scalegmn_opt.editors.learned._CHUNK", 3)
    assert difference(made.apply(start, SPEC, 0.8), whole) < 1e-9


@pytest.mark.parametrize("copies", [1, 2, 4, 8])
def test_inputs_are_not_modified_and_the_dtype_follows(weights, copies):
    for dtype in (torch.float64, torch.float32):
        start = params(dtype=dtype)
        kept = {name: value.clone() for name, value in start.items()}
        edited = LearnedEdit("dilate", weights, copies=copies).apply(start, SPEC, 1.0)
        assert list(edited) == list(start)
        assert all(torch.equal(start[name], kept[name]) for name in start)
        assert all(value.dtype == dtype and not value.requires_grad for value in edited.values())
        assert widened(SPEC, edited).hidden == tuple(copies * width for width in SPEC.hidden)


def test_two_copies_come_closer_to_the_imagined_picture():
    start, given, made = params(), strengths(0.3), editor()
    with torch.no_grad():
        targets = made.imagine(start, SPEC, given)
        errors = [evaluate(start, SPEC, made.coords) - targets]
        for copies in (1, 2, 8):
            edited = made(start, SPEC, given, copies=copies)
            errors.append(evaluate(edited, widened(SPEC, edited), made.coords) - targets)
    nothing, one, two, eight = (error.square().mean() for error in errors)
    assert one < nothing
    assert two < 0.5 * one
    torch.testing.assert_close(eight, two, rtol=0.05, atol=0)


def test_eight_copies_bear_rounding_of_the_weights_better_than_two():
    start, given, made = params(), strengths(0.3), editor()
    errors = []
    with torch.no_grad():
        targets = made.imagine(start, SPEC, given)
        for copies in (2, 8):
            edited = made(start, SPEC, given, copies=copies)
            half = {name: value.half().float() for name, value in edited.items()}
            moved = evaluate(half, widened(SPEC, half), made.coords) - targets
            errors.append(moved.square().mean())
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("copies", [1, 2])
def test_midpoints_come_closer_between_the_pixels(copies):
    start, given, made = params(), strengths(0.3), editor()
    pixels, errors = made.coords, {}
    inner = torch.arange(1, 6) / 3 - 1
    corners = torch.stack([inner.repeat(5), inner.repeat_interleave(5)], 1)
    with torch.no_grad():
        imagined = made.imagine(start, SPEC, given)
        pictures = imagined.mT.unflatten(2, (6, 6))
        around = torch.nn.functional.interpolate(pictures, scale_factor=2.0, mode="bicubic")
        for midpoints in (False, True):
            edited = made(start, SPEC, given, copies=copies, midpoints=midpoints)
            wide = widened(SPEC, edited)
            between = evaluate(edited, wide, corners).mT.unflatten(2, (5, 5))
            # A corner lies between four points of the finer grid; bicubic, not quite their mean.
            four = torch.nn.functional.avg_pool2d(around[..., 1:-1, 1:-1], 2)
            on_pixels = (evaluate(edited, wide, pixels) - imagined).square().mean()
            errors[midpoints] = (between - four).square().mean(), on_pixels
    assert errors[True][0] < 0.7 * errors[False][0]
    assert errors[True][1] >= errors[False][1]  # what it costs


def test_only_networks_and_pictures_it_was_trained_for(weights):
    made = LearnedEdit("dilate", weights)
    made.check(SPEC, (6, 6))
    with pytest.raises(ValueError, match=r"image_size must be that .*\(6, 6\), got \(6, 7\)"):
        made.check(SPEC, (6, 7))
    for spec in (SirenSpec(hidden=(7, 6)), SirenSpec(hidden=(7, 5), w0=20.0)):
        with pytest.raises(ValueError, match="spec must be that of an editor for dilate"):
            made.apply(params(spec=spec), spec, 1.0)
    with pytest.raises(ValueError, match="params"):
        made.apply(params(spec=SirenSpec(hidden=(7, 6))), SPEC, 1.0)


def test_networks_choose_the_editor_that_was_trained_for_them(weights, tmp_path):
    spec, other = SirenSpec(hidden=(4, 4)), tmp_path / "other.safetensors"
    editor(seed=1, spec=spec).save_pretrained(other)
    both = LearnedEdit("dilate", weights, other)
    for known, alone in ((SPEC, weights), (spec, other)):
        start = params(spec=known)
        expected = LearnedEdit("dilate", alone).apply(start, known, 1.0)
        assert difference(both.apply(start, known, 1.0), expected) == 0.0


def test_deep_and_coloured_networks():
    spec = SirenSpec(hidden=(4, 9, 3), out_features=3)
    with torch.no_grad():
        edited = editor(spec=spec)(params(spec=spec), spec, strengths())
    assert {name: tuple(v.shape[1:]) for name, v in edited.items()} == spec.parameter_shapes


def test_a_zero_tensor_is_read_and_changed_by_finite_numbers(weights):
    start = params()
    start["layers.1.bias"] = torch.zeros_like(start["layers.1.bias"])
    edited = LearnedEdit("dilate", weights).apply(start, SPEC, 1.0)
    assert all(value.isfinite().all() for value in edited.values())


def test_files(weights, tmp_path):
    loaded = LearnedEditor.from_pretrained(weights)
    assert loaded.config == editor().config
    assert loaded.spec == SPEC
    assert not any(p.requires_grad for p in loaded.parameters())
    with torch.no_grad():
        expected = editor()(params(), SPEC, strengths())
    assert difference(loaded(params(), SPEC, strengths()), expected) < 1e-5
    UpdateRule(channels=4, message_channels=2, hidden_channels=4).save_pretrained(tmp_path / "r")
    with pytest.raises(ValueError, match="'editor'"):
        LearnedEditor.from_pretrained(tmp_path / "r")
    with pytest.raises(FileNotFoundError, match="no weights 'nothing'"):
        LearnedEdit("dilate", "nothing").apply(params(), SPEC, 1.0)
    with pytest.raises(ValueError, match=r"weights must be of an editor that learned erode"):
        LearnedEdit("erode", weights).apply(params(), SPEC, 1.0)


def test_names_and_copies(weights):
    with pytest.raises(ValueError, match="name must be one of"):
        LearnedEdit("sing", weights)
    with pytest.raises(ValueError, match="weights must be at least one"):
        LearnedEdit("dilate")
    with pytest.raises(ValueError, match=r"copies must be one of \(1, 2, 4, 8\), got 3"):
        LearnedEdit("dilate", weights, copies=3)


def test_packaged_edits_load_their_weights_late():
    edits = learned_edits()
    assert [edit.name for edit in edits] == list(MEANINGS)
    images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(edits[0].target(images, 1.0), dilate(images, 1.0))
    for edit in edits:
        assert edit.mechanism == "learned"
        assert "editors" not in vars(edit)
