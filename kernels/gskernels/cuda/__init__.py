"""CUDA C++ kernels: compiled at first use (`jit`), loaded and started (`launch`), and what their sources share (*.cuh)."""
