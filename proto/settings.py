"""The settings of a run. Every recipe is one `RunSettings`; a key that is not here is an error.

The text under a field is its documentation: docs/recipe.md is generated from it.
"""

import inspect
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveFloat,
    WrapValidator,
    field_validator,
    model_validator,
)

from .media import Reads
from .methods import METHODS
from .questions import check_template
from .schedule import RootNoise, Schedule
from .settings_rules import RULES

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
Rows = Annotated[int, Field(gt=0, le=MAX_COUNT)]
"""Rows, pictures or trees that are computed together."""


class Auto(int):
    """What `auto` stands for until a number is chosen: 1, which is slow and fits."""


AUTO = Auto(1)


def _number_or_auto(value: Any, check: Callable[[Any], int]) -> int:
    if isinstance(value, Auto) or value == "auto":
        return AUTO
    if isinstance(value, str):
        raise ValueError(f"it is {value!r}; give a number, or auto")
    return check(value)


OrAuto = WrapValidator(_number_or_auto)
Size = Annotated[Rows, OrAuto, PlainSerializer(lambda size: "auto" if isinstance(size, Auto) else size)]
"""Rows or trees that are computed together, or `auto` until `cluster/plan/sizes.py` has chosen a number."""
MAX_PROCESSES = 10_000
Processes = Annotated[int, Field(gt=0, le=MAX_PROCESSES)]
Threads = Annotated[int, Field(gt=0, le=1_024)]
MAX_SECONDS = 1e6
"""Eleven days; the system counts some waits in milliseconds, with 31 bits."""
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
PositiveSeconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
MIN_AMOUNT, MAX_AMOUNT = 1e-4, 1e9
"""Bounds for an amount that Ray sets aside; it counts ten thousandths."""


def _can_be_set_aside(amount: float) -> float:
    if amount and not MIN_AMOUNT <= amount <= MAX_AMOUNT:
        raise ValueError(f"{amount:g} can't be reserved; Ray counts from {MIN_AMOUNT:g} to {MAX_AMOUNT:g}")
    return amount


def _falling(levels: list[float]) -> list[float]:
    if any(following >= level for level, following in pairwise(levels)):
        raise ValueError(f"{levels} don't fall; give noise levels from 1 downwards, without the last 0")
    return levels


NoiseLevels = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=1000), AfterValidator(_falling)
]
Amount = Annotated[NonNegativeFloat, AfterValidator(_can_be_set_aside)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
HomePath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path))), Field(strict=False)]
"""A path to a file or folder. A leading `~` stands for the home folder."""
HomeText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A text that may be such a path or something else, such as a name."""
Precision = Literal["float32", "bfloat16"]
Attention = Literal[
    "native",
    "_native_flash",
    "_native_efficient",
    "_native_math",
    "_native_cudnn",
    "flash",
    "flash_hub",
    "_flash_3",
    "_flash_3_hub",
    "flex",
    "xformers",
]
"""diffusers' names of the attention kernels that have a backward pass."""
KlScale = Literal["exact", "flow_grpo"]
MAX_NAME = 200
"""Maximum length of a run's name, bytes. The system allows 255 for a folder."""
Method = Literal[
    "branch_grpo",
    "branch_grpo_mix",
    "dance_grpo",
    "flow_grpo",
    "flow_grpo_fast",
    "mix_grpo",
    "nft",
    "tempflow_grpo",
    "tree_grpo",
]
SplitName = Literal["early", "dense", "mixed", "sparse", "late"]
OF_ANY_METHOD = ("method", "max_nodes", "root_noise")
"""Settings of a schedule that apply to every method."""
MAX_NUMBER = 1e30
"""Maximum absolute value of a number that isn't an integer. Computing with larger ones would overflow float32."""


REWARD_NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
"""The letters that are valid in dotted settings, files, addresses, labels and names of processes alike."""
SHOWN_TREES = 4
"""Number of trees per iteration whose leaves are kept as samples."""
PLACES_OF_REWARDS = ("scorer", "function", "url", "judge")
"""Settings of a reward, one of which may say that it isn't the built-in one of its name."""
NO_REWARD_NAMES = ("diversity", "iteration", "made_with", "Models", "picture", "prompt")
"""Names that files and deployments use beside those of rewards."""


class Settings(BaseModel):
    """A section of settings. It is immutable, and refuses unknown keys, values of another type (an integer may stand
    for a number) and infinite numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, strict=True
    )

    @model_validator(mode="after")
    def _can_be_sent_and_computed(self) -> Self:
        for name, value in self:
            if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
                raise ValueError(f"{name} is {value!r}, which has half a character (a lone surrogate)")
            if isinstance(value, float) and MAX_NUMBER < abs(value) < math.inf:
                raise ValueError(f"{name} is {value}; numbers go up to {MAX_NUMBER:g}")
        return self


def _ascending(low: str, high: str) -> Callable[[Any], Any]:
    """A validator of a section whose setting `high`, if it isn't null, must be at least `low`."""

    def check(section: Any) -> Any:
        least, most = getattr(section, low), getattr(section, high)
        if most is not None and most < least:
            raise ValueError(f"{high} is {most}; it must be at least {low}, {least}")
        return section

    return check


class StartSettings(Settings):
    """Weights to start from: those of an earlier run, or an adapter."""

    path: HomeText
    """Folder of a run or of one of its checkpoints, an export of `branchgrpo export`, a network folder that diffusers
    saved, or a LoRA (a file that diffusers reads, or a folder that PEFT wrote)."""
    iteration: PositiveInt | Literal["newest", "best"] = "newest"
    """Which checkpoint to take if `path` is a run: an iteration's, the newest, or the best (`checkpoint.keep_best`)."""
    ema: bool = False
    """Take the running average of the weights if `path` is a run."""
    lora: Literal["merge", "train"] = "merge"
    """What to do with a LoRA. `merge` adds it to the weights and then trains these, or a new LoRA beside them. `train`
    continues the LoRA itself; `learner.lora` must have its rank and alpha."""


