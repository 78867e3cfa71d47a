"Masks: records, generators, full segmentation, key objects, and a store that survives kill -9."
import functools
import gzip
import hashlib
import http.server
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from skimage import data
from skimage.measure import label

from unsamflow.masks import (MaskStore, RegionMasks, SamMasks, border_contrast, decode, fetch, full_segmentation, key_objects, load_sam, make_record, merge_regions,
                             overlap_matrix, read_weights, run_lengths)

fork = multiprocessing.get_context('forkserver')  # children start at once from a process that has everything imported and no threads
fork.set_forkserver_preload([__name__])


def random_masks(count, size, seed):
    "Rectangles of many sizes, with equal areas among them, as (count, H, W) bool."
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask[top:top + rng.integers(1, size[0]), left:left + rng.integers(1, size[1])] = True
    return masks


# Records

def test_damaged_codes_are_refused_or_still_fill_the_image():
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(400):
        mask = rng.random((9, 13)) < rng.random()
        counts = bytearray(make_record(mask)['segmentation']['counts'].encode())
        place = rng.integers(len(counts))
        if trial % 2: counts[place] = rng.integers(1, 128)
        else: del counts[place]
        try: found = decode({'segmentation': {'size': [9, 13], 'counts': bytes(counts)}}, (9, 13))
        except ValueError as error:
            assert 'broken RLE' in str(error)
            refused += 1
        else: assert np.array_equal(found, coco.decode({'size': [9, 13], 'counts': bytes(counts)}))
    assert refused > 350


@pytest.mark.parametrize('counts', [[0, 5, -1, 8], [12, 12], [], ['a'], [2.5, 9.5], [2 ** 40]])
def test_damaged_lists_of_runs_are_refused(counts):
    with pytest.raises(ValueError, match='broken RLE'): decode({'segmentation': {'size': [3, 4], 'counts': counts}}, (3, 4))


@pytest.mark.parametrize('mask', [np.full((3, 4), -2.0), np.zeros((3, 4), np.float32), np.full((3, 4), np.nan), np.eye(3, 4, dtype=np.uint8) * 255, np.full((3, 4), -1), np.full((3, 4), 'a')])
def test_logits_and_grey_values_are_no_masks(mask):
    "Anything but zero would count as inside."
    with pytest.raises(ValueError, match=r'records\[0\]: expected a binary array of shape \(H, W\), found'): full_segmentation([{'segmentation': mask}], (3, 4))


def test_all_forms_of_a_segmentation_decode_alike():
    mask = random_masks(1, (20, 30), 0)[0]
    record = make_record(mask)
    rle = record['segmentation']
    runs = run_lengths(rle['counts'])
    for form in (mask, mask.astype(np.uint8), rle, {**rle, 'counts': rle['counts'].encode()}, {**rle, 'counts': runs.tolist()}):
        assert np.array_equal(decode({'segmentation': form}, (20, 30)), mask)
    assert json.loads(json.dumps(record)) == record
    assert decode({'segmentation': rle}, np.array([20, 30])).dtype == bool


@pytest.mark.parametrize('record', [None, 3, {}, {'segmentation': None}, {'segmentation': np.zeros(5, bool)}, {'segmentation': {'size': [3, 4]}}, {'segmentation': {'size': None, 'counts': '0'}},
                                    {'segmentation': {'size': 12, 'counts': '0'}}])
def test_what_is_no_record_is_refused(record):
    with pytest.raises(TypeError, match=r'records\[1\]: expected a mask record'): full_segmentation([make_record(np.eye(3, 4, dtype=bool)), record], (3, 4))


@pytest.mark.parametrize('mask', [np.zeros((2, 3, 4), bool), np.zeros((3, 4)), np.full((3, 4), 255, np.uint8), np.full((3, 4), -1), np.zeros((0, 4), bool)])
def test_only_binary_masks_become_records(mask):
    with pytest.raises(ValueError, match='expected a binary array'): make_record(mask)


def test_an_empty_mask_has_no_box_and_no_part_in_anything():
    empty, whole = make_record(np.zeros((60, 70), bool)), make_record(np.ones((60, 70), bool))
    assert (empty['area'], empty['bbox']) == (0, [0, 0, 0, 0])
    assert full_segmentation([empty, whole], (60, 70)).max() == 0
    assert overlap_matrix([empty, whole], (60, 70)).tolist() == [[0, 0], [0, 4200]]
    assert len(key_objects([empty, whole], (60, 70), min_overlaps=0)) == 1


