"""Laws of label words: packed = padded = alone, saved = loaded in a fresh process, resumed = uninterrupted, ours = PEFT's."""

from __future__ import annotations

import json
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
from veneer.errors import ArtifactError
from veneer.lora import lora_layers
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


def make_config(folder: Path, words: tuple[dict[str, str], bool], **changes: Any) -> Any:
    """A short run over 40 pairs, for which the base is made in `folder`, too."""
    if not (folder / "base").exists():
        bilingual_base(folder / "base", "llama")
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
folder, texts, pairs, out = json.load(sys.stdin)
save_file({"logits": load(folder, precision="fp32").logits(texts, pairs)}, out)
"""


def test_a_fresh_process_gives_the_logits_of_memory(words: tuple[dict[str, str], bool], tmp_path: Path) -> None:
    folder = run(make_config(tmp_path, words)).folder
    memory = load(folder, precision="fp32").logits(TEXTS, PAIRS)  # which training has compared with its own
    given = json.dumps([str(folder), TEXTS, PAIRS, str(tmp_path / "logits.safetensors")])
    done = subprocess.run([sys.executable, "-c", FRESH], input=given, capture_output=True, check=False, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], memory)


def test_a_run_stopped_by_ctrl_c_ends_as_if_it_had_not_been(
    words: tuple[dict[str, str], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, words, lora__dropout=0.3, training__gradient_checkpointing=True)
    run(config)
    run_interrupted(config.model_copy(update={"out": str(tmp_path / "interrupted")}), (2, 7, 11), monkeypatch)
    assert outcome(tmp_path / "interrupted") == outcome(tmp_path / "run")


def test_a_run_whose_label_words_are_gone_is_refused(words: tuple[dict[str, str], bool], tmp_path: Path) -> None:
    """It would be read by a head that nobody trained."""
    folder = run(make_config(tmp_path, words, training__epochs=1)).folder
    info = json.loads((folder / "veneer.json").read_text(encoding="utf-8"))
    (folder / "veneer.json").write_text(json.dumps(info | {"verbaliser": None}), encoding="utf-8")
    with pytest.raises(ArtifactError, match="verbaliser is not that of the adapter"):
        load(folder)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
def test_peft_loads_the_run_over_a_plain_language_model(words: tuple[dict[str, str], bool], tmp_path: Path) -> None:
    folder = run(make_config(tmp_path, words)).folder
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
