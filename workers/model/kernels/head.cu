// Log-probability and entropy of chosen tokens from bf16 logits, and the gradient by the logits in place.
#include "common.cuh"

// Running maximum, sum of e^(z-m), sum of z e^(z-m).
struct Soft {
    float m, s, t;
};

__device__ __forceinline__ Soft join(Soft a, Soft b) {
    float m = fmaxf(a.m, b.m);
    if (m == -INFINITY) return Soft{m, 0.f, 0.f};
    float ea = __expf(a.m - m), eb = __expf(b.m - m);
    return Soft{m, a.s * ea + b.s * eb, a.t * ea + b.t * eb};
}

// out[row] = (log-probability of the target, entropy, log-sum-exp), all at z / temperature. One block a row.
extern "C" __global__ void token_stats(const bf16 *logits, const uint32_t *targets, float *out, int vocab,
                                       float inverse_temperature) {
    const bf16 *row = logits + (size_t)blockIdx.x * vocab;
    Soft soft{-INFINITY, 0.f, 0.f};
    for (int v = threadIdx.x; v < vocab / 8; v += blockDim.x) {
        Eight z = load8(row + v * 8);
        float m = soft.m;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            z.x[i] *= inverse_temperature;
            m = fmaxf(m, z.x[i]);
        }
        float scale = __expf(soft.m - m), s = 0.f, t = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float e = __expf(z.x[i] - m);
            s += e;
            t += z.x[i] * e;
        }
        soft = Soft{m, soft.s * scale + s, soft.t * scale + t};
    }
#pragma unroll
    for (int o = 16; o > 0; o >>= 1)
        soft = join(soft, Soft{__shfl_xor_sync(~0u, soft.m, o), __shfl_xor_sync(~0u, soft.s, o),
                               __shfl_xor_sync(~0u, soft.t, o)});
    __shared__ Soft part[32];
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = soft;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < blockDim.x / 32; i++) soft = join(soft, part[i]);
        float lse = soft.m + logf(soft.s);
        float target = __bfloat162float(row[targets[blockIdx.x]]) * inverse_temperature;
        out[blockIdx.x * 3] = target - lse;
        out[blockIdx.x * 3 + 1] = lse - soft.t / soft.s;
        out[blockIdx.x * 3 + 2] = lse;
    }
}

// by[row] = derivatives by log-probability and entropy, divided by the temperature. Replaces the logits by
// by_l (onehot - p) - by_h p (log p + H).
extern "C" __global__ void token_backward(bf16 *logits, const uint32_t *targets, const float *stats, const float *by,
                                          int vocab, float inverse_temperature) {
    bf16 *row = logits + (size_t)blockIdx.x * vocab;
    float entropy = stats[blockIdx.x * 3 + 1], lse = stats[blockIdx.x * 3 + 2];
    float by_l = by[blockIdx.x * 2], by_h = by[blockIdx.x * 2 + 1];
    int target = (int)targets[blockIdx.x];
    for (int v = threadIdx.x; v < vocab / 8; v += blockDim.x) {
        Eight z = load8(row + v * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float log_p = z.x[i] * inverse_temperature - lse;
            float d = -__expf(log_p) * (by_l + by_h * (log_p + entropy));
            z.x[i] = v * 8 + i == target ? d + by_l : d;
        }
        store8(row + v * 8, z);
    }
}
