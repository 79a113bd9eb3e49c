"""Which method turns outputs of a network into objects: the user's choice, else the model's own.

A model without object settings uses connected components. So does ``auto`` where objects are split by their distance.
"""

from __future__ import annotations

from pipeline.config import ObjectsSection
from pipeline.errors import ConfigError
from unet_core.spec import SEED_MAPS, MapName, ObjectSettings, UNetSpec


def resolve(section: ObjectsSection, spec: UNetSpec) -> ObjectSettings:
    """Settings of the objects of a run.

    Args:
        section: Section ``objects`` of the configuration.
        spec: Spec of the network or ensemble.

    Raises:
        ConfigError: The network lacks the map, or splitting by distance is asked for together with seeds.
    """
    own = spec.objects or ObjectSettings()
    method = section.method
    if method == "auto":
        method = own.method if section.split == "none" else "components"
    values: dict[str, object] = {
        "method": method,
        "depth": section.seed_depth or own.depth,
        "max_area_um2": section.max_area_um2 or own.max_area_um2,
    }
    if method == "boundary":
        raise ConfigError(
            f"objects.method={section.method}: expected components or seeds, found boundary{_whose(section)}, which is "
            "not available. Use objects.method=components, or seeds where the model has a map for them"
        )
    if method == "seeds":
        values["source"] = _source(section, spec)
    return own.model_copy(update=values)


def _source(section: ObjectsSection, spec: UNetSpec) -> MapName:
    """The map of the seeds: the one that the model states, if it has it, else the first that it has."""
    if section.split != "none":
        raise ConfigError(
            f"objects.split={section.split}: expected none with objects.method=seeds, which splits objects too. Use "
            "objects.split=none, or objects.method=components"
        )
    stated: tuple[MapName, ...] = () if spec.objects is None else (spec.objects.source,)
    for name in (*stated, *SEED_MAPS):
        if name in spec.maps:
            return name
    raise ConfigError(
        f"objects.method=seeds: expected a model with a map of {' or '.join(SEED_MAPS)}, found "
        f"{', '.join(spec.maps) or 'no maps'}. Use objects.method=components, or another model"
    )


def _whose(section: ObjectsSection) -> str:
    return " (the model's own method)" if section.method == "auto" else ""
