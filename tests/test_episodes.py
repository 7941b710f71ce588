"Properties of episode sampling and of the episode list as a file."
import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celp_nb.data.episodes import (
    Episodes,
    atomic_file,
    class_images,
    draw_distinct,
    fold_classes,
    images_in_turn,
    pairs_per_class,
    read_episodes,
    write_episodes,
)

IDS = [f"photo {i:02}" for i in range(30)]
NAMES = ["cat", "dog, small", "Fahrrad-ü", "boat"]


@st.composite
def tables(draw):
    "A pixel table of 30 images and 4 classes, at least 6 images per class; a seed."
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 4096, (30, 4))
    for c in range(4):
        table[rng.choice(30, 6, replace=False), c] = 2048
    return table, seed


@given(st.integers(1, 90), st.integers(1, 8), st.booleans())
def test_folds_cover_every_class_once_or_say_why_not(n_classes, n_folds, interleaved):
    seen, empty = [], 0
    for fold in range(n_folds):
        try:
            seen += fold_classes(n_classes, fold, n_folds, interleaved)
        except ValueError as error:
            assert "empty" in str(error) and "fewer folds" in str(error)
            empty += 1
    assert sorted(seen) == list(range(1, n_classes + 1))
    assert empty == 0 or n_classes < n_folds * (n_folds - 1)


def test_folds_of_the_two_benchmarks():
    assert fold_classes(20, 0) == [1, 2, 3, 4, 5] and fold_classes(20, 3) == [16, 17, 18, 19, 20]
    assert (
        fold_classes(80, 0, interleaved=True) == list(range(1, 81, 4))
        and fold_classes(80, 3, interleaved=True)[-1] == 80
    )
    assert [fold_classes(7, fold, 3) for fold in range(3)] == [[1, 2, 3], [4, 5, 6], [7]]
    for fold in (-1, 4):
        with pytest.raises(ValueError, match=f"fold {fold} does not exist.*0 to 3"):
            fold_classes(20, fold)


def test_class_images_threshold_is_inclusive():
    images = class_images(np.array([[2047, 0], [2048, 5000], [9000, 1]]), [2, 1])
    assert {c: v.tolist() for c, v in images.items()} == {2: [1], 1: [1, 2]}
    assert class_images(np.array([[2047]]), [1], min_pixels=1)[1].tolist() == [0]
    for cls in (0, 3):
        with pytest.raises(ValueError, match=f"class {cls} does not exist.*1 to 2"):
            class_images(np.zeros((3, 2), np.int64), [cls])


@given(st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**31))
def test_draw_distinct_draws_different_numbers_in_range(k, more, seed):
    drawn = draw_distinct(np.random.default_rng(seed), k + more, 50, k)
    assert drawn.shape == (50, k) and drawn.min() >= 0 and drawn.max() < k + more
    assert all(len(set(row)) == k for row in drawn.tolist())


def test_draw_distinct_is_uniform_in_every_place():
    "Floyd's algorithm without the final shuffle fails this: its first number is at most n - k."
    drawn = draw_distinct(np.random.default_rng(3), 5, 50_000, 4)
    for place in range(4):
        assert abs(np.bincount(drawn[:, place], minlength=5) - 10_000).max() < 5 * np.sqrt(
            50_000 * 0.2 * 0.8
        )
    pairs = Counter(map(tuple, drawn[:, :2].tolist()))
    assert len(pairs) == 20 and max(abs(n - 2500) for n in pairs.values()) < 5 * np.sqrt(
        50_000 * 0.05 * 0.95
    )


def valid(episodes, table, classes):
    for cls, query, support in zip(*(x.tolist() for x in episodes)):
        assert cls in classes
        assert len({query, *support}) == 1 + len(support), "query and supports all differ"
        assert all(table[i, cls - 1] >= 2048 for i in (query, *support)), (
            "the class is present in every image"
        )
    assert [x.dtype for x in episodes] == [np.int64] * 3


