"""`branchgrpo profile` looks into a real run on Ray while it goes on."""

import json
import subprocess
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.proto.prompts import read_prompts
from branchgrpo.proto.recipe import save_recipe
from support import ALONE, SMALL, Settings, command

SLACK_MICROSECONDS = 1000
ITERATIONS = 1000
HOLDERS = {"rollout": {"task", "load weights"}, "learner": {"learn"}, "reward": {"score"}}
"""Component -> the spans outside which torch does nothing."""
NETWORK = {"rollout": {"forward", "decode"}, "learner": {"forward and backward"}, "reward": {"score"}}
"""Component -> the spans in which networks compute."""

Event = dict[str, Any]


def test_operations_lie_within_the_spans_of_their_process(run_settings: Settings, tmp_path: Path, head: str) -> None:
    settings = run_settings(
        {
            "execution": "ray",
            "threads": 1,
            "iterations": ITERATIONS,
            "rewards": {"evenness": {"function": "torch_scorers:evenness"}},
            "pools": {"rollout_workers": {**SMALL, "count": 2}, "learner": SMALL, "rewards": {"evenness": SMALL}},
        }
    )
    folder = settings.runs / settings.name
    save_recipe(settings, folder)
    with closing(RayLoop(settings, folder, read_prompts(settings.prompts.train, "prompts.train"), head)) as loop:
        kinds = [word for kind in HOLDERS for word in ("--process", kind)]
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
    check(json.loads(path.read_text())["traceEvents"], iterations={first, last})
    later = subprocess.run(asked, env=ALONE, capture_output=True, text=True)
    assert (later.returncode, later.stderr.count("\n")) == (2, 1)
    assert "isn't running" in later.stderr


def check(events: list[Event], iterations: set[int]) -> None:
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    spans, operations = defaultdict[int, list[Event]](list), defaultdict[int, list[Event]](list)
    for event in events:
        if event["ph"] == "X":
            (operations if event["cat"] == "cpu_op" else spans)[event["pid"]].append(event)
    profiled = [names[pid].split()[0] for pid in operations]
    assert sorted(profiled) == ["evenness", "learner", "rollout_workers"]
    for pid, own in operations.items():
        component = spans[pid][0]["cat"]
        held = [span for span in spans[pid] if span["name"] in HOLDERS[component]]
        assert all(any(within(operation, span) for span in held) for operation in own)
        told = [span for span in held if span["args"].get("iteration") in iterations | {None}]
        assert {span["args"].get("iteration") for span in held} & iterations or component == "reward"
        for span in spans[pid]:
            if span["name"] in NETWORK[component] and any(within(span, other) for other in told):
                inside = [operation["name"] for operation in own if within(operation, span)]
                assert any("mm" in name or "conv" in name for name in inside), f"{component}: nothing in {span}"
    arrows = [event["id"] for event in events if event["ph"] == "s"]
    assert len(arrows) == len(set(arrows))


def within(inner: Event, outer: Event) -> bool:
    begins = outer["ts"] - SLACK_MICROSECONDS <= inner["ts"]
    return begins and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + SLACK_MICROSECONDS
