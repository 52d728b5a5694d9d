"""The verifier of shapes against the program that draws them, and against pictures that try to deceive it."""

import numpy as np
import numpy.typing as npt
import pytest
from branchgrpo.proto.media import Media
from branchgrpo.reward_service.shapes import CLAIMS, claims, clean, verify
from branchgrpo.rollout_workers.shapes.scenes import COLOURS, RELATIONS, SHAPES, Scene, draw, draw_all, scenes
from hypothesis import given
from hypothesis import strategies as st

SCENE = Scene("red", "circle", "left of", "blue", "square")
FIELDS = tuple(vars(SCENE))


def picture(scene: Scene, seed: int = 0) -> npt.NDArray[np.uint8]:
    return draw(scene, np.random.default_rng(seed))


def test_it_agrees_with_the_drawing_program() -> None:
    every = [scene for part in scenes() for scene in part]
    scores = verify(draw_all(every, seed=3), [str(scene) for scene in every])
    assert scores["shapes_exact"].mean() >= 0.995
    assert scores["shapes_clean"].min() > 0.94


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ("red circle left of blue square", 6),
        ("blue square right of red circle", 6),
        ("red circle right of blue square", 5),
        ("red circle above blue square", 5),
        ("green circle left of blue square", 5),
        ("red cross left of blue square", 5),
        ("red square left of blue circle", 4),
        ("blue circle left of red square", 4),
        ("green triangle left of blue square", 4),
        ("green triangle above yellow cross", 1),
    ],
)
def test_each_wrong_word_costs_one_claim(asked: str, held: int) -> None:
    assert [claims(picture(SCENE, seed), asked) for seed in range(5)] == [held] * 5


@given(st.sampled_from([scene for part in scenes() for scene in part]), st.integers(0, 2**32), st.data())
def test_a_claim_that_is_false_does_not_hold(scene: Scene, seed: int, data: st.DataObject) -> None:
    kinds = (COLOURS, SHAPES, RELATIONS, COLOURS, SHAPES)
    field, words = data.draw(st.sampled_from(list(zip(FIELDS, kinds, strict=True))))
    word = data.draw(st.sampled_from([word for word in words if word != getattr(scene, field)]))
    other = Scene(**(vars(scene) | {field: word}))
    assert claims(picture(scene, seed), str(other)) < CLAIMS


def deceptions() -> dict[str, npt.NDArray[np.uint8]]:
    rng, empty = np.random.default_rng(0), np.full((48, 48, 3), 255, np.uint8)
    stripes = np.repeat(np.array(list(COLOURS.values()), np.uint8), 8, axis=0)[:, None].repeat(48, axis=1)
    every = [picture(Scene(colour, "square", "above", colour, "circle")) for colour in COLOURS]
    shapes = [picture(Scene("red", shape, "left of", "blue", shape), seed) for seed, shape in enumerate(SHAPES)]
    half = picture(SCENE)
    half[:, :24] = 255
    return {
        "empty": empty,
        "black": np.zeros_like(empty),
        "grey": np.full_like(empty, 128),
        "red": np.full_like(empty, COLOURS["red"]),
        "noise": rng.integers(0, 256, empty.shape).astype(np.uint8),
        "pale noise": rng.integers(200, 256, empty.shape).astype(np.uint8),
        "all colours": stripes,
        "all colours' shapes at once": np.mean(every, axis=0).astype(np.uint8),
        "all shapes at once": np.min(shapes, axis=0),
        "many small things": np.tile(picture(SCENE)[::4, ::4], (4, 4, 1)),
        "one thing": half,
        "negative": 255 - picture(SCENE),
    }


@pytest.mark.parametrize("name", deceptions())
def test_no_deception_is_wholly_right(name: str) -> None:
    assert claims(deceptions()[name], str(SCENE)) < CLAIMS


@pytest.mark.parametrize("name", ["empty", "black", "grey", "noise", "pale noise", "all colours"])
def test_a_picture_without_things_has_no_claims(name: str) -> None:
    assert claims(deceptions()[name], str(SCENE)) == 0


@pytest.mark.parametrize("name", ["black", "grey", "noise", "all colours", "negative"])
def test_dirt_is_told(name: str) -> None:
    assert clean(deceptions()[name]) < 0.3


def test_a_third_thing_costs_a_claim() -> None:
    crowded = picture(SCENE)
    crowded[2:9, 20:27] = COLOURS["green"]
    assert claims(crowded, str(SCENE)) == 5


@pytest.mark.parametrize("prompt", ["", "a cat", "red circle left of blue", "red circle left of blue square!"])
def test_a_prompt_of_another_kind_has_no_claims(prompt: str) -> None:
    assert claims(picture(SCENE), prompt) == 0


def test_a_clip_is_scored_by_the_mean_over_its_frames() -> None:
    from branchgrpo.proto.settings import RewardSettings
    from branchgrpo.reward_service.shapes import load_shapes

    clip = np.stack([picture(SCENE), np.full((48, 48, 3), 255, np.uint8)])[None]
    assert load_shapes(RewardSettings())(Media(clip), [str(SCENE)])["shapes_exact"] == [0.5]
