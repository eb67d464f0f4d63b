"""Networks of the public INR data sets."""

import numpy as np
import pytest
import torch
from torch import nn

from scalegmn_opt.inr import SirenSpec, initial_parameters, load_state_dicts, render


class PublicLayer(nn.Module):
    """A layer as the public data sets have it."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return torch.sin(30.0 * nn.functional.linear(x, self.weight, self.bias))


class PublicINR(nn.Module):
    """Grid with both ends, x first and fastest; intensity minus 0.5."""

    def __init__(self, seed):
        super().__init__()
        params = initial_parameters(SirenSpec(), 1, torch.Generator().manual_seed(seed))
        values = [value[0] for value in params.values()]
        last = nn.Linear(32, 1)
        last.weight, last.bias = nn.Parameter(values[4]), nn.Parameter(values[5])
        self.seq = nn.Sequential(PublicLayer(*values[:2]), PublicLayer(*values[2:4]), last)

    def picture(self, height, width):
        x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        coords = torch.from_numpy(np.stack([x.flatten(), y.flatten()], 1)).float()
        return (self.seq(coords) + 0.5).detach().reshape(1, height, width)


def write(folder, seed, name="mnist_png_training_3_{}/checkpoints/model_final.pth"):
    network = PublicINR(seed)
    path = folder / name.format(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return network


@pytest.mark.parametrize("size", [(28, 28), (9, 14)])
def test_the_same_pictures(tmp_path, size):
    networks = [write(tmp_path, seed) for seed in (0, 1, 2)]
    store = load_state_dicts(tmp_path, image_size=size, progress=False)
    assert store.spec == SirenSpec()
    assert store.names[1] == "mnist_png_training_3_1/checkpoints/model_final"
    assert store.psnr.isnan().all()
    expected = torch.stack([network.picture(*size) for network in networks])
    torch.testing.assert_close(render(store.params, store.spec, *size), expected, rtol=0, atol=1e-4)


def test_other_names_and_suffix(tmp_path):
    network = write(tmp_path, 0)
    state = {f"net.{k.replace('seq.', '').replace('.w', '.linear.w').replace('.b', '.linear.b')}": v
             for k, v in network.state_dict().items()}  # fmt: skip
    (tmp_path / "other").mkdir()
    torch.save(state, tmp_path / "other" / "a.pt")
    store = load_state_dicts(tmp_path, progress=False)
    assert len(store) == 2
    assert all(torch.equal(value[0], value[1]) for value in store.params.values())


LAYERS = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3)}
LAYERS |= {"1.weight": torch.zeros(1, 3), "1.bias": torch.zeros(1)}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"nothing", r"got .*bad\.pth: "),
        ({"seq.0.weight": torch.zeros(3, 2)}, "SIREN"),
        ({"first": torch.zeros(3, 2)}, "SIREN"),
        ([torch.zeros(2)], "SIREN"),
        ({"seq.0.weight": 3}, "SIREN"),
        ({"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3)}, "SIREN"),
        ({"0.weight": torch.zeros(3, 2), "1.weight": torch.zeros(1, 3)}, "SIREN"),
        (LAYERS | {"1.weight": torch.zeros(1, 4)}, "SIREN"),
        (LAYERS | {"0.bias": torch.zeros(4)}, "SIREN"),
        (LAYERS | {"2.weight": torch.zeros(1, 1)}, "SIREN"),
        (LAYERS | {"0.bias": torch.full((3,), torch.nan)}, r"finite weights, got NaN .*bad\.pth"),
        (PublicINR, r"got .*bad\.pth: "),  # a file that could run code
    ],
)
def test_files_of_other_content(tmp_path, content, match):
    if isinstance(content, bytes):
        (tmp_path / "bad.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=match):
        load_state_dicts(tmp_path, progress=False)


def test_networks_of_unequal_size(tmp_path):
    write(tmp_path, 0)
    torch.save(LAYERS, tmp_path / "z.pth")
    with pytest.raises(ValueError, match=r"one size, got another in .*z\.pth"):
        load_state_dicts(tmp_path, progress=False)


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_state_dicts(tmp_path / "none")
    with pytest.raises(ValueError, match=r"\.pth.*got none in"):
        load_state_dicts(tmp_path)
    write(tmp_path, 0)
    with pytest.raises(ValueError, match="image_size"):
        load_state_dicts(tmp_path, image_size=(1, 28), progress=False)
