"""How fast one and the same trained classifier predicts on this processor: veneer, transformers, ONNX Runtime.

See README.md beside this file for what is compared and how to read the table.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from _data import Texts, labelled_texts
from _measure import Contestant, Sample, Spread, Work, Worker, interleave, markdown, parser, progress, start, write_json

BATCH = 32
MAX_LENGTH = 128
Predict = Callable[[Sequence[str]], list[str]]  # texts -> their labels


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--train-rows", type=int, default=8000, help="rows the classifier is trained on, for one epoch")
    flags.add_argument("--rows", type=int, default=None, help="texts to predict; all of the dev file by default")
    options = flags.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    machine = start(options)
    texts = labelled_texts("dev", options.rows)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        maker = Contestant("the maker", build_maker, {"train": labelled_texts("train", options.train_rows), "folder": folder})
        with Worker(maker, options.threads) as worker:
            worker.run(texts=texts)
        workers = {}
        for contestant in _contestants(folder, texts, options.threads):
            progress(f"starting {contestant.name}")
            worker = stack.enter_context(Worker(contestant, options.threads))
            worker.run(seed=-1)  # warm-up
            workers[contestant.name] = worker
        samples = interleave(workers, options.rounds)
    print(f"{texts.source}; the same adapter of rank 8, trained on {options.train_rows:,} rows; tokenisation included\n")
    columns = ["median (least–most) of rounds", "texts/s", "same label as float32", "accuracy", "memory MiB"]
    print(markdown(columns, [_row(name, some) for name, some in samples.items()]))
    write_json(options.json, machine, options, texts=texts.source, samples=samples)


def _row(name: str, samples: Sequence[Sample]) -> list[str]:
    return [
        name,
        Spread.of([sample["texts"] / sample["seconds"] for sample in samples]).show(),
        f"{samples[-1]['agreement']:.2%}",
        f"{samples[-1]['accuracy']:.2%}",
        f"{max(sample['peak_bytes'] for sample in samples) / 2**20:,.0f}",
    ]


def _contestants(folder: Path, texts: Texts, threads: int) -> list[Contestant]:
    def one(name: str, way: Callable[..., Predict], **arguments: Any) -> Contestant:
        return Contestant(name, build_predictor, {"texts": texts, "folder": folder, "way": way, "arguments": arguments})

    return [
        one("veneer, adapter apart", veneer_predictor, merged=False),
        one("veneer, merged", veneer_predictor, merged=True),
        one("transformers pipeline, fp32, one at a time", pipeline_predictor, batch_size=1),
        one(f"transformers pipeline, fp32, batch {BATCH}", pipeline_predictor, batch_size=BATCH),
        one(f"transformers, bf16, sorted by length, batch {BATCH}", sorted_predictor),
        one(f"ONNX Runtime, int8, sorted by length, batch {BATCH}", onnx_predictor, threads=threads),
    ]


def build_predictor(
    texts: Texts, folder: Path, way: Callable[..., Predict], arguments: dict[str, Any]
) -> tuple[Work, dict[str, Any]]:
    """A contestant that labels all texts once a round, and is held to the float32 model's labels."""
    predict = way(folder, **arguments)
    expected = np.array(json.loads((folder / "expected.json").read_text(encoding="utf-8")))
    truth = np.array([texts.labels[i] for i in texts.ids])

    def work(seed: int) -> Sample:
        begin = time.perf_counter()
        labels = predict(texts.texts)
        seconds = time.perf_counter() - begin
        found = np.array(labels)
        return {
            "seconds": seconds,
            "texts": len(texts),
            "agreement": float((found == expected).mean()),
            "accuracy": float((found == truth).mean()),
        }

    return work, {}


def veneer_predictor(folder: Path, merged: bool) -> Predict:
    """`veneer.load(DIR).predict(texts)`, the base in the precision this machine runs best."""
    import veneer

    predictor = veneer.load(folder / "run")
    if merged:
        predictor.merge()
    return lambda texts: [prediction.labels[0] for prediction in predictor.predict(list(texts))]


def pipeline_predictor(folder: Path, batch_size: int) -> Predict:
    """`pipeline("text-classification")` on the merged checkpoint, texts in their own order."""
    import torch
    from transformers import pipeline

    classify: Any = pipeline("text-classification", model=str(folder / "merged"), dtype=torch.float32, device="cpu")

    def predict(texts: Sequence[str]) -> list[str]:
        answers = classify(list(texts), batch_size=batch_size, truncation=True, max_length=MAX_LENGTH)
        return [answer["label"] for answer in answers]

    return predict


