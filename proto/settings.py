"""The settings of a run. Every recipe is one `RunSettings`; a key that is not here is an error.

The text under a field is its documentation: docs/recipe.md is generated from it.
"""

import inspect
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    field_validator,
    model_validator,
)

from .methods import METHODS
from .schedule import Schedule

NonNegativeFloat = Annotated[float, Field(ge=0)]
MAX_COUNT = 10**9
PositiveInt = Annotated[int, Field(gt=0, le=MAX_COUNT)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
MAX_STEPS = 10_000
Steps = Annotated[int, Field(gt=0, le=MAX_STEPS)]
AnyStep = Annotated[int, Field(ge=0, le=MAX_STEPS)]
"""One of the steps, counted from 0, or a number of steps that may be none."""
Pixels = Annotated[int, Field(gt=0, le=16_384)]
Tokens = Annotated[int, Field(gt=0, le=100_000)]
Rows = Annotated[int, Field(gt=0, le=1_000_000)]
"""Rows, pictures or trees that are computed together."""
Processes = Annotated[int, Field(gt=0, le=10_000)]
Threads = Annotated[int, Field(gt=0, le=1_024)]
MAX_SECONDS = 1e6
"""Eleven days; the system counts some waits in milliseconds, with 31 bits."""
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
PositiveSeconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
MIN_AMOUNT, MAX_AMOUNT = 1e-4, 1e9
"""Bounds for an amount that Ray sets aside; it counts ten thousandths."""


def _can_be_set_aside(amount: float) -> float:
    if amount and not MIN_AMOUNT <= amount <= MAX_AMOUNT:
        raise ValueError(f"{amount:g} can't be set aside; what Ray counts goes from {MIN_AMOUNT:g} to {MAX_AMOUNT:g}")
    return amount


Amount = Annotated[NonNegativeFloat, AfterValidator(_can_be_set_aside)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
HomePath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path))), Field(strict=False)]
"""A file or folder; a recipe may begin it with `~`, the home folder."""
HomeText = Annotated[str, AfterValidator(os.path.expanduser)]
"""The same where it may be something else too, such as a name."""
Precision = Literal["float32", "bfloat16"]
MAX_NAME = 200
"""Bytes of a run's name; the system takes 255 for a folder's."""
Method = Literal[
    "branch_grpo",
    "branch_grpo_mix",
    "dance_grpo",
    "flow_grpo",
    "flow_grpo_fast",
    "mix_grpo",
    "tempflow_grpo",
    "tree_grpo",
]
SplitName = Literal["early", "dense", "mixed", "sparse", "late"]
OF_ANY_METHOD = ("method", "max_nodes", "adapt")
"""Settings of a schedule that are none of its method."""
MAX_NUMBER = 1e30
"""Largest absolute value of a number that isn't whole: with larger ones float32 has no room left to compute."""


REWARD_NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
"""It stands in dotted settings, files, addresses, labels and names of processes, which take different letters."""
NO_REWARD_NAMES = ("diversity", "iteration", "made_with", "Models", "picture", "prompt")
"""What stands beside rewards in files and among deployments."""


