"""What a method trains: adapters, learned words or whole networks, put on the backbone."""

from typing import Any

from boothlab.building.parts import attach_adapters
from boothlab.building.shared import DTYPES
from boothlab.config import LoraVariant, Method, TrainConfig
from boothlab.diffusion.backbone import Backbone
from boothlab.diffusion.learned_words import add_words
from boothlab.diffusion.lora import trainable
from boothlab.diffusion.whole import free
from boothlab.dreambooth.module import WholeNetworks
from boothlab.dreambooth.optimizers import EXTRAS, WordsPlan, need_library
from boothlab.errors import UserError

PACKABLE = (LoraVariant.lora, LoraVariant.rslora)


def check_optimizer(config: TrainConfig, device: str) -> None:
    """Raise UserError, before anything is loaded, for an optimizer whose library is not there."""
    if config.optim.optimizer in EXTRAS:
        need_library(config.optim.optimizer)


def put_on(config: TrainConfig, backbone: Backbone) -> tuple[dict[str, int], WholeNetworks | None]:
    """Make the backbone carry what the method trains: trainable parameters by component, and networks trained whole.

    Raises UserError where jobs share a network at once, for a method that would change it for all of them.
    """
    plain = config.method is Method.lora and config.lora.variant in PACKABLE
    if type(backbone) is not Backbone and not plain:
        what = (
            f"method={config.method.value}"
            if config.method is not Method.lora
            else f"lora.variant={config.lora.variant.value}"
        )
        raise UserError(f"{what}: cannot be packed with other jobs, only plain LoRA can; run it without a pack")
    whole = None
    if config.method is Method.full:
        whole = WholeNetworks(free(backbone, config.full.train_text_encoder), DTYPES[config.full.save_precision])
    if config.method in (Method.lora, Method.pivotal):
        attach_adapters(backbone, config.lora, config.seed)
    if config.method in (Method.textual_inversion, Method.pivotal):
        word = config.inversion.init_word or config.subject.class_noun
        add_words(backbone, config.subject.token, config.inversion.vectors, word)
    networks = {"unet": backbone.unet, **backbone.text_encoders}
    counts = {name: sum(value.numel() for value in trainable(network).values()) for name, network in networks.items()}
    return counts, whole


def words_plan(config: TrainConfig) -> WordsPlan | None:
    """How learned words are trained; None for a method without any."""
    if config.method not in (Method.textual_inversion, Method.pivotal):
        return None
    return WordsPlan(config.inversion.lr, config.inversion_steps, config.inversion.late_lr)


def method_settings(config: TrainConfig) -> dict[str, Any]:
    """What a file says of how it was trained, beyond what a plain LoRA says."""
    said: dict[str, Any] = {}
    if config.method is not Method.lora:
        said["method"] = config.method.value
    if config.method in (Method.lora, Method.pivotal) and config.lora.variant is not LoraVariant.lora:
        said["variant"] = config.lora.variant.value
    return said
