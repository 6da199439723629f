"""LieRE vision transformers for Hugging Face transformers: attention with learned rotations, in any number of axes.

Importing this package lets transformers' Auto classes, processors and pipelines resolve the model type `liere_vit`.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    ViTImageProcessor,
)

from .modeling.configuration_liere_vit import LiereViTConfig
from .modeling.exponential import skew_matrix_exp
from .modeling.modeling_liere_vit import (
    LiereViTBackbone,
    LiereViTForImageClassification,
    LiereViTForMaskedImageModeling,
    LiereViTForVideoClassification,
    LiereViTModel,
    LiereViTPreTrainedModel,
)
from .modeling.positions import grid_positions
from .modeling.video_processing_liere_vit import LiereViTVideoProcessor
from .version import __version__

AutoConfig.register("liere_vit", LiereViTConfig, exist_ok=True)
AutoModel.register(LiereViTConfig, LiereViTModel, exist_ok=True)
AutoModelForImageClassification.register(LiereViTConfig, LiereViTForImageClassification, exist_ok=True)
AutoModelForVideoClassification.register(LiereViTConfig, LiereViTForVideoClassification, exist_ok=True)
AutoModelForMaskedImageModeling.register(LiereViTConfig, LiereViTForMaskedImageModeling, exist_ok=True)
AutoBackbone.register(LiereViTConfig, LiereViTBackbone, exist_ok=True)
AutoImageProcessor.register(LiereViTConfig, image_processor_classes={"torchvision": ViTImageProcessor}, exist_ok=True)
AutoVideoProcessor.register(LiereViTConfig, LiereViTVideoProcessor, exist_ok=True)

__all__ = [
    "LiereViTBackbone",
    "LiereViTConfig",
    "LiereViTForImageClassification",
    "LiereViTForMaskedImageModeling",
    "LiereViTForVideoClassification",
    "LiereViTModel",
    "LiereViTPreTrainedModel",
    "LiereViTVideoProcessor",
    "__version__",
    "grid_positions",
    "skew_matrix_exp",
]
