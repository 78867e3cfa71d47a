"Contracts and properties of the losses, on odd shapes and bad input."
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from unsamflow.losses import (
    boundary_aware_smoothness,
    census_distance,
    edge_aware_smoothness,
    photometric_loss,
    pyramid_photometric_loss,
    self_supervision_loss,
    ssim_distance,
)

ALL = dict(l1=0.3, ssim=0.7, census=1.1)
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'))]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def batch(size=4, height=16, width=24, dtype=torch.float32):
    "Images, flow and a mask that hides another share of every sample."
    image_1, image_2 = torch.rand(2, size, 3, height, width, dtype=dtype)
    flow = torch.randn(size, 2, height, width, dtype=dtype)
    share = torch.linspace(0.3, 0.9, size).view(-1, 1, 1, 1)
    return image_1, image_2, flow, (torch.rand(size, 1, height, width) < share).to(dtype)


def unfolded_census(a, b):
    "The definition with `unfold`, another road than the notebook's one-hot convolution."
    def signs(image):
        grey = (255 * torch.einsum('bchw,c->bhw', image, image.new_tensor([0.2989, 0.5870, 0.1140])))[:, None]
        d = F.unfold(grey, 3).unflatten(2, (grey.shape[2] - 2, -1)) - grey[..., 1:-1, 1:-1]
        return d * (0.81 + d**2) ** -0.5
    s = (signs(a) - signs(b)) ** 2
    return F.pad((s / (s + 0.1)).mean(1, keepdim=True), (1, 1, 1, 1))


def unfolded_ssim(a, b):
    "The definition with two-pass variances over explicit windows."
    windows = [x.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4) for x in (a, b)]
    means = [w.mean(-1) for w in windows]
    centred = [w - m[..., None] for w, m in zip(windows, means)]
    variances, covariance = [(c * c).mean(-1) for c in centred], (centred[0] * centred[1]).mean(-1)
    similarity = (2 * means[0] * means[1] + 1e-4) * (2 * covariance + 9e-4) / ((means[0] ** 2 + means[1] ** 2 + 1e-4) * (sum(variances) + 9e-4))
    return ((1 - similarity) / 2).clamp(0, 1)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('shape', [(1, 3, 3, 3), (2, 3, 3, 8), (1, 3, 4, 3), (3, 3, 17, 33)])