class PolicySettings(Settings):
    """The model to train."""

    pretrained: HomeText
    """Folder of a diffusers pipeline, such as a local FLUX.1-dev, a single .safetensors file (with `config`), or
    `glyphs` or `shapes` for an embedded one. A relative path starts in the current folder."""
    config: HomePath | None = None
    """For a single .safetensors file as `pretrained`: the folder of a diffusers pipeline like it, which says how the
    file's parts are built, and from which the parts are taken that the file doesn't hold."""
    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None = None
    """Variant of the weights, such as `fp16`, of those parts that have it. null: the files without one."""
    height: Pixels = 720
    """Height of the pictures, pixels."""
    width: Pixels = 720
    """Width of the pictures, pixels."""
    frames: Annotated[int, Field(gt=0, le=10_000)] = 1
    """Frames of a clip, for video models."""
    seconds: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Length of a sound in seconds, for models of sound. null: the longest that the model makes."""
    guidance_scale: float = 3.5
    """Guidance. Models with embedded guidance (FLUX.1-dev) get it as an input. For others it is the scale of
    classifier-free guidance, which doubles the forward passes; 1 or less turns that off (for Z-Image 0 or less, as in
    diffusers; HunyuanVideo takes nothing less than 1)."""
    guidance_scale_2: float | None = None
    """Guidance at low noise levels, for models with a second network for these (Wan 2.2), or of the sound of a clip
    (LTX-2); at least 1. null: `guidance_scale`."""
    negative_prompt: str = ""
    """The prompt that classifier-free guidance steers away from."""
    start_from: StartSettings | None = None
    """Weights to start from in place of the published ones. A path alone is short for a section with this `path`. The
    KL term is measured against the weights that training starts from."""
    shift: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Timestep shift of flow models, at any resolution. null: the pipeline's, which may depend on the resolution."""
    sigmas: NoiseLevels | None = None
    """Noise levels of a flow model that was distilled to a few steps, descending from 1, without the last 0. They are
    taken as they are, without a shift, in training and in evaluations; `schedule.steps` must be their number. null:
    the pipeline's."""
    max_sequence_length: Tokens = 512
    """Length to which prompts are padded or cut, tokens. Maximum 512 for Chroma, FLUX, SD3, Wan and Z-Image, 1000
    for HunyuanVideo, 1024 for LTX-2 and Qwen-Image, 4000 for Qwen-Image-Edit, 8191 for Qwen-Image 2.1; SD1.5 and SDXL
    have a fixed length. A longer one takes more memory and time per forward pass."""
    precision: Precision = "bfloat16"
    """Number format of the network's weights and activations, in rollouts and in the learner."""
    device: Device = "auto"
    """Where the model runs: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    attention: Attention = "native"
    """Attention kernels of the network, in rollouts and in the learner, by diffusers' names. `native` leaves the choice
    to PyTorch, but for cuDNN's kernels, with which backward passes in bfloat16 have failed on an H100. `flash`,
    `_flash_3` and `xformers` need packages of their own."""
    compile: bool = False
    """Compile the network (`torch.compile`). Forward passes get faster, after minutes of compiling. It needs a C++
    compiler and `learner.zero_stage` 0, 1 or 2."""
    adapter: str | None = None
    """Your adapter, as `module:Class`. null: the built-in one for the pipeline's class."""

    @field_validator("start_from", mode="before")
    @classmethod
    def _path_alone(cls, given: object) -> object:
        return {"path": given} if isinstance(given, str) else given

    @property
    def merged(self) -> "PolicySettings":
        """The same policy with the LoRA of `start_from` merged into the weights, not trained further."""
        if self.start_from is None:
            return self
        return self.model_copy(update={"start_from": self.start_from.model_copy(update={"lora": "merge"})})


class PromptSettings(Settings):
    """The prompts. A source is one of: a text file with a prompt per line (.txt); a file with a row per prompt (.jsonl,
    .json, .csv, .tsv, .parquet); a folder that `datasets` reads; or `hf:NAME` for a dataset of the Hugging Face hub,
    which is read from the local cache (with `HF_HUB_OFFLINE=0` in the environment it may be downloaded). Files may be
    packed (.gz). Append `@split` to a folder or `hf:NAME` for a split other than `train`. Text is in UTF-8, or begins
    with a byte order mark. A .csv or .tsv begins with a header."""

    train: HomePath
    """Source of the prompts to train on. A relative path starts in the recipe's folder, one on the command line in the
    current folder."""
    held_out: HomePath | None = None
    """Source of the prompts to evaluate on. They are never trained on."""
    held_out_count: NonNegativeInt = 0
    """Number of training prompts to set aside for evaluation if there is no `held_out`. The run's seed draws them."""
    column: str = "prompt"
    """The column with the prompt's text, if rows have several. The other columns are passed to rewards as the prompt's
    fields."""
    picture_column: str | None = None
    """The column with the pictures that the policy starts from, and that rewards see too: the path of a file, the bytes
    of one, or a list of these, as many in every row. A relative path starts in the source's folder. They are scaled to
    the policy's size, and cut where their sides have another ratio. The run folder keeps copies, which all processes
    must be able to read. null: the policy reads no pictures."""
    per_iteration: Annotated[int, Field(gt=0, le=100_000)] = 8
    """Prompts, and so trees, per iteration. Their order is shuffled anew in each pass through the prompts. More give a
    steadier gradient and a longer iteration."""
    focus: Fraction = 0.0
    """Share of an iteration's prompts that are drawn by what they still teach: in proportion to the spread (standard
    deviation) of the training reward within their trees when last seen. The rest comes in the shuffled order and finds
    out what other prompts teach. A larger share wastes fewer trees on prompts that are always right or always wrong,
    and repeats the others more often. 0: all come in the shuffled order."""
    focus_decay: Fraction = 0.9
    """Decay of a prompt's spread with every iteration since it was last seen. A larger one draws from more prompts, by
    older figures."""

    @property
    def focused(self) -> int:
        """Number of prompts of an iteration that are drawn by what they teach; at least one comes in order."""
        return min(round(self.focus * self.per_iteration), self.per_iteration - 1)


