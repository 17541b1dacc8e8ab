"""A run as a plain transformers checkpoint: what was trained put into the base's weights, nothing of ours needed to load it.

Where the run's head is the family's own, `AutoModelForSequenceClassification` loads the folder whole. A mean-pooled run has a
head no family class can hold: its folder is an encoder with sentence-transformers' pooling files and `head.safetensors`, and
its README says how the three go together. A run that reads label words is a language model with
`label_words.json` beside it (`merged_words.py`). A calibrated run's numbers are in `calibration.json`, which the README applies.

Knows the run folder and transformers' files; merges in float32, whatever precision the run was trained in. What that changes for
a run over a base in fewer bits is measured first (`rebased.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from veneer.artifact import Loaded, load_artifact
from veneer.bases import BaseLocation, encoder_options, find_base, load_encoder, load_sequence_classifier, load_tokenizer, quiet
from veneer.errors import InputError, VerificationError
from veneer.export.merged_words import LOADED_BY, WORDS_FILE, readme_code, word_logits, words_document
from veneer.export.rebased import Change, JudgedTexts, measure_change, require_within
from veneer.inference import compute_logits
from veneer.methods import METHODS
from veneer.run_info import HEAD_FILE, ArtifactInfo, check_single, read_info
from veneer.tasks import PLAIN, TASKS, Calibration

CALIBRATION_FILE = "calibration.json"
BUDGET = 0.02
TOLERANCE = 1e-3  # of logits in float32, relative to the largest one where that is above 1

PROBES = (
    "a quiet triumph",
    "It was dull from beginning to end, and I want my money back.",
    "Could you move my appointment from Friday to next Tuesday, please?",
    "ok",
    "The order came late; the box was open and two of the six cups were broken. Who pays for that?",
    "我的订单什么时候能到？",
    "¿Dónde puedo ver el resultado de mi análisis?",
    "404 :-( https://example.org/?q=1&x=2 #help @team",
    "not bad, not good, just there",
    "Thanks a lot! Everything works again since the update of last night, even the printer that nobody could ever explain.",
)


@dataclass(frozen=True)
class MergeReport:
    """What a merge gave.

    Attributes:
        folder: the checkpoint.
        loaded_by: the class of transformers that loads it whole; None for an encoder with a head beside it.
        texts: probe texts compared, each through the run and through the checkpoint as transformers loads it.
        difference: the largest difference of a logit.
        flips: texts that are decided otherwise.
        change: what leaving the base's few bits changes; None for a run over a base in full precision.
    """

    folder: Path
    loaded_by: str | None
    texts: int
    difference: float
    flips: int
    change: Change | None


def merge_run(
    folder: Path,
    out: Path,
    *,
    base: str | None = None,
    judged: JudgedTexts | None = None,
    budget: float = BUDGET,
    force: bool = False,
) -> MergeReport:
    """Write the run in `folder` to `out` as a plain transformers checkpoint, whole or not at all.

    Args:
        base: where the base is, if not where training found it.
        judged: texts on which a run over a base in fewer bits is compared with its merged self; the probe texts if not given.
        budget: the share of them that may be decided otherwise.
        force: write it whatever they say.

    Raises:
        InputError: `out` exists, the run cannot be loaded, or its method cannot be merged.
        VerificationError: the checkpoint does not give the run's logits, or decides more texts otherwise than `budget` allows.
    """
    if out.exists():
        raise InputError(f"{out} exists, and nothing is overwritten. Fix: another --out")
    info, change = read_info(folder), None
    check_single(folder, info)
    method = METHODS[info.method]
    if method.merge is None:
        raise InputError(f"{folder} cannot be merged: the method {method.name} {method.unmergeable}. Fix: use the run as it is")
    if info.base_precision != "auto":
        change = measure_change(folder, judged or JudgedTexts("probe", PROBES, _pairs(info)), base=base)
        if not force:
            require_within(change, budget, out)
    loaded = load_artifact(folder, base=base, precision="fp32", base_precision="auto")
    before = _run_logits(loaded)
    writing = out.parent / f".{out.name}.writing"
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}. Fix: another --out") from None
    try:
        _write(writing, loaded)
        report = replace(_compare(writing, out, loaded, before), change=change)
        writing.rename(out)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return report


def _run_logits(loaded: Loaded) -> Tensor:
    return compute_logits(loaded.model, loaded.encode(PROBES, _pairs(loaded.info)))


def _pairs(info: ArtifactInfo) -> Sequence[str] | None:
    return PROBES[::-1] if info.pair else None


def _write(folder: Path, loaded: Loaded) -> None:
    model, info = loaded.model, loaded.info
    if (merge := METHODS[info.method].merge) is not None:
        merge(model)
    config: Any = model.config
    if loaded.prompt is None:
        config.id2label = dict(enumerate(info.labels))
        config.label2id = {label: i for i, label in enumerate(info.labels)}
        config.problem_type = f"{info.task}_classification"
        loaded.tokenizer.model_max_length = info.max_length  # what longer texts were cut to
    else:
        _write_json(folder / WORDS_FILE, words_document(loaded.prompt, info.labels, loaded.tokenizer))
    with quiet():
        model.network.save_pretrained(folder)  # type: ignore[operator]
    loaded.tokenizer.save_pretrained(folder)
    if model.head is not None:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in model.head.state_dict().items()}
        save_file(tensors, folder / HEAD_FILE, metadata={"format": "pt"})
        _write_pooling(folder, info, model.head.in_features)
    if info.calibration is not None:
        _write_json(folder / CALIBRATION_FILE, {"labels": info.labels, **info.calibration})
    (folder / "README.md").write_text(_readme(loaded, encoder_options(config)), encoding="utf-8")


def _write_pooling(folder: Path, info: ArtifactInfo, width: int) -> None:
    """The files by which sentence-transformers (and `pooling: auto`) know how the encoder's vectors are pooled."""
    modes = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}
    pooling = {"word_embedding_dimension": width} | {f"pooling_mode_{mode}": key == info.pooling for key, mode in modes.items()}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "1_Pooling").mkdir()
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": info.max_length, "do_lower_case": False})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _compare(folder: Path, out: Path, loaded: Loaded, before: Tensor) -> MergeReport:
    """Load the checkpoint with transformers alone and compare."""
    info, prompt = loaded.info, loaded.prompt
    if prompt is None:
        after = _checkpoint_logits(folder, info)
        loaded_by = "AutoModelForSequenceClassification" if info.own_head else None
    else:
        after, loaded_by = word_logits(folder, prompt, loaded.encode(PROBES, _pairs(info))), LOADED_BY
    difference = float((after - before).abs().max())
    decide = TASKS[info.task].decide  # type: ignore[index]
    flips = int((decide(after) != decide(before)).reshape(len(before), -1).any(-1).sum())
    if not difference <= TOLERANCE * max(1.0, float(before.abs().max())):
        raise VerificationError(
            f"the merged checkpoint gives other logits than the run, by up to {difference:.2g} ({flips} of {len(before)} probe "
            f"texts are decided otherwise). {out} was not written; please report this"
        )
    return MergeReport(out, loaded_by, len(before), difference, flips, None)


