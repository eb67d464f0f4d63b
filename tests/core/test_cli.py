"""The command line, run as a user runs it."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from scalegmn_opt import UpdateRule, cli
from scalegmn_opt.editor_data import training_images
from scalegmn_opt.editors import EDITS, LearnedEditor
from scalegmn_opt.editors.training import EditorRecipe
from scalegmn_opt.inr import INRStore, SirenSpec, fit_store
from scalegmn_opt.recipe import load_recipe
from scalegmn_opt.symmetry import Verification

RULE = """
kind: rule
name: tiny
suite: quadratic
rule: {channels: 4, message_channels: 2, hidden_channels: 4}
networks: 2
truncation: 2
horizon: [4, 6]
trainer: {steps: 3, workers: 2, checkpoint_every: 3}
"""
EDITOR = """
kind: editor
name: tiny-editor
edits: {dilate: 1.0}
images: [digits, more.npz]
count: 3
size: 8
editor: {probes: 3, node_channels: 4, edge_channels: 2, hidden_channels: 4, num_layers: 1}
batch_size: 2
trainer: {steps: 2, workers: 1, checkpoint_every: 2}
"""
MODELS = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), (torch.zeros(1, 3),)

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.special.bessel_j0(self.first(x)))

def odd():
    return Odd(), (torch.ones(1, 3),)

def wrong():
    return 3
"""


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run in a folder of its own: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


