"Inference: files in, files out, through the command line; and what it says of bad ones."
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from miniature import kitti, sintel
from safetensors.torch import load_file, save_file
from torchvision import datasets as reference
from typer.testing import CliRunner

from unsamflow.datasets import Video, dataset
from unsamflow.evaluation import SINTEL_TEST, write_submission
from unsamflow.experiments import app
from unsamflow.files import as_bytes, write_image
from unsamflow.flow import flow_to_rgb, read_flow
from unsamflow.inference import ENLARGE, LONGEST, as_method, guess_kind, load_model, predict, predict_both, read_weights, video_writer, working_size
from unsamflow.masks import MaskStore, RegionMasks, make_record
from unsamflow.network import UnSAMFlow
from unsamflow.training import save_weights

run = CliRunner().invoke


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'weights' / 'random.safetensors'
    path.parent.mkdir()
    save_weights(UnSAMFlow(), path)
    return path


@pytest.fixture
def frames(tmp_path):
    folder, rng = tmp_path / 'frames', np.random.default_rng(0)
    folder.mkdir()
    texture = cv2.GaussianBlur(rng.random((80, 120, 3), np.float32), (0, 0), 2)
    for i in range(4):
        write_image(folder / f'f{i}.png', (np.roll(texture, 2 * i, 1) * 255).astype(np.uint8))
    return folder


def clip(frames, path):
    "The folder's frames as a video."
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 5, (120, 80))
    for picture in sorted(frames.iterdir()):
        writer.write(cv2.imread(str(picture)))
    writer.release()
    return path


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_pair_to_every_format(frames, weights, tmp_path, precision):
    out = tmp_path / 'out'
    result = run(app, ['predict', str(frames / 'f0.png'), str(frames / 'f1.png'), '-o', str(out), '--model', str(weights), '-f', 'flo', '-f', 'kitti', '-f', 'colour', '--occlusion', '--precision', precision])
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == ['f0.flo', 'f0_backward.flo', 'f0_backward_flow.png', 'f0_backward_kitti.png', 'f0_flow.png', 'f0_kitti.png', 'f0_occluded.png']
    expected = predict(load_model(weights), frames / 'f0.png', frames / 'f1.png', precision=precision)
    near = 1e-5 if precision == 'float32' else 0.05  # both directions in one batch round differently
    assert np.allclose(read_flow(out / 'f0.flo')[0], expected, atol=near)
    assert np.array_equal(expected, predict(load_model(weights), frames / 'f0.png', frames / 'f1.png')) is (precision == 'float32')
    assert np.allclose(read_flow(out / 'f0_kitti.png')[0], expected, atol=1 / 128 + near)
    assert cv2.imread(str(out / 'f0_flow.png')).shape == (80, 120, 3)


@pytest.mark.parametrize('as_video', [False, True])
def test_folder_or_video_to_files_and_a_video(frames, weights, tmp_path, as_video):
    source, out = clip(frames, tmp_path / 'clip.mp4') if as_video else frames, tmp_path / 'out'
    result = run(app, ['predict', str(source), '-o', str(out), '--model', str(weights), '-f', 'flo', '-f', 'mp4'])
    assert result.exit_code == 0, result.output
    assert len(list(out.glob('*.flo'))) == 3
    video = cv2.VideoCapture(str(out / 'flow.mp4'))
    assert sum(video.grab() for _ in range(10)) == 3


def test_the_fast_precision_is_a_little_off(frames):
    network = load_model()
    exact, fast = (predict(network, frames / 'f0.png', frames / 'f1.png', precision=p) for p in ('float32', 'bfloat16'))
    assert 0 < np.abs(exact - fast).mean() < 0.1
    with pytest.raises(ValueError, match="precision: expected 'auto', 'float32' or 'bfloat16', found 'half'"):
        predict(network, frames / 'f0.png', frames / 'f1.png', precision='half')


def test_arrays_and_tensors_of_any_kind_give_the_same_flow(frames):
    model = load_model()
    a, b = (cv2.imread(str(frames / f'f{i}.png'))[..., ::-1] for i in (0, 1))
    from_bytes = predict(model, a.copy(), b.copy())
    floats = [torch.from_numpy(x.copy()).permute(2, 0, 1) / 255 for x in (a, b)]
    for pair in ([a, b], floats, [x.double().numpy() for x in floats], [x.clone().requires_grad_() for x in floats]):
        assert np.allclose(from_bytes, predict(model, *pair), atol=1e-4)
    grey = [x[..., 1] for x in (a, b)]
    assert np.array_equal(predict(model, *grey), predict(model, *[np.stack([x] * 3, 2) for x in grey]))


