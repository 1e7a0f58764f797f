"""The frozen diffusion model: loading it, and what training asks of it (encode, embed, add noise, predict)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from boothlab.diffusion.components import check_components
from boothlab.errors import UserError
from boothlab.files import PICKLED, check_shards, sha256_file, shown
from boothlab.quiet import quiet_libraries

DOLLHOUSE = Path(__file__).parent.parent / "dollhouse" / "weights"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
#: the parts of a pipeline folder that can change a result
IDENTITY = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


@dataclass
class TextEmbedding:
    """What the UNet is told: token states [B, T, D] and, for SDXL, the pooled text [B, P]."""

    states_BTD: Tensor
    pooled_BP: Tensor | None = None

    def __getitem__(self, rows: Any) -> "TextEmbedding":
        return TextEmbedding(self.states_BTD[rows], None if self.pooled_BP is None else self.pooled_BP[rows])

    @staticmethod
    def cat(parts: Sequence["TextEmbedding"]) -> "TextEmbedding":
        """Stack along the batch."""
        pooled = [part.pooled_BP for part in parts if part.pooled_BP is not None]
        return TextEmbedding(torch.cat([part.states_BTD for part in parts]), torch.cat(pooled) if pooled else None)


class Backbone:
    """A Stable Diffusion pipeline, frozen, whose UNet and text encoders may carry an adapter.

    The VAE stays in float32 whatever the precision: in half precision it makes black images (diffusers #4736).
    """

    #: the words of `diffusion/learned_words.py`, if there are any
    learned: Any = None
    #: whether the networks themselves were changed
    altered = False
    #: how the UNet was compiled; empty if it was not
    compiled = ""

    def __init__(self, pipeline: Any, name: str, resolution: int, device: torch.device, dtype: torch.dtype):
        self.pipeline, self.name, self.resolution, self.device, self.dtype = pipeline, name, resolution, device, dtype
        self.is_sdxl = type(pipeline).__name__ == "StableDiffusionXLPipeline"
        self.words: list[str] = []  # what textual inversions have added to the tokenizer
        self.unet: UNet2DConditionModel = pipeline.unet
        self.vae: AutoencoderKL = pipeline.vae
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        for component in (self.unet, self.vae, *self.text_encoders.values()):
            component.requires_grad_(False).eval().to(device)
        self.unet.to(dtype=dtype)
        self.vae.to(dtype=torch.float32)
        for encoder in self.text_encoders.values():
            encoder.to(dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """By the pipeline's own names: `text_encoder`, and for SDXL `text_encoder_2`."""
        names = ("text_encoder", "text_encoder_2") if self.is_sdxl else ("text_encoder",)
        return {name: getattr(self.pipeline, name) for name in names}

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The tokenizer of each text encoder."""
        return {name: getattr(self.pipeline, name.replace("text_encoder", "tokenizer")) for name in self.text_encoders}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, H, W of one image's latents."""
        side = self.resolution // (2 ** (len(self.vae.config.block_out_channels) - 1))
        return (self.vae.config.latent_channels, side, side)

    @property
    def prediction_type(self) -> str:
        """`epsilon` or `v_prediction`, as the model was trained."""
        return str(self.noise_scheduler.config.prediction_type)

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids [B, T] for each text encoder, padded and cut to its context."""
        return {
            name: tokenizer(
                [self.spell(prompt) for prompt in prompts], padding="max_length",
                max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt",
            ).input_ids
            for name, tokenizer in self.tokenizers.items()
        }  # fmt: skip

    def spell(self, prompt: str) -> str:
        """The prompt as the tokenizer reads it: with placeholders where it names a learned word."""
        return prompt if self.learned is None else str(self.learned.spell(prompt))

    def truncated(self, prompts: Sequence[str]) -> list[tuple[str, int, int]]:
        """(prompt, tokens, limit) of each prompt that is longer than the text encoder can read."""
        tokenizer = self.pipeline.tokenizer
        limit = tokenizer.model_max_length
        lengths = [
            (prompt, len(tokenizer(self.spell(prompt), truncation=False, verbose=False).input_ids))
            for prompt in prompts
        ]
        return [(prompt, length, limit) for prompt, length in lengths if length > limit]

    def embed(self, token_ids: dict[str, Tensor]) -> TextEmbedding:
        """Run the text encoders. Gradients flow if they carry a trainable adapter."""
        if not self.is_sdxl:
            ids = token_ids["text_encoder"].to(self.device)
            return TextEmbedding(self.pipeline.text_encoder(ids)[0])
        states, pooled = [], None
        for name, encoder in self.text_encoders.items():
            output = encoder(token_ids[name].to(self.device), output_hidden_states=True)
            states.append(output.hidden_states[-2])  # SDXL reads the last layer but one of both encoders
            pooled = output[0]  # and the projected text of the second
        return TextEmbedding(torch.cat(states, dim=-1), pooled)

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """[-1, 1] images to the mean and standard deviation of their latents, both [B, C, h, w], scaled, on the CPU."""
        with torch.autocast(self.device.type, enabled=False):
            posterior = self.vae.encode(pixels_BCHW.to(self.device, torch.float32)).latent_dist
        factor = self.vae.config.scaling_factor
        return (posterior.mean * factor).cpu(), (posterior.std * factor).cpu()

    @torch.no_grad()
    def decode_latents(self, latents_BCHW: Tensor) -> Tensor:
        """Scaled latents to images in [0, 1], float32; the way back from `encode_images`."""
        with torch.autocast(self.device.type, enabled=False):
            scaled = latents_BCHW.to(self.device, torch.float32) / self.vae.config.scaling_factor
            images: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return (images * 0.5 + 0.5).clamp(0, 1)

    def predict(self, noisy_BCHW: Tensor, timesteps_B: Tensor, text: TextEmbedding) -> Tensor:
        """The UNet's prediction [B, C, h, w], in float32."""
        added = None
        if self.is_sdxl:
            size = [self.resolution, self.resolution, 0, 0, self.resolution, self.resolution]
            ids = torch.tensor([size] * len(noisy_BCHW), device=self.device, dtype=self.dtype)
            if text.pooled_BP is None:
                raise ValueError("SDXL needs the pooled text")
            added = {"text_embeds": text.pooled_BP.to(self.dtype), "time_ids": ids}
        output = self.unet(
            noisy_BCHW.to(self.device, self.dtype),
            timesteps_B.to(self.device),
            text.states_BTD.to(self.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )
        prediction: Tensor = output[0].float()
        return prediction

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss with respect to whatever the networks carry that is trained."""
        loss.backward()


def first_line(error: Exception) -> str:
    """What an exception says, cut to a line that fits into a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(lines[0].rstrip(".")) if lines else type(error).__name__


def resolve_source(source: str) -> str:
    """`dollhouse` is the folder that ships with the package; anything else stands for itself."""
    return str(DOLLHOUSE / "pipeline") if source == "dollhouse" else source


def local_folder(source: str) -> Path | None:
    """The folder a source stands for, there or not; None for a hub id."""
    where = resolve_source(source)
    local = source == "dollhouse" or where.startswith((".", "/", "~")) or Path(where).exists()
    return Path(where).expanduser() if local else None


def _check_weights(folder: Path, components: Sequence[str]) -> None:
    """Say clearly what is wrong with a local model folder, before diffusers says it at length."""
    for component in components:
        files = sorted((folder / component).glob("*.safetensors"))
        check_shards(folder / component, f"backbone.source={shown(folder)}: {component}/")
        if not files:
            pickled = [path for path in (folder / component).glob("*") if path.suffix.lower() in PICKLED]
            why = "only has pickled weights, which can run code" if pickled else "has no weights"
            raise UserError(
                f"backbone.source={shown(folder)}: {component}/ {why}; save it again as safetensors with "
                "DiffusionPipeline.from_pretrained(...).save_pretrained(..., safe_serialization=True)"
            )
        for file in files:
            try:
                with safe_open(file, framework="pt"):  # reads the header alone, and compares it with the file's length
                    pass
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"backbone.source={shown(folder)}: {component}/{shown(file.name)} is not a whole safetensors file "
                    f"({first_line(error)}); download or copy it again"
                ) from error


def _pipeline_class(source: str, revision: str | None) -> str:
    """The class named by the pipeline's index; small, so that nothing big is downloaded for a model we cannot use."""
    folder = local_folder(source)
    if folder is not None and not (folder / "model_index.json").is_file():
        if folder.is_file():
            raise UserError(_one_file(folder))
        what = "no model_index.json there" if folder.is_dir() else "no such folder"
        raise UserError(f"backbone.source={shown(folder)}: {what}; give a diffusers pipeline folder or a hub id")
    try:
        index = DiffusionPipeline.load_config(folder or source, revision=revision)
    except Exception as error:
        raise UserError(
            f"backbone.source={shown(source)}: cannot be loaded ({first_line(error)}); give a diffusers pipeline "
            "folder, or a hub id that this machine can reach"
        ) from error
    name = str(index.get("_class_name"))
    if name not in PIPELINES:
        raise UserError(f"backbone.source={shown(source)}: is a {shown(name)}; known are {', '.join(PIPELINES)}")
    check_components(index, source)
    return name


def _one_file(path: Path) -> str:
    """What to do with a model in a single file."""
    pickled = "is pickled, which can run code" if path.suffix.lower() in PICKLED else "is a single file"
    return (
        f"backbone.source={shown(path)}: {pickled}; a diffusers pipeline folder of safetensors is read, which "
        "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER) of diffusers makes of it"
    )


def load_backbone(
    source: str,
    *,
    name: str,
    resolution: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
) -> Backbone:
    """Load a pipeline from the package, a local folder or the hub; safetensors only, and without a word on the console.

    Raises UserError when it is not there, not whole, not safetensors, or not a Stable Diffusion (XL) pipeline.
    """
    folder = local_folder(source)
    with quiet_libraries():
        class_name = _pipeline_class(source, revision)
        is_sdxl = class_name == "StableDiffusionXLPipeline"
        if folder is None:  # one commit for all files, though the branch may move on meanwhile
            revision = _pinned_commit(source, revision)
        else:
            _check_weights(folder, ("unet", "vae", "text_encoder", *(["text_encoder_2"] if is_sdxl else [])))
        # SDXL takes no safety checker; elsewhere it would blacken images of toys it mistakes, and cost 1.2 GB.
        extra = {} if is_sdxl else {"safety_checker": None, "requires_safety_checker": False}
        try:
            pipeline = getattr(diffusers, class_name).from_pretrained(
                folder or source,
                torch_dtype={"default": dtype, "vae": torch.float32},
                use_safetensors=True,
                revision=revision,
                variant=variant,
                **extra,
            )
        except Exception as error:
            raise UserError(
                f"backbone.source={shown(source)}: cannot be loaded ({first_line(error)}); give a diffusers folder "
                "with safetensors weights, or a hub id that this machine can reach"
            ) from error
        return Backbone(pipeline, name, resolution, device, dtype)


def weights_identity(
    source: str, revision: str | None = None, hash_file: Callable[[Path], str] = sha256_file
) -> dict[str, str]:
    """What the model is: the SHA-256 of each file of a local folder, or the hub id with the commit in use.

    `hash_file` may know of large files what they were. Configs, tokenizers and the noise schedule count too: they
    change latents and embeddings as weights do.
    """
    folder = local_folder(source)
    if folder is None:
        return {"hub": source, "revision": _cached_commit(source, revision) or revision or "unknown"}
    if not folder.is_dir():
        raise UserError(
            f"backbone.source={shown(folder)}: no such folder; give a diffusers pipeline folder or a hub id"
        )
    files = [folder / "model_index.json", *(path for part in IDENTITY for path in (folder / part).glob("*"))]
    kept = sorted(path for path in files if path.suffix in (".safetensors", ".json", ".txt") and path.is_file())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in kept}


def _pinned_commit(source: str, revision: str | None) -> str:
    """The commit that the model index was just loaded from. Raises UserError if the hub did not say."""
    commit = _cached_commit(source, revision)
    if commit is None or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise UserError(
            f"backbone.source={shown(source)}: the hub does not say which commit it is, and a run could not be made "
            "again; give backbone.revision=COMMIT, or a local folder"
        )
    return commit


def _cached_commit(repo_id: str, revision: str | None) -> str | None:
    """The commit of the hub snapshot that was just loaded, also where the revision is a branch."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, "model_index.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None
