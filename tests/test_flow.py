"Contracts of unsamflow.flow: sampling, resizing, occlusion, file formats, colours; against other libraries and brute force."
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates

from unsamflow.flow import (colour_wheel, flow_legend, flow_to_rgb, occlusion_forward_backward, occlusion_range_map, pixel_grid, range_map,
                            read_flow, resize_flow, warp, write_flow)

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')


def random_flow(shape, scale=3.0, seed=0, dtype=torch.float32):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_image(shape, seed=1, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# warp

@pytest.mark.parametrize('size', [(2, 2), (1, 9), (9, 1), (7, 12), (33, 20)])
@pytest.mark.parametrize('padding, mode', [('border', 'nearest'), ('zeros', 'grid-constant')])
def test_warp_against_scipy(size, padding, mode):
    if padding == 'zeros' and 1 in size: pytest.skip('a side of one pixel has no scale')
    image, flow = random_image((2, 2, *size), dtype=torch.float64), random_flow((2, 2, *size), dtype=torch.float64)
    x, y = (pixel_grid(*size, dtype=torch.float64) + flow).unbind(1)
    found = warp(image, flow, padding)
    for b in range(2):
        for c in range(2):
            expected = map_coordinates(image[b, c].numpy(), [y[b].numpy(), x[b].numpy()], order=1, mode=mode)
            assert np.allclose(found[b, c].numpy(), expected, atol=1e-10)


def test_whole_pixels_are_exact_and_point_the_right_way():
    image = random_image((1, 3, 10, 12))
    flow = torch.zeros(1, 2, 10, 12)
    flow[:, 0], flow[:, 1] = 2, 1
    moved = image.roll((1, 2), (2, 3))  # what was at p is now at p + (2, 1)
    assert torch.allclose(warp(moved, flow)[..., :-1, :-2], image[..., :-1, :-2], atol=1e-5)


@pytest.mark.parametrize('padding', ['border', 'zeros'])
def test_warp_gradients_by_finite_differences(padding):
    image = random_image((2, 2, 5, 6), dtype=torch.float64).requires_grad_()
    flow = random_flow((2, 2, 5, 6), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, f: warp(i, f, padding), (image, flow))


def test_positions_are_exact_to_a_ten_thousandth_of_a_pixel_on_wide_frames():
    ramp = pixel_grid(4, 1242, dtype=torch.float64)[None]
    flow = random_flow((1, 2, 4, 1242), 0.3)
    x = warp(ramp.float(), flow)[:, 0, :, 5:-5]
    assert (x - ramp[:, 0, :, 5:-5] - flow[:, 0, :, 5:-5]).abs().max() < 3e-4


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_warp_keeps_the_type_and_samples_in_float32(dtype):
    image, flow = random_image((1, 4, 16, 700)).to(dtype), random_flow((1, 2, 16, 700))
    found = warp(image, flow)
    assert found.dtype == dtype
    assert torch.equal(found, warp(image.to(torch.promote_types(dtype, torch.float32)), flow).to(dtype))


def test_autocast_changes_nothing():
    image, flow_12, flow_21 = random_image((2, 3, 20, 300)), random_flow((2, 2, 20, 300)), random_flow((2, 2, 20, 300), seed=3)
    calls = (lambda: warp(image, flow_12), lambda: resize_flow(flow_12, (30, 500)), lambda: occlusion_forward_backward(flow_12, flow_21), lambda: range_map(flow_21))
    for call in calls:
        with torch.autocast('cpu', dtype=torch.bfloat16): found = call()
        assert found.equal(call())


@pytest.mark.parametrize('image, flow', [((2, 3, 8, 9), (2, 2, 9, 8)), ((2, 3, 8, 9), (1, 2, 8, 9)), ((2, 3, 8, 9), (2, 3, 8, 9)), ((3, 8, 9), (2, 8, 9)), ((2, 3, 8, 9), (2, 2, 4, 9))])
def test_warp_names_both_shapes(image, flow):
    with pytest.raises(ValueError) as caught: warp(torch.zeros(image), torch.zeros(flow))
    assert str(image) in str(caught.value) and str(flow) in str(caught.value)


def test_warp_refuses_labels_and_unknown_padding():
    with pytest.raises(TypeError, match='floating'): warp(torch.zeros(1, 1, 4, 4, dtype=torch.int64), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match='mirror'): warp(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4), padding='mirror')