class Settings(BaseModel):
    """Immutable; unknown keys, values of another type (an integer may stand for a number), and infinite numbers are
    refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, strict=True
    )

    @model_validator(mode="after")
    def _texts_can_be_sent(self) -> Self:
        for name, value in self:
            if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
                raise ValueError(f"{name} is {value!r}, which has half a character (a lone surrogate)")
        return self

    @model_validator(mode="after")
    def _not_beyond_float32(self) -> Self:
        for name, value in self:
            if isinstance(value, float) and MAX_NUMBER < abs(value) < math.inf:
                raise ValueError(f"{name} is {value}; numbers go up to {MAX_NUMBER:g}")
        return self


class StartSettings(Settings):
    """What was trained before, to train on."""

    path: HomeText
    """Folder of a run or of one of its checkpoints; what `branchgrpo export` wrote; a network folder that diffusers
    saved; or a LoRA: a file that diffusers reads, or a folder that PEFT wrote."""
    iteration: PositiveInt | Literal["newest", "best"] = "newest"
    """Of a run: the checkpoint of this iteration, the newest, or the best (`checkpoint.keep_best`)."""
    ema: bool = False
    """Of a run: take the running average of its weights."""
    lora: Literal["merge", "train"] = "merge"
    """`merge` adds a LoRA to the weights; what is trained are these, or a new LoRA beside them. `train` continues the
    LoRA itself, whose rank and alpha `learner.lora` must have."""


class PolicySettings(Settings):
    """The model that is aligned."""

    pretrained: HomeText
    """Folder of a diffusers pipeline (a local FLUX.1-dev, say), or `glyphs` for the embedded one. A relative path
    starts where the command is run."""
    height: Pixels = 720
    """Height of the pictures, pixels."""
    width: Pixels = 720
    """Width of the pictures, pixels."""
    frames: Annotated[int, Field(gt=0, le=10_000)] = 1
    """Frames of a clip, for video models."""
    guidance_scale: float = 3.5
    """Embedded guidance, for models that take it (FLUX.1-dev); for others classifier-free guidance, which takes every
    state through the network twice. 1 and less are none."""
    guidance_scale_2: float | None = None
    """Guidance for low noise levels, of models with a second network for them (Wan 2.2); null takes the same."""
    negative_prompt: str = ""
    """What classifier-free guidance leads away from."""
    start_from: StartSettings | None = None
    """What to start from in place of the published weights; a path alone stands for a section with this `path`. The
    reference of the KL term is what was started from."""
    shift: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Timestep shift of flow models, whatever the resolution; null takes the pipeline's own, which may depend on it."""
    max_sequence_length: Tokens = 512
    """Length to which a prompt is padded or cut, tokens: at most 512 for FLUX, SD3 and Wan, 1024 for Qwen-Image. SD1.5
    has a length of its own."""
    precision: Precision = "bfloat16"
    """Number format of the network's weights and activations, in rollouts and learner alike."""
    device: Device = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    compile: bool = False
    """Compile the network (`torch.compile`): faster forward passes after minutes of compiling; needs a C++ compiler.
    Not with `learner.zero_stage: 3`."""
    adapter: str | None = None
    """`module:Class` of an adapter of your own; null takes the one for the pipeline's class."""

    @field_validator("start_from", mode="before")
    @classmethod
    def _path_alone(cls, given: object) -> object:
        return {"path": given} if isinstance(given, str) else given

    @property
    def merged(self) -> "PolicySettings":
        """The same policy, with a LoRA that is trained further merged."""
        if self.start_from is None:
            return self
        return self.model_copy(update={"start_from": self.start_from.model_copy(update={"lora": "merge"})})


class PromptSettings(Settings):
    """The prompts. A source is a file (.txt with a prompt per line; .jsonl, .json, .csv, .tsv, .parquet with a row per
    prompt; with .gz behind it if it is packed), a folder that `datasets` reads, or `hf:NAME` of the Hugging Face hub
    (from its cache, or with `HF_HUB_OFFLINE=0` in the environment), both with `@split` behind if that isn't `train`.
    Text is in UTF-8, or begins with a byte order mark. A .csv or .tsv begins with a header."""

    train: HomePath
    """Prompts to train on. A relative path starts at the recipe's folder."""
    held_out: HomePath | None = None
    """Prompts to evaluate on, never trained on."""
    hold_out: NonNegativeInt = 0
    """Without `held_out`, so many of the prompts to train on, drawn by the run's seed, are kept to evaluate on."""
    column: str = "prompt"
    """Where rows have several columns, the one with the text. The others are the prompt's fields, for rewards to
    read."""
    per_iteration: Annotated[int, Field(gt=0, le=100_000)] = 8
    """Prompts (= trees) per iteration, drawn in an order shuffled anew in each pass through the file."""


class AdaptSettings(Settings):
    """Splits that move to where siblings have differed most."""

    forward_passes: PositiveInt | None = None
    """Most forward passes of a tree; null for as many as with the splits of the recipe."""
    decay: Fraction = 0.8
    """Of what is known of a step: per iteration that splits it, and while it isn't split."""


