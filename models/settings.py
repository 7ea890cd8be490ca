"""Settings of models: the frozen base, the adapter on it, the engine that serves them, and training in general."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from models.families import ALL_LINEAR
from settings import FREE, SIZE, Count, Names, Node, NotNegative, Positive, Refers, Share, Slug, Text, TopP, optional

Arithmetic = Literal["auto", "bfloat16", "float32"]
Quantize = Literal["nf4", "none"]
PromptFormat = Literal["auto", "chat", "plain"]
MergeBase = Literal["dequantized", "original"]
RESERVED_EXPERTS = ("base", "default", "each", "merged", "reference", "routed")
"""Words that name no expert: they mean something in recipes, or in PEFT."""


class Lora(Node):
    """The adapter: W + (alpha / rank) B A, the only thing that is trained (arXiv 2106.09685)."""

    rank: Annotated[Count, Field(le=512), SIZE] = 32
    """Rank of the update; vLLM serves up to 512."""
    alpha: Annotated[Positive, SIZE] = 64.0
    """Scale of the update; alpha / rank multiplies B A."""
    dropout: Share = 0.0
    """Dropout on the adapter's input. 0 keeps rollouts and training the same policy."""
    targets: Names = (ALL_LINEAR,)
    """Linear layers that get an adapter, by name (q_proj). all-linear: all but the output head (QLoRA, section 4)."""


_START = create_model(
    "ExpertStart",
    __base__=Node,
    **{
        "from": (
            Annotated[
                Slug | None,
                Field(description="What a new expert starts from: an expert of the panel, or `base`. None: the base."),
            ],
            None,
        )
    },
)
"""`from` is a word of Python's, so that no class body can declare it."""


class TrainsExpert(_START):
    """Which expert of the panel a stage trains (models/experts.py); the others stay as they are, byte for byte."""

    expert: Slug | None = None
    """An expert of the panel by its name, a new one where there is none of that name; or `each`: one expert for each
    domain of the data, on its own share of it. None: the stage trains a single policy, beside any panel."""
    domains: Annotated[Names | None, SIZE] = None
    """With `expert: each`: the domains that get an expert, by the problems' own `domain`. None: all that there are.
    With an expert by name: the only domains that it is trained on. None: everything."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """Of an expert that goes on: AdamW's moments begin at zero, as ProRL resets them (arXiv 2505.24864), or are those
    with which the training of the expert that it starts from ended."""
    lora: optional(Lora, "rank", "alpha", "dropout", "targets", otherwise="None: as in `model.lora`.") | None = None
    """A new adapter, of an expert or of a stage that starts from the base, where it is another than `model.lora`."""


class PanelChange(Node):
    """One change of a panel by hand, as `orchestra panel` makes it (models/panel_changes.py)."""

    change: Literal["add", "clone", "remove", "rename", "undo"]
    """add: an adapter from elsewhere as an expert more; clone: a copy of an expert under a name of its own; remove and
    rename: in the router too; undo: the panel before the last of the changes that stages of this kind have made."""
    expert: Slug | None = None
    """The expert that is changed; of `add`, its name."""
    to: Slug | None = None
    """clone and rename: a name that no expert has yet."""
    folder: Annotated[Text | None, SIZE, Refers("adapter")] = None
    """add: where the adapter lies, as PEFT saves one: of the same base."""
    domains: Names | None = None
    """add: of the problems that it is for. None: all."""
    may_cost: Annotated[Share | None, FREE] = None
    """remove: a NO-GO where it is predicted to cost more points (0.02 is two), by its interval's lower end. None: what
    it is predicted to cost is told, and no more."""


class MergeSettings(Node):
    """How the experts of a panel become one adapter (models/mixing.py). What an expert adds to a weight is called its
    update, (alpha / rank) B A."""

    merge: Literal["by-load", "best", "linear", "ties", "dare_ties", "svd"]
    """by-load: the sum of the updates, each times the share of problems that its expert is asked; best: the one expert
    with the best record; linear: the updates' mean, exactly; svd: that mean at a lower rank; ties (arXiv 2306.01708):
    small entries dropped, those of the minority's sign too, the rest averaged; dare_ties (arXiv 2311.03099): the same,
    entries dropped at random and the rest scaled up."""
    rank: Annotated[Count | None, Field(le=512), SIZE] = None
    """Of the merged adapter, by a truncated singular value decomposition of the merged update. None: by-load and linear
    as many as the experts together, which loses nothing; svd, ties and dare_ties as many as the largest expert."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    """ties and dare_ties: the share of an update's entries that is not dropped."""


class MixtureSettings(Node):
    """How the experts of a panel act together inside the network, softly for each token and layer (models/mixture.py,
    Arrow, arXiv 2405.11157)."""

    layers: Literal["middle", "all"] = "middle"
    """In which layers experts act: the middle half, or all; in the others the base is alone."""
    top_k: Count | None = None
    """At most so many experts act on a token in a layer, those whose direction its hidden state lies most along. None:
    all of them."""
    temperature: Positive = 1.0
    """Of the softmax over the experts that act; smaller is sharper."""


