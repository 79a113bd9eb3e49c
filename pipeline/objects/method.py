"""Which method turns outputs of a network into objects: the user's choice, else the model's own.

A model without object settings uses connected components. So does ``auto`` where objects are split by their distance.
"""

from __future__ import annotations

from pipeline.config import ObjectsSection
from pipeline.errors import ConfigError
from unet_core.spec import SEED_MAPS, MapName, ObjectSettings, UNetSpec


def area_um2(stated: float, spec: UNetSpec, mpp: float) -> float:
    """A limit of area that a model states, in um2 on a slide: without a resolution, a model states it in pixels."""
    return stated if spec.mpp else stated * mpp**2


def resolve(section: ObjectsSection, spec: UNetSpec, mpp: float = 1.0) -> ObjectSettings:
    """Settings of the objects of a run.

    Args:
        section: Section ``objects`` of the configuration.
        spec: Spec of the network or ensemble.
        mpp: Resolution of the image, in um per pixel.

    Raises:
        ConfigError: The network lacks the map, or splitting by distance is asked for together with a map.
    """
    own = spec.objects or ObjectSettings()
    largest = own.max_area_um2 and area_um2(own.max_area_um2, spec, mpp)
    method = section.method
    if method == "auto":
        method = own.method if section.split == "none" else "components"
    values: dict[str, object] = {
        "method": method,
        "depth": section.seed_depth or own.depth,
        "max_area_um2": section.max_area_um2 or largest,
    }
    if method != "components" and section.split != "none":
        raise ConfigError(
            f"objects.split={section.split}: expected none with objects.method={method}, which splits objects too. Use "
            "objects.split=none, or objects.method=components"
        )
    if method == "boundary" and "boundary" not in spec.maps:
        raise _lacks(method, "boundary", spec)
    if method == "seeds":
        values["source"] = _source(spec)
    return own.model_copy(update=values)


def _source(spec: UNetSpec) -> MapName:
    """The map of the seeds: the one that the model states, if it has it, else the first that it has."""
    stated: tuple[MapName, ...] = () if spec.objects is None else (spec.objects.source,)
    for name in (*stated, *SEED_MAPS):
        if name in spec.maps:
            return name
    raise _lacks("seeds", " or ".join(SEED_MAPS), spec)


def _lacks(method: str, maps: str, spec: UNetSpec) -> ConfigError:
    return ConfigError(
        f"objects.method={method}: expected a model with a map of {maps}, found {', '.join(spec.maps) or 'no maps'}. "
        "Use objects.method=components, or another model"
    )
