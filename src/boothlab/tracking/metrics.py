"""Every metric key in one place, with its unit, its step axis and the direction in which it gets better.

The constants are the key strings themselves, so that `tracker.log(step, {CLIP_I: 0.71})` reads well; what else is
known about a key is in `REGISTRY`. A score made with another encoder than the default one must not carry the plain
name: write it under `variant(CLIP_I, "dollhouse")`, that is `eval/clip_i/dollhouse`, and `metric_for` still knows its
direction.
"""

from dataclasses import dataclass

STEP_KEY = "trainer/global_step"
"""The step axis of every metric: the number of optimizer steps done, so 0 is the untrained model."""


@dataclass(frozen=True)
class Metric:
    """What is known about one key. `higher_is_better` is None where neither direction is an improvement."""

    key: str
    higher_is_better: bool | None
    step_key: str
    description: str
    unit: str


REGISTRY: dict[str, Metric] = {}


def _register(key: str, higher_is_better: bool | None, unit: str, description: str) -> str:
    REGISTRY[key] = Metric(key, higher_is_better, STEP_KEY, description, unit)
    return key


TRAIN_LOSS = _register("train/loss", False, "mean squared error", "Total loss: instance plus weighted prior loss.")
TRAIN_LOSS_INSTANCE = _register("train/loss_instance", False, "mean squared error", "Loss on the subject's photos.")
TRAIN_LOSS_PRIOR = _register("train/loss_prior", False, "mean squared error", "Loss on the class images, unweighted.")
TRAIN_LR_UNET = _register("train/lr_unet", None, "1", "Learning rate of the UNet's adapter.")
TRAIN_LR_TEXT_ENCODER = _register("train/lr_text_encoder", None, "1", "Learning rate of the text encoder's adapter.")
TRAIN_LR_EMBEDDINGS = _register("train/lr_embeddings", None, "1", "Learning rate of learned words.")
TRAIN_GRAD_NORM = _register("train/grad_norm", None, "L2 norm", "Gradient norm before clipping.")
TRAIN_STEP_SECONDS = _register("train/step_seconds", None, "s", "Wall time of one optimizer step.")
TRAIN_EPOCH = _register("train/epoch", None, "epochs", "Passes over the subject's photos.")

CLIP_I = _register("eval/clip_i", True, "cosine", "CLIP image similarity of samples and the subject's photos.")
DINO = _register("eval/dino", True, "cosine", "DINO image similarity of samples and the subject's photos.")
CLIP_T = _register("eval/clip_t", True, "cosine", "CLIP similarity of samples and their prompts without the token.")
CLIP_T_WITH_TOKEN = _register(
    "eval/clip_t_with_token", True, "cosine", "CLIP similarity of samples and their prompts as given, token included."
)
DIV = _register("eval/div", True, "distance", "Diversity: mean distance between samples of the same prompt.")
PRES = _register(
    "eval/pres", False, "cosine", "Prior drift: DINO similarity of plain class samples and the subject's photos."
)
BALANCED = _register("eval/balanced", True, "cosine", "Mean of eval/clip_i, eval/dino and eval/clip_t.")
FEATURE_SIMILARITY = _register(
    "eval/feature_similarity", True, "cosine", "Similarity of samples and photos by the encoder in the key's name."
)
CLIP_I_CEILING = _register("eval/clip_i_ceiling", None, "cosine", "CLIP-I among the subject's own photos.")
DINO_CEILING = _register("eval/dino_ceiling", None, "cosine", "DINO among the subject's own photos.")
FEATURE_SIMILARITY_CEILING = _register(
    "eval/feature_similarity_ceiling", None, "cosine", "The same similarity among the subject's own photos."
)
SAMPLING_SECONDS = _register("eval/sampling_seconds", None, "s", "Wall time of making the samples of one evaluation.")
SCORING_SECONDS = _register("eval/scoring_seconds", None, "s", "Wall time of scoring the samples of one evaluation.")
CONSTANT_IMAGES = _register("eval/constant_images", False, "images", "Samples of a single colour, such as all black.")