def test_records_of_another_image_are_refused_by_name():
    records = [make_record(mask) for mask in random_masks(3, (8, 9), 0)]
    for function in (full_segmentation, key_objects, overlap_matrix):
        with pytest.raises(ValueError, match=r"records\[0\]: expected a mask of the image's size \(9, 8\), found \(8, 9\)"): function(records, (9, 8))


def test_a_broken_record_is_named_by_its_place():
    records = [make_record(mask) for mask in random_masks(3, (8, 9), 0)]
    records[2] = {'segmentation': {'size': [8, 9], 'counts': records[2]['segmentation']['counts'][:-1]}}
    for function in (full_segmentation, key_objects, overlap_matrix):
        with pytest.raises(ValueError, match=r'records\[2\]: broken RLE: expected'): function(records, (8, 9))


def test_an_image_without_masks_is_one_background():
    labels = full_segmentation([], (8, 9))
    assert labels.shape == (8, 9) and labels.dtype == np.uint16 and not labels.any()
    assert overlap_matrix([], (8, 9)).shape == (0, 0)
    assert key_objects([], (8, 9)).shape == (0, 8, 9) and key_objects([], (8, 9)).dtype == bool


def test_masks_of_the_sa_v_data_set_decode():
    path = Path(os.environ.get('UNSAMFLOW_DATA', 'datasets')) / 'SA-V/sav_000001_auto.json'
    if not path.exists(): pytest.skip(f'needs {path.name} of SA-V in the folder that UNSAMFLOW_DATA names')
    for rle in json.loads(path.read_text())['masklet'][0]:
        assert np.array_equal(decode({'segmentation': rle}, rle['size']), coco.decode(rle))


# Full segmentation and key objects

@pytest.mark.parametrize('seed', range(8))
def test_the_order_of_masks_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    masks = random_masks(25, (21, 34), seed)
    masks = masks[np.unique(masks.sum((1, 2)), return_index=True)[1]]
    records = [make_record(mask) for mask in masks]
    labels = full_segmentation(records, (21, 34))
    assert labels.dtype == np.uint16 and np.array_equal(np.unique(labels[labels > 0]), np.arange(1, labels.max() + 1))
    assert np.array_equal(labels, full_segmentation([records[i] for i in rng.permutation(len(records))], (21, 34)))
    assert np.array_equal(labels == 0, ~masks[masks.sum((1, 2)) < 21 * 34].any(0))


def test_the_first_of_two_equal_masks_wins():
    first, second = np.zeros((2, 4, 5), bool)
    first[:, :3], second[:, 2:] = True, True
    second[0, 2:] = False
    second[0, :3] = True
    assert first.sum() == second.sum() == 12
    labels = full_segmentation([make_record(first), make_record(second)], (4, 5))
    assert len(np.unique(labels[first])) == 1


def test_more_segments_than_labels_are_refused():
    side = 257
    pixels = [{'segmentation': {'size': [side, side], 'counts': [index, 1, side ** 2 - index - 1]}} for index in range(65_536)]
    with pytest.raises(ValueError, match='at most 65,535 segments, found 65,536'): full_segmentation(pixels, (side, side))


@pytest.mark.parametrize('runs', [[0, 12], [12], [0, 0, 3, 0, 9], [0, 0, 3, 0, 4, 5], [3, 0, 0, 2, 7], [11, 1], [0, 1, 11]])
def test_runs_of_any_shape_are_painted(runs):
    "Empty ones among them, and with or without a last run of zeros."
    mask = np.repeat(np.arange(len(runs)) % 2 > 0, runs).reshape(4, 3).T
    labels = full_segmentation([{'segmentation': {'size': [3, 4], 'counts': runs}}], (3, 4))
    assert np.array_equal(labels > 0, mask & (not mask.all()))
    assert overlap_matrix([{'segmentation': {'size': [3, 4], 'counts': runs}}], (3, 4)).tolist() == [[mask.sum()]]


def brute_force_objects(masks, height, width, fill, overlaps):
    "Key objects by the wording of the rule, pair by pair."
    kept = []
    for i, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        h, w = rows.max() - rows.min(), columns.max() - columns.min()
        others = sum((mask & other).any() for j, other in enumerate(masks) if j != i)
        if height[0] <= h <= height[1] and width[0] <= w <= width[1] and mask.sum() >= fill * h * w and others >= overlaps: kept.append(mask)
    return np.array(kept).reshape(-1, *masks.shape[1:])


