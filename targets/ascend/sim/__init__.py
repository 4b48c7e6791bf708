"""A simulated CANN toolchain: ``npu-smi``, ``atc`` and ``ais_bench`` that behave as the real ones do, without an NPU.

Networks run in onnxruntime on the CPU: what is computed is real, how fast says nothing about an NPU. See
docs/simulated-cann.md.
"""
