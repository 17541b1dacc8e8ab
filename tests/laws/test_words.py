"""Laws of label words: packed = padded = alone, saved = loaded in a fresh process, resumed = uninterrupted, ours = PEFT's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from causal_bases import bilingual_base, bilingual_tokenizer, toy_pairs
from toy_runs import outcome, run, run_interrupted, toy_config, write_csv
from veneer.adaptation import AdapterPlan, adapt
from veneer.bases import find_base
from veneer.data import EncodedTexts, encode, make_prompt
from veneer.errors import ArtifactError, InputError, VerificationError
from veneer.export.merged import merge_run
from veneer.export.rebased import JudgedTexts
from veneer.inference import compute_logits
from veneer.lora import lora_layers
from veneer.methods import METHODS
from veneer.model import Classifier
from veneer.packing import PackedBatch, PaddedBatch
from veneer.predictor import load
from veneer.word_model import build_word_classifier

TEMPLATE = "{text}\n{pair}\nAnswer:"
TEXTS = ["good", "", "a good film about a story", "love " * 30, "bad", "the day", "it was a bad place", "好 day"]
PAIRS = ["bad", "good", "", "a film", "love " * 40, "the day", "it was a good place", "yes"]
# name: (words, whether of several tokens)
WORDS: dict[str, tuple[dict[str, str], bool]] = {
    "one token": ({"different": "否", "same": "是"}, False),
    "several tokens": ({"different": "不相似", "same": "好相似"}, True),
}


@pytest.fixture(scope="module", params=WORDS)
def words(request: pytest.FixtureRequest) -> tuple[dict[str, str], bool]:
    return WORDS[request.param]


@pytest.fixture(scope="module", params=["qwen2", "llama", "gpt2", "gemma3_text"])
def models(
    request: pytest.FixtureRequest, words: tuple[dict[str, str], bool], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Classifier, Classifier, EncodedTexts]:
    """The same adapted model, packing and padding, and the texts in their prompts."""
    base = find_base(str(bilingual_base(tmp_path_factory.mktemp("base"), request.param)))
    tokenizer = bilingual_tokenizer()
    prompt = make_prompt(tokenizer, TEMPLATE, words[0], length_normalised=words[1], pair=True, max_length=60)
    made = []
    for pack in (True, False):
        torch.manual_seed(1)
        model = build_word_classifier(base, prompt, pack=pack)
        adapt(model, AdapterPlan(rank=2, dropout=0.0))
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B, std=0.1)
        made.append(model)
    return made[0], made[1], encode(tokenizer, TEXTS, PAIRS, 60, prompt)


def logits_of(model: Classifier, texts: EncodedTexts, groups: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(model.batch(texts, group)) for group in groups])


def gradients(model: Classifier, texts: EncodedTexts, groups: list[list[int]]) -> dict[str, Tensor]:
    weights = torch.randn(len(texts), 2, generator=torch.Generator().manual_seed(5))
    model.zero_grad()
    for group in groups:
        torch.autograd.backward((model(model.batch(texts, group)) * weights[group]).sum())
    return {name: parameter.grad.clone() for name, parameter in model.trainable().items() if parameter.grad is not None}


def test_packed_is_padded_is_alone(models: tuple[Classifier, Classifier, EncodedTexts]) -> None:
    packed, padded, texts = models
    together, alone = [list(range(len(texts)))], [[i] for i in range(len(texts))]
    assert isinstance(packed.batch(texts, together[0]), PackedBatch)
    assert isinstance(padded.batch(texts, together[0]), PaddedBatch)
    logits = logits_of(packed, texts, together)
    assert logits.std(0).min() > 0.01  # the texts differ, so that a mix-up would show
    for other in (logits_of(padded, texts, together), logits_of(packed, texts, alone), logits_of(padded, texts, alone)):
        torch.testing.assert_close(logits, other, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_padded_and_of_alone(models: tuple[Classifier, Classifier, EncodedTexts]) -> None:
    packed, padded, texts = models
    together = [list(range(len(texts)))]
    wanted = gradients(packed, texts, together)
    assert all(bool(gradient.any()) for gradient in wanted.values())
    for other in (gradients(padded, texts, together), gradients(packed, texts, [[i] for i in range(len(texts))])):
        assert other.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-5 * max(1.0, float(gradient.abs().max())))


def test_filler_behind_the_texts_changes_nothing(
    models: tuple[Classifier, Classifier, EncodedTexts], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, _, texts = models
    together = [list(range(len(texts)))]
    plain = logits_of(packed, texts, together)
    monkeypatch.setattr(Classifier, "_prepares_products", True)
    monkeypatch.setattr("veneer.model.LEAST_ROWS", 1)
    assert len(packed.batch(texts, together[0]).ids) % 32 == 0
    torch.testing.assert_close(logits_of(packed, texts, together), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # of gpt2 the embeddings are the output matrix
@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_packed_is_padded_is_alone_over_a_base_in_fewer_bits(
    bits: str, family: str, words: tuple[dict[str, str], bool], tmp_path: Path
) -> None:
    if bits == "nf4":
        pytest.importorskip("bitsandbytes", reason="NF4 comes with the extra 'qlora'")
    base, tokenizer = find_base(str(bilingual_base(tmp_path, family))), bilingual_tokenizer()
    prompt = make_prompt(tokenizer, TEMPLATE, words[0], length_normalised=words[1], pair=True, max_length=60)
    texts, made = encode(tokenizer, TEXTS, PAIRS, 60, prompt), []
    for pack, precision in ((True, bits), (False, bits), (True, "auto")):
        torch.manual_seed(1)
        made.append(build_word_classifier(base, prompt, pack=pack, base_precision=precision))
        adapt(made[-1], AdapterPlan(rank=2, dropout=0.0))
        for layer in lora_layers(made[-1]).values():
            torch.nn.init.normal_(layer.lora_B, std=0.1)
    packed, padded, dense = made
    linear = [layer for layer in packed.network.modules() if isinstance(layer, torch.nn.Linear)]
    assert linear == [packed.network.get_output_embeddings()]  # type: ignore[operator]
    together, alone = [list(range(len(texts)))], [[i] for i in range(len(texts))]
    logits = logits_of(packed, texts, together)
    assert (logits - logits_of(dense, texts, together)).abs().max() > 1e-3  # else the bits are those of a dense base
    for other in (logits_of(padded, texts, together), logits_of(packed, texts, alone)):
        torch.testing.assert_close(logits, other, rtol=1e-4, atol=1e-4)
    wanted, found = gradients(packed, texts, together), gradients(padded, texts, alone)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * max(1.0, float(gradient.abs().max())))


def make_config(folder: Path, words: tuple[dict[str, str], bool], family: str = "llama", **changes: Any) -> Any:
    """A short run over 40 pairs, for which the base is made in `folder`, too."""
    if not (folder / "base").exists():
        bilingual_base(folder / "base", family)
        write_csv(folder / "train.csv", toy_pairs(40))
        write_csv(folder / "dev.csv", toy_pairs(12, seed=1))
    settings = {
        "data__pair": "pair",
        "data__max_length": 60,
        "verbaliser__template": TEMPLATE,
        "verbaliser__words": words[0],
        "verbaliser__length_normalised": words[1],
        "training__evaluate_every": 3,
    }
    return toy_config(folder, folder / "base", **settings | changes)


FRESH = """
import json, sys
from safetensors.torch import save_file
from veneer import load
folders, texts, pairs, out = json.load(sys.stdin)
save_file({name: load(folder, precision="fp32").logits(texts, pairs) for name, folder in folders.items()}, out)
"""
# name: (words, family, what else is set)
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "one token": ("one token", "llama", {}),
    "several tokens": ("several tokens", "llama", {}),
    "nf4": ("one token", "llama", {"base_precision": "nf4"}),
    "int8, tied embeddings": ("several tokens", "gpt2", {"base_precision": "int8"}),
    "adalora": ("one token", "llama", {"method": "adalora", "training__learning_rate": 3e-2}),
    "ia3": ("one token", "llama", {"method": "ia3", "training__learning_rate": 2e-2}),
    "adapter": ("one token", "llama", {"method": "adapter", "tuning__bottleneck": 4}),
    "prefix": ("several tokens", "llama", {"method": "prefix", "tuning__virtual_tokens": 3}),
    "prompt": ("several tokens", "llama", {"method": "prompt", "tuning__virtual_tokens": 3}),
    "prompt over nf4": ("one token", "llama", {"method": "prompt", "tuning__virtual_tokens": 3, "base_precision": "nf4"}),
    "bitfit": ("one token", "qwen2", {"method": "bitfit"}),
    "top_layers": ("one token", "llama", {"method": "top_layers", "tuning__top_layers": 1}),
    "full, tied embeddings": ("one token", "gpt2", {"method": "full"}),
    "full": ("several tokens", "llama", {"method": "full"}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each run; training has compared what it reads of it with what it had in memory."""
    pytest.importorskip("bitsandbytes", reason="NF4 comes with the extra 'qlora'")
    place, folders = tmp_path_factory.mktemp("runs"), {}
    for name, (asked, family, changes) in RUNS.items():
        plain = {"out": str(place / name), "training__epochs": 1, "evaluation__calibrate": False, "evaluation__baseline": False}
        (place / family).mkdir(exist_ok=True)
        folders[name] = run(make_config(place / family, WORDS[asked], family, **plain | changes)).folder
    return folders


