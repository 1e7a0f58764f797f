"""The models that methods need beside the backbone: found, checked against it, loaded when first used, and kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from safetensors import SafetensorError, safe_open

from boothlab.diffusion.backbone import DOLLHOUSE, Backbone, first_line
from boothlab.diffusion.lora import find_adapter, load_adapter, shed_adapters
from boothlab.editing.compatibility import check_adapter, check_controlnet, check_unet
from boothlab.editing.conditions import DepthEstimator, load_depth_estimator
from boothlab.editing.mirror import Mirror
from boothlab.errors import UserError
from boothlab.files import PICKLED, check_shards, sha256_file, shown
from boothlab.quiet import quiet_libraries

T = TypeVar("T")
SINGLE = ("instruct_pix2pix", "inpaint", "depth_estimator")
FAMILIES = ("controlnet", "t2i_adapter")
"""Sources are named `controlnet_canny`, `t2i_adapter_depth` and so on, one for each kind of condition map."""


@dataclass(frozen=True)
class Source:
    """Where a model is: a local folder, or a hub id with its revision and the folder inside it."""

    label: str
    location: str
    folder: Path | None
    revision: str | None

    @property
    def options(self) -> dict[str, Any]:
        """As `from_pretrained` wants it."""
        return {"pretrained_model_name_or_path": self.folder or self.location, "revision": self.revision}


class EditParts:
    """The backbone with the models that methods need beside it.

    `sources` names a local folder, a hub id or `dollhouse` for each model (see SINGLE and FAMILIES), None for none, and
    `revisions` a hub revision. Models are loaded when they are first asked for, in the backbone's precision and on its
    device; the depth estimator stays in float32. Pickled weights are refused.
    """

    def __init__(
        self, backbone: Backbone, sources: Mapping[str, str | None] | None = None,
        revisions: Mapping[str, str] | None = None,
    ):  # fmt: skip
        self.backbone = backbone
        self.sources = {name: source for name, source in (sources or {}).items() if source}
        self.revisions = dict(revisions or {})
        for name in self.sources:
            if name not in SINGLE and not name.startswith(tuple(f"{family}_" for family in FAMILIES)):
                raise ValueError(f"{name}: a model is one of {', '.join(SINGLE)}, or of a family {', '.join(FAMILIES)}")
        self._kept: dict[str, Any] = {}
        self._identities: dict[str, dict[str, str]] = {}
        self._mirror = Mirror(backbone)

    @property
    def vae_factor(self) -> int:
        """How many pixels a side one latent stands for."""
        return int(2 ** (len(self.backbone.vae.config.block_out_channels) - 1))

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the backbone's LoRA adapters did not fit a model that was loaded."""
        return self._mirror.notes

    def require(self, name: str, why: str) -> None:
        """Raise UserError when no source is named for a model."""
        if name not in self.sources:
            raise UserError(f"{why}: needs editors.{name}, which is not given; name a local folder or a hub id")

    def controlnet(self, kind: str) -> ControlNetModel:
        """The ControlNet for one kind of map."""
        return self._get(f"controlnet_{kind}", self._load_controlnet)

    def t2i_adapter(self, kind: str) -> T2IAdapter:
        """The T2I-Adapter for one kind of map."""
        return self._get(f"t2i_adapter_{kind}", self._load_t2i_adapter)

    def instruct_unet(self) -> UNet2DConditionModel:
        """InstructPix2Pix's UNet, wearing the LoRA adapters that the backbone's UNet wears now."""
        channels = 2 * self.backbone.vae.config.latent_channels
        unet = self._get("instruct_pix2pix", lambda source: self._load_unet(source, channels))
        self._mirror.update("instruct_pix2pix", unet)
        return unet

    def inpainting_unet(self) -> UNet2DConditionModel | None:
        """The inpainting UNet, wearing what the backbone's UNet wears now; None where none is named."""
        if "inpaint" not in self.sources:
            return None
        channels = 2 * self.backbone.vae.config.latent_channels + 1
        unet = self._get("inpaint", lambda source: self._load_unet(source, channels))
        self._mirror.update("inpaint", unet)
        return unet

    def depth_estimator(self) -> DepthEstimator:
        """What makes depth maps of pictures."""
        return self._get("depth_estimator", self._load_depth)

    def identity(self, name: str) -> dict[str, str]:
        """What a model is: the SHA-256 of each of its files, or the hub id and commit. Loads it if it is not yet."""
        if name not in self._identities:
            source = self._find(name)
            folder = source.folder
            if folder is None:
                model = self._kept.get(name) or self._load(name)
                self._identities[name] = {"hub": source.location, "revision": _commit(model, source)}
            else:
                files = sorted(path for path in _inner(folder).iterdir() if path.suffix in (".safetensors", ".json"))
                self._identities[name] = {path.name: sha256_file(path) for path in files}
        return dict(self._identities[name])

    def _load(self, name: str) -> Any:
        family = next((family for family in FAMILIES if name.startswith(f"{family}_")), None)
        if family is not None:
            return getattr(self, family)(name.removeprefix(f"{family}_"))
        named = {"instruct_pix2pix": self.instruct_unet, "inpaint": self.inpainting_unet}
        return named.get(name, self.depth_estimator)()

    def _get(self, name: str, load: Callable[[Source], T]) -> T:
        if name not in self._kept:
            source = self._find(name)
            try:
                with quiet_libraries():
                    self._kept[name] = load(source)
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"{source.label}: cannot be loaded ({first_line(error)}); give a folder with safetensors weights, "
                    "or a hub id that this machine can reach"
                ) from error
        found: T = self._kept[name]
        return found

    def _find(self, name: str) -> Source:
        self.require(name, name)
        source = self.sources[name]
        label = f"editors.{name}={shown(source)}"
        if source == "dollhouse":
            folder = DOLLHOUSE / name
            if not folder.is_dir():
                raise UserError(f"{label}: the dollhouse has no such model; name a local folder or a hub id")
            return Source(label, source, folder, None)
        if source.startswith((".", "/", "~")) or Path(source).exists():
            folder = Path(source).expanduser()
            check_folder(label, folder)
            return Source(label, source, folder, None)
        return Source(label, source, None, self.revisions.get(name))

    def _load_controlnet(self, source: Source) -> ControlNetModel:
        net = self._from_pretrained(ControlNetModel, source)
        check_controlnet(source.label, net, self.backbone, self.vae_factor)
        return net

    def _load_t2i_adapter(self, source: Source) -> T2IAdapter:
        adapter = self._from_pretrained(T2IAdapter, source)
        check_adapter(source.label, adapter, self.backbone)
        return adapter

    def _load_unet(self, source: Source, channels: int) -> UNet2DConditionModel:
        unet = self._from_pretrained(UNet2DConditionModel, source)
        check_unet(source.label, unet, self.backbone, channels)
        return unet

    def _load_depth(self, source: Source) -> DepthEstimator:
        return load_depth_estimator(source.folder or source.location, source.revision, self.backbone.device)

    def _from_pretrained(self, model_class: Any, source: Source) -> Any:
        """A diffusers model, whole, frozen, in the backbone's precision on its device."""
        config, options = _config_of(model_class, source)
        if (found := config.get("_class_name")) != model_class.__name__:
            raise UserError(f"{source.label}: is a {shown(str(found))}, not a {model_class.__name__}")
        model, report = model_class.from_pretrained(
            **options, use_safetensors=True, torch_dtype=self.backbone.dtype, output_loading_info=True
        )
        if wrong := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
            raise UserError(
                f"{source.label}: {len(wrong)} weights are missing or misshapen, first {wrong[0]}; copy it again"
            )
        return model.requires_grad_(False).eval().to(self.backbone.device)