@pytest.mark.parametrize('function, inputs', [
    (warp, ((2, 3, 12, 16), (2, 2, 12, 16))), (lambda f: resize_flow(f, (20, 30)), ((2, 2, 12, 16),)),
    (occlusion_forward_backward, ((2, 2, 12, 16), (2, 2, 12, 16))), (occlusion_range_map, ((2, 2, 12, 16),)),
])
def test_compiles_in_one_graph(function, inputs):
    tensors = [random_flow(shape, seed=i) for i, shape in enumerate(inputs)]
    torch._dynamo.reset()
    compiled = torch.compile(function, backend='eager', fullgraph=True)
    assert compiled(*tensors).equal(function(*tensors))


@cuda
def test_cuda_agrees_and_never_waits_for_the_host():
    image, flow_12, flow_21 = random_image((2, 3, 64, 96)), random_flow((2, 2, 64, 96)), random_flow((2, 2, 64, 96), seed=5)
    calls = (lambda i, a, b: warp(i, a), lambda i, a, b: resize_flow(a, (100, 90)), lambda i, a, b: range_map(b), lambda i, a, b: occlusion_forward_backward(a, b).float())
    on_device = [tensor.cuda() for tensor in (image, flow_12, flow_21)]
    for call in calls:
        call(*on_device)
        torch.cuda.set_sync_debug_mode('error')
        try: found = call(*on_device)
        finally: torch.cuda.set_sync_debug_mode('default')
        assert torch.allclose(found.cpu(), call(image, flow_12, flow_21), atol=1e-3)


# resize_flow

def test_resize_flow_of_a_constant_field_is_exact_for_every_size():
    flow = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(2, 2, 24, 32)
    for height, width in ((12, 16), (24, 64), (7, 5), (100, 33)):
        found = resize_flow(flow, (height, width))
        assert found.shape == (2, 2, height, width)
        assert torch.allclose(found[:, 0], torch.tensor(3 * width / 32), rtol=1e-5) and torch.allclose(found[:, 1], torch.tensor(-2 * height / 24), rtol=1e-5)


def test_resize_flow_against_scipy():
    flow = random_flow((1, 2, 9, 14), dtype=torch.float64)
    y, x = np.meshgrid(np.linspace(0, 8, 20), np.linspace(0, 13, 31), indexing='ij')
    found = resize_flow(flow, (20, 31))[0].numpy()
    for channel, ratio in ((0, 31 / 14), (1, 20 / 9)):
        assert np.allclose(found[channel], ratio * map_coordinates(flow[0, channel].numpy(), [y, x], order=1), atol=1e-10)


def test_resized_flow_still_aligns_resized_images():
    "The motion of a smooth picture between two grids: the resized flow must fit the resized pictures."
    smooth = F.interpolate(random_image((1, 3, 12, 16)), (96, 128), mode='bicubic', align_corners=True)
    flow = F.interpolate(random_flow((1, 2, 4, 5), 3.0), (96, 128), mode='bicubic', align_corners=True)
    target = warp(smooth, flow)
    small = lambda image: F.interpolate(image, (48, 64), mode='bilinear', align_corners=True)
    inner = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    error = lambda f: (warp(small(smooth), f) - small(target))[inner].abs().mean()
    assert error(resize_flow(flow, (48, 64))) < 0.1 * error(torch.zeros(1, 2, 48, 64))
    assert error(resize_flow(flow, (48, 64))) < 0.2 * error(small(flow))  # forgetting the scale would show


