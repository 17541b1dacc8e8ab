"""A whole run: what ends in the folder, what is refused before anything is written, and what fails after it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

import veneer.training.finish as training_finish
import veneer.training.run as training_run
import veneer.training.setup as training_setup
from toy_runs import metrics, outcome, run, toy_config, toy_rows, write_csv
from veneer.artifact import load_artifact
from veneer.config_file import load_config
from veneer.errors import BaseError, ConfigError, DataError, Interrupted, LoraError, TrainingError, VerificationError
from veneer.evaluation.diagnosis import Evidence
from veneer.inference import compute_logits
from veneer.precision import Precision
from veneer.run_info import read_info
from veneer.training import loop
from veneer.training.checkpoint import Progress
from veneer.training.finish import TrainingResult
from veneer.training.tracking import Tracker

Base = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> tuple[TrainingResult, str]:
    """A run with everything, its picture too, and what the console showed. No score beats the first, of step 3, while the texts
    are learned by heart."""
    place = tmp_path_factory.mktemp("finished")
    write_csv(place / "test.csv", toy_rows(9, seed=2))
    changes = {"data__test": str(place / "test.csv"), "data__max_length": 10, "evaluation__bootstrap": 50}
    config = toy_config(
        place, tiny_base("bert"), training__evaluate_every=3, training__epochs=4, data__dev=str(place / "train.csv"), **changes
    )
    console = Console(file=io.StringIO(), width=120)
    evaluate = loop._evaluate

    def first_is_best(job: loop.Job, progress: Progress, tracker: Tracker) -> None:
        evaluate(job, progress, tracker)
        progress.best_score = 2.0

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "_evaluate", first_is_best)
        result = training_run.train(config, console=console)
    return result, console.file.getvalue()  # type: ignore[attr-defined]


def test_the_picture_is_one(finished: tuple[TrainingResult, str]) -> None:
    picture = (finished[0].folder / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) > 5000


def test_the_rows_of_metrics(finished: tuple[TrainingResult, str]) -> None:
    rows = metrics(finished[0].folder)
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["step"] for row in steps] == list(range(1, 45))
    assert steps[0].keys() == {"kind", "step", "epoch", "loss", "learning_rate", "gradient_norm"}
    for split in ("dev", "train"):
        evaluations = [row["step"] for row in rows if row["kind"] == "evaluation" and row["split"] == split]
        assert evaluations == [*range(3, 43, 3), 44]


def test_the_report(finished: tuple[TrainingResult, str]) -> None:
    """The scores are those of the best adapter; `last/` tells those of the last."""
    result, _ = finished
    report = json.loads((result.folder / "report.json").read_text(encoding="utf-8"))
    assert report == result.report
    assert report["splits"] == {"train": {"texts": 42}, "dev": {"texts": 42}, "test": {"texts": 9}}
    assert report["evaluations"].keys() == {"dev", "test"}
    assert report["evaluations"]["dev"]["intervals"]["macro_f1"][0] <= report["evaluations"]["dev"]["metrics"]["macro_f1"]
    rows = {row["step"]: row for row in metrics(result.folder) if row["kind"] == "evaluation" and row["split"] == "dev"}
    training = report["training"]
    assert (training["best_step"], training["steps"], training["metric"], training["epochs"]) == (3, 44, "macro_f1", 4)
    assert report["evaluations"]["dev"]["metrics"]["macro_f1"] == rows[3]["macro_f1"]
    assert read_info(result.folder).scores["accuracy"] == rows[3]["accuracy"]
    last = read_info(result.folder / "last").scores
    assert last["macro_f1"] == rows[44]["macro_f1"]
    assert last != read_info(result.folder).scores


def test_the_log_and_the_console(finished: tuple[TrainingResult, str]) -> None:
    result, shown = finished
    log = (result.folder / "train.log").read_text(encoding="utf-8")
    for text in (log, shown):
        assert re.search(r"base: folder .*bert", text)
        assert "precision: fp32 (as configured)" in text
        assert "data: train 42, dev 42, test 9 texts; 2 labels, single_label" in text
        assert re.search(r"train: \d+ texts \(\d+\.\d%\) are longer than 10 tokens and cut", text)
        assert "LoRA, 13 layers" in text
        assert "44 steps are few to learn from: training.epochs: auto would make 37 epochs, not 4" in text
        assert f"if it stops: veneer train --out {result.folder} --resume\n" in text
        assert re.search(r"epoch 0\.29  step 3/44  dev loss \d\.\d+  macro_f1 \d\.\d+ \(best\)", text)
    assert log.index("LoRA, 13 layers") < log.index("if it stops: ") < log.index("step 3/44")
    assert "loaded again, logits of 16 texts are the same" in log
    assert "padded" not in log
    for text in (log, shown):
        assert "42 of 42 dev rows have a text that is in the training rows too [train-dev-duplicates]" in text  # on one line
    (warning,) = [one for one in result.report["warnings"] if one["kind"] == "train-dev-duplicates"]
    assert (warning["severity"], warning["count"], warning["rows"]) == ("warning", 42, [1, 2, 3, 4, 5])
    assert "42 of 42 dev rows have a text that" in (result.folder / "report.html").read_text(encoding="utf-8")


def test_the_configuration_is_resolved_and_makes_the_run_again(finished: tuple[TrainingResult, str], tmp_path: Path) -> None:
    folder = finished[0].folder
    tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert (tree["task"], tree["pooling"], tree["training"]["precision"]) == ("single_label", "cls", "fp32")
    assert tree["out"] == str(folder)
    again = run(load_config(folder / "config.yaml", {"out": str(tmp_path / "again")}))
    assert [row for row in metrics(again.folder) if row["kind"] == "step"] == [
        row for row in metrics(folder) if row["kind"] == "step"
    ]
    assert outcome(again.folder)["weights"].keys() == outcome(folder)["weights"].keys()
    last = "last/adapter_model.safetensors"
    assert outcome(again.folder)["weights"][last] == outcome(folder)["weights"][last]


def test_a_base_that_cannot_pack_is_padded_and_the_log_says_so_once(tmp_path: Path, tiny_base: Base, monkeypatch: Any) -> None:
    import veneer.model

    monkeypatch.setattr(veneer.model, "packing_support", lambda config: "its family has not been checked")
    result = run(toy_config(tmp_path, tiny_base("bert"), training__epochs=1))
    log = (result.folder / "train.log").read_text(encoding="utf-8")
    assert log.count("texts are padded: its family has not been checked") == 1
    assert "loaded again, logits of 12 texts are the same" in log  # the development set has no more


def test_multi_label_focal_pairs_and_checkpointing_end_to_end(tmp_path: Path, tiny_base: Base) -> None:
    for name, seed in (("train", 0), ("dev", 1)):
        rows = toy_rows(24, labels=("good", "bad", "odd"), multi=True, seed=seed)
        write_csv(tmp_path / f"{name}.csv", [row | {"other": "why not"} for row in rows])
    changes = {
        "data__label_separator": "|",
        "data__pair": "other",
        "training__loss": "focal",
        "training__class_weights": "balanced",
    }
    config = toy_config(
        tmp_path, tiny_base("modernbert"), training__gradient_checkpointing=True, evaluation__metric="subset_accuracy", **changes
    )
    report = run(config).report
    assert report["task"] == "multi_label"
    assert report["evaluations"]["dev"]["metrics"].keys() >= {"subset_accuracy", "macro_f1", "micro_f1"}


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "metric": ({"evaluation__metric": "subset_accuracy"}, ConfigError, "subset_accuracy is for multi-label tasks. Fix: accuracy"),
    "length": ({"data__max_length": 161}, ConfigError, "data.max_length: 161 is more than the 160 tokens"),
    "weights, unknown label": (
        {"training__class_weights": {"good": 1.0, "bad": 1.0, "odd": 1.0}},
        ConfigError,
        "must give every label a weight above 0: bad, good; given: good, bad, odd",
    ),
    "weights, missing label": ({"training__class_weights": {"good": 1.0}}, ConfigError, "training.class_weights"),
    "weights, zero": ({"training__class_weights": {"good": 1.0, "bad": 0.0}}, ConfigError, "training.class_weights"),
    "targets": ({"lora__target_modules": ["querry"]}, LoraError, "Did you mean 'query'?"),
    "layers": ({"lora__layers": [5]}, LoraError, "layers [5] are not among the layers"),
    "bf16 base": ({"lora__train_top_layers": 1, "training__precision": "bf16"}, LoraError, "Fix: training.precision: fp32"),
    "fp16": ({"training__precision": "fp16"}, ConfigError, "fp16 needs a GPU"),
    "two equal answers": (
        {"training__r_drop": 1.0, "training__base_dropout": 0.0, "lora__dropout": 0.0, "pooling": "mean"},
        ConfigError,
        "training.r_drop: nothing is dropped in this training",
    ),
    "data": ({"data__dev": "nowhere.csv"}, DataError, "nowhere.csv"),
    "column": ({"data__label": "sentiment"}, DataError, "sentiment"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_before_anything_is_written(name: str, tmp_path: Path, tiny_base: Base) -> None:
    """So that the mended command can use the same folder."""
    if name == "fp16" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, which computes in fp16")
    changes, kind, said = WRONG[name]
    with pytest.raises(kind) as refused:
        run(toy_config(tmp_path, tiny_base("bert"), **changes))
    assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_base_that_is_not_found_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="no/such/base"):
        run(toy_config(tmp_path, "no/such/base"))
    assert not (tmp_path / "run").exists()


def test_evaluation_every_no_step_is_refused(tmp_path: Path) -> None:
    for value in (0, -1):
        with pytest.raises(ConfigError, match=r"training\.evaluate_every"):
            toy_config(tmp_path, "minilm", training__evaluate_every=value)


def test_nothing_is_overwritten(tmp_path: Path, tiny_base: Base) -> None:
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run is not empty, and nothing is overwritten\. Fix: another --out$"):
        run(config)
    with pytest.raises(ConfigError, match=r"notes\.txt is a file, and nothing is overwritten\. Fix: another --out$"):
        run(config.model_copy(update={"out": str(tmp_path / "run" / "notes.txt")}))
    (tmp_path / "run" / "notes.txt").unlink()
    run(config)  # an empty folder is fine
    before = outcome(tmp_path / "run")
    with pytest.raises(ConfigError, match="is not empty"):
        run(config)
    assert outcome(tmp_path / "run") == before


def test_a_run_that_stopped_before_its_first_checkpoint_does_not_block_its_folder(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr("veneer.training.run.fit", broken)
        with pytest.raises(RuntimeError, match="in the first step"):
            run(config)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "train.log", "metrics.jsonl"}
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not empty"):
        run(config)
    (folder / "notes.txt").unlink()
    run(config)
    assert "in the first step" not in (folder / "train.log").read_text(encoding="utf-8")


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("in the first step")


def test_the_report_counts_by_the_columns_that_are_named(tmp_path: Path, tiny_base: Base) -> None:
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1, data__slice_columns=["source", "stars"])
    for name in ("train.csv", "dev.csv"):
        rows = toy_rows(24)
        origins = [{"source": "phone" if i < 16 else "letter", "stars": str(i % 2)} for i in range(len(rows))]
        write_csv(tmp_path / name, [row | origin for row, origin in zip(rows, origins, strict=True)])
    found = [one for one in run(config).report["diagnosis"]["slices"] if one["by"] == "column"]
    assert {one["value"]: one["texts"] for one in found} == {
        "source: phone": 16,
        "source: letter": 8,
        "stars: 0": 12,
        "stars: 1": 12,
    }


@pytest.mark.parametrize("calibrate", [True, False])
def test_the_diagnosis_is_told_the_rule_that_dev_gave(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, calibrate: bool
) -> None:
    """Where it is not to be kept, too: the diagnosis then says what it would gain."""
    given: list[Evidence] = []
    diagnose = training_finish.diagnose
    monkeypatch.setattr(training_finish, "diagnose", lambda evidence: given.append(evidence) or diagnose(evidence))
    r_drop = None if calibrate else 1.0
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1, training__r_drop=r_drop, evaluation__calibrate=calibrate)
    write_csv(tmp_path / "dev.csv", toy_rows(40, seed=1))
    report = run(config).report
    (evidence,) = given
    assert evidence.rule is not None
    assert (evidence.rule.metric, evidence.ruled) == ("macro_f1", calibrate)
    assert ("training.r_drop" in evidence.settings) == calibrate  # advice may name it where it is not on already
    assert (report["calibration"] is not None, read_info(tmp_path / "run").calibration is not None) == (calibrate, calibrate)
    assert ("calibrated on" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")) is calibrate


def test_a_column_to_count_by_that_is_not_there_is_an_error(tmp_path: Path, tiny_base: Base) -> None:
    with pytest.raises(DataError, match=r"no column 'lable' for the slices(?s:.*)Fix: --set 'data\.slice_columns=\[label\]'"):
        run(toy_config(tmp_path, tiny_base("bert"), data__slice_columns=["lable"]))
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_is_not_overwritten_but_offered(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1)

    def fail(self: Tracker, row: dict[str, Any]) -> None:
        raise TrainingError("no")

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "advance", fail)
        with pytest.raises(TrainingError):
            run(config)
    with pytest.raises(ConfigError, match="or --resume to go on with the unfinished run there"):
        run(config)
    run(config, resume=True)


def test_a_folder_that_cannot_be_made(tmp_path: Path, tiny_base: Base) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=r"file.*Fix: another --out"):
            run(toy_config(tmp_path, tiny_base("bert"), out=str(out)))
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_free_name_is_chosen(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1, out=None)
    assert [run(config).folder for _ in range(2)] == [Path("runs/train"), Path("runs/train-2")]
    assert yaml.safe_load(Path("runs/train-2/config.yaml").read_text(encoding="utf-8"))["out"] == str(Path("runs/train-2"))
    names = {"hub:glue/sst2": "sst2", "hub:imdb:train": "hub-imdb-train", "data/reviews.csv": "reviews"}
    for source, name in names.items():
        named = config.model_copy(update={"data": config.data.model_copy(update={"train": source})})
        assert training_run.run_folder(named, resume=False) == Path("runs") / name


def test_the_next_folder_that_is_free(tmp_path: Path) -> None:
    stem = tmp_path / "a.b"
    assert training_run.free_folder(stem) == stem
    stem.mkdir()
    assert training_run.free_folder(stem) == tmp_path / "a.b-2"
    (tmp_path / "a.b-2").touch()
    assert training_run.free_folder(stem) == tmp_path / "a.b-3"


def test_resuming_needs_a_folder(tmp_path: Path, tiny_base: Base) -> None:
    with pytest.raises(ConfigError, match="Fix: --out DIR"):
        run(toy_config(tmp_path, tiny_base("bert"), out=None), resume=True)


@pytest.mark.parametrize("damage", ["another adapter", "a file that cannot be read", "not a number"])
def test_a_saved_adapter_that_differs_fails_the_run(
    damage: str, tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is saved is not taken for a run folder."""
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1)
    save = training_finish.save_artifact

    def save_wrong(folder: Path, model: Any, tokenizer: Any, info: Any) -> None:
        if damage == "another adapter":
            bias = dict(model.named_parameters())["network.classifier.bias"].data
            bias += 1e-3
            save(folder, model, tokenizer, info)
            bias -= 1e-3
        else:
            save(folder, model, tokenizer, info)
            if folder.name != "last" and damage == "a file that cannot be read":
                (folder / "adapter_model.safetensors").write_bytes(b"")

    def load_nan(*args: Any, **kwargs: Any) -> Any:
        loaded = load_artifact(*args, **kwargs)
        loaded.model.trainable()["network.classifier.bias"].data.fill_(float("nan"))
        return loaded

    with monkeypatch.context() as patched:
        patched.setattr(training_finish, "save_artifact", save_wrong)
        if damage == "not a number":
            patched.setattr(training_finish, "load_artifact", load_nan)
        with pytest.raises(VerificationError) as failure:
            run(config)
    said = {"another adapter": "gives other logits", "not a number": "(by nan)"}.get(damage, "cannot be loaded again")
    assert said in str(failure.value)
    assert failure.value.exit_code == 1
    assert not (tmp_path / "run" / "veneer.json").exists()
    assert run(config, resume=True).folder == tmp_path / "run"  # the checkpoint was kept


