"""Every method passes the same tests: it learns, is stored and loaded again, resumes, predicts, and merges or says why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import veneer
import veneer.training.finish as training_finish
from toy_runs import metrics, outcome, run, run_interrupted, toy_config, toy_rows
from veneer.bases import find_base
from veneer.cli import app
from veneer.cli.compare_runs import compare_runs
from veneer.config import MethodName
from veneer.data import encode
from veneer.errors import ArtifactError, ConfigError, InputError, LoraError
from veneer.export.merged import merge_run
from veneer.inference import compute_logits
from veneer.methods import METHODS, MethodPlan, peft_library
from veneer.model import build_classifier
from veneer.training import TrainingResult

Base = Callable[..., Path]
TEXTS = ["great", "", "a dull film, 好吗?", "love " * 200, *(row["text"] for row in toy_rows(6, seed=3))]


@dataclass(frozen=True)
class Case:
    """A method, its settings beside the toy run's, and the tiny base it is trained on."""

    method: str
    settings: dict[str, Any]
    base: str = "bert"


VIRTUAL = {"training__learning_rate": 5e-2, "training__epochs": 8, "tuning__virtual_tokens": 4}
CASES = {
    "lora": Case("lora", {}),
    "lora+": Case("lora", {"training__lora_plus_ratio": 8.0, "training__learning_rate": 1e-3}),
    "dora": Case("lora", {"lora__dora": True}),
    "dora over a causal base": Case("lora", {"lora__dora": True}, "qwen2"),
    "pissa": Case("lora", {"lora__init": "pissa", "training__learning_rate": 1e-3}),
    "rslora": Case("lora", {"lora__scaling": "rslora", "training__learning_rate": 1e-3}),
    "pissa and rslora": Case("lora", {"lora__init": "pissa", "lora__scaling": "rslora", "training__learning_rate": 1e-3}, "gpt2"),
    "adalora": Case("adalora", {"training__learning_rate": 3e-2, "training__epochs": 5}),
    "adalora over gpt2": Case("adalora", {"training__learning_rate": 3e-2, "training__epochs": 5}, "gpt2"),
    "ia3": Case("ia3", {"training__learning_rate": 2e-2}),
    "ia3 over gpt2": Case("ia3", {"training__learning_rate": 2e-2}, "gpt2"),
    "adapter": Case("adapter", {"tuning__bottleneck": 8}),
    "prefix": Case("prefix", {**VIRTUAL}),
    "prefix over a causal base": Case("prefix", {**VIRTUAL}, "qwen2"),
    "prompt": Case("prompt", {**VIRTUAL}),
    "prompt, mean pooling": Case("prompt", {**VIRTUAL, "pooling": "mean"}, "distilbert"),
    "prompt, padded": Case("prompt", {**VIRTUAL}, "mpnet"),
    "head": Case("head", {"training__learning_rate": 2e-2, "training__epochs": 8}),
    "head of ours": Case("head", {"training__learning_rate": 2e-2, "training__epochs": 8, "pooling": "mean"}),
    "bitfit": Case("bitfit", {"training__learning_rate": 1e-2}),
    "top_layers": Case("top_layers", {"tuning__top_layers": 1, "training__learning_rate": 2e-3}),
    "full": Case("full", {"training__learning_rate": 2e-3}),
    "full over a causal base": Case("full", {"training__learning_rate": 2e-3}, "qwen2"),
}

FRESH = """
import json, sys
from safetensors.torch import save_file
from veneer import load
names, texts, out = json.load(sys.stdin)
save_file({name: load(folder, precision="fp32").logits(texts) for name, folder in names.items()}, out)
"""


@dataclass(frozen=True)
class Trained:
    """A run and the logits of `TEXTS` in memory when it was saved."""

    result: TrainingResult
    logits: torch.Tensor


