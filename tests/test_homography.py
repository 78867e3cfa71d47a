"""Contracts, properties and bad input of unsamflow.homography."""
import cv2
import numpy as np
import pytest
import torch

from unsamflow.homography import (BLOCK, choose_regions, count_inliers, cut, draw_sets, fit_homographies, four_point_homography, homography_loss,
                                  list_pixels, look_up, refine_flow)


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def affine_motion(height, width, cell, seed=0):
    "Flow (1, 2, H, W) that is affine in each cell of an (H, W) label image."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(float)
    linear, shift = rng.normal(0, 0.03, (cell.max() + 1, 2, 2))[cell], rng.uniform(-8, 8, (cell.max() + 1, 2))[cell]
    offset = np.stack([x - width / 2, y - height / 2], -1)
    return torch.from_numpy(((linear @ offset[..., None])[..., 0] + shift).transpose(2, 0, 1)).float()[None]


def example(batch=2, height=48, width=72, seed=0, noise=0.0, outliers=0.2, hidden=0.2):
    "Flow, segments (six, planar, labels 1 to 6), occluded, truth."
    rng = np.random.default_rng(seed)
    cell = np.mgrid[:height, :width][0] * 2 // height * 3 + np.mgrid[:height, :width][1] * 3 // width
    truth = torch.cat([affine_motion(height, width, cell, seed + b) for b in range(batch)])
    flow = truth + noise * torch.from_numpy(rng.standard_normal(truth.shape)).float()
    wrong = torch.from_numpy(rng.random((batch, 1, height, width)) < outliers)
    flow = torch.where(wrong, flow + torch.from_numpy(rng.uniform(3, 9, truth.shape)).float(), flow)
    segments = torch.from_numpy(cell + 1).expand(batch, 1, height, width).contiguous()
    return flow, segments, torch.from_numpy(rng.random((batch, 1, height, width)) < hidden), truth


def test_refined_flow_is_the_truth_where_the_motion_is_planar():
    flow, segments, occluded, truth = example()
    result = refine_flow(flow, segments, occluded, generator=seeded())
    assert result.accepted.all() and (result.flow - truth).abs().max() < 1e-3
    assert torch.allclose(result.inlier_share, torch.full_like(result.inlier_share, 0.8), atol=0.1)
    assert torch.allclose(result.reliable_share, torch.full_like(result.reliable_share, 0.8), atol=0.1)


def test_matrices_map_pixels_as_the_refined_flow_does():
    flow, segments, occluded, _ = example(noise=0.1)
    result = refine_flow(flow, segments, occluded, generator=seeded())
    fit = fit_homographies(flow, segments, occluded, generator=seeded())
    assert torch.equal(fit.matrices, result.homographies) and torch.equal(fit.regions, result.regions)
    for b in range(2):
        for label, matrix in zip(fit.regions[b], fit.matrices[b]):
            y, x = np.nonzero((segments[b, 0] == label).numpy())
            moved = cv2.perspectiveTransform(np.stack([x, y], 1)[None].astype(float), matrix.numpy())[0]
            assert np.abs(moved - np.stack([x, y], 1) - result.flow[b][:, y, x].T.numpy()).max() < 1e-3


def test_labels_are_names_only():
    flow, segments, occluded, _ = example(noise=0.2)
    renamed = torch.tensor([0, 65_535, 9, 300, 40_000, 2, 77])[segments]
    values = [homography_loss(flow, s, occluded, generator=seeded()) for s in (segments, renamed)]
    assert values[0] > 0 and torch.equal(*values)


def test_background_is_never_fitted():
    flow, segments, occluded, _ = example()
    background = segments.masked_fill(segments == 3, 0)
    result = refine_flow(flow, background, occluded)
    assert torch.equal(result.flow[(background == 0).expand_as(flow)], flow[(background == 0).expand_as(flow)])
    assert (result.regions == 0).sum() == 2 and not result.accepted[result.regions == 0].any()