@torch.no_grad()
def _checkpoint_logits(folder: Path, info: ArtifactInfo) -> Tensor:
    """`[N, C]` logits of the probes, a text at a time, by transformers' own attention and head."""
    location = find_base(str(folder))
    tokenizer = load_tokenizer(location)
    model, head = _load(location, info, folder)
    rows = []
    for i, text in enumerate(PROBES):
        pairs = _pairs(info)
        inputs = tokenizer(text, pairs and pairs[i], truncation=True, return_tensors="pt")
        output = model(**inputs)
        if head is None:
            rows.append(output.logits)
        else:
            hidden = output.last_hidden_state
            pooled = {"cls": hidden[:, 0], "last": hidden[:, -1], "mean": hidden.mean(1)}[info.pooling]
            rows.append(pooled @ head["weight"].T + head["bias"])
    return torch.cat(rows)


def _load(location: BaseLocation, info: ArtifactInfo, folder: Path) -> tuple[Any, dict[str, Tensor] | None]:
    if not info.own_head:
        return load_encoder(location, dtype=torch.float32, attention=None).eval(), load_file(folder / HEAD_FILE)
    model, missing = load_sequence_classifier(location, len(info.labels), dtype=torch.float32, attention=None)
    if missing:
        raise VerificationError(f"the merged checkpoint lacks tensors: {', '.join(missing)}")
    return model.eval(), None