@pytest.mark.parametrize('seed', range(6))
def test_key_objects_follow_the_rule(seed):
    rng = np.random.default_rng(seed)
    masks = random_masks(30, (40, 60), seed) & (rng.random((30, 1, 1)) > rng.random((30, 40, 60)) * 0.8)
    masks = masks[masks.any((1, 2))]
    bounds = dict(height=(8, 25), width=(8, 40), min_fill=0.5, min_overlaps=15)
    found = key_objects([make_record(mask) for mask in masks], (40, 60), **bounds)
    expected = brute_force_objects(masks, *bounds.values())
    assert 0 < len(expected) < len(masks)
    assert np.array_equal(found, expected)


def test_key_objects_hold_one_mask_in_memory_at_a_time():
    "Two hundred masks of a frame of 1000 x 1000 would be 200 MB."
    records = [{'segmentation': {'size': [1000, 1000], 'counts': [1000 * index, 500, 999_500 - 1000 * index]}} for index in range(200)]
    tracemalloc.start()
    assert key_objects(records, (1000, 1000)).shape == (0, 1000, 1000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 40e6


# Regions

def test_regions_may_be_numbered_in_any_type():
    "Twenty regions have 400 pairs, more than a byte can number."
    labels = np.repeat(np.repeat(np.arange(20).reshape(4, 5), 5, 0), 5, 1)
    image = np.random.default_rng(0).random((20, 25, 3))
    for kind in (np.uint8, np.int8, np.uint16, np.uint64):
        for found, expected in zip(border_contrast(labels.astype(kind), image), border_contrast(labels, image)): assert np.array_equal(found, expected)
        for found, expected in zip(merge_regions(labels.astype(kind), image), merge_regions(labels, image)): assert np.array_equal(found, expected)
    with pytest.raises(TypeError, match='expected float, found uint8'): merge_regions(labels, np.zeros((20, 25, 3), np.uint8))


@pytest.fixture(scope='module')
def regions():
    image = data.chelsea()[::2, ::2]
    return image, RegionMasks()(image)


def test_region_masks_nest_overlap_and_differ(regions):
    image, records = regions
    size = image.shape[:2]
    shared = overlap_matrix(records, size)
    area = np.diag(shared)
    assert 10 <= len(records) <= 200
    assert area.tolist() == [record['area'] for record in records]
    inside = (shared == area[:, None]) & ~np.eye(len(area), dtype=bool)
    assert inside.any(1).mean() > 0.3  # many masks are part of another
    partly = (shared > 0) & ~inside & ~inside.T & ~np.eye(len(area), dtype=bool)
    assert partly.any()
    iou = shared / (area[:, None] + area - shared)
    assert iou[~np.eye(len(area), dtype=bool)].max() < 0.75  # 0.7 before the masks are enlarged
    assert json.loads(json.dumps(records)) == records


def test_region_masks_are_deterministic(regions):
    image, records = regions
    assert RegionMasks()(image) == records


@pytest.mark.parametrize('shape', [(1, 1, 3), (1, 40, 3), (7, 5, 3), (64, 64), (33, 500, 3)])
def test_region_masks_take_any_size(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for record in RegionMasks(min_area=0.0, min_stability=0.0)(image): assert decode(record, shape[:2]).any()
    assert RegionMasks()(np.full(shape, 77, np.uint8)) == []


def test_region_masks_refuse_what_is_no_image():
    with pytest.raises(ValueError, match='image'): RegionMasks()(np.zeros((5, 6, 4), np.uint8))


def test_merging_ends_with_one_region_and_keeps_every_union_connected():
    labels = np.repeat(np.repeat(np.arange(12).reshape(3, 4), 5, 0), 5, 1)
    members, stability = merge_regions(labels, np.random.default_rng(0).random((15, 20, 3)))
    assert members.shape == (23, 12) and members[-1].all() and (members.sum(1)[12:] > 1).all()
    assert (0 <= stability).all() and (stability <= 1).all()
    for union in members: assert label(union[labels], connectivity=1).max() == 1
    for union in members[12:]:  # each union is two earlier ones, disjoint
        pairs = [(a, b) for a in members for b in members if not (a & b).any() and np.array_equal(a | b, union)]
        assert pairs


# Segment Anything

def tiny_sam(side=128):
    torch.manual_seed(0)
    cells = side // 16
    sam = Sam(ImageEncoderViT(img_size=side, embed_dim=32, depth=2, num_heads=2, out_chans=32, window_size=4, global_attn_indexes=[1], use_rel_pos=True),
              PromptEncoder(32, (cells, cells), (side, side), mask_in_chans=8),
              MaskDecoder(transformer_dim=32, transformer=TwoWayTransformer(2, 32, num_heads=2, mlp_dim=64), iou_head_hidden_dim=32))
    with torch.no_grad():
        for name, weight in [*sam.prompt_encoder.named_parameters(), *sam.mask_decoder.named_parameters()]:
            if weight.ndim > 1 and 'norm' not in name and 'iou' not in name: weight *= 2
        for head in sam.mask_decoder.output_hypernetworks_mlps: head.layers[-1].weight *= 300
    return sam


LOOSE = dict(points_per_side=6, pred_iou_thresh=0.0, stability_score_thresh=0.5, box_nms_thresh=0.95)
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('shape', 'extra'), [((60, 90), {}), ((131, 47), dict(min_mask_region_area=5)), ((60, 90), dict(crop_n_layers=1, crop_n_points_downscale_factor=2))])
def test_sam_masks_are_those_of_the_package(device, extra, shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    generator = SamMasks('tiny', builder=tiny_sam, device=device, **LOOSE, **extra)
    records = generator(image)
    assert records and records == SamAutomaticMaskGenerator(generator.model, output_mode='coco_rle', **LOOSE, **extra).generate(image)
    assert json.loads(json.dumps(records)) == records
    assert next(generator.model.parameters()).device.type == device
    assert full_segmentation(records, shape).shape == shape


@pytest.mark.parametrize('shape', [(1, 1), (3, 200), (128, 128), (260, 33), (300, 500)])
def test_sam_masks_take_any_size(shape):
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    generator = SamMasks('tiny', builder=tiny_sam, device='cpu', **LOOSE)
    records = generator(image)
    assert records == SamAutomaticMaskGenerator(generator.model, output_mode='coco_rle', **LOOSE).generate(image)
    for record in records: assert decode(record, shape).sum() == record['area']


@pytest.mark.parametrize(('most', 'points'), [(4 << 30, 36), (12 * 5 * (128 ** 2 + 2 * 60 * 90), 5), (1, 1)])
def test_no_more_masks_at_once_than_memory_allows(most, points):
    "Counted where they arise: at the mask decoder."
    image = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    generator = SamMasks('tiny', builder=tiny_sam, device='cpu', max_bytes=most, **LOOSE)
    sizes = []
    generator.model.mask_decoder.register_forward_hook(lambda module, inputs, masks: sizes.append(len(masks[0])))
    records = generator(image)
    assert max(sizes) == points and sum(sizes) == 36  # every prompt of the grid of 6 x 6
    assert [record['area'] for record in records] == [record['area'] for record in SamMasks('tiny', builder=tiny_sam, device='cpu', **LOOSE)(image)]


def test_another_model_with_the_same_interface(tmp_path):
    "As MobileSAM would be used: a name, a builder, its own file of weights."
    torch.save(tiny_sam(64).state_dict(), tmp_path / 'mobile.pt')
    generator = SamMasks('vit_t', tmp_path / 'mobile.pt', functools.partial(tiny_sam, 64), 'cpu', **LOOSE)
    image = np.random.default_rng(1).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    built = MaskStore(tmp_path / 'store').build(generator, {'a': image, 'b': image[:, ::-1]}, progress=False)
    assert MaskStore(tmp_path / 'store').settings['model'] == 'vit_t' and MaskStore(tmp_path / 'store')['a'] == generator(image)
    assert built.made == 2 and built.images_per_second == 2 / built.seconds
    with pytest.raises(ValueError, match='holds masks of other settings: checkpoint'):
        MaskStore(tmp_path / 'store').build(SamMasks('vit_t', builder=functools.partial(tiny_sam, 64), device='cpu', **LOOSE), {})


def test_sam_masks_load_a_checkpoint_and_record_its_hash(tmp_path):
    other = tiny_sam()
    with torch.no_grad(): other.image_encoder.patch_embed.proj.weight.zero_()
    torch.save(other.state_dict(), tmp_path / 'tiny.pth')
    generator = SamMasks('tiny', tmp_path / 'tiny.pth', tiny_sam, 'cpu')
    assert not generator.model.image_encoder.patch_embed.proj.weight.any()
    assert generator.settings['checkpoint'] == hashlib.sha256((tmp_path / 'tiny.pth').read_bytes()).hexdigest()
    assert not {'device', 'points_per_batch', 'max_bytes'} & set(generator.settings)  # the masks do not depend on them
    assert json.loads(json.dumps(generator.settings)) == generator.settings


class Intruder:
    def __init__(self, path): self.path = path

    def __reduce__(self): return Path.touch, (self.path,)


def test_bad_checkpoints_are_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'other.pth: expected the weights of tiny, found others: .*Missing key'): load_sam('tiny', tmp_path / 'other.pth', tiny_sam)
    torch.save(Intruder(tmp_path / 'has run'), tmp_path / 'intruder.pth')
    (tmp_path / 'bare.pkl').write_bytes(pickle.dumps(Intruder(tmp_path / 'has run'), protocol=2))
    for name in ('intruder.pth', 'bare.pkl'):
        with pytest.raises(ValueError, match=f'{name}: refused'): read_weights(tmp_path / name)
    assert not (tmp_path / 'has run').exists()
    (tmp_path / 'empty.pth').touch()
    (tmp_path / 'half.pth').write_bytes((tmp_path / 'other.pth').read_bytes()[:-300])
    for name in ('empty.pth', 'half.pth'):
        with pytest.raises(ValueError, match=f'{name}: expected a whole PyTorch checkpoint'): read_weights(tmp_path / name)
    with pytest.raises(FileNotFoundError, match='absent.pth'): read_weights(tmp_path / 'absent.pth')


# Downloads

CONTENT = np.random.default_rng(0).bytes(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked, served = self.headers.get('Range'), self.server
        served.requests.append(asked)
        if 'absent' in self.path: return self.send_error(404)
        start = int(asked[6:-1]) if asked and served.ranges else 0
        if start >= len(CONTENT): return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(CONTENT) - start))
        self.end_headers()
        end = start + served.portion if served.portion else len(CONTENT)
        for place in range(start, min(end, len(CONTENT)), 20_000):
            self.wfile.write(CONTENT[place:min(place + 20_000, end)])
            time.sleep(served.pause)

    def log_message(self, *_): pass


