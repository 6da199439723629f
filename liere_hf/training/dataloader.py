"""The training data's DataLoader, and how a stream resumes."""

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.batching import StreamedExamples
from .class_balance import BalancedSampler


def build_train_dataloader(
    dataset: Dataset, batch_size: int, collator: Callable, args: TrainingArguments, accelerator: Accelerator
) -> DataLoader:
    """Batches for this process: from its own shards of a stream, otherwise every `world_size`-th batch of an epoch.

    With `dataloader_drop_last` an epoch drops the examples beyond whole optimizer steps, different ones in each
    epoch, so that its length does not depend on the number of processes.

    Args:
        batch_size: of this process; a stream has its own.
    """
    is_stream = isinstance(dataset, StreamedExamples)
    dataloader = DataLoader(
        dataset,
        batch_size=dataset.batch_size if is_stream else batch_size,
        sampler=None if is_stream else _sampler(dataset, batch_size, args),
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        in_order=args.dataloader_in_order,
        # Starting workers draws from it. From the global generator, it would change the dropout of a resumed run, in
        # which workers are not started as often.
        generator=torch.Generator().manual_seed(args.seed),
    )
    return dataloader if is_stream else accelerator.prepare(dataloader)


def _sampler(dataset: Dataset, batch_size: int, args: TrainingArguments) -> Sampler:
    step = batch_size * args.world_size * args.gradient_accumulation_steps
    num_samples = len(dataset) // step * step if args.dataloader_drop_last else len(dataset)
    if getattr(args, "balanced_sampling", False):
        return BalancedSampler(dataset, num_samples, args.seed)
    return RandomSampler(dataset, num_samples=num_samples)


class StreamResumption(TrainerCallback):
    """Tells a stream which batches Trainer will skip when it resumes, so that their images are not decoded."""

    def __init__(self, stream: StreamedExamples):
        self.stream = stream

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        steps_per_epoch = math.ceil(self.stream.num_batches / args.gradient_accumulation_steps)
        epoch, step = divmod(state.global_step, steps_per_epoch)
        self.stream.resume(epoch, 0 if args.ignore_data_skip else step * args.gradient_accumulation_steps)
