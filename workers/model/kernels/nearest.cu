// The best rows for each query: products are compared with the query's floor, what is above it is listed, and now and
// then the list is cut to the best and the floor raised. A list's entry is the score, as a number that orders alike,
// above the complement of the row, so that of equal scores the first row is the greater.
#include <cuda_fp16.h>
#include <stdint.h>

typedef unsigned long long entry;

__device__ __forceinline__ entry make_entry(float score, uint32_t row) {
    uint32_t bits = __float_as_uint(score);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (entry)bits << 32 | ~row;
}

__device__ __forceinline__ float score_of(entry e) {
    uint32_t bits = (uint32_t)(e >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

__device__ __forceinline__ void offer(float score, uint32_t row, int q, entry *lists, int *counts, float floor,
                                      int capacity) {
    if (score > floor) {
        int at = atomicAdd(&counts[q], 1);
        if (at < capacity) lists[(size_t)q * capacity + at] = make_entry(score, row);
    }
}

// scores [2 queries, n]: products with the queries' upper halves, then those with the lower halves times 2048.
// Blocks (parts of n, queries).
extern "C" __global__ void offer_scores(const float *scores, entry *lists, int *counts, const float *floors, int n,
                                        int queries, int first, int capacity) {
    int q = blockIdx.y;
    const float *upper = scores + (size_t)q * n, *lower = scores + (size_t)(queries + q) * n;
    float floor = floors[q];
    for (int j = blockIdx.x * blockDim.x + threadIdx.x; j < n; j += gridDim.x * blockDim.x)
        offer(upper[j] + lower[j] * (1.f / 2048.f), (uint32_t)(first + j), q, lists, counts, floor, capacity);
}

// The same without products beforehand, for at most four queries in f32: a warp reads two rows at a time.
extern "C" __global__ void offer_rows(const __half *rows, const float *queries, entry *lists, int *counts,
                                      const float *floors, int n, int width, int count, int first, int capacity) {
    extern __shared__ float shared[];
    for (int i = threadIdx.x; i < count * width; i += blockDim.x) shared[i] = queries[i];
    __syncthreads();
    int lane = threadIdx.x & 31, warp = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    int warps = (gridDim.x * blockDim.x) >> 5;
    for (int r = warp * 2; r < n; r += warps * 2) {
        bool two = r + 1 < n;
        const uint4 *a = reinterpret_cast<const uint4 *>(rows + (size_t)r * width);
        const uint4 *b = reinterpret_cast<const uint4 *>(rows + (size_t)(two ? r + 1 : r) * width);
        float sums[2][4] = {};
        for (int i = lane; i < width / 8; i += 32) {
            uint4 raw[2] = {a[i], b[i]};
            float x[2][8];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const __half2 *h = reinterpret_cast<const __half2 *>(&raw[k]);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float2 f = __half22float2(h[j]);
                    x[k][2 * j] = f.x;
                    x[k][2 * j + 1] = f.y;
                }
            }
#pragma unroll
            for (int q = 0; q < 4; q++) {
                if (q < count) {
                    const float4 *query = reinterpret_cast<const float4 *>(shared + q * width + i * 8);
                    float4 c = query[0], d = query[1];
#pragma unroll
                    for (int k = 0; k < 2; k++)
                        sums[k][q] += x[k][0] * c.x + x[k][1] * c.y + x[k][2] * c.z + x[k][3] * c.w + x[k][4] * d.x +
                                      x[k][5] * d.y + x[k][6] * d.z + x[k][7] * d.w;
                }
            }
        }
#pragma unroll
        for (int q = 0; q < 4; q++) {
            if (q < count) {
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    float s = sums[k][q];
#pragma unroll
                    for (int o = 16; o > 0; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
                    if (lane == 0 && (k == 0 || two))
                        offer(s, (uint32_t)(first + r + k), q, lists, counts, floors[q], capacity);
                }
            }
        }
    }
}

// Sorts every query's list, keeps the best and raises the floor to the last of them. `over` marks a list that was too
// short for what was offered. One block a query.
extern "C" __global__ void settle(entry *lists, int *counts, float *floors, int *over, int keep, int capacity) {
    extern __shared__ entry sorted[];
    int q = blockIdx.x, n = counts[q];
    entry *list = lists + (size_t)q * capacity;
    __syncthreads();
    if (n > capacity) {
        if (threadIdx.x == 0) over[q] = 1;
        n = capacity;
    }
    int size = 2;
    while (size < n) size <<= 1;
    for (int i = threadIdx.x; i < size; i += blockDim.x) sorted[i] = i < n ? list[i] : 0;
    for (int k = 2; k <= size; k <<= 1) {
        for (int j = k >> 1; j > 0; j >>= 1) {
            __syncthreads();
            for (int i = threadIdx.x; i < size; i += blockDim.x) {
                int other = i ^ j;
                if (other > i) {
                    entry x = sorted[i], y = sorted[other];
                    bool falling = (i & k) == 0;
                    if (falling ? x < y : x > y) {
                        sorted[i] = y;
                        sorted[other] = x;
                    }
                }
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < min(n, keep); i += blockDim.x) list[i] = sorted[i];
    if (threadIdx.x == 0) {
        counts[q] = min(n, keep);
        if (n >= keep) floors[q] = score_of(sorted[keep - 1]);
    }
}