@pytest.fixture
def server():
    served = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    served.requests, served.ranges, served.portion, served.pause = [], True, None, 0
    served.url = f'http://127.0.0.1:{served.server_port}/sam.pth'
    threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def test_a_lost_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.portion = 150_000
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests[0] is None and len(server.requests) > 2
    starts = [int(asked[6:-1]) for asked in server.requests[1:]]
    assert starts == sorted(set(starts)) and starts[0] > 100_000
    fetch(server.url, SHA256, tmp_path)
    assert len(server.requests) == 1 + len(starts)  # what is there is not fetched again


def test_a_server_without_ranges_sends_the_whole_again(server, tmp_path):
    server.ranges = False
    (tmp_path / 'sam.pth.part').write_bytes(CONTENT[:1000])
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_complete_or_wrong(server, tmp_path):
    (tmp_path / 'sam.pth.part').write_bytes(CONTENT)
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == CONTENT
    (tmp_path / 'sam.pth').write_bytes(b'damaged on the disk')
    (tmp_path / 'sam.pth.part').write_bytes(b'of an older version')
    with pytest.raises(ValueError, match='does not match the known hash'): fetch(server.url, SHA256, tmp_path)
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == CONTENT


def test_an_absent_file_and_an_absent_server(server, tmp_path):
    with pytest.raises(requests.HTTPError, match='404'): fetch(server.url.replace('sam', 'absent'), SHA256, tmp_path)
    with pytest.raises(OSError): fetch('http://127.0.0.1:9/sam.pth', SHA256, tmp_path, tries=1)
    assert not (tmp_path / 'sam.pth').exists()


