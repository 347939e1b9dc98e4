"""Kernels in C++ for processors with AVX-512, compiled by the machine that they run on."""