def test_resize_flow_types_and_errors():
    flow = random_flow((1, 2, 8, 8))
    assert resize_flow(flow, (8, 8)) is flow
    assert resize_flow(flow.bfloat16(), (16, 16)).dtype == torch.float32 and resize_flow(flow.double(), (16, 16)).dtype == torch.float64
    for shape in ((2, 8, 8), (1, 3, 8, 8)):
        with pytest.raises(ValueError, match='found'): resize_flow(torch.zeros(shape), (4, 4))


# occlusion

def layers(seed, size=(40, 56)):
    "Three layers that move by whole pixels: both flows and the true occlusion of frame 1, pixel by pixel."
    rng = np.random.default_rng(seed)
    height, width = size
    motions = rng.permutation([(-6, 2), (7, 5), (3, -8)])
    depth_1 = np.zeros(size, int)
    for layer in (1, 2):
        y, x = rng.integers(4, 20, 2)
        depth_1[y:y + rng.integers(8, 16), x:x + rng.integers(8, 20)] = layer
    depth_2 = np.zeros(size, int)
    source = {layer: np.argwhere(depth_1 == layer) for layer in (1, 2)}
    for layer in (1, 2):
        for y, x in source[layer] + motions[layer][::-1]:
            if 0 <= y < height and 0 <= x < width: depth_2[y, x] = layer
    occluded = np.zeros(size, bool)
    for y in range(height):
        for x in range(width):
            u, v = motions[depth_1[y, x]]
            inside = 0 <= y + v < height and 0 <= x + u < width
            occluded[y, x] = not inside or depth_2[y + v, x + u] != depth_1[y, x]
    field = lambda depth, sign: torch.tensor(sign * motions[depth]).permute(2, 0, 1).float()[None]
    return field(depth_1, 1), field(depth_2, -1), torch.tensor(occluded)[None, None]


@pytest.mark.parametrize('seed', range(6))
def test_both_estimators_find_the_exact_occlusion_of_moving_layers(seed):
    flow_12, flow_21, truth = layers(seed)
    assert 0.05 < truth.float().mean() < 0.6
    assert occlusion_forward_backward(flow_12, flow_21).equal(truth)
    # the layer that is partly hidden in frame 1 may receive mass from pixels of frame 2 that frame 1 does not show: never the other way round
    found = occlusion_range_map(flow_21)
    assert not (found & ~truth).any()
    assert (found == truth).float().mean() > 0.9


def test_forward_backward_is_the_formula():
    u = torch.linspace(-3, 3, 61)
    flow_12 = torch.zeros(1, 2, 1, 61)
    flow_21 = torch.stack([torch.zeros(61), u]).view(1, 2, 1, 61)
    expected = u**2 > 0.01 * u**2 + 0.5
    assert occlusion_forward_backward(flow_12, flow_21).flatten().equal(expected)
    assert occlusion_forward_backward(flow_12, flow_21, relative=0, absolute=100).sum() == 0


@pytest.mark.parametrize('shift, threshold, occluded', [(0.75, 0.2, False), (0.85, 0.2, True), (0.75, 0.25, False), (0.75, 0.26, True)])
def test_the_threshold_of_the_range_map(shift, threshold, occluded):
    "A field that slides to the left by a share of a pixel leaves the rest of the mass to the last column; exactly the threshold is visible."
    flow_21 = torch.zeros(1, 2, 3, 4)
    flow_21[:, 0] = -shift
    found = occlusion_range_map(flow_21) if threshold == 0.2 else occlusion_range_map(flow_21, threshold)
    assert found[..., -1].all().item() is found[..., -1].any().item() is occluded and not found[..., :-1].any()


def test_exactly_the_tolerance_is_visible():
    flow_21 = torch.tensor([0.5, 0.5001]).view(1, 1, 1, 2).expand(1, 2, 1, 2) * torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    assert occlusion_forward_backward(torch.zeros(1, 2, 1, 2), flow_21, relative=0, absolute=0.25).flatten().tolist() == [False, True]


