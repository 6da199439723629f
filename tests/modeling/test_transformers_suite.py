"""transformers' common model, backbone and configuration tests, and its pipelines, for every model class."""

import math
import tempfile
import unittest
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Pipeline, PreTrainedModel, ViTImageProcessor, pipeline
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device
from transformers.utils import logging
from transformers_source import transformers_test_module

from liere_hf import (
    LiereViTBackbone,
    LiereViTConfig,
    LiereViTForImageClassification,
    LiereViTForMaskedImageModeling,
    LiereViTForVideoClassification,
    LiereViTModel,
    LiereViTVideoProcessor,
)
from liere_hf.modeling.modeling_liere_vit import LiereViTPatchEmbeddings

ModelTesterMixin = transformers_test_module("test_modeling_common").ModelTesterMixin
ConfigTester = transformers_test_module("test_configuration_common").ConfigTester
BackboneTesterMixin = transformers_test_module("test_backbone_common").BackboneTesterMixin


class LiereViTModelTester:
    """Configuration and inputs of a small model, with the attributes that the common tests read."""

    is_training = True

    def __init__(self, **config_options: object):
        self.config_options = {
            "image_size": 16,
            "patch_size": 4,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 37,
            "generator_block_size": 4,
            "generator_init": "uniform",
            "out_features": ["stage1", "stage2"],
            **config_options,
        }
        config = self.get_config()
        self.batch_size = 3
        self.hidden_size = config.hidden_size
        self.num_hidden_layers = config.num_hidden_layers
        self.num_attention_heads = config.num_attention_heads
        self.num_patches = math.prod(config.grid_size)
        self.seq_length = config.num_prefix_tokens + self.num_patches
        self.mask_length = self.num_patches
        self.num_masks = self.num_patches // 2

    def get_config(self) -> LiereViTConfig:
        return LiereViTConfig(**self.config_options)

    def prepare_config_and_inputs_for_common(self) -> tuple[LiereViTConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        shape = (config.num_channels, *config.spatial_image_size)
        if config.num_axes == 3:
            frames, height, width = config.spatial_image_size
            shape = (frames, config.num_channels, height, width)
        return config, {"pixel_values": torch.rand(self.batch_size, *shape, device=torch_device)}

    def bool_masked_pos(self) -> torch.Tensor:
        mask = torch.arange(self.num_patches, device=torch_device) < self.num_masks
        return mask.expand(self.batch_size, -1)


class LiereViTTesterMixin(ModelTesterMixin):
    """The common model tests, and the configuration's, for the model of `config_options`."""

    config_options: ClassVar[dict[str, object]] = {}
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = LiereViTModelTester(**self.config_options)
        # The common tests look up labels, and which models to train, in these tables of transformers' own models.
        for table, model_class in (
            ("MODEL_MAPPING_NAMES", LiereViTModel),
            ("MODEL_FOR_BACKBONE_MAPPING_NAMES", LiereViTBackbone),
            ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", LiereViTForImageClassification),
            ("MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES", LiereViTForVideoClassification),
        ):
            entry = patch.dict(getattr(modeling_auto, table), liere_vit=model_class.__name__)
            entry.start()
            self.addCleanup(entry.stop)
        # Some common tests read warnings, which TRANSFORMERS_VERBOSITY may have silenced.
        self.addCleanup(logging.set_verbosity, logging.get_verbosity())
        logging.set_verbosity_warning()

    def _prepare_for_class(
        self, inputs_dict: dict[str, object], model_class: type[PreTrainedModel], return_labels: bool = False
    ) -> dict[str, object]:
        """As inherited, with a mask instead of labels for masked image modeling."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class is LiereViTForMaskedImageModeling:
            inputs["bool_masked_pos"] = self.model_tester.bool_masked_pos()
        return inputs

    def test_model_get_set_embeddings(self):
        """As ViT's own: the input embeddings are those of patches, there are no output embeddings."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), LiereViTPatchEmbeddings)
            self.assertIsNone(model.get_output_embeddings())

    def test_config(self):
        options = {key: value for key, value in self.model_tester.config_options.items() if key != "out_features"}
        ConfigTester(self, config_class=LiereViTConfig, has_text_modality=False, **options).run_common_tests()


# The unmarked test_attention_implementations_agree has the same for all encodings in float32.
for name in vars(ModelTesterMixin):
    if name.startswith("test_eager_matches_sdpa_inference"):
        pytest.mark.extensive(getattr(ModelTesterMixin, name))


def without_repetitions(suite: type) -> type:
    """Leave out what the first suite shows for all: half precision with sdpa, and the former name of `dtype`.

    test_attention_implementations_agree compares sdpa for every encoding and number of axes.
    """
    for name in dir(suite):
        if name.startswith(("test_eager_matches_sdpa_inference", "test_bc_torch_dtype")):
            setattr(suite, name, None)
    return suite


class LiereViTModelTest(LiereViTTesterMixin, unittest.TestCase):
    """Images, LieRE."""

    all_model_classes = (
        LiereViTModel,
        LiereViTForImageClassification,
        LiereViTForMaskedImageModeling,
        LiereViTBackbone,
    )

    @pytest.mark.extensive
    def test_bc_torch_dtype(self):
        super().test_bc_torch_dtype()


@pytest.mark.extensive
@without_repetitions
class LiereViTVideoModelTest(LiereViTTesterMixin, unittest.TestCase):
    """Clips and volumes, LieRE."""

    all_model_classes = (
        LiereViTModel,
        LiereViTForVideoClassification,
        LiereViTForMaskedImageModeling,
        LiereViTBackbone,
    )
    config_options: ClassVar[dict[str, object]] = {"image_size": [4, 16, 16], "patch_size": [2, 4, 4]}


@pytest.mark.extensive
@without_repetitions
class LiereViTRopeMixedModelTest(LiereViTTesterMixin, unittest.TestCase):
    """RoPE-Mixed, with the options that change which parameters and tokens there are."""

    all_model_classes = LiereViTModelTest.all_model_classes
    config_options: ClassVar[dict[str, object]] = {
        "position_encoding": "rope_mixed",
        "generator_block_size": 2,
        "share_generators_across_layers": True,
        "share_generators_across_heads": True,
        "use_absolute_position_embeddings": True,
        "num_register_tokens": 2,
        "use_cls_token": False,
        "pooling": "mean",
        "layer_scale_init_value": 0.1,
        "qkv_bias": True,
    }


@pytest.mark.extensive
@without_repetitions
class LiereViTAbsoluteModelTest(LiereViTTesterMixin, unittest.TestCase):
    """The learned position table, without rotations."""

    all_model_classes = LiereViTModelTest.all_model_classes
    config_options: ClassVar[dict[str, object]] = {"position_encoding": "absolute"}

    @unittest.skip(reason="A model without rotations has no generators, the only weights kept in float32")
    def test_keep_in_fp32_modules_exist(self):
        pass


class LiereViTBackboneTest(BackboneTesterMixin, unittest.TestCase):
    """Feature maps of images."""

    all_model_classes = (LiereViTBackbone,)
    config_class = LiereViTConfig
    config_options: ClassVar[dict[str, object]] = {}

    def setUp(self):
        self.model_tester = LiereViTModelTester(**self.config_options)


@pytest.mark.extensive
class LiereViTVideoBackboneTest(LiereViTBackboneTest):
    """Feature maps of clips and volumes."""

    config_options = LiereViTVideoModelTest.config_options


class LiereViTPipelineTest(unittest.TestCase):
    """Pipelines on saved models. transformers' PipelineTesterMixin cannot be used: it runs models of the Hub."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def saved_pipeline(
        self,
        task: str,
        model_class: type[PreTrainedModel],
        processor: ViTImageProcessor | LiereViTVideoProcessor,
        **config_options: object,
    ) -> Pipeline:
        """A pipeline for a new model and its processor, loaded from a directory as from the Hub."""
        model_class(LiereViTModelTester(**config_options).get_config()).save_pretrained(self.directory)
        processor.save_pretrained(self.directory)
        return pipeline(task, model=str(self.directory))

    def image(self) -> Image.Image:
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))

    def check_scores(self, results: list[dict[str, object]], classifier: Pipeline, inputs: dict) -> None:
        """Labels and scores are those of the model, sorted by score."""
        with torch.no_grad():
            scores, labels = classifier.model(**inputs).logits[0].softmax(-1).sort(descending=True)
        self.assertEqual(
            [result["label"] for result in results], [classifier.model.config.id2label[i] for i in labels.tolist()]
        )
        torch.testing.assert_close(torch.tensor([result["score"] for result in results]), scores)

    def test_image_classification(self):
        processor = ViTImageProcessor(size={"height": 16, "width": 16})
        classifier = self.saved_pipeline(
            "image-classification", LiereViTForImageClassification, processor, num_labels=3
        )
        image = self.image()
        single, batched = classifier(image), classifier([image, image])
        self.check_scores(single, classifier, processor(image, return_tensors="pt"))
        self.assertEqual(batched, [single, single])

    def test_image_feature_extraction(self):
        processor = ViTImageProcessor(size={"height": 16, "width": 16})
        extractor = self.saved_pipeline("image-feature-extraction", LiereViTModel, processor)
        image = self.image()
        with torch.no_grad():
            expected = extractor.model(**processor(image, return_tensors="pt"))
        torch.testing.assert_close(torch.tensor(extractor(image)), expected.last_hidden_state)
        torch.testing.assert_close(extractor(image, pool=True, return_tensors=True), expected.pooler_output)

    def test_video_classification(self):
        processor = LiereViTVideoProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        classifier = self.saved_pipeline(
            "video-classification",
            LiereViTForVideoClassification,
            processor,
            num_labels=3,
            **LiereViTVideoModelTest.config_options,
        )
        path = str(self.directory / "clip.mp4")
        with av.open(path, "w") as container:
            stream = container.add_stream("mpeg4", rate=8, width=24, height=20, pix_fmt="yuv420p")
            frames = np.random.default_rng(0).integers(0, 256, (8, 20, 24, 3), dtype=np.uint8)
            pictures = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames]
            container.mux([packet for picture in [*pictures, None] for packet in stream.encode(picture)])
        inputs = processor(path, num_frames=4, do_sample_frames=True, return_tensors="pt")
        self.assertEqual(inputs["pixel_values"].shape, (1, 4, 3, 16, 16))
        self.check_scores(classifier(path), classifier, inputs)
