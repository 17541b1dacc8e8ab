"""Which labels are probably wrong: confident learning (Northcutt et al., arXiv:1911.00068), by the package cleanlab.

Knows labels and the probabilities of models that did not see them; knows no texts and trains nothing.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veneer.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelIssues:
    """What confident learning says of N rows.

    Attributes:
        ranking: the rows whose labels are doubted, the most doubtful first.
        suggested: labels in the form of the targets; of a row that is not doubted, without meaning.
        scores: `[N]` probability of the given label; with several labels a row, of the most doubted of its C marks.
        confidence: `[N]` probability of the suggested label; with several labels a row, that the most doubted mark is wrong.
    """

    ranking: NDArray[np.int64]
    suggested: NDArray[Any]
    scores: Floats
    confidence: Floats


def require_cleanlab() -> None:
    """Raise a ConfigError where cleanlab is not installed."""
    if importlib.util.find_spec("cleanlab") is None:
        raise ConfigError("to audit labels needs the package cleanlab. Fix: pip install 'veneer[audit]'")


def find_label_issues(targets: NDArray[Any], probabilities: NDArray[Any], *, multi_label: bool) -> LabelIssues:
    """Doubted labels of N rows; with several labels a row, each of the C marks by itself, one against the rest.

    Args:
        targets: `[N]` label ids, or `[N, C]` 0 and 1.
        probabilities: `[N, C]`, out of sample.

    Raises:
        ConfigError: cleanlab is not installed.
    """
    require_cleanlab()
    p = probabilities.astype(np.float64)
    return _multi_label(targets > 0, p) if multi_label else _single_label(targets.astype(np.int64), p)


def _single_label(targets: NDArray[np.int64], p: Floats) -> LabelIssues:
    scores = p[np.arange(len(p)), targets]
    return LabelIssues(_ranking(_flag(targets, p), scores), p.argmax(1), scores, p.max(1))


def _multi_label(targets: NDArray[np.bool_], p: Floats) -> LabelIssues:
    doubted = np.zeros_like(targets)
    for label, (has, likely) in enumerate(zip(targets.T, p.T, strict=True)):
        if 0 < has.sum() < len(has):  # a mark that all rows share cannot be judged
            doubted[:, label] = _flag(has.astype(np.int64), np.stack([1.0 - likely, likely], axis=1))
    if targets.any(1).all():  # where every row has a label, none is left without: the likeliest one stays
        bare = np.flatnonzero(~(targets ^ doubted).any(1))
        best = p[bare].argmax(1)
        doubted[bare, best] = ~targets[bare, best]
    quality = np.where(targets, p, 1.0 - p)
    flagged: NDArray[np.bool_] = np.asarray(doubted.any(1))
    scores = np.where(doubted | ~flagged[:, None], quality, 1.0).min(1)
    return LabelIssues(_ranking(flagged, scores), targets ^ doubted, scores, 1.0 - scores)


def _flag(targets: NDArray[np.int64], p: Floats) -> NDArray[np.bool_]:
    """`[N]` whether a label is doubted, of `[N]` ids and `[N, C]` probabilities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rare classes, in which nothing is doubted
        from cleanlab.filter import find_label_issues as confident_learning

        # one process: several gain nothing here, and starting them runs the caller's script anew on some systems
        flagged: NDArray[np.bool_] = confident_learning(targets, p, n_jobs=1)
    return flagged


def _ranking(flagged: NDArray[np.bool_], scores: Floats) -> NDArray[np.int64]:
    rows = np.flatnonzero(flagged)
    return rows[np.argsort(scores[rows], kind="stable")]