@settings(max_examples=40)
@given(tables(), st.integers(1, 5), st.sampled_from([[1], [2, 4], [1, 2, 3, 4]]))
def test_pairs_per_class(case, shots, classes):
    table, seed = case
    episodes = pairs_per_class(table, classes, 25, shots, seed)
    valid(episodes, table, classes)
    assert np.bincount(episodes.cls).tolist() == np.bincount(np.repeat(classes, 25)).tolist()
    again, other = (pairs_per_class(table, classes, 25, shots, seed + step) for step in (0, 1))
    assert all((a == b).all() for a, b in zip(episodes, again)), "the seed decides"
    assert (episodes.query != other.query).any() or (episodes.support != other.support).any()


@settings(max_examples=40)
@given(
    tables(), st.integers(1, 5), st.sampled_from([[1], [2, 4], [1, 2, 3, 4]]), st.integers(1, 90)
)
def test_images_in_turn(case, shots, classes, n):
    table, seed = case
    episodes = images_in_turn(table, classes, n, shots, seed)
    assert len(episodes.query) == n
    valid(episodes, table, classes)
    pool = [i for i in range(30) if any(table[i, c - 1] >= 2048 for c in classes)]
    for start in range(0, n - len(pool) + 1, len(pool)):
        assert sorted(episodes.query[start : start + len(pool)].tolist()) == pool, (
            "each pass takes every image once"
        )
    again = images_in_turn(table, classes, n, shots, seed)
    assert all((a == b).all() for a, b in zip(episodes, again))


def test_images_in_turn_shuffles_each_pass_and_takes_classes_evenly():
    table = np.full((10, 3), 5000)
    episodes = images_in_turn(table, [1, 3], 10_000, 2, 0)
    passes = episodes.query.reshape(-1, 10)
    assert len(np.unique(passes, axis=0)) > 900
    assert set(episodes.cls) == {1, 3} and abs((episodes.cls == 1).mean() - 0.5) < 0.025


@pytest.mark.parametrize("draw", [
    lambda table, shots, **kw: pairs_per_class(table, [1, 2], 10, shots, 0, **kw),
    lambda table, shots, **kw: images_in_turn(table, [1, 2], 10, shots, 0, **kw),
])
def test_too_few_images_is_one_sentence(draw):
    table = np.zeros((20, 2), np.int64)
    table[:, 0], table[:5, 1] = 9000, 3000
    assert draw(table, 4).support.shape == (20 if len(draw(table, 4).cls) == 20 else 10, 4), (
        "K+1 images are enough"
    )
    with pytest.raises(
        ValueError,
        match=r"class 2 \(dog\) is present in 5 images .*5-shot episodes need 6: add images",
    ) as error:
        draw(table, 5, class_names=["cat", "dog"])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="class 2 is present in 0 images"):
        draw(table, 1, min_pixels=4000)
    with pytest.raises(ValueError, match="at least one support"):
        draw(table, 0)


def test_shots_takes_the_first_supports():
    episodes = pairs_per_class(np.full((9, 1), 4000), [1], 50, 5, 0)
    one = episodes.shots(1)
    assert (one.support == episodes.support[:, :1]).all() and (one.query == episodes.query).all()
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"5 supports each: {k} shots"):
            episodes.shots(k)


@settings(max_examples=25)
@given(tables(), st.integers(1, 5))
def test_csv_round_trip(tmp_path_factory, case, shots):
    table, seed = case
    path = tmp_path_factory.mktemp("list") / "deeper" / "episodes.csv"
    episodes = images_in_turn(table, [1, 2, 3, 4], 40, shots, seed)
    write_episodes(path, episodes, IDS, NAMES)
    again = read_episodes(path, IDS, NAMES)
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(episodes, again))
    order = np.random.default_rng(seed).permutation(
        30
    )  # the same images listed in another order: names decide, not numbers
    moved = read_episodes(path, [IDS[i] for i in order], NAMES)
    assert (order[moved.query] == episodes.query).all() and (
        order[moved.support] == episodes.support
    ).all()


