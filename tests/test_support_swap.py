"""Queries with another class's supports: which ones, with what, and against which object."""

from pathlib import Path

import numpy as np
import pytest

from celp_nb.data.episodes import Episodes
from celp_nb.data.images import ImageSet
from celp_nb.repro.support_swap import swap_supports

CLASSES = [2, 4, 5]


@pytest.fixture
def data():
    """Nine images of one row of pixels each.

    Image 3k + j shows the k-th class of `CLASSES` and class 1 (known); image 8 shows class 4 as
    well, and image 0 has a void pixel.
    """
    last = {8: 4, 0: 255}
    masks = [np.array([[0, CLASSES[i // 3], 1, last.get(i, 0)]], np.uint8) for i in range(9)]
    pixels = np.array([np.bincount(m[0], minlength=256)[1:6] for m in masks])
    ids = [str(i) for i in range(9)]
    return ImageSet("made", ids, [Path(i) for i in ids], lambda i: masks[i], list("abcde"), pixels)


EPISODES = Episodes(
    np.array([2, 2, 4, 4, 5, 5]),
    np.array([0, 1, 3, 4, 6, 8]),
    np.array([[1, 2], [0, 2], [4, 5], [3, 5], [7, 8], [6, 7]]),
)


def test_supports_come_from_the_next_class_and_queries_that_show_it_are_left_out(data):
    swapped, _, which = swap_supports(EPISODES, data, CLASSES)
    assert which.tolist() == [0, 1, 2, 3, 4, 5] and swapped.cls.tolist() == [4, 4, 5, 5, 2, 2]
    assert swapped.query.tolist() == EPISODES.query.tolist()
    assert swapped.support.tolist() == [[4, 5], [3, 5], [7, 8], [6, 7], [1, 2], [0, 2]]
    # with a shift of 2 class 5 gets supports of class 4, which image 8 shows
    swapped, _, which = swap_supports(EPISODES, data, CLASSES, 2)
    assert which.tolist() == [0, 1, 2, 3, 4] and swapped.cls.tolist() == [5, 5, 2, 2, 4]
    assert swapped.support[4].tolist() == [4, 5]


@pytest.mark.parametrize("shift", [1, 2])
def test_an_answer_is_scored_against_the_querys_own_object(data, shift):
    swapped, scored, which = swap_supports(EPISODES, data, CLASSES, shift)
    for c, q, own in zip(swapped.cls, swapped.query, EPISODES.cls[which]):
        truth, target = data.read_mask(q), scored.read_mask(q)
        assert ((target == c) == (truth == own)).all()
        assert ((target == 1) == (truth == 1)).all()
        assert ((target == 255) == (truth == 255)).all()
    assert data.read_mask(0)[0, 1] == 2  # the supports' own set stays


def test_a_class_with_fewer_episodes_gives_its_supports_again(data):
    few = Episodes(*(x[[0, 1, 2, 4, 5]] for x in EPISODES))
    swapped, _, _ = swap_supports(few, data, CLASSES)
    assert swapped.support[:2].tolist() == [[4, 5], [4, 5]]


def test_what_cannot_be_swapped_is_refused(data):
    words = "shift of 3 gives each of 3 classes its own supports; choose 1 to 2"
    with pytest.raises(ValueError, match=words):
        swap_supports(EPISODES, data, CLASSES, 3)
    with pytest.raises(ValueError, match="class 1 has no episode"):
        swap_supports(EPISODES, data, [*CLASSES, 1])