def case_config(case: Case, folder: Path, tiny_base: Base, **more: Any) -> Any:
    folder.mkdir(exist_ok=True)
    return toy_config(folder, tiny_base(case.base), method=case.method, evaluation__baseline=False, **case.settings, **more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> dict[str, Trained]:
    """Each case trained once."""
    place = tmp_path_factory.mktemp("methods")
    memory: list[torch.Tensor] = []
    save = training_finish.save_artifact

    def remembering(folder: Path, model: Any, tokenizer: Any, info: Any) -> None:
        memory.append(compute_logits(model, encode(tokenizer, TEXTS, None, info.max_length)))
        save(folder, model, tokenizer, info)

    runs = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training_finish, "save_artifact", remembering)
        for name, case in CASES.items():
            result = run(case_config(case, place / name.replace(" ", "-"), tiny_base))
            runs[name] = Trained(result, memory[-1])  # the best comes last
    return runs


@pytest.fixture(scope="module")
def fresh(trained: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The logits of every case in a process that knows nothing but the run folders."""
    out = tmp_path_factory.mktemp("fresh") / "logits.safetensors"
    names = {name: str(one.result.folder) for name, one in trained.items()}
    given = json.dumps([names, TEXTS, str(out)])
    subprocess.run([sys.executable, "-c", FRESH], input=given, text=True, check=True)
    return load_file(out)


def test_every_method_has_a_case_and_a_name_in_the_configuration() -> None:
    assert {case.method for case in CASES.values()} == METHODS.keys() == set(get_args(MethodName))


@pytest.mark.parametrize("name", CASES)
def test_it_learns(name: str, trained: dict[str, Trained]) -> None:
    losses = [row["loss"] for row in metrics(trained[name].result.folder) if row["kind"] == "step"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_process_gives_the_same_logits(name: str, trained: dict[str, Trained], fresh: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(fresh[name], trained[name].logits, rtol=1e-6, atol=1e-6)
    assert fresh[name].std() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_it_resumes_as_if_it_had_never_stopped(
    name: str, trained: dict[str, Trained], tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = case_config(CASES[name], tmp_path, tiny_base)
    result, _ = run_interrupted(config, {7}, monkeypatch)
    resumed, whole = outcome(result.folder), outcome(trained[name].result.folder)
    assert resumed["weights"] == whole["weights"]
    assert resumed["metrics"] == whole["metrics"]


@pytest.mark.parametrize("name", CASES)
def test_it_predicts_and_says_what_it_is(name: str, trained: dict[str, Trained]) -> None:
    predictor = veneer.load(trained[name].result.folder)
    assert predictor.info.method == CASES[name].method
    predictions = predictor.predict(["a great story", "so dull"])
    assert all(abs(sum(one.scores.values()) - 1) < 1e-4 for one in predictions)
    assert trained[name].result.evaluations["dev"].metrics["accuracy"].value == predictor.info.scores["accuracy"]


@pytest.mark.parametrize("name", CASES)
def test_it_merges_or_says_why_not(name: str, trained: dict[str, Trained], tmp_path: Path) -> None:
    folder, method = trained[name].result.folder, METHODS[CASES[name].method]
    predictor = veneer.load(folder, precision="fp32")
    if method.merge is None:
        with pytest.raises(InputError, match=f"method {method.name} {method.unmergeable}"):
            merge_run(folder, tmp_path / "merged")
        with pytest.raises(InputError, match=method.unmergeable):
            predictor.merge()
        assert not (tmp_path / "merged").exists()
        return
    before = predictor.logits(TEXTS)
    torch.testing.assert_close(predictor.merge().logits(TEXTS), before, rtol=1e-4, atol=2e-5)
    report = merge_run(folder, tmp_path / "merged")
    assert report.flips == 0


@pytest.mark.parametrize("name", CASES)
def test_only_what_was_trained_is_stored(name: str, trained: dict[str, Trained]) -> None:
    folder = trained[name].result.folder
    files = {path.name for path in folder.glob("*.safetensors")}
    assert files - {"head.safetensors"} == {name for name in METHODS[CASES[name].method].files if name.endswith(".safetensors")}
    stored = sum(tensor.numel() for file in files for tensor in load_file(folder / file).values())
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    twice = report["parameters"]["lora"] if CASES[name].settings.get("lora__init") == "pissa" else 0  # what is subtracted, too
    assert stored == report["parameters"]["trainable"] + twice


@pytest.mark.parametrize("name", CASES)
def test_its_parameters_are_counted_without_weights(name: str, trained: dict[str, Trained], tiny_base: Base) -> None:
    """`veneer inspect` of the base with the run's settings, on the meta device."""
    case, result = CASES[name], trained[name].result
    settings = {"lora.rank": 4} | {key.replace("__", "."): value for key, value in case.settings.items()}
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    asked = CliRunner().invoke(app, ["inspect", str(tiny_base(case.base)), "--json", "--method", case.method, *flags])
    assert asked.exit_code == 0, asked.output
    counted, reported = json.loads(asked.stdout), result.report["parameters"]
    assert counted["trainable"] == reported["trainable"] > 0
    assert counted["total"] == reported["total"]


def test_compare_names_the_methods(trained: dict[str, Trained]) -> None:
    compared = compare_runs([trained[name].result.folder for name in ("lora", "bitfit", "full")], None)
    assert compared.differing["method"] == ["lora", "bitfit", "full"]
    assert [one.run.parameters for one in compared.scored] == [
        trained[name].result.report["parameters"]["trainable"] for name in ("lora", "bitfit", "full")
    ]


def test_a_prompt_leaves_less_room_for_texts(tmp_path: Path, tiny_base: Base) -> None:
    config = toy_config(tmp_path, tiny_base(), method="prompt", tuning__virtual_tokens=40, data__max_length=128)
    with pytest.raises(ConfigError, match="more than the 120 tokens"):
        run(config)


@pytest.mark.parametrize("method", ["ia3", "adalora"])
def test_without_peft_the_extra_is_named(method: str, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=rf"{method} needs the package peft.*veneer\[methods\]"):
        METHODS[method].apply(build_classifier(find_base(str(tiny_base())), 2), MethodPlan())


@pytest.mark.parametrize("bits", ["nf4", "int8"])
@pytest.mark.parametrize("method", ["ia3", "adalora"])
def test_peft_does_not_know_layers_in_fewer_bits(method: str, bits: str, tiny_base: Base) -> None:
    if bits == "nf4":
        pytest.importorskip("bitsandbytes", reason="NF4 comes with the extra 'qlora'")
    model = build_classifier(find_base(str(tiny_base())), 2, base_precision=bits)
    with pytest.raises(LoraError, match=rf"^{method} is put .* in fewer bits\. Fix: base_precision: auto, or method: lora$"):
        METHODS[method].apply(model, MethodPlan())


def test_a_layer_that_peft_does_not_know_is_named_whole(tiny_base: Base) -> None:
    class Other(torch.nn.Linear):
        """Of a kind that peft refuses, told in several lines."""

        def extra_repr(self) -> str:
            return "one line\nanother"

    model = build_classifier(find_base(str(tiny_base())), 2)
    model.network.set_submodule("bert.encoder.layer.0.attention.self.key", torch.nn.Sequential(Other(32, 32)))
    config = peft_library.import_peft("ia3").IA3Config(
        target_modules=["layer.0.attention.self.key"], feedforward_modules=[], fan_in_fan_out=False
    )
    with pytest.raises(LoraError, match=r"Sequential.*one line another.*is not supported.*Fix: method: lora, or another base$"):
        peft_library.inject(model, config)


def test_a_run_of_peft_s_layers_is_not_loaded_in_fewer_bits(trained: dict[str, Trained]) -> None:
    with pytest.raises(ArtifactError, match=r"in fewer bits\. Fix: base_precision: auto, or method: lora$"):
        veneer.load(trained["ia3"].result.folder, base_precision="int8")


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("ia3", {"peft_type": "LORA"}, "peft_type is 'LORA', not IA3"),
        ("ia3", {"feedforward_modules": "a.*"}, "feedforward_modules"),
        ("ia3", {"feedforward_modules": ["elsewhere"]}, "feedforward_modules"),
        ("adalora", {"lora_alpha": "16"}, "no lora_alpha above 0"),
        ("adalora", {"lora_alpha": True}, "no lora_alpha above 0"),
    ],
)
def test_a_configuration_that_peft_would_trust_is_refused(
    method: str, changes: dict[str, Any], said: str, trained: dict[str, Trained], tmp_path: Path
) -> None:
    for name in METHODS[method].files:
        shutil.copy(trained[method].result.folder / name, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(LoraError, match=said):
        METHODS[method].read(tmp_path)


def test_a_base_in_low_precision_is_loaded_in_float32_where_it_was_trained(trained: dict[str, Trained]) -> None:
    """Rounding the trained weights would give other logits than the run's."""
    for name, expected in {"full": True, "bitfit": True, "top_layers": True, "head": False, "head of ours": False}.items():
        folder = trained[name].result.folder
        loaded = veneer.load(folder, precision="fp32").loaded
        stored = METHODS[loaded.info.method].read(folder)
        assert stored.trains_base(loaded.model) is expected, name


def test_weights_of_the_base_are_not_trained_in_low_precision(tiny_base: Base) -> None:
    for name in ("full", "bitfit", "top_layers"):
        model = build_classifier(find_base(str(tiny_base())), 2, dtype=torch.bfloat16)
        with pytest.raises(LoraError, match="float32"):
            METHODS[name].apply(model, MethodPlan())


def test_bitfit_wants_biases(tiny_base: Base) -> None:
    with pytest.raises(LoraError, match="'llama' has none"):
        METHODS["bitfit"].apply(build_classifier(find_base(str(tiny_base("llama"))), 2), MethodPlan())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora__train_top_layers", 1),
        ("lora__train_embeddings", True),
        ("lora__bias", "all"),
        ("lora__dora", True),
        ("lora__init", "pissa"),
        ("training__lora_plus_ratio", 4),
    ],
)
def test_a_setting_that_contradicts_the_method_is_refused(key: str, value: Any, tmp_path: Path, tiny_base: Base) -> None:
    config = toy_config(tmp_path, tiny_base(), method="head", **{key: value})
    with pytest.raises(ConfigError, match=rf"{key.replace('__', '.')}: not for the method head"):
        run(config)
    assert not (tmp_path / "run").exists()


