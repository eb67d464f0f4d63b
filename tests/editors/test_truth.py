"""Ground truth of recipes, on the pixels' own and on finer grids."""

import pytest
import torch

from scalegmn_opt.editors import EDITS, Inpaint, PixelEdit, Refit, Truth
from scalegmn_opt.editors.targets import blur, dilate, inpaint
from scalegmn_opt.inr import SirenSpec, initial_parameters, render

SPEC, SIZE = SirenSpec(hidden=(12, 12)), (6, 8)
DILATE = PixelEdit("dilate", "times", dilate)


def params():
    drawn = initial_parameters(SPEC, 3, torch.Generator().manual_seed(0))
    return {name: value.double() for name, value in drawn.items()}


def images():
    return torch.rand(3, 1, *SIZE, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("scale", [1, 3])
def test_closed_forms_of_networks_are_exact_between_the_pixels(scale):
    chain = [("rotate", 20.0), ("contrast", 0.5), ("shear", 0.3), ("zoom", -0.4), ("invert", 1.0)]
    truth, edited = Truth.of_networks(params(), SPEC, SIZE, scale), params()
    for name, strength in chain:
        truth = truth.after(EDITS[name], strength)
        edited = EDITS[name].apply(edited, SPEC, strength)
    expected = render(edited, SPEC, scale * SIZE[0], scale * SIZE[1])
    torch.testing.assert_close(truth.images, expected, rtol=0, atol=1e-9)
    assert truth.known.all()
    assert truth.mse(expected).max() < 1e-16


def test_after_an_edit_on_pixels_the_function_is_not_known_any_more():
    truth = Truth.of_networks(params(), SPEC, SIZE).after(DILATE, 1.0)
    assert truth.function is None
    turned = truth.after(EDITS["rotate"], 15.0)
    assert torch.equal(turned.images, EDITS["rotate"].target(truth.images, 15.0))
    assert not turned.known.all()


def test_what_comes_from_outside_an_image_does_not_count():
    truth = Truth.of_images(images()).after(EDITS["shift"], 0.25)
    assert truth.known[0, 0].sum(0).tolist() == [0, 0, 6, 6, 6, 6, 6, 6]
    wrong = truth.images.clone()
    wrong[..., :2] += 5.0
    assert truth.mse(wrong).max() == 0
    wrong[..., 2] += 1.0
    torch.testing.assert_close(truth.mse(wrong), torch.full((3,), 1 / 6).double())
    again = truth.after(EDITS["shift"], -0.25)  # what left the picture is lost
    assert again.known[0, 0].sum(0).tolist() == [6, 6, 6, 6, 6, 6, 0, 0]
    with pytest.raises(ValueError, match="strength of shift: expected one that leaves some"):
        truth.after(EDITS["shift"], 2.0)


def test_neighbourhoods_are_as_wide_on_a_finer_grid():
    truth = Truth.of_networks(params(), SPEC, SIZE, 3)
    fine = truth.after(DILATE, 1.0).images
    padded = torch.nn.functional.pad(truth.images, (3, 3, 3, 3), value=-torch.inf)
    shifted = [
        padded[..., row : row + 18, column : column + 24]
        for row in (0, 3, 6)
        for column in (0, 3, 6)
    ]
    torch.testing.assert_close(fine, torch.stack(shifted).amax(0))
    centres = Truth.of_networks(params(), SPEC, SIZE).after(DILATE, 1.0).images
    torch.testing.assert_close(fine[..., 1::3, 1::3], centres)  # every third is a coarse pixel
    direct = Truth(truth.images, truth.known).after(DILATE, 1.0).images
    assert not torch.allclose(fine, direct)


def test_constant_pictures_stay_so_on_a_finer_grid():
    truth = Truth(torch.full((1, 1, 12, 12), 0.3), torch.ones(1, 1, 12, 12, dtype=torch.bool), 2)
    after = truth.after(PixelEdit("blur", "pixels", blur), 2.0)
    torch.testing.assert_close(after.images, truth.images)


@pytest.mark.parametrize("scale", [1, 2])
def test_masks(scale):
    mask = torch.zeros(SIZE)
    mask[:, :4] = 1.0
    mask[0] = 0.5
    truth = Truth.of_networks(params(), SPEC, SIZE, scale)
    got = truth.after(Refit(EDITS["invert"], SIZE, mask=mask), 1.0)
    fine = mask.double().repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    expected = (1 - fine) * truth.images + fine * (1 - truth.images)
    torch.testing.assert_close(got.images, expected)
    assert got.function is None


def test_a_mask_keeps_what_is_known():
    mask = torch.zeros(SIZE)
    mask[:, 4:] = 1.0
    truth = Truth.of_images(images()).after(Refit(EDITS["shift"], SIZE, mask=mask), 0.25)
    assert truth.known.all()  # the unknown part came in on the left, where the picture stays
    torch.testing.assert_close(truth.images[..., :4], images()[..., :4])


def test_inpainting_on_a_finer_grid():
    mask = torch.zeros(SIZE)
    mask[2:4, 3:5] = 1.0
    edit = Inpaint().of(mask)
    fine = Truth.of_networks(params(), SPEC, SIZE, 3).after(edit, 1.0).images
    coarse = inpaint(render(params(), SPEC, *SIZE), 1.0, mask=mask > 0.5)
    torch.testing.assert_close(fine[..., 1::3, 1::3], coarse, rtol=0, atol=1e-4)
