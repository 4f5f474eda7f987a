"""Nearest images, and the page that shows them."""

import re

import pytest
import torch

from ncssl_core import InputError
from ncssl_core.datasets import Images
from ncssl_core.neighbours import nearest, page


def test_neighbours_are_the_nearest_by_centred_cosine_and_never_the_query():
    torch.manual_seed(0)
    features = torch.randn(40, 8) + 5  # all point one way until centred
    queries = torch.tensor([3, 17])
    found = nearest(features, queries, 5)
    centred = features - features.mean(0)
    for row, query in enumerate(queries):
        cosine = torch.cosine_similarity(centred[query][None], centred)
        cosine[query] = -2
        assert found.nearest[row].tolist() == cosine.argsort(descending=True)[:5].tolist()
        assert torch.allclose(found.cosine[row], cosine[found.nearest[row]], atol=1e-6)


def test_two_equal_images_are_each_others_nearest():
    features = torch.randn(10, 4)
    features[7] = features[2]
    assert nearest(features, torch.tensor([2, 7]), 1).nearest.flatten().tolist() == [7, 2]


@pytest.mark.parametrize("count", [0, 10])
def test_more_neighbours_than_images_are_refused(count):
    with pytest.raises(InputError, match=f"wanted 1 to 9 of 10 images; given {count}"):
        nearest(torch.randn(10, 4), torch.tensor([0]), count)


def test_features_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="finite"):
        nearest(torch.full((10, 4), torch.nan), torch.tensor([0]), 1)


def test_the_page_stands_alone_and_names_are_escaped():
    pixels = torch.randint(0, 256, (5, 3, 9, 9), dtype=torch.uint8)
    images = Images(pixels, names=("a.jpg", '<script>"x"</script>.jpg', "c.jpg", "d.jpg", "e.jpg"))
    text = page(images, nearest(torch.randn(5, 3), torch.tensor([0, 1]), 3), "photos & more", "says")
    assert text.count("<section>") == 2
    assert text.count("<img ") == 8
    assert "<script" not in text
    assert "photos &amp; more" in text
    assert not re.search(r'(src|href)="(?!data:image/png)', text)