def test_dora_and_pissa_together_are_refused(tmp_path: Path, tiny_base: Base) -> None:
    with pytest.raises(ConfigError, match=r"lora\.dora and lora\.init"):
        run(toy_config(tmp_path, tiny_base(), lora__dora=True, lora__init="pissa"))


def test_an_average_over_changing_ranks_is_refused(tmp_path: Path, tiny_base: Base) -> None:
    pytest.importorskip("peft", reason="AdaLoRA comes with the extra 'methods'")
    with pytest.raises(ConfigError, match=r"training\.ema_decay: adalora changes what it trains on the way"):
        run(toy_config(tmp_path, tiny_base(), method="adalora", training__ema_decay=0.9))
    assert not (tmp_path / "run").exists()


def test_a_file_that_does_not_fit_is_refused(trained: dict[str, Trained], tmp_path: Path, tiny_base: Base) -> None:
    tensors = load_file(trained["bitfit"].result.folder / "trained.safetensors")
    first = next(iter(tensors))
    for changed, said in (
        ({"no.such.bias": tensors[first].clone()}, "unexpected: no.such.bias"),
        ({first: tensors[first][:3].clone()}, "other shape"),
        ({first: tensors[first] * float("nan")}, "not finite"),
    ):
        save_file(tensors | changed, tmp_path / "trained.safetensors")
        with pytest.raises(LoraError, match=said):
            METHODS["bitfit"].read(tmp_path).fill(build_classifier(find_base(str(tiny_base())), 2))