class Model(Node):
    """The frozen base and the adapter on it."""

    base: Annotated[Text, SIZE, Refers("model")]
    """Hub id (`name[@revision]`), local folder, or `embedded/student`, which ships with the package."""
    quantize: Quantize = "nf4"
    """4-bit NF4 with double quantisation (arXiv 2305.14314), or none."""
    dtype: Annotated[Arithmetic, SIZE] = "auto"
    """Arithmetic of the trainer. auto: bfloat16 on a GPU, float32 on a CPU."""
    prompt: PromptFormat = "auto"
    """How problems are put to it: by its chat template, or plainly, without tokens of a template. auto: chat where the
    template is trained in, as its generation config and its embeddings say (models/conversation.py)."""
    lora: Lora = Lora()
    """The adapter."""


class Serving(Node):
    """The engine that writes all completions."""

    engine: Annotated[Literal["auto", "vllm", "transformers"], SIZE] = "auto"
    """auto: vllm where it is installed, else transformers."""
    sync: Annotated[Literal["auto", "folded", "adapter"], SIZE] = "auto"
    """What the engine gets after a step: the adapter, or folded weights. auto: folded, but the adapter where
    vLLM serves an unquantised base in bfloat16, in whose rounding a folded update could be lost."""
    dtype: Annotated[Arithmetic, SIZE] = "auto"
    """Arithmetic of the engine. auto: bfloat16 on a GPU, float32 on a CPU."""
    gpu_memory_utilization: Annotated[TopP, SIZE, FREE] = 0.35
    """Share of the GPU's memory that the vLLM engine takes, weights and KV cache together."""


class Nucleus(Node):
    """Nucleus sampling, wherever completions are drawn."""

    top_p: TopP = 1.0
    """Nucleus; 1 is off."""


class TopK(Node):
    """Truncation to the likeliest tokens."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among the k likeliest tokens; 0 is off."""


class TrainingSettings(Node):
    """What every stage that trains has in common; names are TRL's where a value goes straight into TRL."""

    steps: Annotated[Count, SIZE]
    """Optimizer steps."""
    learning_rate: Annotated[Positive, Field(le=1), SIZE]
    """Peak learning rate of AdamW."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay."""
    max_grad_norm: Positive = 1.0
    """The gradient's norm is clipped to this."""
    micro_batch_size: Annotated[Count | None, SIZE] = None
    """Rows per forward pass. sft: must divide the batch; grpo: of the longest completions, there are more of shorter
    ones. None: chosen by the stage (models/sizes.py)."""
    gradient_checkpointing: Annotated[bool | None, SIZE, FREE] = None
    """Compute activations again instead of keeping them: slower, less memory. None: where a GPU has too little."""
    save_steps: Annotated[Count, SIZE, FREE] = 20
    """Steps between checkpoints, from which a killed run goes on."""
    evaluate_every: Annotated[Count | None, SIZE] = None
    """Steps between evaluations on `problems.validation` while it trains, and one after the last step; training is the
    same with and without them, but for the traces that an sft stage then sets aside (`memorisation_above`). None:
    none."""
    keep: Literal["last", "best"] = "last"
    """The policy that is handed on: the last one, or the one that did best on `problems.validation` (of equal ones the
    earlier), of those at `evaluate_every`."""


class GrowthSettings(Node):
    """When a panel of experts grows or is pruned (models/population.py). The thresholds are this project's; each has to
    be crossed in `windows` windows in a row."""

    unsolved_above: Share = 0.2
    """Grow: no arm solves more than this share of the problems."""
    entropy_above: Share = 0.8
    """Grow: routing entropy, as a share of log(arms), above this, and the loss above its own limit."""
    loss_above: NotNegative = 0.3
    """Grow: 1 - routed accuracy above this where the entropy is high; high entropy alone may mean equal experts."""
    load_below: Share = 0.02
    """Prune: less than this share of the problems is routed to the expert; 0 prunes none."""
    windows: Annotated[Count, Field(le=1000)] = 3
    """Windows in a row, all since the last change, in which it must be so."""
    cooldown: Annotated[int, Field(ge=0, le=1000)] = 3
    """Windows after a change in which nothing is decided; they count among those in a row."""
    at_most: Annotated[Count, Field(le=256)] = 8
    """Experts, the base not counted, beyond which a panel does not grow."""
    at_least: Annotated[int, Field(ge=0, le=256)] = 1
    """Experts, the base not counted, below which none is pruned."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.at_least > self.at_most:
            message = "at_least ({least}) must not be above at_most ({most}), or no panel is right"
            raise PydanticCustomError("rule", message, {"least": self.at_least, "most": self.at_most})
        return self


class RouterSettings(Node):
    """The router of a panel: one logistic model for each arm of whether it solves a problem (models/router.py)."""

    layer: Annotated[int | None, Field(ge=0, le=1000), SIZE] = None
    """Prompts are read off the frozen base behind so many of its layers; 0 is the embeddings. None: half of them."""
    threshold: Share = 0.0
    """An expert must be likelier than the base to solve a problem, by at least this much, to be asked (0.05 is five
    points). 0: the likeliest arm is asked."""
    set_aside: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the problems that is set aside, for stopping early and for calibration (Platt 1999)."""
    l2: NotNegative = 0.3
    """Half of this times the squared norm of an arm's weights is added to its mean cross-entropy in nats; the features
    have mean 0 and variance 1."""
    patience: Count = 10
    """An arm's fit ends when its cross-entropy on the problems set aside has had no new minimum for so many steps."""
    max_steps: Count = 200
    """Steps of L-BFGS at most; the weights of the best step stay."""
