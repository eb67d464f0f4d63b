"""Fitting that is interrupted and goes on."""

import sys

import pytest
import torch

from scalegmn_opt.inr import INRStore, SirenSpec, fit_resumable, joined

SPEC = SirenSpec(hidden=(6, 6))
NAMES = tuple("abcde")
MODULE = sys.modules[fit_resumable.__module__]


@pytest.fixture(autouse=True)
def _two_networks_a_file(monkeypatch):
    monkeypatch.setattr(MODULE, "_PART_ELEMENTS", 2 * 36 * 6)


def images(seed=0):
    return torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def run(path, **changes):
    options = {"seed": 3, "steps": 4, "progress": False, **changes}
    return fit_resumable(options.pop("images", images()), NAMES, SPEC, path, **options)


def interrupted(path, monkeypatch, after=2):
    """A run that is stopped at the part with that number; how many parts were fitted."""
    plain, calls = MODULE.fit_store, []

    def fit_store(*arguments, **options):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(arguments[1])
        return plain(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "fit_store", fit_store)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    return len(calls)


def test_what_was_finished_is_kept_and_the_rest_is_the_same(tmp_path, monkeypatch):
    path = tmp_path / "s.safetensors"
    expected = run(tmp_path / "at_once.safetensors")
    assert interrupted(path, monkeypatch) == 2
    assert not path.exists()
    kept = sorted((tmp_path / "s.safetensors.partial").glob("*.safetensors"))
    assert [len(INRStore.load(file)) for file in kept] == [2, 2]
    fitted = []
    plain = MODULE.fit_store
    monkeypatch.setattr(
        MODULE, "fit_store", lambda x, n, *a, **o: (fitted.append(n), plain(x, n, *a, **o))[1]
    )
    store = run(path)
    assert fitted == [("e",)]
    assert [file.name for file in tmp_path.glob("s.*")] == [path.name]  # the folder is gone
    assert store.names == NAMES
    loaded = INRStore.load(path, SPEC)
    for name, value in expected.params.items():
        assert torch.equal(store.params[name], value)
        assert torch.equal(loaded.params[name], value)
    assert torch.equal(store.psnr, expected.psnr)


def test_networks_do_not_depend_on_the_processes(tmp_path):
    one, two = (run(tmp_path / f"{jobs}.safetensors", jobs=jobs) for jobs in (1, 2))
    assert one.names == two.names == NAMES
    for name, value in one.params.items():
        assert torch.equal(two.params[name], value)
    assert torch.equal(one.psnr, two.psnr)


def test_an_error_in_another_process_is_the_callers(tmp_path):
    bad = images()
    bad[4, 0, 0, 0] = 2.0
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        run(tmp_path / "s.safetensors", images=bad, jobs=2)
    assert len(list((tmp_path / "s.safetensors.partial").glob("*.safetensors"))) == 2


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"steps": 5}, {"target_psnr": 30.0}, {"images": images(1)}]
)
def test_another_request_does_not_go_on(tmp_path, monkeypatch, change):
    path = tmp_path / "s.safetensors"
    interrupted(path, monkeypatch)
    with pytest.raises(FileExistsError, match=r"s\.safetensors\.partial holds networks of other"):
        run(path, **change)
    (tmp_path / "s.safetensors.partial" / "request.json").unlink()
    with pytest.raises(FileExistsError, match="partial"):
        run(path)


def test_a_request_that_is_refused_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="steps"):
        run(tmp_path / "s.safetensors", steps=0)
    assert list(tmp_path.iterdir()) == []
    run(tmp_path / "s.safetensors")


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="existing folder"):
        run(tmp_path / "none" / "s.safetensors")


@pytest.mark.parametrize("progress", [True, False])
def test_one_progress_bar(tmp_path, capsys, progress):
    run(tmp_path / "s.safetensors", progress=progress)
    shown = capsys.readouterr().err
    assert ("5/5" in shown) == progress
    assert "step" not in shown


def test_only_stores_of_one_kind_are_joined(tmp_path):
    store = run(tmp_path / "s.safetensors")
    assert joined([store[:2], store[2:]]).names == NAMES
    wide = fit_resumable(
        images(), NAMES, SirenSpec(hidden=(5, 5)), tmp_path / "w", steps=1, progress=False
    )
    for stores in ([], [store, wide]):
        with pytest.raises(ValueError, match="one spec and image_size"):
            joined(stores)
