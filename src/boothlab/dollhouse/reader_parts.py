"""The trainings of the encoders that measure (CLIP, the ViT in DINO's place) and of the judge."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPModel, ViTModel

from boothlab.dollhouse import architectures as shapes
from boothlab.dollhouse.grammar import facts_of, random_prompt, scene_is_held_out
from boothlab.dollhouse.parts import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Losses,
    Part,
    normalise,
    training_scene,
)
from boothlab.dollhouse.scenes import CLASSES, Scene, ToyScene, render, sample_subject, sample_toy_scene

BUILT_ALIKE = ("bear", "cat", "rabbit")  # one painter draws them; ears and tails differ

HEAD_STEPS = 600  # optimizer steps until the class head has no weight left


def training_toy(rng: np.random.Generator, class_noun: str) -> ToyScene:
    """A scene with a toy of that class whose combination of facts is not held out."""
    while scene_is_held_out(scene := sample_toy_scene(rng, sample_subject(rng, class_noun))):
        pass
    return scene


class Clip(Part):
    """The miniature CLIP: symmetric InfoNCE between pictures and prompts, with a class head that is thrown away.

    Without the head, cats and rabbits stayed one for good: while their words say the same, no picture learns to tell
    them apart, and while no picture does, the words have no reason to part. It only starts that off: its weight falls
    to nothing, for at full weight to the end it leaves all toys of a class alike, and CLIP-I with nothing to measure.
    """

    name, batch_size, peak_lr = "clip", 96, 5e-4

    def __init__(self, seed: int, device: str):
        super().__init__(seed, device)
        self.tokenizer = shapes.build_tokenizer()
        self.clip = shapes.build_clip(self.tokenizer)
        self.class_head = nn.Linear(self.clip.config.projection_dim, len(CLASSES))
        self.modules = nn.ModuleDict({"clip": self.clip, "class_head": self.class_head})

    def _scenes(self, step: int, rng: np.random.Generator) -> list[Scene]:
        """Any scenes; in every other pair of batches toys in one setting, half of those in one colour as well.

        Place, time and colour alone tell most scenes of a batch apart. Among lookalikes only class, pattern and
        accessory do, so the features that are hard to see are learned too. Half of them are of two classes built alike.
        """
        if step // 2 % 2 == 0:
            return [training_scene(rng) for _ in range(self.batch_size)]
        color, alike = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
        classes = [str(noun) for noun in rng.permutation(BUILT_ALIKE)[:2]] if alike else list(CLASSES)
        setting = training_toy(rng, classes[0])  # so that at least one class is not held out in it
        scenes: list[Scene] = []
        while len(scenes) < self.batch_size:
            subject = sample_subject(rng, classes[int(rng.integers(len(classes)))])
            scene = replace(sample_toy_scene(rng, subject), place=setting.place, time=setting.time, lamp=setting.lamp)
            if color:
                subject = replace(scene.subject, color_name=setting.subject.color_name, color=setting.subject.color)
                scene = replace(scene, subject=subject)
            if not scene_is_held_out(scene):
                scenes.append(scene)
        return scenes

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rng = self._rng(step)
        scenes = self._scenes(step, rng)
        # From one word to everything: zero-shot reading asks with prompts that say a single thing.
        prompts = [random_prompt(scene, rng, keep=float(rng.uniform(0.1, 1.0)), noun=0.85) for scene in scenes]
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=shapes.MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        classes = [CLASSES.index(scene.subject.class_noun) if isinstance(scene, ToyScene) else -1 for scene in scenes]
        return shapes.to_images([render(scene) for scene in scenes]), tokens.input_ids, torch.tensor(classes)

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], step: int) -> Losses:
        images, tokens, classes = (value.to(self.device) for value in batch)
        with self._autocast():
            output = self.clip(input_ids=tokens, pixel_values=normalise(images, CLIP_MEAN, CLIP_STD))
        logits = output.logits_per_image.float()
        target = torch.arange(len(logits), device=self.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        named = F.cross_entropy(10 * self.class_head(output.image_embeds.float()), classes, ignore_index=-1)
        self.clip.logit_scale.data.clamp_(max=4.6052)  # 100, as OpenAI's
        weight = 3.0 * max(0.0, 1.0 - step / HEAD_STEPS)
        return {
            "loss": loss + weight * named,
            "class": named.detach(),
            "top1": (logits.argmax(1) == target).float().mean(),
        }

    def export(self, out: Path) -> None:
        self.clip.half().save_pretrained(out / "clip")
        self.tokenizer.save_pretrained(out / "clip")

    def start_from(self, out: Path) -> None:
        self.clip.load_state_dict(CLIPModel.from_pretrained(out / "clip").float().state_dict())


class Dino(Part):
    """The ViT in DINO's place: two pictures of one individual in different places belong together (NT-Xent)."""

    name, batch_size, peak_lr = "dino", 48, 1e-3
    temperature = 0.07

    def __init__(self, seed: int, device: str):
        super().__init__(seed, device)
        self.dino = shapes.build_dino()
        self.modules = nn.ModuleDict({"dino": self.dino})

    def batch(self, step: int) -> torch.Tensor:
        rng = self._rng(step)
        subjects = [sample_subject(rng) for _ in range(self.batch_size)]
        if step % 2:  # every other batch holds one class only, so that the class alone does not tell them apart
            noun = subjects[0].class_noun
            subjects = [sample_subject(rng, noun) for _ in range(self.batch_size)]
        views = [render(sample_toy_scene(rng, subject)) for _ in range(2) for subject in subjects]
        return shapes.to_images(views)

    def loss(self, batch: torch.Tensor, step: int) -> Losses:
        images = normalise(batch.to(self.device), IMAGENET_MEAN, IMAGENET_STD)
        with self._autocast():
            features = self.dino(pixel_values=images).last_hidden_state[:, 0]
        features = F.normalize(features.float(), dim=-1)
        logits = features @ features.T / self.temperature
        logits.fill_diagonal_(float("-inf"))
        half = len(images) // 2
        target = torch.arange(len(images), device=self.device).roll(half)
        return {"loss": F.cross_entropy(logits, target), "top1": (logits.argmax(1) == target).float().mean()}

    def export(self, out: Path) -> None:
        self.dino.half().save_pretrained(out / "dino")

    def start_from(self, out: Path) -> None:
        dino = ViTModel.from_pretrained(out / "dino", add_pooling_layer=False)
        self.dino.load_state_dict(dino.float().state_dict())