class ScheduleSettings(Settings):
    """The shape of a tree: a method (docs/method.md) and changes to its defaults.

    null stands for the method's default. A setting that the method doesn't have is an error.
    """

    method: Method = "branch_grpo"
    """The method whose schedule is used."""
    steps: Steps | None = None
    """Number of denoising steps. The last one is always deterministic. More give better pictures and cost more."""
    group: Annotated[int, Field(ge=2, le=MAX_COUNT)] | None = None
    """Samples per prompt, for methods that sample each by itself."""
    shared_start: bool | None = None
    """Start all samples of a prompt from the same noise (`dance_grpo`)."""
    roots: PositiveInt | None = None
    """Independent trees per prompt. `advantage.normaliser: group` compares them with each other."""
    splits: dict[int, int] | SplitName | None = None
    """Step -> number of children, or the name of a choice. `{0: 2, 3: 2, 6: 2, 9: 2}` (`dense`) gives 16 leaves per
    root. Early splits share less and cost more forward passes."""
    children: Annotated[int, Field(ge=2, le=MAX_COUNT)] | None = None
    """Children per split (`tempflow_grpo`, `tree_grpo`)."""
    split_step: AnyStep | None = None
    """The step that splits (`tempflow_grpo`). null: another one in every iteration, moving on by one."""
    sibling_spread: Annotated[float, Field(ge=0, allow_inf_nan=True)] | None = None
    """Spread s of siblings: their noises have correlation 1/(1+s^2). `.inf` makes them independent."""
    window: Steps | None = None
    """Length of the window of stochastic steps."""
    window_start: AnyStep | None = None
    """First step of the window in the first iteration."""
    window_stride: AnyStep | None = None
    """Steps by which the window moves; 0 keeps it in place."""
    window_every: PositiveInt | None = None
    """Iterations between moves of the window."""
    window_end: Literal["stay", "restart"] | None = None
    """What the window does at the last steps: stay there, or restart at the first."""
    kernel: Literal["dance", "flow", "cps", "ddim"] | None = None
    """Kernel of the stochastic steps: that of DanceGRPO, of Flow-GRPO, of coefficient-preserving sampling, or of
    DDIM."""
    eta: PositiveFloat | None = None
    """Noise level of the stochastic steps. More noise explores more; with few steps it makes samples worse."""
    sde_steps: list[int] | None = None
    """Steps beside the splits that are stochastic and trained (`branch_grpo`). null: all but the last."""
    ode_stride: Steps | None = None
    """Number of deterministic steps that a multistep solver (DPM-Solver++ 2M) takes as one. 1: each by itself. More
    are faster and less accurate."""

    root_noise: RootNoise | None = None
    """How the starts of a prompt's trees, or of its samples, are drawn: each by itself (`independent`, the default), or
    in pairs x and -x (`antithetic`), which differ more; each is standard normal all the same. Pairs need two roots."""

    max_nodes: PositiveInt = 100_000
    """Maximum nodes per tree. A recipe with more is refused before anything is built: a slip in `splits` would fill all
    memory."""

    def build(self, iteration: int = 1, seed: int = 0) -> Schedule:
        """The schedule of an iteration, counted from 1. Some methods draw steps at random, from the run's seed. Raises
        ValueError for settings that the method doesn't have or that make no tree."""
        return self._built(iteration=iteration, seed=seed)

    def _built(self, **now: int) -> Schedule:
        """The schedule with those of the method's other parameters that it has."""
        method = METHODS[self.method]
        accepted = inspect.signature(method).parameters
        given = {name: value for name, value in self if value is not None and name not in OF_ANY_METHOD}
        if unknown := [name for name in given if name not in accepted]:
            own = [name for name in accepted if name in type(self).model_fields]
            raise ValueError(f"{unknown[0]} isn't a setting of the method '{self.method}', which has {', '.join(own)}")
        if self.steps is not None and self.steps >= self.max_nodes:
            raise ValueError(f"steps is {self.steps}, more than a tree may have nodes (schedule.max_nodes)")
        now = {name: value for name, value in now.items() if name in accepted}
        return replace(method(**given, **now), root_noise=self.root_noise or "independent")

    @property
    def varies(self) -> bool:
        """Whether the schedule may differ from iteration to iteration."""
        return "iteration" in inspect.signature(METHODS[self.method]).parameters

    @model_validator(mode="before")
    @classmethod
    def _adapt_is_gone(cls, given: Any) -> Any:
        """Accept `adapt: null`, as in recipes that earlier versions wrote."""
        if isinstance(given, dict) and "adapt" in given and given["adapt"] is None:
            return {name: value for name, value in given.items() if name != "adapt"}
        return given

    @field_validator("splits", mode="before")
    @classmethod
    def _steps_may_be_quoted(cls, splits: Any) -> Any:
        """Accept quoted steps, as in JSON and in recipes that earlier versions wrote."""
        if not isinstance(splits, dict):
            return splits
        steps = [int(step) if isinstance(step, str) and step.isdecimal() else step for step in splits]
        if len(set(steps)) < len(steps):
            raise ValueError("a step is given twice")
        return dict(zip(steps, splits.values(), strict=True))

    @model_validator(mode="after")
    def _buildable(self) -> "ScheduleSettings":
        self.build()
        self._built(start=0).check_size(self.max_nodes)  # where steps are drawn, the first makes the largest tree
        return self


class RolloutSettings(Settings):
    """How trees are computed. Batch sizes may change the last bits of a result, but never its noise. `auto`: the run
    chooses the number when it starts, by memory and seconds (docs/plan.md), and writes it into its recipe."""

    trees_per_task: Size = 8
    """Trees that a worker expands together, in one batch per depth. More fill a GPU better; fewer leave less idle time
    at the end of an iteration. `auto`: the number with the shortest iteration."""
    max_batch_rows: Size = 128
    """Maximum rows per forward pass. More rows need more memory; a depth with more rows is cut into chunks, which are
    finished one after the other. `auto`: the largest number that fits, or the fastest that was measured."""
    decode_batch: Size = 16
    """Maximum pictures that are decoded at once. More need more memory. `auto`: as many as fit."""
    max_parts_in_scoring: Rows = 16
    """Maximum parts of trees that wait for scores at once. At this limit the workers pause. A larger one keeps slow
    reward models busy and needs more of the object store."""
    max_unscored_fraction: Fraction = 0.0
    """Maximum fraction of trees that may be skipped in an iteration because a reward failed. If more fail, the run
    stops. 0: it stops at the first, as it always does with execution `in_process`."""
    max_trees_in_flight: Rows | None = None
    """Maximum trees that are sampled ahead of the learner. null: one iteration, or two with `staleness: 1`. Fewer need
    less of the object store, but may leave workers idle. The minimum is one window plus one task, and with placement
    `colocated` an iteration."""
    embeddings: HomePath | None = None
    """Folder that keeps embeddings of prompts from run to run, for any models. null: only the newest are kept, in
    memory."""
    latents_precision: Precision = "float32"
    """Number format in which states are stored. Log-probabilities are those of the rounded states. `bfloat16` halves
    the memory."""

    def trees_to_leave_out(self, trees: int) -> int:
        """The number of trees out of `trees` that `max_unscored_fraction` allows to skip."""
        return math.floor(round(self.max_unscored_fraction * trees, 6))  # 0.29 of 100 is 29, though 0.29 * 100 is less