def test_a_killed_download_continues(server, tmp_path):
    server.pause = 0.02
    process = fork.Process(target=fetch, args=(server.url, SHA256, tmp_path))
    process.start()
    while not (tmp_path / 'sam.pth.part').exists() or (tmp_path / 'sam.pth.part').stat().st_size < 100_000: time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = (tmp_path / 'sam.pth.part').stat().st_size
    assert there < len(CONTENT) and not (tmp_path / 'sam.pth').exists()
    server.pause = 0
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert int(server.requests[-1][6:-1]) == there


def fetch_and_hang(url, folder):
    "A download whose process comes no further than the check of the hash."
    def hang(*_, **__):
        (folder / 'checking').touch()
        time.sleep(60)
    pooch.file_hash = pooch.hashes.file_hash = hang
    fetch(url, SHA256, folder)


def test_a_process_killed_while_it_checks_the_hash_loses_nothing(server, tmp_path):
    process = fork.Process(target=fetch_and_hang, args=(server.url, tmp_path))
    process.start()
    while not (tmp_path / 'checking').exists(): time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / 'sam.pth.part').read_bytes() == CONTENT and not (tmp_path / 'sam.pth').exists()
    assert fetch(server.url, SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, f'bytes={len(CONTENT)}-']  # nothing is sent again
    assert {path.name for path in tmp_path.iterdir()} == {'sam.pth', 'sam.pth.lock', 'checking'}


