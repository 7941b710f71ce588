"Training episodes as tensors."


import numpy as np
import pytest
import torch
from folders import blocks, make_voc, one_thread, own_cache  # noqa: F401  autouse fixtures

from celp_nb.data import training_set as data_training_set
from celp_nb.data import transforms as data_transforms
from celp_nb.data import voc as data_voc
from celp_nb.data.episodes import Episodes, images_in_turn


@pytest.fixture
def episodes_of_stripes(tmp_path):
    masks = {f"i{k}": blocks(0, k % 3 + 1, 255, (k + 1) % 3 + 1) for k in range(9)}
    image_set = data_voc.voc_layout(make_voc(tmp_path / "set", masks), "train")
    return image_set, images_in_turn(image_set.pixels, [1, 3], 20, 2, 0, min_pixels=50)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


def test_training_item_depends_on_seed_and_number_alone(episodes_of_stripes):
    image_set, episodes = episodes_of_stripes
    recipe = data_transforms.Recipe(33, 33)
    data, other = (
        data_training_set.TrainingEpisodes(image_set, episodes, [1, 3], recipe, seed)
        for seed in (0, 1)
    )
    in_order = [data[i] for i in range(20)]
    assert all(same(data[i], in_order[i]) for i in reversed(range(20))), (
        "order and repetition do not matter"
    )
    assert not same(data[0], other[0])
    twice = Episodes(*(np.repeat(x[:1], 2, axis=0) for x in episodes))
    data = data_training_set.TrainingEpisodes(image_set, twice, [1, 3], recipe, 0)
    assert not same(data[0], data[1]), "the same episode at another number is augmented anew"
    assert same(data[0], in_order[0])
    with pytest.raises(IndexError):
        data[2]
    loaded = torch.utils.data.DataLoader(
        data_training_set.TrainingEpisodes(image_set, episodes, [1, 3], recipe, 0),
        batch_size=5,
        num_workers=2,
    )
    for k, batch in enumerate(loaded):
        assert isinstance(batch, data_training_set.Batch)
        for j in range(5):
            assert same([field[j] for field in batch], in_order[5 * k + j]), (
                "nor do loader processes"
            )


def test_training_item_fields(episodes_of_stripes):
    image_set, episodes = episodes_of_stripes
    still = data_transforms.Recipe(
        57, 57, (1, 1), rotation_probability=0, blur_probability=0, flip_probability=0
    )
    i = next(
        i for i in range(20) if (image_set.pixels[episodes.query[i]][[0, 2]] > 0).all()
    )  # both training classes in the query
    item = data_training_set.TrainingEpisodes(image_set, episodes, [1, 3], still, 0)[i]
    cls, query, support = (
        int(episodes.cls[i]),
        int(episodes.query[i]),
        episodes.support[i].tolist(),
    )
    assert (
        item.query.shape == (3, 57, 57)
        and item.support.shape == (2, 3, 57, 57)
        and item.support_mask.shape == (2, 57, 57)
    )
    assert item.cls.dtype == torch.int64 and item.cls.item() == cls
    rows = slice((57 - 40) // 2, (57 - 40) // 2 + 40)
    for mask, i in [
        (item.target, query),
        (item.support_mask[0], support[0]),
        (item.support_mask[1], support[1]),
    ]:
        old = image_set.read_mask(i)
        assert (
            mask.dtype == torch.uint8
            and (mask[rows, :56].numpy() == np.where(old == 255, 255, old == cls)).all()
        )
    old = image_set.read_mask(query)
    assert (item.known[rows, :56].numpy() == np.where(old == 255, 255, np.isin(old, [1, 3]))).all()
    partly = next(i for i in range(20) if image_set.pixels[episodes.query[i], 1] > 0)
    item = data_training_set.TrainingEpisodes(image_set, episodes, [1, 3], still, 0)[partly]
    old = image_set.read_mask(int(episodes.query[partly]))
    assert (item.known[rows, :56].numpy()[old == 2] == 0).all(), "class 2 is latent: background"


def test_episodes_of_hidden_classes_are_refused(episodes_of_stripes):
    image_set, episodes = episodes_of_stripes
    with pytest.raises(
        ValueError, match="class 3 has training episodes but is not a training class"
    ):
        data_training_set.TrainingEpisodes(
            image_set, episodes, [1, 2], data_transforms.Recipe(33, 33), 0
        )
