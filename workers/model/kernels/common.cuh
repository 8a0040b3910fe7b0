// What all kernels share: bf16 vectors of 16 bytes, sums over a warp and over a block.
#pragma once
#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

struct Eight {
    float x[8];
};

__device__ __forceinline__ Eight eight(uint4 raw) {
    const __nv_bfloat162 *h = reinterpret_cast<const __nv_bfloat162 *>(&raw);
    Eight out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __bfloat1622float2(h[i]);
        out.x[2 * i] = f.x;
        out.x[2 * i + 1] = f.y;
    }
    return out;
}

__device__ __forceinline__ Eight load8(const bf16 *p) { return eight(*reinterpret_cast<const uint4 *>(p)); }

__device__ __forceinline__ void store8(bf16 *p, const Eight &v) {
    uint4 raw;
    __nv_bfloat162 *h = reinterpret_cast<__nv_bfloat162 *>(&raw);
#pragma unroll
    for (int i = 0; i < 4; i++) h[i] = __floats2bfloat162_rn(v.x[2 * i], v.x[2 * i + 1]);
    *reinterpret_cast<uint4 *>(p) = raw;
}

__device__ __forceinline__ float rounded(float x) { return __bfloat162float(__float2bfloat16(x)); }

// A kernel that was queued to overlap its predecessor may begin while that still runs: what the predecessor writes
// may be touched only after the wait. Without such a queueing both do nothing.
__device__ __forceinline__ void await_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void allow_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
    return x;
}

// Sum of two numbers over a block of at most 1024 threads; every thread gets both.
__device__ __forceinline__ float2 block_sum2(float a, float b) {
    __shared__ float2 part[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    a = warp_sum(a);
    b = warp_sum(b);
    __syncthreads();
    if (lane == 0) part[warp] = make_float2(a, b);
    __syncthreads();
    float2 sum = make_float2(0.f, 0.f);
    for (int i = 0; i < warps; i++) {
        sum.x += part[i].x;
        sum.y += part[i].y;
    }
    return sum;
}
