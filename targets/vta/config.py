"""What a VTA is built with: every parameter of the accelerator, by the names of its JSON configuration.

Source: the configurations and ``vta-hw`` headers of apache/tvm-vta, revision d4a15f6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from targets.base import FleetError

#: Instruction layouts that exist. Bitstreams of 2019 have the older one, which differs in LOAD, STORE and ALU.
HW_VERSIONS = ("0.0.1", "0.0.2")
INSN_BYTES = 16
#: Physical addresses handed to the accelerator are multiples of this; an element may not be larger.
PAGE = 4096


class VtaConfig(msgspec.Struct, frozen=True, rename="upper"):
    """One configuration. All ``log_*`` are base-2 logarithms: of bits, of elements of a block, of bytes of a buffer.

    JSON names are the fields' in upper case, as in ``vta_config.json``. Raises :class:`FleetError` (code
    ``bad-vta-config``) from :meth:`check`, which names the field that does not fit.
    """

    target: str = "sim"
    hw_ver: str = "0.0.2"
    log_inp_width: int = 3
    log_wgt_width: int = 3
    log_acc_width: int = 5
    log_batch: int = 0
    log_block: int = 4
    log_uop_buff_size: int = 15
    log_inp_buff_size: int = 15
    log_wgt_buff_size: int = 18
    log_acc_buff_size: int = 17

    @property
    def batch(self) -> int:
        return 1 << self.log_batch

    @property
    def block(self) -> int:
        """Channels in a block, of input and of output."""
        return 1 << self.log_block

    @property
    def uop_bytes(self) -> int:
        return 4

    @property
    def inp_bytes(self) -> int:
        """Bytes of an INP element: batch × block values."""
        return self.batch * self.block << self.log_inp_width >> 3

    @property
    def wgt_bytes(self) -> int:
        """Bytes of a WGT element: block × block values, [out][in]."""
        return self.block * self.block << self.log_wgt_width >> 3

    @property
    def acc_bytes(self) -> int:
        return self.batch * self.block << self.log_acc_width >> 3

    @property
    def out_bytes(self) -> int:
        """Bytes of an OUT element; the output is as wide as the input."""
        return self.inp_bytes

    @property
    def uop_depth(self) -> int:
        return (1 << self.log_uop_buff_size) // self.uop_bytes

    @property
    def inp_depth(self) -> int:
        return (1 << self.log_inp_buff_size) // self.inp_bytes

    @property
    def wgt_depth(self) -> int:
        return (1 << self.log_wgt_buff_size) // self.wgt_bytes

    @property
    def acc_depth(self) -> int:
        """Elements of ACC, and of OUT, which share their indices."""
        return (1 << self.log_acc_buff_size) // self.acc_bytes

    @property
    def name(self) -> str:
        """Such as ``1x16_i8w8a32_15_15_18_17``: its bitstream's file name. Says nothing of the instruction layout."""
        return (
            f"{self.batch}x{self.block}_i{1 << self.log_inp_width}w{1 << self.log_wgt_width}a{1 << self.log_acc_width}_"
            f"{self.log_uop_buff_size}_{self.log_inp_buff_size}_{self.log_wgt_buff_size}_{self.log_acc_buff_size}"
        )

    @property
    def identity(self) -> str:
        """What a program and a bitstream must agree on: the name and the instruction layout."""
        return f"{self.name}@{self.hw_ver}"

    def check(self) -> VtaConfig:
        """This configuration, when its parts fit one another. Raises :class:`FleetError` that names the field."""
        if self.hw_ver not in HW_VERSIONS:
            raise _bad("HW_VER", f"'{self.hw_ver}' is not one of {', '.join(HW_VERSIONS)}")
        for field, value, fixed in (
            ("LOG_INP_WIDTH", self.log_inp_width, 3),
            ("LOG_WGT_WIDTH", self.log_wgt_width, 3),
            ("LOG_ACC_WIDTH", self.log_acc_width, 5),
        ):
            if value != fixed:
                raise _bad(field, f"{1 << value if 0 <= value < 8 else value} bits; only {1 << fixed} are supported")
        for field, value, low, high in (
            ("LOG_BATCH", self.log_batch, 0, 6),
            ("LOG_BLOCK", self.log_block, 2, 6),
            ("LOG_UOP_BUFF_SIZE", self.log_uop_buff_size, 6, 24),
            ("LOG_INP_BUFF_SIZE", self.log_inp_buff_size, 6, 24),
            ("LOG_WGT_BUFF_SIZE", self.log_wgt_buff_size, 6, 24),
            ("LOG_ACC_BUFF_SIZE", self.log_acc_buff_size, 6, 24),
        ):
            if not low <= value <= high:
                raise _bad(field, f"{value} is not within {low}..{high}")
        for field, size in (
            ("LOG_BLOCK", self.wgt_bytes),
            ("LOG_BATCH", self.acc_bytes),
        ):
            if size > PAGE:
                raise _bad(field, f"an element of {size} bytes is larger than a page of {PAGE}")
        for field, depth in (
            ("LOG_INP_BUFF_SIZE", self.inp_depth),
            ("LOG_WGT_BUFF_SIZE", self.wgt_depth),
            ("LOG_ACC_BUFF_SIZE", self.acc_depth),
        ):
            if depth < 4:
                raise _bad(field, f"the buffer holds {depth} elements; 4 are the least that is of use")
            if depth > 1 << 16:
                raise _bad(field, f"{depth} elements do not fit the 16 bits of an instruction's sram_base")
        if self.acc_depth != self.inp_depth:
            # The C struct and the hardware's bit ranges disagree about the micro-op when these differ.
            raise _bad(
                "LOG_ACC_BUFF_SIZE", f"{self.acc_depth} ACC and {self.inp_depth} INP elements; they must be equal"
            )
        bits = self.log2_acc_depth + self.log2_inp_depth + self.log2_wgt_depth
        if bits > 32:
            raise _bad("LOG_WGT_BUFF_SIZE", f"a micro-op would need {bits} bits and has 32")
        if self.log2_uop_depth > 13:
            raise _bad("LOG_UOP_BUFF_SIZE", f"{self.uop_depth} micro-ops; a GEMM instruction can name 8192")
        # Each factor of a GEMM or ALU instruction is as wide as the index it is added to; they share 64 bits.
        if 2 * bits > 64 or 4 * self.log2_acc_depth + 20 > 64:
            raise _bad("LOG_ACC_BUFF_SIZE", "the index factors do not fit an instruction")
        return self

    @property
    def log2_uop_depth(self) -> int:
        return self.uop_depth.bit_length() - 1

    @property
    def log2_inp_depth(self) -> int:
        return self.inp_depth.bit_length() - 1

    @property
    def log2_wgt_depth(self) -> int:
        return self.wgt_depth.bit_length() - 1

    @property
    def log2_acc_depth(self) -> int:
        return self.acc_depth.bit_length() - 1

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document


