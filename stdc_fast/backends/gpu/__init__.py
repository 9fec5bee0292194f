"""What the backends for NVIDIA GPUs share, whatever their kernels are written in."""
