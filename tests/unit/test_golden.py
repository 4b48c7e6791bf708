"""Golden inputs: the same on every machine, and of the kind that the model is given."""

from __future__ import annotations

import numpy as np

from controller import golden
from targets.base import Preprocess, TensorSpec

PICTURES = Preprocess(size=(24, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def test_samples_are_the_same_every_time_and_differ_from_each_other() -> None:
    spec = TensorSpec("x", (1, 3, 24, 32), "float32")
    for preprocess in (None, PICTURES):
        first, again, second = (golden.sample(spec, index, preprocess) for index in (0, 0, 1))
        assert np.array_equal(first, again) and not np.array_equal(first, second)
        assert first.shape == spec.shape and first.dtype == np.float32
    # A value that must never change: golden data of stored bundles would no longer be made again.
    assert float(golden.sample(TensorSpec("x", (3,), "float32"), 0, None)[0]).hex() == "0x1.a011d60000000p-4"


def test_pictures_are_in_the_range_of_normalised_pictures() -> None:
    for layout, shape in (("NCHW", (2, 3, 24, 32)), ("NHWC", (2, 24, 32, 3))):
        preprocess = Preprocess(size=(24, 32), mean=PICTURES.mean, std=PICTURES.std, layout=layout)  # type: ignore[arg-type]
        for index in (0, 1):
            values = golden.sample(TensorSpec("x", shape, "float32"), index, preprocess)
            channels = np.moveaxis(values, 1 if layout == "NCHW" else 3, 0)
            for channel, mean, std in zip(channels, PICTURES.mean, PICTURES.std, strict=True):
                assert channel.min() >= (0 - mean) / std - 1e-6 and channel.max() <= (1 - mean) / std + 1e-6
                assert channel.std() > 0.05


def test_integers_can_index_any_table_and_bytes_take_their_range() -> None:
    for dtype in ("int64", "int32", "int8", "bool"):
        values = golden.sample(TensorSpec("ids", (200,), dtype), 0, None)
        assert values.dtype.name == dtype and set(np.unique(values).tolist()) == {0, 1}
    values = golden.sample(TensorSpec("bytes", (2000,), "uint8"), 0, None)
    assert values.min() < 10 and values.max() > 245


def test_types_that_numpy_lacks() -> None:
    values = golden.sample(TensorSpec("x", (8,), "bfloat16"), 0, None)
    assert values.dtype.name == "bfloat16" and values.nbytes == 16
