"""AIPP: the chip prepares pictures itself, so that they travel as bytes and are normalised where the network runs."""

from __future__ import annotations

from targets.base import ModelError, Preprocess, TensorSpec


def prepared(spec: TensorSpec, preprocess: Preprocess | None, name: str) -> Preprocess:
    """The model's own preparation. Raises :class:`ModelError` for a network that AIPP does nothing for."""
    if preprocess is None or preprocess.layout != "NCHW" or len(spec.shape) != 4 or spec.shape[1] != 3:
        raise ModelError(
            f"{name} does not take pictures of three colours, channels first, of which it is known how to prepare them",
            hint="build without the option 'aipp', or give `preprocess` under `models:` in the inventory",
        )
    if any(preprocess.canvas) and preprocess.canvas != preprocess.size:
        # Zeros fill a canvas up, and no byte is zero when the mean has been taken off it.
        raise ModelError(f"{name} takes pictures within a larger canvas, which AIPP does not make")
    return preprocess


def taken(spec: TensorSpec, preprocess: Preprocess) -> tuple[TensorSpec, Preprocess]:
    """What a network takes with AIPP before it: bytes, channels last; and how a picture becomes that."""
    batch, channels, height, width = spec.shape
    raw = Preprocess(
        size=preprocess.size,
        colour=preprocess.colour,
        resize=preprocess.resize,
        filter=preprocess.filter,
        crop_ratio=preprocess.crop_ratio,
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255, 1 / 255, 1 / 255),
        layout="NHWC",
    )
    return TensorSpec(spec.name, (batch, height, width, channels), "uint8", "NHWC"), raw


def configuration(preprocess: Preprocess) -> str:
    """The file for ``--insert_op_conf``: what the model's normalisation is on bytes.

    AIPP computes ``(byte - mean_chn - min_chn) * var_reci_chn``, the mean a whole number; so ``min_chn`` has it.
    Colours come in the order that the network takes them, so none are swapped.
    """
    height, width = preprocess.size
    lines = [
        "aipp_mode: static",
        "input_format: RGB888_U8",
        f"src_image_size_w: {width}",
        f"src_image_size_h: {height}",
        "crop: false",
        "csc_switch: false",
        "rbuv_swap_switch: false",
        *(f"min_chn_{index}: {mean * 255:.9g}" for index, mean in enumerate(preprocess.mean)),
        *(f"var_reci_chn_{index}: {1 / (std * 255):.9g}" for index, std in enumerate(preprocess.std)),
    ]
    return "aipp_op {\n" + "".join(f"    {line}\n" for line in lines) + "}\n"
