"""Reading and writing images."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from scalegmn_opt.inr import load_images, save_png

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def test_grey_and_colour_png(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    images, names = load_images([tmp_path / "grey.png"])
    assert names == ("grey",)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[0, 0], torch.from_numpy(GREY / np.float32(255)))
    images, _ = load_images([str(tmp_path / "colour.png")])
    torch.testing.assert_close(
        images[0], torch.from_numpy(COLOUR / np.float32(255)).permute(2, 0, 1)
    )


def test_jpg_is_turned_as_its_note_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    Image.fromarray(np.full((8, 16), 128, np.uint8)).save(tmp_path / "a.JPG", exif=exif)
    images, _ = load_images([tmp_path / "a.JPG"])
    assert images.shape == (1, 1, 16, 8)
    assert (images - 128 / 255).abs().max() < 0.02


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_other_modes(tmp_path, mode, channels):
    Image.new(mode, (5, 4)).save(tmp_path / "a.png")
    images, _ = load_images([tmp_path / "a.png"])
    assert images.shape == (1, channels, 4, 5)
    transparent = mode in ("LA", "RGBA")  # an all-zero pixel is see-through, so the paper shows
    assert torch.equal(images, torch.full_like(images, float(transparent)))


def test_sixteen_bits(tmp_path):
    Image.fromarray(np.array([[0, 65535], [32768, 1]], dtype=np.uint16)).save(tmp_path / "a.png")
    images, _ = load_images([tmp_path / "a.png"])
    torch.testing.assert_close(images[0, 0, 0], torch.tensor([0.0, 1.0]))
    assert images[0, 0, 1, 0].item() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (GREY, (1, 1, 3, 4)),
        (COLOUR, (1, 3, 3, 4)),
        (np.zeros((5, 6, 7), np.float64), (5, 1, 6, 7)),
        (np.zeros((5, 6, 7, 3), np.float32), (5, 3, 6, 7)),
        (np.zeros((5, 6, 7, 1), np.float16), (5, 1, 6, 7)),
        (np.zeros((6, 7, 1), np.float32), (1, 1, 6, 7)),
    ],
)
def test_arrays(tmp_path, array, shape):
    np.save(tmp_path / "a.npy", array)
    images, names = load_images([tmp_path / "a.npy"])
    assert images.shape == shape
    assert len(names) == shape[0]


def test_npz_prefers_the_training_images(tmp_path):
    np.savez(tmp_path / "a.npz", other=np.zeros((1, 3, 4)), x_train=np.stack([GREY, GREY]))
    images, names = load_images([tmp_path / "a.npz"])
    assert names == ("a[0]", "a[1]")
    assert images.max() == GREY.max() / np.float32(255)
    np.savez(tmp_path / "b.npz", other=np.ones((1, 3, 4)))
    images, names = load_images([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert names[-1] == "b"
    assert torch.equal(images[2], torch.ones(1, 3, 4))


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        np.savez(path, **content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.png", b"", "an empty file"),
        ("a.npy", b"", "an empty file"),
        ("a.png", b"this is text", "cannot identify"),
        ("a.jpg", b"\xff\xd8\xff\xe0broken", "must hold images"),
        ("a.npy", b"this is text", "must hold images"),
        ("a.npz", b"PK\x03\x04 broken", "must hold images"),
        ("a.npz", {}, "no arrays"),
        ("a.npy", np.zeros((0, 4)), "zero-sized"),
        ("a.npy", np.zeros(4), "shape"),
        ("a.npy", np.zeros((1, 2, 3, 4)), "shape"),
        ("a.npy", np.zeros((6, 28, 4)), r"shape \(6, 28, 4\), with transparency"),
        ("a.npy", np.zeros((3, 4), np.int64), "int64"),
        ("a.npy", np.full((3, 4), 16.0), "0, 1"),
        ("a.npy", np.full((3, 4), np.nan), "NaN"),
        ("a.npy", np.array([[{}]], dtype=object), "pickle"),
        ("a.txt", b"text", "must end in"),
    ],
)
def test_what_is_no_image(tmp_path, name, content, match):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=match) as caught:
        load_images([path])
    assert str(path) in str(caught.value)


def test_truncated_png(tmp_path):
    path = tmp_path / "a.png"
    noise = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    save_png(path, noise)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a\.png"):
        load_images([path])


def test_files_of_one_name_keep_their_folders(tmp_path):
    for folder in ("b", "c"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", GREY)
    _, names = load_images([tmp_path / "b" / "a.npy", tmp_path / "c" / "a.npy"])
    assert names == ("a", str(tmp_path / "c" / "a"))


def test_sizes_must_agree(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    np.save(tmp_path / "b.npy", GREY.T)
    with pytest.raises(ValueError, match=r"\(1, 3, 4\), got \(1, 4, 3\) in .*b\.npy"):
        load_images([tmp_path / "a.npy", tmp_path / "b.npy"])


def test_paths_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        load_images([tmp_path / "none.png"])
    with pytest.raises(ValueError, match="at least one"):
        load_images([])
    with pytest.raises(TypeError, match=r"a\.png"):
        load_images("a.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_save_png(tmp_path, channels):
    image = torch.linspace(-0.5, 1.5, channels * 6).reshape(channels, 2, 3)
    save_png(tmp_path / "a.png", image, scale=4)
    images, _ = load_images([tmp_path / "a.png"])
    assert images.shape == (1, channels, 8, 12)
    expected = image.clamp(0, 1).repeat_interleave(4, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(images[0], expected, rtol=0, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("image", "scale", "match"),
    [
        (torch.zeros(2, 4, 4), 1, "shape"),
        (torch.zeros(4, 4), 1, "shape"),
        (torch.zeros(1, 0, 4), 1, "shape"),
        (torch.full((1, 2, 2), torch.inf), 1, "finite"),
        (torch.zeros(1, 2, 2), 0, "scale"),
        (torch.zeros(1, 2, 2), 1.5, "scale"),
    ],
)
def test_save_png_rejects(tmp_path, image, scale, match):
    with pytest.raises(ValueError, match=match):
        save_png(tmp_path / "a.png", image, scale=scale)
    with pytest.raises(FileNotFoundError, match="folder"):
        save_png(tmp_path / "none" / "a.png", torch.zeros(1, 2, 2))


def test_missing_pillow_names_the_line_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "scalegmn-opt\[images\]"'):
        save_png(tmp_path / "a.png", torch.zeros(1, 2, 2))
