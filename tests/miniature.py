"Writers of miniature data sets in the official layouts: a texture that moves by the same whole pixels from frame to frame, and its flow."

from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from unsamflow.files import write_image
from unsamflow.flow import write_flow

SHIFT = (3, -2)  # pixels per frame, x then y
SIZE = (48, 80)  # H, W


def frame(number, size=SIZE, seed=0):
    "Frame `number` of a clip, (H, W, 3) uint8; it wraps round at the borders."
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(*size, 3)), (2, 2, 0), mode='wrap')
    texture = (128 + 40 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)
    return np.roll(texture, (number * SHIFT[1], number * SHIFT[0]), (0, 1))


def flow(size=SIZE, seed=0):
    "The shift, and up to half a pixel that differs from pixel to pixel, in 64ths: any mix-up of axes or order shows."
    wobble = np.random.default_rng(seed).integers(-32, 33, (2, *size)) / 64
    return (np.array(SHIFT)[:, None, None] + wobble).astype(np.float32)


def part(size=SIZE, share=0.25):
    "A (H, W) bool mask of the right-hand columns."
    return np.broadcast_to(np.arange(size[1]) >= (1 - share) * size[1], size)


def save(path, content, valid=None):
    "Writes a picture, a mask or a flow field; makes the folder."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if content.shape[0] == 2:
        write_pfm(path, content) if path.suffix == '.pfm' else write_flow(path, content, valid)
    else:
        write_image(path, content.astype(np.uint8) * 255 if content.dtype == bool else content)


def write_pfm(path, flow):
    "Three float channels, the last one empty, bottom row first."
    height, width = flow.shape[1:]
    rows = np.concatenate([flow, np.zeros((1, height, width))]).transpose(1, 2, 0)[::-1].astype('<f4')
    Path(path).write_bytes(f'PF\n{width} {height}\n-1.0\n'.encode() + rows.tobytes())


def kitti(data, year, scenes=2, split='training', size=SIZE):
    "Pairs of KITTI 2012 (colour and grey) or 2015; the truth's last quarter is occluded, its first eighth unknown."
    root = Path(data) / f'KITTI-{year}' / split
    for i in range(scenes):
        for number in (10, 11):
            picture = frame(number, size, i)
            save(root / ('image_2' if year == 2015 else 'colored_0') / f'{i:06}_{number}.png', picture)
            if year == 2012:
                save(root / 'image_0' / f'{i:06}_{number}.png', cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
        if split == 'training':
            known = ~part(size, 0.125)[:, ::-1]
            save(root / f'flow_occ/{i:06}_10.png', flow(size, i), known)
            save(root / f'flow_noc/{i:06}_10.png', flow(size, i), known & ~part(size))
            if year == 2015:
                save(root / f'obj_map/{i:06}_10.png', part(size).astype(np.uint8) * (i + 1))
    return root.parent


def kitti_multiview(data, scenes=1, split='training', size=SIZE):
    "All 21 frames of scenes of both years."
    for folder in (f'KITTI-2012/{split}/colored_0', f'KITTI-2015/{split}/image_2'):
        for i in range(scenes):
            for number in range(21):
                save(Path(data) / folder / f'{i:06}_{number:02}.png', frame(number, size, i))


def kitti_raw(data, drives=2, frames=4, size=SIZE, missing=()):
    "Drives with both colour cameras."
    root = Path(data) / 'KITTI-raw'
    for i in range(drives):
        for camera in ('image_02', 'image_03'):
            for number in set(range(frames)) - set(missing):
                save(root / f'2011_09_26/2011_09_26_drive_{i + 1:04}_sync/{camera}/data/{number:010}.png', frame(number, size, i))
    return root


def sintel(data, scenes=('alley_1', 'alley_2'), frames=3, split='training', size=SIZE):
    "Both passes; the last quarter is occluded, the last eighth invalid."
    root = Path(data) / 'Sintel' / split
    for i, scene in enumerate(scenes):
        for number in range(1, frames + 1):
            for name in ('clean', 'final'):
                save(root / f'{name}/{scene}/frame_{number:04}.png', frame(number, size, i + 100 * (name == 'final')))
            if split == 'training' and number < frames:
                save(root / f'flow/{scene}/frame_{number:04}.flo', flow(size, number))
                save(root / f'occlusions/{scene}/frame_{number:04}.png', part(size))
                save(root / f'invalid/{scene}/frame_{number:04}.png', part(size, 0.125))
    return root.parent


def sintel_raw(data, shots=2, frames=3, size=SIZE):
    "A folder for each shot."
    for i in range(shots):
        for number in range(frames):
            save(Path(data) / f'Sintel-raw/shot_{i:03}/{number:05}.png', frame(number, size, i))
    return Path(data) / 'Sintel-raw'


def middlebury(data, names=('Grove2', 'Venus'), without=('Walking',), size=SIZE):
    "Pairs with and without published flow."
    root = Path(data) / 'Middlebury'
    for i, name in enumerate((*names, *without)):
        for number in (10, 11):
            save(root / f'other-data/{name}/frame{number}.png', frame(number, size, i))
        if name in names:
            save(root / f'other-gt-flow/{name}/flow10.flo', flow(size, i), ~part(size))
    return root


def chairs(data, count=3, size=SIZE):
    "The official names, the last pair being validation."
    root = Path(data) / 'FlyingChairs'
    for i in range(1, count + 1):
        for k in (1, 2):
            save(root / f'data/{i:05}_img{k}.ppm', frame(k, size, i))
        save(root / f'data/{i:05}_flow.flo', flow(size, i))
    (root / 'FlyingChairs_train_val.txt').write_text('1\n' * (count - 1) + '2\n')
    return root


def things(data, frames=3, size=SIZE):
    "One sequence, both passes and cameras, flow both ways for every frame."
    root = Path(data) / 'FlyingThings3D'
    for k, camera in enumerate(('left', 'right')):
        for number in range(6, 6 + frames):
            for name in ('clean', 'final'):
                save(root / f'frames_{name}pass/TRAIN/A/0000/{camera}/{number:04}.png', frame(number, size, k + 10 * (name == 'final')))
            for d, direction in enumerate(('Future', 'Past')):
                field = flow(size, number + 10 * k) * (1 - 2 * d)
                save(root / f'optical_flow/TRAIN/A/0000/into_{direction.lower()}/{camera}/OpticalFlowInto{direction}_{number:04}_{camera[0].upper()}.pfm', field)
    return root


def hd1k(data, sequences=2, frames=3, size=SIZE):
    "Training sequences; the right-hand quarter is unknown."
    root = Path(data) / 'HD1K'
    for i in range(sequences):
        for number in range(frames):
            save(root / f'hd1k_input/image_2/{i:06}_{number:04}.png', frame(number, size, i))
            save(root / f'hd1k_flow_gt/flow_occ/{i:06}_{number:04}.png', flow(size, number), ~part(size))
    return root


def touch(root, *names):
    "Empty files, for what only looks at names."
    folders = set()
    for name in names:
        path = Path(root) / name
        if path.parent not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        path.touch()
