import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torchvision.transforms import v2

from liere_hf.data.augmentation.batch_augmentation import BatchAugmentation, random_crop
from liere_hf.data.augmentation.erasing import erase
from liere_hf.data.augmentation.mixing import Mixing
from liere_hf.data.augmentation.rand_augment import BatchRandAugment
from liere_hf.data.draws import Draws
from liere_hf.data.normalization import normalize
from liere_hf.data.resizing.random_boxes import NUMBERS_PER_BOX, random_resized_crop

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def random_images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))


def smooth_image(size: int) -> torch.Tensor:
    """An image on which every RandAugment operation has a visible effect."""
    ramp = torch.linspace(20, 200, size)
    return torch.stack(
        [ramp[:, None].expand(size, size), ramp.expand(size, size), ramp.flip(0).expand(size, size)]
    ).to(torch.uint8)


def test_draws_are_uniform():
    numbers = Draws(0, 0, range(2000)).next(5)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert (np.abs(np.corrcoef(numbers.T) - np.eye(5)) < 0.1).all()
    correlation = np.corrcoef(numbers[:-1, 0], numbers[1:, 0])
    assert abs(correlation[0, 1]) < 0.1


@given(
    st.integers(0, 2**40), st.integers(0, 10**6), st.lists(st.integers(0, 10**9), min_size=1, max_size=8), st.data()
)
def test_draws_depend_only_on_seed_epoch_and_index(seed, epoch, indices, data):
    together = Draws(seed, epoch, indices)
    numbers = np.concatenate([together.next(2), together.next(3)], axis=1)
    position = data.draw(st.integers(0, len(indices) - 1))
    alone = Draws(seed, epoch, [indices[position]]).next(5)
    assert np.array_equal(numbers[position], alone[0])
    for other in (Draws(seed + 1, epoch, indices), Draws(seed, epoch + 1, indices)):
        assert not np.isin(other.next(5), numbers).any()


@pytest.mark.parametrize("size", [24, 96])
def test_rand_augment_has_the_outcomes_of_torchvision(size):
    image = smooth_image(size)
    theirs = set()
    transform = v2.RandAugment(1, 14)
    # Large images go through Pillow.
    source = image if size == 24 else Image.fromarray(image.permute(1, 2, 0).numpy())
    for seed in range(500):
        torch.manual_seed(seed)
        augmented = transform(source)
        if size == 96:
            augmented = torch.from_numpy(np.array(augmented)).permute(2, 0, 1)
        theirs.add(augmented.numpy().tobytes())
    ours = BatchRandAugment(1, 14)(image.expand(500, -1, -1, -1), Draws(0, 0, range(500)))
    assert {augmented.numpy().tobytes() for augmented in ours} == theirs
    assert len(theirs) > 20


def test_rand_augment_operations_are_equally_frequent():
    draws = Draws(0, 0, range(4200))
    image = smooth_image(8)
    augmented = BatchRandAugment(1, 14)(image.expand(4200, -1, -1, -1), draws)
    keys = [image.numpy().tobytes() for image in augmented]
    # For example, the two signs of a rotation are two outcomes of probability 1/28 each.
    torch.manual_seed(0)
    rotated = [v2.functional.rotate(image, angle).numpy().tobytes() for angle in (14.0, -14.0)]
    for outcome in rotated:
        assert stats.binomtest(keys.count(outcome), 4200, 1 / 28).pvalue > 1e-3


def test_rand_augment_of_an_example_does_not_depend_on_its_batch():
    images = random_images(16, 3, 16, 16)
    augment = BatchRandAugment(2, 14)
    together = augment(images, Draws(3, 1, range(16)))
    for index in (0, 7, 15):
        assert augment(images[index : index + 1], Draws(3, 1, [index]))[0].equal(together[index])


@pytest.mark.parametrize("size", [20, 72])
def test_frames_of_a_clip_get_the_same_augmentation(size):
    images = random_images(12, 1, 3, size, size)
    clips = images.expand(-1, 4, -1, -1, -1).contiguous()
    augmentation = BatchAugmentation(MEAN, STD, 3, True, BatchRandAugment(4, 21, 1.5, 0.5), 0.5)
    augmented = augmentation(clips.clone(), Draws(0, 0, range(12)))
    assert augmented.shape == clips.shape
    for frame in range(1, 4):
        assert augmented[:, frame].equal(augmented[:, 0])
    assert not augmented[:, 0].equal(normalize(images[:, 0], MEAN, STD))
    rows = augmentation(clips[4:5].clone(), Draws(0, 0, [4]))
    assert rows[0].equal(augmented[4])