class JudgeSettings(Settings):
    """A vision-language model that is asked about each picture, behind an OpenAI-compatible endpoint (vLLM, SGLang,
    llama.cpp). It needs the extra `judge`."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    """Base URL of the endpoint, such as `http://judge.example:8000/v1`."""
    model: str
    """Name under which the endpoint serves the model."""
    questions: Annotated[list[str], Field(min_length=1)]
    """What is asked about each picture. `{prompt}` stands for the prompt, `{name}` for a field of its row, `{{` for a
    brace. A field that is a list gives one question for each element."""
    answer: Literal["yes_no", "rubric", "text"] = "yes_no"
    """How a question is graded. `yes_no`: by P(yes) / (P(yes) + P(no)) of the answer's first token, so ask for yes or
    no. `rubric`: by an integer of `scale` that the model writes as JSON, so say in the question what grades mean.
    `text`: by numbers of `scale` that it writes behind `labels`, for models that were trained to answer so."""
    scale: Annotated[tuple[int, int], Field(strict=False)] = (1, 10)
    """Worst and best grade of a `rubric` or `text`. The score runs from 0 to 1 between them."""
    labels: list[str] = []
    """What stands before each grade of a `text`, such as `Style Score (1-5):`. All must be there; the last of each
    counts."""
    reasons: bool = False
    """Have the model write its reasons before the grade of a `rubric`. It takes many times longer."""
    max_tokens: Tokens = 1024
    """Maximum tokens of the answer to a `rubric` or `text`."""
    combine: Literal["mean", "min"] = "mean"
    """The score of several questions and labels: the mean of their grades, or the worst one."""
    frames: PositiveInt = 8
    """Maximum frames of a clip that are shown, at equal distances. More show more of the motion and take longer."""
    sources: bool = False
    """Show the pictures that the policy started from (`prompts.picture_column`), in the result's size, before it, so
    that questions can compare them: "Is the dog of the first picture red in the last?"."""
    opponents: PositiveInt | None = None
    """Compare each leaf of a tree with others: it is shown before so many that follow it, and behind as many that
    precede it, so that the order of the two doesn't count. Questions then ask whether the first is better, and the
    score is the mean grade in a leaf's favour, 0.5 on average. null: each is shown alone."""
    concurrency: PositiveInt = 16
    """Maximum questions of a replica that wait for answers at once. More keep a large server busy."""
    cached_answers: PositiveInt = 100_000
    """Maximum answers that are kept, so that nobody asks again about the same picture."""
    api_key_env: str | None = None
    """Name of the environment's variable with the API key. null: no key. The key itself has no place in a recipe."""
    extra: dict[str, Any] = {}
    """More fields of each request, as the server has them, such as `{chat_template_kwargs: {enable_thinking: false}}`
    for models that would think before they answer."""

    @field_validator("questions")
    @classmethod
    def _questions_can_be_filled(cls, templates: list[str]) -> list[str]:
        for template in templates:
            check_template(template)
        return templates

    @field_validator("scale")
    @classmethod
    def _best_is_above_worst(cls, scale: tuple[int, int]) -> tuple[int, int]:
        if scale[0] >= scale[1]:
            raise ValueError(f"scale is {list(scale)}; the worst grade comes first, and the best must be above it")
        return scale

    @model_validator(mode="after")
    def _text_has_labels(self) -> Self:
        if (self.answer == "text") != bool(self.labels) or not all(self.labels):
            raise ValueError(f"labels is {self.labels}; `answer: text` takes one or more, and other answers take none")
        return self


class RewardSettings(Settings):
    """One reward: where its scores come from, and how much it counts."""

    weight: float = 1.0
    """Factor in the sum of rewards that is trained on. A reward of weight 0 is only watched: it shows when training
    games the others."""
    pretrained: HomeText | None = None
    """File or folder of the weights, for built-in rewards that are models (docs/rewards.md)."""
    tokenizer: HomeText | None = None
    """Folder of the model's tokenizer. null: the folder of the weights."""
    backbone: HomeText | None = None
    """Folder of the model that a reward is built on: CLIP of `aesthetic`, Qwen-VL of `hps_v3`, `edit_reward` and
    `video_align`."""
    instruction: HomeText | None = None
    """Folder of the published code of `video_align`, and its folder `dataset` of `hps_v3` and `edit_reward`, with the
    questions that the model is asked. They are read, and no code is run."""
    device: Device = "auto"
    """Where the model runs: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`."""
    scorer: str | None = None
    """`module:callable` that loads your scorer. null: the built-in reward of this name."""
    function: str | None = None
    """Your scoring function, as `module:function`. It is called with media (uint8 [n, height, width, 3], clips [n,
    frames, height, width, 3]) and n prompts, and returns n numbers."""
    url: str | None = None
    """URL of a service that gives this reward over HTTP, such as another machine's `branchgrpo serve-rewards`."""
    judge: JudgeSettings | None = None
    """A vision-language model that is asked about the pictures. null: none."""
    reads: Reads = "media"
    """What it scores. `media`: pictures, clips and sounds. `latents`: what the policy would decode (float32 [n,
    *latent_shape]), for your own code and services. Where no reward reads media, training decodes only what is kept as
    samples."""
    timeout_seconds: PositiveSeconds = 50
    """Maximum seconds for one answer of the service at `url` or of the judge; then the request is sent again."""

    @property
    def compares(self) -> bool:
        """Whether it compares the leaves of a tree: its mean is the same for every tree, and it scores no single
        picture."""
        return self.judge is not None and self.judge.opponents is not None

    @model_validator(mode="after")
    def _from_one_place(self) -> "RewardSettings":
        if len(given := [name for name in PLACES_OF_REWARDS if getattr(self, name) is not None]) > 1:
            raise ValueError(f"a reward comes from one of {' and '.join(given)}; give one of them")
        return self


