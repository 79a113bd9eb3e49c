"""The configuration: one YAML file, validated once into frozen models.

Defaults are defined in these models only. An unknown key is an error that names the nearest known key, and no value is
corrected silently.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError

MAX_OPEN_SLIDES = 64
"""Largest number of slides that may be open at once: each takes a thread, a lock and its tables in memory."""

CELL_PX = 512
"""Side of an inner zarr chunk and of the cells in which tissue is decided."""

SLIDE_PATTERNS = (
    *("*.svs", "*.tif", "*.tiff", "*.ndpi", "*.btf", "*.mrxs", "*.dcm", "*.scn", "*.bif", "*.vms", "*.vmu"),
    *("*.svslide", "*.zarr", "*.png", "*.jpg", "*.jpeg", "*.czi", "*.vsi", "*.isyntax", "*.i2syntax", "*.lif", "*.nd2"),
)
"""Formats of the second line from ``*.czi`` on cannot be read: they are found so that their error names the format."""

Configuration = TypeVar("Configuration", bound=BaseModel)
Length = Annotated[int, Field(gt=0)]
Radius = Annotated[float, Field(ge=0, le=50)]


class Section(BaseModel):
    """A section of the configuration: frozen, no unknown keys, no coercion ("2048" is not a number)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """The network.

    Attributes:
        weights: Name or file of a network; the probabilities of several are averaged.
        tta: Test-time augmentation; ``d4`` averages over the eight flips and quarter turns of each tile.
    """

    weights: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "nuclei"
    tta: Literal["none", "d4"] = "none"

    @property
    def names(self) -> tuple[str, ...]:
        """The weights as a tuple, also of a single network."""
        return (self.weights,) if isinstance(self.weights, str) else self.weights


class InputSection(Section):
    """Slides to process, regions in them, and their resolution.

    Attributes:
        pattern: Names of slide files.
        mpp: Micrometres per pixel; overrides what slides state.
        cases: CSV that selects and orders slides, and may set model and resolution of a slide.
        regions: Folder of ``<key>.geojson``, or one such file.
        channels: Numbers, counted from 1, or names of the channels to use, in the model's order; null for all.
        order: Which slides come first.
        settle_s: Time for which a slide's files must have been unchanged.
        on_bad_tile: Whether a tile that cannot be decoded fails its slide, or is masked.
        patience_s: Time limit for opening a slide and for reading the pixels of a block.
    """

    pattern: Annotated[tuple[str, ...], Field(strict=False)] = SLIDE_PATTERNS  # not strict: YAML has lists only
    mpp: Annotated[float, Field(ge=0.05, le=10)] | Literal["native"] | None = None
    cases: str | None = None
    regions: str | None = None
    channels: Annotated[tuple[Annotated[int, Field(ge=1)] | str, ...], Field(strict=False, min_length=1)] | None = None
    order: Literal["name", "newest", "priority"] | None = None
    settle_s: Annotated[float, Field(ge=0, le=86400)] = 0.0
    on_bad_tile: Literal["fail", "mask"] = "fail"
    patience_s: Annotated[float, Field(gt=0, le=86400)] = 600.0


class TissueSection(Section):
    """Tissue detection.

    Attributes:
        method: ``otsu``, a mask file, or a folder of ``<key>.png``.
        min_area_um2: Smaller pieces of tissue are dropped.
        fill_holes_um2: Smaller holes in tissue are filled.
        exclude_qc: Whether cells found blurred or under ink count as no tissue.
    """

    method: str = "otsu"
    min_area_um2: Annotated[float, Field(ge=0)] = 4000.0
    fill_holes_um2: Annotated[float, Field(ge=0)] = 40000.0
    exclude_qc: bool = False


class TilesSection(Section):
    """Sides, in pixels, of the core of one network call (``tile``) and of one shard (``block``)."""

    tile: Length | Literal["auto"] = "auto"
    block: Annotated[int, Field(ge=CELL_PX, multiple_of=CELL_PX, le=16384)] = 2048


