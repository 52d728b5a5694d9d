"""Which scales of classifier-free guidance a model takes."""

from ...proto.errors import InputError
from ...proto.settings import PolicySettings


def check_second(settings: PolicySettings, *, guided: bool, known: bool) -> None:
    """Raises InputError for a second scale where none is `known`, or without guidance."""
    second = settings.guidance_scale_2
    if second is not None and not known:
        raise InputError(f"policy.guidance_scale_2 is {second}, and this model has one network")
    if second is not None and not guided:
        raise InputError(
            f"policy.guidance_scale_2 is {second}, which has no effect while policy.guidance_scale is "
            f"{settings.guidance_scale}; it must be more than 1"
        )


def check_factors(settings: PolicySettings, neutral: float, section: str = "policy") -> None:
    """Raises InputError for a scale below `neutral`, at which the prompt's own velocity is taken: it would draw less
    than the prompt, or the negative one alone. The error names the setting in its `section`."""
    for name in ("guidance_scale", "guidance_scale_2"):
        scale = getattr(settings, name)
        if scale is not None and scale < neutral:
            raise InputError(
                f"{section}.{name} is {scale}; in this model's classifier-free guidance it must be {neutral:g} or "
                "more: less draws the negative prompt"
            )
