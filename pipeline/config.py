"""The configuration: one YAML file, validated once into frozen models.

The one decision made here: defaults live in these models and nowhere else; an unknown key is refused with the
nearest known one named, and nothing is ever corrected silently.
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

MOST_SLIDES_ASKED = 64
"""As many slides as may be asked to be open at once: each takes a thread, a lock and its tables in memory."""

CELL_PX = 512
"""Side of an inner zarr chunk and of the cells in which tissue is decided."""

SLIDE_PATTERNS = (
    *("*.svs", "*.tif", "*.tiff", "*.ndpi", "*.btf", "*.mrxs", "*.dcm", "*.scn", "*.bif", "*.vms", "*.vmu"),
    *("*.svslide", "*.zarr", "*.png", "*.jpg", "*.jpeg", "*.czi", "*.vsi", "*.isyntax", "*.i2syntax", "*.lif", "*.nd2"),
)
"""Those of the second line from ``*.czi`` on cannot be read: they are found so that they fail by name."""

Configuration = TypeVar("Configuration", bound=BaseModel)
Length = Annotated[int, Field(gt=0)]
Radius = Annotated[float, Field(ge=0, le=50)]


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys refused, nothing coerced ("2048" is no number)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which network; of several weights the probabilities are averaged.

    ``tta``, test-time augmentation: ``d4`` averages over the eight flips and quarter turns of each tile.
    """

    weights: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "nuclei"
    tta: Literal["none", "d4"] = "none"

    @property
    def names(self) -> tuple[str, ...]:
        """The weights, be it one."""
        return (self.weights,) if isinstance(self.weights, str) else self.weights


class InputSection(Section):
    """Which slides and which parts of them, at which resolution.

    ``mpp`` overrides what slides say (micrometres per pixel); ``cases`` is a CSV that names and orders the slides, and
    replaces model and resolution for one of them; ``regions`` is a folder of ``<key>.geojson``, or one such file.
    ``channels``: numbers, counted from 1, or names of the channels to use, in the model's order; null for all.
    ``order``: which slides come first; ``settle_s``: so long must a slide's files have been left alone.
    ``on_bad_tile``: what a tile that cannot be decoded does to its slide: it fails, or goes on without the tile.
    ``patience_s``: so long may opening a slide, or reading the pixels of a block, take.
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
    """Where there is anything to compute: ``method`` is ``otsu``, a mask file, or a folder of ``<key>.png``.

    ``exclude_qc``: cells found blurred or under ink are no tissue.
    """

    method: str = "otsu"
    min_area_um2: Annotated[float, Field(ge=0)] = 4000.0
    fill_holes_um2: Annotated[float, Field(ge=0)] = 40000.0
    exclude_qc: bool = False


class TilesSection(Section):
    """Side of one network call's core (``tile``) and of one shard (``block``), in pixels."""

    tile: Length | Literal["auto"] = "auto"
    block: Annotated[int, Field(ge=CELL_PX, multiple_of=CELL_PX, le=16384)] = 2048


class ComputeSection(Section):
    """Where and how precisely the network runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"


class ObjectsSection(Section):
    """What is one object. Null means the model's own; several classes use the largest probability, no threshold.

    ``open_um`` and ``close_um`` are radii of discs, one for all classes or one for each class named. With ``split``,
    objects up to ``split_max_um`` long are parted where they narrow by ``split_depth_um`` on either side.
    """

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


class OutputsSection(Section):
    """What is written, and which full-resolution arrays a complete slide keeps; their coarser levels always stay.

    With ``redact`` slides go by ids, and that file alone tells their names. ``group_writable``: the group of the output
    folder may change what is in it.
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
    """Who computes: dask workers on this machine, those of a scheduler at ``address``, jobs, or this process alone.

    With ``slurm`` the scheduler is the run's own, listens at ``address``, and its workers are jobs, submitted with the
    options in ``sbatch``. ``tls`` is a folder with ca.pem, cert.pem and key.pem; ``slides_at_once`` are open at a time.
    """

    kind: Literal["local", "serial", "address", "slurm"] = "local"
    workers: Length | Literal["auto"] = "auto"
    slides_at_once: Annotated[int, Field(gt=0, le=MOST_SLIDES_ASKED)] | Literal["auto"] = "auto"
    address: str | None = None
    tls: str | None = None
    sbatch: Annotated[tuple[Annotated[str, Field(pattern=r"^-[^\n]+$")], ...], Field(strict=False)] = ()

    @property
    def is_elsewhere(self) -> bool:
        """Whether workers may run on other machines, or be started in other folders."""
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
                f"address {self.address} leaves this machine without TLS: whoever reaches a dask scheduler can run "
                "anything as you. Start it with --protocol tls, say tls:// and name the certificates' folder in tls"
            )
        if (scheme == "tls") != (self.tls is not None):
            raise ValueError("expected an address that begins with tls:// together with tls: FOLDER, or neither")
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine is reached at that host."""
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
    """Everything a run can be told. A section set to null is switched off."""

    model: ModelSection = ModelSection()
    input: InputSection = InputSection()
    tissue: TissueSection | None = TissueSection()
    tiles: TilesSection = TilesSection()
    compute: ComputeSection = ComputeSection()
    objects: ObjectsSection | None = ObjectsSection()
    outputs: OutputsSection = OutputsSection()
    cluster: ClusterSection = ClusterSection()


class _StrictLoader(yaml.SafeLoader):
    """YAML without its traps: a key given twice and aliases (which can expand without bound) are refused."""

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
    """The configuration of `segment` in ``path`` (None: all defaults) with ``section.key=value`` overrides applied."""
    return load_as(RunConfig, path, overrides)


def load_as(kind: type[Configuration], path: Path | None, overrides: Sequence[str] = ()) -> Configuration:
    """A configuration of any kind whose fields are sections and have defaults.

    Raises ConfigError for a missing file, bad YAML, an unknown key (naming the nearest known one) or a bad value.
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
    """The keys in a YAML (or JSON) file, None: none, with ``key=value`` or ``section.key=value`` applied; unchecked.

    Raises ConfigError for a missing file and for what is not plain YAML.
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
        place = [str(part) for part in fault["loc"] if part in everything or fault["type"] == "extra_forbidden"]
        where = ".".join(place) or "the file"
        if fault["type"] == "extra_forbidden":
            known = sections.get(place[0], list(sections)) if len(place) > 1 else list(sections)
            near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            yield f"unknown key {where!r}: {hint}"
        else:
            yield f"{where}: {fault['msg'].removeprefix('Value error, ')}, found {fault['input']!r}"


def _sections(kind: type[BaseModel]) -> dict[str, list[str]]:
    """The keys of each section."""
    defaults = kind()
    return {name: list(type(getattr(defaults, name)).model_fields) for name in kind.model_fields}
