"""The plan of several tasks: shares by the formula, every text in its turn, batches that can be found again."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from veneer.packing import describe_mixture, plan_mixture, task_quotas, task_shares
from veneer.packing.mixture import batch_composition

RNG = np.random.default_rng(0)
COUNTS = (300, 40, 60)
LENGTHS = [RNG.integers(3, 60, count) for count in COUNTS]
STARTS = np.cumsum([0, *COUNTS])


def tasks_of(batch: np.ndarray) -> list[int]:
    return (np.searchsorted(STARTS, batch, side="right") - 1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_shares_follow_the_formula(temperature: float) -> None:
    powers = [count ** (1 / temperature) for count in COUNTS]
    assert task_shares(COUNTS, temperature) == pytest.approx([power / sum(powers) for power in powers])


def test_the_ends_of_the_temperature() -> None:
    assert task_quotas(COUNTS, 1.0) == list(COUNTS)
    assert task_quotas(COUNTS, 1e9) == [134, 133, 133]
    assert task_quotas(COUNTS, 1e-3) == [398, 1, 1]  # without an overflow, and no task is left out
    assert task_quotas((3, 1), 1.0) == [3, 1]
    assert task_quotas((1_000_003, 999_983, 17), 1.0) == [1_000_003, 999_983, 17]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_an_epoch_is_as_many_texts_as_all_tasks_have_by_their_shares(temperature: float) -> None:
    plan = plan_mixture(LENGTHS, 16, temperature, seed=1, epoch=0)
    assert [len(batch) for batch in plan] == [16] * 25
    drawn = Counter(task for batch in plan for task in tasks_of(batch))
    for task, share in enumerate(task_shares(COUNTS, temperature)):
        assert abs(drawn[task] - 400 * share) < 1


def test_every_batch_has_the_proportion_and_the_order_of_the_tasks() -> None:
    plan = plan_mixture(LENGTHS, 16, 2.0, seed=1, epoch=3)
    for batch in plan:
        tasks = tasks_of(batch)
        assert tasks == sorted(tasks)
        for task, share in enumerate(task_shares(COUNTS, 2.0)):
            assert abs(tasks.count(task) - 16 * share) < 2


def test_no_text_comes_again_before_all_others_of_its_task_have() -> None:
    """Over epochs: the small task's texts come in passes, the large one's go on where they stopped."""
    epochs = 8
    drawn: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}
    for epoch in range(epochs):
        texts = np.concatenate(plan_mixture(LENGTHS, 16, 3.0, seed=5, epoch=epoch))
        for task, found in drawn.items():
            found.append([int(text) for text, one in zip(texts, tasks_of(texts), strict=True) if one == task])
    for task, count in enumerate(COUNTS):
        for number in range(1, epochs + 1):
            seen = Counter(text for epoch in drawn[task][:number] for text in epoch)
            times = [seen[text] for text in range(STARTS[task], STARTS[task + 1])]
            assert max(times) - min(times) <= 1
            assert sum(times) == number * task_quotas(COUNTS, 3.0)[task]
        assert count == STARTS[task + 1] - STARTS[task]


def test_a_batch_can_be_found_again_and_depends_on_seed_and_epoch() -> None:
    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in plan_mixture(LENGTHS, 16, 2.0, seed=seed, epoch=epoch)]

    plans = [plan(seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert plans == [plan(seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len({str(one) for one in plans}) == 4


def test_tasks_with_equal_texts_are_shuffled_each_its_own_way() -> None:
    plan = plan_mixture([LENGTHS[1], LENGTHS[1]], 8, 1.0, seed=1, epoch=0)
    assert any(batch[:4].tolist() != (batch[4:] - 40).tolist() for batch in plan)


def test_a_task_s_texts_of_a_batch_are_alike_in_length() -> None:
    lengths = np.random.default_rng(1).integers(3, 200, 3200)
    plan = plan_mixture([lengths, lengths], 64, 1.0, seed=1, epoch=0)
    spread = np.mean([np.ptp(lengths[batch[:32]]) for batch in plan])
    assert spread < 20  # 32 drawn at random spread over some 185
    means = [float(lengths[batch[:32]].mean()) for batch in plan]
    assert np.corrcoef(means, np.arange(len(means)))[0, 1] == pytest.approx(0, abs=0.3)  # neither short nor long ones first


def test_the_last_batch_is_smaller() -> None:
    sizes = batch_composition([10, 3], 5)
    assert sizes.sum(1).tolist() == [5, 5, 3]
    assert sizes.sum(0).tolist() == [10, 3]


def test_the_name_of_a_plan_tells_its_inputs() -> None:
    names = {
        describe_mixture(lengths, size, temperature, seed)
        for lengths in (LENGTHS, LENGTHS[:2])
        for size in (8, 16)
        for temperature in (1.0, 2.0)
        for seed in (1, 2)
    }
    assert len(names) == 16
