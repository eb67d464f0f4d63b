"""Data sets in memory and the MNIST reader."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from scalegmn_opt.tasks import Dataset, digits, mnist


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (60, 28, 28), dtype=np.uint8),
        "y_train": random.integers(0, 10, 60, dtype=np.uint8),
        "x_test": random.integers(0, 256, (12, 28, 28), dtype=np.uint8),
        "y_test": random.integers(0, 10, 12, dtype=np.uint8),
    }


@pytest.fixture
def archive(tmp_path, arrays):
    def write(**changes):
        kept = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
        np.savez(tmp_path / "mnist.npz", **kept)
        return tmp_path / "mnist.npz"

    return write


def test_digits_parts_are_fixed_disjoint_and_complete():
    first, second = digits(), digits()
    assert [len(first.part(s)[0]) for s in ("training", "validation", "test")] == [1197, 300, 300]
    assert torch.equal(first.train_inputs, second.train_inputs)
    assert first.features == 64
    assert first.classes == 10
    from sklearn.datasets import load_digits

    pixels = load_digits().data / 16
    ours = torch.cat([first.train_inputs, first.validation_inputs, first.test_inputs])
    rows = sorted(map(tuple, ours.tolist()))
    assert rows == sorted(map(tuple, pixels.astype(np.float32).tolist()))


def test_digits_targets_belong_to_their_images():
    data = digits()
    centres = torch.stack([data.train_inputs[data.train_targets == c].mean(0) for c in range(10)])
    nearest = torch.cdist(data.test_inputs, centres).argmin(1)
    assert (nearest == data.test_targets).float().mean() > 0.85


def test_digits_without_scikit_learn_names_the_line_to_install():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from scalegmn_opt.tasks import digits\n"
        "try:\n    digits()\n"
        "except ImportError as error:\n    assert 'scalegmn-opt[data]' in str(error), error\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mnist_parts(archive, arrays):
    data = mnist(archive())
    assert [len(data.part(s)[0]) for s in ("training", "validation", "test")] == [50, 10, 12]
    assert data.train_inputs.dtype == torch.float32
    expected = torch.tensor(arrays["x_train"][50] / 255.0, dtype=torch.float32).flatten()
    torch.testing.assert_close(data.validation_inputs[0], expected)
    assert data.validation_targets.tolist() == arrays["y_train"][50:].tolist()
    assert data.test_targets.tolist() == arrays["y_test"].tolist()


def test_mnist_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        mnist(tmp_path / "nowhere.npz")


def test_mnist_missing_array_lists_those_found(archive):
    with pytest.raises(ValueError, match=r"lacks \['y_test'\].*found.*x_test"):
        mnist(archive(y_test=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((60, 784), np.uint8)}, r"x_train.*\(60, 784\)"),
        ({"y_train": np.zeros(59, np.uint8)}, r"\(59,\)"),
        ({"x_test": np.zeros((0, 28, 28), np.uint8), "y_test": np.zeros(0, int)}, "6 samples"),
        ({"x_test": np.zeros((12, 28, 28))}, "uint8"),
        ({"y_test": np.zeros(12)}, "integers"),
        ({"y_test": np.full(12, 10)}, r"0\.\.9, got 10\.\.10"),
    ],
)
def test_mnist_wrong_arrays(archive, changes, message):
    with pytest.raises(ValueError, match=message):
        mnist(archive(**changes))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 truncated"])
def test_mnist_not_an_archive(tmp_path, content):
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"mnist\.npz is not one"):
        mnist(tmp_path / "mnist.npz")


def test_mnist_of_a_single_array_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match="is not one"):
        mnist(tmp_path / "x.npy")


def test_dataset_checks_its_parts():
    x, y = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="validation part"):
        Dataset(x, y, x[:2], y, x, y, classes=2, name="wrong")
    with pytest.raises(ValueError, match=r"unknown split 'dev'; choose from \['training'"):
        Dataset(x, y, x, y, x, y, classes=2, name="right").part("dev")
