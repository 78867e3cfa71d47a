"The preparation pipeline: shares, executors, interruptions, lists by their rule, archives, and the whole chain on miniature trees."

import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import miniature
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from unsamflow.datasets import CachedPairs, Frames, KittiMultiview, KittiRaw, Pair, Pairs, SintelRaw, dataset, find_list, read_frame, read_list, setting, write_list
from unsamflow.experiments import template_parameters
from unsamflow.files import write_image
from unsamflow.masks import MaskStore, RegionMasks, full_segmentation, key_objects, make_record
from unsamflow.preparation import (
    ARCHIVES, RULES, Done, Rule, app, build_list, carry_out, chain_of, check_archives, check_space, choose_pairs, compare_with_paper, describe_rule, frame_keys, look_alike, make_frames, masked,
    model_steps, open_executor, open_generator, opened_source, plan, preparation_steps, prepare_cache, prepare_masks, read_strip, shard, share, sources_of, benchmarks_of, thumbnail, unpack, without_pairs)
from unsamflow.training import load_config, open_source

spawn = multiprocessing.get_context('spawn')
SQUARE = {'name': 'test_preparation:Square'}


class Square:
    "A mask generator: the left half, logged to the file that the environment names."
    settings = {'generator': 'Square'}

    def __call__(self, image):
        if log := os.environ.get('CALLS'):
            with open(log, 'a') as file:
                file.write('.')
        time.sleep(float(os.environ.get('DELAY', 0)))
        mask = np.zeros(image.shape[:2], bool)
        mask[:, :image.shape[1] // 2] = True
        return [make_record(mask)]


@pytest.fixture
def places(tmp_path, monkeypatch):
    "Empty folders for data, masks, cache and lists; the working folder is there too."
    for name in ('data', 'masks', 'cache', 'lists'):
        monkeypatch.setenv(f'UNSAMFLOW_{name.upper()}', str(tmp_path / name))
    monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder, count, size=(48, 80)):
    "A folder of frames."
    for i in range(count):
        miniature.save(folder / f'{i:04}.png', miniature.frame(i, size))
    return Frames(folder)


def calls(places):
    return (places / 'calls').stat().st_size if (places / 'calls').exists() else 0


# Work, shared out

def double(items):
    return Done(made=len(items), bytes=sum(items), seconds=0.01)


def test_everything_is_done_once_whatever_the_executor(tmp_path):
    from distributed import Client, LocalCluster
    items = list(range(101))
    with ThreadPoolExecutor(3) as threads, LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster, open_executor(scheduler=cluster.scheduler_address) as (dask, workers):
        assert workers == 2
        for executor in (None, threads, dask):
            assert share(double, items, executor, 7, progress=False)[:5] == (101, 0, {}, pytest.approx(0.15), sum(items))
    assert share(double, [], None, progress=False) == Done()
    log = tmp_path / 'log.jsonl'
    share(double, items, None, 7, log, progress=False)
    last = json.loads(log.read_text().splitlines()[-1])
    assert last['done'] == last['made'] == 101 and last['per_second'] > 0


def failing(items):
    if 5 in items:
        raise OSError(28, 'No space left on device')
    return Done(len(items))


def test_an_error_stops_what_is_left():
    with pytest.raises(OSError, match='No space'):
        share(failing, list(range(100)), None, 1, progress=False)


def test_shards_are_a_partition():
    items = list('abcdefghijk')
    assert sorted(x for i in (1, 2, 3) for x in shard(items, f'{i}/3')) == items and shard(items) == items
    for wrong in ('0/3', '4/3', '3', 'a/b', '1/0', '-1/2'):
        with pytest.raises(ValueError, match='shard: expected i/n'):
            shard(items, wrong)


def test_worker_processes_end_with_their_parent(tmp_path):
    script = 'import os, time\nfrom unsamflow.preparation import open_executor\nif __name__ == "__main__":\n    with open_executor(1 + 1) as (pool, n):\n        print(n, pool.submit(os.getpid).result(), flush=True)\n        time.sleep(60)\n'
    (tmp_path / 'pool.py').write_text(script)
    parent = subprocess.Popen([sys.executable, tmp_path / 'pool.py'], stdout=subprocess.PIPE, text=True)
    count, worker = map(int, parent.stdout.readline().split())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert count == 2 and worker != parent.pid
    for _ in range(100):
        try:
            os.kill(worker, 0)
            state = Path(f'/proc/{worker}/stat').read_text().split()[2] if Path(f'/proc/{worker}/stat').exists() else 'X'
            if state in 'ZX':
                break
        except (ProcessLookupError, FileNotFoundError):
            break
        time.sleep(0.1)
    else:
        pytest.fail(f'worker {worker} outlived its parent')


