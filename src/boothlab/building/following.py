"""What the other devices of a run are built from: the leader's config, without anything that evaluates or writes."""

from boothlab.building.methods import put_on
from boothlab.building.parts import build_backbone, build_device, remembering, set_determinism, set_threads
from boothlab.building.photos import build_data, build_prior, build_subject
from boothlab.building.shared import shared_identity
from boothlab.building.training import build_module, lightning_arguments
from boothlab.cache import Cache, cache_root
from boothlab.config import TrainConfig
from boothlab.diffusion.shared_sampling import serve
from boothlab.dreambooth.devices import Follower
from boothlab.progress import Reporter
from boothlab.ranks import Ranks


def build_follower(config: TrainConfig, ranks: Ranks) -> Follower:
    """A rank's own networks and data. It helps to draw class images, and takes them and the latents from the cache."""
    set_threads(config.trainer.threads, ranks)
    set_determinism(config.trainer.deterministic)
    device, cache = build_device(config.trainer.accelerator, ranks), Cache(cache_root(config.paths.cache))
    subject = build_subject(config.subject, cache)
    backbone, identity = build_backbone(config.backbone, device), shared_identity(config.backbone, remembering(cache))
    serve(backbone, ranks)
    prior = build_prior(config, backbone, cache, identity, Reporter(quiet=True))
    data = build_data(config, backbone, subject, prior, cache, identity)
    _, whole = put_on(config, backbone)
    resume = ranks.broadcast(None)
    module = build_module(config, backbone, data, resume, whole, ranks)
    return Follower(
        module=module,
        trainer_config=config.trainer,
        evaluate_every=(config.evaluation.every or config.trainer.checkpoint_every)
        if config.evaluation.enabled
        else None,
        lightning=lightning_arguments(config, device, module),
        resume_from=resume[0] if resume else None,
    )
