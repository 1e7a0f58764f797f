"""The settings of a run that a card shows: those that its method reads, in words."""

from collections.abc import Mapping
from typing import Any

from boothlab.tracking.redaction import redact_text


def settings_of(config: Mapping[str, Any], seed: int) -> dict[str, str]:
    """The settings a reader asks for first, by name, without keys and tokens; not yet escaped."""
    method = str(config.get("method") or "lora")
    optim, trainer, prior = config["optim"], config["trainer"], config["prior"]
    named: dict[str, Any] = {
        **(_adapter(config) if method in ("lora", "pivotal") else {}),
        **(_whole(config) if method == "full" else {}),
        **(_words(config, method) if method in ("textual_inversion", "pivotal") else {}),
        **({} if method == "textual_inversion" else {"learning rate": _rate(config, method)}),
        "schedule": f"{optim['schedule']}, {optim['warmup_steps']} warm-up steps",
        "steps": trainer["max_steps"],
        "batch size": f"{config['data']['batch_size']} × {trainer['accumulate']}",
        "resolution": config["backbone"]["resolution"],
        "precision": config["backbone"]["precision"],
        **({} if trainer.get("ema_decay") is None else {"moving average": f"decay {trainer['ema_decay']:g}"}),
        "prior preservation": f"{prior['num_class_images']} class images, weight {prior['weight']:g}"
        if prior.get("enabled")
        else "none",
        "seed": seed,
    }
    return {name: redact_text(str(value)) for name, value in named.items()}


def word_steps(config: Mapping[str, Any]) -> int:
    """The steps of pivotal tuning that learn the word alone: half of all where the config does not say."""
    steps = (config.get("inversion") or {}).get("steps")
    return max(1, int(config["trainer"]["max_steps"]) // 2) if steps is None else int(steps)


def _adapter(config: Mapping[str, Any]) -> dict[str, Any]:
    lora = config["lora"]
    alpha = lora["rank"] if lora.get("alpha") is None else lora["alpha"]
    variant = str(lora.get("variant") or "lora")
    return {
        **({} if variant == "lora" else {"form of the update": variant}),
        "rank": lora["rank"],
        "alpha": f"{alpha:g}",
        "UNet layers": ", ".join(map(str, lora["unet_targets"])),
        "text encoder": "trained" if lora.get("train_text_encoder") else "not trained",
    }


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    full = config.get("full") or {}
    encoder = "text encoder" if full.get("train_text_encoder") else ""
    return {
        "trained": "every weight of the UNet" + (f" and of the {encoder}" if encoder else ""),
        "saved in": full.get("save_precision") or "fp32",
    }


def _words(config: Mapping[str, Any], method: str) -> dict[str, Any]:
    inversion = config.get("inversion") or {}
    late = float(inversion.get("late_lr") or 0)
    named = {
        "vectors of the word": inversion.get("vectors", 1),
        "started as": inversion.get("init_word") or config["subject"].get("class_noun") or "–",
        "learning rate of the word": f"{float(inversion.get('lr') or 0):g}",
    }
    if method == "pivotal":
        then = f"goes on at {late:g}" if late else "stays as it is"
        named["the word alone learns for"] = f"{word_steps(config)} steps; while the adapter learns it {then}"
    return named


def _rate(config: Mapping[str, Any], method: str) -> str:
    optim = config["optim"]
    text = optim.get("text_encoder_lr")
    of = " of the adapter" if method == "pivotal" else ""
    return f"{optim['lr']:g}{of}" + (f", text encoder {text:g}" if text else "")
