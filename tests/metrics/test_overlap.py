import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from seguq.core.errors import SeguqError
from seguq.metrics import MeanIoU
from tests.metrics.builders import probs_and_target
from tests.oracles import bootstrap as oracles


def prediction_and_target(**arguments):
    probs, target = probs_and_target(**arguments)
    return probs.argmax(1), target


def value(metric, *batches):
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


@pytest.mark.parametrize("size", [(), (7,), (5, 6), (2, 3, 4)])
@pytest.mark.parametrize("classes", [2, 3, 11])
def test_mean_iou_is_that_of_a_loop_over_pixels(classes, size):
    prediction, target = prediction_and_target(classes=classes, size=size)
    expected = oracles.mean_iou(list(zip(prediction.numpy(), target.numpy(), strict=True)))
    assert value(MeanIoU(classes), (prediction, target)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ignore_index", [255, -1, 0, 2])
@pytest.mark.parametrize("classes", [3, 11])
def test_mean_iou_is_the_jaccard_index_of_torchmetrics(classes, ignore_index):
    prediction, target = prediction_and_target(classes=classes, size=(20, 20))
    target[target == 255] = ignore_index
    actual = value(MeanIoU(classes, ignore_index=ignore_index), (prediction, target))
    reference = MulticlassJaccardIndex(classes, average="macro", ignore_index=ignore_index)
    torch.testing.assert_close(actual, value(reference, (prediction, target)))


def test_the_iou_of_each_class_is_that_of_torchmetrics():
    prediction, target = prediction_and_target(classes=5, size=(20, 20))
    metric = MeanIoU(5)
    metric.update(prediction, target)
    reference = MulticlassJaccardIndex(5, average="none", ignore_index=255)
    torch.testing.assert_close(metric.per_class(), value(reference, (prediction, target)))


def test_a_class_that_neither_occurs_nor_is_predicted_has_no_iou_and_does_not_count():
    metric = MeanIoU(3)
    metric.update(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))
    assert metric.compute() == 1
    assert metric.per_class().isnan().tolist() == [False, False, True]


ZEROS = torch.zeros(2, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (ZEROS, ZEROS[:, :3], r"prediction of shape \(2, 4\) does not go with target of shape \(2, 3\)"),
        (ZEROS, ZEROS + 3, "target holds the value 3"),
        (ZEROS, ZEROS - 1, "target holds the value -1"),
        (ZEROS, ZEROS.float(), "target must hold class indices"),
        (ZEROS + 3, ZEROS, "prediction holds the value 3"),
        (ZEROS + 255, ZEROS, "prediction holds the value 255"),
        (ZEROS.float(), ZEROS, "prediction must hold class indices"),
    ],
)
def test_wrong_input_is_an_error_that_names_the_argument(prediction, target, message):
    with pytest.raises(SeguqError, match=message):
        MeanIoU(3).update(prediction, target)
