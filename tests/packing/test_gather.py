"""Where the rows of a pack go when texts are gathered by padded length, and back; the attention over them is a law."""

from __future__ import annotations

import torch

from veneer.packing.gather import HIDDEN, gathering

CPU = torch.device("cpu")
LENGTHS = (3, 18, 1, 16, 3)  # groups of 16 (three texts), 32 and 1


def test_groups_hold_each_text_by_head_and_padding_is_its_first_row_or_zero() -> None:
    rows = torch.arange(43 * 2.0).view(43, 2, 1)  # two heads of width 1, two rows of filler
    places = gathering(LENGTHS, 43, 43, 2, CPU).keys
    assert places.shapes == ((3 * 2, 16), (2, 32), (2, 1))
    first, second, third = places.groups(places.gather(rows))
    assert first[1].flatten().tolist() == [1.0, 3.0, 5.0, *[1.0] * 13]  # text 0, head 1
    assert first[2].flatten().tolist() == [2 * token for token in range(22, 38)]  # text 3, head 0: a full one
    assert second[0].flatten()[17:19].tolist() == [2 * 20.0, 2 * 3.0]
    assert third.flatten().tolist() == [42.0, 43.0]
    assert places.groups(places.gather_or_zero(rows))[0][1].flatten().tolist() == [1.0, 3.0, 5.0, *[0.0] * 13]


def test_back_again_all_is_in_its_place_and_filler_is_zero() -> None:
    rows = torch.randn(43, 2, 4)
    places = gathering(LENGTHS, 43, 43, 2, CPU).keys
    back = places.scatter(places.gather(rows), 2)
    assert torch.equal(back[:41], rows[:41])
    assert not back[41:].any()


def test_one_query_a_text_stands_beside_its_keys() -> None:
    found = gathering(LENGTHS, 5, 41, 1, CPU)
    texts = torch.arange(5.0).view(5, 1, 1)
    groups = found.queries.groups(found.queries.gather(texts))
    assert [group.flatten().tolist() for group in groups] == [[0.0, 3.0, 4.0], [1.0], [2.0]]
    assert torch.equal(found.queries.scatter(torch.cat(groups).view(-1, 1), 1), texts)
    assert [shape[0] for shape in found.queries.shapes] == [shape[0] for shape in found.keys.shapes]


def test_padding_hides_what_is_no_key_and_is_none_where_there_is_none() -> None:
    first, second, third = gathering(LENGTHS, 41, 41, 2, CPU).padding
    assert third is None
    assert first is not None
    assert second is not None
    assert first.shape == (6, 1, 16)
    assert (first == HIDDEN).sum(-1).flatten().tolist() == [13, 13, 0, 0, 13, 13]
    assert (second == HIDDEN).sum(-1).flatten().tolist() == [14, 14]
    assert gathering((16, 32), 48, 48, 2, CPU).padding == (None, None)
