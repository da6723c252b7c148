import pytest
import torch

from manta.flow.adaptive import code_numbers, code_of, drawn_codes, sign_code


def test_a_code_is_the_sign_with_the_gradient_of_the_tanh():
    logits = torch.tensor([[-2.0, -0.1, 0.0, 3.0]], requires_grad=True)
    code = sign_code(logits)
    assert code.detach().tolist() == [[-1.0, -1.0, 1.0, 1.0]]
    (code * torch.arange(4.0)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.arange(4.0) * (1 - logits.detach().tanh() ** 2))


def test_codes_and_numbers_are_each_others_inverse():
    numbers = torch.arange(32)
    assert torch.equal(code_numbers(code_of(numbers, 5)), numbers)
    assert code_of(torch.tensor([1]), 3).tolist() == [[1.0, -1.0, -1.0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_codes_are_drawn_as_often_as_they_came_each_by_its_own_generator(seed):
    table = torch.tensor([1.0, 0.0, 2.0, 5.0])
    generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(2000)]
    numbers = code_numbers(drawn_codes(table.expand(2000, 4), generators, 2))
    shares = torch.bincount(numbers, minlength=4) / 2000
    torch.testing.assert_close(shares, table / 8, atol=0.035, rtol=0)
    alone = drawn_codes(table[None], [torch.Generator().manual_seed(1000 * seed + 7)], 2)
    assert int(code_numbers(alone)) == int(numbers[7])
