"""What packed attention keeps between calls; that it computes the right thing is a law (`laws/test_fused.py`)."""

from __future__ import annotations

import torch

from veneer.packing import attention


def test_masks_are_few_and_a_short_one_is_the_corner_of_a_long_one() -> None:
    attention._square_mask.cache_clear()
    cpu = torch.device("cpu")
    for window in (None, 8):
        for length in (1, 16, 100, 256, 257, 600):
            mask = attention._window_mask(length, True, window, cpu)
            assert mask is not None
            seen = [[0 <= i - j < (window or length) for j in range(length)] for i in range(length)]
            assert torch.equal(mask == 0.0, torch.tensor(seen))
    kept = attention._square_mask.cache_info()
    assert (kept.misses, kept.maxsize) == (6, 4)  # of 12 lengths
    assert attention._window_mask(40, False, None, cpu) is None
