"""The config of `boothlab evaluate`: which images are measured against which photos and prompts, and by what."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from boothlab.config import Accelerator, Checked, EncodersConfig, need, need_threads


@dataclass
class EvaluateConfig(Checked):
    """The metrics on a folder of images from any tool."""

    #: folder of the images
    images: str = MISSING
    #: folder of the subject's photos, or dreambench:NAME
    references: str = MISSING
    #: .csv with the columns file and prompt, or .txt with a prompt a line for files named promptNN_seedS; null measures
    #: no CLIP-T
    prompts: str | None = None
    #: the unique token, which CLIP-T leaves out of the prompts; empty if they have none
    token: str = ""
    #: folder for scores.csv and metrics.json
    out: str = "outputs/evaluate"
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    #: where to compute
    accelerator: Accelerator = Accelerator.auto
    #: CPU threads; null leaves torch's choice
    threads: int | None = None

    def check(self) -> None:
        for key, value in (("images", self.images), ("references", self.references), ("out", self.out)):
            need(value.strip() != "", key, repr(value), "must name a folder")
        need_threads(self.threads, "threads")