def test_too_small_a_disk_is_said_before_the_work(tmp_path, monkeypatch, capfd):
    seen = []

    def costly(items):
        seen.extend(items)
        return Done(len(items), bytes=10**9 * len(items), seconds=36.0 * len(items))

    monkeypatch.setattr('shutil.disk_usage', lambda _: shutil._ntuple_diskusage(10**12, 0, 500 * 10**9))
    with pytest.raises(OSError, match=r'expected 992 GB of free space, found 500 GB'):
        carry_out(costly, range(1000), tmp_path / 'not/yet/there', label='masks')
    assert len(seen) == len(set(seen)) == 8 and max(seen) > 800  # a few, from everywhere
    assert carry_out(costly, range(100), tmp_path).made == 100
    with pytest.raises(OSError):
        check_space(tmp_path, 501 * 10**9)


# Masks

def test_masks_are_made_once_and_a_bad_picture_is_reported(places):
    frames = pictures(places / 'clip', 20)
    (places / 'clip/0007.png').write_bytes((places / 'clip/0007.png').read_bytes()[:300])
    (places / 'clip/0011.png').write_bytes(b'')
    done = prepare_masks(frames, places / 'masks/clip', SQUARE)
    assert (done.made, done.found, sorted(done.failed)) == (18, 0, ['0007.png', '0011.png'])
    assert '0007.png: expected a whole picture' in done.failed['0007.png'] and done.bytes == sum(f.stat().st_size for f in places.glob('masks/**/*.json.gz'))
    assert calls(places) == 18
    write_image(places / 'clip/0007.png', miniature.frame(7))
    again = prepare_masks(frames, places / 'masks/clip', SQUARE)
    assert (again.made, again.found, list(again.failed)) == (1, 18, ['0011.png']) and calls(places) == 19
    with pytest.raises(ValueError, match='holds masks of other settings'):
        prepare_masks(Frames(places / 'clip', step=2), places / 'masks/clip', {'name': 'regions'})


def test_masks_on_processes_and_on_dask_are_the_same(places):
    from distributed import LocalCluster
    frames = pictures(places / 'clip', 9)
    spec = {'name': 'regions', 'scales': [150]}
    with open_executor(2) as (pool, workers):
        assert workers == 2 and prepare_masks(frames, places / 'masks/processes', spec, pool, workers, '1/2').made == 5
        assert prepare_masks(frames, places / 'masks/processes', spec, pool, workers, '2/2').made == 4
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster, open_executor(scheduler=cluster.scheduler_address) as (dask, workers):
        assert prepare_masks(frames, places / 'masks/dask', spec, dask, workers).made == 9
    stores = [MaskStore(places / 'masks' / name) for name in ('processes', 'dask')]
    for key in frame_keys(frames):
        assert stores[0][key] == stores[1][key] == RegionMasks(scales=(150,))(places / 'clip' / key)


def test_generators_by_name():
    assert open_generator({'name': 'regions', 'pixels': 5000}).settings['pixels'] == 5000
    from test_masks import LOOSE, tiny_sam
    sam = open_generator({'name': 'sam', 'model': 'tiny', 'builder': 'test_masks:tiny_sam', 'device': 'cpu', **LOOSE})
    assert sam.settings['model'] == 'tiny' and sam(miniature.frame(1, (40, 60)))
    for name in ('sams', 'no_such_package:thing', 'unsamflow.masks:no_such_thing'):
        with pytest.raises(ValueError, match="generator: expected one of .'regions', 'sam'. or package.module:name, found"):
            open_generator({'name': name})
    with pytest.raises(TypeError):
        open_generator({'name': 'regions', 'scale': 3})


# Prepared frames

def cached(places, count=20, size=(64, 96)):
    frames = pictures(places / 'clip', count)
    prepare_masks(frames, places / 'masks/clip', SQUARE)
    return CachedPairs(Frames(places / 'clip', masks='clip'), places / 'cache/clip', size)


