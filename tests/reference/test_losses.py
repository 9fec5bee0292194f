"""Detail aggregation and losses on cases small enough to work out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from stdc_fast.reference import (
    DetailAggregation,
    OhemCrossEntropy,
    SegmentationLoss,
    TrainingOutput,
    detail_loss,
    dice_loss,
    soft_jaccard_loss,
)


def detail(rows: list[str]) -> list[str]:
    labels = torch.tensor([[int(c) for c in row] for row in rows])[None]
    result = DetailAggregation()(labels)[0, 0]
    assert set(result.unique().tolist()) <= {0.0, 1.0}
    return ["".join("#" if v else "." for v in row) for row in result.tolist()]


def test_single_pixel_is_its_own_edge():
    # The pixel at (1, 1) is 8 - 0 > 0 at stride 1, its neighbours are negative and dropped. Strides 2
    # and 4 look at even positions only, where the Laplacian is -1 or 0.
    assert detail(["0000", "0100", "0000", "0000"]) == ["....", ".#..", "....", "...."]


def test_stride_two_widens_an_edge():
    # At (2, 2) strides 1 and 2 both see it; stride 2 brings its cell back as the 2x2 block at rows and
    # columns 2, 3. Stride 4 samples (0, 0) and (4, 4), where there is nothing.
    rows = ["000000", "000000", "001000", "000000", "000000", "000000"]
    assert detail(rows) == ["......", "......", "..##..", "..##..", "......", "......"]


def test_stride_four_alone_is_not_an_edge():
    # At (4, 4) of 8x8 all three strides respond: 4x4 block at stride 4 has only weight 0.1, which is not
    # more than the threshold; the 2x2 block of stride 2 (0.3) and the pixel itself (0.6) are.
    rows = ["0" * 8] * 4 + ["00001000"] + ["0" * 8] * 3
    expected = ["." * 8] * 4 + ["....##..", "....##.."] + ["." * 8] * 2
    assert detail(rows) == expected


def test_flat_labels_have_edges_at_the_image_border_only():
    # Zero padding: on the border 8 c minus fewer than eight neighbours is positive, at strides 1 and 2.
    # Stride 2 sees (0, 0), (0, 2) and (2, 0) and fills their 2x2 blocks; (2, 2) is flat for both, and
    # stride 4, whose one sample is (0, 0), adds only 0.1 there.
    assert detail(["3333"] * 4) == ["####", "####", "##.#", "####"]
    assert detail(["0000"] * 4) == ["...."] * 4


def test_higher_class_id_carries_the_edge():
    # Between 0 and 2 the Laplacian is positive on the side of 2 only, in column 3; class 0 never is.
    rows = ["000222"] * 6
    result = detail(rows)
    assert [row[:3] for row in result] == ["..."] * 6
    assert all(row[3] == "#" for row in result)


def test_dice_by_hand():
    # p = 0.5 everywhere, one of four pixels set: 1 - (2 * 0.5 + 1) / (2 + 1 + 1).
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert dice_loss(torch.zeros(1, 2, 2), target).item() == pytest.approx(0.5)
    sure = torch.where(target > 0, 50.0, -50.0)
    assert dice_loss(sure, target).item() == pytest.approx(0.0, abs=1e-6)
    # Mean over images: the second has nothing to find and nothing found.
    both = dice_loss(
        torch.stack([torch.zeros(2, 2), torch.full((2, 2), -50.0)]), torch.cat([target, target * 0])
    )
    assert both.item() == pytest.approx(0.25)


def test_detail_loss_resizes_the_logits():
    bce, dice = detail_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 8, 8))
    assert bce.item() == pytest.approx(math.log(2))
    assert dice.item() == pytest.approx(1 - (64 + 1) / (32 + 64 + 1))


def logits_for(probabilities: list[float]) -> torch.Tensor:
    """Two-class logits ``[1, 2, 1, W]`` that give class 0 these probabilities."""
    p = torch.tensor(probabilities)
    return torch.stack([p.log(), (1 - p).log()])[None, :, None]


def test_ohem_takes_the_hard_pixels():
    # -log p > -log 0.7 for 0.5 and 0.2 only.
    loss = OhemCrossEntropy(0.7, 0)(logits_for([0.9, 0.5, 0.2, 0.8]), torch.zeros(1, 1, 4, dtype=torch.long))
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2, rel=1e-5)


def test_ohem_keeps_the_hardest_if_too_few_are_hard():
    loss = OhemCrossEntropy(0.7, 0.5)(
        logits_for([0.9, 0.95, 0.99, 0.8]), torch.zeros(1, 1, 4, dtype=torch.long)
    )
    assert loss.item() == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2, rel=1e-5)


def test_ohem_never_takes_ignored_pixels():
    labels = torch.tensor([[[0, 255, 255, 255]]])
    for min_kept in (0.0, 1.0):
        loss = OhemCrossEntropy(0.7, min_kept)(logits_for([0.6, 0.01, 0.01, 0.01]), labels)
        assert loss.item() == pytest.approx(-math.log(0.6), rel=1e-5)


def test_ohem_without_labels_is_zero_with_gradient():
    logits = logits_for([0.5, 0.5]).requires_grad_()
    loss = OhemCrossEntropy()(logits, torch.full((1, 1, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0


def test_ohem_with_everything_kept_is_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    labels[0, 0] = 255
    weights = torch.rand(5) + 0.5
    ours = OhemCrossEntropy(0.7, 1.0, weights)(logits, labels)
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, weights, ignore_index=255))


@pytest.mark.parametrize(("threshold", "min_kept"), [(0, 0.1), (1, 0.1), (0.7, -0.1), (0.7, 1.1)])
def test_ohem_rejects_bad_settings(threshold, min_kept):
    with pytest.raises(ValueError, match="must lie in"):
        OhemCrossEntropy(threshold, min_kept)


def outputs(n: int, c: int, h: int, w: int) -> TrainingOutput:
    torch.manual_seed(0)
    shapes = [
        (n, c, h // 8, w // 8),
        (n, c, h // 8, w // 8),
        (n, c, h // 16, w // 16),
        (n, 1, h // 8, w // 8),
    ]
    return TrainingOutput(*(torch.randn(s, requires_grad=True) for s in shapes))


def test_total_is_the_weighted_sum_of_full_size_terms():
    labels = torch.randint(0, 4, (2, 64, 96))
    output = outputs(2, 4, 64, 96)
    loss = SegmentationLoss(OhemCrossEntropy(0.7, 1.0), aux_weight=0.5, detail_weight=2.0)
    terms = loss(output, labels)
    for term, logits in zip(terms[1:4], output[:3], strict=True):
        big = F.interpolate(logits, (64, 96), mode="bilinear", align_corners=True)
        torch.testing.assert_close(term, F.cross_entropy(big, labels))
    assert terms.jaccard == 0
    expected = terms.main + 0.5 * (terms.aux16 + terms.aux32) + 2 * (terms.detail_bce + terms.detail_dice)
    torch.testing.assert_close(terms.total, expected)
    terms.total.backward()
    assert all(o.grad.abs().sum() > 0 for o in output)


def test_loss_stride_compares_the_same_places():
    # With an odd size every second align_corners position is exactly a pixel.
    labels = torch.randint(0, 4, (1, 65, 97))
    output = outputs(1, 4, 64, 96)
    terms = SegmentationLoss(OhemCrossEntropy(0.7, 1.0), stride=2)(output, labels)
    big = F.interpolate(output.main, (65, 97), mode="bilinear", align_corners=True)
    expected = F.cross_entropy(big[:, :, ::2, ::2], labels[:, ::2, ::2])
    torch.testing.assert_close(terms.main, expected)


def test_soft_jaccard_by_hand():
    # Class 0 has p = 0.9, 0.4 on its two pixels and 0.3 on the other's: 1.3 / (1.6 + 2 - 1.3).
    # Class 1 has p = 0.7 on its pixel: 0.7 / (1.4 + 1 - 0.7). The last pixel does not count.
    logits = logits_for([0.9, 0.4, 0.3, 0.99])
    labels = torch.tensor([[[0, 0, 1, 255]]])
    expected = 1 - (1.3 / 2.3 + 0.7 / 1.7) / 2
    assert soft_jaccard_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_soft_jaccard_leaves_out_absent_classes():
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    only = soft_jaccard_loss(logits, torch.full((2, 5, 6), 2))
    p = logits.softmax(1)[:, 2]
    torch.testing.assert_close(only, 1 - p.sum() / p.numel())
    nothing = soft_jaccard_loss(logits, torch.full((2, 5, 6), 255))
    nothing.backward()
    assert nothing.item() == 0 and logits.grad.abs().sum() == 0


def test_soft_jaccard_is_one_minus_iou_of_sure_predictions():
    torch.manual_seed(0)
    labels, guess = torch.randint(0, 3, (2, 2, 20, 20)).unbind()
    logits = F.one_hot(guess, 3).permute(0, 3, 1, 2) * 100.0
    iou = [((labels == c) & (guess == c)).sum() / ((labels == c) | (guess == c)).sum() for c in range(3)]
    torch.testing.assert_close(soft_jaccard_loss(logits, labels), 1 - sum(iou) / 3)
