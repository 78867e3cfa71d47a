"Readers of data sets against independent ones, counts, lists, videos, the training stream, and bad input."

import hashlib
import os
import pickle
import shutil

import cv2
import miniature
import numpy as np
import pytest
import torch
import torchvision.datasets as other
from miniature import SHIFT, SIZE, frame, save, touch
from torch.utils.data import DataLoader

from unsamflow.datasets import (
    REGISTRY, CachedPairs, FlyingChairs, FlyingThings3D, Frames, Hd1k, Kitti, KittiMultiview, KittiRaw, Middlebury, Mixture, Pair, Pairs, ScenePairs,
    Sintel, SintelRaw, Spring, TrainingViews, Video, collate, consecutive, count_frames, dataset, read_flo5, read_frame, read_list, read_pfm,
    read_video_frame, resize_sample, setting, write_list)
from unsamflow.evaluation import evaluate, zero_flow
from unsamflow.flow import warp
from unsamflow.masks import MaskStore, RegionMasks


@pytest.fixture
def data(tmp_path, monkeypatch):
    "An empty data folder, as settings.ini would name it."
    monkeypatch.setenv('UNSAMFLOW_DATA', str(tmp_path / 'data'))
    (tmp_path / 'data').mkdir()
    return tmp_path / 'data'


def agree(ours, theirs, valid=None):
    "Every pair of two readers: pictures, flow and, where theirs has it, validity."
    assert len(ours) == len(theirs) > 0
    for i in range(len(ours)):
        sample, (image_1, image_2, flow, *known) = ours[i], theirs[i]
        for a, b in ((sample.image_1, image_1), (sample.image_2, image_2)):
            assert np.array_equal((a * 255).round().permute(1, 2, 0).numpy(), np.asarray(b)), (i, sample.name)
        here = known[0] if known else np.ones(flow.shape[1:], bool)
        assert np.array_equal(sample.valid[0].numpy(), here) if valid is None else True
        assert np.abs(sample.flow.numpy() - flow)[:, here].max() < 1e-6, sample.name


# Readers, against torchvision's

def test_kitti_2015(data):
    shutil.move(miniature.kitti(data, 2015, scenes=3), data / 'KittiFlow')
    agree(Kitti(2015, root=data / 'KittiFlow'), other.KittiFlow(data, 'train'))


def test_kitti_testing_has_no_truth(data):
    miniature.kitti(data, 2012, split='testing')
    kitti = Kitti(2012, 'testing')
    assert [p.name for p in kitti.pairs] == ['000000_10', '000001_10'] and kitti[0].flow is None
    with pytest.raises(ValueError, match='true flow'):
        evaluate(zero_flow, kitti, progress=False)


def test_kitti_occlusion_and_objects(data):
    miniature.kitti(data, 2015)
    miniature.kitti(data, 2012)
    sample = Kitti(2015)[1]
    assert torch.equal(sample.non_occluded, sample.valid & ~torch.from_numpy(miniature.part().copy()))
    assert sample.objects.unique().tolist() == [0, 2] and sample.objects.dtype == torch.int64
    scores = evaluate(zero_flow, Kitti(2015), progress=False)
    assert {'epe_occ', 'fl_bg', 'fl_fg'} <= scores.keys() and abs(scores['epe'] - np.hypot(*SHIFT)) < 0.1
    assert Kitti(2012)[0].objects is None


def test_kitti_grey_and_colour_of_2012(data):
    miniature.kitti(data, 2012)
    grey, colour = Kitti(2012, pictures='grey')[0], Kitti(2012)[0]
    assert torch.equal(grey.image_1[0], grey.image_1[2]) and not torch.equal(colour.image_1[0], colour.image_1[2])
    assert torch.equal(grey.flow, colour.flow)


def test_sintel(data):
    miniature.sintel(data)
    for name in ('clean', 'final'):
        agree(Sintel(name, root=data / 'Sintel'), other.Sintel(data, 'train', name), valid=False)
    both = Sintel()
    assert len(both) == 8 and [p.name for p in both.pairs][:2] == ['clean/alley_1/frame_0001', 'clean/alley_1/frame_0002']


def test_sintel_keeps_the_flow_of_invalid_pixels(data):
    miniature.sintel(data)
    sintel = Sintel('clean')
    sample = sintel[0]
    invalid = torch.from_numpy(miniature.part(share=0.125).copy())[None]
    assert torch.equal(~sample.valid, invalid) and torch.equal(~sample.non_occluded, torch.from_numpy(miniature.part().copy())[None])
    assert sample.flow.norm(dim=0)[invalid[0]].min() > 1
    scores = evaluate(zero_flow, sintel, progress=False)
    assert scores['epe'] != scores['epe_valid'] and np.isclose(scores['epe'], np.mean([s.flow.norm(dim=0).mean() for s in sintel]))