class AdvantageSettings(Settings):
    """From leaf rewards to one advantage per edge."""

    fusion: Literal["uniform", "path_softmax", "edge_softmax"] = "uniform"
    """How leaf rewards are averaged up the tree. `uniform`: their mean. The others weight them by softmax(beta *
    log-probability): `path_softmax` of the whole path to each leaf, `edge_softmax` of the edges to a node's children,
    level by level."""
    fusion_beta: float = 1.0
    """beta of the softmax; 0 gives the mean. Log-probabilities are averaged over latent dimensions and summed over
    steps."""
    combine: Literal["rewards", "advantages"] = "rewards"
    """How several rewards are combined. `rewards`: add them up, then normalise; the reward whose scores spread further
    dominates. `advantages`: normalise each, then add up their advantages (GDPO), so that their weights alone count.
    With several rewards on different scales, this is what you want."""
    normaliser: Literal["depth", "leaf", "group"] = "depth"
    """The nodes whose mean and standard deviation normalise an advantage. `depth`: those of the same depth and root.
    `leaf`: the mean as with `depth`, the deviation over that root's leaves. `group`: those of the same depth under all
    roots of the prompt."""
    edge_weight: Literal["edge", "depth"] = "edge"
    """`edge`: every trained edge counts the same. `depth`: every trained depth counts the same."""
    noise_weight: bool = False
    """Also weight the edges of a step by its noise, relative to the mean over all steps (TempFlow-GRPO)."""
    clip: PositiveFloat = 5.0
    """Maximum absolute advantage; larger ones are clipped."""


class PrunedIterations(Settings):
    """The iterations with pruning."""

    first_iteration: PositiveInt = 1
    """The first iteration with pruning."""
    last_iteration: PositiveInt | None = None
    """The last iteration with pruning. null: the run's last."""

    _ordered = model_validator(mode="after")(_ascending("first_iteration", "last_iteration"))

    def applies(self, iteration: int) -> bool:
        """Whether an iteration, counted from 1, is pruned."""
        return self.first_iteration <= iteration <= (self.last_iteration or iteration)


class WidthPruningSettings(PrunedIterations):
    """Pruning of chains of edges below the last split."""

    mode: Literal["parent_top1", "extreme"]
    """Which chains stay. `parent_top1`: that of each last split's best child. `extreme`: those of the `keep` best and
    the `keep` worst leaves."""
    keep: PositiveInt = 4
    """Number of best leaves, and of worst leaves, that `extreme` keeps."""
    keep_last_split: bool = True
    """Keep the last split's edges to all its children, as the authors' release does: the first edge of a losing child
    is trained on, and only the chain below it is pruned. `false` prunes that edge too."""


class DepthPruningSettings(PrunedIterations):
    """Pruning of the edges in a window of depths. The edge of step i leads to depth i + 1.

    Depths count the steps of the grid, also with `schedule.ode_stride`.
    """

    mode: Literal["fixed", "sliding"]
    """Whether the window moves."""
    window: Steps = 4
    """Number of depths in the window. More are faster and train fewer steps."""
    start: Steps | None = None
    """First depth of the window at its deepest place. null: the window ends at the last trained depth."""
    direction: Literal["shallower", "deeper"] = "shallower"
    """Which way a sliding window moves. `shallower`: from `start` to `stop`. `deeper`: from `stop` to `start`."""
    every: PositiveInt = 30
    """Iterations between moves by one depth."""
    stop: Steps = 9
    """First depth of the window at its shallowest place."""

    def deepest(self, schedule: Schedule) -> int:
        """First depth of the window at its deepest place."""
        last = int(schedule.levels[schedule.trained_depths[-1]])
        return last + 1 - self.window if self.start is None else self.start

    def first(self, schedule: Schedule, iteration: int) -> int:
        """First depth of the window in an iteration; the child of step i of the grid lies at depth i + 1."""
        deepest = self.deepest(schedule)
        if self.mode == "fixed":
            return deepest
        shallowest = min(self.stop, deepest)
        moves = (iteration - self.first_iteration) // self.every
        if self.direction == "shallower":
            return max(deepest - moves, shallowest)
        return min(shallowest + moves, deepest)


class PruningSettings(Settings):
    """Edges that are left out of the backward pass once advantages are known. Sampling and scoring don't change."""

    width: WidthPruningSettings | None = None
    """Prune by the rewards of leaves. null: don't."""
    depth: DepthPruningSettings | None = None
    """Prune by depth. null: don't."""


class LoraSettings(Settings):
    """Low-rank adapters, trained in place of all weights."""

    rank: Annotated[int, Field(gt=0, le=10_000)] = 32
    """Rank of the adapters. A higher one can learn more and needs more memory."""
    alpha: PositiveFloat = 64
    """The adapters' output is scaled by alpha / rank."""
    target_modules: list[str] | None = None
    """Names, or ends of names, of the linear layers that get an adapter. null: the usual ones of the model's family,
    mostly those of attention."""


class OffloadSettings(Settings):
    """Tensors that are kept in the CPU's memory while they aren't in use. It saves GPU memory and takes time."""

    optimizer: bool = False
    """Offload the optimizer: its states and its step. Needs `zero_stage` 1 or more."""
    parameters: bool = False
    """Offload the network's weights. Needs `zero_stage` 3."""


class OptimizerSettings(Settings):
    """AdamW and its learning rate."""

    learning_rate: PositiveFloat = 1e-5
    """Peak learning rate."""
    betas: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: NonNegativeFloat = 1e-4
    """AdamW's weight decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up. `linear` and `cosine` fall to the run's last update, so a change
    of `iterations` stretches them."""
    warmup_updates: NonNegativeInt = 0
    """Number of updates over which the learning rate rises from 0."""
    gradient_clipping: NonNegativeFloat = 1.0
    """Maximum gradient norm; larger gradients are scaled down. 0: no limit."""


