"""What is of its own in a merged run that reads label words: a plain language model, and `label_words.json` beside it.

Knows prompts and transformers' language models; does not know how a run is merged (`merged.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from veneer.bases import find_base, load_causal_lm
from veneer.data import EncodedTexts, Prompt

WORDS_FILE = "label_words.json"
LOADED_BY = "AutoModelForCausalLM"


def words_document(prompt: Prompt, labels: tuple[str, ...], tokenizer: Any) -> dict[str, Any]:
    """What `label_words.json` holds: the labels, the template up to where the answer begins, and the words with their tokens.

    `lead` are the token ids to put in front of the prompt's own; there are none where the template holds them. Where a text may
    have any number of labels, the last word is the one that stands for none.
    """
    template = prompt.template.rstrip(" ")
    ids = tuple(tokenizer(template, add_special_tokens=False).input_ids)
    lead = () if ids[: len(prompt.lead)] == prompt.lead else prompt.lead
    return {
        "labels": labels,
        "template": template,
        "words": prompt.words if prompt.none is None else (*prompt.words, prompt.none),
        "tokens": prompt.tokens,
        "length_normalised": prompt.reserve > 0,
        "lead": lead,
    }


@torch.no_grad()
def word_logits(folder: Path, prompt: Prompt, texts: EncodedTexts) -> Tensor:
    """`[N, C]` float32 logits of the label words by the checkpoint in `folder`, all of transformers' own, a word at a time."""
    model = load_causal_lm(find_base(str(folder)), dtype=torch.float32, attention=None).eval()
    rows = []
    for first, length in zip(texts.offsets[:-1], prompt.prompt_lengths(texts.lengths), strict=True):
        ids = texts.ids[first : first + length].tolist()
        rows.append(torch.stack([_score(model, ids, list(tokens), prompt.reserve > 0) for tokens in prompt.tokens]))
    scores = torch.stack(rows)
    return scores if prompt.none is None else scores[:, :-1] - scores[:, -1:]


def _score(model: Any, ids: list[int], tokens: list[int], normalised: bool) -> Tensor:
    logits = model(torch.tensor([[*ids, *tokens]], device=model.device)).logits[0, len(ids) - 1 : -1].float()
    logits = logits.log_softmax(-1) if normalised else logits
    score: Tensor = logits.gather(1, torch.tensor(tokens, device=model.device)[:, None]).mean()
    return score.cpu()


def readme_code(prompt: Prompt, pair: bool) -> str:
    """The Python of the folder's README; TEXTS and CHANCES are put in by the caller."""
    scores = _LIKELIHOODS if prompt.reserve > 0 else _LOGITS
    code = _CODE.replace("FILL", _FILL_BOTH if pair else _FILL).replace("IMPORT", "import re\n" if pair else "")
    return code.replace("SCORES", scores if prompt.none is None else scores + _AGAINST_NONE)


_CODE = """import json
IMPORTfrom pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".").eval()
words = json.loads(Path("label_words.json").read_text(encoding="utf-8"))
TEXTS
FILL
ids = words["lead"] + tokenizer(prompt, add_special_tokens=False).input_ids
SCORES
print(dict(zip(words["labels"], CHANCES[0].tolist())))
"""

_FILL = 'prompt = words["template"].replace("{text}", text)'

# Both at once: one of the texts may hold the other's place.
_FILL_BOTH = """given = {"{text}": text, "{pair}": pair}
parts = re.split(r"(\\{text\\}|\\{pair\\})", words["template"])
prompt = "".join(given.get(part, part) for part in parts)"""

_LOGITS = """with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[:, -1, [token for (token,) in words["tokens"]]]"""

_LIKELIHOODS = """
def mean_log_probability(tokens):
    with torch.no_grad():
        likely = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    return likely.gather(1, torch.tensor(tokens)[:, None]).mean()

logits = torch.stack([mean_log_probability(tokens) for tokens in words["tokens"]])[None]"""

_AGAINST_NONE = """
logits = logits[:, :-1] - logits[:, -1:]  # the last word stands for no label"""
