"""A finished run with the smallest ranks that keep its score on dev.

The singular values of all layers compete: the n with most energy (σ²) for the parameters they take are kept, and n is the least
that a bisection finds whose score on dev is good enough. Each step of it is one pass over dev; the score need not fall evenly
with n, so a still smaller n may do, but the one that is kept was measured.

Knows run folders, adapters and scores; knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from veneer import lora
from veneer.adaptation import replace_adapter
from veneer.artifact import Loaded, load_artifact
from veneer.config import RunConfig
from veneer.errors import DataError
from veneer.evaluation.calibration import Fitted
from veneer.evaluation.goals import Goal
from veneer.evaluation.metrics import Evaluation, Interval
from veneer.evaluation.report import MadeFrom, Source
from veneer.lora.peft_format import TENSOR_FILE
from veneer.predictor import Predictor
from veneer.report_file import read_report
from veneer.run_info import ArtifactInfo
from veneer.tasks import Calibration
from veneer.thinner.dev import Dev
from veneer.thinner.folder import check_free, plain_lora, write_run
from veneer.thinner.made import count_together, made_report, source_of, stored_bytes


@dataclass(frozen=True)
class Shrunk:
    """What became smaller, and what that cost.

    Attributes:
        ranks: layer -> rank before and after; 0 for a layer that is no longer adapted.
        parameters: in LoRA's matrices before and after.
        stored: bytes of `adapter_model.safetensors` before and after.
        energy: share of the updates' squared Frobenius norm that is left.
        metric: the score on N dev texts, with its 95 % interval, `before` and `after`.
        bound: the score that had to be kept.
        passes: over dev that the search took.
        calibration: what was done about the run's calibration.
    """

    folder: Path
    ranks: dict[str, tuple[int, int]]
    parameters: tuple[int, int]
    stored: tuple[int, int]
    energy: float
    metric: str
    texts: int
    before: Interval
    after: Interval
    bound: float
    passes: int
    calibration: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        scores = {name: [one.value, one.low, one.high] for name, one in {"before": self.before, "after": self.after}.items()}
        return {
            "folder": str(self.folder),
            "ranks": {name: list(pair) for name, pair in self.ranks.items()},
            "lora_parameters": list(self.parameters),
            "stored_bytes": list(self.stored),
            "energy": self.energy,
            "metric": self.metric,
            "dev_texts": self.texts,
            "score": scores,
            "bound": self.bound,
            "passes": self.passes,
            "calibration": self.calibration,
        }


def shrink_run(
    folder: Path,
    out: Path,
    dev: Dev,
    config: RunConfig,
    *,
    keep: float,
    goal: Goal | None = None,
    base: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Shrunk:
    """Write the run in `folder` to `out` with smaller ranks.

    Args:
        dev: its own development texts.
        config: its own configuration.
        keep: the share of its score on dev that must be left; nor may the score fall below its 95 % interval.
        goal: what its decision rule was fitted for; None where that cannot be repeated, so that the rule is kept.
        base: where the base is, if not where training found it.
        progress: called with 1 after each pass over dev.

    Raises:
        InputError: `out` exists, or the run cannot be loaded.
        VerificationError: the new folder does not give the logits it gave in memory.
    """
    check_free(out)
    loaded = load_artifact(folder, base=base)
    predictor, adapter = Predictor(loaded), plain_lora(folder, loaded.info)
    calibration, found = predictor.calibration, lora.spectra(adapter)
    before = dev.score(dev.logits(predictor), calibration, resamples=1000)
    bound = max(keep * before.value, before.low if before.low is not None else 0.0)
    ranks, logits, passes = _search(dev, predictor, adapter, found, bound, progress)
    fitted, told = refit(dev, logits, calibration, goal, bound) if loaded.info.calibration is not None else (None, "none")
    evaluations = dev.judge(predictor, logits, fitted, calibration)
    source = source_of(folder, before, adapter)
    shrunk = Shrunk(
        folder=out,
        ranks={name: (old, ranks[name]) for name, old in source.ranks.items()},
        parameters=(source.lora_parameters, _parameters(found, ranks)),
        stored=((folder / TENSOR_FILE).stat().st_size, 0),
        energy=lora.kept_energy(found, ranks),
        metric=dev.metric,
        texts=len(dev),
        before=before,
        after=evaluations["dev"].metrics[dev.metric],
        bound=bound,
        passes=passes,
        calibration=told,
    )
    _write(shrunk, loaded, config, dev, source, evaluations, fitted)
    return replace(shrunk, stored=(shrunk.stored[0], (out / TENSOR_FILE).stat().st_size))


def _search(
    dev: Dev,
    predictor: Predictor,
    adapter: lora.AdapterFile,
    found: dict[str, lora.Spectrum],
    bound: float,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, int], Tensor, int]:
    """The lowest ranks that keep the score, which the model then has; its `[N, C]` logits on dev; and how many passes it took."""
    passes = 0

    def logits_at(count: int) -> Tensor:
        nonlocal passes
        replace_adapter(predictor.loaded.model, lora.cut_ranks(adapter, found, _ranks(adapter, found, count)))
        passes += 1
        if progress is not None:
            progress(1)
        return dev.logits(predictor)

    total = sum(len(spectrum.values) for spectrum in found.values())
    count = smallest(total, lambda some: dev.score(logits_at(some), predictor.calibration).value >= bound)
    logits = logits_at(count)
    return _ranks(adapter, found, count), logits, passes


def _write(
    shrunk: Shrunk,
    loaded: Loaded,
    config: RunConfig,
    dev: Dev,
    source: Source,
    evaluations: Mapping[str, Evaluation],
    fitted: Fitted | None,
) -> None:
    """The run whose model is now the smaller one, and its report."""
    info = replace(
        loaded.info,
        scores={name: one.value for name, one in evaluations["dev"].metrics.items()},
        calibration=loaded.info.calibration if fitted is None else fitted.calibration.to_json(),
        precision=loaded.precision.name,
    )

    def report(writing: Path) -> dict[str, Any]:
        made = MadeFrom(
            how="shrink",
            runs=(source,),
            metric=dev.metric,
            stored_bytes=stored_bytes(writing),
            lora_parameters=shrunk.parameters[1],
            ranks={name: new for name, (_, new) in shrunk.ranks.items()},
            told={"least score asked for": shrunk.bound, "energy left": shrunk.energy, "calibration": shrunk.calibration},
        )
        told = made_report(info, config, dev, count_together([loaded.model]), evaluations, fitted, made)
        kept = fitted is None and info.calibration is not None
        return told | ({"calibration": _kept(Path(source.folder), info)} if kept else {})

    write_run(shrunk.folder, replace(loaded, info=info), config, report)


def _kept(folder: Path, info: ArtifactInfo) -> dict[str, Any]:
    """What is still true of a run's calibration where the smaller run has it, too: nothing that was measured with it."""
    told = read_report(folder).get("calibration")
    known = told if isinstance(told, dict) and told.get("parameters") == info.calibration else {}
    return {key: known[key] for key in ("target", "texts", "split", "method") if key in known} | {"parameters": info.calibration}