def test_precision_is_settled_once(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` times the machine, which may come out otherwise when a run is resumed; trained weights of the base need float32."""
    answer = ["bf16"]
    choose = training_setup.choose_precision
    monkeypatch.setattr(
        training_setup, "choose_precision", lambda asked, device: choose(answer[0] if asked == "auto" else asked, device)
    )
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1, training__precision="auto")

    def stop(self: Tracker, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "advance", stop)
        with pytest.raises(Interrupted):
            run(config)
    answer[0] = "fp32"
    assert read_info(run(config, resume=True).folder).precision == "bf16"
    answer[0] = "bf16"
    trained = toy_config(
        tmp_path,
        tiny_base("bert"),
        training__epochs=1,
        training__precision="auto",
        lora__bias="all",
        out=str(tmp_path / "biases"),
    )
    assert read_info(run(trained).folder).precision == "fp32"
    assert isinstance(choose("fp32", torch.device("cpu")), Precision)


def test_the_best_adapter_is_at_the_top_and_the_last_below(
    finished: tuple[TrainingResult, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded again, each scores on dev what its `veneer.json` says."""
    result, _ = finished
    config = load_config(result.folder / "config.yaml")
    from veneer.training.prepare import encode_split, read_material

    material = read_material(config)
    for folder in (result.folder, result.folder / "last"):
        loaded = load_artifact(folder, precision="fp32")
        split = encode_split(material.examples["dev"], loaded.tokenizer, loaded.info.max_length, material.task, material.labels)
        decided = compute_logits(loaded.model, split.texts).argmax(-1)
        assert float((decided == split.targets).float().mean()) == pytest.approx(loaded.info.scores["accuracy"])
