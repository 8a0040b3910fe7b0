// Decoding one token a row: caches, attention over cached keys, products of one row, choosing tokens.
#include "common.cuh"

// New keys (or values) of ragged rows into a cache [rows, heads, capacity, width]; grid (longest, rows).
extern "C" __global__ void append(const bf16 *from, bf16 *to, const int *starts, const int *past, const int *rows,
                                  int heads, int width, int capacity) {
    int row = blockIdx.y, start = starts[row];
    if (blockIdx.x >= starts[row + 1] - start) return;
    const bf16 *token = from + (size_t)(start + blockIdx.x) * heads * width;
    for (int i = threadIdx.x * 8; i < heads * width; i += blockDim.x * 8) {
        int head = i / width;
        bf16 *place = to + (((size_t)rows[row] * heads + head) * capacity + past[row] + blockIdx.x) * width + i % width;
        *reinterpret_cast<uint4 *>(place) = *reinterpret_cast<const uint4 *>(token + i);
    }
}
