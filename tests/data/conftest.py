"""A prepared TFDS set written from NumPy arrays, without TensorFlow; imports no `dfa_jax`."""

import io
import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """An empty cache for every test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path / "cache" / "dfa_jax"


@pytest.fixture
def write_set(tmp_path):
    """`write_set(splits)` prepares `{split: (images, labels)}` and returns the data directory."""

    def write(splits, name="tiny", version="1.0.0", num_classes=3, shape=(4, 4, 1), features=None):
        import tensorflow_datasets as tfds
        from array_record.python import array_record_module

        kinds = features or {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=num_classes),
        }
        kinds = tfds.features.FeaturesDict(kinds)
        folder = tmp_path / "sets" / name / version
        folder.mkdir(parents=True)
        kinds.save_config(folder)
        described = []
        for split, examples in splits.items():
            file = f"{name.split('/')[0]}-{split}.array_record-00000-of-00001"
            writer = array_record_module.ArrayRecordWriter(str(folder / file), "group_size:1")
            for image, label in zip(*examples, strict=True):
                example = kinds.encode_example({"image": _png(image), "label": int(label)})
                writer.write(kinds.serialize_example(example))
            writer.close()
            described.append(
                {
                    "name": split,
                    "shardLengths": [str(len(examples[1]))],
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    "numBytes": str((folder / file).stat().st_size),
                }
            )
        info = {"name": name.split("/")[0], "version": version, "fileFormat": "array_record"}
        (folder / "dataset_info.json").write_text(json.dumps({**info, "splits": described}))
        return tmp_path / "sets"

    return write


@pytest.fixture
def tiny():
    """Splits of random 4x4 images with distinct pixels, 20 to train on and 7 to test on."""
    draw = np.random.default_rng(0)
    return {
        split: (
            draw.integers(0, 256, (num, 4, 4, 1), dtype=np.uint8),
            np.arange(num, dtype=np.int32) % 3,
        )
        for split, num in {"train": 20, "test": 7}.items()
    }


def _png(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
    file.seek(0)
    return file
