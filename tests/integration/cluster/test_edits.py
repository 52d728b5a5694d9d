"""Runs of a policy that edits pictures, from prompts that name them."""

import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from branchgrpo.cluster.commands.check import check
from branchgrpo.cluster.commands.diversity import diversity_command
from branchgrpo.cluster.commands.evaluate import evaluate_command
from branchgrpo.cluster.run import samples, tree_record
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from branchgrpo.cluster.view.runs import Runs
from branchgrpo.cluster.view.server import create_app
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompts import prompts_in
from branchgrpo.proto.settings import RunSettings
from families import saved
from fastapi.testclient import TestClient
from PIL import Image
from rich.console import Console
from support import Settings, assert_bit_equal, weights

TEXTS = ("redder", "redder", "bluer", "darker")
QUIET = Console(quiet=True)


@pytest.fixture
def edits(tmp_path: Path, run_settings: Settings) -> RunSettings:
    """A run over four prompts, two of which have the same text."""
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    rows = []
    for number, text in enumerate(TEXTS):
        small = Image.fromarray(generator.integers(0, 256, (3, 5, 3), np.uint8))
        small.resize((40, 30)).save(tmp_path / "pictures" / f"{number}.png")
        rows.append(json.dumps({"prompt": text, "image": f"pictures/{number}.png"}))
    (tmp_path / "edits.jsonl").write_text("\n".join(rows))
    prompts = {"train": str(tmp_path / "edits.jsonl"), "held_out": str(tmp_path / "edits.jsonl"), "per_iteration": 2}
    return run_settings(
        {
            "prompts": {**prompts, "picture_column": "image"},
            "policy.pretrained": str(saved("FLUX.1 Kontext", tmp_path / "kontext")),
            "rewards": {"near": {"function": "support:change"}},
            "evaluation": {"prompts": 4, "every": 1},
            "learner.updates_per_iteration": 1,
            "logging": {"samples_every": 1, "trees_every": 1},
        }
    )


def test_a_run_edits_pictures_that_it_keeps(edits: RunSettings, tmp_path: Path) -> None:
    """It resumes without the files that it was given, and gives the same weights; other commands draw the same."""
    assert not check(edits).missing
    whole = train(edits.model_copy(update={"name": "whole"}), RunDisplay(QUIET))
    train(edits.model_copy(update={"iterations": 1}), RunDisplay(QUIET))
    for file in (tmp_path / "pictures").iterdir():
        file.unlink()
    (tmp_path / "edits.jsonl").unlink()
    kept = RunFolder(edits.runs / "run").settings
    run = train(kept.model_copy(update={"iterations": 2}), RunDisplay(QUIET), resume=True)
    assert_bit_equal(weights(run), weights(whole))

    folder = RunFolder(run)
    assert len({json.dumps(line["made_with"]) for line in folder.lines("evaluations")}) == 1
    held_out = prompts_in(folder.settings.prompts, "held_out")
    last = folder.evaluation(folder.lines("evaluations")[-1])
    assert list(last.prompts) == held_out
    assert len(folder.evaluation(folder.lines("evaluations")[-1], 9).prompts) == 4, "two have one text"
    assert np.abs(last.media.pictures[0].astype(int) - last.media.pictures[1]).max() > 3
    assert set(samples.parse((run / samples.samples_file(2)).read_bytes()).prompts) <= set(held_out)
    assert all(tree_record.read(path).prompt in held_out for path in tree_record.recorded_trees(run).values())

    client = TestClient(create_app(Runs(run.parent)), base_url="http://127.0.0.1")
    for section in ("pictures", "trees"):
        addresses = re.findall(r'class="source" src="(.*?)"', client.get(f"/{section}/run").text)
        assert addresses
        shown = client.get(unescape(addresses[0])).content
        assert Image.open(io.BytesIO(shown)).size == (40, 30)

    evaluate_command(run, [], ["newest"], False, None, tmp_path / "drawn", QUIET)
    again = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "drawn" / "pictures").iterdir())]
    np.testing.assert_array_equal(again, last.media.pictures)
    diversity_command(run, [], ["newest"], 2, 10, None, tmp_path / "diversity", QUIET)
    assert (tmp_path / "diversity" / "diversity.json").is_file()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompts.picture_column": None}, "picture_column is null; a FluxKontextPipeline takes one picture with a"),
        ({"policy.pretrained": "glyphs"}, "is 'image', with 1 in each row; a FluxPipeline takes no pictures with a"),
    ],
)
def test_pictures_that_do_not_fit_the_policy_are_refused(
    changes: dict[str, Any], told: str, edits: RunSettings, run_settings: Settings
) -> None:
    content = {"prompts": edits.prompts.model_dump(), "policy.pretrained": edits.policy.pretrained}
    settings = run_settings({**content, "name": "another", **changes})
    with pytest.raises(InputError, match=told):
        train(settings, RunDisplay(QUIET))
    assert any(told in line for line in check(settings).missing)
    assert not (settings.runs / "another").exists()


def test_rows_with_other_numbers_of_pictures_are_refused(edits: RunSettings, tmp_path: Path) -> None:
    with open(tmp_path / "edits.jsonl", "a") as file:
        file.write("\n" + json.dumps({"prompt": "both", "image": ["pictures/0.png", "pictures/1.png"]}))
    with pytest.raises(InputError, match="is 'image', with 1 to 2 pictures; all rows need as many"):
        train(edits, RunDisplay(QUIET))
