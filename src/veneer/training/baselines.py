"""What a classifier must beat: the most frequent answer, and logistic regression on TF-IDF or on any other features.

Everything that can be chosen (features, penalty, whether rare labels are weighted) is chosen by the score on dev, as the adapter
is. How much is tried follows from counts of work, never from a clock, so that the same data gives the same baseline.

Knows scikit-learn, examples and tasks; knows nothing of bases or adapters.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from veneer.config import RunConfig
from veneer.data import Example, text_key
from veneer.evaluation.comparison import RESAMPLES, Compared, Verdict, compared_metric, judge
from veneer.evaluation.metrics import point_metrics
from veneer.labels import LabelSet
from veneer.tasks import Task
from veneer.training.decisions import decide_judged, fit_on_dev, judged_of
from veneer.training.prepare import Material

if TYPE_CHECKING:  # loaded to fit one: several commands read this module and fit none
    from sklearn.feature_extraction.text import TfidfVectorizer

TEXT_BASELINE = "TF-IDF + logistic regression"

WORDS: dict[str, Any] = {"analyzer": "word", "ngram_range": (1, 2), "sublinear_tf": True, "token_pattern": r"(?u)\b\w+\b"}
PIECES: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (2, 5), "sublinear_tf": True}
CHARACTERS: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 3), "sublinear_tf": True}
MOST_FOR_PIECES = 2_000_000  # characters of training text; beyond, pieces of words are slow and rarely better than pairs of them
FEWEST_SPACES = 0.05  # of the characters; below, a language is written without them (or `\w+` would find no words)

# scikit-learn's C, and whether labels are weighted by how rare they are; those that win most often come first.
CHOICES = tuple((c, weighted) for c in (10.0, 1.0, 30.0, 3.0, 0.3, 0.1) for weighted in (True, False))
CLEARLY = 0.05  # of a score on dev: what is so far behind is not tried further
# Work of a fit is values in the features x labels. Measured on one core: 2 to 4 seconds for 10 million of it.
WORK_IN_ALL = 100_000_000  # no further candidate is tried once so much is done
WORK_OF_ONE = 400_000_000  # a single fit of more than this is not tried
CERTAIN = 50.0  # the logit of a label that no training text has is minus this, of one that all have plus this
DENSE = 10  # values of dense features are so many times as quick

Array = NDArray[Any]


@dataclass(frozen=True)
class LinearModel:
    """One logistic regression a label: `[N, F]` features -> decisions, by the largest score or by each score above 0.

    Attributes:
        weights: `[C, F]`; a row of zeros for a label that no training text has, or all have.
        bias: `[C]`; -inf or inf for such a label.
        choice: C of scikit-learn, and whether rare labels were weighted.
        multi_label: whether decisions are `[N, C]` bool instead of `[N]` ids.
    """

    weights: Array
    bias: Array
    choice: tuple[float, bool]
    multi_label: bool

    def decide(self, features: Any) -> Array:
        """Decisions on `[N, F]` features, sparse or dense."""
        scores = self._scores(features)
        return scores > 0 if self.multi_label else scores.argmax(axis=1)

    def logits(self, features: Any) -> Tensor:
        """`[N, C]` float32 logits of `[N, F]` features, all finite."""
        return torch.from_numpy(np.nan_to_num(self._scores(features), posinf=CERTAIN, neginf=-CERTAIN)).float()

    def _scores(self, features: Any) -> Array:
        scores: Array = np.asarray(features @ self.weights.T) + self.bias
        return scores

    @property
    def parameters(self) -> int:
        """How many numbers were fitted."""
        fitted = int(np.isfinite(self.bias).sum())
        return fitted * (int(self.weights.shape[1]) + 1)


@dataclass(frozen=True)
class TextFeatures:
    """TF-IDF of a text; of a pair, both texts, what they share and where they differ."""

    vectorizer: TfidfVectorizer

    def of(self, examples: Sequence[Example]) -> Any:
        """`[N, F]` sparse features."""
        first = self.vectorizer.transform([example.text for example in examples])
        if examples[0].pair is None:
            return first
        second = self.vectorizer.transform([example.pair or "" for example in examples])
        return sparse.hstack([first, second, first.multiply(second), abs(first - second)], format="csr")


@dataclass(frozen=True)
class TextBaseline:
    """A fitted TF-IDF + logistic regression.

    Attributes:
        description: what was chosen on dev.
        seconds: of fitting all candidates.
    """

    features: TextFeatures
    model: LinearModel
    description: str
    seconds: float

    def decide(self, examples: Sequence[Example]) -> Array:
        """`[N]` class ids, or `[N, C]` bool, by the plain rule."""
        return self.model.decide(self.features.of(examples))

    def logits(self, examples: Sequence[Example]) -> Tensor:
        """`[N, C]` float32."""
        return self.model.logits(self.features.of(examples))


@dataclass(frozen=True)
class Judged:
    """Training and dev targets as arrays, and the score that candidates are chosen by."""

    train: Array
    dev: Array
    classes: int
    multi_label: bool
    metric: str

    @classmethod
    def of(cls, train: Sequence[Example], dev: Sequence[Example], labels: LabelSet, task: Task, metric: str) -> Judged:
        """Those of two splits; `metric` is the configuration's."""
        arrays = [target_array(examples, labels, task) for examples in (train, dev)]
        return cls(arrays[0], arrays[1], len(labels), task.name == "multi_label", compared_metric(metric))

    def score(self, decisions: Array) -> float:
        """Of decisions on dev."""
        return point_metrics(self.dev, decisions, self.classes, self.multi_label)[self.metric]


