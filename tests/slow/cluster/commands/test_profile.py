"""`branchgrpo profile` looks into real runs while they go on, on Ray and in one process."""

import json
import shutil
import subprocess
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import torch_scorers
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.run.profile_file import FILE
from branchgrpo.cluster.run.prompt_order import training_and_held_out
from branchgrpo.proto.profiling import Component
from branchgrpo.proto.prompts import read_prompts
from branchgrpo.proto.recipe import save_recipe
from support import (
    ALONE,
    GLYPHS,
    SMALL,
    Settings,
    assert_bit_equal,
    command,
    done_by,
    start_train,
    until,
    weights,
)

SLACK_MICROSECONDS = 1000
ITERATIONS = 1000
HOLDERS = {
    "rollout": {"task", "load weights"},
    "learner": {"learn"},
    "reward": {"score"},
    "in_process": {"rollout", "scoring", "learning"},
}
"""Component -> the spans outside which torch does nothing."""
NETWORK = {
    "rollout": {"forward", "decode"},
    "learner": {"forward and backward"},
    "reward": {"score"},
    "in_process": {"forward", "decode", "forward and backward", "scoring"},
}
"""Component -> the spans in which networks compute."""

EVENNESS = {"evenness": {"function": "torch_scorers:evenness"}}
Event = dict[str, Any]


def test_operations_lie_within_the_spans_of_their_process(run_settings: Settings, tmp_path: Path, head: str) -> None:
    settings = run_settings(
        {
            "execution": "ray",
            "threads": 1,
            "iterations": ITERATIONS,
            "rewards": EVENNESS,
            "pools": {"rollout_workers": {**SMALL, "count": 2}, "learner": SMALL, "rewards": {"evenness": SMALL}},
        }
    )
    folder = settings.runs / settings.name
    save_recipe(settings, folder)
    with closing(RayLoop(settings, folder, read_prompts(settings.prompts.train, "prompts.train"), head)) as loop:
        kinds = [word for kind in Component for word in ("--process", kind)]
        asked = command("profile", folder, "--iterations", "2", *kinds)
        asking = subprocess.Popen(asked, env=ALONE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        done = 0
        while asking.poll() is None:
            done += 1
            loop.iterate(done)
        told, complaint = asking.communicate()
        assert asking.returncode == 0, complaint
    (path,) = (folder / "trace").glob("profile-*")
    first, last = (int(number) for number in path.stem.split("-")[1:])
    assert f"iterations {first} to {last}" in told
    assert str(path) in told.replace("\n", "")
    assert 1 < first < last == first + 1 <= done
    check(path, ["evenness", "learner", "rollout_workers"])
    later = subprocess.run(asked, env=ALONE, capture_output=True, text=True)
    assert (later.returncode, later.stderr.count("\n")) == (2, 1)
    assert "isn't running" in later.stderr


def test_a_run_in_one_process_comes_out_the_same(run_settings: Settings, tmp_path: Path) -> None:
    shutil.copy(torch_scorers.__file__, tmp_path)
    changes = {"iterations": ITERATIONS, "checkpoint.every": ITERATIONS, "schedule.splits": {0: 2}}
    settings = run_settings({**GLYPHS, **changes, "rewards": EVENNESS})
    folder = settings.runs / settings.name
    training = start_train(settings, tmp_path, folder / "metrics.jsonl")
    try:
        done = done_by("profile", folder, "--iterations", "2")
        assert done.returncode == 0, done.stderr
        (path,) = (folder / "trace").glob("profile-*")
        check(path, ["in_process"])
        asked = command("profile", folder, "--iterations", str(ITERATIONS), "--seconds", "1")
        asking = subprocess.Popen(asked, env=ALONE, stderr=subprocess.PIPE, text=True)
        until((folder / "trace" / FILE).exists)
        second = done_by("profile", folder)
        assert (second.returncode, second.stderr.count("\n")) == (2, 1)
        assert "is being profiled already" in second.stderr
    finally:
        training.terminate()
        training.communicate()
    _, complaint = asking.communicate()
    assert (asking.returncode, complaint.count("\n")) == (1, 1)
    assert "the run ended" in complaint
    assert not list(folder.rglob(".partial-*"))
    loop = InProcessLoop(settings, training_and_held_out(settings)[0])
    for iteration in range(1, RunFolder(folder).done + 1):
        loop.iterate(iteration)
    assert_bit_equal(weights(folder), loop.learner.weights())


def check(path: Path, processes: list[str]) -> None:
    """Check a file's operations against the spans around them."""
    events = json.loads(path.read_text())["traceEvents"]
    iterations = {int(number) for number in path.stem.split("-")[1:]}
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    spans, operations = defaultdict[int, list[Event]](list), defaultdict[int, list[Event]](list)
    for event in events:
        if event["ph"] == "X":
            (operations if event["cat"] == "cpu_op" else spans)[event["pid"]].append(event)
    profiled = [names[pid].split()[0] for pid in operations]
    assert sorted(profiled) == processes
    for pid, own in operations.items():
        component = spans[pid][0]["cat"]
        held = [span for span in spans[pid] if span["name"] in HOLDERS[component]]
        assert all(any(within(operation, span) for span in held) for operation in own)
        told = [span for span in held if span["args"].get("iteration") in iterations | {None}]
        assert {span["args"].get("iteration") for span in held} & iterations or component in ("reward", "in_process")
        for span in spans[pid]:
            if span["name"] in NETWORK[component] and any(within(span, other) for other in told):
                inside = [operation["name"] for operation in own if within(operation, span)]
                assert any("mm" in name or "conv" in name for name in inside), f"{component}: nothing in {span}"
    arrows = [event["id"] for event in events if event["ph"] == "s"]
    assert len(arrows) == len(set(arrows))


def within(inner: Event, outer: Event) -> bool:
    begins = outer["ts"] - SLACK_MICROSECONDS <= inner["ts"]
    return begins and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + SLACK_MICROSECONDS
