"""A run's configuration: nested, validated, and the one source of flags, `--set` keys and documentation.

Knows which keys there are and which values they take; does not know what they do. Sections are pydantic models that refuse
unknown keys. `SHORT_FORMS` maps a command-line flag or a keyword of `veneer.train` to its dotted key.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from veneer.task_names import check_task_name, check_task_names

Column = str | int
Auto = Literal["auto"]
LabelName = Annotated[str, Field(coerce_numbers_to_str=True)]  # YAML reads the label 0 as a number
TaskName = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(check_task_name)]
MethodName = Literal["lora", "adalora", "ia3", "adapter", "prefix", "prompt", "bitfit", "head", "top_layers", "full"]
TaskKind = Literal["auto", "single_label", "multi_label"]
Metric = Literal["accuracy", "macro_f1", "micro_f1", "weighted_f1", "subset_accuracy", "loss"]
ClassWeights = Literal["balanced"] | dict[LabelName, float]
Preset = Literal["light", "balanced", "strong", "regularised"]
ATTENTION_ONLY = "query_value"
PRESETS: dict[str, dict[str, Any]] = {
    "light": {"lora.rank": 4, "lora.alpha": 8.0, "lora.dropout": 0.1, "lora.target_modules": ATTENTION_ONLY},
    "balanced": {"lora.rank": 8, "lora.alpha": 16.0, "lora.dropout": 0.1, "lora.target_modules": "auto"},
    "strong": {"lora.rank": 16, "lora.alpha": 32.0, "lora.dropout": 0.1, "lora.target_modules": "auto"},
    "regularised": {
        "lora.rank": 8,
        "lora.alpha": 16.0,
        "lora.dropout": 0.25,
        "lora.target_modules": "auto",
        "training.weight_decay": 0.05,
    },
}
# What `training.learning_rate: auto` is over many texts: what is right for an adapter would wreck a whole encoder, and a lone
# head takes far larger steps. Of the measurements in docs/methods.md, as are the shares of it that LoRA's variants take.
LEARNING_RATES: dict[MethodName, float] = {
    "lora": 5e-4,
    "adalora": 2e-3,
    "adapter": 5e-4,
    "ia3": 5e-3,
    "prefix": 5e-3,
    "prompt": 5e-2,
    "bitfit": 1e-3,
    "head": 1e-2,
    "top_layers": 1e-4,
    "full": 5e-5,
}
RSLORA_SHARE, PISSA_SHARE = 0.4, 0.4


class Section(BaseModel):
    """A part of the configuration that refuses unknown keys and checks assignments."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as true and false, which would pass for the numbers 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and not (isinstance(kind, type) and issubclass(kind, bool | Section)):
            raise PydanticCustomError("no_switch", "Input should be something else than true or false")
        return value


class DataConfig(Section):
    """Where the labelled texts are and how to read them."""

    train: str | None = Field(None, description="training file, or hub:NAME[/SUBSET][:SPLIT]")
    dev: str | None = Field(None, description="development file; split from the training file when not given")
    test: str | None = Field(None, description="test file, scored once at the end")
    corrections: str | None = Field(
        None, description="CSV of veneer audit: training rows with a y in its column use get the labels in its column suggested"
    )
    text: Column = Field("text", description="column of the text: a name, or a number from 0")
    pair: Column | None = Field(None, description="column of the second text of a pair")
    label: Column | list[Column] = Field("label", description="column or columns of the labels")
    label_separator: str | None = Field(None, min_length=1, description="what separates several labels in one cell")
    label_names: str | list[LabelName] | None = Field(
        None, description="names of the label ids: a file with one a line, or a list"
    )
    slice_columns: list[Column] = Field(
        default_factory=list, description="other columns, such as the source, by whose values the report counts right decisions"
    )
    dev_fraction: float = Field(0.1, gt=0, lt=1, description="share of the training file split off when there is no dev file")
    test_fraction: float = Field(0.0, ge=0, lt=1, description="share of the training file split off when there is no test file")
    max_length: int = Field(128, ge=4, description="longest text in tokens, special tokens included; longer ones are cut")
    encoding: str = Field("utf-8", description="encoding of CSV, TSV and JSON files")


class VerbaliserConfig(Section):
    """Classifying by label words: a causal base answers a prompt with one word a label."""

    template: str | None = Field(
        None,
        description="prompt with {text} (and {pair}) that a label word answers, or chat: the tokenizer's chat template around "
        "the instruction; null for a head",
    )
    instruction: str | None = Field(
        None, description="what the user says in the chat, with {text} (and {pair}); a plain question when null"
    )
    words: dict[LabelName, LabelName] | None = Field(
        None, description="label -> its word; the labels' own names when null (YAML reads an unquoted yes or no as true or false)"
    )
    none: LabelName | None = Field(
        None, description="word that stands for no label, where a text has any number: a label is given if its word is likelier"
    )
    length_normalised: bool = Field(
        False, description="score words of several tokens by the mean log-probability of their tokens"
    )