def test_occlusion_shapes_types_and_no_gradient():
    flow_12, flow_21 = random_flow((3, 2, 9, 11)).requires_grad_(), random_flow((3, 2, 9, 11), seed=2).requires_grad_()
    for occluded in (occlusion_forward_backward(flow_12, flow_21), occlusion_range_map(flow_21)):
        assert occluded.shape == (3, 1, 9, 11) and occluded.dtype == torch.bool
    assert not range_map(flow_21).requires_grad


def test_occlusion_names_the_shapes_it_refuses():
    good, small, three = torch.zeros(1, 2, 6, 7), torch.zeros(1, 2, 6, 8), torch.zeros(1, 3, 6, 7)
    for function in (range_map, occlusion_range_map):
        for flow in (three, good[0]):
            with pytest.raises(ValueError) as caught: function(flow)
            assert str(tuple(flow.shape)) in str(caught.value)
    for pair in ((good, small), (good, three), (three, three), (good[0], good[0])):
        with pytest.raises(ValueError) as caught: occlusion_forward_backward(*pair)
        assert all(str(tuple(flow.shape)) in str(caught.value) for flow in pair)


def test_flow_that_is_not_finite():
    flow_12, flow_21 = torch.zeros(1, 2, 6, 7), torch.zeros(1, 2, 6, 7)
    flow_12[0, 0, 2, 3] = float('nan')
    assert occlusion_forward_backward(flow_12, flow_21).nonzero().tolist() == [[0, 0, 2, 3]]
    for value in (float('nan'), float('inf'), -float('inf'), 1e38):
        flow_21 = torch.zeros(1, 2, 6, 7)
        flow_21[0, 1, 4, 5] = value
        found = range_map(flow_21)
        assert found[0, 0, 4, 5] == 0 and found.sum() == 6 * 7 - 1


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 1e20, 3e38])
@pytest.mark.parametrize('which', [0, 1])
def test_no_flow_beyond_float32s_squares_is_called_visible(value, which):
    "Infinity is no more than itself: a comparison of infinite error with infinite tolerance must not say 'visible'."
    flows = [torch.zeros(1, 2, 6, 7), torch.zeros(1, 2, 6, 7)]
    flows[which][:, 0, 2, 3] = value
    found = occlusion_forward_backward(*flows)
    assert found[0, 0, 2, 3] and found.sum() <= 9
    assert occlusion_forward_backward(*(torch.full_like(flow, value) if k == which else flow for k, flow in enumerate(flows))).all()


@pytest.mark.parametrize('size', [(1, 1), (1, 8), (9, 1), (13, 21)])
@pytest.mark.parametrize('scale', [0.0, 0.7, 5.0, 200.0])
def test_range_map_against_numpy(size, scale):
    flow = random_flow((3, 2, *size), scale, dtype=torch.float64)
    expected = np.zeros((3, 1, *size))
    x, y = (pixel_grid(*size, dtype=torch.float64) + flow).unbind(1)
    for b, py, px in np.ndindex(3, *size):
        expected[b, 0, py, px] = ((1 - (x[b] - px).abs()).clamp(min=0) * (1 - (y[b] - py).abs()).clamp(min=0)).sum()
    assert np.allclose(range_map(flow).numpy(), expected, atol=1e-9)


def test_range_map_conserves_the_mass_that_stays_inside():
    flow = random_flow((2, 2, 20, 20), 1.0).clamp(-2, 2)
    flow[..., :3, :] = flow[..., -3:, :] = flow[..., :, :3] = flow[..., :, -3:] = 0
    assert torch.allclose(range_map(flow).sum((1, 2, 3)), torch.tensor(400.0))
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 0] = -0.25
    assert torch.allclose(range_map(flow)[0, 0], torch.tensor([1.0, 1, 1, 1, 0.75]).expand(4, 5))