def test_sintel_folds(data):
    miniature.sintel(data, scenes=('alley_1', 'alley_2', 'unlabelled_seqA'))
    names = {fold: {p.frame_1.split('/')[2] for p in Sintel(fold=fold).pairs} for fold in (None, 'A', 'B')}
    assert names == {None: {'alley_1', 'alley_2', 'unlabelled_seqA'}, 'A': {'alley_1'}, 'B': {'alley_2'}}
    assert Sintel(fold='A').stated + Sintel(fold='B').stated == Sintel().stated == 2082


def test_sintel_test_split(data):
    miniature.sintel(data, scenes=('wall',), split='test')
    sintel = Sintel('final', 'test')
    assert (len(sintel), sintel.stated, sintel[0].flow) == (2, 552, None)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_chairs(data, split):
    miniature.chairs(data)
    agree(FlyingChairs(split), other.FlyingChairs(data, split))


def test_chairs_of_other_names(data):
    for end, content in (('img0.png', frame(0)), ('img1.png', frame(1)), ('flow.flo', miniature.flow())):
        save(data / f'FlyingChairs/fn2_0000002_{end}', content)
    chairs = FlyingChairs()
    assert [p.name for p in chairs.pairs] == ['fn2_0000002'] and chairs[0].flow is not None
    with pytest.raises(FileNotFoundError, match='FlyingChairs_train_val.txt.*get FlyingChairs.zip'):
        FlyingChairs('val')
    (data / 'FlyingChairs/FlyingChairs_train_val.txt').write_text('1\n')
    with pytest.raises(ValueError, match='a line for each of the pairs 2 to 2, found 1'):
        FlyingChairs('val')
    (data / 'FlyingChairs/FlyingChairs_train_val.txt').write_text('1\n0\n')
    with pytest.raises(ValueError, match=r"FlyingChairs_train_val.txt: expected 1 \(train\) or 2 \(val\) in each line, found '0' in line 2"):
        FlyingChairs('val')


@pytest.mark.parametrize('camera', ['left', 'right'])
def test_things(data, camera):
    miniature.things(data)
    theirs = other.FlyingThings3D(data, 'train', 'both', camera)
    ours = FlyingThings3D(camera=camera)
    assert len(ours) == 8
    places = {(a, b): i for i, (a, b) in enumerate(map(tuple, theirs._image_list))}
    order = [places[str(ours.root / p.frame_1), str(ours.root / p.frame_2)] for p in ours.pairs]
    agree(ours, torch.utils.data.Subset(theirs, order))


def test_hd1k(data):
    shutil.move(miniature.hd1k(data), data / 'hd1k')
    agree(Hd1k(data / 'hd1k'), other.HD1K(data, 'train'))


def test_middlebury(data):
    miniature.middlebury(data)
    sample = Middlebury()[0]
    assert torch.equal(~sample.valid[0], torch.from_numpy(miniature.part().copy())) and len(Middlebury()) == 2
    assert np.abs(sample.flow.numpy() - miniature.flow())[:, sample.valid[0]].max() == 0
    assert Middlebury(truth_only=False)[2].flow is None


def test_kitti_raw(data):
    miniature.kitti_raw(data, drives=2, frames=5, missing=[3])
    raw = KittiRaw()
    assert len(raw) == 2 * 2 * 2  # 0-1 and 1-2; 2-4 is no pair
    assert {p.frame_1.split('/')[2] for p in raw.pairs} == {'image_02', 'image_03'}
    for pair in raw.pairs:
        assert int(pair.frame_2[-14:-4]) == int(pair.frame_1[-14:-4]) + 1 and os.path.dirname(pair.frame_1) == os.path.dirname(pair.frame_2)
    assert len(KittiRaw(cameras=['image_03'])) == 4


def test_pairs_run_forwards(data):
    "The texture moves by SHIFT: frame 2, warped by it, is frame 1."
    miniature.kitti_raw(data), miniature.sintel_raw(data), miniature.kitti_multiview(data), miniature.things(data)
    for source, sign in ((KittiRaw(), 1), (SintelRaw(), 1), (KittiMultiview(), 1), (FlyingThings3D(directions=['past']), -1)):
        sample = source[len(source) - 1]
        flow = sign * torch.tensor(SHIFT, dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, *SIZE)
        inside = np.s_[..., 5:-5, 5:-5]
        assert (warp(sample.image_2[None], flow)[0] - sample.image_1)[inside].abs().max() < 1e-5, source


def test_multiview_leaves_out_the_evaluated_frames(data):
    miniature.kitti_multiview(data, scenes=2)
    multiview = KittiMultiview()
    assert len(multiview) == 2 * 2 * 15
    numbers = {int(k[-6:-4]) for p in multiview.pairs for k in (p.frame_1, p.frame_2)}
    assert numbers == set(range(21)) - {9, 10, 11, 12}


def test_spring_names(data):
    for number in (1, 2, 3):
        save(data / f'Spring/train/0001/frame_left/frame_left_{number:04}.png', frame(number))
    assert len(Spring()) == 2 and Spring()[0].flow is None
    touch(data / 'Spring', 'train/0001/flow_FW_left/flow_FW_left_0001.flo5')
    assert len(Spring(truth_only=True)) == 1
    with pytest.raises((ImportError, ValueError), match='flow_FW_left_0001.flo5'):
        Spring()[0]


