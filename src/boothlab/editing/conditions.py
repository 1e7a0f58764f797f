"""Condition maps of a picture: Canny edges through OpenCV, and depth through a transformers depth estimator."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from boothlab.errors import UserError
from boothlab.quiet import quiet_libraries

METRIC_FAMILIES = ("glpn", "zoedepth", "depth_pro")
"""Model types that predict distance; all others predict its inverse, as MiDaS does."""


def require_opencv() -> Any:
    """OpenCV's module. Raises UserError when it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise UserError("Canny maps need OpenCV; install it with: pip install 'boothlab[edit]'") from error
    return cv2


def canny_map(image: Image.Image, low: int = 100, high: int = 200) -> Image.Image:
    """OpenCV's Canny edges of an RGB picture, "L", 0 or 255; the thresholds are the public ControlNets'."""
    edges = require_opencv().Canny(np.ascontiguousarray(np.asarray(image)), low, high)
    return Image.fromarray(np.asarray(edges, dtype=np.uint8))


class DepthEstimator:
    """A picture's depth as the public ControlNets and T2I-Adapters expect it: near is white, far is black."""

    def __init__(self, model: Any, processor: Any, device: torch.device):
        self.model = model.requires_grad_(False).eval().to(device)
        self.processor, self.device = processor, device
        kind = getattr(model.config, "depth_estimation_type", "relative")
        self.is_metric = model.config.model_type in METRIC_FAMILIES or kind == "metric"

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> Image.Image:
        """The depth map, "L", of the picture's own size; black where everything is equally far."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        outputs = self.model(**inputs)
        size = (image.height, image.width)
        depth_HW: Tensor = self.processor.post_process_depth_estimation(outputs, [size])[0]["predicted_depth"]
        depth_HW = depth_HW.float().cpu()
        if self.is_metric:
            depth_HW = 1 / depth_HW.clamp(min=1e-3)
        span = depth_HW.max() - depth_HW.min()
        if not bool(span > 0):  # also for numbers that are none
            return Image.new("L", image.size)
        # cut and not rounded, as transformers' own depth pipeline does
        levels = ((depth_HW - depth_HW.min()) / span).numpy() * 255
        return Image.fromarray(levels.astype(np.uint8))


def load_depth_estimator(location: str | Path, revision: str | None, device: torch.device) -> DepthEstimator:
    """A depth estimator with its own preprocessing, without torchvision. Passes on what the libraries raise."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    with quiet_libraries():
        processor = AutoImageProcessor.from_pretrained(
            location, revision=revision, backend="pil", trust_remote_code=False
        )
        model, report = AutoModelForDepthEstimation.from_pretrained(
            location,
            revision=revision,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
    if wrong := sorted(map(str, report["missing_keys"])):
        raise ValueError(f"{len(wrong)} weights are missing, first {wrong[0]}; it is another kind of model")
    return DepthEstimator(model, processor, device)