@pytest.mark.parametrize('dtype', [torch.int32, torch.int16, torch.uint8, torch.uint16])
def test_any_integer_type_of_labels(dtype):
    flow, segments, occluded, _ = example()
    assert torch.equal(homography_loss(flow, segments.to(dtype), occluded, generator=seeded()), homography_loss(flow, segments, occluded, generator=seeded()))


def test_mean_over_the_batch():
    flow, segments, occluded, _ = example(batch=3)
    singles = [homography_loss(flow[b:b + 1], segments[b:b + 1], occluded[b:b + 1]) for b in range(3)]
    assert torch.isclose(homography_loss(flow, segments, occluded), torch.stack(singles).mean(), rtol=1e-4)


def test_a_non_contiguous_batch_gives_the_same():
    flow, segments, occluded, _ = example()
    turned = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in (flow, segments, occluded)]
    assert torch.equal(homography_loss(*turned, generator=seeded()), homography_loss(flow, segments, occluded, generator=seeded()))


def test_fewer_regions_are_the_most_occluded_ones():
    _, segments, _, _ = example(batch=1)
    occluded = torch.rand(segments.shape, generator=seeded()) < segments / 8
    assert choose_regions(segments, occluded, 2).tolist() == [[6, 5]]
    assert choose_regions(segments, occluded & (segments == 4), 3).tolist() == [[4, 0, 0]]


def test_of_equally_occluded_segments_the_smaller_label_is_taken():
    _, segments, _, _ = example(batch=1, height=48, width=72)
    assert choose_regions(segments, torch.ones_like(segments, dtype=torch.bool), 6).tolist() == [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize('regions', [1, 6, 100, 255])  # 255 in a batch of 2: region numbers beyond eight bits
def test_more_places_than_segments_change_nothing(regions):
    flow, segments, occluded, _ = example()
    many = (torch.arange(48 * 72) // 12).view(1, 1, 48, 72).expand_as(segments) + 1
    listed = list_pixels(many, occluded, regions)
    assert sorted(set(listed.labels[0].tolist())) == sorted(set(choose_regions(many, occluded, regions)[0].tolist()))
    for r in range(0, 2 * regions, 17):
        pixels = listed.pixels[listed.start[r]:][:listed.total[r]]
        assert (many.flatten()[pixels] == listed.labels.flatten()[r]).all() and (pixels // (48 * 72) == r // regions).all()
    if regions >= 6: assert torch.isclose(homography_loss(flow, segments, occluded, regions=regions), homography_loss(flow, segments, occluded), rtol=1e-4)


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (2, 2), (3, 3), (7, 5), (16, 16), (17, 31)])
def test_any_frame_size(size):
    flow = torch.randn(2, 2, *size, generator=seeded(), requires_grad=True)
    occluded = torch.rand(2, 1, *size, generator=seeded()) < 0.3
    value = homography_loss(flow, torch.ones(2, 1, *size, dtype=torch.int64), occluded)
    value.backward()
    assert value.isfinite() and flow.grad.isfinite().all()


def test_blocks_hold_every_listed_pixel_once():
    _, segments, occluded, _ = example(height=70, width=90)
    listed = list_pixels(segments, occluded, 4)
    blocks = cut(listed)
    assert blocks.places.shape[1] == BLOCK and torch.equal(blocks.places[blocks.inside].sort().values, torch.arange(listed.total.sum()))
    assert torch.equal(torch.bincount(blocks.region, blocks.reliable.sum(1), 8).long(), listed.reliable)


def test_positions_in_a_large_frame():
    segments = torch.zeros(1, 1, 3000, 5000, dtype=torch.int32)
    segments[..., -1, -3:] = 1
    listed = list_pixels(segments, segments > 0, 1)
    position, index = look_up(listed, torch.tensor([0]), listed.start[:, None] + torch.arange(3), (1, 2, 3000, 5000))
    assert position[0].tolist() == [[4997, 4998, 4999], [2999] * 3]
    assert torch.equal(index[0, 1], index[0, 0] + 3000 * 5000)


def test_the_same_seed_gives_the_same_gradient():
    flow, segments, occluded, _ = example(noise=0.3)
    gradients = []
    for seed in (1, 1, 2):
        field = flow.clone().requires_grad_()
        homography_loss(field, segments, occluded, generator=seeded(seed)).backward()
        gradients.append(field.grad)
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_other_floats_and_autocast(dtype):
    flow, segments, occluded, _ = example()
    field = flow.to(dtype).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16): value = homography_loss(field, segments, occluded, 0.5, generator=seeded())
    expected = homography_loss(field.detach().float(), segments, occluded, 0.5, generator=seeded())
    value.backward()
    assert field.grad.dtype == dtype and torch.isclose(value.float(), expected, rtol=1e-4)
    assert refine_flow(flow.to(dtype), segments, occluded).flow.dtype == dtype