def test_spring_flow(tmp_path):
    h5py = pytest.importorskip('h5py')
    fine = np.arange(2 * 12 * 16, dtype=np.float32).reshape(12, 16, 2)
    fine[4, 6] = np.nan
    with h5py.File(tmp_path / 'a.flo5', 'w') as file:
        file['flow'] = fine
    flow, known = read_flo5(tmp_path / 'a.flo5')
    assert flow.shape == (2, 6, 8) and not known[2, 3] and known.sum() == 47 and np.array_equal(flow[:, 1, 1], fine[2, 2])


def test_bad_flo5(tmp_path):
    h5py = pytest.importorskip('h5py')
    with pytest.raises(FileNotFoundError, match='none.flo5: no such file'):
        read_flo5(tmp_path / 'none.flo5')
    path = tmp_path / 'a.flo5'
    for content in (np.zeros((4, 6, 3)), np.zeros((4, 6)), None):
        with h5py.File(path, 'w') as file:
            file.create_group('flow') if content is None else file.create_dataset('flow', data=content)
        with pytest.raises(ValueError, match="a.flo5: expected one of Spring's .flo5 files"):
            read_flo5(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="a.flo5: expected one of Spring's .flo5 files"):
        read_flo5(path)


# Whole and in part

def names(pattern, *ranges):
    return [pattern.format(*n) for n in np.ndindex(*ranges)]


@pytest.mark.parametrize('year,scenes,folder,maps', [(2012, 194, 'colored_0', ()), (2015, 200, 'image_2', ('obj_map',))])
def test_a_complete_kitti_passes_and_one_missing_file_is_named(data, year, scenes, folder, maps):
    root = data / f'KITTI-{year}/training'
    touch(root, *(f'{folder}/{i:06}_{k}.png' for i in range(scenes) for k in (10, 11)), *(f'{m}/{i:06}_10.png' for i in range(scenes) for m in ('flow_occ', 'flow_noc', *maps)))
    assert len(Kitti(year, complete=True)) == scenes
    (root / 'flow_noc/000007_10.png').unlink()
    assert len(Kitti(year)) == scenes
    with pytest.raises(FileNotFoundError, match=rf'expected {scenes} pairs, found {scenes}; 1 files are missing: training/flow_noc/000007_10.png: get data_'):
        Kitti(year, complete=True)


def test_a_complete_multiview_has_5910_pairs(data):
    for folder, scenes in (('KITTI-2012/training/colored_0', 194), ('KITTI-2015/training/image_2', 200)):
        touch(data / folder, *(f'{i:06}_{k:02}.png' for i in range(scenes) for k in range(21)))
    multiview = KittiMultiview(complete=True)
    assert len(multiview) == 5910
    (data / 'KITTI-2015/training/image_2/000199_20.png').unlink()
    with pytest.raises(FileNotFoundError, match='expected 5,910 pairs, found 5,909; 1 files are missing: KITTI-2015/training/image_2/000199_20.png: get data_stereo_flow_multiview.zip'):
        KittiMultiview().check()


