"""Image-space ground truth and the distances to it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt.editors import EDITS, Shift, psnr
from scalegmn_opt.editors.targets import (
    blur,
    denoise,
    dilate,
    erode,
    inpaint,
    local_contrast,
    resample,
    sharpen,
)

OPERATORS = (dilate, erode, denoise, blur, sharpen, local_contrast)


def picture(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_scipy(name, images, strength):
    """The same by scipy, for strengths that are whole numbers (a blur: any)."""
    ndimage = pytest.importorskip("scipy.ndimage")

    def smooth(sigma):
        return ndimage.gaussian_filter(images, (0, 0, sigma, sigma), mode="nearest")

    if name == "blur":
        return smooth(strength)
    if name in ("sharpen", "local_contrast"):
        return images + strength * (images - smooth(1.0 if name == "sharpen" else 3.0))
    filters = {
        "dilate": ndimage.grey_dilation,
        "erode": ndimage.grey_erosion,
        "denoise": ndimage.median_filter,
    }
    for _ in range(int(strength)):
        images = filters[name](images, size=(1, 1, 3, 3), mode="nearest")
    return images


@settings(deadline=None, max_examples=6)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    strength=st.integers(1, 3),
    share=st.floats(0, 1, exclude_max=True),
)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_operators_are_those_of_scipy(operator, height, width, strength, share):
    # Negative intensities: a border of zeros would show.
    images = picture(2, 2, height, width) - 2
    expected = by_scipy(operator.__name__, images.numpy(), strength)
    got = operator(images, float(strength))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)
    assert torch.equal(operator(images, 0.0), images)
    if operator in (dilate, erode, denoise):  # fractions blend
        blend = torch.lerp(got, operator(images, strength + 1.0), share)
        torch.testing.assert_close(operator(images, strength + share), blend)


@pytest.mark.parametrize("operator", [dilate, erode, denoise, blur], ids=lambda o: o.__name__)
@pytest.mark.parametrize("strength", [-0.1, math.nan])
def test_a_strength_that_means_nothing(operator, strength):
    with pytest.raises(ValueError, match="strength must not be negative"):
        operator(picture(1, 1, 3, 3), strength)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), share=st.floats(0.1, 0.9), strength=st.floats(0, 1))
def test_inpainting_is_harmonic_and_leaves_the_rest(seed, share, strength):
    generator = torch.Generator().manual_seed(seed)
    images, mask = picture(2, 3, 6, 5), torch.rand(6, 5, generator=generator) < share
    mask[2, 2] = False
    got = inpaint(images, 1.0, mask=mask)
    assert torch.equal(got[..., ~mask], images[..., ~mask])
    known = np.pad(got.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    shifted = [
        known[..., 1 + i : 7 + i, 1 + j : 6 + j] for i, j in ((0, 1), (0, -1), (1, 0), (-1, 0))
    ]
    mean = torch.from_numpy(np.nanmean(np.stack(shifted), axis=0))
    torch.testing.assert_close(got[..., mask], mean[..., mask], atol=1e-4, rtol=0)
    part = inpaint(images, strength, mask=mask)
    torch.testing.assert_close(part, torch.lerp(images, got, strength))


def test_inpainting_needs_a_mask_that_fits():
    images, mask = picture(1, 1, 4, 3), torch.zeros(4, 3, dtype=torch.bool)
    assert torch.equal(inpaint(images, 1.0, mask=mask), images)
    for wrong, error, message in (
        (mask.float(), TypeError, "mask must be boolean"),
        (mask.T, ValueError, r"size \(4, 3\), got \(3, 4\)"),
        (~mask, ValueError, "mask must leave a pixel"),
    ):
        with pytest.raises(error, match=message):
            inpaint(images, 1.0, mask=wrong)


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("brightness", 0.25, 0.5),
        ("contrast", 1.0, 0.0),
        ("invert", 1.0, 0.75),
        ("invert", 0.5, 0.5),
    ],
)
def test_intensities(name, strength, expected):
    images = torch.full((1, 1, 2, 2), 0.25)
    assert torch.equal(EDITS[name].target(images, strength), torch.full_like(images, expected))


def test_rotation_by_a_quarter_is_counter_clockwise_as_seen():
    images = picture(2, 3, 6, 6)
    expected = torch.rot90(images, 1, dims=(2, 3))
    torch.testing.assert_close(EDITS["rotate"].target(images, 90.0), expected)


@pytest.mark.parametrize(
    ("angle", "rows", "columns"), [(0, 0, 1), (90, -1, 0), (180, 0, -1), (270, 1, 0)]
)
def test_shift_goes_where_the_angle_says_and_fills_with_zeros(angle, rows, columns):
    images = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    images[..., 2, 2] = 1
    images[..., 0, 0] = images[..., 4, 4] = images[..., 0, 4] = images[..., 4, 0] = 1
    moved = Shift(angle=angle).target(images, 1 / 5)
    assert moved[0, 0, 2 + rows, 2 + columns].item() == pytest.approx(1)
    assert moved.sum().item() == pytest.approx(3)  # two corners have left
    rolled = images.roll((rows, columns), dims=(2, 3))
    inside = slice(1, 4)
    torch.testing.assert_close(moved[..., inside, inside], rolled[..., inside, inside])


def test_zoom_enlarges():
    images = torch.zeros(1, 1, 8, 8)
    images[..., 2:6, 2:6] = 1
    assert EDITS["zoom"].target(images, 1.0)[..., 1:7, 1:7].min() == 1
    small = EDITS["zoom"].target(images, -1.0)
    assert small[..., 3:5, 3:5].min() == 1
    assert small.sum() < images.sum() / 2


def test_resampling_is_bilinear():
    images = torch.tensor([[[[0.0, 1.0, 0.0, 0.0]]]])
    half_a_pixel = torch.tensor([0.25, 0.0])
    got = resample(images, torch.eye(2), half_a_pixel)
    torch.testing.assert_close(got, torch.tensor([[[[0.5, 0.5, 0.0, 0.0]]]]))


@pytest.mark.parametrize(("name", "strength"), [("rotate", 20.0), ("shift", 0.1), ("zoom", 0.5)])
def test_weights_and_pixels_mean_the_same(name, strength):
    """The render of an edited network is the edited render, up to the resampling error."""
    from scalegmn_opt.inr import SirenSpec, initial_parameters, render

    spec = SirenSpec(w0=3.0)  # slow waves, which bilinear sampling reproduces
    params = initial_parameters(spec, 2, torch.Generator().manual_seed(0))
    size, inner = 128, slice(40, 88)
    edited = render(EDITS[name].apply(params, spec, strength), spec, size, size)
    target = EDITS[name].target(render(params, spec, size, size), strength)
    difference = (edited - target)[..., inner, inner].abs().max()
    change = (edited - render(params, spec, size, size))[..., inner, inner].abs().max()
    assert difference < 1e-3
    assert change > 30 * difference


def test_distances_are_per_image():
    images = torch.zeros(2, 3, 4, 4)
    targets = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)])
    torch.testing.assert_close(psnr(images, targets), torch.tensor([math.inf, 20.0]))
    with pytest.raises(ValueError, match="targets must have the shape"):
        psnr(images, targets[:1])
    with pytest.raises(ValueError, match="images must have shape"):
        psnr(images[0], targets[0])