def test_prepared_frames_hold_what_the_masks_say(places):
    pairs = cached(places)
    done = prepare_cache(pairs)
    assert (done.made, done.found, done.failed) == (20, 0, {}) and done.bytes == sum(f.stat().st_size for f in places.glob('cache/**/*.npz'))
    for key in pairs.keys():
        frame = read_frame(pairs.path(key))
        labels = cv2.resize(full_segmentation(pairs.source.masks[key], (48, 80)).astype(np.int32), (96, 64), interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(frame.segments[0].numpy(), labels) and frame.segments.max() == 1
    before = {f: f.stat().st_mtime_ns for f in places.glob('cache/**/*.npz')}
    assert prepare_cache(pairs)[:2] == (0, 20) and before == {f: f.stat().st_mtime_ns for f in before}
    pairs.path('0003.png').unlink()
    assert prepare_cache(pairs)[:2] == (1, 19)


def test_frames_without_masks_or_pictures_are_reported(places):
    pairs = cached(places)
    pairs.source.masks.path('0004.png').unlink()
    (places / 'clip/0005.png').write_bytes(b'no picture')
    done = prepare_cache(pairs)
    assert (done.made, sorted(done.failed)) == (18, ['0004.png', '0005.png']) and 'has no masks of 0004.png' in done.failed['0004.png']


def test_a_cache_belongs_to_its_masks(places):
    pairs = cached(places, 4)
    prepare_cache(pairs)
    shutil.rmtree(places / 'masks/clip')
    prepare_masks(Frames(places / 'clip'), places / 'masks/clip', {'name': 'regions'})
    with pytest.raises(ValueError, match='expected frames prepared with the masks .*RegionMasks.*found .*Square.*delete the folder'):
        prepare_cache(CachedPairs(Frames(places / 'clip', masks='clip'), places / 'cache/clip', (64, 96)))


def slow_cache(pairs, which, delay):
    original = CachedPairs._make

    def slowly(self, key):
        time.sleep(delay)
        with open(os.environ['CALLS'] + '-cache', 'a') as file:
            file.write(f'{key}\n')
        original(self, key)

    CachedPairs._make = slowly
    prepare_cache(pairs, which=which)


def test_two_shards_a_reader_and_a_killed_writer(places):
    "Real processes: two shares and a third process that does everything, while this one reads; one is killed, another takes over."
    pairs = cached(places, 60)
    writers = [spawn.Process(target=slow_cache, args=(pairs, which, 0.01)) for which in ('1/2', '2/2', '1/1')]
    for writer in writers:
        writer.start()
    while len(list(places.glob('cache/clip/[0-9]*.npz'))) < 10:
        time.sleep(0.005)
    os.kill(writers[0].pid, signal.SIGKILL)
    while any(writer.is_alive() for writer in writers):
        for path in places.glob('cache/clip/[0-9]*.npz'):
            assert read_frame(path).segments.max() == 1  # whatever is there is whole
    assert [writer.exitcode for writer in writers] == [-signal.SIGKILL, 0, 0]
    assert len(list(places.glob('cache/clip/[0-9]*.npz'))) == 60
    made = Path(os.environ['CALLS'] + '-cache').read_text().split()
    assert set(made) == set(pairs.keys()) and len(made) <= 61  # the killed process's last frame may have been made once more


def test_a_source_is_light_to_send(places):
    import pickle
    pairs = cached(places, 40)
    light = pickle.dumps(without_pairs(pairs))
    assert len(light) < 2000 and len(pickle.dumps(pairs)) > len(light)
    assert pickle.loads(light).source.frame('0001.png').segments.max() == 1 and len(pairs) == 39


# Lists

DRIVE = '2011_09_26/2011_09_26_drive_{:04}_sync'


def noise(seed, size=(48, 80)):
    return miniature.frame(0, size, seed)


def raw_tree(places, drives=3, frames=30):
    "Drives whose frames are all different, in both cameras."
    for i in range(drives):
        for camera in (2, 3):
            for n in range(frames):
                miniature.save(places / 'data/KITTI-raw' / DRIVE.format(i) / f'image_0{camera}/data/{n:010}.png', noise(1000 * i + 100 * camera + n))


def benchmark(places, year, seed, split='training'):
    for n in (10, 11):
        miniature.save(places / f'data/KITTI-{year}/{split}/{"image_2" if year == 2015 else "colored_0"}/000000_{n}.png', noise(seed + n - 10))


def test_the_rule_of_kitti_raw(places):
    raw_tree(places)
    benchmark(places, 2015, 1000 * 1 + 200 + 4)  # two frames of drive 1
    benchmark(places, 2012, 1000 * 2 + 200 + 15, 'testing')  # frames 15 and 16 of drive 2
    listed = build_list('kitti-raw', RULES['kitti-raw']._replace(around=3))
    expected = {(i, camera, n) for i in (0, 2) for camera in (2, 3) for n in range(29)} - {(2, camera, n) for camera in (2, 3) for n in range(11, 20)}  # no frame 12 to 19
    assert {(int(a.split('_drive_')[1][:4]), int(a[-21]), int(a[-8:-4])) for a, b in listed.pairs} == expected and len(listed.pairs) == len(expected)
    assert listed.counts == {'kept': len(expected), 'scene of a test picture': 58, 'near a test picture': 18}
    assert listed.scenes['pictures'] == [DRIVE.format(1)] and listed.failed == {}
    text = describe_rule('kitti-raw', RULES['kitti-raw'], listed)
    assert 'drive_0001' in text and 'pairs kept: 98' in text


def test_mapping_static_and_unreadable_frames(places):
    raw_tree(places, 3, 12)
    benchmark(places, 2015, 7_000_000), benchmark(places, 2012, 8_000_000)
    folder = places / 'data/KITTI-raw' / DRIVE.format(0) / 'image_02/data'
    shutil.copy(folder / '0000000003.png', folder / '0000000004.png')  # nothing moves
    (folder / '0000000008.png').write_bytes((folder / '0000000008.png').read_bytes()[:500])
    (places / 'data/KITTI-2015/devkit/mapping').mkdir(parents=True)
    (places / 'data/KITTI-2015/devkit/mapping/train_mapping.txt').write_text('\n2011_09_26 2011_09_26_drive_0002_sync 0000000010\n\n')
    listed = build_list('kitti-raw')
    assert listed.counts == {'kept': 42, 'unreadable': 2, 'scene of a test picture': 22} and listed.scenes['mapping'] == [DRIVE.format(2)]
    assert list(listed.failed) == [f'{DRIVE.format(0)}/image_02/data/0000000008.png'] and 'expected a whole picture' in list(listed.failed.values())[0]
    still = build_list('kitti-raw', RULES['kitti-raw']._replace(static=0.5))
    assert still.counts['static'] == 1 and set(listed.pairs) - set(still.pairs) == {tuple(f'{DRIVE.format(0)}/image_02/data/{n:010}.png' for n in (3, 4))}


def test_thumbnails_are_made_again_only_where_files_changed(places):
    raw_tree(places, 1, 5)
    folder, keep = f'{DRIVE.format(0)}/image_02/data', places / 'keep'
    root = places / 'data/KITTI-raw'
    first, found = read_strip(root, folder, keep)
    assert not found and read_strip(root, folder, keep)[1]
    assert np.abs(first.small[2].astype(int) - cv2.resize(cv2.imread(str(root / first.keys[2]), 0), (48, 16), interpolation=cv2.INTER_AREA)).mean() < 1
    miniature.save(root / folder / '0000000002.png', noise(99, (48, 90)))
    changed, found = read_strip(root, folder, keep)
    assert not found and not np.array_equal(changed.small[2], first.small[2]) and np.array_equal(changed.small[3], first.small[3])


def test_films_are_cut_and_test_scenes_left_out(places):
    "Three shots in one folder; the second shows a test scene, rendered anew: other size, brighter, noisy."
    rng, shots = np.random.default_rng(0), [noise(seed, (44, 104)) for seed in (1, 2, 3)]
    for n in range(30):
        picture = np.roll(shots[n // 10], n % 10, 1).clip(0, 255 - 60 * (n // 10 == 0))
        miniature.save(places / f'data/Sintel-raw/{n:08}.png', np.uint8(picture * (0.3 + 0.35 * (n // 10))))
    scene = cv2.resize(np.roll(shots[1], 4, 1), (208, 88)) * 0.7 + rng.normal(0, 6, (88, 208, 3))
    miniature.save(places / 'data/Sintel/test/final/wall/frame_0001.png', scene.clip(0, 255).astype(np.uint8))
    listed = build_list('sintel-raw', RULES['sintel-raw']._replace(cut=15))
    assert [int(a[:-4]) for a, b in listed.pairs] == [*range(9), *range(20, 29)]
    assert listed.counts == {'kept': 18, 'scene of a test picture': 11}
    assert build_list('sintel-raw', RULES['sintel-raw']._replace(cut=15, alike=1.01)).counts == {'kept': 27, 'cut': 2}
    write_list(places / 'list.txt', listed.pairs)
    assert len(SintelRaw(list_file=places / 'list.txt')) == 18


@pytest.mark.parametrize('seed', range(5))
def test_look_alike_is_correlation(seed):
    rng = np.random.default_rng(seed)
    small, known = rng.integers(0, 256, (40, 16, 48), np.uint8), rng.integers(0, 256, (7, 16, 48), np.uint8)
    small[3], small[9] = known[2] // 2, 77  # the same, darker; a picture without contrast
    by_numpy = np.array([[np.corrcoef(a.ravel(), b.ravel())[0, 1] if a.std() else 0 for b in known] for a in small])
    for alike in (0.05, 0.99):
        assert np.array_equal(look_alike(small, known, alike), by_numpy.max(1) >= alike)
    assert not look_alike(small, known[:0], 0.5).any()


def test_the_list_has_its_hash_and_states_the_difference(places):
    raw_tree(places, 2, 6)
    benchmark(places, 2015, 7_000_000), benchmark(places, 2012, 8_000_000)
    found = CliRunner().invoke(app, ['lists', 'kitti-raw', '--around', '2'])
    assert found.exit_code == 0, found.output
    path = places / 'lists/kitti-raw.txt'
    digest = subprocess.run(['sha256sum', '-c', 'kitti-raw.txt.sha256'], cwd=path.parent, capture_output=True, text=True)
    assert digest.returncode == 0 and (path.parent / 'kitti-raw.txt.sha256').read_text().split()[0] in found.output
    assert '20 pairs; the paper has 55,700: -55,680 (-100.0%)' in found.output
    assert len(KittiRaw(list_file='kitti-raw')) == 20 and find_list('kitti-raw') == path
    once = path.read_bytes()
    CliRunner().invoke(app, ['lists', 'kitti-raw', '--around', '2'])
    assert path.read_bytes() == once
    path.write_text(path.read_text().replace('0000000001.png', '0000000002.png', 1))
    with pytest.raises(ValueError, match='kitti-raw.txt: expected sha256 .*the list was changed'):
        KittiRaw(list_file='kitti-raw')


def test_errors_of_lists(places):
    for arguments, words in ((['kitty'], "expected one of ['kitti-raw', 'sintel-raw'], found 'kitty'"), (['kitti-raw'], 'raw_data.php'), (['sintel-raw'], 'media.xiph.org')):
        found = CliRunner().invoke(app, ['lists', *arguments])
        assert found.exit_code == 1 and words in found.output
    raw_tree(places, 1, 3)
    found = CliRunner().invoke(app, ['lists', 'kitti-raw'])
    assert found.exit_code == 1 and 'expected the pictures whose scenes the list leaves out, found none' in found.output
    with pytest.raises(FileNotFoundError, match='no such list.*unsamflow lists kitti-raw'):
        KittiRaw(list_file='kitti-raw')


# Archives

def pack(tree, path, prefix=''):
    "A zip file of a folder."
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, 'w') as archive:
        for file in sorted(p for p in tree.rglob('*') if p.is_file()):
            archive.write(file, prefix + file.relative_to(tree).as_posix())


def kitti_archives(places):
    "The published archives, miniature, with files in them that nobody needs."
    tree = places / 'tree'
    for year in (2012, 2015):
        for split in ('training', 'testing'):
            miniature.kitti(tree, year, 2, split)
    pack(tree / 'KITTI-2012', places / 'archives/data_stereo_flow.zip')
    pack(tree / 'KITTI-2015', places / 'archives/data_scene_flow.zip')
    multiview = places / 'multiview'
    miniature.kitti_multiview(multiview)
    pack(multiview / 'KITTI-2012', places / 'archives/data_stereo_flow_multiview.zip')
    pack(multiview / 'KITTI-2015', places / 'archives/data_scene_flow_multiview.zip')
    raw = miniature.kitti_raw(tree, 2, 5)
    for drive in sorted(raw.glob('*/*_sync')):
        miniature.touch(drive, 'oxts/data/0000000000.txt', 'image_00/data/0000000000.png')
        pack(drive, places / f'archives/{drive.name}.zip', f'{drive.parent.name}/{drive.name}/')
    shutil.rmtree(tree), shutil.rmtree(multiview)


def sintel_archives(places):
    tree = places / 'tree'
    miniature.sintel(tree, ('alley_1', 'alley_2'))
    miniature.sintel(tree, ('wall',), split='test')
    miniature.touch(tree / 'Sintel', 'bundler/bundler.exe')
    pack(tree / 'Sintel', places / 'archives/MPI-Sintel-complete.zip')
    pack(miniature.sintel_raw(tree, 2, 4), places / 'archives/Sintel-raw.zip')
    shutil.rmtree(tree)


def test_archives_are_unpacked_once_and_only_what_is_needed(places):
    kitti_archives(places)
    unpacked, rows, problems = check_archives('kitti', 'archives', partial_data=True)
    files = [p for p in (places / 'data').rglob('*') if p.is_file()]
    assert unpacked.made == len(files) and not [p for p in files if 'oxts' in p.parts or 'image_00' in p.parts]
    assert {row['data']: row['pairs'] for row in rows} == {'kitti-2012 training': 2, 'kitti-2012 testing': 2, 'kitti-2015 training': 2, 'kitti-2015 testing': 2, 'kitti-multiview': 30, 'kitti-raw': 16}
    assert np.array_equal(cv2.imread(str(places / 'data/KITTI-2015/training/image_2/000001_11.png'))[..., ::-1], miniature.frame(11, seed=1))
    files[3].write_bytes(b'cut off')
    files[5].unlink()
    assert check_archives('kitti', 'archives', True)[0][:2] == (2, len(files) + unpacked.found - 2)  # some frames are in two archives
    with pytest.raises(FileNotFoundError) as error:
        check_archives('kitti', 'archives')
    for words in ('expected 194 pairs, found 2', 'expected 5,910 pairs', 'data_scene_flow.zip', 'eval_stereo_flow.php', 'training/colored_0/000002_10.png'):
        assert words in str(error.value)


def test_bad_archives(places):
    with pytest.raises(FileNotFoundError) as error:
        check_archives('kitti', partial_data=True)
    assert str(error.value).count('get ') == 6 and 'raw_data.php' in str(error.value)
    with pytest.raises(ValueError, match="expected one of .'kitti', 'sintel'., found 'kiti'"):
        check_archives('kiti')
    sintel_archives(places)
    path = places / 'archives/MPI-Sintel-complete.zip'
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:2000] + bytes(100) + whole[2100:], b''):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='MPI-Sintel-complete.zip: expected a whole zip archive, found a damaged one'):
            check_archives('sintel', 'archives', True)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('../../training/clean/a/frame_0001.png', b'x')
    unpack(path, places / 'data/Sintel', ARCHIVES['sintel'][0].members)
    assert not list(places.rglob('frame_0001.png'))  # no path leads out


# Stages and plans

@pytest.mark.parametrize('preset', ['kitti', 'kitti-aug-hg', 'kitti-aug-hg-mf', 'sintel', 'sintel-aug-hg-mf', 'scenes-aug-hg-mf', 'demo'])
def test_stages_have_the_parameters_of_their_templates(preset):
    config = load_config(preset)
    steps = preparation_steps(preset, processes=2, scheduler='', which='2/8') + model_steps(preset)
    for step in steps:
        known = template_parameters(step.template)
        assert set(step.params) <= set(known), step
    names = [step.template for step in steps]
    if chain_of(config):
        assert names[:4] == ['check', 'lists', 'masks', 'cache'] and names.count('train') == {'kitti': 1, 'sintel': 3}[chain_of(config)] and names[-1] == 'submission'
        for source in sources_of(config):  # what training asks for is what the pipeline makes
            assert source.options['masks'] == source.name and source in masked(config)
        assert all(('masks' in source.options) == bool(config.mf) for source in benchmarks_of(config).values())
    else:
        assert names == ['cache', 'train', 'evaluate']


def test_each_fold_of_sintel_is_measured_on_the_other():
    steps = {(s.template, s.folder.as_posix()): s.params for s in model_steps('sintel')}
    for fold, other in (('A', 'B'), ('B', 'A')):
        trained = steps['train', f'results/sintel/seed-0/fold-{fold}'] if ('train', f'results/sintel/seed-0/fold-{fold}') in steps else steps['train', f'results/sintel/seed-0-fold-{fold}']
        config = load_config('sintel', **trained['overrides'])
        assert [s.options.get('fold') for s in sources_of(config)] == [None, fold]
        measured = next(p for (t, f), p in steps.items() if t == 'evaluate' and f'fold-{fold}' in f)
        assert {s['options']['fold'] for s in measured['datasets'].values()} == {other}
    assert [t for t, _ in steps].count('evaluate') == 2 and 'all' in next(p['weights'] for (t, _), p in steps.items() if t == 'submission')


def test_the_plan_says_stages_sizes_and_hours(places):
    found = CliRunner().invoke(app, ['reproduce', 'kitti-aug-hg-mf', '--plan', '--overrides', '{size: [64, 64], augmentation.crop: [64, 64]}'])
    assert found.exit_code == 0, found.output
    for words in ('| check', '| lists', 'masks of kitti-raw', '56,000', '| cache', '200,000', 'evaluate and submit', 'hours'):
        assert words in found.output
    assert not (places / 'results').exists()
    for arguments, words in ((['kitty'], 'preset: expected one of'), (['kitti', '--overrides', '{step: 3}'], 'step'), (['kitti', '--overrides', '3'], 'overrides: expected'), (['kitti', '--generator', '{name: sams}', '--partial'], 'not complete')):
        found = CliRunner().invoke(app, ['reproduce', *arguments])
        assert found.exit_code == 1 and words in found.output, found.output


# The whole chain

SMALL = '{steps: 3, batch: 1, size: [64, 64], workers: 0, log_every: 1, precision: float32, augmentation.crop: [64, 64], augmentation.cache_size: 4}'


@pytest.mark.parametrize('chain', ['kitti', 'sintel'])
def test_from_archives_to_submission(places, chain):
    "What `make reproduce-kitti` and `make reproduce-sintel` do, on miniature archives; a second start does nothing."
    {'kitti': kitti_archives, 'sintel': sintel_archives}[chain](places)
    arguments = [f'{chain}-aug-hg-mf', '--generator', 'regions', '--overrides', SMALL, '--train', '{validation_scenes: 1}', '--partial', '--archives', 'archives']
    command = [sys.executable, '-c', 'from unsamflow.preparation import app; app()', 'reproduce', *arguments]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]
    results = places / f'results/{chain}-aug-hg-mf'
    archives = sorted(p.name for p in results.rglob('submission/*.zip'))
    assert archives == {'kitti': ['kitti2012.zip', 'kitti2015.zip'], 'sintel': ['sintel.zip']}[chain]
    for path in results.rglob('submission/*.zip'):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None and len(archive.namelist()) == {'kitti': 2, 'sintel': 4}[chain]
    measured = json.loads(next(results.rglob('evaluate/metrics.json')).read_text())
    assert all(np.isfinite(found['ours']['epe']) for found in measured.values()) and len(measured) == 2
    masks, frames = len(list(places.glob('masks/**/*.json.gz'))), len(list(places.glob('cache/**/*.npz')))
    assert masks > 20 and frames > 20
    config = load_config(f'{chain}-aug-hg-mf', **yaml.safe_load(SMALL), cache=str(places / 'cache'))
    for source in masked(config):
        assert prepare_masks(opened_source(source), places / 'masks' / source.options['masks'], {'name': 'regions'}).made == 0
    for source in sources_of(config):  # training has found what was prepared for it
        assert prepare_cache(open_source(source, config)).made == 0
    assert masks == len(list(places.glob('masks/**/*.json.gz'))) and frames == len(list(places.glob('cache/**/*.npz')))


# The size of the real list

def test_at_scale(tmp_path):
    "A few hundred pairs, killed twice; UNSAMFLOW_SCALE=55700 makes it the whole (tests/scale.py writes results/scale)."
    pairs = int(os.environ.get('UNSAMFLOW_SCALE', 200))
    from scale import run
    found = run(tmp_path, pairs, 2 if pairs < 5000 else 5)
    assert found['made_again'] == found['wrong'] == 0 and len(found['killed_at']) >= 1
