"""The plan of one slide: everything that decides its pixels, resolved once and hashed as a chain.

A stage's hash covers its own settings, its code version and the hashes of the stages it reads from, and nothing else.
So a changed threshold redoes labels and later stages without a network call, and settings that cannot change pixels
(tile side, workers, progress) change no hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import ObjectsSection, RunConfig
from pipeline.errors import ConfigError, SlideError
from pipeline.image_info import ClassInfo, ImageInfo
from pipeline.inference.ensemble import Ensemble
from pipeline.inputs.discovery import Candidate
from pipeline.inputs.regions import Regions, find_regions
from pipeline.inputs.tissue_mask_file import MaskFile, find_mask
from pipeline.objects.method import area_um2, resolve
from pipeline.redaction import Pseudonym
from pipeline.rendering.contrast import class_colours
from pipeline.slides.channels import channel_numbers, select_channels
from pipeline.slides.opening import open_slide
from pipeline.slides.read_timeout import with_timeout
from pipeline.slides.resample import Resolution, resolution
from pipeline.stage_table import MAPS, STAGE
from pipeline.storage.atomic_files import digest
from unet_core.class_map import THRESHOLD
from unet_core.normalisation import FIT_VERSION
from unet_core.spec import ObjectSettings

OTSU = "otsu"


@dataclass(frozen=True, slots=True)
class Compute:
    """``auto`` resolved: device kind, precision and tile side."""

    device: str
    precision: str
    tile_px: int


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """What one slide's run will do.

    Attributes:
        key: Key of the slide, which is its folder below OUT.
        slide: The slide's file.
        facts: Facts about the file.
        channel_names: Names of the image's channels.
        channel_numbers: Channels of the slide that are read, counted from 1; None for all.
        dtype: Sample type of the image.
        resolution: The level that is read, and how it is resampled.
        model: The networks.
        compute: Device, precision and tile side.
        config: The configuration of this slide.
        hashes: Plan hash of each stage that will run, in order.
        case: The slide's row of the cases table, for the results only; None without such a table.
        regions: Regions to process; None for the whole image.
        mask: The slide's own tissue mask, if tissue is read from masks.
        warnings: Remarks about the slide for the user.
        alias: Pseudonym of the slide, if names are redacted.
    """

    key: str
    slide: Path
    facts: Mapping[str, Any]
    channel_names: tuple[str, ...]
    channel_numbers: tuple[int, ...] | None
    dtype: str
    resolution: Resolution
    model: Ensemble
    compute: Compute
    config: RunConfig
    hashes: Mapping[str, str]
    case: Mapping[str, str] | None = None
    regions: Regions | None = None
    mask: MaskFile | None = None
    warnings: tuple[str, ...] = ()
    alias: Pseudonym | None = None

    @property
    def display_name(self) -> str:
        """The slide's path, or its pseudonym where names are redacted."""
        return self.key if self.alias else str(self.slide)

    @property
    def shape_yx(self) -> tuple[int, int]:
        """(height, width) of the image at the model's resolution, in pixels."""
        return self.resolution.out_yx

    @property
    def block_px(self) -> int:
        """Side of a shard in pixels."""
        return self.config.tiles.block

    @property
    def blocks(self) -> int:
        """Number of blocks of the image."""
        rows, cols = (-(-length // self.block_px) for length in self.shape_yx)
        return rows * cols

    @property
    def channels(self) -> int:
        """Number of channels of the image."""
        return len(self.channel_names)

    @property
    def image(self) -> ImageInfo:
        """Scale and channels of the image."""
        return ImageInfo(self.resolution.mpp, self.resolution.level0_from_image_yx, self.channel_names)

    @property
    def classes(self) -> ClassInfo:
        """Names and colours of the model's foreground classes."""
        spec = self.model.spec
        return ClassInfo(spec.class_names, spec.colours or class_colours(spec.foreground))

    @property
    def artifacts_left_out(self) -> frozenset[str]:
        """Artifacts of the maps that the networks do not compute."""
        return frozenset(MAPS) - {f"maps/{name}" for name in self.model.spec.maps}

    @property
    def threshold(self) -> float:
        """The user's threshold, else the model's own, else one half."""
        requested = self.config.objects.threshold if self.config.objects else None
        return requested if requested is not None else self.model.spec.threshold or THRESHOLD

    @property
    def min_area_um2(self) -> float:
        """The user's smallest area of an object, else the model's own."""
        requested = self.config.objects.min_area_um2 if self.config.objects else None
        spec = self.model.spec
        return requested if requested is not None else area_um2(spec.min_area_um2, spec, self.resolution.mpp)

    @property
    def object_settings(self) -> ObjectSettings:
        """How outputs become objects: the user's settings, else the model's own. Raises ConfigError, see `resolve`."""
        return resolve(self.config.objects or ObjectsSection(), self.model.spec, self.resolution.mpp)

    @property
    def discs_um(self) -> tuple[tuple[float, float], ...]:
        """For each class the radii of the discs that open and close its mask; empty without objects."""
        if self.config.objects is None:
            return ()
        radii = {"open_um": self.config.objects.open_um, "close_um": self.config.objects.close_um}
        opens, closes = (_per_class(key, value, self.model.spec.class_names) for key, value in radii.items())
        return tuple(zip(opens, closes, strict=True))

    def summary(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "key": self.key,
            "slide": self.display_name,
            "case": self.case and dict(self.case),
            "facts": dict(self.facts),
            "image": {
                "channels": list(self.channel_names),
                "shape_yx": list(self.shape_yx),
                "mpp": self.resolution.mpp,
                "slide_mpp": self.resolution.slide_mpp,
                "level": self.resolution.level,
                "level0_from_image_yx": list(self.resolution.level0_from_image_yx),
                "warnings": list(self.warnings),
            },
            "regions": None if self.regions is None else self.regions.summary(),
            "model": self.model.summary(),
            "compute": {
                "device": self.compute.device,
                "precision": self.compute.precision,
                "tile_px": self.compute.tile_px,
            },
            "threshold": self.threshold,
            "min_area_um2": self.min_area_um2,
            "config": self._redacted_config(),
            "hashes": dict(self.hashes),
        }

    def _redacted_config(self) -> dict[str, Any]:
        """The configuration, with redacted names of files that may be called after the slide."""
        config = self.config.model_dump(mode="json")
        for section, name in (("input", "regions"), ("tissue", "method")):
            if self.alias and config[section] and config[section][name]:
                config[section][name] = self.alias.redact(config[section][name])
        return config


def resolve_tile(config: RunConfig, model: Ensemble, device: str) -> int:
    """Side of the core of one network call, in pixels.

    Raises:
        ConfigError: ``tiles.tile`` is not on the network's step grid. Names the nearest legal sizes.
    """
    block, step = config.tiles.block, model.shape.step
    if config.tiles.tile == "auto":
        return min(2048 if device == "cuda" else 1024, block) // step * step
    tile = config.tiles.tile
    if tile % step or tile > block:
        below, above = max(step, tile // step * step), min(-(-tile // step) * step, block // step * step)
        raise ConfigError(
            f"tiles.tile={tile}: expected a multiple of the network's step {step}, at most the block of {block}: cores "
            f"that start elsewhere change the pixels. Nearest: {min(below, above)} or {above}"
        )
    return tile


def plan_slide(candidate: Candidate, model: Ensemble, compute: Compute, config: RunConfig) -> SlidePlan:
    """Open the slide, choose its level and hash every stage.

    Raises:
        SlideError: The slide cannot be read (in time), lacks its resolution, or has the wrong number of channels.
        ConfigError: The configuration does not fit the model or the slide.
    """
    if candidate.refused is not None:
        raise candidate.refused
    return with_timeout(partial(_plan, candidate, model, compute, config), candidate.path, config.input.patience_s)


def _plan(candidate: Candidate, model: Ensemble, compute: Compute, config: RunConfig) -> SlidePlan:
    slide = open_slide(candidate.path)
    numbers = channel_numbers(slide, config.input.channels)
    reader = select_channels(slide, numbers)
    if reader.channels != model.spec.in_channels and not (reader.channels == 1 and model.spec.in_channels == 3):
        raise SlideError(
            f"{candidate.path}: expected {model.spec.in_channels} channels for model {model.name}, found "
            f"{reader.channels} ({', '.join(reader.channel_names)}). Choose a model trained on such slides with "
            "--model, or channels with --set 'input.channels=[1]'"
        )
    resolved = resolution(reader, config.input.mpp, model.spec.mpp)
    regions, remarks = _regions(candidate, config, reader.levels[0].shape_yx)
    source = {
        "fingerprint": reader.fingerprint(),
        "channels": reader.channels if numbers is None else list(numbers),
        "dtype": str(reader.dtype),
        "level": resolved.level,
        "resampling": resolved.resampling.hashed_text,
        "block": config.tiles.block,
        **({"on_bad_tile": "mask"} if config.input.on_bad_tile == "mask" else {}),
    }
    plan = SlidePlan(
        key=candidate.key,
        slide=candidate.path,
        facts=reader.describe(),
        channel_names=reader.channel_names,
        channel_numbers=numbers,
        dtype=str(reader.dtype),
        resolution=resolved,
        model=model,
        compute=compute,
        config=config,
        case=candidate.case,
        hashes={},
        regions=regions,
        mask=_mask(candidate, config),
        warnings=tuple(map(candidate.redact, (*resolved.warnings, *reader.warnings, *remarks))),
        alias=candidate.alias,
    )
    return replace(plan, hashes=_hashes(source, plan))


def _regions(
    candidate: Candidate, config: RunConfig, shape_yx: tuple[int, int]
) -> tuple[Regions | None, tuple[str, ...]]:
    """The slide's regions, if regions are configured, and remarks on those that reach beyond the slide."""
    if config.input.regions is None:
        return None, ()
    regions = Regions.read(find_regions(Path(config.input.regions), candidate.name))
    return regions, regions.check_inside(candidate.path, shape_yx)


def _mask(candidate: Candidate, config: RunConfig) -> MaskFile | None:
    """The slide's own tissue mask, if tissue is read from masks."""
    if config.tissue is None or config.tissue.method == OTSU:
        return None
    return find_mask(Path(config.tissue.method), candidate.name)


def _hashes(source: Mapping[str, Any], plan: SlidePlan) -> dict[str, str]:
    config, model, compute, mpp = plan.config, plan.model, plan.compute, plan.resolution.mpp
    chain = _Chain({})
    drawn = [] if plan.regions is None else [plan.regions.digest()]
    named = [] if plan.regions is None else [plan.regions.names, plan.regions.classes]
    names = [
        list(model.spec.class_names),
        [list(colour) for colour in model.spec.colours or ()],
        list(plan.channel_names),
    ]
    chain.add("ingest", [source])
    tissue = _dump(config.tissue) | ({} if plan.mask is None else {"method": plan.mask.sha256})
    stain = [model.spec.stain_mean, model.spec.stain_covariance]
    fits = [
        fit and [FIT_VERSION, fit.stain, fit.target, fit.equalise, *(["rescale"] if fit.rescale else [])]
        for fit in model.normalisations
    ]
    chain.add("tissue", [tissue, mpp, model.shape.halo, stain, *drawn, *fits])
    chain.add("predict", [*model.pixels_depend_on, compute.device, compute.precision])
    if config.objects is not None:
        chain.add("label", [_resolved_objects(config.objects, plan), mpp])
        chain.add("measure", [names, mpp, *named])
    chain.add("pyramid", [names, mpp])
    if config.objects is not None and config.outputs.geojson:
        chain.add("export", [names])
    if config.outputs.overview:
        chain.add("overlay", [names, mpp])
    return chain.hashes


def _resolved_objects(section: ObjectsSection, plan: SlidePlan) -> dict[str, Any]:
    """Everything that decides labels, resolved. Keys of seeds are left out without them, as in earlier plans."""
    how = plan.object_settings
    resolved = _dump(section) | {"threshold": plan.threshold, "min_area_um2": plan.min_area_um2}
    resolved |= {"open_um": None, "close_um": None, "discs_um": plan.discs_um, "max_area_um2": how.max_area_um2}
    del resolved["method"], resolved["seed_depth"]
    if how.map_name is not None:
        return resolved | {"split_depth_um": None, "seeds": [how.map_name, how.depth]}
    if section.split == "none":
        resolved |= {"split_depth_um": None, "split_max_um": None}
    return resolved


def _per_class(key: str, radius: float | Mapping[str, float], class_names: Sequence[str]) -> list[float]:
    if not isinstance(radius, Mapping):
        return [radius] * len(class_names)
    if unknown := set(radius) - set(class_names):
        raise ConfigError(
            f"objects.{key}: expected classes of the model ({', '.join(class_names)}), found {', '.join(unknown)}"
        )
    return [radius.get(name, 0.0) for name in class_names]


def _dump(section: Any) -> dict[str, Any]:
    return {} if section is None else dict(section.model_dump(mode="json"))


@dataclass(frozen=True, slots=True)
class _Chain:
    hashes: dict[str, str]

    def add(self, stage: str, own: list[Any]) -> None:
        upstream = [self.hashes[name] for name in STAGE[stage].upstream if name in self.hashes]
        self.hashes[stage] = digest([stage, STAGE[stage].version, own, upstream])
