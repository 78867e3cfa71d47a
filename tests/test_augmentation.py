"Contracts of unsamflow.augmentation: what must hold for any input, and what must be refused."

from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from unsamflow.augmentation import (
    COLOUR_OPERATORS, AffinePair, Appearance, BatchGenerator, ObjectCache, View, claim_places, corners_inside, occlusion_crop, paste_object,
    paste_objects, pick_object, transform_view, vary_objects)

STILL = dict(zoom=(1., 1.), relative_zoom=(1., 1.), rotation=0., relative_rotation=0., shift=0., relative_shift=0.,
             horizontal_mirror=0., vertical_mirror=0., noise=0.)
SINTEL = dict(zoom=(1.0, 1.5), relative_zoom=(0.985, 1.015), rotation=0.2, relative_rotation=0.015, squeeze=(0.86, 1.16),
              shift=0.05, relative_shift=0.00375, vertical_mirror=0.5)


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def random_view(batch=3, height=24, width=40, seed=0, segments=True, device='cpu'):
    g = seeded(seed)
    labels = [torch.randint(0, 6, (batch, 1, height, width), generator=g) if segments else None for _ in range(2)]
    view = View(torch.rand(batch, 3, height, width, generator=g), torch.rand(batch, 3, height, width, generator=g),
                4 * torch.randn(batch, 2, height, width, generator=g), (torch.rand(batch, 1, height, width, generator=g) > 0.3).float(), *labels)
    return View(*(field if field is None else field.to(device) for field in view))