def test_what_is_there_needs_neither_a_server_nor_a_folder_to_write_to(tmp_path, monkeypatch):
    (tmp_path / 'sam.pth').write_bytes(CONTENT)
    def refuse(*_): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr('unsamflow.masks.FileLock', refuse)
    assert fetch('http://127.0.0.1:9/sam.pth', SHA256.upper(), tmp_path) == tmp_path / 'sam.pth'
    assert [path.name for path in tmp_path.iterdir()] == ['sam.pth']


# The store

def logged(image, log, delay, marks=None):
    "A generator that writes down what it did: one mask, whose area is the image's first byte."
    time.sleep(delay)
    with open(log, 'a') as file: file.write(f'{image[0, 0, 0]}\n')
    mask = np.zeros((16, 16), bool)
    mask.flat[:image[0, 0, 0]] = True
    return [make_record(mask)]


def numbered(count): return {f'shot_{i % 3}/frame_{i:04}.png': np.full((16, 16, 3), i + 1, np.uint8) for i in range(count)}


def build(folder, log, count, delay, progress=False): return MaskStore(folder).build(generator(log, delay), numbered(count), progress)


def generator(log, delay):
    function = functools.partial(logged, log=log, delay=delay)
    function.settings = {'generator': 'logged'}
    return function


def started(*arguments):
    process = fork.Process(target=build, args=arguments)
    process.start()
    return process


def assert_complete(folder, count):
    store = MaskStore(folder)
    assert sorted(store) == sorted(numbered(count))
    for name, image in numbered(count).items(): assert store[name][0]['area'] == image[0, 0, 0]


def test_ten_kills_lose_one_image_each_at_most(tmp_path):
    rng, log, count = np.random.default_rng(0), tmp_path / 'log', 120
    def entries(): return len(log.read_text().split()) if log.exists() else 0
    for trial in range(10):
        goal = entries() + rng.integers(1, 6)
        process = started(tmp_path / 'store', log, count, 0.01)
        while entries() < goal: time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))  # some moment of the next image or the one after, whatever the speed of the machine
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        store = MaskStore(tmp_path / 'store')
        for name in store: assert len(store[name]) == 1  # whatever is there is whole
        assert entries() - len(list(store)) <= trial + 1
    built = build(tmp_path / 'store', log, count, 0)
    assert built.made + built.found == count and built.found >= 10
    assert_complete(tmp_path / 'store', count)
    assert entries() <= count + 10


def test_several_processes_share_the_work_while_one_reads(tmp_path):
    log, count = tmp_path / 'log', 60
    processes = [started(tmp_path / 'store', log, count, 0.01) for _ in range(3)]
    while any(process.is_alive() for process in processes):
        store = MaskStore(tmp_path / 'store')
        for name in store: assert len(store[name]) == 1
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert_complete(tmp_path / 'store', count)
    assert sorted(map(int, log.read_text().split())) == list(range(1, count + 1))  # each exactly once


def test_the_image_of_a_killed_process_falls_to_another(tmp_path):
    log = tmp_path / 'log'
    stuck = started(tmp_path / 'store', log, 4, 60)
    while not list(tmp_path.glob('store/.locks/??.lock')): time.sleep(0.005)
    helper = started(tmp_path / 'store', log, 4, 0)
    while not log.exists() or len(log.read_text().split()) < 3: time.sleep(0.005)
    time.sleep(0.1)
    assert helper.is_alive() and len(list(MaskStore(tmp_path / 'store'))) == 3
    os.kill(stuck.pid, signal.SIGKILL)
    helper.join(10)
    stuck.join()
    assert helper.exitcode == 0
    assert_complete(tmp_path / 'store', 4)


