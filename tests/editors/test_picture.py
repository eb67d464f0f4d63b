"""Changes of pictures by a small convolutional network."""

import pytest
import torch

from scalegmn_opt.editors.picture import PictureOperator, one_hot


@pytest.fixture
def operator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PictureOperator(2, channels=4).double()


def pictures(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_no_strength_is_no_change(operator):
    images = pictures(2, 1, 6, 5)
    change = operator(images, torch.tensor([[0.0, 0.0], [0.0, 0.5]], dtype=torch.float64))
    assert torch.equal(change[0], torch.zeros_like(change[0]))
    assert change[1].abs().max() > 0


def test_channels_are_treated_alike_and_apart(operator):
    images, strengths = pictures(2, 3, 6, 5), pictures(2, 2)
    whole = operator(images, strengths)
    for channel in range(3):
        alone = operator(images[:, channel : channel + 1], strengths)
        torch.testing.assert_close(whole[:, channel : channel + 1], alone)


def test_every_edit_has_its_own_strength(operator):
    images = pictures(1, 1, 6, 5).expand(3, -1, -1, -1)
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]], dtype=torch.float64)
    first, second, half = operator(images, given)
    assert not torch.allclose(first, second)
    assert not torch.allclose(half, first)


def test_pictures_of_any_size_shift_with_their_content(operator):
    images, strengths = pictures(1, 1, 40, 40), pictures(1, 2)
    change = operator(images, strengths)
    shifted = operator(images.roll((3, 2), (2, 3)), strengths)
    inner = slice(16, 24)  # nine pixels and the pooling away from border and seam
    torch.testing.assert_close(
        shifted[..., inner, inner], change.roll((3, 2), (2, 3))[..., inner, inner]
    )


def test_one_hot():
    got = one_hot(["a", "b", "c"], "b", torch.tensor([0.5, 2.0]))
    assert torch.equal(got, torch.tensor([[0.0, 0.5, 0.0], [0.0, 2.0, 0.0]]))
    with pytest.raises(ValueError, match="'d'"):
        one_hot(["a"], "d", torch.ones(1))