def test_a_complete_sintel_has_1041_pairs_a_pass(data):
    lengths = {'ambush_2': 21, 'ambush_4': 33, 'ambush_6': 20, 'market_6': 40}
    rest = 'alley_1 alley_2 ambush_5 ambush_7 bamboo_1 bamboo_2 bandage_1 bandage_2 cave_2 cave_4 market_2 market_5 mountain_1 shaman_2 shaman_3 sleeping_1 sleeping_2 temple_2 temple_3'
    for scene, count in (lengths | dict.fromkeys(rest.split(), 50)).items():
        touch(data / 'Sintel/training', *(f'{k}/{scene}/frame_{n + 1:04}.png' for k in ('clean', 'final') for n in range(count)))
        touch(data / 'Sintel/training', *(f'{k}/{scene}/frame_{n + 1:04}.{s}' for k, s in (('flow', 'flo'), ('occlusions', 'png'), ('invalid', 'png')) for n in range(count - 1)))
    assert [len(Sintel(p, complete=True)) for p in ('clean', 'final')] == [1041, 1041]
    assert len(Sintel(complete=True, truth_only=True)) == 2082 and len(Sintel(fold='A', complete=True)) + len(Sintel(fold='B', complete=True)) == 2082
    for n in range(10, 17):
        (data / f'Sintel/training/final/cave_4/frame_{n:04}.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'expected 2,082 pairs, found 2,074; 7 files are missing: .*frame_0014.png, \.\.\.: get MPI-Sintel-complete.zip from http'):
        Sintel(complete=True)
    assert len(Sintel('final')) == 1033


@pytest.mark.parametrize('name', sorted(set(REGISTRY) - {'scenes', 'stereo', 'frames', 'clips'}))
def test_an_empty_folder_says_what_and_where(data, name):
    with pytest.raises(FileNotFoundError, match='expected .*found none: get .*http'):
        dataset(name)
    with pytest.raises(FileNotFoundError, match='http'):
        dataset(name, root=data / 'nowhere')


def test_clips_say_how_to_make_them(data):
    with pytest.raises(FileNotFoundError, match='clips: expected SHOT/NNNNN.png, found none: get films, .*`unsamflow run clips`'):
        dataset('clips')


@pytest.mark.parametrize('name', ['things', 'hd1k', 'spring', 'chairs'])
def test_counts_alone_are_checked_where_names_are_not_known(data, name):
    miniature.things(data), miniature.hd1k(data), miniature.chairs(data)
    save(data / 'Spring/train/0001/frame_left/frame_left_0001.png', frame(1)), save(data / 'Spring/train/0001/frame_left/frame_left_0002.png', frame(2))
    stated = {'things': '80,604', 'hd1k': '1,047', 'spring': '4,963', 'chairs': '22,872'}[name]
    with pytest.raises(FileNotFoundError, match=f'expected {stated} pairs, found [1-9]'):
        dataset(name, complete=True)


def test_truth_only(data):
    miniature.sintel(data)
    (data / 'Sintel/training/flow/alley_1/frame_0002.flo').unlink()
    assert (len(Sintel()), len(Sintel(truth_only=True))) == (8, 6)


def test_wrong_options(data):
    miniature.kitti(data, 2015)
    for wrong, message in (
            (lambda: Kitti(2013), '2013'), (lambda: Kitti(2015, pictures='grey'), "'grey'"), (lambda: Kitti(2015, 'validation'), 'validation'),
            (lambda: Sintel('albedo'), 'albedo'), (lambda: Sintel(split='test', fold='A'), "'test', 'A'"), (lambda: KittiMultiview('val'), 'val'),
            (lambda: FlyingChairs('test'), 'test'), (lambda: FlyingThings3D(directions=['sideways']), 'sideways'), (lambda: FlyingThings3D('albedo'), 'albedo'),
            (lambda: FlyingThings3D(camera='middle'), 'middle'), (lambda: FlyingThings3D(directions=[]), r'\[\]'), (lambda: Sintel([]), r'\[\]'), (lambda: Spring('val'), 'val'),
            (lambda: dataset('kitti'), 'kitti-2015'), (lambda: setting('dta'), 'dta')):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_presets_name_registered_data_sets():
    from unsamflow.training import PRESETS, load_config
    for name in {path.stem for path in PRESETS.glob('*.yaml')} - {'variants'}:
        for phase in load_config(name).phases:
            assert all(source.name in REGISTRY for source in phase.data), name


@pytest.mark.parametrize('preset', ['kitti', 'kitti-aug-hg-mf', 'sintel', 'sintel-aug'])
def test_presets_name_the_masks_and_lists_that_preparation_makes(preset):
    from unsamflow.training import load_config
    sources = [source for phase in load_config(preset).phases for source in phase.data]
    for source in sources:
        assert source.options == {'masks': source.name} | ({'list_file': source.name} if source.name.endswith('-raw') else {})
    assert len(sources) == 2


def test_one_camera_or_direction_by_its_name(data):
    miniature.things(data), miniature.kitti_raw(data)
    assert FlyingThings3D(directions='past').pairs == FlyingThings3D(directions=['past']).pairs
    assert KittiRaw(cameras='image_03').pairs == KittiRaw(cameras=['image_03']).pairs


# Lists

def test_a_list_restricts_and_is_strict(data, tmp_path):
    root = miniature.kitti_raw(data)
    pairs = [p[1:] for p in KittiRaw().pairs][::3]
    write_list(tmp_path / 'list.txt', pairs, 'every third pair\nof two drives')
    assert read_list(tmp_path / 'list.txt') == pairs and [p[1:] for p in KittiRaw(list_file=tmp_path / 'list.txt').pairs] == pairs
    (root / pairs[1][0]).unlink()
    with pytest.raises(FileNotFoundError, match=f'1 frames of .*list.txt are missing: {pairs[1][0]}$'):
        KittiRaw(list_file=tmp_path / 'list.txt')


def test_a_list_has_its_hash_and_is_found_by_name(data, tmp_path, monkeypatch):
    monkeypatch.setenv('UNSAMFLOW_LISTS', str(tmp_path / 'lists'))
    (tmp_path / 'lists').mkdir()
    miniature.kitti_raw(data)
    path, chosen = tmp_path / 'lists/few.txt', [p[1:] for p in KittiRaw().pairs[:2]]
    sha256 = write_list(path, chosen, 'two pairs')
    assert (tmp_path / 'lists/few.txt.sha256').read_text() == f'{sha256}  few.txt\n' and sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [p[1:] for p in KittiRaw(list_file='few').pairs] == chosen == [p[1:] for p in KittiRaw(list_file=path).pairs]
    path.write_text(path.read_text().replace('two', 'three'))
    with pytest.raises(ValueError, match=f'few.txt: expected sha256 {sha256}, found .*the list was changed'):
        KittiRaw(list_file='few')
    (tmp_path / 'lists/few.txt.sha256').unlink()  # on purpose, then
    assert len(KittiRaw(list_file='few')) == 2
    assert write_list(path, chosen, 'two pairs') == sha256
    with pytest.raises(FileNotFoundError, match='fewer: no such list, nor .*fewer.txt: make it with `unsamflow lists'):
        KittiRaw(list_file='fewer')


def test_films_in_one_folder(data):
    for number in range(3):
        save(data / f'Sintel-raw/{number:08}.png', frame(number))
    assert [p.name for p in SintelRaw().pairs] == ['00000000', '00000001'] and SintelRaw().frame('00000002.png').image.shape == (3, 48, 80)


def test_list_with_spaces_blank_lines_and_bad_lines(tmp_path):
    path = tmp_path / 'list.txt'
    path.write_text('# comment\n\na.png b.png\nmy shot/1.png\tmy shot/2.png\n')
    assert read_list(path) == [('a.png', 'b.png'), ('my shot/1.png', 'my shot/2.png')]
    path.write_text('a.png b.png\na.png b.png c.png\n')
    with pytest.raises(ValueError, match='list.txt, line 2: expected two frames'):
        read_list(path)
    with pytest.raises(FileNotFoundError, match='no such list'):
        read_list(tmp_path / 'other.txt')
    path.write_bytes('\ufeffä.png\tb.png\n'.encode())  # as Windows editors save it
    assert read_list(path) == [('ä.png', 'b.png')]
    path.write_bytes('ä.png\tb.png\n'.encode('latin-1'))
    with pytest.raises(ValueError, match='list.txt: expected a list in UTF-8, found other bytes at position 0'):
        read_list(path)
    path.write_text('# nothing\n')
    with pytest.raises(ValueError, match='expected pairs'):
        SintelRaw(tmp_path, path)


def test_consecutive_numbers():
    keys = ['s1/000000_10.png', 's1/000000_11.png', 's1/000001_12.png', 's2/9.png', 's2/10.png', 's2/10.jpg', 'readme.png', 'a2b.png', 'a3b.png']
    assert consecutive(keys) == [('s1/000000_10.png', 's1/000000_11.png'), ('s2/9.png', 's2/10.png'), ('a2b.png', 'a3b.png')]
    assert consecutive(keys, step=-1)[0] == ('s1/000000_11.png', 's1/000000_10.png')


def test_hidden_files_are_no_frames(data):
    miniature.sintel_raw(data, shots=1)
    touch(data / 'Sintel-raw', 'shot_000/._00000.png', 'shot_000/._00001.png', 'shot_000/00003.txt')
    assert [p.name for p in SintelRaw().pairs] == ['shot_000/00000', 'shot_000/00001']


# Real frames

ZERO = {
    'kitti-2012': ({'pictures': 'grey'}, {'000027_10': 37.22, '000045_10': 11.66, '000151_10': 47.49, '000157_10': 2.84}),
    'kitti-2015': ({}, {'000010_10': 9.03}),
    'middlebury': ({}, {'Dimetrodon': 2.06, 'Grove2': 3.09, 'RubberWhale': 1.26, 'Urban2': 8.39})}


@pytest.mark.parametrize('name', ZERO)
def test_zero_flow_on_real_frames(real_data, name):
    options, expected = ZERO[name]
    try:
        source = dataset(name, truth_only=True, **options)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    found = {row['name']: row['epe'] for row in evaluate(zero_flow, source, progress=False)['rows']}
    assert {k: round(found[k], 2) for k in expected} == expected


@pytest.mark.parametrize('name', ['sintel', 'chairs', 'kitti-2012', 'kitti-2015', 'middlebury'])
def test_the_true_flow_of_real_frames_brings_them_together(real_data, name):
    try:
        source = dataset(name, truth_only=True)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    for i in range(min(len(source), 3)):
        s = source[i]
        known = s.valid if s.non_occluded is None else s.valid & s.non_occluded
        before, after = ((s.image_1 - x)[:, known[0]].abs().mean() for x in (s.image_2, warp(s.image_2[None], s.flow[None])[0]))
        assert after < before, s.name


def leaves(flow):
    "Pixels whose target lies outside the frame, (H, W) bool."
    height, width = flow.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    x, y = x + flow[0], y + flow[1]
    return (x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height - 0.5)


@pytest.mark.parametrize('name', ['kitti-2012', 'kitti-2015'])
def test_occluded_to_kitti_is_what_leaves_the_frame(real_data, name):
    try:
        source = dataset(name, truth_only=True)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    for s in source:
        occluded = (s.valid & ~s.non_occluded)[0]
        assert occluded.any() and (leaves(s.flow) & occluded).sum() > 0.98 * occluded.sum(), s.name


def test_sintels_masks_are_not_what_leaves_the_frame(real_data):
    try:
        source = Sintel('clean', truth_only=True)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    sample = next((s for s in source if s.name == 'clean/alley_1/frame_0002'), None)
    if sample is None:
        pytest.skip('alley_1, frame 2: not there')
    out = leaves(sample.flow)
    assert [int(x.sum()) for x in (out, out & ~sample.non_occluded[0], out & ~sample.valid[0])] == [2684, 55, 0]


def test_seeking_in_a_real_video_is_exact(real_data):
    path = real_data / 'video/solidWhiteRight.mp4'
    if not path.is_file():
        pytest.skip(f'{path}: not there')
    video, capture, wanted = Video(path), cv2.VideoCapture(str(path)), {}
    order = [150, 20, 69, 71, 75, 0]
    for i in range(max(order) + 1):
        found, picture = capture.read()
        if i in order:
            wanted[i] = picture[..., ::-1]
    for i in order:
        assert np.array_equal(video[i], wanted[i]), i


# Folders and videos

@pytest.fixture
def clip(tmp_path):
    "A video of 40 frames, and its frames decoded in order."
    path = tmp_path / 'clip.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, SIZE[::-1])
    for i in range(40):
        writer.write(frame(i)[..., ::-1])
    writer.release()
    capture = cv2.VideoCapture(str(path))
    return path, [capture.read()[1][..., ::-1] for _ in range(40)]


@pytest.mark.parametrize('order', [range(40), range(39, -1, -1), np.random.default_rng(0).integers(0, 40, 30)])
@pytest.mark.parametrize('keep,near', [(1, 0), (2, 32), (5, 3)])
def test_video_is_exact_in_any_order(clip, order, keep, near):
    path, frames = clip
    video = Video(path, keep, near)
    assert len(video) == count_frames(path) == 40
    for i in order:
        assert np.array_equal(video[i], frames[i]), i
        assert len(video._recent) <= keep


def test_a_decoder_that_seeks_wrongly_is_found_out(clip, monkeypatch):
    path, frames = clip

    class Sloppy:
        "Lands three frames late."
        def __init__(self, path):
            self.capture = real(path)

        def set(self, what, value):
            return self.capture.set(what, value + 3)

        def __getattr__(self, name):
            return getattr(self.capture, name)

    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, 'VideoCapture', Sloppy)
    assert np.array_equal(read_video_frame(path, 5)[0].mul(255).round(), frames[8][..., 0])  # the plain way believes it
    video = Video(path, near=0)
    for i in (20, 5, 36, 39, 0):
        assert np.array_equal(video[i], frames[i])