def parse(data: bytes | str, source: str = "the configuration") -> VtaConfig:
    """A checked configuration from JSON with the names of ``vta_config.json``. Raises :class:`FleetError`."""
    try:
        document = msgspec.json.decode(data)
        if not isinstance(document, dict):
            raise msgspec.ValidationError("not an object")
        # strict: a misspelt field would silently keep its default
        unknown = sorted(set(document) - {field.encode_name for field in msgspec.structs.fields(VtaConfig)} - _IGNORED)
        if unknown:
            raise msgspec.ValidationError(f"unknown field {unknown[0]}")
        return msgspec.convert(document, VtaConfig).check()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FleetError(
            f"{source} is no VTA configuration: {error}",
            code="bad-vta-config",
            hint="`vta config` prints one that is",
        ) from None


#: Derived, or of the board's build, in published files; they do not change what a program may do.
_IGNORED = {"GEMM_II", "TARGET_PATH", "LOG_OUT_WIDTH", "LOG_OUT_BUFF_SIZE", "LOG_BLOCK_IN", "LOG_BLOCK_OUT"}

DEFAULT = VtaConfig()
#: The configurations that bitstreams were published for, by their names.
PUBLISHED = {
    config.name: config
    for config in (
        DEFAULT,
        VtaConfig(
            log_batch=2,
            log_block=3,
            log_uop_buff_size=15,
            log_inp_buff_size=16,
            log_wgt_buff_size=16,
            log_acc_buff_size=18,
        ),
    )
}


def load(name: str) -> VtaConfig:
    """A configuration by its published name (such as ``1x16_i8w8a32_15_15_18_17``, optionally ``@0.0.1``) or file."""
    base, _, hw_ver = name.partition("@")
    if base in PUBLISHED:
        return msgspec.structs.replace(PUBLISHED[base], hw_ver=hw_ver or DEFAULT.hw_ver).check()
    path = Path(name)
    try:
        data = path.read_bytes()
    except OSError:
        raise FleetError(
            f"there is no VTA configuration '{name}'",
            code="bad-vta-config",
            hint=f"give a JSON file, or one of: {', '.join(PUBLISHED)}",
        ) from None
    return parse(data, str(path))


def _bad(field: str, why: str) -> FleetError:
    return FleetError(
        f"VTA configuration: {field}: {why}", code="bad-vta-config", hint="`vta config` explains the fields"
    )