def test_gradient_is_constant_over_accepted_regions_and_zero_elsewhere():
    flow, segments, occluded, truth = example(noise=0.2)
    segments = segments.masked_fill(segments == 1, 0)
    field = flow.clone().requires_grad_()
    homography_loss(field, segments, occluded, generator=seeded()).backward()
    result = refine_flow(flow, segments, occluded, generator=seeded())
    accepted = (segments == result.regions.where(result.accepted, -1)[:, :, None, None]).any(1, keepdim=True)
    expected = torch.sign(flow - result.flow) / (2 * 48 * 72) * accepted
    clear = (flow - result.flow).abs() > 1e-4
    assert result.accepted.sum() == 10 and clear.any() and torch.allclose(field.grad[clear], expected[clear]) and not field.grad[~accepted.expand_as(flow)].any()


def test_no_gradient_through_the_homography():
    "Every pixel's gradient is a sign over B H W; a fit that could be differentiated would add a share of all other pixels' signs."
    flow, segments, occluded, _ = example(batch=1, noise=0.2)
    field = flow.clone().requires_grad_()
    homography_loss(field, segments, occluded, generator=seeded()).backward()
    levels = (field.grad * 48 * 72).unique()
    assert {-1.0, 1.0} <= set(levels.round(decimals=4).tolist()) <= {-1.0, 0.0, 1.0}


def test_four_points_alone_are_enough():
    flow, segments, occluded, truth = example(batch=1, outliers=0.0)
    few = torch.zeros_like(segments)
    few[0, 0, [10, 10, 20, 21], [10, 30, 12, 29]] = 1
    few[0, 0, 15, 20] = 1
    hidden = torch.zeros_like(occluded)
    hidden[0, 0, 15, 20] = True
    flow = affine_motion(48, 72, np.zeros((48, 72), int))
    damaged = flow.clone()
    damaged[0, :, 15, 20] += 30
    result = refine_flow(damaged, few, hidden)
    assert result.accepted[0, 0] and (result.flow - flow)[0, :, 15, 20].abs().max() < 1e-2


def test_one_bad_sample_leaves_the_others_alone():
    flow, segments, occluded, truth = example()
    for bad in (torch.nan, torch.inf, 1e30):
        broken = flow.clone()
        broken[1, 0, 5, 5] = broken[1, 1, 40, 60] = bad
        field = broken.requires_grad_()
        homography_loss(field, segments, occluded).backward()
        result = refine_flow(broken.detach(), segments, occluded)
        assert field.grad.isfinite().all() and (result.flow[0] - truth[0]).abs().max() < 1e-3
        if bad != 1e30: assert result.accepted[0].all() and result.accepted[1].sum() == 4