def target_array(examples: Sequence[Example], labels: LabelSet, task: Task) -> Array:
    """`[N]` int64 class ids, or `[N, C]` bool."""
    targets = target_tensor(examples, labels, task).numpy()
    return targets.astype(bool) if task.name == "multi_label" else targets


def target_tensor(examples: Sequence[Example], labels: LabelSet, task: Task) -> Tensor:
    """`[N]` int64 class ids, or `[N, C]` float32 of 0 and 1."""
    return task.targets([[labels.id(label) for label in example.labels] for example in examples], len(labels))


def majority(targets: Array) -> Array:
    """What most training texts have: the most frequent class, or `[C]` bool of the most frequent set of labels."""
    rows, counts = np.unique(targets, axis=0, return_counts=True)
    most: Array = rows[counts.argmax()]
    return most


def fit_text_baseline(
    train: Sequence[Example], dev: Sequence[Example], labels: LabelSet, task: Task, metric: str
) -> TextBaseline | None:
    """TF-IDF and one logistic regression a label, fitted on `train` and chosen on `dev`; quick and quiet on any data.

    On one core: SST-2 (67,349 texts) 9 s, GoEmotions (43,410 texts, 28 labels) 29 s.

    Args:
        metric: of the configuration; what picked the adapter picks here too (macro F1 where that is the loss).

    Returns:
        None where there is nothing to count (texts without a letter), or where a single fit would take minutes (thousands of
        labels, millions of texts).
    """
    start = time.perf_counter()
    judged = Judged.of(train, dev, labels, task, metric)
    best: tuple[float, TextBaseline] | None = None
    for name, settings in _feature_sets(train):
        features = _fit_features(settings, train)
        if features is None:
            continue
        found = fit_linear(features.of(train), features.of(dev), judged)
        if found is not None and (best is None or found[0] > best[0]):
            best = found[0], TextBaseline(features, found[1], f"{name}, {describe_choice(found[1])}", 0.0)
    if best is None:
        return None
    chosen = best[1]
    return TextBaseline(chosen.features, chosen.model, chosen.description, time.perf_counter() - start)


def judge_against_text(material: Material, ours: Array, config: RunConfig) -> Verdict | None:
    """The verdict on an adapter's decisions against `fit_text_baseline`; None where there is no such baseline.

    Args:
        material: of the run.
        ours: the adapter's decisions on `judged_split(material)`, as `decide_judged` gives them.
        config: of the run; what it says of calibration holds for the baseline too.
    """
    labels, task, examples, metric = material.labels, material.task, material.examples, config.evaluation.metric
    baseline = fit_text_baseline(examples["train"], examples["dev"], labels, task, metric)
    if baseline is None:
        return None
    split = judged_split(material)
    logits = {name: baseline.logits(examples[name]) for name in {"dev", split}}
    theirs = decide_like_ours(config, material, logits)
    return judge(compared_on(material, config), ours, theirs, split=split, against=TEXT_BASELINE)


def decide_like_ours(config: RunConfig, material: Material, logits: Mapping[str, Tensor]) -> Array:
    """What a rival decides on the judged split, calibrated on dev as the adapter is.

    Args:
        logits: the rival's, `[N, C]` by split: dev, and test where there is one.
    """
    dev, task = material.examples["dev"], material.task
    fitted = fit_on_dev(config, task, logits["dev"], target_tensor(dev, material.labels, task), list(map(text_key, dev)))
    return decide_judged(fitted, task, logits)


def judged_split(material: Material) -> str:
    """The split that says most: test where there is one, else dev."""
    return judged_of(material.examples)


def compared_on(material: Material, config: RunConfig, split: str | None = None) -> Compared:
    """The targets of a split (`judged_split` if none is named), and how decisions on it are compared.

    A verdict needs resamples: where `evaluation.bootstrap` is 0, there are as many as by default.
    """
    labels, task, evaluation = material.labels, material.task, config.evaluation
    targets = target_array(material.examples[split or judged_split(material)], labels, task)
    metric, resamples = compared_metric(evaluation.metric), evaluation.bootstrap or RESAMPLES
    return Compared(targets, len(labels), task.name == "multi_label", metric, config.seed, resamples)