class ScheduleSettings(Settings):
    """The shape of a tree: a method (docs/method.md), and what is to differ from its defaults.

    null stands for the method's default. A setting that the method doesn't have is an error.
    """

    method: Method = "branch_grpo"
    """Which method's schedule it is."""
    steps: Steps | None = None
    """Denoising steps. The last one is always deterministic."""
    group: Annotated[int, Field(ge=2, le=MAX_COUNT)] | None = None
    """Samples per prompt, of methods that sample one by one."""
    shared_start: bool | None = None
    """Whether these begin with the same noise (`dance_grpo`)."""
    roots: PositiveInt | None = None
    """Independent trees per prompt. With more than one, normalise by `group`."""
    splits: dict[int, int] | SplitName | None = None
    """Step -> number of children, or a named choice. `{0: 2, 3: 2, 6: 2, 9: 2}` (`dense`) gives 16 leaves per root."""
    children: Annotated[int, Field(ge=2, le=MAX_COUNT)] | None = None
    """Number of children of every split (`tempflow_grpo`, `tree_grpo`)."""
    split_step: AnyStep | None = None
    """The step that splits (`tempflow_grpo`); null moves on by one with every iteration."""
    sibling_spread: Annotated[float, Field(ge=0, allow_inf_nan=True)] | None = None
    """Spread s of siblings: their noises correlate by 1/(1+s^2). `.inf` makes them independent."""
    window: Steps | None = None
    """Length of the window of stochastic steps."""
    window_start: AnyStep | None = None
    """Step at which the window begins in the first iteration."""
    window_stride: AnyStep | None = None
    """Steps by which the window moves on; 0 leaves it where it is."""
    window_every: PositiveInt | None = None
    """Iterations between two moves of the window."""
    window_end: Literal["stay", "restart"] | None = None
    """What the window does at the end: stay there, or begin anew."""
    kernel: Literal["dance", "flow", "cps", "ddim"] | None = None
    """Transition of the stochastic steps, as in DanceGRPO, Flow-GRPO, coefficient-preserving sampling, and DDIM."""
    eta: PositiveFloat | None = None
    """Noise level of the stochastic steps."""
    sde_steps: list[int] | None = None
    """Steps that are stochastic and trained beside the splits (`branch_grpo`); null means all but the last."""
    ode_stride: Steps | None = None
    """Steps of a deterministic stretch that are taken as one, by a multistep solver (DPM-Solver++ 2M); 1 takes each."""

    max_nodes: PositiveInt = 100_000
    """Maximum nodes of a tree. A recipe that asks for more is refused before anything is built, for a slip in `splits`
    would fill all memory."""
    adapt: AdaptSettings | None = None
    """Move the splits within a budget (`branch_grpo`, `branch_grpo_mix`); null leaves them where they are. The first
    iteration has those of the recipe."""

    def build(self, iteration: int = 1, seed: int = 0) -> Schedule:
        """The schedule of an iteration (the first is 1). Some methods draw lots from the run's seed."""
        method = METHODS[self.method]
        accepted = inspect.signature(method).parameters
        given = {name: value for name, value in self if value is not None and name not in OF_ANY_METHOD}
        if unknown := [name for name in given if name not in accepted]:
            own = [name for name in accepted if name in type(self).model_fields]
            raise ValueError(f"{unknown[0]} isn't a setting of the method '{self.method}', which has {', '.join(own)}")
        if self.steps is not None and self.steps >= self.max_nodes:
            raise ValueError(f"steps is {self.steps}, more than a tree may have nodes (schedule.max_nodes)")
        now = {name: value for name, value in {"iteration": iteration, "seed": seed}.items() if name in accepted}
        schedule = method(**given, **now)
        schedule.check_size(self.max_nodes)
        return schedule

    @property
    def varies(self) -> bool:
        """Whether the method's schedule may differ from iteration to iteration."""
        return self.adapt is not None or "iteration" in inspect.signature(METHODS[self.method]).parameters

    @field_validator("splits", mode="before")
    @classmethod
    def _steps_may_be_quoted(cls, splits: Any) -> Any:
        """As they are in recipes that were written by earlier versions, and in JSON."""
        if not isinstance(splits, dict):
            return splits
        steps = [int(step) if isinstance(step, str) and step.isdecimal() else step for step in splits]
        if len(set(steps)) < len(steps):
            raise ValueError("a step stands there twice")
        return dict(zip(steps, splits.values(), strict=True))

    @model_validator(mode="after")
    def _buildable(self) -> "ScheduleSettings":
        self.build()
        if self.adapt and "splits" not in inspect.signature(METHODS[self.method]).parameters:
            raise ValueError(f"adapt moves splits, which the method '{self.method}' hasn't as a setting")
        return self


class RolloutSettings(Settings):
    """How trees are computed. Batch sizes can change the last bits of a result, never its noise."""

    trees_per_task: Rows = 8
    """Trees that are expanded together, in one batch per depth."""
    batch_limit: Rows = 128
    """Most rows in one forward pass; wider frontiers are finished chunk by chunk, depth first."""
    decode_batch: Rows = 16
    """Most pictures that are decoded at once."""
    parts_in_scoring: Rows = 16
    """Parts of trees whose leaves may wait for scores at once; then workers pause, which bounds the object store."""
    may_leave_out: Fraction = 0.0
    """Largest share of an iteration's trees that may be left out, counted and told, when a reward gives them no score.
    With more the run stops; with 0, and in execution `plain`, at the first one."""
    trees_in_flight: Rows | None = None
    """Trees that may be sampled ahead of the learner; null for a whole iteration, two with `staleness: 1`. Raised to
    a window and a task where it is less."""
    embeddings: HomePath | None = None
    """Folder in which embeddings of prompts are kept from run to run, of any models; null keeps the newest in memory
    only."""
    latents_precision: Precision = "float32"
    """Number format in which states are kept. Log-probabilities are taken of the rounded states."""

    def trees_to_leave_out(self, trees: int) -> int:
        """How many of so many trees `may_leave_out` allows to be left out."""
        return math.floor(round(self.may_leave_out * trees, 6))  # 0.29 of 100 is 29, though 0.29 * 100 is less


