"Contracts of unsamflow.files: atomic writing under real failures, and one clear error for every bad picture."
import errno
import os
import signal
import stat
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from unsamflow.files import as_bytes, as_image, atomic_path, package_data, read_image, write_image


@pytest.fixture
def picture():
    "Smooth enough for JPEG, with no two channels alike."
    y, x = np.mgrid[:40, :60]
    return np.stack([4 * x, 6 * y, 2 * (x + y)], axis=2).astype(np.uint8)


def only(folder):
    return sorted(file.name for file in folder.iterdir())


# atomic_path

def test_yields_a_path_beside_with_the_same_suffix(tmp_path):
    with atomic_path(tmp_path/'weights.v1.safetensors') as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == '.safetensors' and temporary.name.startswith('.')
        temporary.write_text('new')
        assert not (tmp_path/'weights.v1.safetensors').exists()
    assert only(tmp_path) == ['weights.v1.safetensors']


def test_bytes_are_synchronised_before_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda descriptor: (calls.append('fsync'), fsync(descriptor)))
    monkeypatch.setattr(os, 'replace', lambda *paths: (calls.append('replace'), replace(*paths)))
    with atomic_path(tmp_path/'a') as temporary: temporary.write_text('x')
    assert calls[:2] == ['fsync', 'replace']


@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), ValueError('no'), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path/'a.txt'
    path.write_text('old')
    with pytest.raises(type(error)):
        with atomic_path(path) as temporary:
            temporary.write_text('half')
            raise error
    assert path.read_text() == 'old' and only(tmp_path) == ['a.txt']


def test_errors_keep_their_kind_and_name_the_file(tmp_path):
    with pytest.raises(OSError, match='a.txt') as caught:
        with atomic_path(tmp_path/'a.txt'): raise OSError(errno.ENOSPC, 'No space left on device')
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError, match='nowhere'):
        with atomic_path(tmp_path/'nowhere'/'a.txt'): pass
    (tmp_path/'folder').mkdir()
    with pytest.raises(OSError, match='folder'):
        with atomic_path(tmp_path/'folder') as temporary: temporary.write_text('x')
    assert only(tmp_path) == ['folder']


def test_the_error_of_another_file_is_not_renamed(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        with atomic_path(tmp_path/'a.txt'): (tmp_path/'source.txt').read_text()
    assert str(caught.value.filename).endswith('source.txt')


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='the superuser may write anywhere')
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match='a.txt'):
            with atomic_path(tmp_path/'a.txt'): pass
    finally: tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name != 'posix', reason='umask')
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path/'a') as temporary: temporary.write_text('x')
    finally: os.umask(before)
    assert (tmp_path/'a').stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.name != 'posix', reason='umask')
def test_a_writer_that_renames_a_private_file_changes_nothing_about_that(tmp_path):
    private = tmp_path/'private'
    with atomic_path(tmp_path/'a') as temporary:
        private.write_text('x')
        private.chmod(0o600)
        os.replace(private, temporary)
    (tmp_path/'b').write_text('x')
    assert (tmp_path/'a').stat().st_mode == (tmp_path/'b').stat().st_mode


FULL = """
import resource, sys
import numpy as np
from unsamflow.files import write_image
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try: write_image(sys.argv[1], np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
except OSError as error: print(type(error).__name__, error); sys.exit(7)
"""


@pytest.mark.skipif(os.name != 'posix', reason='resource limits')
@pytest.mark.parametrize('suffix', ['.png', '.bmp'])
def test_a_real_limit_on_the_size_of_files(tmp_path, picture, suffix):
    path = tmp_path/f'a{suffix}'
    write_image(path, picture)
    old = path.read_bytes()
    run = subprocess.run([sys.executable, '-c', FULL, str(path)], capture_output=True, text=True)
    assert run.returncode == 7, run.stderr
    assert str(path) in run.stdout and 'too large' in run.stdout.lower()
    assert path.read_bytes() == old and only(tmp_path) == [path.name]


