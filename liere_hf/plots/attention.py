"""Where a classifier looks: attention rollout, and relevance by gradients of the answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from ..modeling.configuration_liere_vit import LiereViTConfig


@dataclass(frozen=True)
class AttentionMaps:
    """What the pooled token takes from each patch, after each layer.

    Entry n - 1 of `rollout` and `relevance` is of the layers 1 to n together, the last one of the whole model. Neither
    has the parts of CLS and registers.

    Attributes:
        labels: the explained output of each input, (batch,).
        names: what these are called.
        logits: (batch, labels).
        rollout: shares of the pooled token, (layers, batch, *grid). They sum to at most 1.
        relevance: for the explained output, (layers, batch, *grid). 0 or more, without a unit.
    """

    labels: torch.Tensor
    names: tuple[str, ...]
    logits: torch.Tensor
    rollout: torch.Tensor
    relevance: torch.Tensor


def attention_maps(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    positions: torch.Tensor | None = None,
    labels: Sequence[int] | None = None,
) -> AttentionMaps:
    """Attention rollout (arXiv 2005.00928) and relevance (Chefer et al., arXiv 2103.15679) of a classifier.

    With A the attention of a layer, its mean over heads for rollout, and G the gradient of the explained output by A:

    - rollout is the product of (A + I) / 2 over the layers;
    - relevance starts as I, and each layer adds max(G * A, 0), averaged over heads, times what is there.

    Of both, the rows of the tokens that the model pools are averaged: CLS, or all that its mean takes. Relevance is
    without the I of its start, which is the same for all patches.

    Args:
        model: in evaluation mode. Attention is `eager` while this runs, since others do not give their weights:
            threads that share a model load it with `attn_implementation="eager"`.
        pixel_values: as the model takes them.
        positions: as the model takes them.
        labels: the output to explain of each input; the largest one by default.

    Raises:
        InputError: a label that the model does not have.
    """
    with torch.inference_mode(False), torch.enable_grad(), _eager_attention(model):
        # Weights may be frozen: the graph begins with the input.
        pixel_values = pixel_values.clone().requires_grad_()
        outputs = model(pixel_values, positions=positions, output_attentions=True)
        logits = outputs.logits
        chosen = logits.argmax(1) if labels is None else _checked(labels, model.config).to(logits.device)
        gradients = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), outputs.attentions)
    attentions = [attention.detach() for attention in outputs.attentions]
    gains = [(gradient * attention).relu().mean(1) for gradient, attention in zip(gradients, attentions, strict=True)]
    grid_size = model.config.grid_of(_size(pixel_values, model.config.num_axes))
    pooled = pooling_weights(model.config, attentions[0].shape[-1]).to(logits)
    return AttentionMaps(
        chosen.cpu(),
        tuple(model.config.id2label[label] for label in chosen.tolist()),
        logits.detach().cpu(),
        _of_patches(rollout([attention.mean(1) for attention in attentions], pooled), grid_size).cpu(),
        _of_patches(relevance(gains, pooled), grid_size).cpu(),
    )


def pooling_weights(config: LiereViTConfig, num_tokens: int) -> torch.Tensor:
    """The share of each token, prefix and patches, in the pooled one: (tokens,), with sum 1."""
    weights = torch.zeros(num_tokens, dtype=torch.float64)
    if config.pooling == "cls":
        weights[0] = 1
        return weights
    weights[config.num_prefix_tokens :] = 1
    if config.use_cls_token and config.pooling == "mean":
        weights[0] = 1
    return weights / weights.sum()


def rollout(attentions: Sequence[torch.Tensor], pooled: torch.Tensor) -> torch.Tensor:
    """Attention rollout after each layer.

    Args:
        attentions: of each layer, mean of heads, (batch, tokens, tokens).
        pooled: weights of the rows, (tokens,).

    Returns:
        Tensor of shape (layers, batch, tokens).
    """
    return _products(attentions, pooled, lambda row, attention: (row @ attention + row) / 2)


def relevance(gains: Sequence[torch.Tensor], pooled: torch.Tensor) -> torch.Tensor:
    """Relevance after each layer, without that of a token for itself at the start.

    Args:
        gains: of each layer, mean over heads of gradient times attention where that is positive, (batch, tokens,
            tokens).
        pooled: weights of the rows, (tokens,).

    Returns:
        Tensor of shape (layers, batch, tokens).
    """
    return _products(gains, pooled, lambda row, gain: row @ gain + row) - pooled


def _products(matrices: Sequence[torch.Tensor], pooled: torch.Tensor, step) -> torch.Tensor:
    """The pooled row of the product of the first n matrices, for every n.

    Row by row from the last matrix on: products of whole matrices would take much longer for the tokens of a clip.
    """
    rows = []
    for count in range(1, len(matrices) + 1):
        row = pooled.expand(len(matrices[0]), 1, -1)
        for matrix in reversed(matrices[:count]):
            row = step(row, matrix)
        rows.append(row[:, 0])
    return torch.stack(rows)


def _of_patches(rows: torch.Tensor, grid_size: tuple[int, ...]) -> torch.Tensor:
    """(layers, batch, tokens) to (layers, batch, *grid); the patches are the last tokens."""
    num_patches = torch.Size(grid_size).numel()
    return rows[..., -num_patches:].unflatten(-1, grid_size)


def _size(pixel_values: torch.Tensor, num_axes: int) -> list[int]:
    """Pixels along each axis."""
    shape = list(pixel_values.shape)
    return shape[2:] if num_axes < 3 else [shape[1], *shape[3:]]


def _checked(labels: Sequence[int], config: LiereViTConfig) -> torch.Tensor:
    wrong = [label for label in labels if not 0 <= label < config.num_labels]
    if wrong:
        raise InputError(f"label is {wrong[0]}, allowed are 0 to {config.num_labels - 1}")
    return torch.as_tensor(labels)


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    if before != "eager":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if before != "eager":
            model.set_attn_implementation(before)