class RewardSettings(Settings):
    """One reward."""

    weight: float = 1.0
    """Factor in the sum of rewards. With 0 the reward is held out: watched, not trained on, it tells whether training
    on the others misleads."""
    pretrained: HomeText | None = None
    """File or folder of the weights, of built-in rewards that are models (docs/rewards.md)."""
    tokenizer: HomeText | None = None
    """Folder of the model's tokenizer; null looks for it beside the weights."""
    backbone: HomeText | None = None
    """Folder of the CLIP model below `aesthetic`."""
    device: Device = "auto"
    """Where the model is: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    scorer: str | None = None
    """`module:callable` that loads a scorer of your own; null takes the built-in one of this name."""
    function: str | None = None
    """`module:function` of your own that scores a batch: n numbers of uint8 [n, height, width, 3] and n prompts."""
    url: str | None = None
    """A service that gives this reward over HTTP, such as `branchgrpo serve-rewards` elsewhere."""
    timeout_seconds: PositiveSeconds = 50
    """How long the service at `url` may take to answer, before it is asked again."""

    @model_validator(mode="after")
    def _from_one_place(self) -> "RewardSettings":
        if len(given := [name for name in ("scorer", "function", "url") if getattr(self, name) is not None]) > 1:
            raise ValueError(f"a reward comes from one of {' and '.join(given)}; give one of them")
        return self


class AdvantageSettings(Settings):
    """From leaf rewards to one advantage per edge."""

    fusion: Literal["uniform", "path_softmax", "edge_softmax"] = "uniform"
    """How leaf rewards are averaged up the tree: plain mean, or weighted by softmax(beta * log-probability), of the
    whole path to each leaf or of the edges to a node's own children, level by level."""
    fusion_beta: float = 1.0
    """beta of the softmax; 0 is the plain mean. Log-probabilities are means over latent dimensions, summed over
    steps."""
    combine: Literal["rewards", "advantages"] = "rewards"
    """Several rewards: add them up first, or normalise each and add up their advantages (GDPO)."""
    normaliser: Literal["depth", "leaf", "group"] = "depth"
    """Where mean and deviation come from. `depth`: nodes of the same depth and root. `leaf`: mean as `depth`, deviation
    of that root's leaves. `group`: nodes of the same depth under all roots of the prompt."""
    edge_weight: Literal["edge", "depth"] = "edge"
    """`edge`: every trained edge counts the same. `depth`: every trained depth counts the same."""
    noise_weight: bool = False
    """Weight the edges of a step in proportion to its noise too, relative to the mean of all steps (TempFlow-GRPO)."""
    clip: PositiveFloat = 5.0
    """Largest absolute advantage."""


class PrunedIterations(Settings):
    """The iterations in which something is pruned."""

    first_iteration: PositiveInt = 1
    """First iteration that is pruned."""
    last_iteration: PositiveInt | None = None
    """Last iteration that is pruned; null for the run's last."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.last_iteration is not None and self.last_iteration < self.first_iteration:
            raise ValueError(
                f"last_iteration is {self.last_iteration}; it must be at least first_iteration, {self.first_iteration}"
            )
        return self

    def applies(self, iteration: int) -> bool:
        return self.first_iteration <= iteration <= (self.last_iteration or iteration)


class WidthPruningSettings(PrunedIterations):
    """Chains of edges below the last split that stay out of the backward pass."""

    mode: Literal["parent_top1", "extreme"]
    """`parent_top1` keeps each last split's best child; `extreme` the `keep` best and the `keep` worst leaves."""
    keep: PositiveInt = 4
    """b of `extreme`."""
    keep_last_split: bool = True
    """Keep the last split's own edges into all its children, as the authors' release does: what a losing child teaches
    is trained on, and only the chain below it is left out. `false` leaves out its edge too."""


class DepthPruningSettings(PrunedIterations):
    """A window of depths whose edges stay out of the backward pass. The edge of step i leads to depth i + 1.

    With `ode_stride` too: steps are those of the grid.
    """

    mode: Literal["fixed", "sliding"]
    """Whether the window moves."""
    window: Steps = 4
    """Depths in the window."""
    start: Steps | None = None
    """First depth of the window at its deepest; null for the last trained depths."""
    direction: Literal["shallower", "deeper"] = "shallower"
    """Sliding: from `start` up to `stop`, or from `stop` down to `start`."""
    every: PositiveInt = 30
    """Iterations between two moves by one depth."""
    stop: Steps = 9
    """First depth of the window at its shallowest."""

    def deepest(self, schedule: Schedule) -> int:
        """First depth of the window at its deepest."""
        last = int(schedule.levels[schedule.trained_depths[-1]])
        return last + 1 - self.window if self.start is None else self.start


