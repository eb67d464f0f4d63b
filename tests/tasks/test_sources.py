"""Data sets for meta-training."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import interpolate

from scalegmn_opt.tasks import digits
from scalegmn_opt.tasks.data import SPLITS, Dataset
from scalegmn_opt.tasks.glyphs import drawn, glyphs
from scalegmn_opt.tasks.signals import signals
from scalegmn_opt.tasks.sources import (
    SOURCES,
    noisy,
    patches,
    picture,
    reconstruction,
    table,
    teacher,
    text,
    with_classes,
)
from scalegmn_opt.tasks.words import language


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(inputs):
    return {tuple(x) for x in inputs.tolist()}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_source_has_three_parts_and_depends_on_its_generator_alone(name):
    first, second = (SOURCES[name].make(seeded(3), 20) for _ in range(2))
    for split in SPLITS:
        for a, b in zip(first.part(split), second.part(split), strict=True):
            assert torch.equal(a, b)
            assert a.isfinite().all()
    assert len(first.train_inputs) > len(first.validation_inputs) > 0
    assert (first.classes is None) == first.train_targets.is_floating_point()


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"text", "text-late", "words"}))
def test_no_held_out_sample_is_a_training_sample(name):
    data = SOURCES[name].make(seeded(), 20)
    train = rows(data.train_inputs)
    assert not train & rows(data.validation_inputs)
    assert not train & rows(data.test_inputs)


def test_halves_of_the_text_are_different_topics():
    early, late = text(late=False), text(late=True)
    assert early.classes == late.classes
    shared = rows(early.train_inputs[:4000]) & rows(late.train_inputs[:4000])
    assert len(shared) < 100  # set phrases of the documentation
    assert torch.equal(early.train_inputs[0, 1:], early.train_targets[0, :-1])


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "diabetes"])
def test_tables_are_standardised_by_their_training_part(name):
    data = table(name)
    torch.testing.assert_close(
        data.train_inputs.mean(0), torch.zeros(data.features), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(data.train_inputs.std(0), torch.ones(data.features))
    assert data.validation_inputs.mean(0).abs().max() > 1e-3


@pytest.mark.parametrize(
    "data",
    [signals(), patches(), teacher(seeded(), 30, regression=False), glyphs(seeded(), 144)],
    ids=["signals", "patches", "teacher", "glyphs"],
)
def test_drawn_classes_can_be_learned_and_are_not_trivial(data):
    """A linear classifier by least squares is above chance, not perfect, on held-out samples."""
    wanted = torch.nn.functional.one_hot(data.train_targets, data.classes).float()
    bias = torch.ones(len(data.train_inputs), 1)
    inputs = torch.cat([data.train_inputs, bias], 1)
    weights = torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution  # corners are always 0
    scores = data.validation_inputs @ weights[:-1] + weights[-1]
    accuracy = (scores.argmax(1) == data.validation_targets).float().mean()
    assert 1.3 / data.classes < accuracy < 0.95
    assert data.train_targets.bincount(minlength=data.classes).min() > 0


def test_moved_digits_are_digits():
    """Of the size asked for; the mean picture of a class is most like that class's digits."""
    data = SOURCES["moved-digits"].make(seeded(), 150)
    assert data.shape == (1, 12, 12)
    assert len(data.train_inputs) == 12000
    assert 0 <= data.train_inputs.min() < data.train_inputs.max() <= digits().train_inputs.max()
    inputs, targets = digits().part("training")
    large = interpolate(inputs.reshape(-1, 1, 8, 8), size=(12, 12), mode="bilinear").flatten(1)
    means = [
        torch.stack([x[y == label].mean(0) for label in range(10)])
        for x, y in ((large, targets), data.part("training"))
    ]
    likeness = torch.corrcoef(torch.cat(means))[:10, 10:]
    assert likeness.argmax(1).tolist() == list(range(10))
    assert len(rows(data.train_inputs[:100])) == 100


def test_glyphs_are_strokes_of_the_size_asked_for():
    data = glyphs(seeded(), 250)
    assert data.shape == (1, 16, 16)
    assert [len(data.part(split)[1]) for split in SPLITS] == [12000, 1000, 1000]
    assert 0 <= data.train_inputs.min() < 0.01
    assert 0.9 < data.train_inputs.max() <= 1
    ink = (data.train_inputs > 0.5).float().mean(1)
    assert ink.quantile(0.01) > 0.01
    assert ink.quantile(0.99) < 0.4
    other = glyphs(seeded(1), 250)
    means = [
        torch.stack([d.train_inputs[d.train_targets == c].mean(0) for c in range(10)])
        for d in (data, other)
    ]
    assert (means[0] - means[1]).square().mean(1).sqrt().min() > 0.02  # signs of its own