EDIT_CLIP_DIRECTIONAL = _register(
    "edit/clip_directional", True, "cosine", "Whether the picture moved in CLIP space as its caption did."
)
EDIT_CLIP_IMAGE = _register("edit/clip_image", True, "cosine", "CLIP similarity of the edited picture and its source.")
EDIT_CLIP_T = _register("edit/clip_t", True, "cosine", "CLIP similarity of the edited picture and the target caption.")
EDIT_CLIP_T_EDITED = _register(
    "edit/clip_t_edited", True, "cosine", "The same of the edited area alone, everything outside the mask black."
)
EDIT_STRUCTURE = _register(
    "edit/structure", False, "mean squared error", "Structure distance: self-similarity of ViT keys before and after."
)
EDIT_PSNR_OUTSIDE = _register("edit/psnr_outside", True, "dB", "PSNR to the source, pixels outside the mask only.")
EDIT_SSIM_OUTSIDE = _register("edit/ssim_outside", True, "1", "SSIM to the source, pixels outside the mask only.")
EDIT_LPIPS_OUTSIDE = _register(
    "edit/lpips_outside", False, "distance", "Perceptual distance to the source outside the mask."
)
EDIT_MSE_OUTSIDE = _register(
    "edit/mse_outside", False, "mean squared error", "Squared error to the source, pixels outside the mask only."
)
EDIT_PSNR_OUTSIDE_PIEBENCH = _register(
    "edit/psnr_outside_piebench", True, "dB", "PSNR as PIE-Bench has it: the edited area black, the whole frame counts."
)
EDIT_SSIM_OUTSIDE_PIEBENCH = _register(
    "edit/ssim_outside_piebench", True, "1", "SSIM as PIE-Bench has it: the edited area black, the whole frame counts."
)
EDIT_LPIPS_OUTSIDE_PIEBENCH = _register(
    "edit/lpips_outside_piebench", False, "distance", "Perceptual distance with the edited area black, whole frame."
)
EDIT_MSE_OUTSIDE_PIEBENCH = _register(
    "edit/mse_outside_piebench", False, "mean squared error", "Squared error with the edited area black, whole frame."
)
EDIT_PSNR_INSIDE = _register("edit/psnr_inside", None, "dB", "PSNR to the source, pixels inside the mask only.")
EDIT_SSIM_INSIDE = _register("edit/ssim_inside", None, "1", "SSIM to the source, pixels inside the mask only.")
EDIT_LPIPS_INSIDE = _register(
    "edit/lpips_inside", None, "distance", "Perceptual distance to the source inside the mask."
)
EDIT_MSE_INSIDE = _register(
    "edit/mse_inside", None, "mean squared error", "Squared error to the source, pixels inside the mask only."
)
EDIT_L1_TRUTH = _register("edit/l1_truth", False, "mean absolute error", "Absolute error to the known target.")
EDIT_L2_TRUTH = _register("edit/l2_truth", False, "mean squared error", "Squared error to the known target.")
EDIT_PSNR_TRUTH = _register("edit/psnr_truth", True, "dB", "PSNR to the known target.")
EDIT_CLIP_I_TRUTH = _register("edit/clip_i_truth", True, "cosine", "CLIP image similarity to the known target.")
EDIT_DINO_TRUTH = _register("edit/dino_truth", True, "cosine", "DINO image similarity to the known target.")
EDIT_HAPPENED = _register("edit/happened", True, "share", "Edits whose changed fact a reader finds in the picture.")
EDIT_EFFECTIVE_STEPS = _register("edit/effective_steps", None, "steps", "Denoising steps that an edit really took.")
EDIT_STRENGTH = _register("edit/strength", None, "1", "Noise that was put on the source, 0 to 1.")
EDIT_STEPS = _register("edit/steps", None, "steps", "Steps of the whole schedule.")
EDIT_GUIDANCE = _register("edit/guidance_scale", None, "1", "Classifier-free guidance by the text.")
EDIT_IMAGE_GUIDANCE = _register("edit/image_guidance_scale", None, "1", "Guidance by the image.")
EDIT_CONTROL_SCALE = _register("edit/control_scale", None, "1", "Weight of the controls.")
EDIT_PARAMETERS = (EDIT_STRENGTH, EDIT_STEPS, EDIT_GUIDANCE, EDIT_IMAGE_GUIDANCE, EDIT_CONTROL_SCALE)
"""Not measured but set: logged with the scores, so that one can be drawn against the other over many runs."""