def test_videos_without_time_stamps_are_read_in_order(clip, monkeypatch):
    path, frames = clip

    class Timeless:
        "Lands three frames late, and all its frames claim the same time."
        def __init__(self, path):
            self.capture = real(path)

        def set(self, what, value):
            return self.capture.set(what, value + 3)

        def get(self, what):
            return 0.0

        def __getattr__(self, name):
            return getattr(self.capture, name)

    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, 'VideoCapture', Timeless)
    video = Video(path, near=0)
    assert all(np.array_equal(video[i], frames[i]) for i in (30, 4, 35))


def test_pairs_of_a_video_decode_each_frame_once(clip, monkeypatch):
    path, frames = clip
    for step in (1, 3):
        source = Frames(path, step=step)
        monkeypatch.setattr(Video, '_seek', lambda self, index: pytest.fail(f'sought {index}'))
        for i in range(len(source)):
            sample = source.sample(i, swap=bool(i % 2))
            first, second = (sample.image_2, sample.image_1) if i % 2 else (sample.image_1, sample.image_2)
            assert np.array_equal(first[0].mul(255).round(), frames[i][..., 0]) and np.array_equal(second[0].mul(255).round(), frames[i + step][..., 0])
        monkeypatch.undo()


def test_video_in_worker_processes(clip):
    path, frames = clip
    source = Frames(path)
    source[7]  # open here, before the workers fork
    for i, batch in enumerate(DataLoader(source, batch_size=1, num_workers=2, collate_fn=collate)):
        assert np.array_equal(batch.image_1[0, 0].mul(255).round(), frames[i][..., 0])
    assert torch.equal(pickle.loads(pickle.dumps(source))[20].image_2, source[20].image_2)