def sorted_predictor(folder: Path) -> Predict:
    """What a careful user of transformers writes: bf16, texts sorted by length, padded to the longest of each batch."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder / "merged", dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def run(batch: dict[str, Any]) -> np.ndarray[Any, Any]:
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        return model(**tensors).logits.float().numpy()  # type: ignore[no-any-return]

    return _in_sorted_batches(folder / "merged", run)


def onnx_predictor(folder: Path, threads: int) -> Predict:
    """ONNX Runtime on the merged model with dynamically quantised int8 weights, texts sorted by length."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    # its threads would go on spinning for work while other contestants run
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(folder / "int8.onnx"), settings, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(batch: dict[str, Any]) -> np.ndarray[Any, Any]:
        return session.run(None, {name: batch[name] for name in names})[0]  # type: ignore[no-any-return]

    return _in_sorted_batches(folder / "merged", run)


def _in_sorted_batches(merged: Path, run: Callable[[dict[str, Any]], np.ndarray[Any, Any]]) -> Predict:
    """A loop over batches of texts of like length with the merged checkpoint's tokenizer and label names.

    Args:
        run: takes a padded batch of N texts to `[N, C]` logits.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer, names = AutoTokenizer.from_pretrained(merged), AutoConfig.from_pretrained(merged).id2label

    def predict(texts: Sequence[str]) -> list[str]:
        encoded = tokenizer(list(texts), truncation=True, max_length=MAX_LENGTH)
        order = np.argsort([len(ids) for ids in encoded["input_ids"]], kind="stable")
        ids = np.zeros(len(texts), np.int64)
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            rows = {name: [encoded[name][i] for i in chosen] for name in encoded}
            ids[chosen] = run(dict(tokenizer.pad(rows, return_tensors="np"))).argmax(-1)
        return [names[i] for i in ids.tolist()]

    return predict


def build_maker(train: Texts, folder: Path) -> tuple[Work, dict[str, Any]]:
    """Not a contestant: trains the classifier and writes it in every form, and the float32 model's labels."""
    return lambda texts: _make(train, texts, folder), {}


def _make(train: Texts, texts: Texts, folder: Path) -> Sample:
    import torch
    from rich.console import Console
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from veneer.config_file import load_config
    from veneer.export.merged import merge_run
    from veneer.training import train as train_run

    begin = time.perf_counter()
    progress(f"training on {train.source}")
    for name, some in (("train", train), ("dev", texts)):
        lines = ["text\tlabel", *(f"{text}\t{some.labels[i]}" for text, i in zip(some.texts, some.ids, strict=True))]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    keys = {"data.train": str(folder / "train.tsv"), "data.dev": str(folder / "dev.tsv"), "out": str(folder / "run")}
    # the family's own head, for a checkpoint that transformers itself can load
    settings = {"base": "minilm", "pooling": "cls", "training.epochs": 1, "evaluation.bootstrap": 0}
    train_run(load_config(None, {**keys, **settings}), console=Console(quiet=True))
    merge_run(folder / "run", folder / "merged")
    progress("exporting to ONNX")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    _export(model, AutoTokenizer.from_pretrained(folder / "merged"), folder)

    @torch.inference_mode()
    def run(batch: dict[str, Any]) -> np.ndarray[Any, Any]:
        return model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()  # type: ignore[no-any-return]

    expected = _in_sorted_batches(folder / "merged", run)(texts.texts)
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
    return {"seconds": time.perf_counter() - begin}


def _export(model: Any, tokenizer: Any, folder: Path) -> None:
    """`model` as an ONNX graph of any batch size and length, its weights int8."""
    import logging

    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # the exporter misses torchvision, the quantiser advises a pre-processing that the exporter has done
    logging.disable(logging.WARNING)
    example = dict(tokenizer(["a quiet triumph", "no"], padding=True, return_tensors="pt"))
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        kwargs=example,
        f=str(folder / "fp32.onnx"),
        input_names=list(example),
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(example, sizes),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    quantize_dynamic(folder / "fp32.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8)


if __name__ == "__main__":
    main()
