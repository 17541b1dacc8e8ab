"""The room's public names."""

from __future__ import annotations

import veneer.data


def test_all_is_sorted_and_there() -> None:
    assert veneer.data.__all__ == sorted(veneer.data.__all__)
    assert all(hasattr(veneer.data, name) for name in veneer.data.__all__)
