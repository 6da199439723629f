"""FLOPs of rotations against a model that computes them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from liere_hf import LiereViTConfig, LiereViTForImageClassification
from liere_hf.flops import count_flops, count_rotation_flops


@pytest.mark.parametrize("encoding", ["liere", "rope_mixed", "absolute"])
def test_first_forward_pass_computes_rotations_the_second_does_not(encoding):
    config = LiereViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        position_encoding=encoding,
        generator_block_size=64,
    )
    torch.manual_seed(0)
    model = LiereViTForImageClassification._from_config(config, attn_implementation="eager").eval()
    torch.manual_seed(0)
    of_rotations = count_rotation_flops(config, (4, 4))
    totals = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 16, 16))
        totals.append(counter.get_total_flops())
    assert (of_rotations > 0) == (encoding == "liere")
    assert totals[0] - totals[1] == pytest.approx(of_rotations, rel=0.1)
    with torch.device("meta"):
        assert count_flops(model.to("meta"), torch.empty(1, 3, 16, 16)) == totals[1]