KILLED = """
import os, signal, sys
from unsamflow.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != 'posix', reason='signals')
def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path/'a.txt'
    path.write_text('old')
    run = subprocess.run([sys.executable, '-c', KILLED, str(path)])
    assert run.returncode == -signal.SIGKILL and path.read_text() == 'old'


@pytest.mark.skipif(os.name != 'posix', reason='signals')
@pytest.mark.parametrize('hours, left', [(1, 2), (25, 1)])
def test_what_a_killed_process_left_goes_after_a_day(tmp_path, hours, left):
    subprocess.run([sys.executable, '-c', KILLED, str(tmp_path/'a.txt')])
    stale, = tmp_path.iterdir()
    os.utime(stale, (time.time() - 3600 * hours,) * 2)
    subprocess.run([sys.executable, '-c', KILLED.replace('os.kill', 'print'), str(tmp_path/'a.txt')], check=True)
    assert len(only(tmp_path)) == left and 'a.txt' in only(tmp_path) and stale.exists() == (left == 2)


def test_files_of_the_package(tmp_path, monkeypatch):
    import unsamflow
    assert (package_data('presets')/'kitti.yaml').is_file() and (package_data('templates')/'train.ipynb').is_file()
    monkeypatch.setattr(unsamflow, '__file__', str(tmp_path/'site'/'unsamflow'/'__init__.py'))
    with pytest.raises(FileNotFoundError, match='presets: expected'): package_data('presets')
    (tmp_path/'site'/'data'/'presets').mkdir(parents=True)
    assert package_data('presets') == tmp_path/'site'/'data'/'presets'
    (tmp_path/'site'/'unsamflow'/'presets').mkdir(parents=True)
    assert package_data('presets') == tmp_path/'site'/'unsamflow'/'presets'


# reading

@pytest.mark.parametrize('suffix', ['.png', '.ppm', '.bmp', '.tif', '.webp', '.jpg'])
def test_reads_what_opencv_reads(tmp_path, picture, suffix):
    path = tmp_path/f'a{suffix}'
    cv2.imwrite(str(path), picture[..., ::-1])
    expected = cv2.imread(str(path))[..., ::-1].astype(int)
    difference = np.abs(as_bytes(read_image(path)).astype(int) - expected)
    assert difference.max() <= (4 if suffix in ('.webp', '.jpg') else 0)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA'])
def test_every_kind_of_8_bit_png_becomes_rgb(tmp_path, picture, mode):
    source = Image.fromarray(picture).convert(mode)
    source.save(tmp_path/'a.png')
    assert (as_bytes(tmp_path/'a.png') == np.array(source.convert('RGB'))).all()


def test_rotation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path/'a.png', exif=exif)
    assert (as_bytes(tmp_path/'a.png') == np.rot90(picture, -1)).all()


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.ppm'])
@pytest.mark.parametrize('channels', [1, 3])
def test_16_bits_are_refused(tmp_path, picture, suffix, channels):
    path = tmp_path/f'a{suffix}'
    name = '.pgm' if suffix == '.ppm' and channels == 1 else suffix  # OpenCV insists on the right one
    path.write_bytes(cv2.imencode(name, picture.astype(np.uint16)[..., :channels] * 257)[1].tobytes())
    with pytest.raises(ValueError, match='a.*8 bits a channel, found 16'): read_image(path)


def test_missing_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='a.png'): read_image(tmp_path/'a.png')
    with pytest.raises(OSError, match=tmp_path.name): read_image(tmp_path)


@pytest.mark.parametrize('content, found', [
    (b'', 'an empty file'), (b'<html>404</html>', '16 bytes of no known format'), (b'PIEH' + bytes(100), '104 bytes of no known format'), (b'\x89PNG\r\n\x1a\n', '8 bytes')])
def test_what_is_no_picture(tmp_path, content, found):
    (tmp_path/'a.png').write_bytes(content)
    with pytest.raises(ValueError, match=f'a.png: expected a whole picture .*found {found}'): read_image(tmp_path/'a.png')


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.ppm', '.bmp', '.webp', '.tif'])
def test_a_truncated_file_never_gives_other_pixels(tmp_path, picture, suffix):
    "At every length: an error that names the file, or (PNG without its closing chunk) all the pixels."
    data = cv2.imencode(suffix, picture)[1].tobytes()
    path = tmp_path/f'cut{suffix}'
    path.write_bytes(data)
    whole, passed = as_bytes(path), 0
    lengths = {*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 30, len(data))}
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: found = as_bytes(path)
            except ValueError as error: assert str(path) in str(error) and 'expected' in str(error) and 'found' in str(error)
            else:
                assert (found == whole).all()
                passed += 1
    assert passed < 40


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.ppm', '.bmp'])
def test_flipped_bytes_raise_nothing_but_valueerror(tmp_path, picture, suffix):
    data, rng, path = cv2.imencode(suffix, picture)[1].tobytes(), np.random.default_rng(0), tmp_path/f'a{suffix}'
    errors = 0
    for position in rng.integers(0, min(len(data), 600), 150):
        broken = bytearray(data)
        broken[position] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(broken))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: as_image(path)
            except ValueError as error:
                assert str(path) in str(error)
                errors += 1
    assert errors > 0


# in memory

def test_every_form_gives_the_same_image(tmp_path, picture):
    write_image(tmp_path/'a.png', picture)
    image = as_image(picture)
    for source in (tmp_path/'a.png', str(tmp_path/'a.png'), torch.tensor(picture), image, image.numpy(), image.double(), image.double().numpy()):
        assert as_image(source).equal(image)
    assert image.dtype == torch.float32 and image.is_contiguous() and image.shape == (3, 40, 60)


def test_arrays_of_any_layout_and_read_only_ones(picture):
    flipped = picture[::-1, ::-1, ::-1]
    assert (as_bytes(as_image(flipped)) == flipped).all()
    fixed = picture.copy()
    fixed.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert as_image(fixed).equal(as_image(picture))
        channels_first = as_image(picture).numpy()[:, ::-1]
        assert as_image(channels_first).equal(as_image(picture).flip(1))


def test_the_source_is_never_changed_or_shared(picture):
    copy, image = picture.copy(), as_image(picture)
    image.zero_()
    assert (picture == copy).all()
    source = torch.full((3, 4, 5), 0.5)
    as_image(source).zero_()
    assert (source == 0.5).all()


def test_bytes_survive_and_floats_are_rounded_to_nearest():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (as_bytes(as_image(levels))[..., 0] == levels).all()
    assert as_bytes(torch.full((3, 1, 1), 100.4 / 255))[0, 0, 0] == 100
    assert as_bytes(torch.full((3, 1, 1), 100.6 / 255))[0, 0, 0] == 101


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), -0.1, 1.1, 255.0])
@pytest.mark.parametrize('kind', ['tensor', 'array'])
def test_values_out_of_range(value, kind):
    image = torch.full((3, 4, 5), 0.5)
    image[1, 2, 3] = value
    with pytest.raises(ValueError, match=r'\[0, 1\], found'): as_image(image if kind == 'tensor' else image.numpy())


def test_rounding_beyond_the_range_is_clipped():
    image = torch.tensor([-1e-6, 0.5, 1 + 1e-6]).view(3, 1, 1)
    assert as_image(image).flatten().tolist() == [0, 0.5, 1]


@pytest.mark.parametrize('source, error', [
    (np.zeros((2, 4, 5)), ValueError), (np.zeros((4, 5)), ValueError), (np.zeros((3, 0, 5)), ValueError), (torch.zeros(1, 3, 4, 5), ValueError),
    (np.zeros((4, 5, 4), np.uint8), ValueError), (np.zeros((0, 5, 3), np.uint8), ValueError), (torch.zeros(3, 4, 5, dtype=torch.uint8), ValueError),
    (np.zeros((4, 5, 3), np.uint16), TypeError), (torch.zeros(3, 4, 5, dtype=torch.int64), TypeError), (np.array(['a']), TypeError), (None, TypeError), ([[0]], TypeError),
])
def test_wrong_shapes_and_types(source, error):
    with pytest.raises(error, match='image: expected .*found'): as_image(source)


# writing

@pytest.mark.parametrize('suffix', ['.png', '.PNG', '.jpg', '.jpeg', '.ppm', '.bmp', '.tif', '.tiff', '.webp'])
def test_every_suffix_is_written_and_read_by_others(tmp_path, picture, suffix):
    write_image(tmp_path/f'a{suffix}', as_image(picture))
    read = cv2.imread(str(tmp_path/f'a{suffix}'))[..., ::-1].astype(int)
    assert np.abs(read - picture).mean() < 3 and only(tmp_path) == [f'a{suffix}']


@pytest.mark.parametrize('name', ['a.gif', 'a.pdf', 'a', 'a.flo'])
def test_unknown_suffixes(tmp_path, picture, name):
    with pytest.raises(ValueError, match='suffix'): write_image(tmp_path/name, picture)
    assert only(tmp_path) == []


def test_a_bad_image_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match='found'): write_image(tmp_path/'a.png', torch.full((3, 2, 2), float('nan')))
    assert only(tmp_path) == []


# Errors of others, folders that refuse, leftovers

class Lost(OSError):
    "As a library raises it: no number, no file."


def test_an_error_that_is_not_about_writing_passes_unchanged(tmp_path):
    with pytest.raises(Lost, match='^connection lost$'):
        with atomic_path(tmp_path/'a.txt'): raise Lost('connection lost')
    (tmp_path/'text.png').write_text('no picture')
    with pytest.raises(Image.UnidentifiedImageError):
        with atomic_path(tmp_path/'a.txt'): Image.open(tmp_path/'text.png')
    assert only(tmp_path) == ['text.png']


def test_an_error_without_a_number_names_the_file_too(tmp_path):
    with pytest.raises(OSError) as caught:
        with atomic_path(tmp_path/'a.png'): raise OSError('encoder error -2')
    assert str(caught.value) == f'{tmp_path/"a.png"}: cannot be written: encoder error -2'


@pytest.mark.skipif(os.name != 'posix', reason='folders cannot be opened')
@pytest.mark.parametrize('number, passes', [(errno.EINVAL, True), (errno.EBADF, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_synchronised(tmp_path, monkeypatch, number, passes):
    "Some network file systems refuse it: the file is whole and in place by then. A disk that fails is an error all the same."
    fsync = os.fsync
    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode): raise OSError(number, os.strerror(number))
        fsync(descriptor)
    monkeypatch.setattr(os, 'fsync', refuse)
    with nullcontext() if passes else pytest.raises(OSError, match='a.txt'):
        with atomic_path(tmp_path/'a.txt') as temporary: temporary.write_text('x')
    assert (tmp_path/'a.txt').read_text() == 'x'


@pytest.mark.skipif(os.name != 'posix', reason='signals')
def test_what_was_left_goes_whatever_its_suffix(tmp_path):
    subprocess.run([sys.executable, '-c', KILLED, str(tmp_path/'weights.step-100 (old)')])
    stale, = tmp_path.iterdir()
    os.utime(stale, (time.time() - 3600 * 25,) * 2)
    subprocess.run([sys.executable, '-c', KILLED.replace('os.kill', 'print'), str(tmp_path/'a.txt')], check=True)
    assert only(tmp_path) == ['a.txt']


@pytest.mark.skipif(os.name != 'posix', reason='resource limits')
def test_what_the_file_system_says_is_not_blamed_on_the_picture(tmp_path, picture):
    "Too many open files: many workers meet it."
    import resource
    write_image(tmp_path/'a.png', picture)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = os.open(tmp_path/'a.png', os.O_RDONLY)
    os.close(held)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held, before[1]))  # the next descriptor would be `held`
    try:
        with pytest.raises(OSError, match='a.png') as caught: read_image(tmp_path/'a.png')
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert caught.value.errno == errno.EMFILE
