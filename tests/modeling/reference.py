"""A second implementation of the classifier, from the paper, in NumPy and float64, token by token."""

import itertools

import numpy as np
import scipy.linalg
import scipy.special


def patch_vectors(pixels, patch_size):
    """(channels, *size) -> (patches, prod(patch_size) * channels), in row-major order, channels last."""
    grid_size = [extent // patch for extent, patch in zip(pixels.shape[1:], patch_size, strict=True)]
    vectors = []
    for index in np.ndindex(*grid_size):
        window = tuple(slice(i * patch, (i + 1) * patch) for i, patch in zip(index, patch_size, strict=True))
        vectors.append(np.moveaxis(pixels[(slice(None), *window)], 0, -1).ravel())
    return np.array(vectors)


def rescaled_positions(grid_size):
    axes = [np.arange(steps) / max(steps - 1, 1) for steps in grid_size]
    return np.array(list(itertools.product(*axes)))


def axial_angles(position, head_dim):
    """VisionLLaMA: the angle of every pair of head dimensions, 0 for the remaining ones."""
    count = head_dim // (2 * len(position))
    angles = np.outer(position, np.exp(-4 * np.linspace(0, 1, count))).ravel()
    return np.pad(angles, (0, head_dim // 2 - len(angles)))


def head_rotation(config, generators, layer, head, position):
    """R(p), (head_dim, head_dim)."""
    if config.position_encoding == "visionllama":
        blocks = [angle * np.array([[0, -1], [1, 0]]) for angle in axial_angles(position, config.head_dim)]
    else:
        layer, head = min(layer, generators.shape[0] - 1), min(head, generators.shape[2] - 1)
        upper = np.triu(np.einsum("a,anij->nij", position, generators[layer, :, head]), k=1)
        blocks = upper - upper.swapaxes(-1, -2)
    return scipy.linalg.expm(scipy.linalg.block_diag(*blocks))


def layer_norm(states, weight, bias, eps):
    centered = states - states.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + eps) * weight + bias


def reference_logits(model, pixel_values):
    """Logits of an image classifier with exact GELU, rescaled positions and no dropout, (batch, num_labels)."""
    config = model.config
    weights = {name.removeprefix("liere_vit."): p.detach().double().numpy() for name, p in model.named_parameters()}

    def linear(states, name):
        return states @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def norm(states, name):
        return layer_norm(states, weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps)

    pixels = pixel_values.double().numpy()
    pixels = pixels if config.num_axes < 3 else pixels.swapaxes(1, 2)
    patch_size = config.spatial_patch_size
    grid_size = [extent // patch for extent, patch in zip(pixels.shape[2:], patch_size, strict=True)]
    positions = rescaled_positions(grid_size)
    prefix = [weights[name][0] for name in ("embeddings.cls_token", "embeddings.register_tokens") if name in weights]
    num_prefix = sum(len(tokens) for tokens in prefix)
    head_dim, num_heads = config.head_dim, config.num_attention_heads

    logits = []
    for sample in pixels:
        patches = linear(patch_vectors(sample, patch_size), "embeddings.patch_embeddings.projection")
        if "embeddings.position_embeddings" in weights:
            patches = patches + weights["embeddings.position_embeddings"][0]
        states = np.concatenate([*prefix, patches])
        for layer in range(config.num_hidden_layers):
            normed = norm(states, f"layers.{layer}.layernorm_before")
            query, key, value = (linear(normed, f"layers.{layer}.attention.{name}_proj") for name in "qkv")
            mixed = np.zeros_like(query)
            for head in range(num_heads):
                part = slice(head * head_dim, (head + 1) * head_dim)
                q, k = query[:, part].copy(), key[:, part].copy()
                if config.position_encoding in ("liere", "rope_mixed", "visionllama"):
                    for token, position in enumerate(positions, start=num_prefix):
                        rotation = head_rotation(config, weights.get("rotations.generators"), layer, head, position)
                        q[token], k[token] = rotation @ q[token], rotation @ k[token]
                scores = q @ k.T / np.sqrt(head_dim)
                scores[:, :num_prefix] += config.prefix_attention_bias
                mixed[:, part] = scipy.special.softmax(scores, axis=-1) @ value[:, part]
            states = states + linear(mixed, f"layers.{layer}.attention.o_proj") * weights.get(
                f"layers.{layer}.layer_scale1.lambda1", 1
            )
            hidden = linear(norm(states, f"layers.{layer}.layernorm_after"), f"layers.{layer}.mlp.fc1")
            hidden = hidden * scipy.special.ndtr(hidden)
            states = states + linear(hidden, f"layers.{layer}.mlp.fc2") * weights.get(
                f"layers.{layer}.layer_scale2.lambda1", 1
            )
        num_cls = int(config.use_cls_token)
        pooled = states[0]
        if config.pooling == "mean":
            pooled = np.concatenate([states[:num_cls], states[num_prefix:]]).mean(0)
        logits.append(linear(norm(pooled, "layernorm"), "classifier"))
    return np.array(logits)
