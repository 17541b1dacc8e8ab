"""Training steps of several tasks in one pass of the base, beside those of the same tasks one at a time.

The tasks are SST-2's rows dealt out, each with an adapter and a head of its own. Three ways to train on as many texts: together,
a step of B texts of all K tasks; apart with the same steps, K steps of B/K texts; and apart with whole batches, steps of B texts
of one task, which are K times fewer for each.

    python benchmarks/multitask.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from _data import Texts, labelled_texts
from _measure import Spread, interleave_here, markdown, parser, start, write_json

MAX_LENGTH = 128


def main() -> None:
    flags = parser(__doc__, rounds=7)
    flags.add_argument("--base", default="minilm", help="any base that packs")
    flags.add_argument("--tasks", type=int, nargs="+", default=[2, 4], help="numbers K of tasks")
    flags.add_argument("--batch-size", type=int, default=32, help="texts B of a step")
    flags.add_argument("--rows", type=int, default=4000, help="of all tasks together")
    flags.add_argument("--steps", type=int, default=8, help="joint steps of a round")
    options = flags.parse_args()
    machine = start(options)
    torch.set_num_threads(options.threads)
    texts, rows, results = labelled_texts("train", options.rows), [], {}
    for count in options.tasks:
        ways = _ways(options.base, texts, count, options.batch_size)
        seconds = interleave_here(ways, options.rounds, repeats=options.steps)
        speeds = {name: Spread.of([options.batch_size / one for one in some]) for name, some in seconds.items()}
        rows += [
            [str(count), name, speed.show(), f"{speeds['together'].median / speed.median:.2f}"] for name, speed in speeds.items()
        ]
        results[str(count)] = seconds
    print(f"{texts.source}; {options.batch_size} texts a step\n")
    print(markdown(["tasks", "way", "texts/s, median (least–most)", "together is so many times as fast"], rows))
    write_json(options.json, machine, options, seconds=results)


def _ways(base: str, texts: Texts, count: int, batch_size: int) -> dict[str, Callable[[], object]]:
    """Each way's work on `batch_size` texts."""
    from veneer.training.joint_job import JointJob

    jobs, model = _jobs(base, texts, count, batch_size)
    first = next(iter(jobs.values()))
    joint = _steps(JointJob(model, jobs, first.settings, 1.0, 0))
    whole = cycle([_steps(job) for job in jobs.values()])
    small = [_steps(job, share=count) for job in jobs.values()]
    return {
        "together": lambda: next(joint),
        "apart, the same steps": lambda: [next(steps) for steps in small],
        "apart, whole batches": lambda: next(next(whole)),
    }


def _jobs(base: str, texts: Texts, count: int, batch_size: int) -> tuple[dict[str, Any], Any]:
    """A job for each of `count` tasks over one base, and their classifiers as one pass."""
    from veneer.adaptation import AdapterPlan, adapt
    from veneer.bases import find_base, load_tokenizer
    from veneer.config import TrainingSettings
    from veneer.data import Example
    from veneer.joint import JointClassifier
    from veneer.labels import LabelSet
    from veneer.model import build_classifier
    from veneer.precision import choose_precision, pick_device
    from veneer.tasks import TASKS, Objective
    from veneer.training.loop import Job
    from veneer.training.prepare import encode_split

    place, device = find_base(base), pick_device()
    precision, tokenizer, task = choose_precision("auto", device), load_tokenizer(place), TASKS["single_label"]
    settings = TrainingSettings(epochs=1, batch_size=batch_size, learning_rate=5e-4)
    jobs = {}
    for number in range(count):
        mine = range(number, len(texts), count)
        examples = [Example(texts.texts[row], None, (texts.labels[texts.ids[row]],), row) for row in mine]
        split = encode_split(examples, tokenizer, MAX_LENGTH, task, LabelSet(texts.labels))
        model = build_classifier(place, len(texts.labels), dtype=precision.dtype)
        adapt(model, AdapterPlan())
        jobs[f"task{number}"] = Job(model.to(device), task, Objective(), split, split, settings, "accuracy", 0)
    model = JointClassifier({name: job.model for name, job in jobs.items()})
    model.train()
    return jobs, model


def _steps(job: Any, share: int = 1) -> Iterator[object]:
    """Endless training steps of a job, each over one of `share` parts of a batch."""
    from veneer.training.checkpoint import Progress
    from veneer.training.loop import run_step, start_optimizer

    optimizer, progress = start_optimizer(job), Progress(step=1)
    for batch in cycle(job.plan(0)[:-1]):
        for part in range(share):
            yield run_step(job, optimizer, progress, [batch[part::share]])


if __name__ == "__main__":
    main()
