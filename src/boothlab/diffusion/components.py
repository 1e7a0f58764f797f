"""What the parts of a Stable Diffusion pipeline may be: a model index names classes, and loading runs their code."""

from collections.abc import Mapping
from typing import Any

from boothlab.errors import UserError
from boothlab.files import shown

COMPONENTS: dict[str, frozenset[tuple[str, str]]] = {
    "unet": frozenset({("diffusers", "UNet2DConditionModel")}),
    "vae": frozenset({("diffusers", "AutoencoderKL")}),
    "text_encoder": frozenset({("transformers", "CLIPTextModel")}),
    "text_encoder_2": frozenset({("transformers", "CLIPTextModelWithProjection")}),
    "tokenizer": frozenset({("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")}),
    "tokenizer_2": frozenset({("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")}),
    "safety_checker": frozenset({("stable_diffusion", "StableDiffusionSafetyChecker")}),
    "feature_extractor": frozenset(
        ("transformers", name) for name in ("CLIPImageProcessor", "CLIPFeatureExtractor", "CLIPImageProcessorFast")
    ),
    "image_encoder": frozenset({("transformers", "CLIPVisionModelWithProjection")}),
}


def check_components(index: Mapping[str, Any], source: str) -> None:
    """Raise UserError for a model index that names a class that no Stable Diffusion pipeline is made of."""
    for name, value in index.items():
        if not isinstance(value, list | tuple) or list(value) == [None, None]:
            continue
        pair = tuple(map(str, value))
        known = COMPONENTS.get(name, frozenset())
        is_scheduler = name == "scheduler" and pair[:1] == ("diffusers",) and pair[-1].isidentifier()
        is_scheduler = is_scheduler and pair[-1].endswith("Scheduler")
        if pair not in known and not is_scheduler:
            raise UserError(
                f"backbone.source={shown(source)}: its model_index.json names {shown('.'.join(pair))} for "
                f"{shown(name)}, which no Stable Diffusion pipeline has; take the model from where it was published"
            )