class LoraSettings(Section):
    """Shape of the adapter."""

    preset: Preset = Field("balanced", description="light | balanced | strong | regularised; gives what is not set below")
    rank: int = Field(8, ge=1, description="rank r of the update B·A")
    alpha: float = Field(16.0, gt=0, description="numerator of the update's scale s")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the input of A")
    target_modules: str | list[str] = Field(
        "auto", description="auto | query_value | all-linear | a regular expression | a list of name endings"
    )
    layers: Literal["all"] | list[int] = Field("all", description="layers to adapt, from 0: all, or a list")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases of the base are trained")
    scaling: Literal["standard", "rslora"] = Field("standard", description="s = alpha/r (standard) or alpha/sqrt(r) (rslora)")
    init: Literal["standard", "pissa"] = Field(
        "standard", description="standard (the update starts at zero) | pissa (from the weight's largest singular values)"
    )
    dora: bool = Field(False, description="train a length for each row of the adapted weights, too (DoRA)")
    train_top_layers: int = Field(0, ge=0, description="top layers of the base that are trained in full")
    train_embeddings: bool = Field(False, description="train the base's embeddings in full")


class TuningSettings(Section):
    """Shape of what the methods other than LoRA train."""

    top_layers: int = Field(2, ge=1, description="last layers of the base that the method top_layers trains")
    bottleneck: int = Field(64, ge=1, description="width of the narrow layer of the method adapter")
    virtual_tokens: int = Field(10, ge=1, description="tokens that the methods prompt and prefix add to every text")


# Of the sections `lora` and `tuning`, what a method reads.
METHOD_SETTINGS: dict[MethodName, frozenset[str]] = {
    "lora": frozenset(f"lora.{name}" for name in LoraSettings.model_fields),
    "adalora": frozenset({"lora.rank", "lora.alpha", "lora.target_modules", "lora.layers"}),
    "ia3": frozenset(),
    "adapter": frozenset({"tuning.bottleneck"}),
    "prefix": frozenset({"tuning.virtual_tokens"}),
    "prompt": frozenset({"tuning.virtual_tokens"}),
    "bitfit": frozenset(),
    "head": frozenset(),
    "top_layers": frozenset({"tuning.top_layers"}),
    "full": frozenset(),
}


class TrainingConfig(Section):
    """How the adapter is trained."""

    epochs: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto", description="passes over the training texts; auto: 3, or as many as make 400 steps, at most 40"
    )
    batch_size: Auto | Annotated[int, Field(ge=1)] = Field(
        "auto", description="texts a step; auto: 32, or 16 for fewer than 2,000 training texts"
    )
    learning_rate: Auto | Annotated[float, Field(gt=0)] = Field(
        "auto",
        description="peak learning rate; auto: the method's own (5e-4 for lora), twice that for fewer than 2,000 training texts",
    )
    head_learning_rate: float | None = Field(None, gt=0, description="peak learning rate of the head; learning_rate when null")
    lora_plus_ratio: float | None = Field(
        None, gt=0, description="learning rate of LoRA's B, as a multiple of A's (LoRA+ suggests 16); null for the same"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="course of the learning rate after warm-up")
    warmup_ratio: float = Field(0.06, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay")
    gradient_clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null for no clipping")
    gradient_accumulation: int = Field(1, ge=1, description="batches whose gradients are added up before a step")
    gradient_checkpointing: bool = Field(False, description="compute activations again in the backward pass to save memory")
    tokens_per_pass: int = Field(
        16384, ge=1, description="tokens of one forward pass; a larger batch is cut, with the same gradient"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="precision the frozen base computes in")
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="adamw | adamw_8bit | paged_adamw_8bit: AdamW, its moments in float32 or in eight bits"
    )
    class_weights: ClassWeights | None = Field(
        None,
        description="a weight a label, or balanced: n/(C·n_c) of n texts, n_c of them of the class; for multi-label "
        "sqrt(negatives/positives), at most 10",
    )
    loss: Literal["auto", "focal"] = Field("auto", description="auto (cross-entropy, one a label for multi-label) | focal")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    r_drop: float | None = Field(
        None,
        gt=0,
        description="weight of R-Drop: a step answers each text twice, under two draws of dropout, and by how much the answers "
        "differ is added to the loss; half of the paper's alpha; against over-fitting, for twice the time; null for one answer",
    )
    base_dropout: Auto | Annotated[float, Field(ge=0, lt=1)] = Field(
        "auto",
        description="rate of the base's own dropout layers in training, beside the adapter's; auto: as the base was made, but "
        "off for a head alone; 0: off",
    )
    ema_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay d of the running average of the weights, which is what is evaluated and kept; null for the weights as "
        "they are",
    )
    evaluate_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = Field(
        "epoch", description="evaluate on dev every epoch, or every N steps"
    )
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    patience: int | None = Field(None, ge=1, description="evaluations without a better score before training stops early")

    @property
    def answers(self) -> int:
        """How many times a step answers each of its texts."""
        return 1 if self.r_drop is None else 2


class TrainingSettings(TrainingConfig):
    """The training section with every `auto` that depends on the data settled."""

    epochs: int
    batch_size: int
    learning_rate: float