def _readme(loaded: Loaded, options: Mapping[str, bool]) -> str:
    info = loaded.info
    multi_label = info.task == "multi_label"
    arguments = "text, pair" if info.pair else "text"
    texts = 'text, pair = "a text", "its second text"' if info.pair else 'text = "a text"'
    chances = "logits.sigmoid()" if multi_label else "logits.softmax(-1)"
    if loaded.prompt is not None:
        body = readme_code(loaded.prompt, info.pair)
    elif info.own_head:
        body = _FAMILY_HEAD
    else:
        pooled = {"cls": "hidden[:, 0]", "last": "hidden[:, -1]", "mean": "hidden.mean(1)"}[info.pooling]
        given = "".join(f", {name}={value}" for name, value in options.items())
        body = _OUR_HEAD.replace("POOLED", pooled).replace("OPTIONS", given)
    calibration = PLAIN
    if info.calibration is not None:
        calibration = Calibration.from_json(info.calibration, info.task, len(info.labels))  # type: ignore[arg-type]
        chances = chances.replace("logits", f"(logits{_scaling(calibration)})") if _scaling(calibration) else chances
    batch = "" if info.own_head else " The code is for one text: a padded batch is to be pooled without its padding."
    if loaded.prompt is not None:
        batch = f" The code does not cut long texts; in training a whole prompt had at most {info.max_length} tokens."
    if _scaling(calibration):
        reading = f'calibration = json.loads(Path("{CALIBRATION_FILE}").read_text(encoding="utf-8"))'
        imports = "" if loaded.prompt is not None else "import json\nfrom pathlib import Path\n\n"
        body = imports + body.replace("TEXTS", f"{reading}\nTEXTS")
    code = body.replace("TEXTS", texts).replace("ARGUMENTS", arguments).replace("CHANCES", chances)
    decision = _decision(calibration, multi_label)
    return _README.format(
        base=info.base_id, method=info.method, code=code, decision=decision, batch=batch, labels=", ".join(info.labels)
    )


def _scaling(calibration: Calibration) -> str:
    """What the README's code does to the logits, as code."""
    slopes = ' * torch.tensor(calibration["slopes"])' if calibration.slopes else ""
    return slopes + (' + torch.tensor(calibration["shifts"])' if calibration.shifts else "")


def _decision(calibration: Calibration, multi_label: bool) -> str:
    """How labels are decided, in words; a colon or a full stop comes before it."""
    decision = "every label above 0.5 is given" if multi_label else "the largest one is the label"
    if calibration.thresholds:
        decision = f"a label is given from its number in `thresholds` of `{CALIBRATION_FILE}` on, in the order of the labels"
    if calibration.offsets:
        decision = (
            f"the label is the one whose logit, times `slopes` of `{CALIBRATION_FILE}` if there are any and plus its number in "
            "`offsets`, is the largest"
        )
        if calibration.left:
            decision += ", among those not `left`; a text whose largest logit itself is of a class that is `left` stays with that"
    if coverage := calibration.coverage:
        decision += (
            f". The labels of probability {coverage.level:.4g} and more hold every right one for {coverage.target:.1%} of texts "
            "like those it was found on"
        )
    if precision := calibration.precision:
        sure = "the product of all labels' probabilities of being as decided" if multi_label else "the label's probability"
        decision += (
            f". Where {sure} is below {precision.level:.4g}, abstain: of the other decisions {precision.target:.1%} are right on "
            "texts like those it was found on"
        )
    return decision


_README = """# A text classifier

`{base}` fine-tuned by veneer ({method}). Labels: {labels}. From this folder:

```python
{code}```

The result is a probability a label; {decision}.{batch}
"""

_FAMILY_HEAD = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".").eval()
TEXTS
with torch.no_grad():
    logits = model(**tokenizer(ARGUMENTS, truncation=True, return_tensors="pt")).logits
print(dict(zip(model.config.id2label.values(), CHANCES[0].tolist())))
"""

_OUR_HEAD = """import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

tokenizer, head = AutoTokenizer.from_pretrained("."), load_file("head.safetensors")
model = AutoModel.from_pretrained("."OPTIONS).eval()
TEXTS
with torch.no_grad():
    hidden = model(**tokenizer(ARGUMENTS, truncation=True, return_tensors="pt")).last_hidden_state
logits = POOLED @ head["weight"].T + head["bias"]
print(dict(zip(model.config.id2label.values(), CHANCES[0].tolist())))
"""