class NftSettings(Settings):
    """How leaves alone are learned from, with `learner.objective` nft (DiffusionNFT, arXiv 2509.16117) or awm
    (advantage-weighted matching, arXiv 2509.25050)."""

    noise_levels: Annotated[int, Field(gt=0, le=1000)] = 2
    """Noise levels at which each leaf is learned from in an iteration: so many rows per leaf."""
    strength: PositiveFloat = 1.0
    """beta of DiffusionNFT: how far the policies that are pulled to good leaves and away from bad ones lie from the
    policy that sampled. A smaller one takes larger steps. `awm` has none."""
    old_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay, per iteration, of the running average of the weights that rollouts sample with. 0: they sample with the
    newest weights."""


class LearnerSettings(Settings):
    """From scored trees to new weights."""

    objective: Literal["ratio", "nft", "awm"] = "ratio"
    """What is learned from. `ratio`: from edges, by the clipped ratio of their probabilities (GRPO). `nft`: from leaves
    alone, noised anew (DiffusionNFT): it needs no noisy step and no probability. `awm`: from the same leaves, by the
    clipped ratio of how well the policy matches them (AWM)."""
    nft: NftSettings = NftSettings()

    passes: Annotated[int, Field(gt=0, le=1000)] = 1
    """Optimizer steps over the trees of each update, each with the gradient at the weights of the one before. More
    learn more from the same samples, as far as `clip_range` lets them. They take as many times longer, and keep the
    update's trees in the learner's memory. `nft` and `awm` noise their leaves anew in each."""
    trust: PositiveFloat | None = None
    """Mean |log ratio| over the edges of a pass beyond which an update ends: the passes that are left are dropped. A
    smaller one keeps the policy closer to the one that sampled. null: all passes are made."""
    updates_per_iteration: PositiveInt = 1
    """Updates per iteration, each with one optimizer step, or with `passes` of them. The iteration's trees are divided
    among them in order. More updates learn faster, the later ones from trees that older weights have sampled."""
    rows_per_micro_batch: Size = 64
    """Maximum rows (parent states) per forward and backward pass. More need more memory. `auto`: the largest number
    that fits, or the fastest that was measured; chosen when the run starts (docs/plan.md)."""
    window_trees: Size = 8
    """Number of consecutive trees from which micro-batches are composed. More fill them better; the learner starts
    later. `auto`: the number with the shortest iteration, chosen likewise."""
    trust_region: Literal["clip", "guard", "divergence"] = "clip"
    """What keeps an update near the policy that sampled. `clip`: the ratio is clipped at `clip_range`, as in PPO.
    `guard`: the same with a normalised ratio, which is centred at 1 and spreads alike in every step, and with each
    step's gradient over the step's length (GRPO-Guard, arXiv 2510.22319). Its clip ranges are about 2e-6.
    `divergence`: without clipping; an edge beyond `divergence_limit` gives no gradient that leads further away
    (Flow-DPPO, arXiv 2606.11025)."""
    divergence_limit: PositiveFloat = 1e-5
    """With `trust_region: divergence`, the maximum KL divergence of an edge's step from the one that was sampled,
    averaged over latent dimensions."""
    clip_range: PositiveFloat = 1e-4
    """c of the clipped objective: an edge moves the ratio no further than 1 - c or 1 + c. Log-probabilities are
    averaged over latent dimensions, so good values are far below PPO's usual 0.2."""
    kl_weight: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the policy before training, averaged over latent dimensions. Above 0 it takes
    another forward pass per row and, without `lora`, a second copy of the network (sharded over ranks at ZeRO 3)."""
    kl_scale: KlScale = "exact"
    """What `kl_weight` weighs. `exact`: the KL divergence. `flow_grpo`: that times the fall of the noise level in the
    edge's step, as Flow-GRPO has it, for weights from its recipes: over 10 steps at shift 3 it is 28 (first step) to
    5.6 (last trained step) times smaller. It needs the kernel `flow` or `dance`."""
    keep_graph: bool = False
    """Keep the graphs of the rollout's forward passes, so that the learner makes only the backward passes. It is
    faster, and needs memory for the activations of all of an iteration's trained rows. It needs one process that
    samples and learns (execution `in_process`, or placement `colocated` with one rank), one update per iteration and no
    pruning."""
    skip_zero_advantage: bool = True
    """Skip edges whose advantage is exactly zero. The gradient is the same. An update with no other edges makes no
    step. With `kl_weight` no edge is skipped."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed's ZeRO stage. A higher one needs less memory per rank and more communication. bfloat16 needs 1 or more,
    where gradients are accumulated in float32."""
    offload: OffloadSettings = OffloadSettings()
    lora: LoraSettings | None = None
    """Train adapters (LoRA). null: train all weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. It needs less memory and more time."""
    ema_decay: Fraction | None = None
    """Decay of a running average of the weights per update, for `evaluate --ema` and `export --ema`. null: no
    average."""
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def learns_from_leaves(self) -> bool:
        """Whether leaves alone are learned from, in the place of edges."""
        return self.objective != "ratio"

    @property
    def old_policy_share(self) -> float:
        """Share of the rows that the learner also gives to the policy that rollouts sample with, which it keeps beside
        the one that it trains. Where leaves alone are learned from these are all, if that policy is an average, or else
        all but those of an iteration's first step, for which the two are the same."""
        if not self.learns_from_leaves:
            return 0.0
        return 1.0 if self.nft.old_decay else 1 - 1 / (self.updates_per_iteration * self.passes)

    @property
    def has_old_policy(self) -> bool:
        """Whether the learner keeps the policy that rollouts sample with, beside the one that it trains."""
        return self.old_policy_share > 0


class FallSettings(Settings):
    """Falls of the held-out reward. After one, the run continues from the weights that were evaluated best."""

    lost: Annotated[float, Field(gt=0)] = 0.3
    """Share of what the reward has gained since the first evaluation that it must have lost. It must also be lower than
    the best by three standard errors of the difference, picture by picture."""
    pace: Annotated[float, Field(gt=0, le=1)] = 0.5
    """What the learning rate is multiplied by after every fall."""


class EvaluationSettings(Settings):
    """Evaluation on the held-out prompts: deterministic sampling from fixed noise."""

    every: NonNegativeInt = 0
    """Iterations between evaluations. 0: only before the first and after the last iteration."""
    seed: Seed = 0
    """Seed of the starting noise."""
    prompts: PositiveInt | None = None
    """Number of held-out prompts to use, from the top of the file. null: all."""
    steps: Steps | None = None
    """Denoising steps in evaluations. null: `schedule.steps`."""
    guidance_scale: float | None = None
    """Guidance in evaluations. null: `policy.guidance_scale`."""
    rewards: list[str] = []
    """Names of rewards, of weight 0, that are scored in evaluations only. Iterations don't wait for them."""
    samples: Annotated[int, Field(gt=0, le=10_000)] = 1
    """Pictures per prompt. With more than one, their diversity is reported too."""
    undo_falls: FallSettings | None = None
    """Notice falls of the reward that `checkpoint.keep_best` goes by, and return to the weights before them. null:
    train on."""


class KeepBestSettings(Settings):
    """The checkpoints with the best evaluations, which are kept."""

    reward: str | None = None
    """The reward whose mean over the held-out prompts decides. null: the weighted sum of all."""
    count: PositiveInt = 1
    """Number of best checkpoints to keep."""


