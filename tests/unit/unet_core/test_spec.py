"""UNetSpec: accepted, rejected and derived values."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from unet_core.spec import UNetSpec, preset


def test_defaults_fit_the_channels_and_classes() -> None:
    spec = UNetSpec(in_channels=2, classes=4)
    assert (spec.mean, spec.std) == ((0.5, 0.5), (0.25, 0.25))
    assert spec.class_names == ("class 1", "class 2", "class 3")
    assert spec.foreground == 3


@pytest.mark.parametrize(("head", "channels"), [("softmax", 3), ("sigmoid", 2)])
def test_only_a_softmax_head_has_a_background_channel(head: str, channels: int) -> None:
    assert UNetSpec.model_validate({"classes": 3, "head": head}).out_channels == channels


def test_is_frozen_and_survives_json() -> None:
    spec = preset("tiny", mpp=0.25, colours=((1, 2, 3),), threshold=0.4)
    assert UNetSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError, match="frozen"):
        spec.depth = 3  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    "wrong",
    [
        {"depht": 4},
        {"depth": 0},
        {"depth": 7},
        {"classes": 1},
        {"padding": "reflect"},
        {"norm": "instance"},
        {"mean": (0.5,)},
        {"std": (0.1, 0.0, 0.1)},
        {"mean": (float("nan"), 0.0, 0.0)},
        {"mpp": 0.0},
        {"threshold": 1.0},
        {"class_names": ("a", "b")},
        {"classes": 3, "class_names": ("a", "a")},
        {"colours": ((0, 0, 256),)},
        {"colours": ((0, 0, 0), (1, 1, 1))},
        {"width": 10**9},
        {"in_channels": 0},
        {"architecture": "transformer"},
        {"stain_normalisation": "vahadane"},
        {"stain_normalisation": "macenko"},
        {"stain_normalisation": "macenko", "stain_target": ((1, 1, 1), (2, 2, 2))},
        {"stain_normalisation": "reinhard", "stain_target": ((1, 1, 1), (0, 1, 1))},
        {"stain_normalisation": "reinhard", "stain_target": ((1, 1, 1), (1, 1, 1)), "in_channels": 1},
        {"stain_normalisation": "reinhard", "stain_target": ((1, 1), (1, 1))},
        {"stain_target": ((1, 1, 1), (1, 1, 1))},
        {"architecture": "unet++"},
        {"architecture": "attention", "norm": "batch", "padding": "same", "skip": "none"},
        {"architecture": "attention", "norm": "batch", "padding": "same", "width": 1},
    ],
)
def test_invalid_fields_are_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        UNetSpec.model_validate(wrong)


def test_lengths_are_named_on_both_sides() -> None:
    with pytest.raises(ValidationError, match=r"mean: expected 3 entries \(in_channels\), found 1"):
        UNetSpec(mean=(0.5,))


@pytest.mark.parametrize(
    ("name", "channels", "padding"),
    [
        ("paper", (64, 128, 256, 512, 1024), "valid"),
        ("padded", (64, 128, 256, 512, 1024), "same"),
        ("small", (32, 64, 128, 256, 512), "valid"),
        ("tiny", (16, 32, 64, 128, 256), "valid"),
        ("compact", (16, 32, 64, 128), "valid"),
        ("lesson", (16, 32, 64, 128), "same"),
        ("unet++", (16, 32, 64, 128, 256), "same"),
        ("attention", (16, 32, 64, 128, 256), "same"),
    ],
)
def test_presets(name: str, channels: tuple[int, ...], padding: str) -> None:
    spec = preset(name)
    assert spec.channels == channels
    assert spec.padding == padding


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'huge': expected one of paper, padded, small, tiny, compact, lesson"):
        preset("huge")


def test_unsupported_fields_of_an_architecture_are_named_all_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        preset("unet++", depth=3, up="bilinear")
    assert "'unet++' has no other: expected depth=4, found 3; up='transposed', found 'bilinear'" in str(caught.value)


def test_a_u_net_is_stored_without_fields_of_later_versions() -> None:
    assert "architecture" not in preset("tiny").model_dump(mode="json")
    assert "architecture" not in preset("tiny").model_dump_json()
    assert preset("attention").model_dump(mode="json")["architecture"] == "attention"
    assert UNetSpec.model_validate_json(preset("unet++").model_dump_json()) == preset("unet++")


def test_intensities_are_mapped_once() -> None:
    target = ((1.1, 1.4, 0.8), (0.2, 0.8, 0.5))
    for fields in ({"equalise": True}, {"stain_normalisation": "macenko", "stain_target": target}):
        with pytest.raises(ValidationError, match="rescale: expected neither equalise nor stain_normalisation"):
            UNetSpec.model_validate(fields | {"rescale": True})


def test_normalisation_is_stored_only_if_it_is_set() -> None:
    target = ((1.1, 1.4, 0.8), (0.2, 0.8, 0.5))
    for fields in (
        {},
        {"stain_normalisation": "macenko", "stain_target": target},
        {"equalise": True},
        {"rescale": True},
    ):
        spec = UNetSpec.model_validate(fields)
        assert UNetSpec.model_validate_json(spec.model_dump_json()) == spec
        assert {"stain_normalisation", "stain_target", "equalise", "rescale"} & set(spec.model_dump()) == set(fields)
        assert (spec.normalisation is None) == (fields == {})
