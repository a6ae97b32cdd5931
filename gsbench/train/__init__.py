"""The training programme on top of gskernels: data, encoders, methods, the loop, metrics and checkpoints."""