INSPECT_VAE_PSNR = _register("inspect/vae_psnr", True, "dB", "PSNR of photos through the VAE and back, the mean.")
INSPECT_TRAJECTORY_DISTANCE = _register(
    "inspect/trajectory_distance", None, "root mean square", "How far base and adapter end up apart from one noise."
)
INSPECT_TOKEN_ATTENTION = _register(
    "inspect/token_attention", None, "share", "Cross-attention that goes to the unique token, with the adapter."
)
INSPECT_OWN_PROMPT = _register(
    "inspect/own_prompt", True, "share", "Samples whose own prompt is the nearest of all prompts to CLIP."
)
INSPECT_CLASS_ACCURACY = _register(
    "inspect/class_accuracy", True, "share", "Samples that CLIP puts into the subject's class, zero-shot."
)
INSPECT_BEST_OF_GAIN = _register(
    "inspect/best_of_gain", None, "cosine", "The chosen image's score less the mean of all that it was chosen from."
)
INSPECT_UPDATE_RELATIVE = _register(
    "inspect/update_relative", None, "ratio", "Norm of the UNet's update over that of the weights it changes."
)
INSPECT_EFFECTIVE_RANK = _register(
    "inspect/effective_rank", None, "rank", "Effective rank of the UNet's update, the mean over layers."
)
INSPECT_ABOVE_CEILING = _register(
    "inspect/above_ceiling", False, "share", "Samples nearer to a photo, to DINO, than the photos are among themselves."
)
INSPECT_CLOSER_THAN_PHOTOS = _register(
    "inspect/closer_than_photos", False, "share", "Samples nearer to a photo, to DINO, than any two photos are."
)
INSPECT_DRIFT_PRES_BASE = _register(
    "inspect/drift_pres_base", None, "cosine", "DINO similarity of the base model's class images and the photos."
)
INSPECT_DRIFT_PRES = _register(
    "inspect/drift_pres", False, "cosine", "DINO similarity of class images with the adapter and the photos."
)
INSPECT_DRIFT_DISTANCE = _register(
    "inspect/drift_distance", False, "1 - cosine", "DINO distance of class images of one seed, base and adapter."
)

CAPTION_TAGS_PER_IMAGE = _register("caption/tags_per_image", None, "tags", "Tags an image, the mean.")
CAPTION_TOP1_COSINE = _register(
    "caption/top1_cosine", None, "cosine", "Cosine of an image and its best label, the mean over images."
)
CAPTION_GAP_10 = _register(
    "caption/gap_10", None, "cosine", "Cosine of the best label less that of the tenth, the mean over images."
)
CAPTION_DISTINCT_TAGS_PER_GROUP = _register(
    "caption/distinct_tags_per_group", None, "tags", "Different tags in a group of images, the mean over groups."
)
CAPTION_DISTINCT_TAGS = _register("caption/distinct_tags", None, "tags", "Different tags in the whole collection.")


def variant(key: str, name: str) -> str:
    """The key of a registered metric measured another way (an encoder, a subset): `eval/clip_i/dollhouse`.

    Raises KeyError if `key` is not registered.
    """
    return f"{REGISTRY[key].key}/{name}"


def metric_for(key: str) -> Metric | None:
    """The registered metric behind a key or one of its variants; None if there is none."""
    while key not in REGISTRY:
        key, slash, _ = key.rpartition("/")
        if not slash:
            return None
    return REGISTRY[key]