@pytest.mark.parametrize('size', [(1, 1), (7, 200), (64, 64), (65, 63)])
def test_any_size(size):
    images = torch.rand(2, 3, *size)
    flow = predict(UnSAMFlow().eval(), *images)
    assert flow.shape == (2, *size) and np.isfinite(flow).all()


def test_working_size_is_a_multiple_of_64_near_the_own():
    for size in ((436, 1024), (375, 1242), (30, 5000)):
        assert all(side % 64 == 0 and abs(side - own) <= 64 for side, own in zip(working_size(size, longest=0), size))


@pytest.mark.parametrize('size', [(64, 64), (128, 192), (388, 584), (436, 1024), (375, 1242), (2160, 3840), (1920, 1080)])
def test_the_measured_rule_enlarges_a_little_and_has_a_limit(size):
    found = working_size(size)
    assert all(side % 64 == 0 for side in found) and max(found) <= 64 * -(-LONGEST // 64)
    assert max(found) - 32 <= ENLARGE * max(size)
    ratio = (found[0] / found[1]) / (size[0] / size[1])
    assert 0.75 < ratio < 4 / 3
    assert max(working_size(size, longest=128)) <= 128


def test_predict_follows_the_rule():
    model, images = UnSAMFlow().eval(), torch.rand(2, 3, 100, 150)
    assert np.array_equal(predict(model, *images), predict(model, *images, size=working_size((100, 150))))
    assert np.array_equal(as_method(model, longest=64)(*images), predict(model, *images, size=(64, 64)))


@pytest.mark.parametrize('arguments, words', [
    (['nowhere.png', 'f1.png'], ['nowhere.png']),
    (['empty.png', 'f1.png'], ['empty.png']),
    (['truncated.png', 'f1.png'], ['truncated.png']),
    (['text.png', 'f1.png'], ['text.png']),
    (['f0.png', 'small.png'], ['(3, 80, 120)', '(3, 40, 60)']),
    (['text.mp4'], ['text.mp4', 'video']),
    (['f0.png', 'f1.png', 'f2.png'], ['two pictures', '3']),
])
def test_bad_input_is_one_clear_line(frames, weights, tmp_path, arguments, words):
    good = (frames / 'f0.png').read_bytes()
    (frames / 'empty.png').write_bytes(b'')
    (frames / 'truncated.png').write_bytes(good[:len(good) // 2])
    (frames / 'text.png').write_text('no picture')
    (frames / 'text.mp4').write_text('no video')
    cv2.imwrite(str(frames / 'small.png'), cv2.imread(str(frames / 'f0.png'))[:40, :60])
    result = run(app, ['predict', *[str(frames / a) for a in arguments], '-o', str(tmp_path / 'out'), '--model', str(weights)])
    assert result.exit_code == 1
    assert result.stderr.startswith('unsamflow: ') and len(result.stderr.strip().splitlines()) == 1
    assert all(word in result.stderr for word in words), result.stderr


def test_a_device_that_is_not_there_is_one_line(frames, weights, tmp_path):
    result = run(app, ['predict', str(frames / 'f0.png'), str(frames / 'f1.png'), '-o', str(tmp_path / 'out'), '--model', str(weights), '--device', 'abacus'])
    assert result.exit_code == 1 and 'abacus' in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_given_segments_are_used_and_checked():
    torch.manual_seed(0)
    model, images = UnSAMFlow(mask_features='concat').eval(), torch.rand(2, 3, 64, 64)
    halves = (torch.arange(64) > 31).long().expand(1, 64, 64)
    one = torch.zeros_like(halves)
    assert not np.allclose(predict(model, *images, segments=(halves, halves)), predict(model, *images, segments=(one, one)), atol=1e-4)
    with pytest.raises(ValueError, match=r'segments: expected two of \(1, 64, 64\).*\(1, 64, 32\)'):
        predict(model, *images, segments=(halves, halves[..., :32]))


def test_output_folder_that_cannot_be_written(frames, weights, tmp_path):
    (tmp_path / 'file').write_text('')
    result = run(app, ['predict', str(frames / 'f0.png'), str(frames / 'f1.png'), '-o', str(tmp_path / 'file' / 'out'), '--model', str(weights)])
    assert result.exit_code == 1 and 'file' in result.stderr


def test_weights_of_another_network(tmp_path):
    save_weights(UnSAMFlow(mask_features='concat'), tmp_path / 'w.safetensors', mask_features='')
    assert read_weights(tmp_path / 'w.safetensors')[1]['mask_features'] == 'concat'  # a caller's word does not count
    save_file(load_file(tmp_path / 'w.safetensors'), tmp_path / 'w.safetensors', {'mask_features': ''})  # the header lies
    with pytest.raises(ValueError, match=r'w.safetensors: weights of another network'):
        load_model(tmp_path / 'w.safetensors')


def test_weights_in_half_precision(tmp_path):
    model = UnSAMFlow().eval()
    save_weights(model, tmp_path / 'half.safetensors', torch.float16)
    images = torch.rand(2, 3, 64, 64)
    assert np.allclose(predict(load_model(tmp_path / 'half.safetensors'), *images), predict(model, *images), atol=1e-2)
    assert (tmp_path / 'half.safetensors').stat().st_size < 5.1e6


# Submissions

def submit(*arguments):
    return run(app, ['submit', *map(str, arguments)])


@pytest.mark.parametrize('year, images, archived', [(2012, 'colored_0', '{}_10.png'), (2015, 'image_2', 'flow/{}_10.png')])
def test_kitti_from_pictures_to_archive(tmp_path, weights, year, images, archived):
    "OpenCV reads from the archive what the network predicts: three channels of 16 bits, blue = valid, red = u, green = v."
    root, out = kitti(tmp_path / 'data', year, split='testing'), tmp_path / 'out'
    done = submit(f'kitti{year}', '--data', root, '--partial', '-o', out, '--model', weights)
    assert done.exit_code == 0 and done.stdout.strip() == f'wrote {out}.zip', done.output
    archive, model = zipfile.ZipFile(f'{out}.zip'), load_model(weights)
    assert sorted(archive.namelist()) == [archived.format(f'{i:06}') for i in (0, 1)]
    for i in (0, 1):
        codes = cv2.imdecode(np.frombuffer(archive.read(archived.format(f'{i:06}')), np.uint8), cv2.IMREAD_UNCHANGED)
        expected = predict(model, *[root / f'testing/{images}/{i:06}_{k}.png' for k in (10, 11)])
        assert codes.dtype == np.uint16 and codes.shape == (48, 80, 3) and (codes[..., 0] == 1).all()
        assert np.abs((codes[..., :0:-1].astype(float) - 2**15) / 64 - expected.transpose(1, 2, 0)).max() <= 0.5 / 64 + 1e-4
    assert submit('--check', out, f'kitti{year}', '--data', root, '--partial').exit_code == 0


def test_sintel_from_pictures_to_folders(tmp_path, weights):
    "torchvision reads the submission where its ground truth would lie; a scene's last frame has no flow."
    root, out = sintel(tmp_path / 'data', ('wall', 'tiger'), split='test'), tmp_path / 'out'
    done = submit('sintel', '--data', root, '--partial', '-o', out, '--model', weights, '--longest', 64)
    assert done.exit_code == 0, done.output
    names = [f'{part}/{scene}/frame{i:04}.flo' for part in ('clean', 'final') for scene in ('tiger', 'wall') for i in (1, 2)]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob('*.flo')) == names == sorted(zipfile.ZipFile(f'{out}.zip').namelist())
    (root / 'test').rename(tmp_path / 'training')
    (tmp_path / 'Sintel').mkdir()
    (tmp_path / 'training').rename(tmp_path / 'Sintel/training')
    (out / 'clean').rename(tmp_path / 'Sintel/training/flow')
    read = reference.Sintel(tmp_path, pass_name='clean')
    model = as_method(load_model(weights), 64)
    for first, second, flow in read:
        expected = model(*[torch.from_numpy(np.array(x)).permute(2, 0, 1).float() / 255 for x in (first, second)])
        assert np.allclose(flow, expected, atol=1e-4)
    assert len(read) == 4


def test_submissions_see_the_masks_of_a_store(tmp_path):
    "Halves as segments, which `RegionMasks` would not find."
    root = kitti(tmp_path / 'data', 2015, scenes=1, split='testing')
    save_weights(UnSAMFlow(mask_features='concat'), tmp_path / 'mf.safetensors')
    half, store = np.arange(80) > np.full((48, 1), 40), MaskStore(tmp_path / 'store', {'generator': 'halves'})
    for number in (10, 11):
        store[f'testing/image_2/000000_{number}.png'] = [make_record(half), make_record(~half)]
    done = submit('kitti2015', '--data', root, '--partial', '-o', tmp_path / 'out', '--model', tmp_path / 'mf.safetensors', '--masks', store.folder)
    assert done.exit_code == 0, done.output
    sample = dataset('kitti-2015', split='testing', root=root, masks=store.folder)[0]
    expected = predict(load_model(tmp_path / 'mf.safetensors'), sample.image_1, sample.image_2, segments=(sample.segments_1, sample.segments_2))
    assert np.abs(read_flow(tmp_path / 'out/flow/000000_10.png')[0] - expected).max() <= 0.5 / 64 + 1e-4
    assert len(sample.segments_1.unique()) == 2


def test_an_incomplete_test_set_is_said_before_anything_is_written(tmp_path, weights):
    root = kitti(tmp_path / 'data', 2015, split='testing')
    done = submit('kitti2015', '--data', root, '-o', tmp_path / 'out', '--model', weights)
    assert done.exit_code == 1 and len(done.stderr.strip().splitlines()) == 1
    assert 'expected 200 pairs, found 2; 396 files are missing' in done.stderr and 'data_scene_flow.zip' in done.stderr
    assert not (tmp_path / 'out').exists()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "A machine without any test pictures."
    monkeypatch.setenv('UNSAMFLOW_DATA', str(tmp_path / 'none'))
    return tmp_path


def full_size(kind, folder, count=2):
    size = (436, 1024) if kind == 'sintel' else (375, 1242)
    names = [f'clean/{SINTEL_TEST[0]}/frame_{i + 1:04}' if kind == 'sintel' else f'{i:06}' for i in range(count)]
    write_submission(kind, folder, {name: np.zeros((2, *size), np.float32) for name in names})


@pytest.mark.parametrize('kind, folder, said', [
    ('sintel', 'mine', 'clean: expected 552 files in 12 scenes, found 2'),
    ('kitti2015', 'kitti2015', 'missing files (198 of 200)'),
    ('kitti2012', 'for-2012', 'missing files (193 of 195)'),
])
def test_check_tells_the_server_by_the_folder(elsewhere, kind, folder, said):
    full_size(kind, elsewhere / folder)
    done = submit('--check', elsewhere / folder)
    assert done.exit_code == 1 and said in done.stdout, done.output
    assert re.match(rf'.*: {kind}, by official names and sizes: \d+ problems', done.stdout)


def test_check_of_a_complete_folder_goes_by_the_count(elsewhere):
    full_size('kitti2015', elsewhere / 'mine', 1)
    for i in range(1, 200):
        (elsewhere / f'mine/flow/{i:06}_10.png').hardlink_to(elsewhere / 'mine/flow/000000_10.png')
    done = submit('--check', elsewhere / 'mine')
    assert done.exit_code == 0 and done.stdout.strip().endswith('mine: kitti2015, by official names and sizes: good'), done.output


@pytest.mark.parametrize('arguments, words', [
    (['--check', 'mine'], ['2 pictures', 'say which server']),
    (['--check', 'nowhere', 'sintel'], ['nowhere: expected the folder of a submission, found none']),
    ([], ['kitti2012', 'sintel', 'found neither']),
    (['--check', 'mine', 'kitti2015', '--data', 'nowhere'], ['nowhere', 'data_scene_flow.zip']),
])
def test_bad_submissions_are_one_clear_line(elsewhere, monkeypatch, arguments, words):
    monkeypatch.chdir(elsewhere)
    full_size('kitti2012', elsewhere / 'mine')
    done = submit(*arguments)
    assert done.exit_code == 1 and done.stderr.startswith('unsamflow: ') and len(done.stderr.strip().splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr


# Signs, colours, and what must not pass in silence

def test_known_motion_comes_out_in_every_form(frames, tmp_path):
    "The texture moves 2 px to the right from frame to frame: order of the frames, sign, unit; the files hold what `predict_both` says."
    out = tmp_path / 'out'
    done = run(app, ['predict', str(frames), '-o', str(out), '-f', 'flo', '-f', 'colour', '--occlusion', '--precision', 'float32', '--max-length', '4'])
    assert done.exit_code == 0, done.output
    for i in range(3):
        for ending, sign in (('', 1), ('_backward', -1)):
            u, v = np.median(read_flow(out / f'f{i}{ending}.flo')[0], axis=(1, 2))
            assert abs(u - 2 * sign) < 0.3 and abs(v) < 0.3
        expected = predict_both(load_model(), frames / f'f{i}.png', frames / f'f{i + 1}.png')
        assert np.array_equal(read_flow(out / f'f{i}.flo')[0], expected.flow)
        assert np.array_equal(as_bytes(out / f'f{i}_flow.png'), flow_to_rgb(expected.flow, 4))
        assert np.array_equal(as_bytes(out / f'f{i}_occluded.png')[..., 0] > 0, expected.occluded)


def test_a_video_keeps_its_colours(tmp_path):
    with video_writer(tmp_path / 'a.mp4', (64, 96)) as add:
        for _ in range(3):
            add(np.full((64, 96, 3), (200, 90, 20), np.uint8))
    assert np.abs(Video(tmp_path / 'a.mp4')[1].astype(int) - (200, 90, 20)).max() < 12


@pytest.mark.parametrize('size, seen', [((81, 121), (80, 120)), ((3, 3), (2, 2))])
def test_videos_of_odd_sizes(tmp_path, size, seen):
    "The codec wants even sides: OpenCV leaves out the last row or column."
    with video_writer(tmp_path / 'a.mp4', size) as add:
        add(np.zeros((*size, 3), np.uint8))
    assert Video(tmp_path / 'a.mp4')[0].shape == (*seen, 3)


def test_pictures_that_a_video_cannot_hold(tmp_path):
    with pytest.raises(OSError, match=r'a.mp4: cannot be written: a video of 1 x 1 pixels'):
        with video_writer(tmp_path / 'a.mp4', (1, 1)):
            pass
    for picture in (np.zeros((32, 64, 3), np.uint8), np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.uint8)):
        with pytest.raises(ValueError, match=r'a.mp4: expected pictures of uint8 \(64, 64, 3\)'):
            with video_writer(tmp_path / 'a.mp4', (64, 64)) as add:
                add(picture)
    assert not list(tmp_path.iterdir())


FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from unsamflow.inference import video_writer
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
pictures = np.random.default_rng(0).integers(0, 256, (30, 240, 320, 3), dtype=np.uint8)
try:
    with video_writer(Path(sys.argv[1]), (240, 320)) as add:
        for picture in pictures: add(picture)
except OSError as error: print(error); sys.exit(7)
"""


@pytest.mark.skipif(os.name != 'posix', reason='resource limits')
def test_a_video_on_a_full_disk_is_an_error_and_no_file(tmp_path):
    done = subprocess.run([sys.executable, '-c', FULL, str(tmp_path / 'a.mp4')], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert 'a.mp4: cannot be written' in done.stdout and 'of 30 pictures' in done.stdout and not list(tmp_path.iterdir())


def line_of(*arguments):
    "The one line that a command must end with, and nothing after the progress bar on it."
    done = run(app, ['predict', *map(str, arguments)])
    assert done.exit_code == 1 and done.exception.__class__ is SystemExit, done.exception
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('unsamflow: '), done.stderr
    return last


def test_a_folder_names_the_frame_that_is_wrong(frames, weights, tmp_path):
    cv2.imwrite(str(frames / 'f3.png'), cv2.imread(str(frames / 'f3.png'))[:40])
    said = line_of(frames, '-o', tmp_path / 'out', '--model', weights, '-f', 'mp4')
    assert f'{frames / "f2.png"} and {frames / "f3.png"}: frames of different sizes' in said and '(3, 40, 120)' in said
    (frames / 'f2.png').write_bytes((frames / 'f2.png').read_bytes()[:3000])
    assert f'{frames / "f2.png"}: expected a whole picture' in line_of(frames, '-o', tmp_path / 'out', '--model', weights, '-f', 'mp4')
    assert not list((tmp_path / 'out').iterdir())  # no half video


def test_frames_of_one_name_and_folders_that_would_mix(frames, weights, tmp_path):
    common = ['--model', weights]
    assert 'found one picture' in line_of(frames / 'f0.png', *common)
    before = sorted(frames.iterdir())
    for asked in (['-f', 'colour'], ['-f', 'kitti'], ['-f', 'flo', '--occlusion']):
        assert 'another folder than that of the frames' in line_of(frames, '-o', frames, *asked, *common)
    assert sorted(frames.iterdir()) == before
    clip(frames, tmp_path / 'flow.mp4')
    assert 'would replace' in line_of(tmp_path / 'flow.mp4', '-o', tmp_path, '-f', 'mp4', *common)
    assert run(app, ['predict', str(frames), '-o', str(frames), '-f', 'flo', '--model', str(weights)]).exit_code == 0  # harmless
    write_image(frames / 'f1.jpg', frames / 'f1.png')
    assert '2 called f1' in line_of(frames, '-o', tmp_path / 'out', *common)


@pytest.mark.parametrize('longest', [-1, -64])
def test_a_negative_limit_is_refused(longest):
    with pytest.raises(ValueError, match=f'longest: expected 0 or more pixels, found {longest}'):
        working_size((100, 100), longest)


def test_weights_that_cannot_be_right_are_named(tmp_path):
    tensors, path = UnSAMFlow().state_dict(), tmp_path / 'w.safetensors'
    save_file(tensors, path, {'mask_features': 'nonsense'})
    with pytest.raises(ValueError, match=r"w.safetensors: .*mask_features.*found 'nonsense'"):
        load_model(path)
    tensors['reduce.0.0.weight'][0] = torch.nan
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r'w.safetensors: expected finite weights, .* 1 tensors, first reduce.0.0.weight'):
        load_model(path)
    for content in (b'', b'\x00' * 7):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='w.safetensors: expected safetensors weights'):
            load_model(path)


@pytest.mark.parametrize('size', [(1, 1), (1, 200), (7, 200), (64, 64)])
def test_masks_on_the_way_for_any_size(size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    flow = predict(UnSAMFlow(mask_features='concat').eval(), *images)
    assert flow.shape == (2, *size) and np.isfinite(flow).all()


def test_a_frame_is_segmented_once(frames, tmp_path, monkeypatch):
    "Masks take longer than the network; a frame is second and then first. The flow is that of the pairs one by one."
    model, seen = UnSAMFlow(mask_features='concat').eval(), []
    save_weights(model, tmp_path / 'mf.safetensors')
    generate = RegionMasks.__call__
    expected = predict(model, frames / 'f1.png', frames / 'f2.png')
    monkeypatch.setattr(RegionMasks, '__call__', lambda self, image: (seen.append(1), generate(self, image))[1])
    done = run(app, ['predict', str(frames), '-o', str(tmp_path / 'out'), '-f', 'flo', '--model', str(tmp_path / 'mf.safetensors'), '--precision', 'float32'])
    assert done.exit_code == 0, done.output
    assert len(seen) == 4 and np.array_equal(read_flow(tmp_path / 'out/f1.flo')[0], expected)


def test_masks_that_a_store_lacks_are_said_before_anything_is_predicted(tmp_path):
    root = kitti(tmp_path / 'data', 2015, split='testing')
    save_weights(UnSAMFlow(mask_features='concat'), tmp_path / 'mf.safetensors')
    store = MaskStore(tmp_path / 'store', {'generator': 'one'})
    for name in ('000000_10', '000000_11', '000001_10'):
        store[f'testing/image_2/{name}.png'] = [make_record(np.ones((48, 80), bool))]
    done = submit('kitti2015', '--data', root, '--partial', '-o', tmp_path / 'out', '--model', tmp_path / 'mf.safetensors', '--masks', store.folder)
    assert done.exit_code == 1 and 'masks of 4 pictures, found none of 1, the first testing/image_2/000001_11.png' in done.stderr, done.output
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name, count, kind', [('kitti2015', 195, 'kitti2015'), ('for-2012', 200, 'kitti2012'), ('mine', 195, 'kitti2012'), ('2012-and-2015', 200, 'kitti2015')])
def test_the_name_of_a_folder_comes_before_its_count(tmp_path, monkeypatch, name, count, kind):
    (tmp_path / name / 'flow').mkdir(parents=True)
    for i in range(count):
        (tmp_path / name / f'flow/{i:06}_10.png').touch()
    assert guess_kind(tmp_path / name) == kind
    monkeypatch.chdir(tmp_path / name)
    assert guess_kind(Path('.')) == kind


def test_a_submission_folder_that_is_not_there(elsewhere):
    done = submit('--check', elsewhere / 'nowhere')
    assert done.exit_code == 1 and 'nowhere: expected the folder of a submission, found none' in done.stderr