def smallest(total: int, passes: Callable[[int], bool]) -> int:
    """The least number from 1 to `total` that a bisection finds to pass; `total` is taken to."""
    low, high = 0, total
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def refit(dev: Dev, logits: Tensor, old: Calibration, goal: Goal | None, bound: float) -> tuple[Fitted | None, str]:
    """A calibration of the new logits for the goal and the promises of the `old` one, and what was done, in words.

    None where the old one is kept: its goal is not known, cannot be reached any more, or its rule keeps a better score.
    """
    if goal is None:
        return None, "kept: what it was fitted for is not known any more"
    try:
        fitted = dev.fit(logits, goal, old)
    except DataError as error:
        return None, f"kept: {error}"
    if dev.score(logits, fitted.calibration).value < bound:
        return None, "kept: fitted again it would cost more of the score"
    return fitted, "fitted again on dev"


def _ranks(adapter: lora.AdapterFile, found: dict[str, lora.Spectrum], count: int) -> dict[str, int]:
    """The ranks that keep `count` values; where a layer's bias is trained with it, each layer keeps one at least."""
    least = 1 if adapter.settings.bias == "lora_only" else 0
    return {name: max(least, rank) for name, rank in lora.strongest(found, count).items()}


def _parameters(found: dict[str, lora.Spectrum], ranks: dict[str, int]) -> int:
    return sum(spectrum.width * ranks[name] for name, spectrum in found.items())