# files

FIELD = np.clip(random_flow((2, 13, 17), 120.0).numpy(), -500, 500)
KNOWN = random_image((13, 17)).numpy() > 0.4


@pytest.mark.parametrize('suffix, tolerance', [('.flo', 0), ('.png', 1 / 128), ('.PNG', 1 / 128)])
@pytest.mark.parametrize('kind', ['array', 'double', 'tensor', 'gradient', 'transposed'])
def test_round_trip(tmp_path, suffix, tolerance, kind):
    flow = {'array': FIELD, 'double': FIELD.astype(np.float64), 'tensor': torch.tensor(FIELD), 'gradient': torch.tensor(FIELD).requires_grad_(),
            'transposed': np.asfortranarray(FIELD)}[kind]
    write_flow(tmp_path/f'a{suffix}', flow, torch.tensor(KNOWN) if kind == 'tensor' else KNOWN)
    found, valid = read_flow(str(tmp_path/f'a{suffix}'))
    assert found.shape == (2, 13, 17) and found.dtype == np.float32 and found.flags.c_contiguous and found.flags.writeable
    assert valid.dtype == bool and (valid == KNOWN).all() and (found[:, ~KNOWN] == 0).all()
    assert np.abs(found - FIELD)[:, KNOWN].max() <= tolerance
    assert [file.name for file in tmp_path.iterdir()] == [f'a{suffix}']


def test_flo_is_opencvs(tmp_path):
    write_flow(tmp_path/'ours.flo', FIELD)
    cv2.writeOpticalFlow(str(tmp_path/'theirs.flo'), np.ascontiguousarray(FIELD.transpose(1, 2, 0)))
    assert (tmp_path/'ours.flo').read_bytes() == (tmp_path/'theirs.flo').read_bytes()
    assert (cv2.readOpticalFlow(str(tmp_path/'ours.flo')).transpose(2, 0, 1) == FIELD).all()


@pytest.mark.parametrize('value', [1.1e9, -1e10, np.inf, np.nan])
def test_unknown_flow_in_flo(tmp_path, value):
    flow = FIELD.copy()
    flow[1, 3, 4] = value
    cv2.writeOpticalFlow(str(tmp_path/'a.flo'), np.ascontiguousarray(flow.transpose(1, 2, 0)))
    found, valid = read_flow(tmp_path/'a.flo')
    assert np.argwhere(~valid).tolist() == [[3, 4]] and (found[:, 3, 4] == 0).all() and (found[:, valid] == flow[:, valid]).all()


def test_kitti_codes(tmp_path):
    u = np.array([[0, 1, -1, 511.98, -511.98, 1 / 128 + 1e-4, 0.004, 7]], np.float32)
    valid = np.array([[1, 1, 1, 1, 1, 1, 1, 0]])
    write_flow(tmp_path/'a.png', np.stack([u, -2 * u.clip(-9, 9)]), valid)
    blue, green, red = cv2.imread(str(tmp_path/'a.png'), cv2.IMREAD_UNCHANGED).transpose(2, 0, 1).astype(int)
    assert red.tolist() == [[32768, 32832, 32704, 65535, 1, 32769, 32768, 32768]]  # not valid: the code of no motion, as in KITTI's own files
    assert green.tolist() == [[32768, 32640, 32896, 31616, 33920, 32767, 32767, 32768]]
    assert blue.tolist() == valid.tolist()


def test_kitti_file_of_another_writer(tmp_path):
    codes = np.zeros((2, 3, 3), np.uint16)
    codes[0, 0] = (1, 2**15 + 64 * 3, 2**15 - 64 * 5)  # B, G, R
    codes[1, 2] = (255, 0, 65535)  # any number but 0 means known
    codes[1, 1] = (0, 1, 1)
    cv2.imwrite(str(tmp_path/'a.png'), codes)
    flow, valid = read_flow(tmp_path/'a.png')
    assert flow[:, 0, 0].tolist() == [-5, 3] and flow[:, 1, 2].tolist() == [511.984375, -512] and valid.sum() == 2 and (flow[:, 1, 1] == 0).all()


