"""Numbers that aren't finite: caught where they arise, named, never scored, never saved, never tried again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from branchgrpo.learner.learner import Learner
from branchgrpo.proto.errors import Diverged
from branchgrpo.proto.recipe import save_recipe
from branchgrpo.proto.schedule import ode_schedule, tree_schedule
from branchgrpo.proto.settings import RolloutSettings, RunSettings
from branchgrpo.proto.tree import Task, Tree, Window
from branchgrpo.rollout_workers.policies.base import Policy
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from support import Settings

Sample = Callable[..., list[Tree]]
TREE = tree_schedule(5, kernel="dance", eta=0.5, splits={0: 2, 2: 2})


def poisoned(run_settings: Settings, folder: Path) -> RunSettings:
    """Settings of a run whose model has a weight that is no number."""
    settings = run_settings()
    shutil.copytree(settings.policy.pretrained, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    content = safetensors.torch.load_file(weights)
    next(iter(content.values())).fill_(float("nan"))
    safetensors.torch.save_file(content, weights)
    return run_settings({"policy.pretrained": str(folder)})


def breaking_at(policy: Policy, step: int, steps: int) -> None:
    """Have the policy predict infinity once the noise level is that of a step."""
    level, velocity = policy.sigmas(steps)[step], policy.velocity

    def broken(latents: torch.Tensor, sigma: torch.Tensor, *more: object) -> torch.Tensor:
        predicted = velocity(latents, sigma, *more)
        return predicted * float("inf") if float(sigma[0]) <= level + 1e-6 else predicted

    policy.velocity = broken  # type: ignore[method-assign]


@pytest.mark.parametrize("step", [0, 2, 4])
@pytest.mark.parametrize("max_batch_rows", [2, 64])
def test_a_state_is_named_by_step_and_tree(tiny_policy: Policy, step: int, max_batch_rows: int) -> None:
    """The last step is deterministic: it is seen before its leaves are handed out."""
    breaking_at(tiny_policy, step, 5)
    worker = RolloutWorker(tiny_policy, RolloutSettings(max_batch_rows=max_batch_rows))
    with pytest.raises(Diverged, match=rf"the state after step {step} of tree 4 of iteration 3 isn't finite .*'123'"):
        list(worker.sample(Task(3, (4, 5), ("123", "456"), TREE, 7)))


def test_an_evaluation_is_named(tiny_policy: Policy) -> None:
    breaking_at(tiny_policy, 1, 3)
    worker = RolloutWorker(tiny_policy, RolloutSettings())
    with pytest.raises(Diverged, match="the state after step 1 of picture 0 of an evaluation isn't finite"):
        list(worker.sample(Task(0, (0,), ("123",), ode_schedule(3), 7)))


def test_an_embedding_and_a_picture_are_named(tiny_policy: Policy) -> None:
    encode = tiny_policy.encode
    worker = RolloutWorker(tiny_policy, RolloutSettings())
    decode = tiny_policy.decode
    tiny_policy.decode = lambda latents: decode(latents) * float("nan")  # type: ignore[method-assign]
    with pytest.raises(Diverged, match="a decoded leaf of tree 0 of iteration 1 isn't finite"):
        list(worker.sample(Task(1, (0,), ("123",), TREE, 7)))
    tiny_policy.encode = lambda prompt: {name: value / 0 for name, value in encode(prompt).items()}  # type: ignore[method-assign]
    with pytest.raises(Diverged, match="the state after step 0 .* isn't finite, nor is the prompt's embedding"):
        list(RolloutWorker(tiny_policy, RolloutSettings()).sample(Task(1, (0,), ("123",), TREE, 7)))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_that_are_not_finite_stop_the_update(run_settings: Settings, sample: Sample, stage: int) -> None:
    """DeepSpeed has -1 for such a norm, and makes the step."""
    from branchgrpo.learner.partitioned import builder

    settings = run_settings({"learner.zero_stage": stage, "learner.ema_decay": 0.9, "learner.updates_per_iteration": 1})
    policy = load_policy(settings.policy, build=builder(settings.learner, "float32", torch.device("cpu")))
    learner = Learner(policy, settings)
    average = {name: value.clone() for name, value in learner.average.weights.items()}
    trees = sample(load_policy(settings.policy), settings.schedule.build(), prompts=("1", "2", "3", "4"))
    backward = learner.engine.backward
    learner.engine.backward = lambda loss: backward(loss * float("inf"))  # type: ignore[method-assign]
    with pytest.raises(Diverged, match="in iteration 1 the gradient isn't finite"):
        learner.accumulate(Window(1, trees, closes_update=True))
        learner.step()
    assert all(torch.equal(value, average[name]) for name, value in learner.average.weights.items())


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("what", ["a weight isn't finite after the optimizer's step", "a log-probability"])
def test_weights_and_log_probabilities_are_looked_at(
    run_settings: Settings, sample: Sample, stage: int, what: str
) -> None:
    changes = {"learner.zero_stage": stage, "learner.updates_per_iteration": 1}
    if "weight" in what:
        changes["learner.optimizer"] = {"learning_rate": 1e30, "weight_decay": 1e30, "gradient_clipping": 0.0}
    settings = run_settings(changes)
    policy = load_policy(settings.policy)
    trees = sample(policy, settings.schedule.build(), prompts=("1", "2", "3", "4"))
    learner = Learner(policy, settings)
    if "log" in what:
        velocity = policy.velocity
        policy.velocity = lambda *given: velocity(*given) * float("nan")  # type: ignore[method-assign]
    with pytest.raises(Diverged, match=what):
        learner.accumulate(Window(1, trees, closes_update=True))
        learner.step()


def test_a_policy_that_gives_no_numbers_is_not_evaluated(
    run_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from branchgrpo.cluster import cli

    recipe = save_recipe(poisoned(run_settings, tmp_path / "poisoned"), tmp_path / "recipe")
    monkeypatch.setattr("sys.argv", ["branchgrpo", "evaluate", str(recipe), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.err.splitlines()[-1].startswith("error: the state after step 0 of picture 0 of an evaluation isn't")
    assert not (tmp_path / "out").exists()