def test_probability_and_deviation_of_the_magnitude():
    image = smooth_image(24).expand(3000, -1, -1, -1)
    none = BatchRandAugment(3, 14, probability=0.0)(image, Draws(0, 0, range(3000)))
    assert none.equal(image)

    def changed(probability: float) -> float:
        augmented = BatchRandAugment(1, 14, probability=probability)(image, Draws(0, 0, range(3000)))
        return (augmented != image).flatten(1).any(1).float().mean().item()

    assert changed(0.5) == pytest.approx(0.5 * changed(1.0), abs=0.04)
    outcomes = {
        std: len({row.numpy().tobytes() for row in BatchRandAugment(1, 14, std)(image[:300], Draws(0, 0, range(300)))})
        for std in (0.0, 2.0)
    }
    assert outcomes[2.0] > 2 * outcomes[0.0]


def test_random_crop_is_a_window_of_the_padded_image():
    image = torch.arange(1, 8 * 12 + 1, dtype=torch.uint8).reshape(1, 1, 8, 12)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    windows = [padded[..., row : row + 8, column : column + 12] for row in range(5) for column in range(5)]
    crops = random_crop(image.expand(1000, -1, -1, -1), 2, Draws(0, 0, range(1000)).next(2))
    counts = [(crops == window).flatten(1).all(1).sum().item() for window in windows]
    assert sum(counts) == 1000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_half_of_the_images_are_flipped():
    images = random_images(1000, 1, 4, 4)
    augmentation = BatchAugmentation((0.0,), (1.0,), horizontal_flip=True)
    augmented = augmentation(images.clone(), Draws(0, 0, range(1000)))
    plain = normalize(images, (0.0,), (1.0,))
    kept, flipped = ((augmented == other).flatten(1).all(1) for other in (plain, plain.flip(-1)))
    assert (kept | flipped).all()
    assert 420 < flipped.sum() < 580


def test_erasing_sets_rectangles_to_zero():
    pixels = torch.ones(2000, 3, 20, 30)
    erase(pixels, 0.25, Draws(0, 0, range(2000)))
    erased = (pixels == 0).all(1)
    share = erased.flatten(1).float().mean(1)
    assert stats.binomtest(int((share > 0).sum()), 2000, 0.25).pvalue > 1e-3
    for mask in erased[share > 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()
    assert 0.01 < share[share > 0].min() < 0.05
    assert 0.25 < share.max() < 0.4


@pytest.mark.parametrize(
    "height, width, scale", [(240, 320, (0.08, 1.0)), (100, 40, (0.5, 0.8)), (9, 200, (0.5, 1.0))]
)
def test_random_resized_crop_has_torchvisions_distribution(height, width, scale):
    transform = v2.RandomResizedCrop((8, 8), scale=scale)
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    theirs = [transform.make_params([image]) for _ in range(1500)]
    numbers = Draws(0, 0, range(1500)).next(NUMBERS_PER_BOX)
    ours = [random_resized_crop(height, width, row, scale) for row in numbers]
    for name in ("top", "left", "height", "width"):
        assert stats.ks_2samp([getattr(box, name) for box in ours], [box[name] for box in theirs]).pvalue > 1e-3, name
    for box in ours:
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width


def test_normalization_equals_torchvisions():
    images = random_images(5, 3, 6, 6)
    expected = v2.functional.normalize(v2.functional.to_dtype(images, torch.float32, scale=True), MEAN, STD)
    assert torch.allclose(normalize(images, MEAN, STD), expected, atol=1e-6)


def test_mixup_and_cutmix():
    pixels, labels = torch.rand(6, 3, 8, 8), torch.arange(6)
    partner = pixels.roll(1, 0)
    mixed, shares = Mixing(0.8, 0.0, 6)(pixels, labels, 0.3)
    share = shares.gather(1, labels[:, None])[:, :, None, None]
    assert torch.allclose(mixed, share * pixels + (1 - share) * partner, atol=1e-6)
    assert torch.allclose(shares.sum(1), torch.ones(6))

    mixed, shares = Mixing(0.0, 1.0, 6)(pixels, labels, 0.6)
    own = (mixed == pixels).all(1)
    assert (own | (mixed == partner).all(1)).all()
    assert torch.allclose(own.flatten(1).float().mean(1), shares.gather(1, labels[:, None])[:, 0])

    state = torch.random.get_rng_state()
    again, _ = Mixing(0.0, 1.0, 6)(pixels, labels, 0.6)
    assert again.equal(mixed)
    assert torch.random.get_rng_state().equal(state)
    clips, _ = Mixing(0.8, 1.0, 6)(pixels[:, None].expand(-1, 2, -1, -1, -1), labels, 0.2)
    assert clips.shape == (6, 2, 3, 8, 8)
    assert type(clips) is torch.Tensor