@pytest.mark.parametrize('value', [512, -512, 511.995, 600, -70000, 1e9])
def test_kitti_refuses_what_would_wrap_round(tmp_path, value):
    flow = FIELD.copy()
    flow[0, 5, 5] = value
    with pytest.raises(ValueError, match='a.png.*512 px'): write_flow(tmp_path/'a.png', flow)
    write_flow(tmp_path/'a.flo', flow)
    mask = np.ones((13, 17), bool)
    mask[5, 5] = False
    write_flow(tmp_path/'a.png', flow, mask)  # where it is not valid it does not matter
    assert read_flow(tmp_path/'a.png')[1].sum() == 13 * 17 - 1


@pytest.mark.parametrize('suffix', ['.flo', '.png'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_writing_refuses_what_is_not_finite_where_valid(tmp_path, suffix, value):
    flow = FIELD.copy()
    flow[1, 0, 0] = value
    with pytest.raises(ValueError, match=f'a{suffix}.*finite.*found 1 pixel'): write_flow(tmp_path/f'a{suffix}', flow)
    assert list(tmp_path.iterdir()) == []
    mask = np.ones((13, 17), bool)
    mask[0, 0] = False
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        write_flow(tmp_path/f'a{suffix}', flow, mask)


def test_flo_refuses_lengths_that_mean_unknown(tmp_path):
    flow = FIELD.copy()
    flow[0, 0, 0] = 2e9
    with pytest.raises(ValueError, match='a.flo.*1e\\+09'): write_flow(tmp_path/'a.flo', flow)


@pytest.mark.parametrize('flow, error', [
    (np.zeros((13, 17, 2)), ValueError), (np.zeros((1, 2, 4, 5)), ValueError), (np.zeros((2, 0, 5)), ValueError), (torch.zeros(3, 4, 5), ValueError),
    (np.zeros((2, 4, 5), bool), TypeError), (torch.zeros(2, 4, 5, dtype=torch.bool), TypeError), (torch.zeros(2, 4, 5, dtype=torch.complex64), TypeError), (np.zeros((2, 4, 5), complex), TypeError), (None, TypeError), ('flow', TypeError),
])
def test_writing_refuses_other_shapes_and_types(tmp_path, flow, error):
    with pytest.raises(error, match='a.flo: expected flow .*found'): write_flow(tmp_path/'a.flo', flow)


def test_writing_refuses_masks_of_another_size_suffixes_and_folders(tmp_path):
    with pytest.raises(ValueError, match=r'\(13, 17\), found \(13, 16\)'): write_flow(tmp_path/'a.flo', FIELD, KNOWN[:, 1:])
    for name in ('a.jpg', 'a', 'a.flo.txt'):
        with pytest.raises(ValueError, match='suffix'): write_flow(tmp_path/name, FIELD)
        with pytest.raises(ValueError, match='suffix'): read_flow(tmp_path/name)
    with pytest.raises(FileNotFoundError, match='nowhere'): write_flow(tmp_path/'nowhere'/'a.flo', FIELD)
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='file'): write_flow(tmp_path/'file'/'a.flo', FIELD)


@pytest.mark.parametrize('suffix', ['.flo', '.png'])
def test_a_file_of_any_other_length_is_refused(tmp_path, suffix):
    path = tmp_path/f'a{suffix}'
    write_flow(path, FIELD, KNOWN)
    data = path.read_bytes()
    for length in {*range(0, 60), *range(60, len(data), 41), *range(len(data) - 20, len(data))}:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=f'a{suffix}: expected .*found'): read_flow(path)
    if suffix == '.flo':
        path.write_bytes(data + b'\0' * 8)
        with pytest.raises(ValueError, match='a.flo: expected .*found'): read_flow(path)