def load_edit_adapters(parts: EditParts, adapters: Sequence[tuple[Path, float, float]]) -> list[str]:
    """Load LoRA files side by side: (run folder, LoRA folder or file; UNet scale; text-encoder scale) each.

    They act in every method, InstructPix2Pix and inpainting UNets included. Adapters of before are taken off. Returns
    the names they got, in order. Raises UserError, one line, for a file that is missing, unreadable, pickled, or has a
    key without a layer; the backbone is then bare.
    """
    shed_adapters(parts.backbone)
    names: list[str] = []
    for path, unet_scale, text_encoder_scale in adapters:
        file = find_adapter(Path(path).expanduser())
        try:
            names.append(load_adapter(parts.backbone, file, unet_scale, text_encoder_scale, beside=names))
        except Exception:
            shed_adapters(parts.backbone)
            raise
    return names


def check_folder(label: str, folder: Path) -> None:
    """Refuse a local folder that is not a model in safetensors, in one line."""
    if not folder.is_dir():
        what = "is a file; give the folder it is in" if folder.is_file() else "no such folder; check the path"
        raise UserError(f"{label}: {what}")
    folder = _inner(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{label}: no config.json there; give the folder that save_pretrained wrote")
    check_shards(folder, f"{label}: ")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(path.suffix.lower() in PICKLED for path in folder.iterdir())
        why = "only has pickled weights, which can run code" if pickled else "has no weights"
        raise UserError(f"{label}: {why}; save it again with save_pretrained(..., safe_serialization=True)")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{label}: {shown(file.name)} is not a whole safetensors file ({first_line(error)}); copy it again"
            ) from error


def _inner(folder: Path) -> Path:
    """A pipeline folder stands for the UNet in it."""
    return folder / "unet" if (folder / "unet" / "config.json").is_file() else folder


def _config_of(model_class: Any, source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's config, and where to load it from: on the hub, one commit for config and weights."""
    if source.folder is not None:
        options: dict[str, Any] = {"pretrained_model_name_or_path": _inner(source.folder)}
        return dict(model_class.load_config(**options)), options
    options = source.options
    for subfolder in ("unet", None) if model_class is UNet2DConditionModel else (None,):
        try:
            config, commit = model_class.load_config(**options, subfolder=subfolder, return_commit_hash=True)
        except OSError:
            if subfolder is None:
                raise
            continue
        return dict(config), options | {"subfolder": subfolder, "revision": commit or source.revision}
    raise AssertionError


def _commit(model: Any, source: Source) -> str:
    found = getattr(getattr(model, "model", model), "config", {})
    commit = found.get("_commit_hash") if isinstance(found, dict) else getattr(found, "_commit_hash", None)
    return str(commit or source.revision or "unknown")
