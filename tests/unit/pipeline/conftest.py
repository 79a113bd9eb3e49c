"""Networks for tests of the predict stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.inference import predictor as networks
from pipeline.inference.predictor import Predictor
from tests.unit.pipeline.predicting import CONTEXT, network_of, weights_of
from unet_core.spec import UNetSpec


@pytest.fixture(autouse=True)
def _fresh_networks() -> Iterator[None]:
    """A loaded network keeps its call count and largest tile; every test starts with a new one."""
    networks._loaded.cache_clear()
    yield
    networks._loaded.cache_clear()


@pytest.fixture
def network() -> Predictor:
    return network_of(CONTEXT)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 16 channels and more: for narrower layers the kernel depends on the input size."""
    return weights_of(tmp_path_factory.mktemp("wide"), UNetSpec(width=16))