class ComputeSection(Section):
    """Device and precision of the network."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class ObjectsSection(Section):
    """What is one object. Null selects the model's own value.

    Attributes:
        method: Connected components, or components that are split between the seeds of a map of the network; ``auto``
            is the model's own method.
        threshold: Of a single class; several classes use the largest probability.
        connectivity: Neighbours of a pixel.
        min_area_um2: Smaller objects are dropped.
        max_area_um2: Larger objects are dropped.
        open_um: Radius of the disc that opens the mask, for all classes or by class name.
        close_um: Radius of the disc that closes the mask, for all classes or by class name.
        fill_holes_um2: Holes up to this area are filled.
        split: Whether touching objects are split by watershed.
        split_depth_um: Objects are split where they narrow by this much on either side.
        split_max_um: Longer objects are not split.
        seed_depth: With seeds or boundary, the depth of the dent in the map between two objects, in 0..1.
    """

    method: Literal["auto", "components", "boundary", "seeds"] = "auto"
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    connectivity: Literal[4, 8] = 8
    min_area_um2: Annotated[float, Field(ge=0)] | None = None
    max_area_um2: Annotated[float, Field(gt=0)] | None = None
    open_um: Radius | dict[str, Radius] = 0.0
    close_um: Radius | dict[str, Radius] = 0.0
    fill_holes_um2: Annotated[float, Field(ge=0)] = 0.0
    split: Literal["none", "watershed"] = "none"
    split_depth_um: Annotated[float, Field(gt=0)] = 0.75
    split_max_um: Annotated[float, Field(gt=0)] = 200.0
    seed_depth: Annotated[float, Field(gt=0, lt=1)] | None = None


class OutputsSection(Section):
    """Outputs, and which full-resolution arrays a complete slide keeps; their coarser levels are always kept.

    Attributes:
        image: Whether the full-resolution image is kept.
        probability: Whether the full-resolution probability is kept.
        scratch: Folder on a local disk in which slides are made before they are copied to the output folder.
        max_gb: Disk quota of the output folder.
        redact: File that maps pseudonyms to slides; slides are named by pseudonyms when it is set.
        group_writable: Whether the group of the output folder may change its content.
        geojson: Whether objects are exported as GeoJSON.
        overview: Whether an overview picture is drawn.
    """

    image: Literal["keep", "drop"] = "keep"
    probability: Literal["keep", "drop"] = "keep"
    scratch: str | None = None
    max_gb: Annotated[float, Field(gt=0)] | None = None
    redact: str | None = None
    group_writable: bool = False
    geojson: bool = True
    overview: bool = True


class ClusterSection(Section):
    """Workers.

    Attributes:
        kind: Dask workers on this machine, workers of the scheduler at ``address``, Slurm jobs, or this process alone.
            With ``slurm`` the run starts its own scheduler, which listens at ``address``.
        workers: Number of workers; ``auto`` is one for each core.
        slides_at_once: Number of open slides.
        address: Address of the scheduler.
        tls: Folder with ca.pem, cert.pem and key.pem.
        sbatch: Options of the jobs' submission.
    """

    kind: Literal["local", "serial", "address", "slurm"] = "local"
    workers: Length | Literal["auto"] = "auto"
    slides_at_once: Annotated[int, Field(gt=0, le=MAX_OPEN_SLIDES)] | Literal["auto"] = "auto"
    address: str | None = None
    tls: str | None = None
    sbatch: Annotated[tuple[Annotated[str, Field(pattern=r"^-[^\n]+$")], ...], Field(strict=False)] = ()

    @property
    def is_elsewhere(self) -> bool:
        """Whether workers may run on other machines or in other working directories."""
        return self.kind in ("address", "slurm")

    @model_validator(mode="after")
    def _is_reachable_in_safety(self) -> ClusterSection:
        if self.is_elsewhere != (self.address is not None):
            raise ValueError("expected an address such as tls://head:8786 with kind: address or slurm, and only there")
        if self.kind == "slurm" and self.workers == "auto":
            raise ValueError("kind: slurm needs workers: how many jobs to submit, of one worker each")
        if self.kind != "slurm" and self.sbatch:
            raise ValueError("sbatch is for kind: slurm")
        scheme, host = _scheme_and_host(self.address)
        if scheme == "tcp" and not is_loopback(host):
            raise ValueError(
                f"address {self.address} leaves this machine without TLS: anyone who reaches a dask scheduler can run "
                "anything as you. Start it with --protocol tls, say tls:// and name the certificates' folder in tls"
            )
        if (scheme == "tls") != (self.tls is not None):
            raise ValueError("expected an address that begins with tls:// together with tls: FOLDER, or neither")
        return self


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _scheme_and_host(address: str | None) -> tuple[str, str]:
    if address is None:
        return "", ""
    split = urlsplit(address)
    if split.scheme not in ("tls", "tcp") or not split.hostname or split.port is None:
        raise ValueError(f"address {address}: expected tls://HOST:PORT, or tcp://127.0.0.1:PORT on this machine")
    return split.scheme, split.hostname


class RunConfig(Section):
    """All settings of a run. A section set to null is switched off."""

    model: ModelSection = ModelSection()
    input: InputSection = InputSection()
    tissue: TissueSection | None = TissueSection()
    tiles: TilesSection = TilesSection()
    compute: ComputeSection = ComputeSection()
    objects: ObjectsSection | None = ObjectsSection()
    outputs: OutputsSection = OutputsSection()
    cluster: ClusterSection = ClusterSection()


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys and without aliases, which can expand without bound."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed here")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002  the library's signature
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the configuration of `segment` from ``path`` (None: defaults) and apply ``section.key=value`` overrides."""
    return load_as(RunConfig, path, overrides)


