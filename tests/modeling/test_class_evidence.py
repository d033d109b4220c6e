"""What the classes of a classifier say about names: pooling over boxes, probabilities, and likeness of words."""

import math

import torch
from torch.testing import assert_close

from glipv2_d2.modeling.class_evidence import (
    box_cell_shares,
    centred,
    kept_probabilities,
    name_evidence,
    name_ratios,
)


def test_a_box_shares_its_area_among_the_cells_it_covers():
    # Cells of 10 pixels, 2 rows of 3. The box covers columns 0 (half), 1 and 2 (half), and row 0 (4 of 10) and 1.
    shares = box_cell_shares(torch.tensor([[5.0, 6.0, 25.0, 20.0]]), 10, 2, 3)
    rows, columns = [4 / 14, 10 / 14], [5 / 20, 10 / 20, 5 / 20]
    assert_close(shares, torch.tensor([[row * column for row in rows for column in columns]]))


def test_the_mean_over_a_box_is_that_of_its_pixels():
    cells = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    pixels = cells.repeat_interleave(10, 0).repeat_interleave(10, 1)
    box = torch.tensor([[3.0, 7.0, 28.0, 18.0]])
    assert_close((box_cell_shares(box, 10, 2, 3) @ cells.flatten()).item(), pixels[7:18, 3:28].mean().item())


def test_a_box_without_area_or_outside_takes_the_nearest_cell():
    boxes = torch.tensor([[15.0, 5.0, 15.0, 5.0], [-40.0, -40.0, -20.0, -30.0], [100.0, 5.0, 130.0, 8.0]])
    expected = [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
    assert_close(box_cell_shares(boxes, 10, 2, 3), torch.tensor(expected).float())


def test_only_the_likeliest_classes_keep_a_probability():
    logits = torch.tensor([[2 * math.log(3), 0.0, -9.0, -9.0]])
    assert_close(kept_probabilities(logits, temperature=2.0, kept=2), torch.tensor([[0.75, 0.25, 0.0, 0.0]]))
    assert_close(kept_probabilities(logits, 2.0, kept=99), (logits / 2).softmax(dim=1))


def test_word_vectors_are_centred_between_two_scalings():
    # Units (1, 0) and (0, 1); their mean (.5, .5); the differences (.5, -.5) and (-.5, .5).
    side = math.sqrt(0.5)
    expected = torch.tensor([[side, -side], [-side, side]])
    assert_close(centred(torch.tensor([[3.0, 0.0], [0.0, 0.2]])), expected)
    assert_close(centred(torch.tensor([[0.0, 5.0]]), torch.tensor([0.5, 0.5])), expected[1:])


def test_a_name_is_compared_with_what_the_names_of_all_classes_get():
    classes = torch.eye(2)
    names = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # e^(cos / .5): own 1, other 0, so the mean over the class names is (e^2 + 1) / 2.
    mean, e = (math.exp(2) + 1) / 2, math.exp(2)
    expected = torch.tensor([[e / mean, 1 / mean, 1 / e / mean], [1 / mean, e / mean, 1 / mean]])
    ratios = name_ratios(classes, names, temperature=0.5)
    assert_close(ratios, expected)
    evidence = name_evidence(torch.tensor([[0.25, 0.75]]), ratios)
    assert_close(evidence[0, 0].item(), math.log((0.25 * e + 0.75) / mean))
    # A further name changes nothing for the others.
    assert_close(name_ratios(classes, names[:1], temperature=0.5), expected[:, :1])


def test_evidence_stays_finite_where_no_kept_class_is_like_a_name():
    assert_close(name_evidence(torch.zeros(1, 2), torch.ones(2, 1)), torch.tensor([[math.log(1e-6)]]))
