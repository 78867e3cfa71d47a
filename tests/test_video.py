"The notebook 'Your own video', from a clip to its flow in colour: on its rendered clip, and on one's own as a video and as a folder."
import json
from pathlib import Path

import cv2
import pytest
import torch
from miniature import frame

from unsamflow.experiments import run
from unsamflow.files import write_image
from unsamflow.inference import read_weights
from unsamflow.masks import MaskStore
from unsamflow.network import UnSAMFlow
from unsamflow.training import save_weights

NOTEBOOK = Path(__file__).parents[1] / 'nbs/13_video.ipynb'
SMALL = {'steps': 1, 'batch': 1, 'crop': [64, 64], 'pictures': False}


def count(video):
    "Pictures of a video, and their (H, W)."
    source, pictures = cv2.VideoCapture(str(video)), []
    while (read := source.read())[0]:
        pictures.append(read[1])
    return len(pictures), pictures[0].shape[:2]


def test_the_rendered_clip(tmp_path):
    folder = run(NOTEBOOK, SMALL | {'frames': 3}, tmp_path / 'run', progress=False)
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert metrics['pairs'] == 2 and metrics['masks a frame'] > 3
    assert 2 < metrics['zero flow']['EPE'] < 5 and metrics['trained on the clip']['EPE'] < 0.5 * metrics['zero flow']['EPE']
    assert len(list(MaskStore(folder / 'masks-regions'))) == 3
    assert count(folder / 'flow.mp4') == (2, (128, 384))


@pytest.fixture
def own_clip(tmp_path):
    "Four frames of a moving texture, as a folder."
    (tmp_path / 'clip').mkdir()
    for number in range(4):
        write_image(tmp_path / f'clip/{number}.png', frame(number, (80, 160)))
    return tmp_path / 'clip'


def test_a_clip_of_ones_own_with_mask_features(own_clip, tmp_path):
    "Weights with mask features make a network with mask features; frames are reduced; no true error is reported."
    torch.manual_seed(0)
    save_weights(UnSAMFlow(mask_features='concat'), tmp_path / 'mf.safetensors')
    run(NOTEBOOK, SMALL | {'clip': str(own_clip), 'frames': 2, 'longest': 128, 'weights': str(tmp_path / 'mf.safetensors')}, tmp_path / 'run', progress=False)
    assert read_weights(tmp_path / 'run/run/weights.safetensors')[1]['mask_features'] == 'concat'
    assert cv2.imread(str(tmp_path / 'run/frames/00000.png')).shape == (64, 128, 3)


def test_a_clip_of_ones_own_as_a_folder(own_clip, tmp_path):
    folder = run(NOTEBOOK, SMALL | {'clip': str(own_clip), 'frames': 3, 'longest': 160}, tmp_path / 'run', progress=False)
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert metrics['pairs'] == 2 and 'EPE' not in metrics['trained on the clip']
    assert metrics['trained on the clip']['residual'] < metrics['zero flow']['residual']
    assert count(folder / 'flow.mp4') == (2, (80, 320))
