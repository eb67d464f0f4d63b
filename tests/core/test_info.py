"""What `scalegmn-opt info` says of a model and of all symmetries, and the picture of a graph."""

import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from zoo import ZOO

from scalegmn_opt import cli, info_symmetries
from scalegmn_opt.graph import ACTIVATIONS, NONZERO_SCALE, SIGN, TraceWarning, WeightGraph, trace
from scalegmn_opt.graph.rules import RULES
from scalegmn_opt.graph_figure import draw_graph, kind
from scalegmn_opt.graph_layout import lay_out
from scalegmn_opt.info_model import block_table, fixed_weights, group_parts, summary
from scalegmn_opt.info_symmetries import BEGIN, END, says, statement, symmetry_tables, updated
from scalegmn_opt.names import common_prefix, fold_layers, ranges

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "symmetries.md"
MODELS = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), (torch.zeros(1, 3),)
"""


class Sorted(nn.Module):
    """A network whose first layer is read by its positions."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.first(x).sort(-1).values)


@pytest.fixture(scope="module")
def mlp():
    return trace(*ZOO["mlp"].make())


@pytest.fixture(scope="module")
def encoder():
    layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
    layers = nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 2))
    return trace(layers, (torch.randn(2, 4, 5),))


@pytest.fixture(scope="module")
def gpt2():
    return trace(*ZOO["gpt2"].make())


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run in a folder with a model: (exit code, output, errors)."""
    (tmp_path / "models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    yield run
    sys.modules.pop("models", None)


def cells(table):
    """The rows of a table, without the lines that cells are folded into."""
    columns = [[cell.replace("\n", "") for cell in column.cells] for column in table.columns]
    names = [column.header for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def shown(*parts):
    console = Console(width=200, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def test_groups_and_blocks_of_an_mlp(mlp):
    (table,) = group_parts(mlp)
    rows = {row["name"]: row for row in cells(table)}
    assert rows["0:out"] == {
        "#": "1",
        "name": "0:out",
        "size": "11",
        "role": "hidden, relu",
        "reorders": "yes",
        "scale": "positive",
    }
    assert rows["0:in"]["role"] == "input"
    assert (rows["4:out"]["reorders"], rows["4:out"]["scale"]) == ("no", "none")
    blocks = {row["block"]: row for row in cells(block_table(mlp))}
    assert blocks["2.weight"] == {
        "block": "2.weight",
        "shape": "13 x 11",
        "target <- source": "2:out <- 0:out",
    }
    assert blocks["2.bias"]["target <- source"] == "2:out <- 1"


def test_summary_of_an_mlp(mlp):
    parameters, neurons, weights, fixed = summary(mlp, 286)
    assert parameters == "parameters: 286, each in one block"
    assert neurons.startswith("neurons: 34, of which 24 (70%) may be reordered and 24 (70%)")
    assert "283 (98%) may be reordered" in weights
    assert fixed == "weights between fixed neurons: 3 of 286: 3 at outputs"
    assert "but 286 IN BLOCKS" in summary(mlp, 287)[0]


def test_groups_of_attention(encoder):
    table = group_parts(encoder)[0]
    rows = cells(table)
    heads = [row for row in rows if row["reorders"] == "3, 4 in each"]
    assert len(heads) == 3
    queries, keys, values = heads
    number = f"#{queries['#']}"
    assert keys["ties"] == f"order as {number}, inverse scale of {number}"
    assert values["ties"] in (f"order as {number}", f"order of 3 as {number}")
    assert any(row["scale"] == "positive, one for all" for row in rows)
    assert any("normalised away" in row["ties"] for row in rows)


def test_layers_that_are_alike_are_one_row(gpt2):
    table = group_parts(gpt2)[0]
    assert "17 in 11 rows; layers [a-b] are alike; names begin with model.transformer." in shown(
        table
    )
    (row,) = (row for row in cells(table) if row["name"] == "h.[0-1].ln_1:out")
    assert row["ties"] == "order as #1"
    assert len(cells(block_table(gpt2))) == 20


def test_folds_and_kernels_are_shown():
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten()
    graph = trace(nn.Sequential(*layers), (torch.randn(1, 3, 5, 5),))
    rows = {row["block"]: row for row in cells(block_table(graph))}
    assert rows["2.weight"]["kernel"] == "3 x 3"
    assert rows["2.weight"]["folds"] == "2"
    assert rows["0.weight"]["folds"] == ""
    assert sum(fixed_weights(graph).values()) == 8  # the biases of the outputs


def test_the_reason_of_what_is_fixed_is_shown():
    graph = trace(Sorted(), (torch.randn(2, 3),))
    _, *reasons = group_parts(graph)
    assert any("sort" in reason for reason in reasons)
    assert "sort" in summary(graph, 26)[-1]


def test_what_was_not_understood_has_a_reason():
    with pytest.warns(TraceWarning, match="bessel"):
        graph = trace(Bessel(), (torch.ones(1, 3),))
    assert any("bessel" in str(part) for part in group_parts(graph)[1:])


class Bessel(Sorted):
    def forward(self, x):
        return self.last(torch.special.bessel_j0(self.first(x)))


def test_names_are_shortened():
    assert common_prefix(["a.b.c:out", "a.b.d:out"]) == "a.b."
    assert common_prefix(["a.layers.0.x", "a.layers.1.x"]) == "a."
    assert common_prefix(["0.x", "2.x"]) == common_prefix([]) == common_prefix(["a.b"]) == ""
    assert ranges([3, 0, 1, 2, 7]) == "0-3, 7"
    rows = [("a.0.x", "5"), ("a.1.x", "5"), ("a.2.x", "6"), ("b", "a.0.x")]
    assert fold_layers(rows) == [("a.[0-1].x", "5"), ("a.2.x", "6"), ("b", "a.0.x")]


def test_symmetries_have_every_activation_and_operator():
    text = shown(*symmetry_tables())
    for name in ACTIVATIONS:
        assert name in text
    activations = info_symmetries.activation_rows()
    operators = [row[2] for row in activations] + [
        row[0] for row in info_symmetries.operator_rows()
    ]
    listed = {name for names in operators for name in names.split(", ")}
    for operator in RULES:
        name = getattr(operator, "__name__", str(operator)).removeprefix("aten.")
        assert name in listed
    assert says(NONZERO_SCALE) == "reordered, rescaled (q ≠ 0)"
    assert says(SIGN) == "reordered, negated"


def test_every_rule_says_what_it_does():
    for rule in RULES.values():
        assert statement(rule)

    def silent(program, node):
        return None

    with pytest.raises(ValueError, match="expected a docstring"):
        statement(silent)


def test_the_document_is_up_to_date():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert updated(text) == text, f"run: python -m scalegmn_opt.info_symmetries {DOCUMENT.name}"
    assert (DOCUMENT.parent / "graph.png").is_file()


def test_the_command_shows_symmetries(run):
    code, out, _ = run("info", "symmetries")
    assert code == 0
    assert "gru, lstm" in out
    assert "rescaled (q > 0)" in out


def test_plot_writes_a_picture(run, tmp_path):
    code, out, _ = run("info", "models:small", "--plot", "graph.png")
    assert code == 0
    assert "graph: graph.png" in out
    assert "check: passed" in out
    picture = (tmp_path / "graph.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000


def test_plot_without_matplotlib(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, errors = run("info", "models:small", "--plot", "graph.png")
    assert code == 1
    assert 'error: figures need matplotlib: pip install "scalegmn-opt[images]"' in errors
    assert not (tmp_path / "graph.png").exists()


def test_plot_needs_a_model_and_a_folder(run):
    code, _, errors = run("info", "symmetries", "--plot", "graph.png")
    assert code == 1
    assert "--plot: expected a model, package.module:factory, got 'symmetries'" in errors
    code, _, errors = run("info", "models:small", "--plot", "no/graph.png")
    assert code == 1
    assert "--plot must lie in an existing folder, got no/graph.png" in errors


def test_unknown_names(run):
    code, _, errors = run("info", "models:smal")
    assert code == 1
    assert "small" in errors
    code, _, errors = run("info", "symetries")
    assert code == 1
    assert "symmetries" in errors


@pytest.mark.parametrize("name", ["mlp", "gpt2", "llama", "resnet", "densenet", "unet_transposed"])
def test_every_group_has_a_place_of_its_own(name):
    graph = trace(*ZOO[name].make())
    layout = lay_out(graph)
    assert {bar.group for bar in layout.bars} == {g.name for g in graph.groups} - {"1"}
    for i, a in enumerate(layout.bars):
        assert 0 <= a.left < a.right <= layout.width + 1e-9
        for b in layout.bars[:i]:
            assert a.right <= b.left or b.right <= a.left or abs(a.y - b.y) > 0.9


def test_a_long_network_goes_on_in_further_rows():
    layers = [m for _ in range(30) for m in (nn.Linear(4, 4), nn.Tanh())]
    layout = lay_out(trace(nn.Sequential(*layers), (torch.randn(2, 4),)))
    assert layout.width < 26
    assert layout.height > 1


def test_a_residual_stream_is_a_bar_over_its_branches(gpt2):
    bars = {bar.group: bar for bar in lay_out(gpt2).bars}
    stream, hidden = bars["model.transformer.wte:out"], bars["model.transformer.h.1.mlp.c_fc:out"]
    assert stream.left < hidden.left < hidden.right < stream.right
    assert stream.y < hidden.y


def test_a_picture_of_parameters_that_are_not_understood():
    graph = WeightGraph.from_parameters({"a.weight": (3, 2), "a.bias": (3,)})
    assert {kind(group) for group in graph.groups} == {"fixed"}
    figure = draw_graph(graph, title="parts")
    assert figure.legends[0].get_texts()[0].get_text() == "fixed"