class PruningSettings(Settings):
    """Edges that stay out of the backward pass, after advantages are known. Sampling and scoring never change."""

    width: WidthPruningSettings | None = None
    """By the rewards of leaves; null for none."""
    depth: DepthPruningSettings | None = None
    """By depth; null for none."""


class LoraSettings(Settings):
    """Low-rank adapters instead of full fine-tuning."""

    rank: Annotated[int, Field(gt=0, le=10_000)] = 32
    """Rank of the adapters."""
    alpha: PositiveFloat = 64
    """Scale of the adapters, divided by the rank."""
    target_modules: list[str] | None = None
    """Names (or ends of names) of the linear layers that get an adapter; null for those of the model's attention, and
    whatever else is usual in its family."""


class OffloadSettings(Settings):
    """What is kept in the CPU's memory while it isn't in use, for less memory on the GPU and more time."""

    optimizer: bool = False
    """The optimizer's states, and its step. Needs `zero_stage` 1 or more."""
    parameters: bool = False
    """The network's weights. Needs `zero_stage` 3."""


class OptimizerSettings(Settings):
    """AdamW and its learning rate."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: NonNegativeFloat = 1e-4
    """AdamW's weight decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up, over all updates of the run. More iterations stretch `linear` and
    `cosine`."""
    warmup_updates: NonNegativeInt = 0
    """Updates over which the learning rate rises from 0."""
    gradient_clipping: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 for none."""


class LearnerSettings(Settings):
    """From scored trees to new weights."""

    updates_per_iteration: PositiveInt = 1
    """Optimizer steps per iteration; the iteration's trees are divided among them in order."""
    rows_per_micro_batch: Rows = 64
    """Parent states in one forward and backward pass."""
    window_trees: Rows = 8
    """Consecutive trees from which micro-batches are composed."""
    clip_range: PositiveFloat = 1e-4
    """c of the clipped objective: the ratio is held within 1 - c and 1 + c."""
    kl_weight: NonNegativeFloat = 0.0
    """beta_KL: weight of the KL divergence to the policy before training, averaged over latent dimensions. Takes
    another forward pass per row, and without `lora` a second copy of the network, which ranks share at ZeRO 3."""
    keep_graph: bool = False
    """Keep the graphs of the rollouts' forward passes, so that the learner needs the backward passes only, for the
    memory of all activations of an iteration's trained rows. For one process that samples and learns (execution
    `plain`, or placement `colocated` with one rank), one update per iteration, no pruning."""
    skip_zero_advantage: bool = True
    """Leave out edges whose advantage is exactly zero: the gradient is the same. An update without any other edge makes
    no step. With `kl_weight` none is left out."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed's ZeRO stage. bfloat16 needs 1 or more, for gradients accumulated in float32."""
    offload: OffloadSettings = OffloadSettings()
    lora: LoraSettings | None = None
    """Adapters to train; null trains all weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    ema_decay: Fraction | None = None
    """Decay of an average of the weights, kept for `evaluate --ema` and `export --ema`; null for none."""
    optimizer: OptimizerSettings = OptimizerSettings()


class EvaluationSettings(Settings):
    """Evaluation on the held-out prompts: deterministic sampling from fixed starts."""

    every: NonNegativeInt = 0
    """Iterations between evaluations; 0 evaluates before the first and after the last only."""
    seed: Seed = 0
    """Seed of the starting noise."""
    prompts: PositiveInt | None = None
    """How many held-out prompts to use, from the top of the file; null for all."""
    steps: Steps | None = None
    """Denoising steps of an evaluation; null takes those of the schedule."""
    guidance_scale: float | None = None
    """Guidance of an evaluation; null takes `policy.guidance_scale`."""
    rewards: list[str] = []
    """Names of rewards of weight 0 that evaluations alone score: training doesn't wait for them."""
    samples: Annotated[int, Field(gt=0, le=10_000)] = 1
    """Pictures of each prompt. With more than one, how much they differ is told too."""


class KeepBestSettings(Settings):
    """The checkpoints that are kept because they were evaluated best."""

    reward: str | None = None
    """The reward whose mean over the held-out prompts decides; null takes the weighted sum of all."""
    count: PositiveInt = 1
    """How many of the best to keep."""