@pytest.mark.parametrize('width, height', [(0, 0), (-1, 5), (5, -1), (2**31 - 1, 2**31 - 1), (100_000, 1), (17, 14), (13, 16)])
def test_flo_headers_that_lie(tmp_path, width, height):
    write_flow(tmp_path/'a.flo', FIELD)
    data = (tmp_path/'a.flo').read_bytes()
    (tmp_path/'a.flo').write_bytes(data[:4] + np.array([width, height], '<i4').tobytes() + data[12:])
    with pytest.raises(ValueError, match=f'a.flo: expected .*{width} x {height}'): read_flow(tmp_path/'a.flo')


def test_a_wrong_magic_number_and_a_missing_file(tmp_path):
    write_flow(tmp_path/'a.flo', FIELD)
    (tmp_path/'a.flo').write_bytes((tmp_path/'a.flo').read_bytes()[::-1])
    with pytest.raises(ValueError, match='a.flo.*magic number 202021.25, found'): read_flow(tmp_path/'a.flo')
    for name in ('b.flo', 'b.png'):
        with pytest.raises(FileNotFoundError, match=name): read_flow(tmp_path/name)


@pytest.mark.parametrize('shape, dtype, found', [((4, 5, 3), np.uint8, '3 of 8'), ((4, 5), np.uint16, '1 of 16'), ((4, 5, 4), np.uint16, '4 of 16'), ((4, 5), np.uint8, '1 of 8')])
def test_pngs_that_hold_no_flow(tmp_path, shape, dtype, found):
    cv2.imwrite(str(tmp_path/'a.png'), np.zeros(shape, dtype))
    with pytest.raises(ValueError, match=f'a.png: expected KITTI flow, 3 channels of 16 bits, found {found} bits'): read_flow(tmp_path/'a.png')