@pytest.fixture
def pictures(tmp_path):
    """Two pictures in one array file."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, 3, 3, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear")[:, 0]
    np.save(tmp_path / "two.npy", images.numpy())
    return tmp_path / "two.npy"


@pytest.fixture
def store(tmp_path):
    images = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    generator, spec = torch.Generator().manual_seed(0), SirenSpec(hidden=(6, 6))
    made = fit_store(images, ("a", "b"), spec, generator=generator, steps=20, progress=False)
    made.save(tmp_path / "store.safetensors")
    return tmp_path / "store.safetensors"


def error_lines(errors):
    return [line for line in errors.splitlines() if line.startswith("error: ")]


def test_help_lists_the_commands_and_stays_light(tmp_path):
    command = [sys.executable, "-m", "scalegmn_opt.cli", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("demo", "meta-train", "fit", "edit", "info"):
        assert name in shown.stdout
    heavy = "{'accelerate', 'matplotlib', 'sklearn', 'torch_geometric', 'PIL'}"
    code = f"import sys, scalegmn_opt.cli; sys.exit(len({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("variable", "expected"), [(None, 1), ("2", 2)])
def test_one_thread_unless_told_otherwise(run, monkeypatch, variable, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert run("--help")[0] == 0
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_fit_writes_a_store(run, pictures, tmp_path):
    code, out, _ = run(
        "fit",
        pictures,
        pictures,
        "-o",
        "s.safetensors",
        "--hidden",
        "9,7",
        "--w0",
        "20",
        "--steps",
        "40",
        "--seed",
        "3",
    )
    assert code == 0
    store = INRStore.load(tmp_path / "s.safetensors")
    assert store.spec == SirenSpec(hidden=(9, 7), w0=20.0)
    assert store.image_size == (8, 8)
    assert store.names == ("two[0]", "two[1]") * 2
    assert f"mean {store.psnr.mean():.1f} dB, min {store.psnr.min():.1f} dB" in out
    assert "4 networks" in out
    run(
        "fit",
        pictures,
        "-o",
        "again.safetensors",
        "--hidden",
        "9,7",
        "--w0",
        "20",
        "--steps",
        "40",
        "--seed",
        "3",
    )
    again = INRStore.load(tmp_path / "again.safetensors")
    for name, value in again.params.items():
        torch.testing.assert_close(value, store.params[name][:2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "none.png", "-o", "s.safetensors"], "none.png: no such file"),
        (["fit", "two.npy", "-o", "none/s.safetensors"], "--output must lie in an existing"),
        (["fit", "two.npy", "-o", "two.npy"], "--output must be a file that ends in .safetensors"),
        (["fit", "two.npy", "-o", "s.safetensors", "--hidden", "3,x"], "--hidden: expected widths"),
        (["fit", "two.npy", "-o", "s.safetensors", "--hidden", "0"], "hidden must be at least 1"),
        (["edit", "two.npy", "--recipe", "huge.yaml", "--out", "x"], "blur: strength must be at m"),
        (["edit", "two.npy", "--recipe", "less.yaml", "--out", "x"], "erode: strength must not be"),
        (["edit", "two.npy", "--recipe", "inver", "--out", "x"], "did you mean 'invert'"),
        (["edit", "two.npy", "--recipe", "rule.yaml", "--out", "x"], "unknown key 'kind'"),
        (["edit", "two.npy", "--recipe", "invert", "--out", "two.npy"], "out must be a fol"),
        (["edit", "two.npy", "--recipe", "dot.yaml", "--out", "x"], "size (8, 8), got (3, 3)"),
        (["edit", "two.npy", "--recipe", "warm", "--out", "x"], "expected pictures of 3 chan"),
        (["edit", "two.npy", "--recipe", "far.yaml", "--out", "x"], "crop must be within 0 and 1"),
        (["edit", "nan.npy", "--recipe", "invert", "--out", "x"], "got NaN or infinity in nan.npy"),
        (["edit", "empty.npy", "--recipe", "invert", "--out", "x"], "empty.npy: zero-sized"),
        (["edit", "bad.png", "--recipe", "invert", "--out", "x"], "must hold images, got bad.png"),
        (["edit", ".", "--recipe", "invert", "--out", "x"], "files that end in ('.pth', '.pt')"),
        (["edit", "no.safetensors", "--recipe", "zoom", "--out", "x"], "no such file"),
        (["meta-train", "zoom"], "kind: this key is missing"),
        (["meta-train", "kind.yaml"], "unknown kind 'rul'; choose from ['editor', 'rule']"),
        (["meta-train", "rule.yaml", "--processes", "2"], "torchrun --nproc_per_node 2 -m scale"),
        (["meta-train", "editor.yaml"], "--data: expected the folder that holds 'more.npz'"),
        (["meta-train", "editor.yaml", "--data", "none"], "no such file in none"),
        (["info", "nothing"], "unknown name 'nothing'"),
        (["info", "models:smal"], "unknown function 'smal'"),
        (["info", "models:wrong"], "expected (module, example_inputs), got int"),
        (["info", "nowhere:small"], "no module 'nowhere'"),
        (["info", "kind.yaml"], "unknown kind 'rul'"),
        (["info", "broken.safetensors"], "got a damaged one"),
    ],
)
def test_mistakes_are_lines_and_not_tracebacks(run, pictures, tmp_path, arguments, message):
    (tmp_path / "rule.yaml").write_text(RULE)
    (tmp_path / "editor.yaml").write_text(EDITOR)
    (tmp_path / "kind.yaml").write_text(RULE.replace("kind: rule", "kind: rul"))
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    np.save(tmp_path / "nan.npy", np.full((3, 4), np.nan))
    np.save(tmp_path / "empty.npy", np.zeros((0, 4)))
    np.save(tmp_path / "dot.npy", np.zeros((3, 3)))
    step = "name: a\nedits: [{edit: %s, strength: %s}]\n"
    (tmp_path / "far.yaml").write_text(step % ("crop", "2"))
    (tmp_path / "huge.yaml").write_text(step % ("blur", "1000000"))
    (tmp_path / "less.yaml").write_text(step % ("erode", "-1"))
    (tmp_path / "dot.yaml").write_text(step % ("invert", "1, mask: dot.npy"))
    try:
        code, out, errors = run(*arguments)
    finally:
        sys.modules.pop("models", None)
    assert code == 1
    lines = error_lines(errors)
    assert lines
    assert any(message in line for line in lines), lines
    assert "Traceback" not in out + errors
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "runs").exists()


def test_a_warning_is_one_line(run, tmp_path):
    np.save(tmp_path / "stroke.npy", np.eye(28))
    (tmp_path / "far.yaml").write_text("name: far\nedits: [{edit: dilate, strength: 1.5}]\n")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, errors = run(
            "edit", "stroke.npy", "--recipe", "far.yaml", "--out", "made", "--no-compare"
        )
    assert code == 0
    lines = [line for line in errors.splitlines() if "trained up to" in line]
    assert lines == ["warning: strength of dilate: trained up to 1, got 1.5"]
    assert "UserWarning" not in errors


def test_edit_of_images_is_measured_against_them(run, pictures, tmp_path):
    code, out, _ = run(
        "edit", pictures, "--recipe", "tilted_negative", "--out", "made", "--scale", "2"
    )
    assert code == 0
    report = json.loads((tmp_path / "made" / "report.json").read_text())
    assert report["input"] == str(pictures)
    assert report["recipe"] == "tilted_negative"
    assert report["count"] == 2
    assert report["ground_truth"] == "source images"
    edits = ["rotate", "zoom", "invert", "contrast"]
    assert [step["edit"] for step in report["edits"]] == edits
    assert report["total"]["mse"] == report["edits"][-1]["mse"] > 0
    assert (tmp_path / "made" / "comparison.png").is_file()
    assert (tmp_path / "made" / "edited_x2.png").is_file()
    assert f"{report['total']['mse']:.3g} to the target" in out


def test_a_repeated_edit_does_not_fit_again(run, pictures, tmp_path):
    run("edit", pictures, "--recipe", "invert", "--out", "made", "--no-compare")
    fitted = tmp_path / "made" / "fitted.safetensors"
    assert INRStore.load(fitted).names == ("two[0]", "two[1]")
    before = fitted.stat().st_mtime_ns
    run("edit", pictures, "--recipe", "rotate", "--out", "made", "--no-compare")
    assert fitted.stat().st_mtime_ns == before
    for changed in (["--hidden", "8,8"], ["--w0", "20"]):
        run("edit", pictures, "--recipe", "rotate", "--out", "made", "--no-compare", *changed)
        assert fitted.stat().st_mtime_ns != before
        before = fitted.stat().st_mtime_ns
    np.save(pictures, 1 - np.load(pictures))
    run("edit", pictures, "--recipe", "rotate", "--out", "made", "--no-compare", *changed)
    assert fitted.stat().st_mtime_ns != before


def test_edit_of_public_networks(run, tmp_path):
    from scalegmn_opt.inr import initial_parameters

    params = initial_parameters(SirenSpec(), 2, torch.Generator().manual_seed(0))
    for k in range(2):
        layers = {name.replace("layers", "seq"): value[k] for name, value in params.items()}
        (tmp_path / "inrs" / f"mnist_png_test_7_{k}").mkdir(parents=True)
        torch.save(layers, tmp_path / "inrs" / f"mnist_png_test_7_{k}" / "model_final.pth")
    code, _, _ = run("edit", "inrs", "--recipe", "slant", "--out", "made", "--no-compare")
    assert code == 0
    report = json.loads((tmp_path / "made" / "report.json").read_text())
    assert report["count"] == 2
    assert report["total"]["mse"] < 1e-10
    names = INRStore.load(tmp_path / "made" / "edited.safetensors").names
    assert names[1] == "mnist_png_test_7_1/model_final"


def test_an_interrupted_fit_says_how_to_go_on(run, pictures, tmp_path, monkeypatch):
    module = sys.modules["scalegmn_opt.inr.resume"]
    monkeypatch.setattr(module, "_PART_ELEMENTS", 1)  # a file for each network
    plain = module.fit_store

    def fit_store(images, names, *arguments, **options):
        if names == ("two[1]",):
            raise KeyboardInterrupt
        return plain(images, names, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "fit_store", fit_store)
        code, _, errors = run("fit", pictures, "-o", "s.safetensors", "--steps", "20")
    assert code == 130
    assert "finished networks are in s.safetensors.partial; the same command goes on" in errors
    assert len(list((tmp_path / "s.safetensors.partial").glob("*.safetensors"))) == 1
    code, _, errors = run("fit", pictures, "-o", "s.safetensors", "--steps", "21")
    assert code == 1
    assert "holds networks of other images or another fit" in error_lines(errors)[0]
    code, out, _ = run("fit", pictures, "-o", "s.safetensors", "--steps", "20", "--jobs", "2")
    assert code == 0
    assert "2 networks" in out
    assert not (tmp_path / "s.safetensors.partial").exists()


def test_fit_stops_at_a_psnr(run, pictures, tmp_path):
    run("fit", pictures, "-o", "s.safetensors", "--target-psnr", "25")
    psnr = INRStore.load(tmp_path / "s.safetensors").psnr
    assert 25 <= psnr.min() < psnr.max() < 35


@pytest.mark.parametrize(("side", "widths"), [(32, (32, 32)), (33, (64,) * 3), (129, (128,) * 3)])
def test_larger_pictures_get_wider_networks(run, tmp_path, side, widths):
    np.save(tmp_path / "a.npy", np.full((side, side), 0.5, np.float32))
    assert run("fit", "a.npy", "-o", "s.safetensors", "--steps", "1")[0] == 0
    assert INRStore.load(tmp_path / "s.safetensors").spec.hidden == widths


def test_an_interrupted_edit_goes_on(run, store, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    arguments = ["edit", store, "--recipe", "tilted_negative", "--out", "made", "--no-compare"]
    with monkeypatch.context() as patched:
        patched.setattr(EDITS["contrast"].__class__, "apply", interrupt)
        code, _, errors = run(*arguments)
    assert code == 130
    assert "finished edits are in made/unfinished; the same command goes on" in errors
    kept = {path.name for path in (tmp_path / "made" / "unfinished").glob("*.safetensors")}
    assert kept == {f"0{i}-00000000.safetensors" for i in range(3)}
    code, _, errors = run(*arguments[:3], "invert", *arguments[4:])
    assert code != 0
    assert "another recipe" in errors
    assert run(*arguments)[0] == 0
    assert not (tmp_path / "made" / "unfinished").exists()
    assert (tmp_path / "made" / "edited.safetensors").is_file()


def test_edit_with_copies(run, store, tmp_path):
    refused = run("edit", store, "--recipe", "invert", "--out", "x", "--copies", "2")
    assert refused[0] != 0
    assert "copies are those of a learned edit" in refused[2]
    np.save(tmp_path / "digit.npy", np.full((28, 28), 0.5, np.float32))
    for copies in ("1", "2", "4", "8"):
        code, _, _ = run(
            *("edit", "digit.npy", "--recipe", "dilate", "--out", "made", "--steps", "2"),
            *("--no-compare", "--scale", "1", "--copies", copies),
        )
        assert code == 0
        edited = INRStore.load(tmp_path / "made" / "edited.safetensors")
        assert edited.spec.hidden == (32 * int(copies),) * 2


def test_edit_of_a_store_is_measured_against_its_renders(run, store, tmp_path):
    code, _, _ = run(
        "edit", store, "--recipe", "invert", "--out", "made", "--no-compare", "--scale", "1"
    )
    assert code == 0
    report = json.loads((tmp_path / "made" / "report.json").read_text())
    assert report["ground_truth"] == "renders of the networks"
    assert report["total"]["mse"] < 1e-10
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names == {
        "input.png",
        "edited.png",
        "target.png",
        "difference.png",
        "report.json",
        "report.md",
        "edited.safetensors",
    }
    edited, original = (INRStore.load(p) for p in (tmp_path / "made/edited.safetensors", store))
    torch.testing.assert_close(
        edited.params["layers.2.weight"], -original.params["layers.2.weight"]
    )


def test_meta_training_of_a_rule(run, tmp_path):
    (tmp_path / "rule.yaml").write_text(RULE)
    code, out, _ = run("meta-train", "rule.yaml", "--processes", "1")
    assert code == 0
    folder = tmp_path / "runs" / "tiny"
    rule = UpdateRule.from_pretrained(folder / "weights.safetensors")
    assert rule.config["channels"] == 4
    assert (folder / "meta.png").is_file()
    assert "weights.safetensors" in out
    code, _, errors = run("meta-train", "rule.yaml")
    assert code == 1
    assert "holds checkpoints; add --resume" in error_lines(errors)[0]
    (tmp_path / "rule.yaml").write_text(RULE.replace("steps: 3", "steps: 5"))
    assert run("meta-train", "rule.yaml", "--resume")[0] == 0
    assert len((folder / "log.jsonl").read_text().splitlines()) == 5
    (tmp_path / "rule.yaml").write_text(RULE.replace("networks: 2", "networks: 3"))
    code, _, errors = run("meta-train", "rule.yaml", "--resume")
    assert code == 1
    expected = "error: --resume: the run in runs/tiny has networks 2, not 3"
    assert error_lines(errors) == [expected]
    assert json.loads((folder / "recipe.json").read_text())["networks"] == 2


def test_meta_training_keeps_the_best_by_validation(run, tmp_path):
    validation = "validation: {suite: tiny/validation, every: 2, runs: 1, steps: 3}\n"
    (tmp_path / "rule.yaml").write_text(f"{RULE}\nestimator: pes\n{validation}")
    code, out, _ = run("meta-train", "rule.yaml", "--out", "here")
    assert code == 0
    UpdateRule.from_pretrained(tmp_path / "here" / "best.safetensors")
    assert "best.safetensors" in out
    lines = (tmp_path / "here" / "log.jsonl").read_text().splitlines()
    assert ["validation" in json.loads(line) for line in lines] == [False, True, True]


def test_a_missing_tracker_is_one_clear_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("scalegmn_opt.meta.tracking.get_available_trackers", lambda: [])
    (tmp_path / "rule.yaml").write_text(RULE)
    code, _, errors = run("meta-train", "rule.yaml", "--tracker", "wandb")
    assert code == 1
    assert error_lines(errors) == ["error: --tracker: wandb is not installed: pip install wandb"]
    assert run("meta-train", "rule.yaml", "--tracker", "paper")[0] == 2


def test_meta_training_without_matplotlib(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "rule.yaml").write_text(RULE)
    code, out, _ = run("meta-train", "rule.yaml", "--out", "here")
    assert code == 0
    assert "no picture of the meta-loss: figures need matplotlib" in out
    assert (tmp_path / "here" / "weights.safetensors").is_file()


def test_meta_training_of_an_editor_fits_its_networks_once(run, tmp_path):
    (tmp_path / "editor.yaml").write_text(EDITOR)
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "more.npz", x_train=images)
    arguments = ["meta-train", "editor.yaml", "--data", tmp_path, "--out", "out"]
    assert run(*arguments)[0] == 0
    networks = tmp_path / "out" / "inrs.safetensors"
    store = INRStore.load(networks)
    assert store.names == ("digits[0]", "digits[1]", "digits[2]", "more[0]", "more[1]", "more[2]")
    LearnedEditor.from_pretrained(tmp_path / "out" / "weights.safetensors")
    fitted = networks.stat().st_mtime_ns
    (tmp_path / "editor.yaml").write_text(EDITOR.replace("steps: 2", "steps: 4"))
    assert run(*arguments, "--resume")[0] == 0
    assert networks.stat().st_mtime_ns == fitted
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 4
    (tmp_path / "editor.yaml").write_text(EDITOR.replace("count: 3", "count: 2"))
    code, _, errors = run(*arguments, "--resume")
    assert code == 1
    assert error_lines(errors)[0] == "error: --resume: the run in out has count 3, not 2"


def test_photographs_are_a_source_of_patches():
    recipe = load_recipe("colour_patches_editor", EditorRecipe)
    images, names = training_images(recipe, None)
    assert images.shape == (recipe.count, 3, recipe.size, recipe.size)
    assert names[:2] == ("patches[0]", "patches[1]")


def test_sources_of_unequal_channels(run, tmp_path):
    (tmp_path / "editor.yaml").write_text(EDITOR)
    np.savez(tmp_path / "more.npz", np.zeros((3, 8, 8, 3), np.uint8))
    code, _, errors = run("meta-train", "editor.yaml", "--data", tmp_path)
    assert code == 1
    assert "one number of channels in all sources, got {'digits': 1, 'more.npz': 3}" in errors


@pytest.mark.slow
def test_meta_training_in_two_processes(tmp_path):
    (tmp_path / "rule.yaml").write_text(RULE)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29533",
        "-m",
        "scalegmn_opt.cli",
        "meta-train",
        tmp_path / "rule.yaml",
        "--out",
        tmp_path / "out",
        "--processes",
        "2",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert shown.stdout.count("weights.safetensors") == 1
    UpdateRule.from_pretrained(tmp_path / "out" / "weights.safetensors")


@pytest.fixture
def models(tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    yield
    sys.modules.pop("models", None)


@pytest.mark.usefixtures("models")
def test_info_of_a_model(run):
    code, out, _ = run("info", "models:small")
    assert code == 0
    cells = [[cell for cell in line.split("  ") if cell] for line in out.splitlines()]
    cells = [[cell.strip() for cell in line] for line in cells]
    assert ["1", "0:out", "5", "hidden, relu", "yes", "positive"] in cells
    assert ["2.weight", "2 x 5", "2:out <- 0:out"] in cells
    assert "parameters: 32, each in one block" in out
    assert "check: passed" in out


@pytest.mark.usefixtures("models")
def test_info_names_what_was_not_understood(run):
    code, out, _ = run("info", "models:odd")
    assert code == 0
    assert "note: no rule for operator aten.special_bessel_j0" in out


@pytest.mark.usefixtures("models")
def test_info_fails_where_a_symmetry_is_wrong(run, monkeypatch):
    failed = Verification(error=0.5, tolerance=1e-8)
    monkeypatch.setattr("scalegmn_opt.info.verify", lambda *arguments: failed)
    code, out, _ = run("info", "models:small")
    assert code == 1
    assert "check: FAILED" in out
    assert "5.0e-01" in out


def test_info_of_files_and_recipes(run, store, tmp_path):
    rule = UpdateRule(channels=4, message_channels=2, hidden_channels=4)
    rule.save_pretrained(tmp_path / "rule.safetensors")
    count = sum(value.numel() for value in rule.state_dict().values())
    _, out, _ = run("info", "rule.safetensors")
    assert f"{count} in " in out
    assert "none beside the file" in out
    (tmp_path / "rule.md").write_text("a card")
    assert "rule.md" in run("info", "rule.safetensors")[1]
    _, out, _ = run("info", store.name)
    assert "2-6-6-1" in out
    assert "6 x 6" in out
    (tmp_path / "mine.yaml").write_text(RULE)
    for subject, text in {
        "dilate": '"strength": 1.0',
        "colour_patches_editor": "editor recipe",
        "mine.yaml": "quadratic",
    }.items():
        code, out, _ = run("info", subject)
        assert code == 0
        assert text in out


def test_info_of_packaged_weights(run, tmp_path, monkeypatch):
    rule = UpdateRule(channels=4, message_channels=2, hidden_channels=4)
    rule.save_pretrained(tmp_path / "packaged.safetensors")
    monkeypatch.setattr("scalegmn_opt.info.pretrained.available", lambda: ["packaged"])
    monkeypatch.setattr("scalegmn_opt.info.resources.files", lambda package: tmp_path)
    code, out, _ = run("info", "packaged")
    assert code == 0
    assert "rule" in out