def load_as(kind: type[Configuration], path: Path | None, overrides: Sequence[str] = ()) -> Configuration:
    """Read a configuration whose fields are sections with defaults.

    Args:
        kind: The model of the configuration.
        path: A YAML file; None for all defaults.
        overrides: ``section.key=value`` each.

    Raises:
        ConfigError: Missing file, bad YAML, unknown key (names the nearest known key) or bad value.
    """
    return validated(kind, read_settings(path, overrides), str(path or "configuration"))


def validated(kind: type[Configuration], content: Mapping[str, Any], source: str) -> Configuration:
    """Validate sections and their keys.

    Raises:
        ConfigError: For an unknown key, naming the nearest known one, and for a bad value; it begins with ``source``.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(error, _sections(kind)))) from error


def read_settings(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the unchecked keys of a YAML or JSON file and apply ``key=value`` or ``section.key=value`` overrides.

    Raises:
        ConfigError: The file is missing or is not plain YAML.
    """
    content = _read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply(content, override)
    return content


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506  a SafeLoader subclass
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not plain YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections such as 'tiles:', found {type(content).__name__}")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, _, name = key.strip().partition(".")
    if not equals or not section:
        raise ConfigError(f"--set {override!r}: expected section.key=value, for example tiles.block=1024")
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  a SafeLoader subclass
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value") from error
    if not name:
        content[section] = value
        return
    values = {} if content.get(section) is None else content[section]
    if not isinstance(values, dict):
        raise ConfigError(f"{section}: expected keys such as {key.strip()!r}, found {values!r}")
    content[section] = {**values, name: value}


def _explain(error: ValidationError, sections: Mapping[str, Sequence[str]]) -> Iterable[str]:
    everything = set(sections) | {key for keys in sections.values() for key in keys}
    for fault in error.errors():
        key_path = [str(part) for part in fault["loc"] if part in everything or fault["type"] == "extra_forbidden"]
        where = ".".join(key_path) or "the file"
        if fault["type"] == "extra_forbidden":
            known = sections.get(key_path[0], list(sections)) if len(key_path) > 1 else list(sections)
            near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            yield f"unknown key {where!r}: {hint}"
        else:
            yield f"{where}: {fault['msg'].removeprefix('Value error, ')}, found {fault['input']!r}"


def _sections(kind: type[BaseModel]) -> dict[str, list[str]]:
    """The keys of each section."""
    defaults = kind()
    return {name: list(type(getattr(defaults, name)).model_fields) for name in kind.model_fields}