def random_objects(batch, height, width, seed=0, count=3):
    g = seeded(seed)
    masks = torch.zeros(batch, count, 1, height, width, dtype=torch.bool)
    for b in range(batch):
        for k in range(count):
            y, x = (int(torch.randint(0, side // 2, (), generator=g)) for side in (height, width))
            masks[b, k, 0, y:y + height // 3, x:x + width // 3] = True
    return list(masks)


def filled_cache(size=12, batch=4, height=24, width=40, seed=0):
    cache, g, step = ObjectCache(size), seeded(seed), 0
    while not cache.full:
        view = random_view(batch, height, width, seed + step)
        cache.push(view.image_1, random_objects(batch, height, width, seed + step), view.flow, g)
        step += 1
        assert step < 50
    return cache


def same(view_a, view_b):
    return all(a is b is None or torch.equal(a, b) for a, b in zip(view_a, view_b))


# View

@pytest.mark.parametrize('field, value', [
    ('image_1', torch.zeros(3, 24, 40)), ('image_2', torch.zeros(3, 3, 24, 41)), ('flow', torch.zeros(3, 3, 24, 40)), ('flow', None),
    ('visible', torch.zeros(3, 24, 40)), ('visible', None), ('segments_2', torch.zeros(2, 1, 24, 40))])
@pytest.mark.parametrize('augment', [AffinePair(), lambda view: occlusion_crop(view, (8, 8)), lambda view: paste_objects(view, ObjectCache())])
def test_a_field_that_does_not_fit_is_named(field, value, augment):
    with pytest.raises(ValueError, match=f'{field}: expected'): augment(random_view()._replace(**{field: value}))


@pytest.mark.parametrize('field', ['image_1', 'image_2'])
@pytest.mark.parametrize('use', [
    AffinePair(), lambda view: occlusion_crop(view, (8, 8)), lambda view: paste_objects(view, filled_cache(12)),
    lambda view: Appearance()(view.image_1, view.image_2)])
def test_frames_in_bytes_are_refused(use, field):
    "They would be clamped to white."
    view = random_view()
    with pytest.raises(TypeError, match=f'{field}: expected floating point.*uint8'): use(view._replace(**{field: (getattr(view, field) * 255).byte()}))


# Randomness

@pytest.mark.parametrize('processes', [2, 4, 8])
@pytest.mark.parametrize('augment', [
    lambda view, generator: Appearance()(view.image_1, view.image_2, generator), AffinePair(**SINTEL),
    lambda view, generator: occlusion_crop(view, (10, 11), generator)])
def test_the_processes_of_a_batch_augment_it_as_one_would(augment, processes):
    def generator(number, processes):
        generator = BatchGenerator()
        generator.share = (number, processes)
        return generator.manual_seed(5)
    view, own = random_view(8), 8 // processes
    whole = augment(view, generator(0, 1))
    parts = [augment(View(*(field[n * own:(n + 1) * own] for field in view)), generator(n, processes)) for n in range(processes)]
    for field, *shares in zip(whole, *parts): torch.testing.assert_close(torch.cat(shares), field, atol=1e-6, rtol=1e-6)


# Appearance

def test_appearance_of_strength_zero_changes_nothing():
    view = random_view()
    for result, image in zip(Appearance(0, 0, 0, 0, 0)(view.image_1, view.image_2), view[:2]): assert torch.equal(result, image)


@pytest.mark.parametrize('seed', range(5))
def test_appearance_is_one_draw_for_both_frames_and_one_per_sample(seed):
    image = random_view(1).image_1.expand(6, -1, -1, -1)
    first, second = Appearance()(image, image, seeded(seed))
    assert torch.equal(first, second)
    assert first.min() >= 0 and first.max() <= 1 and first.dtype == torch.float32
    assert all(not torch.equal(first[i], first[j]) for i in range(6) for j in range(i))


def test_appearance_repeats_with_its_generator_and_leaves_its_input_alone():
    view = random_view()
    kept = view.image_1.clone()
    first, again, other = (Appearance()(view.image_1, view.image_2, seeded(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(view.image_1, kept)


def test_every_order_of_the_operators_occurs_and_every_factor_fills_its_range(monkeypatch):
    orders, factors = [], {name: [] for name in COLOUR_OPERATORS}
    def noted(name, operator):
        def note(image, factor):
            orders[-1] += name,
            factors[name] += factor.tolist()
            return operator(image, factor)
        return note
    for name, operator in list(COLOUR_OPERATORS.items()): monkeypatch.setitem(COLOUR_OPERATORS, name, noted(name, operator))
    image = random_view(8, 4, 4).image_1
    for seed in range(240):
        orders.append(())
        Appearance()(image, image, seeded(seed))
    assert len(Counter(orders)) == 24 and max(Counter(orders).values()) < 25
    for name, limit in dict(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1).items():
        found = torch.tensor(factors[name]) - 1
        assert -limit - 1e-6 < found.min() < -0.99 * limit and 0.99 * limit < found.max() < limit + 1e-6 and found.mean().abs() < 0.05 * limit


def test_the_radius_of_the_blur_is_even_up_to_its_limit():
    "Measured on the picture of one point."
    point, x = torch.zeros(400, 3, 25, 25), torch.arange(-12., 13)
    point[:, :, 12, 12] = 1
    first, second = Appearance(0, 0, 0, 0, 1., 3.)(point, point, seeded())
    deviation = (first[:, 0] * x.square()).sum((1, 2)).sqrt()
    assert torch.equal(first, second) and 2.85 < deviation.max() < 3
    assert all(abs(float((deviation < limit).float().mean()) - limit / 3) < 0.06 for limit in (1., 1.5, 2., 2.5))


def test_half_of_the_samples_are_blurred():
    image = random_view(1, 12, 12).image_1.expand(400, -1, -1, -1)
    result = Appearance(0, 0, 0, 0, 0.5, 3.)(image, image, seeded())[0]
    share = float((result != image).any((1, 2, 3)).float().mean())
    assert 0.4 < share < 0.6


@pytest.mark.parametrize('wrong', [dict(blurr=1.), dict(hue=0.7), dict(blur_probability=1.2), dict(brightness=-0.1), dict(contrast='strong'), dict(blur_radius=float('inf'))])
def test_appearance_refuses_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): Appearance(**wrong)


@pytest.mark.parametrize('shapes', [((2, 3, 8, 8), (2, 3, 8, 9)), ((3, 8, 8), (3, 8, 8)), ((2, 1, 8, 8), (2, 1, 8, 8))])
def test_appearance_refuses_frames_that_do_not_match(shapes):
    with pytest.raises(ValueError, match=r'image_1 and image_2.*found'): Appearance()(*map(torch.zeros, shapes))


# Pass 2

def test_affine_pair_without_motion_is_the_identity():
    view = random_view()
    for result, field in zip(AffinePair(**STILL)(view, seeded()), view): torch.testing.assert_close(result, field, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize('axis, setting', [(-1, 'horizontal_mirror'), (-2, 'vertical_mirror')])
def test_a_mirror_flips_every_field_and_one_component_of_the_flow(axis, setting):
    view = random_view(height=25, width=41)
    mirrored = AffinePair(**STILL | {setting: 1.})(view, seeded())
    sign = torch.tensor([-1., 1.] if axis == -1 else [1., -1.]).view(1, 2, 1, 1)
    expected = View(*(field.flip(axis) for field in view))
    expected = expected._replace(flow=expected.flow * sign)
    for result, field in zip(mirrored, expected): torch.testing.assert_close(result, field, atol=1e-4, rtol=1e-4)


def test_a_shift_of_frame_2_adds_to_the_flow():
    view = random_view(1)
    shift = torch.eye(3)[None].clone()
    shift[:, 0, 2], shift[:, 1, 2] = 3., -2.
    moved = transform_view(view, torch.eye(3)[None], shift)
    torch.testing.assert_close(moved.flow, view.flow + torch.tensor([3., -2.]).view(1, 2, 1, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.image_2[..., :-2, 3:], view.image_2[..., 2:, :-3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.image_1, view.image_1, atol=1e-4, rtol=1e-4)
    assert torch.equal(moved.segments_1, view.segments_1) and torch.equal(moved.segments_2[..., :-2, 3:], view.segments_2[..., 2:, :-3])


@pytest.mark.parametrize('size', [(64, 64), (256, 832), (33, 120)])
@pytest.mark.parametrize('settings', [{}, SINTEL])
def test_no_output_pixel_comes_from_outside(size, settings):
    theta_1, relative = AffinePair(**settings).draw(500, size, seeded(3))
    assert corners_inside(theta_1, size).all() and corners_inside(relative @ theta_1, size).all()
    identity = torch.eye(3)
    assert (theta_1 != identity).any((1, 2)).all() and ((relative != identity).any((1, 2))).float().mean() > 0.99


def test_parameters_stay_in_their_ranges():
    size = (256, 832)
    theta_1, relative = AffinePair(**SINTEL | dict(horizontal_mirror=0., vertical_mirror=0.)).draw(2000, size, seeded(5))
    zoom = torch.linalg.det(theta_1[:, :2, :2]).sqrt()
    turn = torch.atan2(theta_1[:, 1, 0], theta_1[:, 0, 0])
    squeeze = (theta_1[:, :2, 0].norm(dim=1) / theta_1[:, :2, 1].norm(dim=1)).sqrt()
    centre = torch.tensor([831 / 2, 255 / 2])
    shift = (theta_1[:, :2, :2] @ centre + theta_1[:, :2, 2] - centre) / torch.tensor([831., 255.])
    for value, low, high in ((zoom, 1, 1.5), (turn, -0.2, 0.2), (squeeze, 0.86, 1.16), (shift, -0.05, 0.05)):
        assert low - 1e-3 <= value.min() and value.max() <= high + 1e-3
    assert squeeze.max() - squeeze.min() > 0.25 and shift.abs().max() > 0.045
    small = torch.linalg.det(relative[:, :2, :2]).sqrt()
    assert 0.984 < small.min() < 0.987 and 1.013 < small.max() < 1.016


def test_mirrors_have_their_probabilities():
    theta_1, _ = AffinePair(horizontal_mirror=0.5, vertical_mirror=0.2).draw(2000, (64, 64), seeded(6))
    assert abs(float((theta_1[:, 0, 0] < 0).float().mean()) - 0.5) < 0.05
    assert abs(float((theta_1[:, 1, 1] < 0).float().mean()) - 0.2) < 0.04


def test_the_identity_stands_in_when_nothing_fits():
    impossible = AffinePair(**STILL | dict(zoom=(0.5, 0.6), relative_zoom=(0.5, 0.6)))
    theta_1, relative = impossible.draw(4, (32, 48), seeded())
    assert torch.equal(theta_1, torch.eye(3).expand(4, 3, 3)) and torch.equal(relative, theta_1)


def test_labels_are_not_invented_and_visibility_stays_a_weight():
    view = random_view()
    scattered = [torch.tensor([0, 3, 900, 65_535])[labels % 4] for labels in view[4:]]
    moved = AffinePair(**SINTEL)(view._replace(segments_1=scattered[0], segments_2=scattered[1]), seeded(2))
    for labels in moved[4:]:
        assert labels.dtype == torch.int64 and set(labels.unique().tolist()) <= {0, 3, 900, 65_535}
    assert 0 <= moved.visible.min() and moved.visible.max() <= 1 and ((moved.visible > 0) & (moved.visible < 1)).any()


def test_two_transformations_in_a_row_are_one():
    "A flow that is affine in the position survives bilinear sampling, so the group law holds to rounding."
    g, size = seeded(8), (24, 40)
    view = random_view(1, *size)
    y, x = torch.meshgrid(torch.arange(24.), torch.arange(40.), indexing='ij')
    view = view._replace(flow=torch.stack([0.1 * x - 0.05 * y + 3, 0.02 * x + 0.08 * y - 2])[None])
    first, second = (AffinePair(**SINTEL).draw(1, size, g) for _ in range(2))
    twice = transform_view(transform_view(view, *first), *second).flow
    theta_1, theta_2 = second[0] @ first[0], second[1] @ second[0] @ first[1] @ first[0]
    once = transform_view(view, theta_1, theta_2 @ torch.linalg.inv(theta_1)).flow
    torch.testing.assert_close(once, twice, atol=2e-3, rtol=1e-4)


def test_noise_is_independent_bounded_and_one_level_per_sample():
    view = random_view(200, 12, 12)._replace(image_1=torch.full((200, 3, 12, 12), 0.5), image_2=torch.full((200, 3, 12, 12), 0.5))
    noisy = AffinePair(**STILL | dict(noise=0.04))(view, seeded(4))
    level_1, level_2 = ((image - 0.5).flatten(1).std(1) for image in noisy[:2])
    assert level_1.max() < 0.044 and level_1.min() < 0.004 and abs(float(level_1.mean()) - 0.02) < 0.003
    assert torch.corrcoef(torch.stack([level_1, level_2]))[0, 1] > 0.98
    assert torch.corrcoef(torch.stack([(image - 0.5).flatten() for image in noisy[:2]]))[0, 1].abs() < 0.02
    white = AffinePair(**STILL | dict(noise=0.5))(view._replace(image_1=torch.ones_like(view.image_1)), seeded(4))
    assert white.image_1.max() <= 1 and white.image_1.min() >= 0


def test_affine_pair_repeats_with_its_generator_and_works_without_segments():
    view = random_view(segments=False)
    first, again, other = (AffinePair()(view, seeded(seed)) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other) and first.segments_1 is first.segments_2 is None


@pytest.mark.parametrize('wrong', [dict(zoom=(0., 1.4)), dict(zoom=1.2), dict(noise=-0.1), dict(attempts=0), dict(mirror=0.5), dict(vertical_mirror=2.),
                                   dict(rotation=float('nan')), dict(shift=float('inf')), dict(zoom=(1., float('inf')))])
def test_affine_pair_refuses_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): AffinePair(**wrong)


def test_autocast_changes_nothing():
    view, cache = random_view(4), filled_cache()
    def augment():
        images = Appearance()(view.image_1, view.image_2, seeded(1))
        pair = view._replace(image_1=images[0], image_2=images[1])
        return *AffinePair()(pair, seeded(2)), *paste_objects(pair, cache, 2, seeded(3))
    plain = augment()
    with torch.autocast('cpu', torch.bfloat16): cast = augment()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, cast))


# Pass 3

def test_a_crop_takes_the_same_pixels_of_every_field():
    batch, height, width = 5, 12, 17
    index = torch.arange(height * width).view(1, 1, height, width).expand(batch, -1, -1, -1)
    view = View(*(index.expand(-1, c, -1, -1).float() for c in (3, 3, 2, 1)), index, index)
    cropped = occlusion_crop(view, (5, 7), seeded(1))
    for field in cropped: assert torch.equal(field.long(), cropped.segments_1.expand(-1, field.shape[1], -1, -1))
    start = cropped.segments_1[:, 0, :1, :1]
    expected = start + torch.arange(5)[:, None] * width + torch.arange(7)
    assert torch.equal(cropped.segments_1[:, 0], expected)


def test_crops_reach_every_place_equally_often():
    index = torch.arange(12).view(1, 1, 3, 4).expand(2400, -1, -1, -1)
    view = View(*(index.expand(-1, c, -1, -1).float() for c in (3, 3, 2, 1)))
    places = occlusion_crop(view, (2, 2), seeded()).visible[:, 0, 0, 0].long().bincount(minlength=12)
    assert set(places.nonzero()[:, 0].tolist()) == {0, 1, 2, 4, 5, 6} and places[places > 0].min() > 320


def test_a_crop_of_the_whole_frame_is_the_frame():
    view = random_view()
    assert same(occlusion_crop(view, (24, 40)), view)


@pytest.mark.parametrize('size', [(25, 40), (24, 41), (0, 10)])
def test_a_crop_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match=r'size: expected a crop of at most \(24, 40\)'): occlusion_crop(random_view(), size)


# Cache

def test_the_cache_holds_an_objects_pixels_and_its_mean_flow():
    view, cache = random_view(1), ObjectCache(1)
    mask = torch.zeros(1, 1, 24, 40, dtype=torch.bool)
    mask[..., 3:12, 5:20] = True
    cache.push(view.image_1, [mask], view.flow, seeded())
    assert cache.full and torch.equal(cache.rgba[0, 3] > 0, mask[0, 0])
    torch.testing.assert_close(cache.motion[0], view.flow[0][:, mask[0, 0]].mean(1))
    assert ((cache.rgba[0, :3] / 255 - view.image_1[0]).abs()[:, mask[0, 0]] <= 0.5 / 255 + 1e-6).all()
    assert (cache.rgba[0][:, ~mask[0, 0]] == 0).all()


def test_small_missing_and_lost_objects_are_left_out():
    view, cache = random_view(4), ObjectCache(10)
    objects = random_objects(4, 24, 40)
    objects[0], objects[1] = None, torch.zeros(0, 1, 24, 40, dtype=torch.bool)
    objects[2] = torch.zeros(1, 1, 24, 40, dtype=torch.bool)
    objects[2][..., :2, :2] = True  # 4 of 960 pixels
    flow = view.flow.clone()
    flow[3, 0, 10, 10] = torch.nan
    objects[3] = torch.ones(1, 1, 24, 40, dtype=torch.bool)
    cache.push(view.image_1, objects, flow, seeded())
    assert not cache.filled.any() and not cache.full
    cache.push(view.image_1, objects, view.flow, seeded())
    assert int(cache.filled.sum()) == 1


@pytest.mark.parametrize('lost', [torch.nan, torch.inf])
def test_lost_pixels_outside_an_object_do_not_reach_it(lost):
    view, mask = random_view(2), torch.zeros(1, 1, 24, 40, dtype=torch.bool)
    mask[..., 3:12, 5:20] = True
    spoilt = view._replace(image_1=view.image_1.clone(), flow=view.flow.clone())
    for field in (spoilt.image_1, spoilt.flow): field[:, :, 20, 30] = lost
    caches = ObjectCache(2), ObjectCache(2)
    for cache, v in zip(caches, (view, spoilt)): cache.push(v.image_1, [mask, mask], v.flow, seeded())
    clean, found = caches
    assert found.full and torch.equal(found.rgba, clean.rgba) and torch.equal(found.motion, clean.motion)


def test_the_cache_holds_on_to_no_graph():
    view, cache = random_view(4), ObjectCache(8)
    cache.push(view.image_1.requires_grad_(), random_objects(4, 24, 40), 2 * view.flow.requires_grad_(), seeded())
    assert cache.filled.any() and not cache.motion.requires_grad


def test_the_cache_refuses_frames_in_bytes():
    view = random_view(4)
    with pytest.raises(TypeError, match='image_1: expected floating point'): ObjectCache(8).push((view.image_1 * 255).byte(), [None] * 4, view.flow)


def test_empty_places_are_taken_before_any_is_replaced():
    cache, g = ObjectCache(10), seeded(1)
    for step, count in enumerate((4, 8, 10, 10)):
        view = random_view(4, seed=step)
        before = cache.motion.clone()
        cache.push(view.image_1, random_objects(4, 24, 40, step), view.flow, g)
        assert int(cache.filled.sum()) == count and cache.full == (count == 10)
        assert int((cache.motion != before).any(1).sum()) == 4


def test_replaced_places_are_random():
    counts = torch.zeros(10)
    for seed in range(300): counts[claim_places(torch.ones(10, dtype=torch.bool), torch.ones(3, dtype=torch.bool), seeded(seed))[1]] += 1
    assert counts.sum() == 900 and counts.min() > 60 and counts.max() < 120


def test_picking_is_even_among_large_objects():
    objects = torch.zeros(4, 1, 20, 20, dtype=torch.bool)
    for k, side in enumerate((1, 5, 10, 20)): objects[k, :, :side, :side] = True
    g = seeded()
    areas = torch.tensor([int(pick_object(objects, (20, 20), 0.005, g)[0].sum()) for _ in range(600)]).bincount()
    assert areas.nonzero()[:, 0].tolist() == [25, 100, 400] and areas[[25, 100, 400]].min() > 160


@pytest.mark.parametrize('change, message', [
    (dict(flow=torch.zeros(4, 2, 24, 41)), r'flow: expected \(4, 2, 24, 40\)'),
    (dict(key_objects=[None] * 3), 'key_objects: expected one entry for each of 4'),
    (dict(key_objects=[torch.zeros(2, 24, 40)] * 4), r'key_objects: expected \(K, 1, 24, 40\)'),
    (dict(image_1=torch.zeros(4, 3, 24, 44), flow=torch.zeros(4, 2, 24, 44)), r'frames of \(24, 40\) pixels.*\(24, 44\)')])
def test_the_cache_refuses_what_does_not_fit(change, message):
    cache, view = filled_cache(), random_view(4)
    arguments = dict(image_1=view.image_1, key_objects=random_objects(4, 24, 40), flow=view.flow) | change
    with pytest.raises(ValueError, match=message): cache.push(**arguments)


def test_a_batch_larger_than_the_cache_is_refused():
    view = random_view(4)
    with pytest.raises(ValueError, match='at most 3 samples'): ObjectCache(3).push(view.image_1, [None] * 4, view.flow)


def test_objects_handed_out_are_all_different():
    cache = filled_cache(12)
    cache.motion = torch.arange(24.).view(12, 2)
    for seed in range(20):
        rgba, motion = cache.sample(4, 3, seeded(seed))
        assert len(set(motion[..., 0].flatten().tolist())) == 12
        assert torch.equal(rgba.flatten(0, 1), cache.rgba[(motion[..., 0] / 2).long().flatten()])
    with pytest.raises(ValueError, match='at most 12 objects'): cache.sample(5, 3)
    with pytest.raises(ValueError, match='full cache of 5 objects, found 0'): ObjectCache(5).sample(1, 1)


def test_the_state_survives_safetensors_and_gives_the_same_future(tmp_path):
    cache, view = filled_cache(), random_view(4, seed=9)
    save_file(cache.state_dict(), tmp_path / 'cache.safetensors')
    copy = ObjectCache(12)
    copy.load_state_dict(load_file(tmp_path / 'cache.safetensors'))
    for one in (cache, copy): one.push(view.image_1, random_objects(4, 24, 40, 9), view.flow, seeded(3))
    assert same(paste_objects(view, cache, 3, seeded(4)), paste_objects(view, copy, 3, seeded(4)))


@pytest.mark.parametrize('pushes', [0, 1])
def test_the_state_of_a_cache_that_is_not_full(pushes):
    cache, view = ObjectCache(10), random_view(4)
    for _ in range(pushes): cache.push(view.image_1, random_objects(4, 24, 40), view.flow, seeded())
    copy = filled_cache(10)
    copy.load_state_dict(cache.state_dict())
    assert copy.frame == cache.frame and torch.equal(copy.filled, cache.filled) and torch.equal(copy.rgba, cache.rgba) and not copy.full


def test_loading_does_not_tie_the_cache_to_the_state():
    state = filled_cache().state_dict()
    kept, cache, view = {k: v.clone() for k, v in state.items()}, ObjectCache(12), random_view(4, seed=20)
    cache.load_state_dict(state)
    cache.push(view.image_1, random_objects(4, 24, 40, 20), view.flow, seeded())
    assert all(torch.equal(state[name], kept[name]) for name in state)


@pytest.mark.parametrize('spoil', [
    lambda state: state.pop('motion'), lambda state: state.update(extra=torch.zeros(1)), lambda state: state.update(filled=torch.zeros(3)),
    lambda state: state.update(place=state['place'][:-1]), lambda state: state.update(place=state['place'] + 10**6),
    lambda state: state.update(place=-1 - state['place'])])
def test_a_broken_state_is_refused(spoil):
    state = filled_cache().state_dict()
    spoil(state)
    with pytest.raises(ValueError, match='expected'): ObjectCache(12).load_state_dict(state)


def test_the_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match='cache of 100 objects'): ObjectCache(100).load_state_dict(filled_cache(12).state_dict())


# Pasting

def paste_brute_force(view, rgba, motion):
    "One sample, pixel by pixel."
    image_1, image_2, flow, visible, segments_1, segments_2 = (field[0].clone().double().numpy() for field in view)
    source = rgba[0].double().numpy() / 255
    _, height, width = source.shape
    label_1, label_2 = segments_1.max() + 1, segments_2.max() + 1
    u, v = motion[0].tolist()
    for y in range(height):
        for x in range(width):
            if source[3, y, x]:
                image_1[:, y, x], flow[:, y, x], visible[:, y, x], segments_1[:, y, x] = source[:3, y, x], (u, v), 1, label_1
            mixed = np.zeros(4)
            left, top = int(np.floor(x - u)), int(np.floor(y - v))
            for j in (top, top + 1):
                for i in (left, left + 1):
                    if 0 <= i < width and 0 <= j < height: mixed += (1 - abs(x - u - i)) * (1 - abs(y - v - j)) * source[:, j, i]
            image_2[:, y, x] = (1 - mixed[3]) * image_2[:, y, x] + mixed[:3]
            if mixed[3] > 0.5: segments_2[:, y, x] = label_2
    return image_1, image_2, flow, visible, segments_1, segments_2


@pytest.mark.parametrize('motion', [(0., 0.), (3., -2.), (4.37, 2.61), (-11.3, 6.8), (100., 0.)])
def test_pasting_against_brute_force(motion):
    view, cache = random_view(1, 13, 19, seed=3), filled_cache(1, 1, 13, 19)
    pasted = paste_object(view, cache.rgba, torch.tensor([motion]))
    for result, expected in zip(pasted, paste_brute_force(view, cache.rgba, torch.tensor([motion]))):
        np.testing.assert_allclose(result[0].double().numpy(), expected, atol=2e-5)


def test_every_sample_gains_its_own_labels():
    view, cache = random_view(4), filled_cache(12)
    view.segments_1[1] += 40
    pasted = paste_objects(view, cache, 3, seeded(1))
    for b in range(4):
        for before, after in ((view.segments_1, pasted.segments_1), (view.segments_2, pasted.segments_2)):
            new = set(after[b].unique().tolist()) - set(before[b].unique().tolist())
            assert new <= {int(before[b].max()) + n for n in (1, 2, 3)} and after.dtype == torch.int64
        assert int(pasted.segments_1[b].max()) == int(view.segments_1[b].max()) + 3  # the last object hides nothing of itself


@pytest.mark.parametrize('dtype, largest', [(torch.uint8, 255), (torch.int16, 32_767), (torch.int32, 65_535), (torch.int64, 65_535)])
def test_a_new_label_is_new_whatever_holds_the_labels(dtype, largest):
    labels = torch.zeros(1, 1, 24, 40, dtype=dtype)
    labels[..., 12:, :] = largest
    pasted = paste_objects(random_view(1)._replace(segments_1=labels, segments_2=labels), filled_cache(12), 3, seeded(1))
    for segments in pasted[4:]: assert set(segments.unique().tolist()) - {0, largest} and set(segments.unique().tolist()) <= {0, *range(largest, largest + 4)}
    assert int(pasted.segments_1.max()) == largest + 3


def test_the_objects_are_pasted_one_after_another():
    view, cache = random_view(2), filled_cache(12)
    rgba, motion = vary_objects(*cache.sample(2, 3, g := seeded(5)), g)
    expected = view
    for n in range(3): expected = paste_object(expected, rgba[:, n], motion[:, n])
    assert same(paste_objects(view, cache, 3, seeded(5)), expected)
    swapped = paste_object(paste_object(view, rgba[:, 1], motion[:, 1]), rgba[:, 0], motion[:, 0])
    assert not same(swapped, paste_object(paste_object(view, rgba[:, 0], motion[:, 0]), rgba[:, 1], motion[:, 1]))


def test_pasting_leaves_its_input_and_the_cache_alone_and_works_without_segments():
    view, cache = random_view(4, segments=False), filled_cache(12)
    kept, rgba, motion = View(*(f if f is None else f.clone() for f in view)), cache.rgba.clone(), cache.motion.clone()
    pasted = paste_objects(view, cache, 3, seeded())
    assert same(view, kept) and torch.equal(cache.rgba, rgba) and torch.equal(cache.motion, motion)
    assert pasted.segments_1 is pasted.segments_2 is None and not torch.equal(pasted.flow, view.flow)
    assert 0 <= pasted.image_2.min() and pasted.image_2.max() <= 1 + 1e-6


def test_variations_occur_as_often_as_they_should():
    motion = torch.ones(2000, 3, 2)
    rgba, varied = vary_objects(torch.arange(2, dtype=torch.uint8).expand(2000, 3, 4, 1, 2), motion, seeded())
    mirrored, speed = rgba[:, :, 0, 0, 0] == 1, varied[..., 1]
    assert torch.equal(varied[..., 0], torch.where(mirrored, -speed, speed))
    assert 0.8 <= speed.abs().min() < 0.81 and 1.49 < speed.abs().max() <= 1.5
    assert abs(float(mirrored.float().mean()) - 0.5) < 0.03 and abs(float((speed < 0).float().mean()) - 0.5) < 0.03


def test_pasting_from_a_cache_of_another_frame_size_is_refused():
    with pytest.raises(ValueError, match=r'frames of \(24, 40\) pixels.*\(24, 44\)'): paste_objects(random_view(4, 24, 44), filled_cache())
    with pytest.raises(ValueError, match='full cache'): paste_objects(random_view(4), ObjectCache())


# Device

class HostReads(TorchDispatchMode):
    "Counts the operators that make the host wait for values on the device."

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ('_local_scalar_dense', 'nonzero', 'unique', 'masked_select', 'equal.default')): self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back_in_a_step():
    view, cache, objects, g = random_view(4), filled_cache(), random_objects(4, 24, 40), seeded()
    with HostReads() as reads:
        AffinePair()(view, g)
        occlusion_crop(paste_objects(view, cache, 3, g), (16, 32), g)
        cache.push(view.image_1, objects, view.flow, g)
    assert reads.names == []
    with HostReads() as reads: bool(view.flow.sum() > 0)
    assert reads.names  # the counter counts


def test_a_sample_without_objects_goes_with_others_on_the_gpu():
    "Tensors without values show where each would lie, on any machine."
    cache = ObjectCache(4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        cache.push(torch.rand(2, 3, 24, 40, device='cuda'), [torch.ones(2, 1, 24, 40, dtype=torch.bool, device='cuda'), None], torch.rand(2, 2, 24, 40, device='cuda'))
    assert cache.rgba.is_cuda and cache.motion.is_cuda


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_step_on_the_gpu_does_not_wait():
    view, cache, objects, g = random_view(4, device='cuda'), ObjectCache(12), random_objects(4, 24, 40), seeded()
    while not cache.full: cache.push(view.image_1, objects, view.flow, g)
    def augment():
        images = Appearance()(view.image_1, view.image_2, g)
        pair = view._replace(image_1=images[0], image_2=images[1])
        AffinePair()(pair, g)
        occlusion_crop(paste_objects(pair, cache, 3, g), (16, 32), g)
        cache.push(pair.image_1, objects, view.flow, g)
    augment()
    torch.cuda.set_sync_debug_mode('error')
    try: augment()
    finally: torch.cuda.set_sync_debug_mode('default')
    assert cache.rgba.is_cuda
