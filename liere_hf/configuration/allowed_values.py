"""What each numeric or enumerated option may be: one table, by the option's name."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import SchedulerType
from transformers.debug_utils import DebugOption
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from ..errors import InputError
from ..modeling.configuration_liere_vit import ALLOWED_NUMBERS
from ..modeling.number_ranges import NumberRange
from .metric_names import MEASURES

# Of padding.
MAX_PIXELS = 1024


@dataclass(frozen=True)
class Steps:
    """A number of optimizer steps, or a share of all steps: transformers reads numbers below 1 as shares.

    Attributes:
        zero: whether 0 is allowed.
    """

    zero: bool = False

    def allows(self, value: Any) -> bool:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return 0 < value < 1 or (value >= 1 and value == int(value)) or (self.zero and value == 0)

    def describe(self, value: Any) -> str:
        return f"is a number of steps, {0 if self.zero else 1} or more, or a share of them below 1"


@dataclass(frozen=True)
class PixelsOrShare(Steps):
    """A number of pixels, or a share of a side."""

    zero: bool = True

    def allows(self, value: Any) -> bool:
        return super().allows(value) and value <= MAX_PIXELS

    def describe(self, value: Any) -> str:
        return f"is a number of pixels, 0 to {MAX_PIXELS}, or a share of the side below 1"


@dataclass(frozen=True)
class Names:
    """Some names.

    Attributes:
        find: the names, looked up when a value is checked.
        is_other: whether a further name is allowed.
        other: what these are, in words.
    """

    find: Callable[[], Iterable[str]]
    is_other: Callable[[str], bool] = lambda name: False
    other: str = ""

    def allows(self, value: Any) -> bool:
        name = getattr(value, "value", value)
        return name in set(self.find()) or (isinstance(name, str) and self.is_other(name))

    def describe(self, value: Any) -> str:
        return f"are {', '.join(map(str, self.find()))}{self.other}"


@dataclass(frozen=True)
class Text:
    """Any text or path but the empty one, which would be taken for the current directory."""

    def allows(self, value: Any) -> bool:
        return os.fspath(value) != ""

    def describe(self, value: Any) -> str:
        return "is text that is not empty"


@dataclass(frozen=True)
class Only:
    """One value, as another one makes no sense here; `reason` says why."""

    value: Any
    reason: str

    def allows(self, value: Any) -> bool:
        return value == self.value

    def describe(self, value: Any) -> str:
        return f"is {self.value!r}: {self.reason}"


def _enum(kind: type) -> Names:
    return Names(lambda: [member.value for member in kind])


def _compiler_backends() -> list[str]:
    from torch import compiler

    return compiler.list_backends(exclude_tags=())


def _compiler_modes() -> list[str]:
    # Importing it takes a second.
    from torch import _inductor

    return [*_inductor.list_mode_options()]


COUNT = NumberRange(1, whole=True)
WHOLE = NumberRange(0, whole=True)
NOT_NEGATIVE = NumberRange(0)
POSITIVE = NumberRange(0, open_low=True)
PROBABILITY = NumberRange(0, 1)
SHARE = NumberRange(0, 1, open_low=True)
BELOW_ONE = NumberRange(0, 1, open_high=True)
# What NumPy takes.
SEED = NumberRange(0, 2**32 - 1, whole=True)
# More would exhaust the machine before they help.
PROCESSES = 1024

ALLOWED: Mapping[str, NumberRange | Steps | Names | Text | Only] = {
    **ALLOWED_NUMBERS,
    # The model.
    "anneal_position_embeddings_steps": COUNT,
    "attn_implementation": Names(
        lambda: ["eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in name)],
        is_other=lambda name: "/" in name,
        other=", or a kernel's id on the Hub",
    ),
    # Training: transformers' TrainingArguments, and the total batch size.
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "num_train_epochs": POSITIVE,
    "max_steps": NumberRange(1, whole=True, also=(-1,)),
    "learning_rate": POSITIVE,
    "generator_learning_rate_factor": NOT_NEGATIVE,
    "head_learning_rate_factor": NOT_NEGATIVE,
    "layer_learning_rate_decay": SHARE,
    "lora_rank": COUNT,
    "min_steps": COUNT,
    "lr_scheduler_type": _enum(SchedulerType),
    "warmup_steps": Steps(zero=True),
    "optim": _enum(OptimizerNames),
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": BELOW_ONE,
    "adam_beta2": BELOW_ONE,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "label_smoothing_factor": BELOW_ONE,
    "torch_compile_backend": Names(_compiler_backends),
    "torch_compile_mode": Names(_compiler_modes),
    "torch_empty_cache_steps": COUNT,
    "use_liger_kernel": Only(False, "it has no kernels for this architecture"),
    "neftune_noise_alpha": Only(None, "it disturbs embeddings of words"),
    "debug": _enum(DebugOption),
    "logging_strategy": _enum(IntervalStrategy),
    "logging_steps": Steps(),
    "eval_strategy": _enum(IntervalStrategy),
    "eval_steps": Steps(),
    "eval_delay": NOT_NEGATIVE,
    "eval_accumulation_steps": COUNT,
    "early_stopping_patience": COUNT,
    "save_strategy": _enum(SaveStrategy),
    "save_steps": Steps(),
    "save_total_limit": COUNT,
    "report_to": Names(lambda: ["none", "all", *sorted(INTEGRATION_TO_CALLBACK)]),
    "metric_for_best_model": Names(lambda: MEASURES, is_other=lambda name: name.removeprefix("eval_") in MEASURES),
    "include_num_input_tokens_seen": Names(lambda: [True, False, "all", "non_padding", "no"]),
    "include_for_metrics": Only([], "metrics are computed from predictions"),
    "batch_eval_metrics": Only(True, "metrics are computed batch by batch"),
    "prediction_loss_only": Only(False, "metrics are computed from all predictions"),
    "eval_do_concat_batches": Only(True, "metrics are computed from predictions"),
    "label_names": Only("labels", "the model takes no others"),
    "train_sampling_strategy": Only("random", "inputs have one length"),
    "hub_strategy": _enum(HubStrategy),
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": NumberRange(0, PROCESSES, whole=True),
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "local_rank": NumberRange(-1, whole=True),
    "output_dir": Text(),
    "predict_paths": Text(),
    # The data.
    "data_dir": Text(),
    "hub_id": Text(),
    "train_file": Text(),
    "validation_file": Text(),
    "test_file": Text(),
    "image_column_name": Text(),
    "label_column_name": Text(),
    "label_separator": Text(),
    "group_column": Text(),
    "group_pattern": Text(),
    "train_examples": COUNT,
    "eval_examples": COUNT,
    "train_fraction": SHARE,
    "eval_fraction": NumberRange(0, 1, open_low=True, open_high=True),
    "data_num_proc": NumberRange(1, PROCESSES, whole=True),
    "shuffle_buffer_size": COUNT,
    "image_mean": NumberRange(),
    "image_std": POSITIVE,
    "input_size": COUNT,
    "crop_fraction": SHARE,
    "random_crop_padding": PixelsOrShare(),
    "random_resized_crop": PROBABILITY,
    "train_input_sizes": COUNT,
    "rand_augment_num_ops": WHOLE,
    "rand_augment_magnitude": NumberRange(0, 30),
    "rand_augment_magnitude_std": NOT_NEGATIVE,
    "rand_augment_probability": PROBABILITY,
    "random_erasing": PROBABILITY,
    "mixup_alpha": NOT_NEGATIVE,
    "cutmix_alpha": NOT_NEGATIVE,
    "ucf101_split": NumberRange(1, 3, whole=True),
    "frame_stride": COUNT,
    "eval_segments": COUNT,
    "eval_crops": Names(lambda: [1, 3]),
    "intensity_window": NumberRange(),
    "volume_spacing": POSITIVE,
    "arrows_grid_size": COUNT,
    "arrows_cell_size": COUNT,
    "arrows_num_distractor_arrows": WHOLE,
    "arrows_num_distractor_letters": NumberRange(0, 5, whole=True),
    "arrows_seed": SEED,
    # Arguments of commands.
    "rounds": COUNT,
    "batch_size": COUNT,
    "top_k": COUNT,
    "num_workers": NumberRange(0, PROCESSES, whole=True),
    "port": NumberRange(1, 65535, whole=True),
}


def require_allowed(options: Mapping[str, Any]) -> None:
    """Compare options with the table. A list's values are compared one by one; None stands for a default.

    Raises:
        InputError: a value that is not allowed, in one sentence with the option, its value and what is allowed.
    """
    for name, value in options.items():
        allowed = ALLOWED.get(name)
        if allowed is None or value is None:
            continue
        if not all(map(allowed.allows, value if isinstance(value, list | tuple) else [value])):
            raise InputError(f"{name} is {getattr(value, 'value', value)!r}, allowed {allowed.describe(value)}")
