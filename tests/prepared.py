"""A prepared TFDS set written from NumPy arrays or texts, without TensorFlow; imports no `dfa_jax`."""

import io
import json

import numpy as np
from PIL import Image


def write(directory, splits, name="tiny", version="1.0.0", num_classes=3, shape=(4, 4, 1),
          features=None):  # fmt: skip
    """Prepares `{split: (images, labels)}` under a data directory, which is returned.

    Images are arrays, or the bytes of image files; features other than `image` and `label` are
    texts.
    """
    import tensorflow_datasets as tfds

    kinds = features or {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(num_classes=num_classes),
    }
    records = {
        split: [
            dict.fromkeys(kinds, "text") | {"image": _file(image), "label": int(label)}
            for image, label in zip(*examples, strict=True)
        ]
        for split, examples in splits.items()
    }
    return write_records(directory, records, kinds, name=name, version=version)


def write_texts(directory, splits, name="tale", feature="text", **others):
    """Prepares `{split: documents}` under a data directory, which is returned.

    Other features are texts that say nothing.
    """
    import tensorflow_datasets as tfds

    kinds = dict.fromkeys((feature, *others), tfds.features.Text())
    records = {
        split: [{feature: document, **others} for document in documents]
        for split, documents in splits.items()
    }
    return write_records(directory, records, kinds, name=name)


def write_records(directory, splits, features, name="tiny", version="1.0.0"):
    """Prepares `{split: examples}` with these features."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    kinds = tfds.features.FeaturesDict(features)
    folder = directory / name / version
    folder.mkdir(parents=True)
    kinds.save_config(folder)
    described = []
    for split, examples in splits.items():
        file = f"{name.split('/')[0]}-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(folder / file), "group_size:1")
        for values in examples:
            writer.write(kinds.serialize_example(kinds.encode_example(values)))
        writer.close()
        described.append(
            {
                "name": split,
                "shardLengths": [str(len(examples))],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str((folder / file).stat().st_size),
            }
        )
    info = {"name": name.split("/")[0], "version": version, "fileFormat": "array_record"}
    (folder / "dataset_info.json").write_text(json.dumps({**info, "splits": described}))
    return directory


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, kind)
    return file.getvalue()


def _file(image):
    return io.BytesIO(image if isinstance(image, bytes) else encoded(image))
