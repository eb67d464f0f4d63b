"""Closed-form edits are exact on the function that a network is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalegmn_opt.editors import (
    EDITS,
    ClosedForm,
    CoordinateEdit,
    Crop,
    Edit,
    Flip,
    Gain,
    IntensityEdit,
    Shear,
    Shift,
)
from scalegmn_opt.inr import SirenSpec, evaluate, fit, initial_parameters, pixel_grid, render

SPEC = SirenSpec(hidden=(24, 24), out_features=3)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
FINITE = st.floats(-2, 2)
CLOSED_FORM = {name: edit for name, edit in EDITS.items() if isinstance(edit, ClosedForm)}
BOX = (0.1, 0.3, 0.8, 0.6)
DIRECTED = {"shift": Shift, "shear": Shear, "flip": Flip}


def params(dtype=torch.float64, spec=SPEC):
    drawn = initial_parameters(spec, 2, torch.Generator().manual_seed(0))
    return {name: value.to(dtype) for name, value in drawn.items()}


def original_at(name, strength, coords, angle=0.0):
    """Where the edited picture's points come from, written out separately; y points down."""
    x, y = coords.unbind(-1)
    if name == "zoom":
        return coords / 2**strength
    if name == "crop":  # in fractions of the picture, from its upper left
        left, top, right, bottom = BOX
        u, v = (x + 1) / 2, (y + 1) / 2
        u = (1 - strength) * u + strength * (left + u * (right - left))
        v = (1 - strength) * v + strength * (top + v * (bottom - top))
        return torch.stack([2 * u - 1, 2 * v - 1], -1)
    if name == "rotate":
        return turned(coords, -strength)  # the original is turned back
    # Turned so that the direction is to the right, and back in the end.
    x, y = turned(coords, -angle).unbind(-1)
    moved = {
        "shift": (x - 2 * strength, y),
        "shear": (x + strength * y, y),  # above the middle, where y is negative, to the right
        "flip": ((1 - 2 * strength) * x, y),
    }
    return turned(torch.stack(moved[name], -1), angle)


def turned(coords, degrees):
    """Counter-clockwise as seen, which is a positive turn where y points up."""
    x, y = coords.unbind(-1)
    point = torch.complex(x, -y) * torch.polar(
        torch.ones_like(x), torch.full_like(x, math.radians(degrees))
    )
    return torch.stack([point.real, -point.imag], -1)


def configured(name, angle=0.0):
    if name == "crop":
        return Crop(box=BOX)
    return DIRECTED[name](angle=angle) if name in DIRECTED else EDITS[name]


INTENSITY = {
    "brightness": lambda x, s: x + s,
    "contrast": lambda x, s: 0.5 + (1 + s) * (x - 0.5),
    "invert": lambda x, s: (1 - s) * x + s * (1 - x),
    "gain": lambda x, s: (1 + s) * x,
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", INTENSITY)
@settings(deadline=None, max_examples=15)
@given(strength=FINITE)
def test_intensities_are_exact(name, dtype, strength):
    start = params(dtype)
    edited = EDITS[name].apply(start, SPEC, strength)
    expected = INTENSITY[name](render(start, SPEC, 5, 6), strength)
    got = render(edited, SPEC, 5, 6)
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["shift", "rotate", "zoom", "shear", "flip", "crop"])
@settings(deadline=None, max_examples=25)
@given(strength=FINITE, angle=st.floats(-400, 400))
def test_coordinates_are_exact(name, strength, angle):
    strength = strength * 180 if name == "rotate" else strength
    strength = abs(strength) / 2 if name == "crop" else strength
    edit, start, coords = configured(name, angle), params(), pixel_grid(5, 6)
    expected = evaluate(start, SPEC, original_at(name, strength, coords, angle))
    got = evaluate(edit.apply(start, SPEC, strength), SPEC, coords)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    function = edit.of(lambda x: evaluate(start, SPEC, x), strength)
    torch.testing.assert_close(function(coords), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("channel", ["red", "green", "blue"])
def test_gain_of_one_colour(channel):
    start, edit = params(), Gain(channel=channel)
    before = render(start, SPEC, 5, 6)
    expected = before.clone()
    expected[:, ["red", "green", "blue"].index(channel)] *= 1.3
    got = render(edit.apply(start, SPEC, 0.3), SPEC, 5, 6)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(edit.target(before, 0.3), expected, rtol=0, atol=1e-9)
    grey = SirenSpec(hidden=(24, 24))
    with pytest.raises(ValueError, match=f"channel {channel} of gain: expected .* 3 channels, got"):
        edit.apply(params(spec=grey), grey, 0.3)
    with pytest.raises(ValueError, match="got 1"):
        edit.target(before[:, :1], 0.3)


def test_what_the_directions_mean_on_pixels():
    corner = torch.zeros(1, 1, 4, 4)
    corner[..., 0, 0] = 1.0  # upper left
    assert Flip().target(corner, 1.0)[0, 0, 0, 3] == 1
    assert Flip(angle=90.0).target(corner, 1.0)[0, 0, 3, 0] == 1
    top = Shear().target(corner, 2 / 3)  # the top row's middle is 3/4 above the picture's
    assert top[0, 0, 0, 1] == pytest.approx(1.0)
    filled = torch.zeros(1, 1, 4, 4)
    filled[..., 1:3, 1:3] = 1.0
    inside = Crop(box=(0.25, 0.25, 0.75, 0.75)).target(filled, 1.0)
    assert (inside[..., 1:3, 1:3] == 1).all()


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("shift", 0.13),
        ("rotate", 33.0),
        ("zoom", 0.7),
        ("shear", 0.25),
        ("flip", 1.0),
        ("crop", 0.8),
    ],
)
def test_coordinates_are_exact_in_float32_on_fitted_networks(name, strength):
    spec = SirenSpec()
    axis = torch.linspace(-1, 1, 14)
    image = (4 * (0.5 - (axis[:, None] ** 2 + axis**2).sqrt())).sigmoid()[None, None]
    start = fit(image, spec, generator=torch.Generator().manual_seed(0), progress=False).params
    coords = pixel_grid(9, 9)
    edited = configured(name).apply(start, spec, strength)
    assert edited["layers.0.weight"].dtype == torch.float32
    exact = {key: value.double() for key, value in start.items()}
    expected = evaluate(exact, spec, original_at(name, strength, coords))
    # In float64, so that only the rounding of the edited weights is measured.
    got = evaluate({key: value.double() for key, value in edited.items()}, spec, coords)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("edit", CLOSED_FORM.values(), ids=CLOSED_FORM)