@pytest.mark.parametrize('value', [1e10, 1e20, 3e38])  # the last is infinite in a small region's own unit
def test_a_huge_flow_leaves_the_healthy_segment_beside_it_alone(value):
    flow = 0.1 * torch.randn(1, 2, 40, 60, generator=seeded(1))
    segments = (torch.arange(60) < 30).long().expand(1, 1, 40, 60).clone()
    segments[0, 0, 10:12, 40:43] = 2
    occluded = torch.rand(1, 1, 40, 60, generator=seeded(2)) < 0.2
    occluded[0, 0, 10:12, 40:43] = torch.tensor([[True, False, False], [False, False, False]])
    expected = refine_flow(flow, segments, occluded, generator=seeded()).flow - flow
    field = flow.clone()
    field[0, 0, 11, 42] = value
    field.requires_grad_()
    homography_loss(field, segments, occluded, generator=seeded()).backward()
    change = refine_flow(field.detach(), segments, occluded, generator=seeded()).flow - field.detach()
    healthy = (segments == 1).expand_as(flow)
    assert expected[healthy].any() and torch.allclose(change[healthy], expected[healthy], atol=1e-5)
    assert field.grad.isfinite().all() and field.grad[healthy].any()


def test_a_fit_does_not_depend_on_its_neighbours_in_the_batch():
    flow, segments, occluded, _ = example(batch=3, noise=0.3)
    together = fit_homographies(flow, segments, occluded, generator=seeded())
    for b in range(3):
        alone = fit_homographies(flow[b:b + 1], segments[b:b + 1], occluded[b:b + 1], generator=seeded())
        assert torch.equal(alone.accepted[0], together.accepted[b]) and alone.accepted.any()
        assert torch.allclose(alone.matrices[0], together.matrices[b], atol=1e-5)


@pytest.mark.parametrize('zoom, accepted', [(1.8, True), (2.5, False), (0.4, True)])
def test_a_region_may_at_most_double(zoom, accepted):
    offset = torch.stack(torch.meshgrid(torch.arange(40.) - 19.5, torch.arange(60.) - 29.5, indexing='ij')[::-1])[None]
    segments, occluded = torch.ones(1, 1, 40, 60, dtype=torch.int64), torch.rand(1, 1, 40, 60, generator=seeded()) < 0.2
    assert refine_flow((zoom - 1) * offset, segments, occluded, generator=seeded()).accepted[0, 0] == accepted


def test_the_refit_is_that_of_opencv_on_the_same_inliers():
    flow, segments, occluded, _ = example(batch=1, noise=0.1, outliers=0.0, hidden=0.05)  # 0.1 px within 3 px: all are inliers
    fit = fit_homographies(flow, segments, occluded, 3.0, generator=seeded())
    for label, matrix in zip(fit.regions[0], fit.matrices[0].numpy()):
        inside = ((segments == label) & ~occluded)[0, 0].numpy()
        position = np.argwhere(inside)[:, ::-1].astype(np.float32)
        best = cv2.findHomography(position, position + flow[0].permute(1, 2, 0).numpy()[inside], 0)[0]
        ours, theirs = (cv2.perspectiveTransform(position[None].astype(float), m)[0] for m in (matrix, best))
        assert np.abs(ours - theirs).max() < 1e-2


def test_refined_flow_never_explodes():
    "Random flow, random masks, little that is reliable: what is accepted stays within a few widths of the 60 px frame."
    generator, accepted = seeded(5), 0
    for _ in range(10):
        segments = torch.randint(0, 30, (4, 1, 10, 12), generator=generator).repeat_interleave(5, 2).repeat_interleave(5, 3)
        flow = torch.nn.functional.interpolate(10 * torch.randn(4, 2, 5, 6, generator=generator), (50, 60), mode='bicubic')
        occluded = torch.rand(4, 1, 50, 60, generator=generator) < 0.6
        result = refine_flow(flow, segments, occluded, 3.0, generator=generator)
        accepted += result.accepted.sum()
        assert (result.flow - flow).abs().max() < 200
    assert accepted > 10


def test_sets_are_drawn_from_the_reliable_pixels():
    for n in (4, 5, 7, 100, 20_000):
        ranks = draw_sets(torch.tensor([n]), 400, seeded())
        assert ranks.min() >= 0 and ranks.max() < n
        assert (ranks[0, :200].diff(dim=-1) > 0).all()
        if n <= 7: assert set(ranks.flatten().tolist()) == set(range(n))