@pytest.mark.parametrize('dtype', [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_masks_of_any_type_and_flow_in_half_precision(tmp_path, dtype):
    for flow in (torch.ones(2, 13, 17, dtype=torch.bfloat16), torch.ones(2, 13, 17, dtype=torch.float16), torch.ones(2, 13, 17, dtype=torch.int64)):
        write_flow(tmp_path/'a.flo', flow, torch.tensor(KNOWN).to(dtype)[None])
        found, valid = read_flow(tmp_path/'a.flo')
        assert (valid == KNOWN).all() and (found == KNOWN).all()


def test_what_is_written_can_be_read_however_wide(tmp_path):
    flow = np.arange(200_002, dtype=np.float32).reshape(2, 1, -1)
    write_flow(tmp_path/'a.flo', flow)
    assert (read_flow(tmp_path/'a.flo')[0] == flow).all()
    with pytest.raises(ValueError, match='a.png: expected a size that PNG holds, found 1000001 x 1'): write_flow(tmp_path/'a.png', np.zeros((2, 1, 1_000_001)))
    assert [file.name for file in tmp_path.iterdir()] == ['a.flo']


@pytest.mark.parametrize('width, height', [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (0, 5), (17, 14)])
def test_png_headers_that_lie(tmp_path, width, height):
    write_flow(tmp_path/'a.png', FIELD)
    data = (tmp_path/'a.png').read_bytes()
    header = b'IHDR' + struct.pack('>II', width, height) + data[24:29]
    (tmp_path/'a.png').write_bytes(data[:12] + header + struct.pack('>I', zlib.crc32(header)) + data[33:])
    with pytest.raises(ValueError, match='a.png: expected a whole PNG file, found .* do not decode'): read_flow(tmp_path/'a.png')


# colours

def middlebury(u, v):
    "The colour of one flow vector, in units of the longest, as the benchmark's C code computes it."
    wheel = [(255, 255 * i // 15, 0) for i in range(15)] + [(255 - 255 * i // 6, 255, 0) for i in range(6)] + [(0, 255, 255 * i // 4) for i in range(4)] + \
            [(0, 255 - 255 * i // 11, 255) for i in range(11)] + [(255 * i // 13, 0, 255) for i in range(13)] + [(255, 0, 255 - 255 * i // 6) for i in range(6)]
    radius, place = np.hypot(u, v), (np.arctan2(-v, -u) / np.pi + 1) / 2 * 54
    k = int(place)
    colour = []
    for first, second in zip(wheel[k], wheel[(k + 1) % 55]):
        value = (1 - (place - k)) * first / 255 + (place - k) * second / 255
        colour.append(int(255 * (1 - radius * (1 - value) if radius <= 1 else 0.75 * value)))
    return colour


def test_colours_are_middleburys():
    flow = random_flow((2, 15, 20), 0.6).numpy().astype(np.float64)
    flow[:, 0, :4] = [[1, 0, -1, 0], [0, 1, 0, -1]]
    found = flow_to_rgb(flow, max_length=1)
    expected = np.array([[middlebury(*np.float32(flow[:, y, x]).astype(float)) for x in range(20)] for y in range(15)])
    assert (np.hypot(*flow) > 1).any() and np.abs(found - expected).max() <= 1 and (found != expected).mean() < 0.01
    assert len(colour_wheel()) == 55 and len(np.unique(colour_wheel(), axis=0)) == 55


def test_the_longest_is_saturated_and_scale_does_not_matter():
    flow = random_flow((2, 9, 9))
    assert (flow_to_rgb(flow) == flow_to_rgb(4 * flow)).all()
    for seed in range(20):  # a limit measured in float32 may be rounded down: the longest must not be called out of range
        flow = random_flow((2, 9, 9), seed=seed)
        assert (flow_to_rgb(flow, max_length=float(np.hypot(*flow.numpy()).max())) == flow_to_rgb(flow)).all()
    beyond = flow_to_rgb(np.array([1.001, 0]).reshape(2, 1, 1), max_length=1)
    assert beyond.max() == 191  # but what is out of range is darkened


def test_unknown_is_black_and_does_not_spoil_the_scale():
    flow = random_flow((2, 9, 9)).clamp(-1, 1)
    flow[:, 0, 0] = 1
    colours = flow_to_rgb(flow)
    for value in (float('nan'), float('inf'), 1e10):
        holed = flow.clone()
        holed[1, 4, 4] = value
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            found = flow_to_rgb(holed)
        assert (found[4, 4] == 0).all()
        found[4, 4] = colours[4, 4]
        assert (found == colours).all()
    assert (flow_to_rgb(np.full((2, 3, 3), np.nan)) == 0).all() and (flow_to_rgb(np.zeros((2, 3, 3))) == 255).all()


def test_legend_agrees_with_the_colours():
    legend = flow_legend(8.0, size=65)
    assert legend.shape == (65, 65, 3) and legend.dtype == np.uint8
    assert (legend[32, 32] == 255).all() and (legend[0, 0] == 255).all()
    assert (legend[32, 48] == flow_to_rgb(np.array([4.0, 0]).reshape(2, 1, 1), 8.0)[0, 0]).all()  # right: u = 4
    for length in (0.1, 0.3, 7.3): assert (flow_legend(length, size=65) == legend).mean() > 0.99 and flow_legend(length, size=65)[32, 64].tolist() == [255, 0, 0]
    assert (legend[48, 32] == flow_to_rgb(np.array([0, 4.0]).reshape(2, 1, 1), 8.0)[0, 0]).all()  # down: v = 4


def test_colour_errors():
    for length in (0, -1, float('nan'), float('inf')):
        with pytest.raises(ValueError, match='max_length'): flow_to_rgb(np.zeros((2, 3, 3)), max_length=length)
    with pytest.raises(ValueError, match=r'\(2, H, W\), found \(1, 2, 3, 3\)'): flow_to_rgb(torch.zeros(1, 2, 3, 3))
