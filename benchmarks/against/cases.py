"""What is trained in a comparison, and the command line that each side has for it."""

from dataclasses import dataclass
from pathlib import Path

TOKEN_PROMPT, CLASS_PROMPT, NOUN = "a photo of a sks robot", "a photo of a robot", "robot"
SCRIPT = "examples/dreambooth/train_dreambooth_lora.py"
LORA_SCRIPT = "training_scripts/train_lora_dreambooth.py"


@dataclass(frozen=True)
class Case:
    """The same model folder, photos, steps, batch, rank and precision for everybody."""

    size: str
    model: Path
    photos: Path
    class_photos: Path
    resolution: int
    steps: int
    batch: int
    rank: int
    lr: float
    precision: str
    device: str
    prior: bool = False
    text_encoder: bool = False
    num_class: int = 8
    #: more settings of boothlab's own, such as trainer.compile=blocks
    ours: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A few words for the heading of a table."""
        extras = ("prior preservation",) * self.prior + ("text encoder",) * self.text_encoder
        return ", ".join(
            (f"{self.size} {self.resolution}²", f"batch {self.batch}", self.precision, *extras, *self.ours)
        )


def boothlab_command(case: Case, out: Path, runs: int = 1) -> list[str]:
    """`boothlab train`, without evaluation and W&B; its cache is new, so that photos are encoded in the run.

    Several runs, one a seed, are one command.
    """
    command = [
        *("-m", "boothlab", "train", "backbone=sd15", f"backbone.source={case.model}"),
        f"backbone.resolution={case.resolution}",
        f"backbone.precision={case.precision}",
        *("subject=folder", f"subject.images={case.photos}", f"subject.class_noun={NOUN}"),
        f"subject.instance_prompt={TOKEN_PROMPT}",
        *(f"lora.rank={case.rank}", f"optim.lr={case.lr}", f"data.batch_size={case.batch}", "data.crop=center"),
        *(f"trainer.max_steps={case.steps}", f"trainer.checkpoint_every={case.steps}"),
        f"trainer.accelerator={case.device}",
        *("evaluation.enabled=false", "tracking.wandb=disabled"),
        *(f"paths.outputs={out}", f"paths.cache={out / 'cache'}"),
        *([f"hydra.run.dir={out / 'run'}"] if runs == 1 else ["-m", f"seed={','.join(map(str, range(runs)))}"]),
        f"lora.train_text_encoder={str(case.text_encoder).lower()}",
        *case.ours,
    ]
    if case.prior:
        command += [
            *("prior.enabled=true", f"prior.class_prompt={CLASS_PROMPT}"),
            *(f"prior.class_images={case.class_photos}", f"prior.num_class_images={case.num_class}"),
        ]
    return command


def script_command(script: Path, case: Case, out: Path, ready_text: bool = False) -> list[str]:
    """The script with the same settings; `ready_text` is its own option to run the text encoder only once."""
    command = [
        str(script),
        *("--pretrained_model_name_or_path", str(case.model), "--instance_data_dir", str(case.photos)),
        *("--instance_prompt", TOKEN_PROMPT, "--output_dir", str(out / "run"), "--seed", "0"),
        *("--resolution", str(case.resolution), "--center_crop", "--train_batch_size", str(case.batch)),
        *("--rank", str(case.rank), "--learning_rate", str(case.lr), "--lr_scheduler", "constant"),
        *("--lr_warmup_steps", "0", "--max_train_steps", str(case.steps)),
        *("--mixed_precision", {"fp32": "no"}.get(case.precision, case.precision)),
    ]
    if case.prior:
        command += ["--with_prior_preservation", "--class_data_dir", str(case.class_photos)]
        command += ["--class_prompt", CLASS_PROMPT, "--num_class_images", str(case.num_class)]
    if case.text_encoder:
        command.append("--train_text_encoder")
    return [*command, "--pre_compute_text_embeddings"] if ready_text else command


def lora_script_command(script: Path, case: Case, out: Path) -> list[str]:
    """cloneofsimo/lora's script with the same settings, as far as it has them."""
    return [
        str(script),
        *("--pretrained_model_name_or_path", str(case.model), "--instance_data_dir", str(case.photos)),
        *("--instance_prompt", TOKEN_PROMPT, "--output_dir", str(out / "run"), "--seed", "0"),
        *("--resolution", str(case.resolution), "--center_crop", "--train_batch_size", str(case.batch)),
        *("--lora_rank", str(case.rank), "--learning_rate", str(case.lr), "--max_train_steps", str(case.steps)),
        *("--lr_scheduler", "constant", "--lr_warmup_steps", "0", "--output_format", "safe"),
    ]
