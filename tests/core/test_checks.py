import pytest
import torch

from seguq.core.checks import (
    require_choice,
    require_dims,
    require_plain_name,
    require_target_range,
    require_target_shape,
)
from seguq.core.errors import SeguqError, UsageError


@pytest.mark.parametrize("dims", [3, 4, 6])
def test_enough_dimensions_pass(dims):
    require_dims("samples", torch.zeros([2] * dims), "(S, B, C)", at_least=3)


@pytest.mark.parametrize("shape", [(), (4,), (4, 5)])
def test_too_few_dimensions_raise_with_name_layout_and_shape(shape):
    with pytest.raises(SeguqError) as error:
        require_dims("samples", torch.zeros(shape), "(S, B, C)", at_least=3)
    for part in ("samples", "(S, B, C)", "at least 3", str(shape)):
        assert part in str(error.value)


@pytest.mark.parametrize("spatial", [(), (5,), (5, 6), (5, 6, 7)])
def test_a_target_without_the_class_dimension_passes(spatial):
    require_target_shape(torch.zeros(2, 3, *spatial), torch.zeros(2, *spatial))


@pytest.mark.parametrize("shape", [(2, 5), (2, 6, 5), (2, 1, 5, 6), (3, 5, 6), (2, 3, 5, 6), (2, 1, 1), ()])
def test_a_target_of_another_shape_raises_with_the_three_shapes(shape):
    with pytest.raises(SeguqError) as error:
        require_target_shape(torch.zeros(2, 3, 5, 6), torch.zeros(shape))
    for part in ("(2, 5, 6)", "(2, 3, 5, 6)", str(shape)):
        assert part in str(error.value)


def test_the_error_of_a_target_names_the_scores_that_it_should_go_with():
    with pytest.raises(SeguqError, match="to go with probs"):
        require_target_shape(torch.zeros(2, 3, 5), torch.zeros(2, 6), scores_name="probs")


def test_scores_without_a_class_dimension_raise():
    with pytest.raises(SeguqError, match=r"probs must be \(B, C, \*spatial\)"):
        require_target_shape(torch.zeros(2), torch.zeros(2), scores_name="probs")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_a_target_of_classes_and_the_ignored_index_passes(dtype):
    require_target_range(torch.tensor([0, 1, 2, 255], dtype=dtype), 3, 255)


def test_an_empty_target_passes():
    require_target_range(torch.zeros(0, dtype=torch.int64), 3, 255)


@pytest.mark.parametrize("value", [3, 254, 256, -1, -100])
def test_a_target_that_is_no_class_raises_with_the_value_and_the_range(value):
    with pytest.raises(SeguqError, match=rf"value {value},.*0\.\.2.*ignore_index=255"):
        require_target_range(torch.tensor([0, 2, 255, value]), 3, 255)


def test_255_is_no_class_where_nothing_is_ignored():
    with pytest.raises(SeguqError, match="value 255"):
        require_target_range(torch.tensor([0, 255]), 3, None)


def test_a_negative_ignored_index_passes():
    require_target_range(torch.tensor([0, -100]), 3, -100)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex64])
def test_a_target_that_is_no_integer_raises_with_the_type(dtype):
    with pytest.raises(SeguqError, match=f"integer type.*{dtype}"):
        require_target_range(torch.zeros(2, dtype=dtype), 3, 255)


def test_a_word_of_the_choice_passes():
    require_choice("aggregate", "sum", ("mean", "sum"))


@pytest.mark.parametrize("word", ["", "Mean", "mea", "median"])
def test_a_word_outside_the_choice_raises_with_name_choice_and_word(word):
    with pytest.raises(SeguqError) as error:
        require_choice("aggregate", word, ("mean", "sum"))
    for part in ("aggregate", "mean, sum", repr(word)):
        assert part in str(error.value)


@pytest.mark.parametrize("error", [SeguqError, UsageError])
def test_every_error_for_a_mistake_of_the_user_is_a_value_error(error):
    assert issubclass(error, ValueError)


@pytest.mark.parametrize("name", ["a", "street/0001", "a.b c", ".hidden", "..a", "ü/漢", "a:b", "\udcff", "CON"])
def test_a_plain_name_passes(name):
    require_plain_name("the image id", name)


BAD_NAMES = [
    "",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/..",
    "/a",
    "a//b",
    "a/",
    "..\\a",
    "\\a",
    "C:\\a",
    "c:/a",
    "a\0b",
    7,
    None,
]


@pytest.mark.parametrize("name", [*BAD_NAMES, ".seguq-tmp-a", "a/.seguq-tmp-b"])
def test_a_name_that_leads_out_of_its_folder_or_is_none_is_named(name):
    with pytest.raises(SeguqError) as error:
        require_plain_name("the image id", name)
    assert f"the image id {name!r} cannot be the name of a file" in str(error.value)