class CheckpointSettings(Settings):
    """What is kept to go on from."""

    every: PositiveInt = 1
    """Iterations between checkpoints: the most that a fault can cost. One is made at the end, and when the run is
    stopped."""
    keep: PositiveInt = 2
    """Newest checkpoints to keep. With 2 there is one to go back to when the newest is damaged."""
    keep_every: PositiveInt | None = None
    """Iterations between checkpoints that are kept for good, beside the newest; null keeps none."""
    keep_best: KeepBestSettings | None = None
    """Keep the checkpoints that were evaluated best (`evaluate --best`, `export --best`): one is made with every
    evaluation, so `evaluation.every` must not be 0. null keeps none for that."""
    wait_for_disk_seconds: Seconds = 3600
    """How long the run waits, when the disk of its folder is full, for somebody to make room."""


class LoggingSettings(Settings):
    """Logs beside the JSON lines, which are always written."""

    metrics_host: str | None = None
    """Address on which metrics exporters and the controller's HTTP server listen: `127.0.0.1`, `0.0.0.0`; null for
    each node's own address."""
    metrics_port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    """Port of the controller's HTTP server (Prometheus' service discovery `/sd`, `/status`); null for any that is
    free."""
    trace: bool = True
    """Write what every process did when into the run folder, for `branchgrpo trace`; its newest 32 MB at most."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    wandb_project: str | None = None
    """Weights & Biases project to log to; needs the package `wandb`."""
    samples_every: NonNegativeInt = 5
    """Iterations between grids of sampled leaves; 0 for none."""


class PoolSettings(Settings):
    """The processes of one kind: where they run, and what each may use."""

    cpus: Amount = 1
    """CPUs that Ray sets aside for each process; fractions share one."""
    gpus: Amount = 0
    """GPUs for each process; fractions share one. Without, a process sees none and computes on the CPU."""
    threads: Threads | None = None
    """CPU threads of each process; null takes `threads` of the run, or else `cpus`, rounded up."""
    resources: dict[str, Annotated[Amount, Field(gt=0)]] = {}
    """Custom Ray resources that each process needs, to tie the pool to nodes that have them."""
    labels: dict[str, str] = {}
    """Ray node labels that a node must have to be used."""

    def demand(self) -> dict[str, float]:
        """What Ray must set aside for one process, by resource."""
        return {name: n for name, n in {"CPU": self.cpus or 0, "GPU": self.gpus, **self.resources}.items() if n}


class WorkerPoolSettings(PoolSettings):
    """A pool of a fixed number of processes."""

    count: Processes = 1
    """Number of processes."""


class RolloutPoolSettings(PoolSettings):
    """The rollout workers."""

    count: Processes = 1
    """Number of processes; the least number with `max_count`."""
    max_count: Processes | None = None
    """Most processes: after every iteration the run chooses between `count` and this the fewest with which an iteration
    takes hardly longer. null doesn't scale."""

    @model_validator(mode="after")
    def _ordered(self) -> "RolloutPoolSettings":
        if self.max_count is not None and self.max_count < self.count:
            raise ValueError(f"max_count is {self.max_count}; it must be at least count, {self.count}")
        return self


class RewardPoolSettings(PoolSettings):
    """The replicas of one reward model."""

    cpus: Amount | None = None  # type: ignore[assignment]  # never null in the pools that are launched
    """CPUs that Ray sets aside for each process; fractions share one. null is 1, and 0.1 for a `function` of your own
    or a service at a `url`."""
    replicas: Processes = 1
    """Number of replicas; the least number with `max_replicas`."""
    max_replicas: Processes | None = None
    """Most replicas: Ray Serve scales between `replicas` and this by the length of the queue. null doesn't scale."""
    batch_pictures: Rows = 64
    """Most pictures in one call of the model; requests of several trees and workers are put together."""
    batch_wait_seconds: Seconds = 0.01
    """How long a batch waits to be filled."""
    timeout_seconds: PositiveSeconds = 300
    """How long a request may take before it is sent again."""
    deterministic: bool = False
    """Score each request by itself: for models whose floats depend on the batch, where results must not depend on the
    order of arrival."""

    @model_validator(mode="after")
    def _ordered(self) -> "RewardPoolSettings":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}; it must be at least replicas, {self.replicas}")
        return self


class PoolsSettings(Settings):
    """The pools of a run on Ray."""

    rollout_workers: RolloutPoolSettings = RolloutPoolSettings()
    learner: WorkerPoolSettings = WorkerPoolSettings()
    rewards: dict[str, RewardPoolSettings] = {}
    """Reward model -> its replicas. A model that gives several rewards goes by the first of them in the recipe."""
    wait_for_room_seconds: Seconds = 0
    """How long to wait at the start for nodes with room for the pools, such as Ray's autoscaler brings. With 0 a run
    for which there is no room now is refused."""
    silent_seconds: Annotated[float, Field(ge=20, le=MAX_SECONDS)] = 60
    """How long a process may give no sign of life before it is held to hang, and is killed."""


