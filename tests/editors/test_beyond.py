"""Strengths beyond those of training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt.editors import LearnedEdit
from scalegmn_opt.editors.beyond import within
from scalegmn_opt.editors.edit import widened
from scalegmn_opt.editors.learned import MEANINGS
from scalegmn_opt.inr import SirenSpec, fit, render
from scalegmn_opt.tasks import digits

# A blur by small pieces is cut off and sampled at each of them. At the border it is another.
TOLERANCES = dict.fromkeys(MEANINGS, 1e-9) | {"blur": 0.05}


def drawn(seed, margin):
    generator = torch.Generator().manual_seed(seed)
    spot = torch.rand(2, 1, 12, 12, generator=generator, dtype=torch.float64)
    return torch.nn.functional.pad(spot, [margin] * 4)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(MEANINGS)),
    largest=st.floats(0.7, 2.5),
    strength=st.floats(0, 8),
    seed=st.integers(0, 1000),
)
def test_the_pieces_mean_the_same_and_none_is_too_large(name, largest, strength, seed):
    edits = {"other": 1.0, name: largest}
    pieces, factor = within(torch.tensor([[0.0, strength]], dtype=torch.float64), edits)
    assert (pieces[:, :, 0] == 0).all()
    assert pieces.min() >= 0
    assert pieces.max() <= largest + 1e-12
    images, target = drawn(seed, margin=36 if name == "blur" else 0), MEANINGS[name][0]
    done = images
    for piece in pieces[:, 0, 1].tolist():
        done = target(done, piece)
    done = images + factor * (done - images)
    if name in ("dilate", "erode", "denoise") and largest < 1 < strength:
        return  # less than a whole one was learned: nothing says what twice of it is
    wanted = target(images, strength)
    assert (done - wanted).abs().max() < TOLERANCES[name] * wanted.abs().max()


def test_what_is_within_stays_as_it_is():
    strengths = torch.tensor([[0.3, 1.0], [1.0, 0.0]])
    pieces, factor = within(strengths, {"dilate": 1.0, "sharpen": 1.5})
    assert torch.equal(pieces, strengths[None])
    assert torch.equal(factor, torch.ones(2, 1, 1))


def test_networks_of_a_batch_have_pieces_of_their_own():
    strengths = torch.tensor([[2.5, 0.0], [0.5, 0.0], [0.0, 3.0]])
    pieces, factor = within(strengths, {"dilate": 1.0, "sharpen": 1.5})
    assert torch.equal(pieces[:, 0, 0], torch.tensor([1.0, 1.0, 0.5]))
    assert torch.equal(pieces[:, 1, 0], torch.tensor([0.5, 0.0, 0.0]))
    assert torch.equal(pieces[:, 2, 1], torch.tensor([1.5, 0.0, 0.0]))
    assert torch.equal(factor.flatten(), torch.tensor([1.0, 1.0, 2.0]))


@pytest.fixture(scope="module")
def networks():
    pictures = digits().part("validation")[0][:6].reshape(-1, 1, 8, 8)
    images = torch.nn.functional.interpolate(pictures, (28, 28), mode="bicubic").clamp(0, 1)
    generator = torch.Generator().manual_seed(0)
    return images, fit(images, SirenSpec(), generator=generator, steps=80, progress=False).params


@pytest.mark.filterwarnings("ignore:strength of")
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize(
    ("name", "strength"),
    [("dilate", 4.0), ("erode", 3.0), ("blur", 5.0), ("sharpen", 6.0), ("local_contrast", 6.0)],
)
def test_a_far_strength_is_nine_tenths_reached(networks, name, strength, copies):
    images, params = networks
    edit = LearnedEdit(name, "mnist-morphology", copies=copies)
    edited = edit.apply(params, SirenSpec(), strength)
    target = edit.target(images, strength)
    found = render(edited, widened(SirenSpec(), edited), 28, 28)
    nothing = (images - target).square().mean()
    assert (found - target).square().mean() < 0.1 * nothing