def test_csv_is_what_a_person_would_write(tmp_path):
    path = tmp_path / "by_hand.csv"
    path.write_text(
        "\ufeffquery,support_2,support_1,class,class_id,remark\n"
        "photo 00,photo 02,photo 01,boat,4,hard one\n\n",
        encoding="utf-8",
    )
    episodes = read_episodes(path, IDS, NAMES)
    assert (episodes.cls.tolist(), episodes.query.tolist(), episodes.support.tolist()) == (
        [4],
        [0],
        [[1, 2]],
    )


HEADER = "class,class_id,query,support_1,support_2\n"


@pytest.mark.parametrize(
    "text, message",
    [
        ("class,query,support_1\ncat,photo 00,photo 01\n", r"line 1: column 'class_id' is missing"),
        ("class,class_id,query\n", r"line 1: column 'support_1' is missing"),
        ("class,class_id,query,support_1,support_3\n", r"line 1: column 'support_2' is missing"),
        ("", r"line 1: column 'class' is missing"),
        ("class;class_id;query;support_1\n", r"line 1: column 'class' is missing"),
        (HEADER, r"no episodes in it"),
        (
            HEADER + "cat,1,photo 00,photo 01,photo 02\ncow,1,photo 00,photo 01,photo 02\n",
            r"line 3: unknown class 'cow'.*cat",
        ),
        (
            HEADER + "cat,2,photo 00,photo 01,photo 02\n",
            r"line 2: class_id '2' is not the number of 'cat', which is 1",
        ),
        (HEADER + "cat,1,photo 00,photo 77,photo 02\n", r"line 2: unknown image 'photo 77'"),
        (HEADER + "cat,1,nothing,photo 01,photo 02\n", r"line 2: unknown image 'nothing'"),
        (HEADER + "cat,1,photo 00,photo 01\n", r"line 2: 4 values where the header names 5"),
        (HEADER + "cat,1,photo 00,photo 01,photo 00\n", r"line 2: image 'photo 00' is used twice"),
        (HEADER + "cat,1,photo 00,photo 01,photo 01\n", r"line 2: image 'photo 01' is used twice"),
    ],
)
def test_bad_csv_is_refused_by_file_line_and_value(tmp_path, text, message):
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_episodes(path, IDS, NAMES)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_missing_csv(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.csv: no such episode list"):
        read_episodes(tmp_path / "gone.csv", IDS, NAMES)


def test_names_that_cannot_be_replayed_are_refused(tmp_path):
    episodes = Episodes(np.array([1]), np.array([0]), np.array([[1]]))
    with pytest.raises(ValueError, match="two images are called 'b'"):
        write_episodes(tmp_path / "x.csv", episodes, ["a", "b", "b"], NAMES)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "list.csv"
    write_episodes(path, Episodes(np.array([1]), np.array([0]), np.array([[1]])), IDS, NAMES)
    before = path.read_bytes()
    bad = Episodes(
        np.array([1, 1]), np.array([0, 99]), np.array([[1], [2]])
    )  # its second line names an image that is not there
    with pytest.raises(IndexError):
        write_episodes(path, bad, IDS, NAMES)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["list.csv"]
    with pytest.raises(KeyboardInterrupt):
        with atomic_file(tmp_path / "other") as file:
            file.write(b"half")
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["list.csv"]


def test_coco_size_needs_little_memory():
    import tracemalloc

    table = np.where(np.random.default_rng(0).random((82_000, 80)) < 0.04, 5000, 0)
    tracemalloc.start()
    episodes = images_in_turn(table, fold_classes(80, 0, interleaved=True), 20_000, 5, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(episodes.query) == 20_000 and peak < 2 * table.nbytes
