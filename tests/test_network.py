"Contracts of the network: its structure against an independent plain network, its parts against loops, and what it refuses."
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unsamflow.network import Flows, UnSAMFlow, choose_precision, convex_upsample, correlate, normalise_features, pool_segments, segment_slots

VARIANTS = (None, 'concat', 'residual', 'concat+residual')


@pytest.fixture(scope='module')
def frames():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 2, 3, 8, 16, generator=generator)
    return [F.interpolate(c, (64, 128), mode='bicubic').clamp(0, 1) for c in coarse]


@pytest.fixture(scope='module')
def segments():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 30, (2, 1, 8, 16), generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3) for _ in range(2)]


def seeded(*args, **options):
    torch.manual_seed(3)
    return UnSAMFlow(*args, **options)


# ---- the whole network, written a second time: one direction, one frame at a time, plain correlation, one-hot pooling

def reference(state, images, labels, how):
    def conv(x, name, dilation=1, stride=1, linear=False):
        weight, bias = state[name + '.weight'], state[name + '.bias']
        y = F.conv2d(x, weight, bias, stride, dilation * (weight.shape[-1] // 2), dilation)
        return y if linear else torch.where(y > 0, y, 0.1 * y)

    def encode(x):
        levels = []
        for level in range(6):
            x = conv(conv(x, f'encoder.levels.{level}.0.0', stride=2), f'encoder.levels.{level}.1.0')
            levels.append(x)
        return levels

    def mark(k, x, segments):
        g = conv(x, f'mask_feature.reduce.{k}.0')
        step = segments.shape[2] // x.shape[2]
        members = F.one_hot(segments[:, 0, ::step, ::step]).bool()
        best = g[..., None].masked_fill(~members[:, None], -torch.inf).amax((2, 3))
        m = torch.einsum('bhwn,bcn->bchw', members.to(g), best.nan_to_num(neginf=0))
        merged = conv(m if how == 'residual' else torch.cat([g, m], 1), 'mask_feature.merge.0')
        return merged if how == 'concat' else g + merged

    def warp(x, flow):
        height, width = flow.shape[2:]
        y, x_ = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        x_, y = x_ + flow[:, 0], y + flow[:, 1]
        grid = torch.stack([2 * x_ / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], -1)
        return F.grid_sample(x, grid, padding_mode='border', align_corners=True)

    def unit(x):
        x = x - x.mean((2, 3), keepdim=True)
        return x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()

    def correlation(a, b):
        height, width = a.shape[2:]
        b = F.pad(b, (4, 4, 4, 4))
        c = torch.stack([(a * b[:, :, y:y + height, x:x + width]).sum(1) for y in range(9) for x in range(9)], 1)
        return torch.where(c > 0, c, 0.1 * c)

    first, second = encode(images[0]), encode(images[1])
    flow, flows = None, []
    for k, level in enumerate(range(5, 0, -1)):
        a, b = first[level], second[level]
        flow = a.new_zeros(len(a), 2, *a.shape[2:]) if flow is None else 2 * F.interpolate(flow, a.shape[2:], mode='bilinear', align_corners=True)
        evidence = [correlation(unit(a), unit(warp(b, flow)))]
        if how: evidence.append(correlation(unit(mark(k, a, labels[0])), unit(warp(mark(k, b, labels[1]), flow))))
        x = [torch.cat([*evidence, conv(a, f'reduce.{k}.0'), flow], 1)]
        for name in ('first', 'second', 'third', 'fourth', 'fifth'):
            x.append(conv(torch.cat(x[-2:], 1) if len(x) > 2 else x[-1], f'estimator.{name}.0'))
        flow = flow + conv(torch.cat(x[-2:], 1), 'estimator.flow', linear=True)
        y = torch.cat([x[-1], flow], 1)
        for i, dilation in enumerate((1, 2, 4, 8)): y = conv(y, f'context.wide.{i}.0', dilation)
        logits = 0.25 * conv(conv(y, 'upsampler.weights.0.0'), 'upsampler.weights.1.0')
        y = conv(conv(y, 'context.flow.0.0', 16), 'context.flow.1.0')
        flow = flow + conv(y, 'context.flow.2', linear=True)
        weights = logits.view(len(a), 1, 9, 16, *a.shape[2:]).softmax(2)
        near = F.unfold(4 * flow, 3, padding=1).view(len(a), 2, 9, 1, *a.shape[2:])
        flows.insert(0, F.pixel_shuffle((weights * near).sum(2).flatten(1, 2), 4))
    return flows


@pytest.mark.parametrize('how', VARIANTS)
def test_it_is_the_network_described(how, frames, segments):
    model = seeded(how)
    with torch.no_grad():
        found, expected = model(*frames, *segments), reference(model.state_dict(), frames, segments, how)
    assert isinstance(found, Flows) and found.backward is None
    for a, b in zip(found.forward, expected, strict=True): torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


def test_its_gradient_is_the_references(frames, segments):
    model = seeded('concat').double()
    frames, segments = ([x[:1, :, :, :64] for x in pair] for pair in (frames, segments))
    frames = [x.double() for x in frames]
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    for flows in (model(*frames, *segments).forward, reference(state, frames, segments, 'concat')):
        sum(f.abs().mean() / 2 ** k for k, f in enumerate(flows)).backward()
    for name, p in model.named_parameters(): torch.testing.assert_close(p.grad, state[name].grad, atol=1e-10, rtol=1e-6)


@pytest.mark.parametrize('how, size', list(zip(VARIANTS, (2_513_412, 2_625_348, 2_624_324, 2_625_348))))
def test_number_of_parameters(how, size):
    with torch.device('meta'): assert sum(p.numel() for p in UnSAMFlow(how).parameters()) == size


def test_default_initialisation():
    torch.manual_seed(0)
    for layer in UnSAMFlow('concat').modules():
        if isinstance(layer, torch.nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            for p in (layer.weight, layer.bias): assert p.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3 ** 0.5, rel=0.1)


# ---- the network as a function

@pytest.mark.parametrize('how', (None, 'concat'))
def test_directions_and_samples_are_independent(how, frames, segments):
    model = seeded(how)
    with torch.no_grad():
        both = model(*frames, *segments, both_directions=True)
        back = model(*frames[::-1], *segments[::-1])
        single = model(*(x[1:] for x in (*frames, *segments)))
    for a, b in zip(both.backward, back.forward): torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)
    for a, b in zip(both.forward, single.forward): torch.testing.assert_close(a[1:], b, atol=2e-4, rtol=1e-4)


def test_segments_are_ignored_without_mask_features(frames, segments):
    model = seeded()
    with torch.no_grad(): assert all(torch.equal(a, b) for a, b in zip(model(*frames).forward, model(*frames, *segments).forward))


@pytest.mark.parametrize('how', VARIANTS[1:])
def test_labels_are_only_names(how, frames, segments):
    model, names = seeded(how), torch.randperm(65_536)
    with torch.no_grad(): a, b = model(*frames, *segments), model(*frames, names[segments[0]], names[segments[1]].int())
    assert torch.equal(a.forward[0], b.forward[0])


@pytest.mark.parametrize('height, width', ((1, 1), (37, 64), (65, 130), (64, 192)))
def test_any_size(height, width):
    labels = torch.randint(0, 5, (1, 1, height, width))
    with torch.no_grad(): flows = seeded('concat')(*torch.rand(2, 1, 3, height, width), labels, labels, True)
    for k, (a, b) in enumerate(zip(*flows)):
        assert a.shape == b.shape == (1, 2, -(-height // 2 ** k), -(-width // 2 ** k)) and a.isfinite().all()


def test_other_sizes_are_resized_and_the_flow_scaled_back():
    model, (a, b) = seeded(), torch.rand(2, 1, 3, 48, 96)
    bigger = [F.interpolate(x, (64, 128), mode='bilinear', align_corners=True) for x in (a, b)]
    with torch.no_grad(): found, reference = model(a, b).forward[0], model(*bigger).forward[0]
    expected = F.interpolate(reference, (48, 96), mode='bilinear', align_corners=True) * torch.tensor([96 / 128, 48 / 64]).view(1, 2, 1, 1)
    torch.testing.assert_close(found, expected)


def test_pictures_of_another_precision_than_the_weights(frames):
    "They are brought to the type of the weights: what NumPy hands over is float64."
    model = seeded()
    with torch.no_grad():
        expected = model(*frames).forward[0]
        assert torch.equal(model(*(x.double() for x in frames)).forward[0], expected)
        assert torch.equal(model(frames[0], frames[1].double()).forward[0], expected)
        rounded = model(*(x.half().float() for x in frames)).forward[0]
        assert torch.equal(model(*(x.half() for x in frames)).forward[0], rounded)
        assert model.double()(*frames).forward[0].dtype == torch.float64


def test_the_finest_flow_teaches_every_level(frames):
    model = seeded()
    model(*frames).forward[0].square().mean().backward()
    for level in model.reduce: assert level[0].weight.grad.abs().sum() > 0
    for level in model.encoder.levels: assert level[0][0].weight.grad.abs().sum() > 0


def test_images_without_texture_give_finite_gradients():
    model, grey = seeded('concat'), torch.full((1, 3, 64, 64), 0.5)
    flows = model(grey, grey, *[torch.zeros(1, 1, 64, 64, dtype=torch.long)] * 2, True)
    sum(f.abs().mean() for f in flows.forward + flows.backward).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_autocast_keeps_flow_in_float32(frames, segments):
    model = seeded('concat')
    exact = model(*frames, *segments, both_directions=True)
    with torch.autocast('cpu', torch.bfloat16): rounded = model(*frames, *segments, both_directions=True)
    for a, b in zip(exact.forward, rounded.forward):
        assert b.dtype == torch.float32
        assert (a - b).abs().mean() < 0.02 * a.abs().mean()
    rounded.forward[0].abs().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---- the parts

def test_correlation_is_the_loop():
    a, b = torch.randn(2, 2, 3, 7, 10, dtype=torch.float64)
    found = correlate(a, b, 2, 'none')
    for s, y, x in np.ndindex(2, 7, 10):
        for k, (dy, dx) in enumerate((dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)):
            inside = 0 <= y + dy < 7 and 0 <= x + dx < 10
            expected = (a[s, :, y, x] * b[s, :, y + dy, x + dx]).mean() if inside else 0.
            assert found[s, k, y, x].item() == pytest.approx(float(expected), abs=1e-12)


def test_correlation_of_a_frame_with_itself():
    x = torch.randn(1, 6, 12, 20)
    volume = correlate(x, x)
    assert volume.shape == (1, 81, 12, 20) and volume.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(volume[:, 40], torch.ones(1, 12, 20), atol=1e-4, rtol=0)
    torch.testing.assert_close(volume[0, 40 + 9, :-1], volume[0, 40 - 9, 1:])          # one down from here is one up from there


@pytest.mark.parametrize('how', ('centred-cosine', 'cosine'))
def test_cosines_ignore_contrast(how):
    a, b = torch.randn(2, 1, 6, 9, 9)
    shift = 3. if how == 'centred-cosine' else 0.
    torch.testing.assert_close(correlate(a, b, normalise=how), correlate(5 * a + shift, 0.5 * b - shift, normalise=how), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('layout', (torch.contiguous_format, torch.channels_last))
def test_layout_does_not_matter(layout):
    a, b = torch.randn(2, 2, 5, 11, 13)
    labels = torch.randint(0, 9, (2, 1, 11, 13))
    c, d = (x.contiguous(memory_format=layout) for x in (a, b))
    torch.testing.assert_close(correlate(a[..., ::1], b), correlate(c, d))
    torch.testing.assert_close(correlate(a[:, :, ::2, 1:], b[:, :, ::2, 1:]), correlate(c[:, :, ::2, 1:], d[:, :, ::2, 1:]))
    assert torch.equal(pool_segments(a, labels), pool_segments(c, labels))


@pytest.mark.parametrize('count', (1, 2, 40, 5_000))
@pytest.mark.parametrize('dtype', (torch.int32, torch.int64))
def test_pooling_is_the_maximum_over_the_segment(count, dtype):
    generator = torch.Generator().manual_seed(count)
    features = torch.randn(2, 3, 60, 90, generator=generator) - 5
    labels = torch.randperm(65_536, generator=generator)[torch.randint(0, count, (2, 1, 60, 90), generator=generator)].to(dtype)
    labels[0, 0, 0, 0], labels[1, 0, 5, 5] = 65_535, 0
    found = pool_segments(features, labels).numpy()
    for sample in range(2):
        names, index = np.unique(labels[sample].numpy(), return_inverse=True)
        best = np.full((len(names), 3), -np.inf, np.float32)
        np.maximum.at(best, index.ravel(), features[sample].flatten(1).T.numpy())
        assert np.array_equal(found[sample].reshape(3, -1).T, best[index.ravel()])


def test_pooling_shares_the_gradient_of_ties():
    features = torch.tensor([[1., 3., 3.], [0., 3., -1.]]).view(1, 1, 2, 3).requires_grad_()
    labels = torch.tensor([[4, 4, 4], [9, 4, 9]]).view(1, 1, 2, 3)
    pool_segments(features, labels).backward(torch.tensor([[1., 2., 3.], [10., 6., 20.]]).view(1, 1, 2, 3))
    assert torch.equal(features.grad[0, 0], torch.tensor([[0., 4., 4.], [30., 4., 0.]]))


def test_pooling_counts_many_ties_in_bfloat16():
    features = torch.ones(1, 1, 40, 40, dtype=torch.bfloat16, requires_grad=True)
    pool_segments(features, torch.zeros(1, 1, 40, 40, dtype=torch.long)).sum().backward()
    torch.testing.assert_close(features.grad, torch.ones_like(features))


def test_slots_name_segments_of_one_sample_each():
    labels = torch.tensor([[[[3, 3, 7]]], [[[3, 7, 7]]]])
    slots = segment_slots(labels)
    assert slots[0] == slots[1] and slots[4] == slots[5] and len(set(slots.tolist())) == 4


def test_upsampled_flow_is_a_convex_combination():
    flow, logits = torch.randn(2, 2, 5, 6), 5 * torch.randn(2, 144, 5, 6)
    fine = convex_upsample(flow, logits)
    near = torch.stack([F.max_pool2d(F.pad(4 * sign * flow, (1, 1, 1, 1)), 3, 1) for sign in (1, -1)])
    highest, lowest = (x.repeat_interleave(4, 2).repeat_interleave(4, 3) for x in (near[0], -near[1]))
    assert (fine <= highest + 1e-5).all() and (fine >= lowest - 1e-5).all()


@pytest.mark.parametrize('neighbour, row, column', ((0, 0, 0), (5, 2, 1), (7, 3, 3)))
def test_order_of_the_upsampling_weights(neighbour, row, column):
    flow, logits = torch.randn(1, 2, 5, 6), torch.zeros(1, 144, 5, 6)
    logits[0, neighbour * 16 + row * 4 + column] = 100.
    fine, moved = convex_upsample(flow, logits), F.pad(4 * flow, (1, 1, 1, 1))
    expected = moved[:, :, neighbour // 3:neighbour // 3 + 5, neighbour % 3:neighbour % 3 + 6]
    torch.testing.assert_close(fine[:, :, row::4, column::4], expected)


def test_parts_compile_without_a_graph_break():
    a, b = torch.randn(2, 1, 4, 9, 10)
    labels = torch.randint(0, 5, (1, 1, 9, 10))
    compiled = torch.compile(lambda a, b, s: correlate(a, pool_segments(b, s)), backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(a, b, labels), correlate(a, pool_segments(b, labels)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('precision', (torch.float32, torch.bfloat16))
def test_on_a_gpu_nothing_waits(frames, segments, precision):
    model, (a, b), (s, t) = seeded('concat').cuda(), [x.cuda() for x in frames], [x.cuda() for x in segments]

    def step():
        with torch.autocast('cuda', precision, enabled=precision != torch.float32): flows = model(a, b, s, t, both_directions=True)
        sum(f.abs().mean() for f in flows.forward + flows.backward).backward()

    step()
    torch.cuda.set_sync_debug_mode('error')
    try: step()
    finally: torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('capability, precision', (((6, 1), torch.float32), ((7, 0), torch.float32), ((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)))
def test_bfloat16_is_chosen_where_there_are_matrix_units_for_it(capability, precision, monkeypatch):
    "Of the device asked about, not of the one in use; older GPUs accept bfloat16 too, and imitate it."
    asked = []
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: asked.append(device) or capability)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True: including_emulation)
    assert choose_precision('auto', torch.device('cuda:1')) == precision
    assert asked == [torch.device('cuda:1')]


@pytest.mark.parametrize('amx, precision', ((True, torch.bfloat16), (False, torch.float32)))
def test_precision_of_a_processor(amx, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)
    assert choose_precision('auto', torch.device('cpu')) == precision
    assert choose_precision('auto', torch.device('mps')) == torch.float32
    assert choose_precision('bfloat16', torch.device('cpu')) == torch.bfloat16 and choose_precision('float32', torch.device('cpu')) == torch.float32


# ---- what is refused

@pytest.mark.parametrize('a, b, message', (
    ((1, 3, 64, 64), (1, 3, 64, 128), r'\(1, 3, 64, 64\) and \(1, 3, 64, 128\)'),
    ((1, 3, 64, 64), (2, 3, 64, 64), r'\(2, 3, 64, 64\)'),
    ((1, 4, 64, 64), (1, 4, 64, 64), r'images \(B, 3, H, W\)'),
    ((0, 3, 64, 64), (0, 3, 64, 64), r'not empty, found \(0, 3, 64, 64\)'), ((1, 3, 0, 64), (1, 3, 0, 64), 'not empty'),
    ((3, 64, 64), (3, 64, 64), r'\(3, 64, 64\)')))
def test_wrong_images(a, b, message):
    with pytest.raises(ValueError, match=message): seeded()(torch.rand(a), torch.rand(b))


def test_images_of_integers():
    with pytest.raises(TypeError, match='torch.uint8'): seeded()(*torch.zeros(2, 1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize('second, message', ((None, 'segments_2 is missing'), (torch.zeros(2, 1, 64, 64, dtype=torch.long), r'expected integer labels \(1, 1, 64, 64\)'),
                                            (torch.zeros(1, 64, 64, dtype=torch.long), r'found torch.int64 \(1, 64, 64\)'), (torch.zeros(1, 1, 64, 64), 'torch.float32')))
def test_wrong_segments(second, message):
    with pytest.raises(ValueError, match=message):
        seeded('concat')(*torch.rand(2, 1, 3, 64, 64), torch.zeros(1, 1, 64, 64, dtype=torch.long), second)


@pytest.mark.parametrize('call, message', (
    (lambda: UnSAMFlow('mean'), "found 'mean'"), (lambda: UnSAMFlow(''), "found ''"),
    (lambda: normalise_features(torch.rand(1, 2, 3, 3), 'l2'), "found 'l2'"), (lambda: UnSAMFlow(normalise='l2'), "found 'l2'"),
    (lambda: convex_upsample(torch.rand(1, 2, 3, 4), torch.rand(1, 144, 4, 3)), r'\(1, 2, 3, 4\) and \(1, 144, 4, 3\)'),  # as many numbers, other places
    (lambda: convex_upsample(torch.rand(1, 2, 3, 4), torch.rand(1, 36, 3, 4)), r'\(B, 144, h, w\)'),
    (lambda: convex_upsample(torch.rand(1, 3, 3, 4), torch.rand(1, 144, 3, 4)), r'\(1, 3, 3, 4\)'),
    (lambda: choose_precision('float16', torch.device('cpu')), "found 'float16'"),
    (lambda: correlate(torch.rand(1, 2, 3, 3), torch.rand(1, 3, 3, 3)), r'\(1, 2, 3, 3\) and \(1, 3, 3, 3\)'),
    (lambda: correlate(*torch.rand(2, 1, 2, 3, 3), radius=0), 'radius of at least 1, found 0'),
    (lambda: pool_segments(torch.rand(1, 2, 3, 3), torch.zeros(1, 1, 3, 4, dtype=torch.long)), r'\(1, 1, 3, 4\)'),
    (lambda: pool_segments(torch.rand(1, 2, 3, 3), torch.zeros(1, 1, 3, 3)), 'torch.float32')))
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message): call()


@pytest.mark.parametrize('label, found', ((65_536, '7 .. 65,536'), (-1, '-1 .. 7')))
def test_labels_out_of_range(label, found):
    labels = torch.full((1, 1, 64, 64), 7)
    labels[0, 0, 32, 32] = label
    for call in (lambda: pool_segments(torch.rand(1, 2, 64, 64), labels), lambda: seeded('concat')(*torch.rand(2, 1, 3, 64, 64), labels, labels)):
        with pytest.raises(ValueError, match=f'segments: expected labels in 0 .. 65,535, found {found}'): call()
