"""Checks of a run before it starts, shared by `train`, `check` and `submit`."""

from importlib.util import find_spec

import pydantic

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ...reward_service.scorers import OF_SOUNDS, check_judge_package, reward_models
from ...rollout_workers.policies.load import find_family
from .own_modules import check_modules


def check_recipe(settings: RunSettings) -> None:
    """Raises InputError for what is wrong with a recipe on any machine: a reward that doesn't exist, or a pool without
    its reward model."""
    models = reward_models(settings.rewards)
    if unknown := sorted(set(settings.pools.rewards) - set(models)):
        raise InputError(
            f"pools.rewards names '{unknown[0]}'; the reward models of this run are {', '.join(models)} (what a base "
            "recipe says of others goes with pools.rewards={})"
        )


def check_here(settings: RunSettings) -> None:
    """Raises InputError for what a run that begins on this machine would lack, or has wrong in its recipe."""
    check_recipe(settings)
    check_modules(settings)
    check_media(settings)
    check_packages(settings)


def check_media(settings: RunSettings) -> None:
    """Raises InputError for a policy that isn't here, and for a built-in reward that doesn't score its leaves."""
    family = find_family(settings.policy)
    if family is None:
        return
    makes = "pictures or silent clips" if not family.heard else "clips with sound" if family.seen else "sounds"
    for name, reward in settings.rewards.items():
        own = reward.url or reward.function or reward.scorer
        if not own and not (family.heard if name in OF_SOUNDS else family.seen):
            do = "take it out" if family.seen else f"take {' or '.join(OF_SOUNDS)}, or code of your own"
            raise InputError(f"rewards.{name} can't score leaves that are {makes}; {do}")


def check_packages(settings: RunSettings) -> None:
    """Raises InputError for a package that the recipe asks for and that isn't installed, and for a missing login."""
    if settings.logging.wandb_project:
        _check_wandb()
    for name, reward in settings.rewards.items():
        if reward.judge:
            check_judge_package(name)


def _check_wandb() -> None:
    if find_spec("wandb") is None:
        raise InputError("logging.wandb_project is set and the package 'wandb' isn't installed: pip install wandb")
    import wandb  # only where a recipe asks for it

    try:
        lacks_login = wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False)
    except pydantic.ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(map(str, wrong["loc"]))
        raise InputError(
            f"logging.wandb_project is set and Weights & Biases refuses its setting '{name}' (WANDB_{name.upper()} in "
            f"the environment): {wrong['msg']}, not {wrong['input']!r}"
        ) from error
    except wandb.Error as error:
        raise InputError(
            f"logging.wandb_project is set and Weights & Biases refuses the login or the environment ({error}): "
            "correct that, run `wandb login`, or set WANDB_MODE=offline"
        ) from error
    if lacks_login:
        raise InputError(
            "logging.wandb_project is set and nobody is logged in to Weights & Biases: run `wandb login`, or set "
            "WANDB_MODE=offline"
        )
