"""Stores of fitted networks."""

import json

import pytest
import torch
from safetensors.torch import save_file

from scalegmn_opt.inr import INRStore, SirenSpec, initial_parameters

SPEC = SirenSpec(hidden=(4, 3))
KEY = "scalegmn_opt.inr_store"


def store(count=3):
    return INRStore(
        params=initial_parameters(SPEC, count, torch.Generator().manual_seed(0)),
        spec=SPEC,
        names=tuple(f"digit[{i}]" for i in range(count)),
        psnr=torch.arange(count) + 30.0,
        image_size=(8, 9),
    )


def assert_same(got, expected):
    assert (got.spec, got.names, got.image_size) == (
        expected.spec,
        expected.names,
        expected.image_size,
    )
    assert torch.equal(got.psnr, expected.psnr)
    assert all(
        torch.equal(got.params[name], expected.params[name]) for name in SPEC.parameter_shapes
    )


def test_round_trip(tmp_path):
    store().save(tmp_path / "a.safetensors")
    assert_same(INRStore.load(tmp_path / "a.safetensors", SPEC), store())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1  # readable by whom any new file is


def test_slices_keep_everything_together(tmp_path):
    part = store()[1:]
    assert len(part) == 2
    assert part.names == ("digit[1]", "digit[2]")
    assert torch.equal(part.params["layers.1.bias"], store().params["layers.1.bias"][1:])
    store()[::2].save(tmp_path / "part")  # a view that is not contiguous
    assert_same(INRStore.load(tmp_path / "part"), store()[::2])
    with pytest.raises(TypeError, match="slice"):
        store()[0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"names": ("one",)}, "names"),
        ({"psnr": torch.zeros(2)}, "psnr"),
        ({"image_size": (0, 4)}, "image_size"),
        ({"spec": SirenSpec(hidden=(4, 4))}, "params"),
    ],
)
def test_parts_must_fit(change, match):
    whole = store()
    fields = {name: getattr(whole, name) for name in ("params", "spec", "names", "psnr")}
    with pytest.raises(ValueError, match=match):
        INRStore(**{**fields, "image_size": whole.image_size, **change})


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    store().save(path)

    def broken(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        store(1).save(path)
    assert_same(INRStore.load(path), store())
    assert len(list(tmp_path.iterdir())) == 1


def test_another_spec_is_an_error(tmp_path):
    store().save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"spec .*w0=20.*w0=30"):
        INRStore.load(tmp_path / "a", SirenSpec(hidden=(4, 3), w0=20.0))


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "a"
    store().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"path must be an INR store, got .*a: "):
        INRStore.load(path)


def test_foreign_file(tmp_path):
    path = tmp_path / "a"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="other content"):
        INRStore.load(path)
    path.write_text("not safetensors at all")
    with pytest.raises(ValueError, match="INR store"):
        INRStore.load(path)


def metadata(**change):
    spec = {"in_features": 2, "hidden": [4, 3], "out_features": 1, "w0": 30.0}
    return json.dumps({"version": 1, "spec": spec, "names": ["a"], "image_size": [8, 9], **change})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "JSONDecodeError"),
        ("{}", "version"),
        (metadata(version=2), "version must be 1, got 2"),
        (metadata(names=["a", "b"]), "names"),
        (metadata(spec={"hidden": [4]}), "params"),
        (metadata(spec={"width": 4}), "hidden"),
        (metadata(image_size=[8]), "image_size|unpack"),
    ],
)
def test_damaged_metadata(tmp_path, text, match):
    path = tmp_path / "a"
    save_file({**store(1).params, "psnr": torch.zeros(1)}, path, metadata={KEY: text})
    with pytest.raises(ValueError, match=f"path must be an INR store.*{match}"):
        INRStore.load(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        INRStore.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="existing folder"):
        store().save(tmp_path / "none" / "a")
