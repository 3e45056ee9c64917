"""Batches of bounded size hold every row once, in order, with what belongs to it."""

import pytest
import torch

from keylock.models import split_rows


@pytest.mark.parametrize(("count", "size", "largest"), [(600, 8, 250), (90, 224, 41), (3, 2000, 1)])
def test_rows_come_once_in_order_and_few_at_a_time(count, size, largest):
    images = torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 1, size, size)
    labels = torch.arange(count)
    batches = split_rows(images, labels)
    assert max(len(rows) for rows, _ in batches) == largest
    assert torch.equal(torch.cat([found for _, found in batches]), labels)
    assert all((rows[:, 0, 0, 0] == found).all() for rows, found in batches)
