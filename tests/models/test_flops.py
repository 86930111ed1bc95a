"""Every product counts: two operations per real multiply-add, eight per complex one, and the usual counts of FFTs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnconv.models.cost import flops_full

X = torch.zeros(2, 10, 16, device="meta")  # 2 images of 10 x 16 numbers
MATRIX = torch.zeros(16, 16, dtype=torch.complex64, device="meta")
CUBE = torch.zeros(4, 16, 16, device="meta")


class Computes(nn.Module):
    """A network whose forward pass a test gives."""

    def __init__(self, forward):
        super().__init__()
        self.code = forward

    def forward(self, x):
        return self.code(x)


@pytest.mark.parametrize(
    ("forward", "multiply_adds"),
    [
        (lambda x: x @ x.mT, 10 * 10 * 16),
        (lambda x: x @ x[0, 0], 10 * 16),
        (lambda x: torch.addmv(x[0, :, 0], x[0], x[1, 0]), 10 * 16 / 2),
        (lambda x: x.flatten() @ x.flatten(), 10 * 16),
        (lambda x: torch.addbmm(x[0, :, :10], x, x.mT), 10 * 10 * 16),
        (lambda x: torch.cdist(x, x), 10 * 10 * 16),
        (lambda x: F.bilinear(x, x, CUBE), 10 * 4 * (16 * 16 + 16)),
        (lambda x: x.to(torch.complex64) @ MATRIX, 4 * 10 * 16 * 16),
    ],
)
def test_products_are_counted(forward, multiply_adds):
    assert flops_full(Computes(forward), X) == 2 * multiply_adds


@pytest.mark.parametrize(
    ("forward", "transforms"),
    [(lambda x: torch.fft.rfft(x), 0.5), (lambda x: torch.fft.fft(x + 0j), 1), (lambda x: torch.fft.ifft(x + 0j), 1)],
)
def test_ffts_of_complex_numbers_count_twice_those_of_real_ones(forward, transforms):
    assert flops_full(Computes(forward), X) == transforms * 10 * 5 * 16 * 4