def test_a_stroke_goes_through_its_ends_and_is_where_it_should_be():
    points = torch.tensor([[[-0.5, -0.5], [-0.25, -0.25], [0.0, 0.0], [0.25, 0.25], [0.5, 0.5]]])
    (made,) = drawn(points, 21)
    pixels = made[0]
    torch.testing.assert_close(pixels, pixels.T)
    assert pixels.diagonal()[6:15].min() > 0.9
    assert pixels[0, 20] < 1e-3
    assert pixels.diagonal()[:3].max() < 0.05


def test_words_come_again_and_follow_each_other():
    string = language(seeded())
    spoken = string.replace(",", "").replace(".", "").split()
    assert len(spoken) == 10000
    assert len(set(spoken)) <= 300
    assert set(string) <= set("abcdefghijklmnopqrstuvwxyz ,.\n")
    counts = Counter(spoken).most_common()
    assert counts[0][1] > 5 * counts[20][1] > 0
    pairs = Counter(pairwise(spoken))
    first = counts[0][0]
    after = [n for (a, _), n in pairs.items() if a == first]
    assert max(after) > 0.1 * counts[0][1]
    assert language(seeded(1)) != string == language(seeded())
    data = SOURCES["words"].make(seeded(), 0)
    assert data.classes == 96
    assert torch.equal(data.train_inputs[0, 1:], data.train_targets[0, :-1])
    assert "".join(chr(31 + c) if c else "\n" for c in data.train_inputs[0]) == string[:24]


def test_a_teacher_gives_numbers_of_deviation_one():
    data = teacher(seeded(), 6, regression=True)
    assert data.train_targets.shape == (900, 3)
    everything = torch.cat([data.part(split)[1] for split in SPLITS])
    torch.testing.assert_close(everything.std(0), torch.ones(3))
    assert data.train_inputs.square().mean() == pytest.approx(1, rel=0.1)


def test_leaves_have_areas_of_one_colour_with_edges():
    data = SOURCES["leaves-picture"].make(seeded(), 0)
    parts = [data.part(split) for split in SPLITS]
    coords, pixels = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    order = (coords[:, 0] * 100 + coords[:, 1]).argsort()
    values = pixels[order].reshape(32, 32, 3)
    change = (values[1:] - values[:-1]).abs().amax(2)
    assert 0.5 < (change == 0).float().mean() < 0.95
    assert change[change > 0].mean() > 0.5  # in deviations
    assert 30 < len(rows(pixels)) < 400


def test_a_picture_is_its_pixels_at_their_coordinates():
    values = torch.arange(6.0).reshape(1, 2, 3)
    data = picture(values, name="ramp", generator=seeded())
    parts = [data.part(split) for split in SPLITS]
    coords, pixels = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    order = (coords[:, 0] * 10 + coords[:, 1]).argsort()
    expected = (values.flatten() - values.mean()) / values.std()
    torch.testing.assert_close(pixels[order, 0], expected)


def test_reconstruction_has_its_inputs_as_targets():
    data = reconstruction(digits())
    assert data.train_targets is data.train_inputs
    assert data.classes is None
    assert data.train_inputs.std() == pytest.approx(1)
    assert data.shape == (1, 8, 8)


def test_label_noise_touches_training_labels_alone():
    data = digits()
    wrong = noisy(data, 0.5, generator=seeded())
    changed = (wrong.train_targets != data.train_targets).float().mean()
    assert 0.4 < changed < 0.5  # a tenth of those drawn anew are right by chance
    assert torch.equal(wrong.validation_targets, data.validation_targets)
    numbers = table("diabetes")
    blurred = noisy(numbers, 0.5, generator=seeded()).train_targets - numbers.train_targets
    assert blurred.std() == pytest.approx(0.5, rel=0.1)


def test_chosen_classes_are_numbered_in_the_order_given():
    data, labels = digits(), torch.tensor([7, 2, 5])
    chosen = with_classes(data, labels)
    assert chosen.classes == 3
    for split in SPLITS:
        inputs, targets = chosen.part(split)
        known = {
            tuple(x): int(y)
            for x, y in zip(data.part(split)[0].tolist(), data.part(split)[1], strict=True)
        }
        assert [known[tuple(x)] for x in inputs.tolist()] == labels[targets].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": None}, r"expected.*\(samples, outputs\), got"),
        ({"shape": (1, 3)}, r"shape: expected a product of 4, got \(1, 3\)"),
        ({"classes": 1}, r"targets in 0\.\.0, got 0\.\.1"),
    ],
)
def test_a_data_set_checks_its_form(options, message):
    x, y = torch.zeros(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=message):
        Dataset(x, y, x, y, x, y, **({"classes": 2, "name": "wrong"} | options))


def test_targets_of_a_sequence_are_one_for_each_position():
    x, y = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"targets \(samples, features\)"):
        Dataset(x, y, x, y, x, y, classes=2, name="wrong")