def test_unreadable_images_are_skipped_and_named(tmp_path):
    (tmp_path / 'empty.png').touch()
    images = [('good', np.zeros((4, 5, 3), np.uint8)), ('empty', tmp_path / 'empty.png'), ('absent', tmp_path / 'absent.png'), ('wrong', np.zeros((4, 5, 7), np.uint8)),
              ('none', None), ('lazy', lambda: np.zeros((4, 5, 3), np.uint8)), ('lazy and bad', lambda: np.full((3, 4, 5), np.nan, np.float32))]
    built = MaskStore(tmp_path / 'store').build(lambda image: [], images)
    assert (built.made, built.found, list(built.failed)) == (2, 0, ['empty', 'absent', 'wrong', 'none', 'lazy and bad'])
    assert 'empty.png' in built.failed['empty'] and 'absent.png' in built.failed['absent'] and '(4, 5, 7)' in built.failed['wrong']
    assert built.images_per_second > 0 and MaskStore(tmp_path / 'store')['good'] == []


def test_errors_of_the_generator_and_of_the_disk_are_not_swallowed(tmp_path, monkeypatch):
    def failing(image): raise RuntimeError('out of memory')
    image = {'a': np.zeros((4, 5, 3), np.uint8)}
    with pytest.raises(RuntimeError, match='out of memory') as caught: MaskStore(tmp_path / 'store').build(failing, image)
    assert 'while making the masks of a' in caught.value.__notes__
    store = MaskStore(tmp_path / 'full')
    store['before'] = []
    monkeypatch.setattr('unsamflow.files.os.replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space left on device'): store['a'] = []
    monkeypatch.undo()
    assert list(MaskStore(tmp_path / 'full')) == ['before']
    (tmp_path / 'a file').touch()
    with pytest.raises(OSError, match='a file'): MaskStore(tmp_path / 'a file/store').build(lambda image: [], image)


def test_settings_are_recorded_and_others_refused(tmp_path):
    store = MaskStore(tmp_path / 'one', {'generator': 'x', 'scales': (1, 2)})
    store['a'] = []
    assert MaskStore(tmp_path / 'one').settings == {'generator': 'x', 'scales': [1, 2]}
    MaskStore(tmp_path / 'one', {'scales': [1, 2], 'generator': 'x'})  # the same, in another order
    with pytest.raises(ValueError, match=r'one: holds masks of other settings: scales: \[1, 2\], asked for \[1, 3\]'): MaskStore(tmp_path / 'one', {'generator': 'x', 'scales': [1, 3]})
    other = MaskStore(tmp_path / 'two', {'generator': 'y'})
    other['b'] = []
    store.path('b').write_bytes(other.path('b').read_bytes())  # a file copied from another store
    with pytest.raises(ValueError, match='b.json.gz: expected masks of the store\'s settings'): store['b']
    bare = MaskStore(tmp_path / 'bare')
    bare['a'] = []
    with pytest.raises(ValueError, match='generator'): bare.build(RegionMasks(), {})
    with pytest.raises(TypeError): MaskStore(tmp_path / 'odd', {'a': object()})


def test_a_damaged_file_is_named(tmp_path):
    store = MaskStore(tmp_path)
    store['a/b.png'] = [make_record(np.eye(5, dtype=bool))]
    whole = store.path('a/b.png').read_bytes()
    for damaged in (whole[:-20], b'', b'text', whole[:30] + bytes(8) + whole[38:]):
        store.path('a/b.png').write_bytes(damaged)
        with pytest.raises(ValueError, match=r'b\.png\.json\.gz: expected a whole json file'): store['a/b.png']
    store['a/b.png'] = [make_record(np.eye(5, dtype=bool))]
    assert store.path('a/b.png').read_bytes() == whole  # the same records, the same bytes


def test_records_of_every_form_are_stored(tmp_path):
    store, mask = MaskStore(tmp_path), np.eye(5, 8, dtype=bool)
    record = make_record(mask)
    store['a'] = [{**record, 'segmentation': mask, 'area': np.int64(5), 'bbox': np.array(record['bbox']), 'stability_score': np.float32(1)}]
    assert store['a'] == [record]
    with pytest.raises(TypeError, match=r'b\[0\]: expected a mask record'): store['b'] = [{}]
    assert 'b' not in store


@pytest.mark.parametrize('name', ['', '/a', 'a/../b', '../a', 'a//b', '.hidden', 'a\\b', 'a/', Path('a'), None])
def test_names_stay_in_the_store(tmp_path, name):
    with pytest.raises(ValueError, match='expected a relative path'): MaskStore(tmp_path)[name] = []