class CheckpointSettings(Settings):
    """Checkpoints: how often they are made, and which are kept."""

    every: PositiveInt = 1
    """Iterations between checkpoints, and so the maximum that a fault can cost. One is also made at the end, and when
    the run is stopped. A larger number saves the time of writing them."""
    keep: PositiveInt = 2
    """Number of newest checkpoints to keep. With 2, the run survives damage to the newest."""
    keep_every: PositiveInt | None = None
    """Iterations between checkpoints that are never removed. null: only the newest are kept."""
    keep_best: KeepBestSettings | None = None
    """Keep the checkpoints with the best evaluations (`evaluate --best`, `export --best`). A checkpoint is then made
    with every evaluation, so `evaluation.every` must not be 0. null: don't."""
    disk_timeout_seconds: Seconds = 3600
    """Maximum seconds that the run waits for room when the disk of its folder is full; then it stops."""


class LoggingSettings(Settings):
    """Logs. `metrics.jsonl` is always written; these come on top."""

    metrics_host: str | None = None
    """Address on which the metrics exporters and the controller's HTTP server listen, such as `127.0.0.1` or `0.0.0.0`.
    null: the address of each node."""
    metrics_port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    """Port of the controller's HTTP server (`/sd` for Prometheus' service discovery, `/status`). null: any free
    port."""
    trace: bool = True
    """Write spans of what every process did into the run folder, for `branchgrpo trace`. A process keeps at most its
    newest 32 MB."""
    tensorboard: bool = True
    """Write TensorBoard event files: figures, grids of samples, held-out pictures, recorded trees."""
    wandb_project: Annotated[str, Field(pattern=r"^[^/\\#?%:]{1,128}$")] | None = None
    """Weights & Biases project to log the same to. It needs the package `wandb`, and a login or `WANDB_MODE=offline`.
    null: don't."""
    samples_every: NonNegativeInt = 5
    """Iterations between those whose samples are kept in `samples/`: the leaves of the first four trees, small and with
    their scores, and a grid of them in full size. 0: none."""
    samples_megabytes: Annotated[float, Field(gt=0)] = 2000
    """Maximum size of `samples/` in megabytes. Those of the oldest iterations are removed, never the newest."""
    trees_every: NonNegativeInt = 10
    """Iterations between recordings of trees in `trees/`: of every node its value, advantage, weight and ratio, and
    pictures; of leaves with sound, what plays. The first iteration is recorded too. 0: none."""
    trees: PositiveInt = 4
    """Number of trees in a recording: the first of the iteration. More show more prompts, and take more room."""
    tree_previews: bool = True
    """Whether recorded trees have a picture of every split: the clean state predicted there. Each costs a decode."""
    trees_megabytes: Annotated[float, Field(gt=0)] = 200
    """Maximum size of `trees/` in megabytes. The oldest recordings are removed, never the newest."""

    def shown_trees(self, iteration: int) -> int:
        """Number of an iteration's first trees whose leaves are kept as samples."""
        return SHOWN_TREES if self.samples_every and iteration % self.samples_every == 0 else 0

    def recorded_trees(self, iteration: int) -> int:
        """Number of an iteration's first trees that are recorded."""
        due = self.trees_every and (iteration == 1 or iteration % self.trees_every == 0)
        return self.trees if due else 0


class PoolSettings(Settings):
    """The processes of one kind: where they run, and what each of them reserves."""

    cpus: Amount = 1
    """CPUs that Ray reserves for each process; fractions share one."""
    gpus: Amount = 0
    """GPUs that Ray reserves for each process; fractions share one. With 0, a process sees no GPU and runs on the
    CPU."""
    threads: Threads | None = None
    """CPU threads of each process. null: `threads` of the run if that is set, otherwise `cpus`, rounded up."""
    resources: dict[str, Annotated[Amount, Field(gt=0)]] = {}
    """Custom Ray resources that each process reserves. They tie the pool to nodes that have them."""
    labels: dict[str, str] = {}
    """Ray node labels that the pool's nodes must have."""

    def demand(self) -> dict[str, float]:
        """What Ray reserves for one process: resource -> amount."""
        return {name: n for name, n in {"CPU": self.cpus or 0, "GPU": self.gpus, **self.resources}.items() if n}


class WorkerPoolSettings(PoolSettings):
    """A pool of a fixed number of processes."""

    count: Processes = 1
    """Number of processes."""


class RolloutPoolSettings(PoolSettings):
    """The rollout workers."""

    count: Processes = 1
    """Number of processes; with `max_count`, the minimum."""
    max_count: Processes | None = None
    """Maximum number of processes. After every iteration the run chooses the fewest, between `count` and this, with
    which an iteration takes hardly longer. null: the number stays."""

    _ordered = model_validator(mode="after")(_ascending("count", "max_count"))


class EnvironmentSettings(Settings):
    """A Python environment of a reward's own. Ray builds it on each node with a replica, over the packages of the
    run."""

    pip: list[HomeText] = []
    """Packages that pip installs, such as `transformers==4.49.0`, local folders and wheels."""
    uv: list[HomeText] = []
    """Packages that uv installs, in place of `pip`."""
    conda: str | None = None
    """Name of a conda environment that the nodes have, in place of `pip`. It must have this package, and the cluster's
    versions of Python and Ray."""
    env_vars: dict[str, str] = {}
    """Variables of the environment."""

    @property
    def packages(self) -> list[str]:
        """The settings that bring packages."""
        return [name for name in ("pip", "uv", "conda") if getattr(self, name)]

    @model_validator(mode="after")
    def _one_installer(self) -> Self:
        if len(self.packages) > 1:
            raise ValueError(f"{' and '.join(self.packages)} exclude each other; give one")
        return self


class RewardPoolSettings(PoolSettings):
    """The replicas of one reward model."""

    cpus: Amount | None = None  # type: ignore[assignment]  # never null in the pools that are launched
    """CPUs that Ray reserves for each process; fractions share one. null: 1, or 0.1 for a reward with `function`,
    `url` or `judge`."""
    replicas: Processes = 1
    """Number of replicas; with `max_replicas`, the minimum."""
    max_replicas: Processes | None = None
    """Maximum number of replicas. Ray Serve scales between `replicas` and this by the length of the queue. null: the
    number stays."""
    batch_pictures: Rows = 64
    """Maximum pictures per call of the model, of clips their frames. Requests of several trees and workers form one
    batch. More need more memory."""
    batch_wait_seconds: Seconds = 0.01
    """Seconds that a free model waits for its batch to be filled. A busy one takes all that has come meanwhile."""
    timeout_seconds: PositiveSeconds = 300
    """Maximum seconds for one request; then it is sent again."""
    deterministic: bool = False
    """Score each request by itself. Results then don't depend on the order of arrival, also for models whose scores
    depend on the batch. It is slower."""
    runtime_env: EnvironmentSettings = EnvironmentSettings()
    """Packages and variables of the replicas alone, for a reward that needs other ones than the rest of the run."""

    _ordered = model_validator(mode="after")(_ascending("replicas", "max_replicas"))


