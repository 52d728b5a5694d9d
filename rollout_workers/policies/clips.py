"""The common part of families whose leaves are clips."""

from ...proto.errors import InputError
from .pipeline import PipelinePolicy


class ClipPolicy(PipelinePolicy):
    """A pipeline of clips whose first frame has a latent of its own. A family adds `frame_scale`."""

    result = "frames"

    @property
    def frame_scale(self) -> int:
        """Frames of a latent, after the first."""
        raise NotImplementedError

    @property
    def latent_frames(self) -> int:
        """Latents of a clip one after the other."""
        return (self.settings.frames - 1) // self.frame_scale + 1

    def check_frames(self) -> None:
        """Raises InputError unless the frames after the first fill whole latents."""
        if (self.settings.frames - 1) % self.frame_scale:
            raise InputError(
                f"policy.frames is {self.settings.frames}; this model makes one frame more than a multiple of "
                f"{self.frame_scale}"
            )
