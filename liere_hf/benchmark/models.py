"""Speed and memory of models with rotations, relative to transformers' ViT of the same size."""

import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import torch
from accelerate.utils import compile_regions
from torch import nn
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    VivitConfig,
    VivitForVideoClassification,
)
from transformers.utils.generic import maybe_autocast

from ..configuration import compared_encodings, encoding_options
from ..configuration.allowed_values import require_allowed
from ..configuration.arguments import PRESETS as MODEL_PRESETS
from ..errors import InputError, RunError
from ..flops import count_flops, count_rotation_flops
from ..hardware import explaining_lack_of_memory, hardware
from ..modeling import modeling_liere_vit
from ..modeling.configuration_liere_vit import LiereViTConfig
from ..modeling.modeling_liere_vit import (
    LiereViTForImageClassification,
    LiereViTForVideoClassification,
    LiereViTRotations,
)
from ..progress import tracked
from .timing import elapsed, median_ratio, peak_resident_mib

REFERENCE = "ViT (transformers)"
ABSOLUTE = "absolute"
PUBLISHED = "liere64, published way"
PUBLISHED_BY_EINSUM = "liere64, published way by einsum"
# These take so long that fewer rounds have to do.
PUBLISHED_WAYS = (PUBLISHED_BY_EINSUM, PUBLISHED)
PUBLISHED_ROUNDS = 3
LESS_MEMORY = "take a smaller batch_size or fewer contestants"


def contestant_names() -> tuple[str, ...]:
    """transformers' ViT, and ours with every encoding."""
    return (REFERENCE, *_encodings())


def _encodings() -> dict[str, dict[str, Any]]:
    """Fields of LiereViTConfig by contestant."""
    return {
        **{compared.paper_name: compared.options for compared in compared_encodings().values()},
        # Not compared in experiments.
        "liere16": encoding_options("liere", 16),
        # As new models start: smaller norms, which take fewer squarings.
        "liere64_planar": encoding_options("liere", 64) | {"generator_init": "planar"},
        **dict.fromkeys(PUBLISHED_WAYS, encoding_options("liere", 64)),
    }


@dataclass(frozen=True)
class Preset:
    """Sizes of the models, of their inputs and of the batch."""

    model_preset: str
    image_size: tuple[int, ...]
    patch_size: tuple[int, ...]
    num_labels: int
    batch_size: int


PRESETS = {
    "tiny-cifar": Preset("tiny", (32, 32), (4, 4), num_labels=100, batch_size=64),
    "base-imagenet": Preset("base", (224, 224), (16, 16), num_labels=1000, batch_size=128),
    "base-video": Preset("base", (16, 224, 224), (2, 16, 16), num_labels=101, batch_size=1),
}


def benchmark_models(
    preset: str,
    device: str | None = None,
    batch_size: int | None = None,
    rounds: int = 9,
    contestants: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Time a training step (AdamW) and an evaluation step of every contestant, one after another in each round.

    In float32 on a CPU. In bfloat16 by autocast, with compiled layers, on a GPU. Dropout is 0.

    Args:
        preset: a name of `PRESETS`.
        device: cpu or cuda (default: cuda if available).
        batch_size: instead of the preset's.
        rounds: measured rounds, after one that warms up.
        contestants: some of `contestant_names()`, all if not given. The reference and the absolute model, with which
            the others are compared, are always there.

    Returns:
        For each contestant the seconds, the ratios to transformers' ViT in the same round with 95% intervals of their
        median, the peak memory, parameters and FLOPs. Also the settings and the hardware.

    Raises:
        InputError: the preset, device or a contestant does not exist, or a size is below 1.
        RunError: memory ran out.
    """
    sizes = _checked_sizes(preset, batch_size, rounds)
    names = _checked_contestants(contestants)
    device = checked_device(device)
    with explaining_lack_of_memory(device, LESS_MEMORY):
        seconds, peak_memory = _measure_steps(names, sizes, device, rounds)
    rows = []
    for name in names:
        row = {"name": name, **_parameters_and_flops(name, sizes)}
        for step, times in seconds[name].items():
            reference = seconds[REFERENCE][step][: len(times)]
            row[f"{step}_seconds"] = statistics.median(times)
            row |= median_ratio(f"{step}_ratio", times, reference)
        row["peak_memory_mib"] = peak_memory[name]
        rows.append(row)
    ours = seconds["liere64"]["training"] if "liere64" in seconds else []
    published = {name: seconds[name]["training"] for name in PUBLISHED_WAYS if name in seconds and ours}
    return {
        "preset": preset,
        "sizes": asdict(sizes),
        "rounds": rounds,
        "dtype": "float32" if device.type == "cpu" else "bfloat16 by autocast, layers compiled",
        "threads": torch.get_num_threads(),
        "models": rows,
        "liere64_speedup": {
            name: median_ratio("training", times, ours[: len(times)]) for name, times in published.items()
        },
        "hardware": hardware(),
    }


def _checked_sizes(preset: str, batch_size: int | None, rounds: int) -> Preset:
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}, allowed are {', '.join(PRESETS)}")
    require_allowed({"batch_size": batch_size, "rounds": rounds})
    sizes = PRESETS[preset]
    return sizes if batch_size is None else Preset(**{**asdict(sizes), "batch_size": batch_size})


def _checked_contestants(names: Sequence[str] | None) -> list[str]:
    known = contestant_names()
    for name in names or ():
        if name not in known:
            raise InputError(f"contestants has {name!r}, allowed are {'; '.join(known)}")
    return [name for name in known if names is None or name in (REFERENCE, ABSOLUTE, *names)]


def checked_device(device: str | None) -> torch.device:
    """The device to measure on, by default cuda if available."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device is {device!r}, allowed are cpu and cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device is {device!r}, but no CUDA device is available")
    return torch.device(device)


