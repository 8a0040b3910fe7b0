// AdamW of one tensor in one pass, and sums of squares.
#include "common.cuh"

// Reads p, g, m, v (16 bytes an element), writes new p, m, v and the bf16 working copy (14 bytes).
extern "C" __global__ void adamw(const float *p, const float *g, const float *m, const float *v, float *p2, float *m2,
                                 float *v2, bf16 *w, long long n, float beta1, float beta2, float correct1,
                                 float correct2, float epsilon, float keep, float rate) {
    long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= n) return;
    float ps[4], gs[4], ms[4], vs[4];
    int count = (int)min(4ll, n - i);
    if (count == 4) {
        *(float4 *)ps = *(const float4 *)(p + i);
        *(float4 *)gs = *(const float4 *)(g + i);
        *(float4 *)ms = *(const float4 *)(m + i);
        *(float4 *)vs = *(const float4 *)(v + i);
    } else {
        for (int j = 0; j < count; j++) ps[j] = p[i + j], gs[j] = g[i + j], ms[j] = m[i + j], vs[j] = v[i + j];
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (j < count) {
            ms[j] = beta1 * ms[j] + (1.f - beta1) * gs[j];
            vs[j] = beta2 * vs[j] + (1.f - beta2) * gs[j] * gs[j];
            ps[j] = ps[j] * keep - rate * (ms[j] / correct1) / (sqrtf(vs[j] / correct2) + epsilon);
        }
    }
    if (count == 4) {
        *(float4 *)(p2 + i) = *(float4 *)ps;
        *(float4 *)(m2 + i) = *(float4 *)ms;
        *(float4 *)(v2 + i) = *(float4 *)vs;
        if (w) {
            __nv_bfloat162 h[2] = {__floats2bfloat162_rn(ps[0], ps[1]), __floats2bfloat162_rn(ps[2], ps[3])};
            *(uint2 *)(w + i) = *(uint2 *)h;
        }
    } else {
        for (int j = 0; j < count; j++) {
            p2[i + j] = ps[j], m2[i + j] = ms[j], v2[i + j] = vs[j];
            if (w) w[i + j] = __float2bfloat16(ps[j]);
        }
    }
}

// partial[block] = sum of squares of the block's share, in f64.
extern "C" __global__ void sum_of_squares(const float *x, double *partial, long long n) {
    double sum = 0.0;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x)
        sum += (double)x[i] * (double)x[i];
    __shared__ double part[256];
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 128; half > 0; half >>= 1) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = part[0];
}
