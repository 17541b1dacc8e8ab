"""Batches without padding: where texts lie in a batch, how they are planned, and attention that keeps them apart."""

from veneer.packing.attention import PACKED_ATTENTION, attend_from_one, enable
from veneer.packing.batch import Batch, PackedBatch, PaddedBatch, Pooling, Segments, pack, pad
from veneer.packing.mixture import describe_mixture, plan_mixture, task_quotas, task_shares
from veneer.packing.plan import describe_plan, plan_inference, plan_training, split_batch

__all__ = [
    "PACKED_ATTENTION",
    "Batch",
    "PackedBatch",
    "PaddedBatch",
    "Pooling",
    "Segments",
    "attend_from_one",
    "describe_mixture",
    "describe_plan",
    "enable",
    "pack",
    "pad",
    "plan_inference",
    "plan_mixture",
    "plan_training",
    "split_batch",
    "task_quotas",
    "task_shares",
]
