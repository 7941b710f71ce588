"""Queries asked with another class's supports: who is asked, with what, and against which object an answer is scored."""
from pathlib import Path

import numpy as np
import pytest

from celp_nb.data.episodes import Episodes
from celp_nb.data.images import ImageSet
from celp_nb.repro.support_swap import swap_supports

CLASSES = [2, 4, 5]


@pytest.fixture
def data():
    "Nine images of a row each: image 3k + j shows the k-th class of `CLASSES` and class 1 (known); image 8 shows class 4 as well, image 0 class 255."
    masks = [
        np.array([[0, CLASSES[i // 3], 1, 4 if i == 8 else 255 if i == 0 else 0]], np.uint8)
        for i in range(9)
    ]
    pixels = np.stack([[(m == c).sum() for c in range(1, 6)] for m in masks])
    return ImageSet(
        "made",
        [str(i) for i in range(9)],
        [Path(str(i)) for i in range(9)],
        lambda i: masks[i],
        list("abcde"),
        pixels,
    )


EPISODES = Episodes(
    np.array([2, 2, 4, 4, 5, 5]),
    np.array([0, 1, 3, 4, 6, 8]),
    np.array([[1, 2], [0, 2], [4, 5], [3, 5], [7, 8], [6, 7]]),
)


def test_supports_come_from_the_next_class_and_queries_that_show_it_are_left_out(data):
    asked, _, which = swap_supports(EPISODES, data, CLASSES)
    assert (
        which.tolist() == [0, 1, 2, 3, 4, 5]
        and asked.cls.tolist() == [4, 4, 5, 5, 2, 2]
        and asked.query.tolist() == EPISODES.query.tolist()
    )
    assert asked.support.tolist() == [[4, 5], [3, 5], [7, 8], [6, 7], [1, 2], [0, 2]]
    asked, _, which = swap_supports(
        EPISODES, data, CLASSES, 2
    )  # class 5 is asked with class 4, which image 8 shows
    assert (
        which.tolist() == [0, 1, 2, 3, 4]
        and asked.cls.tolist() == [5, 5, 2, 2, 4]
        and asked.support[4].tolist() == [4, 5]
    )


@pytest.mark.parametrize("shift", [1, 2])
def test_an_answer_is_scored_against_the_querys_own_object(data, shift):
    asked, scored, which = swap_supports(EPISODES, data, CLASSES, shift)
    for c, q, own in zip(asked.cls, asked.query, EPISODES.cls[which]):
        truth = data.read_mask(q)
        assert ((scored.read_mask(q) == c) == (truth == own)).all()
        assert ((scored.read_mask(q) == 1) == (truth == 1)).all() and (
            (scored.read_mask(q) == 255) == (truth == 255)
        ).all()
    assert data.read_mask(0)[0, 1] == 2  # the supports' own set stays


def test_a_class_with_fewer_episodes_gives_its_supports_again(data):
    few = Episodes(*(x[[0, 1, 2, 4, 5]] for x in EPISODES))
    asked, _, _ = swap_supports(few, data, CLASSES)
    assert asked.support[:2].tolist() == [[4, 5], [4, 5]]


def test_what_cannot_be_asked_is_refused(data):
    with pytest.raises(
        ValueError, match="shift of 3 gives each of 3 classes its own supports; choose 1 to 2"
    ):
        swap_supports(EPISODES, data, CLASSES, 3)
    with pytest.raises(ValueError, match="class 1 has no episode"):
        swap_supports(EPISODES, data, [*CLASSES, 1])