def test_mirrored_points_are_usable_and_folded_ones_are_not():
    points = torch.tensor([[0., 0, 1], [4, 0, 1], [4, 3, 1], [0, 3, 1]]).T
    mirrored = points * torch.tensor([[-1.], [1], [1]])
    found, usable = four_point_homography(points, mirrored)
    assert usable and torch.allclose(found @ points, mirrored * (found @ points)[2:])
    assert not four_point_homography(points, points[:, [1, 0, 2, 3]])[1]
    assert not four_point_homography(points, points[:, [0, 0, 2, 3]])[1]


def test_hypotheses_with_a_horizon_among_the_points_score_nothing():
    points = torch.tensor([[[-1., 0, 1], [0, 0, 0], [1, 1, 1]]])
    tilted = torch.eye(3)
    tilted[2, 0] = -1.2
    score = count_inliers(torch.stack([torch.eye(3), tilted])[None], points, points[:, :2], torch.tensor([10.0]))
    assert score.tolist() == [[3, 0]]


def test_both_ways_to_list_pixels_give_the_same_loss(monkeypatch):
    import unsamflow.homography as module
    flow, segments, occluded, _ = example(noise=0.2)
    values = []
    for compact in (True, False):
        monkeypatch.setattr(module, 'list_pixels', lambda *arguments: list_pixels(*arguments, compact=compact))
        values.append(homography_loss(flow, segments, occluded, generator=seeded()))
    assert torch.isclose(*values, rtol=1e-5)


@pytest.mark.parametrize('change, error, message', [
    (dict(flow=torch.zeros(2, 3, 48, 72)), ValueError, r'flow: expected \(B, 2, H, W\), found \(2, 3, 48, 72\)'),
    (dict(flow=torch.zeros(2, 48, 72)), ValueError, r'flow: expected \(B, 2, H, W\)'),
    (dict(flow=torch.zeros(0, 2, 48, 72)), ValueError, r'flow: expected at least one sample and one pixel, found \(0, 2, 48, 72\)'),
    (dict(flow=torch.zeros(2, 2, 48, 72, dtype=torch.int64)), TypeError, 'flow: expected floating point, found torch.int64'),
    (dict(segments=torch.zeros(2, 48, 72, dtype=torch.int64)), ValueError, r'segments: expected \(2, 1, 48, 72\)'),
    (dict(segments=torch.zeros(2, 1, 48, 72)), TypeError, 'segments: expected integer labels, found torch.float32'),
    (dict(segments=torch.zeros(2, 1, 48, 72, dtype=torch.bool)), TypeError, 'segments: expected integer'),
    (dict(segments=torch.full((2, 1, 48, 72), 70_000)), ValueError, 'segments: expected labels from 0 to 65535, found 70000 to 70000'),
    (dict(segments=torch.full((2, 1, 48, 72), -1)), ValueError, 'segments: expected labels from 0 to 65535, found -1 to -1'),
    (dict(occluded=torch.zeros(1, 1, 48, 72, dtype=torch.bool)), ValueError, r'occluded: expected \(2, 1, 48, 72\)'),
    (dict(occluded=torch.zeros(2, 1, 48, 72)), TypeError, 'occluded: expected bool'),
    (dict(threshold=0), ValueError, 'threshold: expected a positive number'),
    (dict(threshold=float('nan')), ValueError, 'threshold'),
    (dict(regions=0), ValueError, 'regions: expected 1 to 255, found 0'),
    (dict(regions=256), ValueError, 'regions: expected 1 to 255, found 256')])
def test_bad_arguments(change, error, message):
    flow, segments, occluded, _ = example()
    for function in (homography_loss, fit_homographies, refine_flow):
        with pytest.raises(error, match=message): function(**{**dict(flow=flow, segments=segments, occluded=occluded), **change})
