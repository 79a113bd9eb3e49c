"""Batches drawn ahead by threads equal those drawn one by one, and resume from a stored state."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from unet_core.data.augmentation import Augmentation
from unet_core.data.prefetch import Batches
from unet_core.data.sampler import AnnotatedImage, SampleBatch, Sampler, Sampling

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.repeat(generator.integers(0, 9, (10, 12)), 8, axis=0), 8, axis=1).astype(np.int32)
    image = generator.integers(0, 256, (3, 80, 96), np.uint8)
    cases = [AnnotatedImage("a", image, labels), AnnotatedImage("b", image[:, :50], labels[:50])]
    return Sampler(cases, (50, 34), Sampling(batch=3, foreground=0.5), Augmentation())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(one: SampleBatch, other: SampleBatch) -> bool:
    pairs = ((one.image_NCHW, other.image_NCHW), (one.target_NHW, other.target_NHW), (one.weight_NHW, other.weight_NHW))
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("ahead", [None, 0, 2])
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_batches_of_threads_equal_those_drawn_one_by_one(
    sampler: Sampler, threads: int | None, ahead: int | None
) -> None:
    generator = seeded(7)
    expected = [sampler.draw(generator) for _ in range(6)]
    with Batches(sampler, seeded(7), threads, ahead) as batches:
        found = list(islice(batches, 6))
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert not same(found[0], found[1])


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_run_resumes_from_the_state_before_its_next_batch(sampler: Sampler, ahead: int) -> None:
    with Batches(sampler, seeded(7), 3, ahead) as batches:
        states = [batches.state]
        drawn = []
        for batch in islice(batches, 5):
            drawn.append(batch)
            states.append(batches.state)
    assert torch.equal(states[0], seeded(7).get_state())
    for done in range(5):
        with Batches(sampler, seeded(0).set_state(states[done]), 3, ahead) as batches:
            assert same(next(batches), drawn[done])


def test_an_error_in_a_tile_is_raised_by_its_batch(sampler: Sampler) -> None:
    class Torn:
        shape = (3, 50, 96)

        def __getitem__(self, key: tuple[slice, ...]) -> None:
            raise OSError("torn tile")

    torn = Sampler([AnnotatedImage("torn", Torn(), np.zeros((50, 96), np.int32))], (50, 34), Sampling(), Augmentation())
    with Batches(torn, seeded(0), 2) as batches, pytest.raises(OSError, match="torn tile"):
        next(batches)
