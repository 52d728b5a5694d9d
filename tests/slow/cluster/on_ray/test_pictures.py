"""Prompts with pictures on Ray."""

from pathlib import Path

from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.train import train
from families import saved, with_pictures
from rich.console import Console
from support import SMALL, Settings, assert_bit_equal, weights


def test_workers_and_rewards_read_the_pictures_of_prompts(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """The weights are those of a run in one process."""
    rows = []
    for number, prompt in enumerate(with_pictures(["123", "123", "456", "789"], 1)):
        (tmp_path / f"{number}.png").write_bytes(prompt.pictures[0].content())  # type: ignore[attr-defined]
        rows.append(f"{prompt},{number}.png")
    (tmp_path / "edits.csv").write_text("\n".join(["prompt,image", *rows]))
    changes = {
        "prompts": {"train": str(tmp_path / "edits.csv"), "per_iteration": 4, "picture_column": "image"},
        "policy.pretrained": str(saved("FLUX.1 Kontext", tmp_path / "kontext")),
        "rewards": {"change": {"function": "support:change"}},
        "threads": 1,
    }
    alone = train(run_settings({**changes, "name": "alone"}), RunDisplay(Console(quiet=True)))
    pools = {"rollout_workers": {**SMALL, "count": 2}, "learner": SMALL, "rewards": {"change": SMALL}}
    settings = run_settings({**changes, "execution": "ray", "pools": pools})
    run = train(settings, RunDisplay(Console(quiet=True)), address=head)
    assert_bit_equal(weights(run), weights(alone))