def fit_linear(train: Any, dev: Any, judged: Judged) -> tuple[float, LinearModel] | None:
    """The best of `CHOICES` on dev with its score there, or None where a single fit is too much work.

    Those that what was tried speaks against (`_out_of_reach`) are not tried.

    Args:
        train: `[N, F]` features, sparse or dense.
        dev: likewise.
    """
    columns = judged.classes if judged.multi_label or judged.classes > 2 else 1
    work = columns * (train.nnz if sparse.issparse(train) else train.size // DENSE)
    if work > WORK_OF_ONE:
        return None
    best: tuple[float, LinearModel] | None = None
    scores: dict[tuple[float, bool], float] = {}
    for choice in CHOICES:
        if scores and (len(scores) + 1) * work > WORK_IN_ALL:
            break
        if _out_of_reach(choice, scores):
            continue
        model = _fit(train, judged, choice)
        scores[choice] = score = judged.score(model.decide(dev))
        if best is None or score > best[0]:
            best = score, model
    return best


def _out_of_reach(choice: tuple[float, bool], scores: Mapping[tuple[float, bool], float]) -> bool:
    """Whether the scores so far speak against a choice.

    They do where at the first penalty its weighting is clearly behind the other one, and where on the way from there to its own
    penalty one is clearly behind the best: scores rise and fall with the penalty, but for what is chance on a few dev texts.
    """
    (penalty, weighted), first = choice, CHOICES[0][0]
    line = {c: score for (c, mark), score in scores.items() if mark == weighted}
    if first not in line:
        return False
    behind = line[first] < scores.get((first, not weighted), 0.0) - CLEARLY
    passed = [score for c, score in line.items() if first < c < penalty or penalty < c < first]
    return behind or any(score < max(line.values()) - CLEARLY for score in passed)


def standardised(features: Array, train: Array) -> Array:
    """Dense `[N, F]` features on a scale on which those of `train` have mean 0 and spread 1."""
    scaled: Array = (features - train.mean(axis=0)) / (train.std(axis=0) + 1e-6)
    return scaled


def describe_choice(model: LinearModel) -> str:
    """Such as `C = 10, rare labels weighted`."""
    penalty, weighted = model.choice
    return f"C = {penalty:g}{', rare labels weighted' if weighted else ''}"


def _feature_sets(train: Sequence[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
    texts = [text for example in train for text in (example.text, example.pair or "")]
    characters = sum(map(len, texts))
    spaces = sum(text.count(" ") for text in texts)
    if spaces < FEWEST_SPACES * characters:
        yield "characters and runs of up to three", CHARACTERS
        return
    yield "words and pairs of words", WORDS
    if characters <= MOST_FOR_PIECES:
        yield "pieces of words", PIECES


def _fit_features(settings: dict[str, Any], train: Sequence[Example]) -> TextFeatures | None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [example.text for example in train] + [example.pair for example in train if example.pair is not None]
    try:
        return TextFeatures(TfidfVectorizer(**settings).fit(texts))
    except ValueError:  # an empty vocabulary
        return None


def _fit(features: Any, judged: Judged, choice: tuple[float, bool]) -> LinearModel:
    targets = judged.train
    columns = targets if judged.multi_label else targets[:, None] == np.arange(judged.classes)
    weights = np.zeros((judged.classes, features.shape[1]))
    positives = columns.sum(axis=0)
    bias = np.where(positives > 0, np.inf, -np.inf)  # of a label that all have, or none; the others' are fitted
    fitted = np.flatnonzero((positives > 0) & (positives < len(columns)))
    mirrored = not judged.multi_label and len(fitted) == 2
    for label in fitted[: 1 if mirrored else None]:
        weights[label], bias[label] = _fit_column(features, columns[:, label], choice)
    if mirrored:
        weights[fitted[1]], bias[fitted[1]] = -weights[fitted[0]], -bias[fitted[0]]
    return LinearModel(weights, bias, choice, judged.multi_label)


def _fit_column(features: Any, column: Array, choice: tuple[float, bool]) -> tuple[Array, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    penalty, weighted = choice
    # liblinear copies its input, which dense features are too large for; lbfgs stops too early on sparse ones
    solver = {"solver": "liblinear", "tol": 1e-2} if sparse.issparse(features) else {"solver": "lbfgs", "max_iter": 300}
    regression = LogisticRegression(C=penalty, class_weight="balanced" if weighted else None, **solver)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # dev decides whether it is good enough
        regression.fit(features, column)
    return regression.coef_[0], float(regression.intercept_[0])
