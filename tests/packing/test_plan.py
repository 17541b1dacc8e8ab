"""Plans take every text once, keep to their budgets, and follow from seed and epoch alone."""

from __future__ import annotations

import numpy as np
import pytest

from veneer.packing import describe_plan, plan_inference, plan_training, split_batch
from veneer.packing.plan import WINDOW, Indices

LENGTHS = np.random.default_rng(0).integers(3, 120, 4003)


def as_lists(plan: list[Indices]) -> list[list[int]]:
    return [batch.tolist() for batch in plan]


@pytest.mark.parametrize(("texts", "batch_size"), [(4003, 16), (4003, 4003), (4003, 5000), (16, 16), (17, 16), (1, 8)])
def test_an_epoch_takes_every_text_once(texts: int, batch_size: int) -> None:
    plan = plan_training(LENGTHS[:texts], batch_size, seed=1, epoch=0)
    assert sorted(index for batch in as_lists(plan) for index in batch) == list(range(texts))
    sizes = sorted(len(batch) for batch in plan)
    assert len(plan) == -(-texts // batch_size)
    assert all(size == batch_size for size in sizes[1:])
    assert sizes[0] == texts - batch_size * (len(plan) - 1)


def test_a_plan_follows_from_seed_and_epoch() -> None:
    plans = {(seed, epoch): as_lists(plan_training(LENGTHS, 16, seed=seed, epoch=epoch)) for seed in (1, 2) for epoch in (0, 1)}
    np.random.seed(99)
    assert all(as_lists(plan_training(LENGTHS, 16, seed=seed, epoch=epoch)) == plan for (seed, epoch), plan in plans.items())
    assert len({str(plan) for plan in plans.values()}) == 4


def test_a_batch_holds_neighbours_of_a_sorted_window() -> None:
    plan = plan_training(LENGTHS, 16, seed=1, epoch=0)
    assert all((np.diff(LENGTHS[batch]) >= 0).all() for batch in plan if len(batch) == 16)
    spread = np.mean([np.ptp(LENGTHS[batch]) for batch in plan])
    assert spread < 3 * np.ptp(LENGTHS) / WINDOW
    firsts = np.array([LENGTHS[batch[0]] for batch in plan])
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.2  # the order of the batches is shuffled again


def test_which_texts_meet_in_a_batch_changes_between_epochs() -> None:
    epochs = [plan_training(LENGTHS, 16, seed=1, epoch=epoch) for epoch in (0, 1)]
    company = [{frozenset(batch.tolist()) for batch in plan} for plan in epochs]
    assert not company[0] & company[1]


@pytest.mark.parametrize("budget", [1, 64, 119, 500, 10**6])
def test_inference_keeps_to_its_budget(budget: int) -> None:
    plan = plan_inference(LENGTHS, budget)
    order = np.concatenate(plan)
    assert sorted(order.tolist()) == list(range(len(LENGTHS)))
    assert (np.diff(LENGTHS[order]) <= 0).all()  # longest first
    tokens = [int(LENGTHS[batch].sum()) for batch in plan]
    assert all(total <= budget or len(batch) == 1 for total, batch in zip(tokens, plan, strict=True))
    for batch, total, following in zip(plan, tokens, plan[1:], strict=False):
        assert total + LENGTHS[following[0]] > budget, batch  # no batch is smaller than it must be


def test_inference_of_nothing_is_no_batch() -> None:
    assert plan_inference(LENGTHS[:0], 100) == []


def test_a_batch_is_split_in_order() -> None:
    batch = np.array([7, 2, 9, 4, 11])
    lengths = np.zeros(12, np.int64)
    lengths[batch] = [30, 30, 100, 20, 10]
    assert as_lists(split_batch(batch, lengths, 60)) == [[7, 2], [9], [4, 11]]
    assert as_lists(split_batch(batch, lengths, 190)) == [[7, 2, 9, 4, 11]]


def test_a_plan_is_named_by_all_that_decides_it() -> None:
    names = {describe_plan(LENGTHS[:n], size, seed) for n, size, seed in [(10, 4, 1), (11, 4, 1), (10, 5, 1), (10, 4, 2)]}
    assert len(names) == 4
    assert describe_plan(LENGTHS[:10], 4, 1) in names
