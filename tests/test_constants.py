"""The paper's numbers outside the presets, one by one: defaults as they are written down, and what cannot be read from a signature by what it does.

`tests/test_training.py` does the same for everything that a preset holds."""

import importlib
import inspect

import pytest
import torch
from torch import nn

from unsamflow.augmentation import vary_objects
from unsamflow.homography import fit_homographies
from unsamflow.losses import census_distance, ssim_distance
from unsamflow.network import ENCODER_CHANNELS, UnSAMFlow
from unsamflow.training import load_config, make_optimizer

DEFAULTS = [
    # masks (Sec. 3.1, 3.3)
    ('masks', 'SamMasks', 'model', 'vit_h'), ('masks', 'SamMasks', 'points_per_side', 32),
    ('masks', 'SamMasks', 'pred_iou_thresh', 0.88), ('masks', 'SamMasks', 'stability_score_thresh', 0.95), ('masks', 'SamMasks', 'box_nms_thresh', 0.7),
    ('masks', 'key_objects', 'height', (50, 200)), ('masks', 'key_objects', 'width', (50, 300)),
    ('masks', 'key_objects', 'min_fill', 0.5), ('masks', 'key_objects', 'min_overlaps', 5),
    # network (Sec. 3.2, 3.5)
    ('network', 'correlate', 'radius', 4), ('network', 'correlate', 'normalise', 'centred-cosine'), ('network', 'convex_upsample', 'factor', 4),
    ('network', 'MaskFeature', 'how', 'concat'),
    # occlusion and losses (Sec. 3.2, 3.4)
    ('flow', 'occlusion_forward_backward', 'relative', 0.01), ('flow', 'occlusion_forward_backward', 'absolute', 0.5),
    ('flow', 'occlusion_range_map', 'threshold', 0.2), ('losses', 'edge_aware_smoothness', 'sharpness', 10.0),
    ('losses', 'pyramid_photometric_loss', 'level_weights', (1, 1, 1, 1, 0)),
    ('homography', 'homography_loss', 'threshold', 0.5), ('homography', 'homography_loss', 'regions', 6),
    # augmentation (Sec. 3.3)
    ('augmentation', 'ObjectCache', 'size', 100), ('augmentation', 'ObjectCache', 'min_share', 0.005), ('augmentation', 'paste_objects', 'per_sample', 3)]


@pytest.mark.parametrize('module, name, parameter, value', DEFAULTS, ids=lambda v: str(v))
def test_default(module, name, parameter, value):
    found = inspect.signature(getattr(importlib.import_module(f'unsamflow.{module}'), name)).parameters[parameter].default
    assert found == value and type(found) is type(value)


# kernel, stride, dilation, inputs -> outputs, in the order of the modules (Sec. 3.2)
LAYERS = {
    'encoder': '3 2 1 3-16, 3 1 1 16-16, 3 2 1 16-32, 3 1 1 32-32, 3 2 1 32-64, 3 1 1 64-64, 3 2 1 64-96, 3 1 1 96-96, 3 2 1 96-128, 3 1 1 128-128, 3 2 1 128-192, 3 1 1 192-192',
    'reduce': '1 1 1 192-32, 1 1 1 128-32, 1 1 1 96-32, 1 1 1 64-32, 1 1 1 32-32',
    'estimator': '3 1 1 115-128, 3 1 1 128-128, 3 1 1 256-96, 3 1 1 224-64, 3 1 1 160-32, 3 1 1 96-2',
    'context': '3 1 1 34-128, 3 1 2 128-128, 3 1 4 128-128, 3 1 8 128-96, 3 1 16 96-64, 3 1 1 64-32, 3 1 1 32-2',
    'upsampler': '3 1 1 96-128, 3 1 1 128-144'}


def layers(module):
    return ', '.join(f'{c.kernel_size[0]} {c.stride[0]} {c.dilation[0]} {c.in_channels}-{c.out_channels}' for c in module.modules() if isinstance(c, nn.Conv2d))


