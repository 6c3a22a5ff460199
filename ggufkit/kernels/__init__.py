"""What every kernel is built from: compilation (`jit`), SIMD vector types (`lanes`) and the thread pool (`threads`)."""
