"""Law: a run folder loaded in a fresh process gives the logits it gave in memory, bit for bit; and PEFT gives them too."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import veneer.training.finish as training_finish
from toy_runs import run, toy_config, toy_rows
from veneer.data import encode
from veneer.inference import compute_logits

Base = Callable[..., Path]
TEXTS = ["great", "", "a dull film, 好吗?", "love " * 200, *(row["text"] for row in toy_rows(6, seed=3))]

# name: (base, whether the family's own head is used, what else is configured)
RUNS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "bert": ("bert", True, {}),
    "bert whose checkpoint has no pooler": ("no pooler", True, {}),
    "distilbert": ("distilbert", True, {}),
    "modernbert": ("modernbert", True, {}),
    "gpt2": ("gpt2", True, {}),
    "qwen2": ("qwen2", True, {}),
    "a sentence-embedding base": ("mean", False, {}),
    "a sentence-embedding base that pools its first token": ("cls", False, {}),
    "mean pooling": ("electra", False, {"pooling": "mean"}),
    "top layers": ("bert", True, {"lora__train_top_layers": 1}),
    "embeddings": ("mean", False, {"lora__train_embeddings": True}),
    "bias all": ("qwen2", True, {"lora__bias": "all"}),
    "bias lora_only": ("bert", True, {"lora__bias": "lora_only", "lora__target_modules": ["query"]}),
    "rslora, some layers": (
        "bert",
        True,
        {"lora__scaling": "rslora", "lora__layers": [1], "lora__target_modules": "query_value"},
    ),
    "bf16": ("bert", True, {"training__precision": "bf16"}),
    "int8": ("qwen2", True, {"base_precision": "int8", "training__precision": "bf16"}),
}
if importlib.util.find_spec("bitsandbytes"):
    RUNS |= {
        "nf4": ("qwen2", True, {"base_precision": "nf4"}),
        "nf4, in bf16, our head": ("bert", False, {"base_precision": "nf4", "training__precision": "bf16", "pooling": "mean"}),
    }

FRESH = """
import json, sys
from safetensors.torch import save_file
from veneer import load
names, texts, out = json.load(sys.stdin)
save_file({name: load(folder, precision=precision).logits(texts) for name, folder, precision in names}, out)
"""


def make_base(kind: str, tiny_base: Base, folder: Path) -> Path:
    """A tiny base, or one of three kinds made from BERT: without its pooler, or a sentence-embedding base of some pooling."""
    if kind not in ("no pooler", "mean", "cls"):
        return tiny_base(kind)
    if not folder.exists():
        shutil.copytree(tiny_base("bert"), folder)
        if kind == "no pooler":
            tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "pooler" not in name}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            (folder / "1_Pooling").mkdir()
            token = "cls_token" if kind == "cls" else "mean_tokens"
            (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{token}": True}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> dict[str, tuple[Path, torch.Tensor]]:
    """Run folder (and its `last/`) -> the logits of `TEXTS` in memory when it was saved."""
    place = tmp_path_factory.mktemp("reload")
    memory: dict[str, tuple[Path, torch.Tensor]] = {}
    save = training_finish.save_artifact

    def save_and_keep(folder: Path, model: Any, tokenizer: Any, info: Any) -> None:
        save(folder, model, tokenizer, info)
        memory[str(folder.relative_to(place))] = (folder, compute_logits(model, encode(tokenizer, TEXTS, None, info.max_length)))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training_finish, "save_artifact", save_and_keep)
        for name, (kind, _, changes) in RUNS.items():
            base = make_base(kind, tiny_base, place / f"base {kind}")
            settings = {
                "training__batch_size": 8,
                "data__max_length": 24,
                "training__evaluate_every": 3,
                "out": str(place / name),
            }
            run(toy_config(place, base, **settings | changes))
    return memory


def test_a_fresh_process_gives_the_logits_of_memory(saved: dict[str, tuple[Path, torch.Tensor]], tmp_path: Path) -> None:
    precisions = {name: RUNS[name.removesuffix("/last")][2].get("training__precision", "fp32") for name in saved}
    wanted = [(name, str(folder), precisions[name]) for name, (folder, _) in saved.items()]
    assert len(wanted) == 2 * len(RUNS)
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        input=json.dumps([wanted, TEXTS, str(tmp_path / "logits.safetensors")]),
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    fresh = load_file(tmp_path / "logits.safetensors")
    differ = [name for name, (_, logits) in saved.items() if not torch.equal(fresh[name], logits)]
    assert not differ
    same = [name for name in RUNS if torch.equal(fresh[name], fresh[f"{name}/last"])]
    assert len(same) < len(RUNS)  # the best adapter is not always the last


def test_the_runs_above_have_the_heads_they_are_named_for(saved: dict[str, tuple[Path, torch.Tensor]]) -> None:
    for name, (_, own, _) in RUNS.items():
        folder = saved[name][0]
        assert json.loads((folder / "veneer.json").read_text(encoding="utf-8"))["own_head"] is own, name
        assert (folder / "head.safetensors").exists() is not own, name
    keys = {name: load_file(saved[name][0] / "adapter_model.safetensors").keys() for name in RUNS}
    assert any("pooler" in key for key in keys["bert whose checkpoint has no pooler"])
    assert any("encoder.layer.1.attention.self.query.weight" in key for key in keys["top layers"])
    assert any("embeddings" in key for key in keys["embeddings"])
    assert any("q_proj.base_layer.bias" in key for key in keys["bias all"])
    assert any("query.base_layer.bias" in key for key in keys["bias lora_only"])


def test_a_run_that_trained_weights_of_the_base_is_loaded_in_float32(
    saved: dict[str, tuple[Path, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `auto` means bf16; an adapter alone is loaded in bf16 there."""
    from veneer import artifact
    from veneer.precision import Precision

    choose = artifact.choose_precision
    monkeypatch.setattr(
        artifact, "choose_precision", lambda asked, device: Precision("bf16", "") if asked == "auto" else choose(asked, device)
    )
    for name in ("top layers", "embeddings", "bias all"):
        loaded = artifact.load_artifact(saved[name][0])
        assert loaded.precision.name == "fp32"
        logits = compute_logits(loaded.model, encode(loaded.tokenizer, TEXTS, None, loaded.info.max_length))
        assert torch.equal(logits, saved[name][1])
    assert artifact.load_artifact(saved["bert"][0]).precision.name == "bf16"


@pytest.mark.parametrize("name", ["bert whose checkpoint has no pooler", "qwen2"])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
def test_peft_loads_a_run_folder(name: str, saved: dict[str, tuple[Path, torch.Tensor]]) -> None:
    """As PEFT's documentation has it, from the folder alone: its configuration names the base, its tokenizer is there."""
    folder, logits = saved[name]
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    torch.manual_seed(1)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = peft.PeftModel.from_pretrained(plain, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in (text for text in TEXTS if text):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)
        with torch.no_grad():
            rows.append(model(**inputs).logits)
    ours = torch.stack([row for row, text in zip(logits, TEXTS, strict=True) if text])
    torch.testing.assert_close(torch.cat(rows), ours, atol=1e-5, rtol=1e-5)