@pytest.mark.parametrize('part', LAYERS)
def test_layers(part):
    module = getattr(UnSAMFlow(), part)
    assert layers(module) == LAYERS[part]
    convolutions = [c for c in module.modules() if isinstance(c, nn.Conv2d)]
    assert all(c.bias is not None and c.padding_mode == 'zeros' and c.padding[0] == c.dilation[0] * (c.kernel_size[0] // 2) for c in convolutions)
    slopes = [m.negative_slope for m in module.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.1] * sum(c.out_channels != 2 for c in convolutions)  # every layer but those that end in a flow


def test_network_sizes():
    assert ENCODER_CHANNELS == (16, 32, 64, 96, 128, 192)
    count = lambda how: sum(p.numel() for p in UnSAMFlow(how).parameters())
    assert [count(how) for how in (None, 'concat', 'residual')] == [2_513_412, 2_625_348, 2_624_324]
    assert layers(UnSAMFlow('concat').mask_feature.merge) == '1 1 1 64-32' and layers(UnSAMFlow('residual').mask_feature.merge) == '1 1 1 32-32'


def test_census_numbers():
    "One pixel of grey 1 amid 0: its eight taps and the tap of each neighbour, by hand."
    grey = torch.zeros(1, 3, 7, 7)
    grey[..., 3, 3] = 1 / 255
    soft = 1 / (0.81 + 1) ** 0.5
    tap = soft ** 2 / (0.1 + soft ** 2)
    expected = torch.zeros(7, 7)
    expected[2:5, 2:5] = tap / 9
    expected[3, 3] = 8 * tap / 9
    torch.testing.assert_close(census_distance(grey, torch.zeros_like(grey))[0, 0], expected, atol=1e-4, rtol=1e-4)
    for channel, share in enumerate((0.2989, 0.5870, 0.1140)):
        colour = torch.zeros(1, 3, 7, 7)
        colour[:, channel, 3, 3] = 1 / 255
        soft = share / (0.81 + share ** 2) ** 0.5
        assert census_distance(colour, torch.zeros_like(colour))[0, 0, 3, 3].item() == pytest.approx(8 / 9 * soft ** 2 / (0.1 + soft ** 2), rel=1e-3)


def test_ssim_numbers():
    "Two constant images have no variance, so that SSIM is its luminance term alone; and two of equal mean its contrast term alone."
    a, b = torch.full((1, 3, 5, 5), 0.02), torch.full((1, 3, 5, 5), 0.05)
    luminance = (2 * 0.02 * 0.05 + 0.01 ** 2) / (0.02 ** 2 + 0.05 ** 2 + 0.01 ** 2)
    assert ssim_distance(a, b).mean().item() == pytest.approx((1 - luminance) / 2, rel=1e-3)
    pattern = torch.zeros(1, 3, 3, 3)
    pattern[..., 1, 1], pattern[..., 0, 0] = 0.06, -0.06
    variance = 2 * 0.06 ** 2 / 9
    assert ssim_distance(0.5 + pattern, 0.5 - pattern).mean().item() == pytest.approx((1 - (-2 * variance + 0.03 ** 2) / (2 * variance + 0.03 ** 2)) / 2, rel=1e-3)


def test_learning_rates():
    "From 1.6e-5 to 4e-4 over the first 5%, then in a straight line to 1.6e-9; momentum as it was; no decay of biases (Sec. 4.1)."
    config, model = load_config('kitti'), UnSAMFlow()
    optimizer, schedule = make_optimizer(model, config, config.phases[1], 100_000)
    rates = []
    for _ in range(100_000):
        rates.append(optimizer.param_groups[0]['lr'])
        schedule.optimizer._opt_called = True
        schedule.step() if len(rates) < 100_000 else None
    assert rates[0] == pytest.approx(1.6e-5) and max(rates) == pytest.approx(4e-4) and rates.index(max(rates)) in (4999, 5000) and rates[-1] == pytest.approx(1.6e-9)
    assert rates[52_500] == pytest.approx(2e-4, rel=1e-3)
    assert [g['weight_decay'] for g in optimizer.param_groups] == [1e-6, 0.0] and all(g['betas'] == (0.9, 0.999) and g['eps'] == 1e-7 for g in optimizer.param_groups)
    assert len(optimizer.param_groups[0]['params']) == len(optimizer.param_groups[1]['params'])


def test_pasted_motions():
    "0.8 to 1.5 of the mean flow, reversed half of the time; mirrored half of the time (Sec. 3.3)."
    rgba = torch.zeros(50, 40, 4, 2, 2, dtype=torch.uint8)
    rgba[..., 0] = 1
    varied, motion = vary_objects(rgba, torch.ones(50, 40, 2), torch.Generator().manual_seed(0))
    speed, mirrored = motion[..., 1], varied[..., 0, 0, 1] == 1
    assert 0.8 <= speed.abs().min() < 0.81 and 1.49 < speed.abs().max() <= 1.5
    assert (speed < 0).float().mean() == pytest.approx(0.5, abs=0.04) and mirrored.float().mean() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(motion[..., 0], speed.where(~mirrored, -speed))


@pytest.mark.parametrize('spoilt, hidden, accepted', [(0.46, 0.1, True), (0.54, 0.1, False), (0.0, 0.78, True), (0.0, 0.82, False)])
def test_homography_shares(spoilt, hidden, accepted):
    "A region needs a fifth of its pixels reliable, and half of those to follow the homography (Sec. 3.4)."
    generator = torch.Generator().manual_seed(0)
    segments, occluded = torch.ones(1, 1, 40, 50, dtype=torch.long), torch.zeros(1, 1, 40, 50, dtype=torch.bool)
    places = torch.randperm(2000, generator=generator)
    occluded.view(-1)[places[:int(hidden * 2000)]] = True
    flow = torch.stack([torch.full((2000,), 3.0), torch.full((2000,), -1.0)])
    wrong = places[int(hidden * 2000):][:int(spoilt * (1 - hidden) * 2000)]
    flow[:, wrong] = 40 * torch.rand(2, len(wrong), generator=generator) + 8
    found = fit_homographies(flow.view(1, 2, 40, 50), segments, occluded, generator=generator)
    assert bool(found.accepted[0, 0]) is accepted