def test_a_reader_that_was_there_first_sees_what_is_made_later(tmp_path):
    early, writer = MaskStore(tmp_path), MaskStore(tmp_path)
    MaskStore(tmp_path, {'generator': 'x'})['a'] = []
    assert early['a'] == [] and early.settings == {'generator': 'x'}
    writer['b'] = []  # takes over the folder's settings
    assert MaskStore(tmp_path)['b'] == []


def test_an_image_named_twice_counts_once(tmp_path):
    (tmp_path / 'bad.png').touch()
    images = [('bad', tmp_path / 'bad.png'), ('good', np.zeros((4, 5, 3), np.uint8))] * 2
    built = MaskStore(tmp_path / 'store').build(lambda image: [], images, progress=False)
    assert (built.made, built.found, list(built.failed)) == (1, 0, ['bad'])


@pytest.mark.parametrize('record', [{'segmentation': {'size': [5, 8], 'counts': '5é'}}, {'segmentation': {'size': [5, 8], 'counts': '53'}}, {'segmentation': np.zeros((5, 8))}])
def test_what_would_not_decode_is_not_stored(tmp_path, record):
    store, good = MaskStore(tmp_path), make_record(np.eye(5, 8, dtype=bool))
    with pytest.raises(ValueError, match=r'a\[1\]: (broken RLE|expected a binary array)'): store['a'] = [good, record]
    assert 'a' not in store


def test_masks_of_another_size_than_the_image_end_the_run(tmp_path):
    store = MaskStore(tmp_path)
    with pytest.raises(ValueError, match=r'expected a mask of the image\'s size \(8, 5\), found \(5, 8\)') as caught:
        store.build(lambda image: [make_record(np.eye(5, 8, dtype=bool))], {'a': np.zeros((8, 5, 3), np.uint8)}, progress=False)
    assert caught.value.__notes__ == ['while making the masks of a'] and 'a' not in store


@pytest.mark.parametrize('score', [float('nan'), np.float32('nan'), np.float64('inf'), torch.tensor(float('nan'))])
def test_the_files_are_json(tmp_path, score):
    def refuse(constant): raise AssertionError(f'{constant} is not json')
    store = MaskStore(tmp_path)
    store['a'] = [{**make_record(np.eye(5, dtype=bool)), 'stability_score': score}]
    assert store['a'] == [{**make_record(np.eye(5, dtype=bool)), 'stability_score': None}]
    json.loads(gzip.decompress(store.path('a').read_bytes()), parse_constant=refuse)
    with pytest.raises(TypeError, match='expected what json can hold'): store['a'] = [{**make_record(np.eye(5, dtype=bool)), 'tags': {1, 2}}]


def test_sam_without_a_bound_on_stability_is_stored(tmp_path):
    "An empty mask has no stability."
    images = {'a': np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)}
    generator = SamMasks('tiny', builder=tiny_sam, device='cpu', **{**LOOSE, 'stability_score_thresh': 0.0})
    generator.model.mask_threshold = 1e6  # no pixel is inside
    MaskStore(tmp_path).build(generator, images, progress=False)
    found, made = MaskStore(tmp_path)['a'], generator(images['a'])
    assert [record['segmentation'] for record in found] == [record['segmentation'] for record in made]
    assert found and all(record['area'] == 0 and record['stability_score'] is None for record in found)


@pytest.mark.parametrize('content', [[make_record(np.eye(5, dtype=bool))], None, {'settings': 'x'}])
def test_json_of_another_origin_is_named(tmp_path, content):
    "For one, the bare list of records that Segment Anything's own script writes."
    store = MaskStore(tmp_path)
    store['a'] = []
    store.path('b').write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(ValueError, match=r'b\.json\.gz: expected the records that a mask store has written'): store['b']
    (tmp_path / 'settings.json').write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r'settings\.json: expected the settings'): MaskStore(tmp_path)


@pytest.mark.parametrize('name', ['tränen/日本.png', 'name with spaces 🎬.png', os.fsdecode(b'latin-\xe9.png')])
def test_names_of_every_script(tmp_path, name):
    store = MaskStore(tmp_path)
    assert store.build(lambda image: [], {name: np.zeros((4, 5, 3), np.uint8)}, progress=False).made == 1
    assert list(store) == [name] and store[name] == []


def test_a_missing_name_is_a_key_error(tmp_path):
    with pytest.raises(KeyError, match='has no masks of a'): MaskStore(tmp_path / 'nowhere')['a']
    assert not (tmp_path / 'nowhere').exists()