@pytest.mark.parametrize('distance, definition', [(census_distance, unfolded_census), (ssim_distance, unfolded_ssim)])
@pytest.mark.parametrize('needs', [(True, True), (True, False), (False, True)])
def test_distances_follow_their_definition(distance, definition, shape, needs, device):
    a = torch.rand(shape, dtype=torch.float64, device=device)
    b = a + 0.1 * torch.randn_like(a)
    a.requires_grad_(needs[0]), b.requires_grad_(needs[1])
    found, expected = distance(a, b), definition(a, b)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    weight, inputs = torch.rand_like(expected), [x for x in (a, b) if x.requires_grad]
    gradients = (torch.autograd.grad((d * weight).sum(), inputs) for d in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize('distance, top', [(census_distance, 8 / 9), (ssim_distance, 1)])
def test_distances_are_symmetric_bounded_and_leave_their_input_alone(distance, top):
    a, b = torch.rand(2, 3, 20, 30), (torch.rand(2, 3, 20, 30) > 0.5).float()
    kept = a.clone(), b.clone()
    found = distance(a, b.requires_grad_())
    found.sum().backward()
    assert torch.equal(a, kept[0]) and torch.equal(b.detach(), kept[1])
    torch.testing.assert_close(found, distance(b, a))
    assert found.min() >= 0 and 0.1 < found.max() <= top
    assert distance(a, a).abs().max() < 1e-6


def test_any_memory_layout():
    a, b, flow, visible = batch()
    moved = (x.contiguous(memory_format=torch.channels_last) for x in (a, b, flow))
    torch.testing.assert_close(photometric_loss(*moved, visible, **ALL), photometric_loss(a, b, flow, visible, **ALL))
    torch.testing.assert_close(census_distance(a[..., ::2], b[..., ::2]), census_distance(a[..., ::2].clone(), b[..., ::2].clone()))


def test_census_distance_of_grey_images():
    a, b = torch.rand(2, 2, 3, 9, 11)
    grey = lambda x: torch.einsum('bchw,c->bhw', x, torch.tensor([0.2989, 0.5870, 0.1140]))[:, None]
    torch.testing.assert_close(census_distance(grey(a), grey(b)), census_distance(a, b), atol=1e-4, rtol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_left(dtype):
    a, b, flow, visible = (x.to(dtype) for x in batch())
    exact = photometric_loss(*(x.float() for x in (a, b, flow, visible)), **ALL)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = photometric_loss(a, b, flow, visible, **ALL)
        others = edge_aware_smoothness(flow, a), boundary_aware_smoothness(flow, visible > 0), self_supervision_loss(flow, flow + 1, visible)
    assert found.dtype == torch.float32 and found == exact
    assert all(other.dtype == torch.float32 for other in others)


def test_bool_visibility():
    a, b, flow, visible = batch()
    assert photometric_loss(a, b, flow, visible > 0, **ALL) == photometric_loss(a, b, flow, visible, **ALL)
    assert self_supervision_loss(flow, flow + 1, visible > 0) == self_supervision_loss(flow, flow + 1, visible)


def test_photometric_loss_is_linear_in_its_weights():
    sample = batch()
    parts = sum(weight * photometric_loss(*sample, **{name: 1.0}) for name, weight in ALL.items())
    torch.testing.assert_close(photometric_loss(*sample, **ALL), parts)
    assert photometric_loss(*sample) == 0


def test_photometric_loss_term_by_term():
    a, b, _, visible = batch()
    visible = visible * torch.rand_like(visible)  # soft
    zero = torch.zeros(4, 2, 16, 24)
    share = visible.mean((1, 2, 3)) + 1e-6
    expected = {
        'l1': ((a - b).abs() * visible).mean((1, 2, 3)), 'ssim': unfolded_ssim(a * visible, b * visible).mean((1, 2, 3)),
        'census': unfolded_census(a * visible, b * visible).mean((1, 2, 3)),
    }
    for name, values in expected.items():
        torch.testing.assert_close(photometric_loss(a, b, zero, visible, **{name: 1.0}), (values / share).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('loss', ['pyramid', 'self-supervision'])
@pytest.mark.parametrize('parts', [2, 4])
def test_splitting_a_batch_changes_nothing(loss, parts):
    a, b, flow, visible = batch(8, 32, 32)
    visible[3] = 0  # one sample sees nothing
    flow.requires_grad_()

    def gradient(rows):
        if loss == 'self-supervision':
            value = self_supervision_loss(flow[rows], b[rows, :2], visible[rows])
        else:
            value = pyramid_photometric_loss(a[rows], b[rows], [flow[rows], flow[rows, :, ::2, ::2] / 2], visible[rows], **ALL, level_weights=(1, 1))
        return torch.autograd.grad(value, flow)[0]

    whole = gradient(slice(None))
    size = 8 // parts
    split = sum(gradient(slice(i, i + size)) for i in range(0, 8, size)) / parts
    assert whole.isfinite().all() and (whole[3] == 0).all() and whole.abs().max() > 0
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


def test_both_directions_along_the_batch():
    a, b, flow, visible = batch(2)
    back, hidden = -flow, visible.flip(3)
    joined = photometric_loss(torch.cat([a, b]), torch.cat([b, a]), torch.cat([flow, back]), torch.cat([visible, hidden]), **ALL)
    torch.testing.assert_close(joined, (photometric_loss(a, b, flow, visible, **ALL) + photometric_loss(b, a, back, hidden, **ALL)) / 2)


def test_pyramid_is_the_weighted_sum_of_its_levels():
    a, b, flow, visible = batch(2, 32, 64)
    flows = [flow, flow[..., ::2, ::2] / 2, flow[..., ::4, ::4] / 4]
    level = lambda i, **weights: photometric_loss(F.avg_pool2d(a, 2**i), F.avg_pool2d(b, 2**i), flows[i], visible[..., ::2**i, ::2**i], **weights)
    for weights in (ALL, dict(census=1.0)):
        expected = 2 * level(0, **weights) + 0.5 * level(2, **weights)
        torch.testing.assert_close(pyramid_photometric_loss(a, b, flows, visible, **weights, level_weights=(2, 0, 0.5)), expected, rtol=1e-4, atol=1e-5)
    assert pyramid_photometric_loss(a, b, flows, visible, **ALL, level_weights=(0, 0, 0)) == 0


def test_a_level_of_weight_zero_is_not_computed(monkeypatch):
    seen = []
    monkeypatch.setattr('unsamflow.losses.warp', lambda image, flow: seen.append(tuple(flow.shape[2:])) or image)
    a, b, _, visible = batch(1, 64, 64)
    pyramid_photometric_loss(a, b, [torch.zeros(1, 2, 64 >> i, 64 >> i) for i in range(5)], visible, census=1.0)
    assert seen == [(64, 64), (32, 32), (16, 16), (8, 8)]


def test_perfect_flow_costs_nothing():
    image_2 = torch.rand(1, 3, 20, 30)
    image_1, flow = image_2.roll(-3, dims=3), torch.tensor([3.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 20, 30)
    visible = torch.ones(1, 1, 20, 30)
    visible[..., -3:] = 0
    assert photometric_loss(image_1, image_2, flow, visible, l1=1.0, ssim=1.0) < 1e-4
    assert photometric_loss(image_1, image_2, flow * 0, visible, l1=1.0, ssim=1.0) > 0.3


def test_smoothness_depends_on_the_partition_alone():
    flow, segments = torch.randn(2, 2, 12, 18), torch.randint(0, 5, (2, 1, 12, 18))
    loss = boundary_aware_smoothness(flow, segments)
    renamed = torch.tensor([700, 3, 90_000, 0, 41])[segments]
    assert boundary_aware_smoothness(flow, renamed) == loss > 0
    assert boundary_aware_smoothness(flow, segments.to(torch.uint8)) == loss
    torch.testing.assert_close(boundary_aware_smoothness(flow.mT, segments.mT), loss)
    assert boundary_aware_smoothness(flow, torch.arange(216).view(1, 1, 12, 18).expand(2, 1, 12, 18)) == 0


def test_smoothness_without_any_edge_is_the_same_for_both():
    flow = torch.randn(2, 2, 12, 18)
    plain = boundary_aware_smoothness(flow, torch.zeros(2, 1, 12, 18, dtype=torch.int64))
    torch.testing.assert_close(edge_aware_smoothness(flow, torch.full((2, 3, 12, 18), 0.4)), plain)
    assert edge_aware_smoothness(flow, torch.rand(2, 3, 12, 18)) < plain
    assert edge_aware_smoothness(flow, torch.rand(2, 3, 12, 18), sharpness=0.0) == plain


def test_smoothness_by_hand():
    "A jump of 5 px in u between columns 3 and 4 of 10 x 8 pixels: two triples a row straddle it, and the weight is that of their later two pixels."
    flow = torch.zeros(1, 2, 10, 8)
    flow[:, 0, :, 4:] = 5.0
    one = 10 * (5 / 8) / (2 * 10 * 6) / 2  # ten rows of one triple each, the side 8, the mean over 2 components and 10 x 6 triples, halved
    segments = lambda column: (torch.arange(8) >= column).long().expand(1, 1, 10, 8)
    for column, triples in ((0, 2), (3, 2), (4, 1), (5, 1), (6, 2)):
        assert boundary_aware_smoothness(flow, segments(column)).item() == pytest.approx(triples * one, rel=1e-5)
    image = 0.05 * segments(4).float().expand(-1, 3, -1, -1)
    assert edge_aware_smoothness(flow, image).item() == pytest.approx((1 + math.exp(-10 * 0.05)) * one, rel=1e-5)
    assert edge_aware_smoothness(flow.mT, image.mT).item() == pytest.approx((1 + math.exp(-10 * 0.05)) * one, rel=1e-5)


def test_no_index_comes_from_the_host():
    "An index written as a Python list would be copied to the device, which then has to be waited for."
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.add(str(function))
            return function(*args, **(kwargs or {}))

    names, (a, b, flow, visible) = set(), batch()
    with Names():
        loss = pyramid_photometric_loss(a, b, [flow.requires_grad_(), flow[..., ::2, ::2] / 2], visible > 0, **ALL, level_weights=(1, 1))
        loss = loss + edge_aware_smoothness(flow, a) + boundary_aware_smoothness(flow, visible.long()) + self_supervision_loss(flow, b[:, :2], visible)
        loss.backward()
    assert 'aten.grid_sampler_2d.default' in names
    assert not [name for name in names if name.split('.')[1] in ('index_put_', 'index_put', 'index', 'lift_fresh', '_local_scalar_dense')]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_a_gpu_nothing_waits():
    a, b, flow, visible = (x.cuda() for x in batch())

    def step():
        loss = pyramid_photometric_loss(a, b, [flow.detach().requires_grad_()], visible, **ALL, level_weights=(1,))
        (loss + edge_aware_smoothness(flow, a) + boundary_aware_smoothness(flow, visible.long()) + self_supervision_loss(flow, b[:, :2], visible)).backward()

    step()
    torch.cuda.set_sync_debug_mode('error')
    try: step()
    finally: torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('call, error, message', [
    (lambda a, b, f, v: photometric_loss(a, b[:1], f, v, l1=1.0), ValueError, r'image_2: expected .*image_1 \(4, 3, 16, 24\), found \(1, 3, 16, 24\)'),
    (lambda a, b, f, v: photometric_loss(a, b, f[..., :-1], v, l1=1.0), ValueError, r'flow: expected .*found \(4, 2, 16, 23\)'),
    (lambda a, b, f, v: photometric_loss(a, b, f, v[0], l1=1.0), ValueError, r'visible: expected .*found \(1, 16, 24\)'),
    (lambda a, b, f, v: photometric_loss(a, b, torch.cat([f, f], 1), v, l1=1.0), ValueError, r'\(4, 4, 16, 24\)'),
    (lambda a, b, f, v: photometric_loss((a * 255).byte(), b, f, v, l1=1.0), TypeError, 'image_1: .*uint8'),
    (lambda a, b, f, v: census_distance(a[:, :2], b[:, :2]), ValueError, r'found \(4, 2, 16, 24\)'),
    (lambda a, b, f, v: census_distance(a, b[:, :1]), ValueError, 'image_b: expected'),
    (lambda a, b, f, v: ssim_distance(a[..., :2], b[..., :2]), ValueError, 'at least 3 x 3 pixels'),
    (lambda a, b, f, v: pyramid_photometric_loss(a, b, [f], v, l1=1.0), ValueError, 'level_weights: expected one per flow, 1 in all, found 5'),
    (lambda a, b, f, v: pyramid_photometric_loss(a, b, [f], v[..., 1:], l1=1.0, level_weights=(1,)), ValueError, 'visible: expected'),
    (lambda a, b, f, v: edge_aware_smoothness(f, a[..., 1:]), ValueError, 'image: expected'),
    (lambda a, b, f, v: boundary_aware_smoothness(f, v[:2]), ValueError, 'segments: expected'),
    (lambda a, b, f, v: photometric_loss(a, b, f, v.expand(-1, 3, -1, -1), l1=1.0), ValueError, r'visible: expected \(B, 1, H, W\).*found \(4, 3, 16, 24\)'),
    (lambda a, b, f, v: pyramid_photometric_loss(a, b, [f], v.expand(-1, 2, -1, -1), census=1.0, level_weights=(1,)), ValueError, r'visible: .*\(4, 2, 16, 24\)'),
    (lambda a, b, f, v: pyramid_photometric_loss(a, b, [f, f[0]], v, l1=1.0, level_weights=(1, 1)), ValueError, r'flows\[1\]: expected .*\(2, 16, 24\)'),
    (lambda a, b, f, v: pyramid_photometric_loss(a, b, [f, f[..., :2, :]], v, l1=1.0, level_weights=(1, 1)), ValueError, r'flows\[1\]: .* 3 x 3 pixels'),
    (lambda a, b, f, v: photometric_loss(a[:0], b[:0], f[:0], v[:0], l1=1.0), ValueError, r'image_1: expected at least one sample.*\(0, 3, 16, 24\)'),
    (lambda a, b, f, v: self_supervision_loss(f[:0], f[:0], v[:0]), ValueError, 'flow: expected at least one sample'),
    (lambda a, b, f, v: edge_aware_smoothness(f, (a * 255).byte()), TypeError, 'image: .*uint8'),
    (lambda a, b, f, v: edge_aware_smoothness(a, b), ValueError, r'flow: expected \(B, 2, H, W\), found \(4, 3, 16, 24\)'),
    (lambda a, b, f, v: boundary_aware_smoothness(f, v), TypeError, 'segments: expected integer labels, found torch.float32'),
    (lambda a, b, f, v: boundary_aware_smoothness(f, v.expand(-1, 2, -1, -1).long()), ValueError, r'segments: .*\(4, 2, 16, 24\)'),
    (lambda a, b, f, v: self_supervision_loss(a, b, v), ValueError, r'flow: expected \(B, 2, H, W\)'),
    (lambda a, b, f, v: self_supervision_loss(f, f, f), ValueError, r'visible: .*\(4, 2, 16, 24\)'),
    (lambda a, b, f, v: self_supervision_loss(f, f[:, :1], v), ValueError, 'target: expected'),
    (lambda a, b, f, v: self_supervision_loss(f, f, v[:, :, 1:]), ValueError, 'visible: expected'),
])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(*batch())