class RunSettings(Settings):
    """A whole run, as a recipe describes it."""

    name: str
    """Name of the run and of its folder."""
    runs: HomePath = Path("runs")
    """Folder in which run folders are made. A relative path starts where the command is run."""
    resume: Literal["never", "auto"] = "never"
    """`auto`: go on with the run of this name where there is one, from its newest checkpoint, so that the same command
    can be given again when the cluster was lost. `never`: a run that exists is an error, unless the command has
    --resume."""
    seed: Seed = 0
    """Seed of all noise and of the order of prompts."""
    iterations: PositiveInt = 300
    """Iterations: sample, score, learn, publish. A resumed run may ask for more."""
    threads: Threads | None = None
    """CPU threads of a process; null leaves it to torch, or to its pool on Ray. Another number can change the last bits
    of a result."""
    execution: Literal["ray", "plain"] = "ray"
    """`ray`: pools of processes that overlap sampling, scoring and learning. `plain`: one process, one after the
    other."""
    placement: Literal["separate", "colocated"] = "separate"
    """`separate`: rollout workers and learner ranks have processes and GPUs of their own. `colocated`: each learner
    rank samples too, with the same copy of the policy, in turns; `pools.learner` says how many and
    `pools.rollout_workers` is not used."""
    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """0: every tree is sampled with the newest weights. 1: the next iteration is sampled while the learner works, with
    weights one iteration old."""
    pools: PoolsSettings = PoolsSettings()
    policy: PolicySettings
    prompts: PromptSettings
    schedule: ScheduleSettings = ScheduleSettings()
    rollout: RolloutSettings = RolloutSettings()
    rewards: Annotated[dict[str, RewardSettings], Field(min_length=1)]
    """Reward name (letters of English, digits, `_` and `-`) -> settings. Each is logged; the weighted sum is trained
    on."""
    advantage: AdvantageSettings = AdvantageSettings()
    pruning: PruningSettings = PruningSettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    logging: LoggingSettings = LoggingSettings()

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        reasons = {
            "is empty": not name,
            "has a slash": not {"/", "\\"}.isdisjoint(name),
            "has signs that can't be seen": not name.isprintable(),
            "begins with a dot, a dash or a blank": name[:1] in (".", "-", " "),
            "ends with a blank": name[-1:] == " ",
            f"is longer than {MAX_NAME} bytes": len(name.encode(errors="replace")) > MAX_NAME,
        }
        if reason := next((reason for reason, applies in reasons.items() if applies), None):
            raise ValueError(f"{name[:MAX_NAME]!r} can't name a run and its folder: it {reason}")
        return name

    @field_validator("rewards")
    @classmethod
    def _something_is_trained_on(cls, rewards: dict[str, RewardSettings]) -> dict[str, RewardSettings]:
        if all(reward.weight == 0 for reward in rewards.values()):
            raise ValueError(f"all of {sorted(rewards)} have weight 0; at least one must be trained on")
        for name in rewards:
            if not re.fullmatch(REWARD_NAME, name) or name in NO_REWARD_NAMES:
                raise ValueError(
                    f"{name!r} can't name a reward; a name has up to 64 letters of English, digits, _ and -, begins "
                    f"with a letter, and is none of {', '.join(NO_REWARD_NAMES)}"
                )
        return rewards

    @model_validator(mode="after")
    def _fits_together(self) -> "RunSettings":
        if self.policy.precision == "bfloat16" and self.learner.zero_stage == 0:
            raise ValueError(
                "learner.zero_stage is 0 with policy.precision 'bfloat16'; use stage 1, 2 or 3 "
                "(stage 0 would add up gradients in bfloat16 and lose most of them)"
            )
        if self.policy.compile and self.learner.zero_stage == 3:
            raise ValueError(
                "policy.compile is true with learner.zero_stage 3, whose hooks on every layer can't be compiled, and a "
                "learner that rounds otherwise than the rollouts would be off; use stage 0, 1 or 2, or compile false"
            )
        least = {"optimizer": 1, "parameters": 3}
        for part, stage in least.items():
            if getattr(self.learner.offload, part) and self.learner.zero_stage < stage:
                raise ValueError(
                    f"learner.offload.{part} is on with learner.zero_stage {self.learner.zero_stage}; it needs stage "
                    f"{stage}" + (" or more" if stage < 3 else "")
                )
        if self.prompts.per_iteration % self.learner.updates_per_iteration:
            raise ValueError(
                f"learner.updates_per_iteration is {self.learner.updates_per_iteration}; it must divide "
                f"prompts.per_iteration, which is {self.prompts.per_iteration}"
            )
        for name in self.evaluation.rewards:
            if name not in self.rewards or self.rewards[name].weight:
                raise ValueError(
                    f"evaluation.rewards has '{name}'; what evaluations alone score must be one of the rewards, with "
                    f"weight 0 ({', '.join(n for n, own in self.rewards.items() if not own.weight) or 'none has it'})"
                )
        if best := self.checkpoint.keep_best:
            if best.reward is not None and best.reward not in self.rewards:
                raise ValueError(
                    f"checkpoint.keep_best.reward is '{best.reward}'; it must be one of {', '.join(self.rewards)}"
                )
            if not self.evaluation.every or not (self.prompts.held_out or self.prompts.hold_out):
                raise ValueError(
                    "checkpoint.keep_best chooses by evaluations; give evaluation.every (now "
                    f"{self.evaluation.every}) and held-out prompts (prompts.held_out or prompts.hold_out)"
                )
        if (start := self.policy.start_from) and start.lora == "train" and self.learner.lora is None:
            raise ValueError("policy.start_from.lora is 'train' and learner.lora is null; give its rank and alpha")
        if self.learner.keep_graph:
            self._check_kept_graphs()
        schedule = self.schedule.build()
        if not schedule.trained_edges:
            raise ValueError("schedule trains no step: give more steps, or splits, or sde_steps")
        if self.pruning.depth and self.pruning.depth.window >= len(schedule.trained_depths):
            raise ValueError(
                f"pruning.depth.window is {self.pruning.depth.window} of {len(schedule.trained_depths)} trained "
                "depths; it must leave some"
            )
        if (depth := self.pruning.depth) and depth.start is not None and depth.start >= schedule.grid_steps:
            raise ValueError(
                f"pruning.depth.start is {depth.start}; of {schedule.grid_steps} steps the deepest edge that can be "
                f"trained leads to depth {schedule.grid_steps - 1}"
            )
        if (depth := self.pruning.depth) and depth.mode == "sliding" and depth.stop >= depth.deepest(schedule):
            raise ValueError(
                f"pruning.depth.stop is {depth.stop}, and the window begins at depth {depth.deepest(schedule)} at its "
                "deepest: it couldn't slide"
            )
        if self.staleness and (self.execution, self.placement) != ("ray", "separate"):
            raise ValueError(
                f"staleness is 1 with execution '{self.execution}' and placement '{self.placement}'; sampling ahead "
                "needs execution 'ray' and placement 'separate'"
            )
        if self.placement == "colocated" and self.learner.zero_stage == 3 and self.pools.learner.count > 1:
            raise ValueError(
                f"learner.zero_stage is 3 with placement 'colocated' and {self.pools.learner.count} ranks, which would "
                "have to sample in step; use stage 0, 1 or 2, or placement 'separate'"
            )
        if schedule.leaves < 2:
            raise ValueError("schedule has one leaf; a tree needs at least two leaves (give roots, splits or a group)")
        if self.advantage.normaliser != "group" and schedule.leaves == schedule.roots:
            raise ValueError(
                f"advantage.normaliser is '{self.advantage.normaliser}' and the schedule doesn't split: every "
                "advantage would be 0; use 'group' or split somewhere"
            )
        return self

    @property
    def training_rewards(self) -> dict[str, RewardSettings]:
        """The rewards that are scored in every iteration."""
        return {name: reward for name, reward in self.rewards.items() if name not in self.evaluation.rewards}

    def checkpoint_due(self, iteration: int) -> bool:
        """Whether a checkpoint is made after an iteration, whatever happens in it."""
        own = self.checkpoint
        strides = (own.every, own.keep_every, self.evaluation.every if own.keep_best else None)
        return any(stride and iteration % stride == 0 for stride in strides)

    @property
    def trace_folder(self) -> Path | None:
        """Where processes write their spans; None if they don't."""
        return self.runs / self.name / "trace" if self.logging.trace else None

    def _check_kept_graphs(self) -> None:
        learner, plain = self.learner, self.execution == "plain"
        fits = {
            f"learner.updates_per_iteration is {learner.updates_per_iteration}": learner.updates_per_iteration == 1,
            f"placement is '{self.placement}'": plain or self.placement == "colocated",
            f"pools.learner.count is {self.pools.learner.count}": plain or self.pools.learner.count == 1,
            f"learner.zero_stage is {learner.zero_stage}": learner.zero_stage < 3,
            "learner.gradient_checkpointing is on": not learner.gradient_checkpointing,
            "pruning is on": self.pruning == PruningSettings(),
        }
        if misfits := [name for name, fit in fits.items() if not fit]:
            raise ValueError(
                "learner.keep_graph needs one process that samples and learns (execution 'plain', or 'colocated' with "
                f"one rank), one update per iteration, ZeRO below 3, no checkpointing, no pruning; {misfits[0]}"
            )
