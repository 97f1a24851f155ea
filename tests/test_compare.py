import pytest
import torch

from bookmaking import compare


def test_error_is_that_of_the_worst_entry():
    a, b = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 2.0])
    assert compare.relative_error(a, b, within=0.5) == 0.5
    with pytest.raises(AssertionError, match=r"relative error 5\.0e-01, allowed are 4\.0e-01"):
        compare.relative_error(a, b, within=0.4)


@pytest.mark.parametrize("wrong", [1e-300, float("nan")])
def test_what_is_zero_must_be_zero(wrong):
    with pytest.raises(AssertionError):
        compare.relative_error(torch.tensor([wrong], dtype=torch.float64), torch.zeros(1))


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"shapes \(1,\) and \(2,\) differ"):
        compare.relative_error(torch.zeros(1), torch.zeros(2))


def test_seconds_are_those_of_one_call():
    calls = []
    assert 0 <= compare.seconds(lambda: calls.append(0), repeats=3) < 1
    assert len(calls) == 3