class EvaluationConfig(Section):
    """How a model is judged."""

    metric: Metric = Field("macro_f1", description="the score on dev that picks the best adapter")
    bootstrap: int = Field(1000, ge=0, description="resamples behind a 95 % interval; 0 for none")
    calibrate: bool = Field(True, description="fit probabilities and the decision rule on dev when training has ended")
    baseline: bool = Field(True, description="fit TF-IDF and logistic regression, too, for the verdict of the report")


class TaskConfig(Section):
    """One of several tasks that are trained together."""

    task: TaskKind = Field("auto", description="auto | single_label | multi_label")
    data: DataConfig = Field(default_factory=DataConfig)
    metric: Metric | None = Field(
        None, description="the score on dev that picks this task's best step; evaluation.metric when null"
    )
    class_weights: ClassWeights | None = Field(None, description="as training.class_weights, which is for all tasks")


class RunConfig(Section):
    """Everything that decides a run. `config.yaml` of a run folder is this, resolved."""

    base: str = Field("minilm", description="minilm, a folder, or a model id of the hub")
    task: TaskKind = Field("auto", description="auto | single_label | multi_label")
    base_precision: Literal["auto", "nf4", "int8"] = Field(
        "auto",
        description="bits of the frozen base's linear layers: auto (as training.precision says) | nf4 | int8, computed in "
        "training.precision",
    )
    pooling: Literal["auto", "cls", "mean", "last"] = Field("auto", description="auto | cls | mean | last")
    method: MethodName = Field("lora", description="of fine-tuning: " + " | ".join(get_args(MethodName)))
    data: DataConfig = Field(default_factory=DataConfig)
    tasks: dict[TaskName, TaskConfig] | None = Field(
        None, description="several tasks trained in one pass of the base: a name -> its data; see docs/multitask.md"
    )
    sampling_temperature: float = Field(
        1.0, gt=0, description="of several tasks: texts of task i are drawn in proportion to n_i^(1/T); 1 by size, large evenly"
    )
    verbaliser: VerbaliserConfig = Field(default_factory=VerbaliserConfig)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    tuning: TuningSettings = Field(default_factory=TuningSettings)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    out: str | None = Field(None, description="run folder to write")
    seed: int = Field(42, ge=0, lt=2**63, description="seed of the split, the order, the initial adapter and dropout")

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: dict[str, TaskConfig] | None) -> dict[str, TaskConfig] | None:
        if tasks is not None:
            check_task_names(list(tasks))
        return tasks

    @field_validator("verbaliser", mode="before")
    @classmethod
    def _no_verbaliser(cls, value: Any) -> Any:
        return {} if value is None else value


FEW_TEXTS = 2000  # fewer training texts than this want small steps, and a higher rate: see docs/defaults.md
FEWEST_STEPS = 400
FEWEST_EPOCHS, MOST_EPOCHS = 3, 40


def settle(config: RunConfig, texts: int) -> TrainingSettings:
    """What `auto` comes to for so many training texts; what is given stays as it is."""
    training, few = config.training, texts < FEW_TEXTS
    size = training.batch_size if training.batch_size != "auto" else 16 if few else 32
    rate = training.learning_rate
    if rate == "auto":
        rate = float(f"{LEARNING_RATES[config.method] * _share_of_rate(config) * (2 if few else 1):.3g}")
    epochs = training.epochs
    if epochs == "auto":
        steps = math.ceil(math.ceil(texts / size) / training.gradient_accumulation)
        epochs = min(max(FEWEST_EPOCHS, math.ceil(FEWEST_STEPS / max(1, steps))), MOST_EPOCHS)
    return TrainingSettings(**training.model_dump() | {"epochs": epochs, "batch_size": size, "learning_rate": rate})


def _share_of_rate(config: RunConfig) -> float:
    """How much smaller than plain LoRA's the steps of its variants are, whose weights move further by a step of one size."""
    if config.method != "lora":
        return 1.0
    share = RSLORA_SHARE if config.lora.scaling == "rslora" else 1.0
    share *= PISSA_SHARE if config.lora.init == "pissa" else 1.0
    return share / math.sqrt(config.training.lora_plus_ratio or 1.0)  # A's and B's geometric mean is LoRA's


SHORT_FORMS: dict[str, str] = {
    "base": "base",
    "task": "task",
    "base_precision": "base_precision",
    "pooling": "pooling",
    "method": "method",
    "train": "data.train",
    "dev": "data.dev",
    "test": "data.test",
    "corrections": "data.corrections",
    "text": "data.text",
    "pair": "data.pair",
    "label": "data.label",
    "label_separator": "data.label_separator",
    "label_names": "data.label_names",
    "max_length": "data.max_length",
    "encoding": "data.encoding",
    "template": "verbaliser.template",
    "length_normalised": "verbaliser.length_normalised",
    "preset": "lora.preset",
    "rank": "lora.rank",
    "alpha": "lora.alpha",
    "dropout": "lora.dropout",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "learning_rate": "training.learning_rate",
    "precision": "training.precision",
    "metric": "evaluation.metric",
    "out": "out",
    "seed": "seed",
}
