"""The reward models that there are, and the set of them that a run uses."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..proto.errors import InputError
from ..proto.media import Media
from ..proto.questions import questions
from ..proto.recipe import imported
from ..proto.scoring import NotScored, ScoreReply, ScoreRequest
from ..proto.settings import RewardPoolSettings, RewardSettings
from .interface import Loader, PartScorer, Scorer, Scores
from .own_code import OwnScorer, as_failure

SCORERS = {
    "aesthetic": f"{__package__}.clip:load_aesthetic",
    "clap": f"{__package__}.clap:load_clap",
    "clip_score": f"{__package__}.clip:load_clip_score",
    "edit_reward": f"{__package__}.scored_chat:load_edit_reward",
    "hps": f"{__package__}.clip:load_hps",
    "hps_v3": f"{__package__}.scored_chat:load_hps_v3",
    "image_reward": f"{__package__}.image_reward:load_image_reward",
    "jpeg_compressibility": f"{__package__}.jpeg:load_compressibility",
    "jpeg_incompressibility": f"{__package__}.jpeg:load_compressibility",
    "ocr": f"{__package__}.ocr:load_ocr",
    "ocr_exact": f"{__package__}.ocr:load_ocr",
    "pick_score": f"{__package__}.clip:load_pick_score",
    "shapes": f"{__package__}.shapes:load_shapes",
    "shapes_clean": f"{__package__}.shapes:load_shapes",
    "shapes_exact": f"{__package__}.shapes:load_shapes",
    "video_align": f"{__package__}.video_align:load_video_align",
    "video_align_motion": f"{__package__}.video_align:load_video_align",
    "video_align_text": f"{__package__}.video_align:load_video_align",
    "video_align_visual": f"{__package__}.video_align:load_video_align",
}
"""Reward -> `module:loader` of the model that gives it. A model that gives several rewards is loaded once."""

WITHOUT_FILES = tuple(f"{__package__}.{module}" for module in ("jpeg", "ocr", "shapes"))
"""Modules of rewards that are made of no files. The others have a function `check_files`."""
OF_BFLOAT16 = tuple(f"{__package__}.{module}" for module in ("scored_chat", "video_align"))
"""Modules of rewards whose models are in bfloat16 on a GPU. All others are in float32."""
OF_SOUNDS = ("clap",)
"""Rewards that score sounds."""
DEFAULT_POOL = RewardPoolSettings()


def reward_models(rewards: Mapping[str, RewardSettings]) -> dict[str, dict[str, RewardSettings]]:
    """The rewards that each model gives. A model goes by the first of its rewards.

    Raises InputError for a reward that doesn't exist.
    """
    models: dict[Any, dict[str, RewardSettings]] = {}
    for name, settings in rewards.items():
        models.setdefault(_model(name, settings), {})[name] = settings
    return {next(iter(given)): given for given in models.values()}


def precision_on_gpu(reward: str) -> str:
    """The precision in which the model of a reward works on a GPU, as `policy.precision` names it."""
    return "bfloat16" if SCORERS.get(reward, "").partition(":")[0] in OF_BFLOAT16 else "float32"


def reply(scores: Scores, request: ScoreRequest) -> ScoreReply:
    """The reply to a request that takes its rewards from `scores`. Raises NotScored if they aren't whole and finite."""
    asked = {name: scores[name] for name in request.rewards if name in scores}
    try:
        return ScoreReply(scores=asked, id=request.id).check(request.rewards, len(request.media))
    except ValueError as error:
        raise NotScored(str(error), final=True) from error


def scores_in_calls(scorer: Scorer, media: Media, prompts: Sequence[str], most: int) -> Scores:
    """Scores of leaves, in calls of the model with at most so many parts of them, if it takes parts."""
    if isinstance(scorer, PartScorer):
        return scorer.in_calls(media, prompts, most)
    return scorer(media, prompts)


def reply_in_calls(scorer: Scorer, request: ScoreRequest, most: int) -> ScoreReply:
    """The reply to a request about any number of leaves, in calls of the model with at most so many of what it takes:
    pictures, which the frames of clips are too, windows of sounds, or whole leaves.

    Raises NotScored if the scores of a call aren't whole and finite.
    """
    media, prompts, rewards = request.media, request.prompts, request.rewards
    parts = [
        ScoreRequest(media[i : i + most], prompts[i : i + most], rewards, request.id)
        for i in range(0, len(media), most)
    ]
    replies = [reply(scores_in_calls(scorer, part.media, part.prompts, most), part) for part in parts]
    return ScoreReply({name: np.concatenate([part.scores[name] for part in replies]) for name in rewards}, request.id)