class JudgePart(Part):
    """The independent judge of generated images, on renders alone, blurred and noised a little so that it is robust."""

    name, batch_size, peak_lr = "judge", 96, 1e-3

    def __init__(self, seed: int, device: str):
        super().__init__(seed, device)
        self.judge = shapes.Judge()
        self.modules = nn.ModuleDict({"judge": self.judge})

    def batch(self, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rng = self._rng(step)
        scenes: list[ToyScene] = [sample_toy_scene(rng) for _ in range(self.batch_size)]
        images = shapes.to_images([render(scene) for scene in scenes])
        noise = torch.from_numpy(rng.standard_normal(images.shape).astype(np.float32))
        images = images + noise * float(rng.uniform(0, 0.12))
        if rng.random() < 0.4:
            images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        facts = [facts_of(scene) for scene in scenes]
        labels = {
            name: torch.tensor([values.index(getattr(fact, name)) for fact in facts])
            for name, values in shapes.JUDGE_HEADS.items()
        }
        return images, labels

    def loss(self, batch: tuple[torch.Tensor, dict[str, torch.Tensor]], step: int) -> Losses:
        images, labels = batch
        with self._autocast():
            logits = self.judge(images.to(self.device))
        losses = {name: F.cross_entropy(logits[name].float(), labels[name].to(self.device)) for name in logits}
        return {"loss": torch.stack(list(losses.values())).sum(), **{k: v.detach() for k, v in losses.items()}}

    def export(self, out: Path) -> None:
        (out / "judge").mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v.half().contiguous() for k, v in self.judge.state_dict().items()}, out / "judge" / "model.safetensors"
        )

    def start_from(self, out: Path) -> None:
        self.judge.load_state_dict({k: v.float() for k, v in load_file(out / "judge" / "model.safetensors").items()})