def test_bad_videos(tmp_path, capfd):
    (tmp_path / 'text.mp4').write_text('hello')
    (tmp_path / 'empty.mp4').touch()
    for name in ('text', 'empty'):
        with pytest.raises(ValueError, match=f'{name}.mp4: expected a video, found no frame'):
            Frames(tmp_path / f'{name}.mp4')
    with pytest.raises(FileNotFoundError, match='none.mp4: no such file'):
        Frames(tmp_path / 'none.mp4')


def test_one_frame_is_no_pair_and_frames_end(clip, tmp_path):
    path, _ = clip
    with pytest.raises(ValueError, match='expected more than 40 frames for pairs 40 apart, found 40'):
        Frames(path, step=40)
    with pytest.raises(IndexError, match='from 0 to 39, found 40'):
        Video(path)[40]
    with pytest.raises(ValueError, match='frame 99 cannot be decoded'):
        read_video_frame(path, 99)


def test_truncated_video(clip, tmp_path):
    path, _ = clip
    content = path.read_bytes()
    (tmp_path / 'cut.mp4').write_bytes(content[:len(content) // 2])  # the index stood at the end
    with pytest.raises(ValueError, match='cut.mp4: expected a video'):
        Frames(tmp_path / 'cut.mp4')


def test_a_video_that_breaks_off_after_counting(clip):
    path, _ = clip
    video = Video(path)
    video.times.append(video.times[-1] + 100)  # as if there had been one more
    with pytest.raises(ValueError, match='frame 40 cannot be decoded'):
        video[40]


@pytest.mark.parametrize('step', [0, -1])
def test_a_step_leads_forwards(clip, step):
    with pytest.raises(ValueError, match=f'step: expected 1 or more .* found {step}'):
        Frames(clip[0], step=step)


def test_bad_folders(tmp_path):
    (tmp_path / 'notes.txt').write_text('hello')
    with pytest.raises(ValueError, match='no pictures found'):
        Frames(tmp_path)
    save(tmp_path / '1.png', frame(1)), save(tmp_path / '.2.png', frame(2))
    with pytest.raises(ValueError, match='expected more than 1 frames'):  # hidden files do not count
        Frames(tmp_path)


def test_frames_of_different_sizes(tmp_path):
    save(tmp_path / '1.png', frame(1)), save(tmp_path / '2.png', frame(1, (40, 80)))
    with pytest.raises(ValueError, match=r'differ in size: 1.png is \(3, 48, 80\), 2.png is \(3, 40, 80\)'):
        Frames(tmp_path)[0]


def test_flow_of_another_size(data):
    miniature.chairs(data)
    save(data / 'FlyingChairs/data/00001_flow.flo', miniature.flow((40, 80)))
    with pytest.raises(ValueError, match=r'00001: the true flow is \(2, 40, 80\), but data/00001_img1.ppm is \(3, 48, 80\)'):
        FlyingChairs()[0]


@pytest.mark.parametrize('folder,field', [('occlusions', 'non_occluded'), ('invalid', 'valid')])
def test_sintel_masks_of_another_size(data, folder, field):
    miniature.sintel(data)
    assert getattr(Sintel('clean')[0], field).shape == (1, *SIZE)
    save(data / f'Sintel/training/{folder}/alley_1/frame_0001.png', miniature.part((24, 40)))
    with pytest.raises(ValueError, match=rf'{folder}/alley_1/frame_0001.png: expected a map of \(48, 80\), as its flow is, found \(24, 40\)'):
        Sintel('clean')[0]


def test_kitti_truth_of_another_size(data):
    miniature.kitti(data, 2015)
    save(data / 'KITTI-2015/training/obj_map/000000_10.png', miniature.part((24, 40)).astype(np.uint8))
    with pytest.raises(ValueError, match=r'obj_map/000000_10.png: expected a map of \(48, 80\)'):
        Kitti(2015)[0]
    save(data / 'KITTI-2015/training/flow_noc/000001_10.png', miniature.flow((24, 40)))
    with pytest.raises(ValueError, match=r'000001_10: the true non_occluded is \(1, 24, 40\), but training/image_2/000001_10.png is'):
        Kitti(2015)[1]


def test_truncated_picture_and_flow(data):
    miniature.kitti(data, 2015)
    for name in ('image_2/000000_11.png', 'flow_occ/000001_10.png', 'obj_map/000001_10.png'):
        path = data / 'KITTI-2015/training' / name
        whole = path.read_bytes()
        path.write_bytes(whole[:len(whole) // 2])
        with pytest.raises(ValueError, match=os.path.basename(name)):
            Kitti(2015)[int(name[-8])]
        path.write_bytes(whole)


def test_nan_in_a_picture():
    class Broken(Pairs):
        def picture(self, key):
            from unsamflow.files import as_image
            return as_image(np.full((3, 8, 8), np.nan, np.float32))

    with pytest.raises(ValueError, match='nan'):
        Broken([Pair('a', '1', '2')])[0]


def test_bad_pfm(tmp_path):
    path = tmp_path / 'a.pfm'
    miniature.write_pfm(path, miniature.flow())
    whole = path.read_bytes()
    with pytest.raises(FileNotFoundError, match='b.pfm: no such file'):
        read_pfm(tmp_path / 'b.pfm')
    for content in (whole[:50], whole[:-4], b'', b'Pf\n2 2\n-1.0\n' + bytes(16)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='a.pfm: expected a .pfm file'):
            read_pfm(path)
    field = miniature.flow()
    field[0, 3, 4] = np.nan
    miniature.write_pfm(path, field)
    flow, known = read_pfm(path)
    assert not known[3, 4] and known.sum() == known.size - 1 and flow[0, 3, 4] == 0


# Masks

def test_masks_by_folder_store_or_generator(data, tmp_path, monkeypatch):
    monkeypatch.setenv('UNSAMFLOW_MASKS', str(tmp_path / 'masks'))
    root, generator = miniature.sintel(data), RegionMasks()
    store = MaskStore(tmp_path / 'masks/sintel')
    keys = {k for p in Sintel('clean').pairs for k in (p.frame_1, p.frame_2)}
    store.build(generator, {k: root / k for k in keys}, progress=False)
    samples = [Sintel('clean', masks=m)[0] for m in ('sintel', str(tmp_path / 'masks/sintel'), store, generator)]
    assert samples[0].segments_1.max() > 0 and all(torch.equal(s.segments_1, samples[0].segments_1) for s in samples)
    with pytest.raises(FileNotFoundError, match='expected a mask store'):
        Sintel('clean', masks='sintle')
    with pytest.raises(KeyError, match='final/alley_1/frame_0001.png'):
        Sintel('final', masks='sintel')[0]


# Training stream and cache

def test_every_reader_can_be_pickled_and_loaded_by_workers(data):
    miniature.kitti(data, 2012), miniature.kitti(data, 2015), miniature.kitti_multiview(data), miniature.kitti_raw(data), miniature.sintel(data)
    miniature.sintel_raw(data), miniature.chairs(data), miniature.things(data), miniature.hd1k(data), miniature.middlebury(data)
    (data / 'Sintel-raw').rename(data / 'clips'), miniature.sintel_raw(data)
    for name in sorted(set(REGISTRY) - {'scenes', 'stereo', 'frames', 'spring'}):
        source = dataset(name)
        again = pickle.loads(pickle.dumps(source))
        assert again.pairs == source.pairs and torch.equal(again[0].image_1, source[0].image_1)
    mixed = Mixture([dataset('kitti-raw'), dataset('sintel')], [1, 2])
    batches = list(DataLoader(TrainingViews(mixed, (32, 64), length=6), 2, num_workers=2, collate_fn=collate))
    assert [b.image_1.shape for b in batches] == [(2, 3, 32, 64)] * 3


def test_stream_does_not_depend_on_workers_or_start():
    views = TrainingViews(ScenePairs(5, height=64, width=96), (64, 64), fit='crop', seed=1)
    alone = [views[n] for n in range(4, 10)]
    loaded = list(DataLoader(views, 1, sampler=range(4, 10), num_workers=2, collate_fn=collate))
    assert all(torch.equal(a.image_1, b.image_1[0]) and torch.equal(a.segments_2, b.segments_2[0]) for a, b in zip(alone, loaded))


def test_stream_ends_where_it_says():
    views = TrainingViews(ScenePairs(2, height=64, width=96), (64, 64), fit='crop', length=3)
    assert len([s for s in views]) == 3
    with pytest.raises(IndexError, match='from 0 to 2, found -1'):
        views[-1]


def test_a_scene_counted_from_the_end_keeps_its_truth():
    scenes = ScenePairs(3, height=64, width=96, offset=10)
    last, same = scenes[-1], scenes[2]
    assert last.name == same.name and torch.equal(last.flow, same.flow) and torch.equal(last.non_occluded, same.non_occluded)


def test_resizing_to_its_own_size_changes_nothing():
    sample = ScenePairs(1, height=64, width=96)[0]
    same = resize_sample(sample, (64, 96))
    assert torch.equal(same.image_1, sample.image_1) and torch.equal(same.key_objects, sample.key_objects) and same.flow is None
    there = resize_sample(sample, (128, 192)).segments_1
    assert torch.equal(there[..., ::2, ::2], sample.segments_1)


def test_cache_equals_preparation(data, tmp_path):
    miniature.kitti_raw(data)
    source = KittiRaw(masks=RegionMasks())
    cached = CachedPairs(source, tmp_path / 'cache', (32, 64))
    for key in cached.keys():
        cached.prepare(key)
    assert len(list((tmp_path / 'cache').rglob('*.npz'))) == len(cached.keys()) == 16
    direct, stored = resize_sample(source[2], (32, 64)), cached[2]
    assert (direct.image_1 - stored.image_1).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(direct.segments_2, stored.segments_2) and torch.equal(direct.key_objects, stored.key_objects)
    assert stored.image_1.is_contiguous() and stored.segments_1.dtype == torch.int64


def test_cache_refuses_another_size_masks_and_damage(data, tmp_path):
    miniature.sintel_raw(data)
    plain = CachedPairs(SintelRaw(), tmp_path, (32, 64))
    plain[0]
    with pytest.raises(ValueError, match=r'expected a frame of \(16, 64\), found \(32, 64\)'):
        CachedPairs(SintelRaw(), tmp_path, (16, 64))[0]
    with pytest.raises(ValueError, match='prepared without masks'):
        CachedPairs(SintelRaw(masks=RegionMasks()), tmp_path, (32, 64))[0]
    path = plain.path(plain.pairs[0].frame_1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match='damaged file'):
        read_frame(path)


def test_more_than_255_segments_survive_the_cache(tmp_path):
    class Many(Pairs):
        def picture(self, key):
            return torch.rand(3, 20, 30)

        def frame(self, key):
            return super().frame(key)._replace(segments=torch.arange(600).view(1, 20, 30), key_objects=torch.zeros(0, 1, 20, 30, dtype=torch.bool))

    stored = CachedPairs(Many([Pair('a', '1', '2')]), tmp_path)[0]
    assert torch.equal(stored.segments_1, torch.arange(600).view(1, 20, 30)) and stored.key_objects.shape == (0, 1, 20, 30)


def test_mixture_weights():
    with pytest.raises(ValueError, match='one for each of 1 sources, found 2'):
        Mixture([ScenePairs(1)], [1, 2])
