"""Initial generators with chosen frequencies: what `generator_init` names, `uniform` excepted.

A skew-symmetric matrix turns planes. Its angular frequencies are given in radians per patch, so that they mean the
same at every image size, and are spaced evenly on a logarithmic scale between `generator_min_frequency` and
`generator_max_frequency`. Every block gets planes from the whole range.
"""

import torch
from transformers.configuration_utils import PreTrainedConfig

GENERATOR_INITS = ("uniform", "planar", "random_basis", "random_bases")
# Whatever the dtype and the device of the model: a Sobol sequence needs the one, and the same numbers the other.
_TENSOR = {"device": "cpu", "dtype": torch.float32}


def dimension_sizes(config: PreTrainedConfig) -> dict[str, int]:
    """Sizes of the dimensions of learned tensors, by the words that name them; shared dimensions have size 1."""
    return {
        "layers": 1 if config.share_generators_across_layers else config.num_hidden_layers,
        "axes": config.num_axes,
        "heads": 1 if config.share_generators_across_heads else config.num_attention_heads,
        "blocks": config.head_dim // config.generator_block_size,
        "width": config.generator_block_size,
    }


def free_initial_values(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Free generators whose planes turn with a position's component along a direction of their own.

    `planar`: the planes are pairs of neighbouring dimensions, as those of RoPE-Mixed. `random_basis`: the planes of
    each block lie in a random orthonormal basis, the same for all axes, so that generators still commute.
    `random_bases`: each axis has a basis of its own.
    """
    sizes = dimension_sizes(config)
    directions = _directions(config, sizes["blocks"], sizes["width"] // 2)
    frequencies = _frequencies(config, sizes["width"] // 2) * directions * _patches_per_unit(config)
    planes = _planar(frequencies)
    if config.generator_init == "planar":
        return {"generators": planes}
    axes = 1 if config.generator_init == "random_basis" else sizes["axes"]
    shape = (sizes["layers"], axes, sizes["heads"], sizes["blocks"], sizes["width"], sizes["width"])
    basis = torch.linalg.qr(torch.randn(shape, **_TENSOR)).Q
    return {"generators": (basis @ (planes - planes.mT) @ basis.mT).triu(1)}


def factored_initial_values(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """One matrix a block, and as its factors a direction in units of patches."""
    sizes = dimension_sizes(config)
    factors = (_directions(config, sizes["blocks"], 1) * _patches_per_unit(config)).squeeze(-1)
    frequencies = _frequencies(config, sizes["width"] // 2)
    return {"basis": _one_basis(config, frequencies, sizes), "factors": factors}


def partitioned_initial_values(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """One matrix a block, in radians per unit of the block's own axis."""
    sizes = dimension_sizes(config)
    # The blocks of one axis have frequencies from the whole range.
    blocks = -(-sizes["blocks"] // sizes["axes"])
    frequencies = _frequencies(config, sizes["width"] // 2, blocks).repeat_interleave(sizes["axes"], 0)
    of_axis = _patches_per_unit(config).view(-1).repeat(blocks)
    frequencies = (frequencies * of_axis[:, None])[: sizes["blocks"]]
    return {"basis": _one_basis(config, frequencies, sizes)}


def circulant_initial_values(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """First rows of circulant matrices C such that C - C^T has the frequencies, but for one plane that it cannot turn.

    C - C^T has the eigenvalues 2i sum_j c_j sin(2 pi j k / b), an invertible sine transform for 0 < k < b / 2.
    """
    sizes = dimension_sizes(config)
    width, planes = sizes["width"], sizes["width"] // 2 - 1
    directions = _directions(config, sizes["blocks"], planes)
    frequencies = _frequencies(config, planes) * directions * _patches_per_unit(config)
    places = torch.arange(width, **_TENSOR).outer(torch.arange(1, planes + 1, **_TENSOR))
    sines = torch.sin(2 * torch.pi / width * places) / width
    return {"rows": frequencies @ sines.mT}


def _frequencies(config: PreTrainedConfig, planes: int, blocks: int | None = None) -> torch.Tensor:
    """Radians per patch, (blocks, planes): neighbouring frequencies are in different blocks."""
    blocks = blocks or dimension_sizes(config)["blocks"]
    low, high = (
        torch.tensor(float(value), **_TENSOR).log()
        for value in (config.generator_min_frequency, config.generator_max_frequency)
    )
    return (low + (high - low) * torch.linspace(0, 1, blocks * planes, **_TENSOR)).exp().view(planes, blocks).mT


def _directions(config: PreTrainedConfig, blocks: int, planes: int) -> torch.Tensor:
    """Unit vectors, (layers, axes, heads, blocks, planes): over the planes of a head they are spread evenly.

    A scrambled Sobol sequence, different for each layer and head, gives the same number of points to all parts of the
    unit cube, and normal quantiles turn it into directions.
    """
    sizes = dimension_sizes(config)
    layers, axes, heads = sizes["layers"], sizes["axes"], sizes["heads"]
    seeds = torch.randint(2**31, (layers * heads,), device="cpu").tolist()
    points = torch.stack([_sobol_points(axes, blocks * planes, seed) for seed in seeds])
    # The center of the cube would have no direction.
    normal = torch.special.ndtri(points.clamp(1e-6, 1 - 1e-6)) + 1e-12
    directions = normal / normal.norm(dim=-1, keepdim=True)
    return directions.view(layers, heads, planes, blocks, axes).permute(0, 4, 1, 3, 2)


def _sobol_points(axes: int, count: int, seed: int) -> torch.Tensor:
    """Of a scrambled sequence, (count, axes), float32."""
    engine = torch.quasirandom.SobolEngine(axes, scramble=True, seed=seed)
    points = engine.draw(count, dtype=torch.float32)
    # The engine computes the first one in the default dtype.
    points[0] = engine.shift.to(torch.float32) / 2**engine.MAXBIT
    return points


def _patches_per_unit(config: PreTrainedConfig) -> torch.Tensor:
    """From radians per patch to radians per unit of coordinates at the training size: (axes, 1, 1, 1)."""
    if config.position_mode == "centered":
        steps = [patches / 2 for patches in config.grid_size]
    elif config.position_mode in ("left_edges", "right_edges"):
        steps = list(config.grid_size)
    else:
        steps = [max(patches - 1, 1) for patches in config.grid_size]
    return torch.tensor(steps, **_TENSOR).view(-1, 1, 1, 1)


def _planar(frequencies: torch.Tensor) -> torch.Tensor:
    """(..., planes) to raw matrices (..., 2 planes, 2 planes) that turn pairs of neighbouring dimensions."""
    planes = torch.zeros(*frequencies.shape[:-1], *(2 * frequencies.shape[-1],) * 2, **_TENSOR)
    first = torch.arange(0, planes.shape[-1], 2, device="cpu")
    planes[..., first, first + 1] = frequencies
    return planes


def _one_basis(config: PreTrainedConfig, frequencies: torch.Tensor, sizes: dict[str, int]) -> torch.Tensor:
    """Raw matrices (layers, heads, blocks, b, b) with frequencies (blocks, b / 2)."""
    shape = tuple(sizes[word] for word in ("layers", "heads", "blocks", "width", "width"))
    planes = _planar(frequencies).expand(shape)
    if config.generator_init == "planar":
        return planes
    basis = torch.linalg.qr(torch.randn(shape, **_TENSOR)).Q
    return (basis @ (planes - planes.mT) @ basis.mT).triu(1)
