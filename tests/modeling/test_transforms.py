"""Transforms of torch.func, forward-mode derivatives and batched gradients, against float64 by torch's exponential."""

import pytest
import torch
from factory import random_input, random_model, tiny_config, uniform_generators, uniform_positions
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from liere_hf import LiereViTForImageClassification, skew_matrix_exp
from liere_hf.modeling.rotary_application import apply_rotations, rotate_queries_and_keys
from liere_hf.modeling.rotations import liere_rotations

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def plain_rotations(positions, generators):
    upper = generators.triu(1)
    exponents = torch.einsum("bta,lahnij->lbthnij", positions, upper - upper.mT)
    return torch.linalg.matrix_exp(exponents.contiguous())


def plain_exponential(raw):
    return torch.linalg.matrix_exp(raw.triu(1) - raw.triu(1).mT)


def fast_exponential(raw):
    return skew_matrix_exp(raw.triu(1) - raw.triu(1).mT)


def scored(rotations, rotate):
    """A scalar of all rotations and of states that they rotate."""
    states = torch.linspace(-1, 1, 2 * 3 * 1 * 6, dtype=rotations.dtype).view(2, 3, 1, 6)
    query, key = rotate(states, states.sin(), rotations[0])
    return (query.cumsum(-1).sin() * key).sum() + rotations.cumsum(-1).sin().sum()


def fast_score(positions, generators):
    return scored(liere_rotations(positions, generators), rotate_queries_and_keys)


def plain_score(positions, generators):
    return scored(
        plain_rotations(positions, generators),
        lambda query, key, rotations: (apply_rotations(query, rotations), apply_rotations(key, rotations)),
    )


def batched_gradients(function, positions, generators):
    inputs = positions.detach().requires_grad_(), generators.detach().requires_grad_()
    rotations = function(*inputs)
    weights = torch.stack([torch.linspace(-1, 1, rotations.numel(), dtype=rotations.dtype).view_as(rotations)] * 2)
    return torch.autograd.grad(
        rotations, inputs, weights * torch.tensor([1.0, 2.0]).view(2, *[1] * 7), is_grads_batched=True
    )


def double_gradients(function, positions, generators):
    inputs = positions.detach().requires_grad_(), generators.detach().requires_grad_()
    first = torch.autograd.grad(function(*inputs), inputs, create_graph=True)
    return torch.autograd.grad(sum(each.sin().sum() for each in first), inputs)


def dual_numbers(function, positions, generators):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(each, each.sin()) for each in (positions, generators)]
        return forward_ad.unpack_dual(function(*duals)).tangent


ROTATIONS = {
    "jvp": lambda f, p, g: jvp(f, (p, g), (p.sin(), g.cos())),
    "jacrev": lambda f, p, g: jacrev(f, (0, 1))(p, g),
    "jacfwd": lambda f, p, g: jacfwd(f, 0)(p, g),
    "vmap of generators": lambda f, p, g: vmap(f, (None, 0))(p, torch.stack([g, g / 2])),
    "vmap of positions": lambda f, p, g: vmap(f, (0, None))(torch.stack([p, p / 2]), g),
    "dual numbers": dual_numbers,
    "batched gradients": batched_gradients,
    "jacobian": lambda f, p, g: jacobian(f, (p, g), vectorize=True),
    "jacobian forward": lambda f, p, g: jacobian(lambda p: f(p, g), p, vectorize=True, strategy="forward-mode"),
}
SCORES = {
    "grad": lambda f, p, g: grad(f, (0, 1))(p, g),
    "vmap of grad": lambda f, p, g: vmap(grad(f, (0, 1)), (None, 0))(p, torch.stack([g, g / 2])),
    "grad of vmap": lambda f, p, g: grad(lambda g: vmap(f, (0, None))(torch.stack([p, p / 2]), g).sum())(g),
    "vmap of jvp": lambda f, p, g: vmap(lambda g: jvp(f, (p, g), (p.sin(), g.cos()))[1])(torch.stack([g, g / 2])),
    "hessian": lambda f, p, g: hessian(f)(p, g),
    "double gradients": double_gradients,
    "dual numbers": dual_numbers,
}
CASES = [
    *(
        (fast, plain, transform)
        for fast, plain, ways in ((liere_rotations, plain_rotations, ROTATIONS), (fast_score, plain_score, SCORES))
        for transform in ways.values()
    )
]


@pytest.mark.parametrize(
    ("fast", "plain", "transform"), CASES, ids=[*ROTATIONS, *(f"score {name}" for name in SCORES)]
)
@pytest.mark.parametrize("size", [2, 6])
def test_transforms_of_rotations(fast, plain, transform, size):
    positions, generators = uniform_positions(1, 3, 2), uniform_generators(1, 2, 1, 6 // size, size)
    actual, expected = (transform(each, positions, generators) for each in (fast, plain))
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: vmap(f)(x),
        lambda f, x: vmap(grad(lambda x: f(x).cumsum(-1).sin().sum()))(x),
        lambda f, x: jvp(f, (x,), (x.sin(),)),
        lambda f, x: hessian(lambda x: f(x).cumsum(-1).sin().sum())(x[0]),
        lambda f, x: jacobian(f, x[0], vectorize=True),
    ],
    ids=["vmap", "vmap of grad", "jvp", "hessian", "jacobian"],
)
@pytest.mark.parametrize("size", [4, 5])
def test_transforms_of_the_exponential(transform, size):
    raw = torch.randn(2, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        transform(fast_exponential, raw), transform(plain_exponential, raw), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("encoding", ["liere", "rope_mixed"])
def test_gradients_of_each_sample(encoding):
    """vmap(grad) over a trainable model, as in differential privacy, against one backward pass a sample."""
    config = tiny_config(position_encoding=encoding, num_hidden_layers=1)
    model = random_model(LiereViTForImageClassification, config).double()
    pixel_values = random_input(config, batch_size=3).double()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters, sample):
        return functional_call(model, parameters, (sample[None],)).logits.sin().sum()

    together = vmap(grad(loss), (None, 0))(parameters, pixel_values)
    for index, sample in enumerate(pixel_values):
        model.zero_grad()
        loss(dict(model.named_parameters()), sample).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(together[name][index], parameter.grad, rtol=1e-8, atol=1e-9)


def test_tangents_are_not_lost_by_kept_rotations():
    torch.manual_seed(0)
    # Of torch's attentions only the plain one has forward-mode derivatives.
    model = random_model(LiereViTForImageClassification, tiny_config(attn_implementation="eager")).double()
    pixel_values, positions = random_input(model.config).double(), torch.rand(1, 8, 2, dtype=torch.float64)
    with torch.no_grad():
        model(pixel_values, positions=positions)
        _, tangent = jvp(lambda each: model(pixel_values, positions=each).logits, (positions,), (positions.sin(),))
    _, expected = torch.autograd.functional.jvp(
        lambda each: model(pixel_values, positions=each).logits, positions, positions.sin()
    )
    assert tangent.abs().max() > 1e-3
    # The softmax of eager attention is float32, whatever the dtype.
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=5e-6)