def test_no_strength_is_no_change(edit):
    for dtype in TOLERANCE:
        start = params(dtype)
        edited = edit.apply(start, SPEC, 0.0)
        assert all(torch.equal(edited[name], start[name]) for name in start)
    images = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(edit.target(images, 0.0), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("edit", CLOSED_FORM.values(), ids=CLOSED_FORM)
def test_inputs_are_never_modified(edit):
    start = params()
    kept = {name: value.clone() for name, value in start.items()}
    edited = edit.apply(start, SPEC, 0.4)
    assert list(edited) == list(start)
    assert all(torch.equal(start[name], kept[name]) for name in start)
    assert any(not torch.equal(edited[name], start[name]) for name in start)


@pytest.mark.parametrize("edit", CLOSED_FORM.values(), ids=CLOSED_FORM)
def test_every_edit_says_what_it_is(edit):
    assert isinstance(edit, Edit)
    assert isinstance(edit, IntensityEdit | CoordinateEdit)
    assert EDITS[edit.name] is edit
    assert edit.unit


def test_there_are_ten_closed_forms():
    names = {"brightness", "contrast", "invert", "gain", "shift", "rotate", "zoom", "shear"}
    assert set(CLOSED_FORM) == names | {"flip", "crop"}


@pytest.mark.parametrize("edit", CLOSED_FORM.values(), ids=CLOSED_FORM)
@pytest.mark.parametrize("strength", [math.nan, math.inf])
def test_strengths_must_be_finite(edit, strength):
    with pytest.raises(ValueError, match=f"strength of {edit.name}"):
        edit.apply(params(), SPEC, strength)
    with pytest.raises(ValueError, match=f"strength of {edit.name}"):
        edit.target(torch.zeros(1, 1, 2, 2), strength)


def test_what_the_edits_reject():
    with pytest.raises(ValueError, match="zoom must be within"):
        EDITS["zoom"].apply(params(), SPEC, 2000.0)
    for kind in DIRECTED.values():
        with pytest.raises(ValueError, match="angle"):
            kind(angle=math.nan)
    with pytest.raises(ValueError, match="crop must be within 0 and 1"):
        EDITS["crop"].apply(params(), SPEC, 1.5)
    for box in ((0.5, 0, 0.5, 1), (0, 0.2, 1, 0.1), (-0.1, 0, 1, 1), (0, 0, 1, 1.1)):
        with pytest.raises(ValueError, match="box must be left, top, right, bottom"):
            Crop(box=box)
    with pytest.raises(ValueError, match="channel must be one of"):
        Gain(channel="grey")
    for edit in CLOSED_FORM.values():
        with pytest.raises(ValueError, match="params"):
            edit.apply(params(), SirenSpec(), 0.5)
    line = SirenSpec(in_features=1)
    with pytest.raises(ValueError, match="in_features must be 2 for rotate"):
        EDITS["rotate"].apply(params(spec=line), line, 10.0)