def test_every_method_but_a_head_alone_is_among_them() -> None:
    assert {changes.get("method", "lora") for _, _, changes in RUNS.values()} == METHODS.keys() - {"head"}


def test_a_fresh_process_gives_the_logits_of_memory(runs: dict[str, Path], tmp_path: Path) -> None:
    given = json.dumps([{name: str(one) for name, one in runs.items()}, TEXTS, PAIRS, str(tmp_path / "logits.safetensors")])
    done = subprocess.run([sys.executable, "-c", FRESH], input=given, capture_output=True, check=False, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    fresh = load_file(tmp_path / "logits.safetensors")
    for name, folder in runs.items():
        memory = load(folder, precision="fp32").logits(TEXTS, PAIRS)
        assert torch.equal(fresh[name], memory), name
        assert memory.std(0).min() > 1e-3, name


@pytest.mark.parametrize("name", RUNS)
def test_what_was_trained_counts_and_is_merged_where_that_has_a_meaning(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    changes = RUNS[name][2]
    method = METHODS[changes.get("method", "lora")]
    loaded = load(runs[name], precision="fp32").loaded
    assert loaded.prompt is not None
    base = build_word_classifier(loaded.base, loaded.prompt, base_precision=loaded.info.base_precision)
    plain = compute_logits(base, loaded.encode(TEXTS, PAIRS))
    assert (compute_logits(loaded.model, loaded.encode(TEXTS, PAIRS)) - plain).abs().max() > 1e-3
    if method.merge is None:
        with pytest.raises(InputError, match=method.unmergeable):
            merge_run(runs[name], tmp_path / "merged")
        return
    report = merge_run(runs[name], tmp_path / "merged", judged=JudgedTexts("dev", TEXTS, PAIRS), budget=1.0)
    assert (report.flips, report.loaded_by) == (0, "AutoModelForCausalLM")
    assert (report.change is not None) == ("base_precision" in changes)
    if report.change is not None:
        assert (report.change.base_precision, report.change.texts) == (changes["base_precision"], len(TEXTS))
        with pytest.raises(VerificationError, match=f"instead of {changes['base_precision']}.*more than --budget"):
            merge_run(runs[name], tmp_path / "again", budget=-1.0)
        assert not (tmp_path / "again").exists()


def test_a_run_is_read_the_way_it_was_trained(runs: dict[str, Path], tmp_path: Path) -> None:
    """A folder of any method says that it reads label words, beside `veneer.json`."""
    for name, folder in runs.items():
        assert METHODS[RUNS[name][2].get("method", "lora")].read(folder).reads_words, name
        copy = Path(shutil.copytree(folder, tmp_path / name))
        info = json.loads((copy / "veneer.json").read_text(encoding="utf-8"))
        (copy / "veneer.json").write_text(json.dumps(info | {"verbaliser": None}), encoding="utf-8")
        with pytest.raises(ArtifactError, match="verbaliser is not that of the adapter"):
            load(copy)


def test_a_run_stopped_by_ctrl_c_ends_as_if_it_had_not_been(
    words: tuple[dict[str, str], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, words, lora__dropout=0.3, training__gradient_checkpointing=True)
    run(config)
    run_interrupted(config.model_copy(update={"out": str(tmp_path / "interrupted")}), (2, 7, 11), monkeypatch)
    assert outcome(tmp_path / "interrupted") == outcome(tmp_path / "run")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", ["one token", "several tokens", "adalora", "ia3"])
def test_peft_loads_the_run_over_a_plain_language_model(name: str, runs: dict[str, Path]) -> None:
    folder, words = runs[name], WORDS[RUNS[name][0]]
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["task_type"], settings["modules_to_save"]) == ("CAUSAL_LM", None)
    plain = AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"])
    model = peft.PeftModel.from_pretrained(plain, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text, pair in list(zip(TEXTS, PAIRS, strict=True))[:3]:
        ids = tokenizer(TEMPLATE.replace("{text}", text).replace("{pair}", pair)).input_ids
        scores = []
        for word in words[0].values():
            tokens = tokenizer(word, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
            logits = logits.log_softmax(-1) if words[1] else logits
            scores.append(logits.gather(1, torch.tensor(tokens)[:, None]).mean())
        rows.append(torch.stack(scores))
    ours = load(folder, precision="fp32").logits(TEXTS[:3], PAIRS[:3])
    torch.testing.assert_close(torch.stack(rows), ours, atol=1e-5, rtol=1e-5)
