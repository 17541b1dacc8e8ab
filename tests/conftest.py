"""Fixtures every test may use: real data where it lies, and tiny random bases saved as folders.

The environment is set when this file is imported, because huggingface_hub and OpenMP read it once, when they are imported.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Processes that a test starts inherit it, and so compute with as many threads, bit for bit as the test itself does.
# One, because threads that wait for each other make tiny models slower, and on a busy machine many times so.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from veneer.data import EncodedTexts

DATA_ROOT = Path(os.environ.get("VENEER_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("sst2/train.tsv")` is that file of the shared benchmark data; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        path = DATA_ROOT / name
        if not path.exists():
            pytest.skip(f"the shared data file {name} is not in {DATA_ROOT}; set VENEER_SHARED_DATA to the folder that holds it")
        return path

    return find


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_base("roberta")` is a folder with a tiny random base of that family and its tokenizer; see `SHAPES` for the families.

    As in a published base the classifier is missing. The folder is shared by all tests: copy it before changing a file in it.
    """
    made: dict[str, Path] = {}

    def base(family: str = "bert") -> Path:
        if family not in made:
            made[family] = save_tiny_base(family, tmp_path_factory.mktemp("bases") / family)
        return made[family]

    return base


@pytest.fixture(scope="session")
def make_texts() -> Callable[..., EncodedTexts]:
    """`make_texts([1, 17, 5])` are three random texts of so many tokens, none of them special; `pairs` makes their second halves
    of type 1, as those of pairs are."""

    def make(lengths: Sequence[int], seed: int = 0, *, pairs: bool = False) -> EncodedTexts:
        rng = np.random.default_rng(seed)
        ids = rng.integers(10, 160, sum(lengths), dtype=np.int32)
        types = np.concatenate([pairs * (np.arange(length) * 2 >= length) for length in lengths]).astype(np.uint8)
        return EncodedTexts(ids, types, np.concatenate([[0], np.cumsum(lengths)]), 0)

    return make


@pytest.fixture(scope="session")
def tiny_causal(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_causal("qwen2")` is a whole tiny random language model of that family, with its output matrix; as `tiny_base`."""
    made: dict[str, Path] = {}

    def base(family: str = "qwen2") -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("causal") / family
            made[family] = save_tiny_base(family, folder, AutoModelForCausalLM)
        return made[family]

    return base


# Tiny bases: two layers, width 32, four heads, 160 positions. The initial weights are large enough for attention to be far from
# uniform, so that a text that sees its neighbour, or a wrong position, changes the logits by far more than rounding does.

WORDS = """a about after again all also an and any appointment arm at back bad before better bill bit blood book but by call
can cancel card clinic cold come cost cough could day did do doctor does dull early evening ever every eye fever film fine first
for found friday from full funny get go good great had hand has have he head hello help her here his hour how hurts i in is it
just kind knee know last late left less letter like little long look lost love make many me minute monday more morning most move
movie much my need never new next nice no not note now nurse of office often old on one only open or order our out over pain
part pay people pill place plan plot please poor prescription quick quiet quite really refill result right room said same see
send she should show sick sign since slow so some soon sore sorry stay still stop story such sure take test than thank that the
their them then there these they thing this three time tired to today tomorrow too triumph two up us very visit wait want warm
was watch way we week well were what when where which while who why will wish with without work world worse worst would wrong
year yes yet you young your""".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
OTHERS = "0123456789.,;:!?'\"-()/&%$#@我你他们的是不在有医生头痛预约今天明天好吗多少钱"

WIDTH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 160,
    "initializer_range": 0.2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": WIDTH,
    "roberta": WIDTH | {"max_position_embeddings": 162, "type_vocab_size": 1},  # positions start at padding_idx + 1
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 160,
        "initializer_range": 0.2,
    },
    "modernbert": WIDTH | {"global_attn_every_n_layers": 2, "local_attention": 8, "initializer_cutoff_factor": 2.0},
    "electra": WIDTH | {"embedding_size": 16},
    "albert": WIDTH | {"embedding_size": 16},
    "ernie": WIDTH,
    "xlm-roberta": WIDTH | {"max_position_embeddings": 162, "type_vocab_size": 1},
    "camembert": WIDTH | {"max_position_embeddings": 162, "type_vocab_size": 1},
    "mpnet": WIDTH | {"max_position_embeddings": 162},
    "deberta-v2": WIDTH
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "initializer_range": 0.2},
    # The second layer of these looks back eight tokens at most, where the family has such layers.
    "qwen2": WIDTH | {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": WIDTH
    | {"num_key_value_heads": 2, "head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "llama": WIDTH | {"num_key_value_heads": 2},
    "mistral": WIDTH | {"num_key_value_heads": 2, "sliding_window": 8},
    "gemma3_text": WIDTH
    | {"num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
    | {"layer_types": ["full_attention", "sliding_attention"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 160, "initializer_range": 0.2},
}


def save_tiny_base(family: str, folder: Path, model_class: Any = AutoModel) -> Path:
    """Save a tiny random base of `family` with its tokenizer in `folder`; the same files on every call."""
    tokenizer = make_tokenizer(family)
    ids = {
        name: getattr(tokenizer, name)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    }
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **copy.deepcopy(SHAPES[family]), **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A small tokenizer with the special tokens and the pair format of `family`; pad token only where the family has one."""
    if family in ("bert", "distilbert", "electra", "albert", "ernie", "deberta-v2"):
        return _word_pieces(segments=family != "distilbert")
    if family == "modernbert":
        names = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
        return _byte_pairs(names, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]")
    if family in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        names = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>", "cls": "<s>", "sep": "</s>"}
        return _byte_pairs(names, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    if family in ("llama", "mistral", "gemma3_text"):
        names = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
        return _byte_pairs(names, "<|begin_of_text|> $A", "<|begin_of_text|> $A <|begin_of_text|> $B")
    if family == "xlnet":
        names = {"unk": "<unk>", "sep": "<sep>", "cls": "<cls>", "pad": "<pad>", "eos": "</s>", "bos": "<s>"}
        return _byte_pairs(names, "$A <sep> <cls>", "$A <sep> $B <sep> <cls>")
    if family in ("qwen2", "qwen3"):
        return _byte_pairs({"eos": "<|endoftext|>", "pad": "<|endoftext|>"}, "$A", "$A $B")
    return _byte_pairs({"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}, "$A", "$A $B")


def _word_pieces(*, segments: bool) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS), *OTHERS, *(word for word in WORDS if len(word) > 1)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if segments else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=160,
        model_input_names=inputs,
    )


def _byte_pairs(names: dict[str, str], single: str, pair: str) -> PreTrainedTokenizerFast:
    special = list(dict.fromkeys(names.values()))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(WORDS)], trainer)
    used = [token for token in special if token in single]
    core.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, core.token_to_id(token)) for token in used]
    )
    tokens = {f"{name}_token": token for name, token in names.items()}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=160, model_input_names=inputs, **tokens)