def build_contestant(name: str, sizes: Preset) -> PreTrainedModel:
    """A model of the given sizes, by its name among `contestant_names()`."""
    dimensions = MODEL_PRESETS[sizes.model_preset] | {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if name != REFERENCE:
        config = LiereViTConfig(
            **dimensions,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            num_labels=sizes.num_labels,
            # By default the start with the largest norms, which cost most.
            **{"generator_init": "uniform"} | _encodings()[name],
        )
        is_video = len(sizes.image_size) == 3
        model = (LiereViTForVideoClassification if is_video else LiereViTForImageClassification)(config)
        if name in PUBLISHED_WAYS:
            rotations = PublishedRotations(config)
            rotations.generators = model.liere_vit.rotations.generators
            model.liere_vit.rotations = rotations
        return model
    dimensions.pop("head_dim")
    dimensions |= {"qkv_bias": False, "num_labels": sizes.num_labels, "image_size": sizes.image_size[-1]}
    if len(sizes.image_size) == 2:
        return ViTForImageClassification(ViTConfig(**dimensions, patch_size=sizes.patch_size[0]))
    config = VivitConfig(**dimensions, num_frames=sizes.image_size[0], tubelet_size=list(sizes.patch_size))
    return VivitForVideoClassification(config)


class PublishedRotations(LiereViTRotations):
    """As in the authors' code: torch.matrix_exp at every position of every layer, in every forward pass."""

    def forward(
        self, positions: torch.Tensor, dtype: torch.dtype, grid_size: tuple[int, ...] | None = None
    ) -> tuple[torch.Tensor, ...]:
        positions = nn.functional.pad(positions, (0, 0, self.config.num_prefix_tokens, 0)).to(self.generators)
        upper = self.generators.triu(1)
        skew = upper - upper.mT
        with maybe_autocast(positions.device.type, enabled=False):
            exponents = torch.einsum("bta,lahnij->lbthnij", positions, skew)
            return _matrix_exp(exponents).to(dtype).unbind(0)


@torch.compiler.disable
def _matrix_exp(exponents: torch.Tensor) -> torch.Tensor:
    # Compiled code gives it strides that it refuses.
    return torch.linalg.matrix_exp(exponents.contiguous())


def _rotate_by_einsum(query: torch.Tensor, key: torch.Tensor, rotations: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.einsum("thij,bthj->bthi", rotations[0, :, :, 0], states) for states in (query, key))


def _rotate_vectors(query: torch.Tensor, key: torch.Tensor, rotations: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One matrix-vector product for every token of every sample, as in the authors' code."""
    return tuple((rotations @ states.unflatten(-1, (1, -1, 1))).flatten(-3) for states in (query, key))


@contextmanager
def _application(name: str) -> Iterator[None]:
    """Replace the application of rotations by that of the contestant."""
    ways = {PUBLISHED_BY_EINSUM: _rotate_by_einsum, PUBLISHED: _rotate_vectors}
    with (
        mock.patch.object(modeling_liere_vit, "rotate_queries_and_keys", ways[name]) if name in ways else nullcontext()
    ):
        yield


class Steps:
    """A training and an evaluation step of one contestant on random data, in bfloat16 if compiled."""

    def __init__(self, name: str, sizes: Preset, device: torch.device, compiled: bool):
        torch.manual_seed(0)
        self.name, self.device, self.compiled = name, device, compiled
        self.model = build_contestant(name, sizes).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.forward: Callable = self.model
        if compiled:
            self.forward = torch.compile(self.model) if name in PUBLISHED_WAYS else compile_regions(self.model)
        # Images are (channels, height, width), clips (frames, channels, height, width).
        *frames, height, width = sizes.image_size
        self.pixel_values = torch.randn(sizes.batch_size, *frames, 3, height, width, device=device)
        self.labels = torch.randint(sizes.num_labels, (sizes.batch_size,), device=device)

    def training(self) -> None:
        self.model.train()
        with _application(self.name), self._autocast():
            loss = self.forward(pixel_values=self.pixel_values, labels=self.labels).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def evaluation(self) -> None:
        self.model.eval()
        with _application(self.name), self._autocast():
            self.forward(pixel_values=self.pixel_values)

    def seconds(self, step: str) -> float:
        """Seconds of `training` or `evaluation`."""
        if step == "evaluation" and self.name not in PUBLISHED_WAYS:
            # After training, the first evaluation computes and caches the rotations, which is not timed.
            self.evaluation()
        return elapsed(getattr(self, step), self.device)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.compiled)


class StepsOfProcess:
    """`Steps` on a CPU in a separate process, so that memory left by one contestant does not slow down others."""

    def __init__(self, name: str, sizes: Preset):
        # The fork server has imported everything and done nothing else, so all processes start from the same memory.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.name = name
        self._connection, connection = context.Pipe()
        arguments = (connection, name, sizes, torch.get_num_threads())
        self._process = context.Process(target=_serve_steps, args=arguments, daemon=True)
        self._process.start()
        connection.close()

    def seconds(self, step: str) -> float:
        return self._ask(step)

    def end(self) -> float:
        """End the process, and return its peak memory in MiB above that of the bare process."""
        peak = self._ask("end")
        self._process.join()
        return peak

    def _ask(self, question: str) -> float:
        try:
            self._connection.send(question)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise RunError(
                f"the process of {self.name} ended with exit code {self._process.exitcode}; if memory ran out, "
                f"{LESS_MEMORY}"
            ) from error


def _serve_steps(connection: Connection, name: str, sizes: Preset, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    before = peak_resident_mib()
    steps = Steps(name, sizes, torch.device("cpu"), compiled=False)
    # Without a word if the process that asks has ended.
    with suppress(EOFError):
        while (question := connection.recv()) != "end":
            connection.send(steps.seconds(question))
        connection.send(peak_resident_mib() - before)


def _measure_steps(
    names: Sequence[str], sizes: Preset, device: torch.device, rounds: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
    """Seconds of the steps of all contestants, and their peak memory in MiB, on a GPU that of training only."""
    on_cpu = device.type == "cpu"
    contestants = [
        StepsOfProcess(name, sizes) if on_cpu else Steps(name, sizes, device, compiled=True) for name in names
    ]
    seconds = {name: {"training": [], "evaluation": []} for name in names}
    peak_memory = {}
    for round_number in tracked(range(rounds + 1), "Timing"):
        for steps in contestants:
            if steps.name in PUBLISHED_WAYS and round_number > min(rounds, PUBLISHED_ROUNDS):
                if on_cpu and steps.name not in peak_memory:
                    peak_memory[steps.name] = steps.end()
                continue
            for step, times in seconds[steps.name].items():
                taken = steps.seconds(step)
                if round_number:
                    times.append(taken)
    if on_cpu:
        peak_memory |= {steps.name: steps.end() for steps in contestants if steps.name not in peak_memory}
    else:
        contestants.clear()
        peak_memory = {name: _peak_memory_of_device(name, sizes, device) for name in names}
    return seconds, peak_memory


def _parameters_and_flops(name: str, sizes: Preset) -> dict[str, float]:
    """FLOPs of matrix products in one forward pass: of a sample, and of the rotations, once for a batch."""
    with torch.device("meta"):
        model = build_contestant(name, sizes).eval()
        *frames, height, width = sizes.image_size
        pixel_values = torch.empty(1, *frames, 3, height, width)
    with _application(name):
        flops = count_flops(model, pixel_values)
    config = model.config
    is_ours = isinstance(config, LiereViTConfig)
    return {
        "parameters": model.num_parameters(),
        "gflops_per_sample": flops / 1e9,
        "gflops_of_rotations": count_rotation_flops(config, config.grid_size) / 1e9 if is_ours else 0.0,
    }


def _peak_memory_of_device(name: str, sizes: Preset, device: torch.device) -> float:
    steps = Steps(name, sizes, device, compiled=True)
    steps.training()
    torch.cuda.reset_peak_memory_stats(device)
    steps.training()
    return torch.cuda.max_memory_allocated(device) / 2**20