class PoolsSettings(Settings):
    """The pools of a run on Ray."""

    rollout_workers: RolloutPoolSettings = RolloutPoolSettings()
    learner: WorkerPoolSettings = WorkerPoolSettings()
    rewards: dict[str, RewardPoolSettings] = {}
    """Reward model -> its replicas. A model that gives several rewards has the name of the first in the recipe."""
    placement_timeout_seconds: Seconds = 0
    """Maximum seconds to wait at the start for nodes with room for the pools, such as Ray's autoscaler brings. 0: a run
    that doesn't fit now is refused."""
    heartbeat_timeout_seconds: Annotated[float, Field(ge=20, le=MAX_SECONDS)] = 60
    """Seconds without a sign of life after which a process is killed and replaced. A short time finds hung processes
    sooner; slow calls may then be taken for hung ones."""

    def of_reward(self, model: str) -> RewardPoolSettings:
        """The pool of a reward model, whether or not the recipe says anything of it."""
        return self.rewards.get(model, RewardPoolSettings())


class RunSettings(Settings):
    """A whole run, as a recipe describes it."""

    name: str
    """Name of the run, and of its folder."""
    runs: HomePath = Path("runs")
    """Folder in which run folders are made. A relative path starts in the current folder."""
    resume: Literal["never", "auto"] = "never"
    """`auto`: continue the run of this name from its newest checkpoint if it exists, so that the same command restarts
    it after the cluster was lost. `never`: a run that exists is an error, unless the command has --resume."""
    seed: Seed = 0
    """Seed of all noise, and of the order of prompts."""
    iterations: PositiveInt = 300
    """Number of iterations (sample, score, learn, publish). It may be raised when the run is resumed."""
    threads: Threads | None = None
    """CPU threads of a process. null: torch's default, or the pool's on Ray. Another number may change the last bits of
    a result."""
    execution: Literal["ray", "in_process"] = "ray"
    """`ray`: pools of processes that overlap sampling, scoring and learning. `in_process`: one process, without Ray,
    one after the other."""
    placement: Literal["separate", "colocated"] = "separate"
    """`separate`: rollout workers and learner ranks are different processes on different GPUs; each pool is sized by
    itself. `colocated`: each learner rank samples too, in turns, with the same copy of the policy; `pools.learner` sets
    their number, and `pools.rollout_workers` is not used. With `learner.zero_stage` 3 the ranks share one copy and
    sample in step."""
    staleness: Annotated[int, Field(ge=0, le=1)] = 0
    """0: every tree is sampled with the newest weights. 1: the next iteration is sampled while the learner works, which
    is faster, with weights that are one iteration old."""
    pools: PoolsSettings = PoolsSettings()
    policy: PolicySettings
    prompts: PromptSettings
    schedule: ScheduleSettings = ScheduleSettings()
    rollout: RolloutSettings = RolloutSettings()
    rewards: Annotated[dict[str, RewardSettings], Field(min_length=1)]
    """Reward name (English letters, digits, `_` and `-`) -> its settings. Each reward is logged; the weighted sum is
    trained on."""
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
            raise ValueError(f"all of {', '.join(sorted(rewards))} have weight 0; at least one must be trained on")
        for name in rewards:
            if not re.fullmatch(REWARD_NAME, name) or name in NO_REWARD_NAMES:
                raise ValueError(
                    f"{name!r} can't name a reward; a name has up to 64 letters of English, digits, _ and -, begins "
                    f"with a letter, and is none of {', '.join(NO_REWARD_NAMES)}"
                )
        return rewards

    @model_validator(mode="after")
    def _fits_together(self) -> "RunSettings":
        for misfit in chain.from_iterable(rule(self) for rule in RULES):
            raise ValueError(misfit)
        return self

    @property
    def automatic(self) -> list[str]:
        """Settings that are still `auto`, by their dotted names."""
        given = [(f"rollout.{name}", own) for name, own in self.rollout]
        given += [(f"learner.{name}", own) for name, own in self.learner]
        return [name for name, own in given if isinstance(own, Auto)]

    @property
    def training_rewards(self) -> dict[str, RewardSettings]:
        """The rewards that are scored in every iteration, not in evaluations only."""
        return {name: reward for name, reward in self.rewards.items() if name not in self.evaluation.rewards}

    def threads_of(self, pool: PoolSettings) -> int:
        """CPU threads of each process of a pool."""
        return pool.threads or self.threads or max(1, math.ceil(pool.cpus or 0))

    def decoded_trees(self, iteration: int) -> int:
        """Number of an iteration's first trees whose leaves are decoded: all, if a reward reads media, otherwise those
        that somebody looks at."""
        if any(reward.reads == "media" for reward in self.training_rewards.values()):
            return self.prompts.per_iteration
        looked_at = max(self.logging.shown_trees(iteration), self.logging.recorded_trees(iteration))
        return min(looked_at, self.prompts.per_iteration)

    @property
    def trees_per_update(self) -> int:
        """Trees of one optimizer step."""
        return self.prompts.per_iteration // self.learner.updates_per_iteration

    @property
    def max_trees_ahead(self) -> int:
        """Trees that may be sampled ahead of the learner."""
        asked = self.rollout.max_trees_in_flight or self.prompts.per_iteration * (1 + self.staleness)
        # With less, the learner would wait for the rest of a window, and the rest of the window for the learner;
        # colocated ranks learn when all is sampled.
        whole, window = self.prompts.per_iteration, self.learner.window_trees + self.rollout.trees_per_task
        return max(asked, whole if self.placement == "colocated" else window)

    @property
    def samples_in_step(self) -> bool:
        """Whether learner ranks sample with one network between them (ZeRO 3), and so make every pass together."""
        together = self.execution == "ray" and self.placement == "colocated" and self.pools.learner.count > 1
        return together and self.learner.zero_stage == 3

    def checkpoint_due(self, iteration: int) -> bool:
        """Whether the settings ask for a checkpoint after this iteration, counted from 1."""
        own = self.checkpoint
        strides = (own.every, own.keep_every, self.evaluation.every if own.keep_best else None)
        return any(stride and iteration % stride == 0 for stride in strides)

    @property
    def trace_folder(self) -> Path | None:
        """The folder of the processes' spans; None without traces."""
        return self.runs / self.name / "trace" if self.logging.trace else None