class Scorers:
    """The reward models behind some rewards, in this process."""

    def __init__(
        self,
        rewards: Mapping[str, RewardSettings],
        threads: int | None = None,
        pools: Mapping[str, RewardPoolSettings] = MappingProxyType({}),
    ) -> None:
        """Loads the models. Of their `pools` only the maximum pictures per call are used.

        Raises InputError for a reward that doesn't exist.
        """
        self._models = [
            (set(given), load_scorer(name, given[name], threads), given[name].reads, pools.get(name, DEFAULT_POOL))
            for name, given in reward_models(rewards).items()
        ]

    def score(self, request: ScoreRequest) -> ScoreReply:
        """Every reward that `request` asks for.

        Raises NotScored for what a model of the user's own raises, and for scores that are not whole and finite,
        InputError if the request has nothing that one of the models reads.
        """
        scores: dict[str, npt.NDArray[np.float64]] = {}
        for given, model, reads, pool in self._models:
            if asked := [name for name in request.rewards if name in given]:  # others may have one's name
                part = ScoreRequest(request.media.read(reads), request.prompts, asked)
                scores |= reply_in_calls(model, part, pool.batch_pictures).scores
        return reply(scores, request)


def check_judge_package(name: str) -> None:
    """Raises InputError if what asks a judge isn't installed."""
    if find_spec("openai") is None or find_spec("cachetools") is None:
        raise InputError(f"rewards.{name}.judge needs packages that aren't installed: pip install 'branchgrpo[judge]'")


def check_source(name: str, settings: RewardSettings) -> None:
    """Raises InputError if what a reward is made of isn't there. Loads no weights."""
    if settings.url or settings.judge or settings.function or settings.scorer:
        for setting in ("function", "scorer"):
            if own := getattr(settings, setting):
                imported(own, f"rewards.{name}.{setting}")
        if settings.url or settings.judge:
            load_scorer(name, settings, None)
        return
    module = SCORERS[name].partition(":")[0]
    if module not in WITHOUT_FILES:
        import_module(module).check_files(name, settings)


def check_prompts(rewards: Mapping[str, RewardSettings], prompts: Iterable[str]) -> None:
    """Raises InputError for the first prompt that lacks a field which a judge's question names."""
    judges = {name: reward.judge for name, reward in rewards.items() if reward.judge}
    for prompt in prompts if judges else ():
        for name, judge in judges.items():
            questions(judge.questions, prompt, f"rewards.{name}.judge.questions")


def _model(name: str, settings: RewardSettings) -> Any:
    """A key that identifies the model behind a reward."""
    if settings.function or settings.url or settings.judge:
        return name
    if settings.scorer is None and name not in SCORERS:
        raise InputError(
            f"unknown reward '{name}' in rewards; there are {', '.join(sorted(SCORERS))} (name a scorer, a function, a "
            "url or a judge for your own)"
        )
    return settings.scorer or SCORERS[name], settings.model_copy(update={"weight": 0.0})


def load_scorer(name: str, settings: RewardSettings, threads: int | None) -> Scorer:
    """The model behind a reward, to use `threads` CPU threads (None: all)."""
    if settings.url:
        from .remote import RemoteReward

        return RemoteReward(name, settings.url, settings.timeout_seconds)
    if settings.judge:
        check_judge_package(name)
        from .judge import Judge

        judge = Judge(name, settings.judge, settings.timeout_seconds)
        judge.probe()
        return judge
    if settings.function:
        setting = f"rewards.{name}.function"
        return OwnScorer(name, f"{setting} '{settings.function}'", imported(settings.function, setting))
    if settings.scorer:
        setting = f"rewards.{name}.scorer"
        what, own = f"{setting} '{settings.scorer}'", imported(settings.scorer, setting)
        try:
            return OwnScorer(name, what, own(threads))
        except Exception as error:
            raise as_failure(what, error) from error
    load: Loader = imported(SCORERS[name], f"rewards.{name}")
    return load(settings, threads)
