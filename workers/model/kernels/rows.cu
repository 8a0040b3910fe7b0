// Norms, rotation, gating, biases and the embedding's gradient: bound by memory, one pass each.
// Sums run in a fixed order, so equal inputs give equal bits.
#include "common.cuh"

#define MAX_VECTORS 4 // 16-byte vectors of one row that a thread holds

// y = x / rms(x) * w. One block a row; reads x once, writes y once.
extern "C" __global__ void rms_norm(const bf16 *x, const bf16 *w, bf16 *y, int width, float eps) {
    const bf16 *in = x + (size_t)blockIdx.x * width;
    bf16 *out = y + (size_t)blockIdx.x * width;
    int vectors = width / 8;
    Eight held[MAX_VECTORS];
    float squares = 0.f;
#pragma unroll
    for (int j = 0; j < MAX_VECTORS; j++) {
        int v = threadIdx.x + j * blockDim.x;
        if (v < vectors) {
            held[j] = load8(in + v * 8);
#pragma unroll
            for (int i = 0; i < 8; i++) squares += held[j].x[i] * held[j].x[i];
        }
    }
    float r = rsqrtf(block_sum2(squares, 0.f).x / width + eps);
#pragma unroll
    for (int j = 0; j < MAX_VECTORS; j++) {
        int v = threadIdx.x + j * blockDim.x;
        if (v < vectors) {
            Eight g = load8(w + v * 8);
#pragma unroll
            for (int i = 0; i < 8; i++) g.x[i] *= held[j].x[i] * r;
            store8(out + v * 8, g);
        }
    }
}

// dx = r (w dy - x r^2 mean(w dy x)) (+ residual); partial sums of dw = sum over rows of dy x r.
// Each block walks rows blockIdx.x, + gridDim.x, ...; a thread owns its columns.
extern "C" __global__ void rms_norm_backward(const bf16 *x, const bf16 *w, const bf16 *dy, const bf16 *residual,
                                             bf16 *dx, float *partial, int rows, int width, float eps) {
    int vectors = width / 8;
    Eight sums[MAX_VECTORS];
#pragma unroll
    for (int j = 0; j < MAX_VECTORS; j++)
#pragma unroll
        for (int i = 0; i < 8; i++) sums[j].x[i] = 0.f;
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        size_t at = (size_t)row * width;
        Eight xs[MAX_VECTORS], gs[MAX_VECTORS];
        float squares = 0.f, dot = 0.f;
#pragma unroll
        for (int j = 0; j < MAX_VECTORS; j++) {
            int v = threadIdx.x + j * blockDim.x;
            if (v < vectors) {
                xs[j] = load8(x + at + v * 8);
                gs[j] = load8(dy + at + v * 8);
                Eight ws = load8(w + v * 8);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    squares += xs[j].x[i] * xs[j].x[i];
                    dot += ws.x[i] * gs[j].x[i] * xs[j].x[i];
                }
            }
        }
        float2 both = block_sum2(squares, dot);
        float r = rsqrtf(both.x / width + eps);
        float c = r * r * r * both.y / width;
#pragma unroll
        for (int j = 0; j < MAX_VECTORS; j++) {
            int v = threadIdx.x + j * blockDim.x;
            if (v < vectors) {
                Eight ws = load8(w + v * 8), out;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    out.x[i] = ws.x[i] * gs[j].x[i] * r - xs[j].x[i] * c;
                    sums[j].x[i] += gs[j].x[i] * xs[j].x[i] * r;
                }
                if (residual) {
                    Eight more = load8(residual + at + v * 8);
#pragma unroll
                    for (int i = 0; i < 8; i++) out.x[i] += more.x[i];
                }
                store8(dx + at + v * 8, out);
            }
        }
    }
    if (partial) {
#pragma unroll
        for (int j = 0; j < MAX_VECTORS; j++) {
            int v = threadIdx.x + j * blockDim.x;
            if (v < vectors)
#pragma unroll
                for (int i = 0; i < 8; i++) partial[(size_t)blockIdx.x * width + v * 8 + i] = sums[j].x[i];
        }
    }
}

// Partial column sums of a bf16 matrix: block (columns of 256, strip of rows).
extern "C" __global__ void column_partials(const bf16 *x, float *partial, int rows, int width) {
    int column = (blockIdx.x * blockDim.x + threadIdx.x) * 2;
    if (column >= width) return;
    int per = (rows + gridDim.y - 1) / gridDim.y, from = blockIdx.y * per, to = min(rows, from + per);
    float2 sum = make_float2(0.f, 0.f);
    for (int row = from; row < to; row++) {
        float2 f = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(x + (size_t)row * width + column));
        sum.x += f.x;
        sum.y += f.y;
    }
    partial[(size_t)blockIdx.y * width + column] = sum.x;
    partial[(size_t)blockIdx.y * width + column + 1] = sum.y;
}

// out[c] = (accumulate ? out[c] : 0) + sum over blocks of partial[b][c], in order of b within 32 lanes.
extern "C" __global__ void sum_partials(const float *partial, float *out, int blocks, int width, int accumulate) {
    __shared__ float lanes[32][33];
    int column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.f;
    if (column < width)
        for (int b = threadIdx.y; b < blocks; b += 32) sum += partial[(size_t)b * width + column];
    lanes[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
        sum = accumulate ? out[column] : 0.f;
        for (int i = 0; i < 32; i++) sum += lanes[i][threadIdx.x];
        out[column] = sum;
    }
}

// act = silu(a) b
extern "C" __global__ void swiglu(const bf16 *a, const bf16 *b, bf16 *act, long long vectors) {
    long long v = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= vectors) return;
    Eight x = load8(a + v * 8), y = load8(b + v * 8);
#pragma unroll
    for (int i = 0; i < 8; i++) y.x[i] *= x.x[i] / (1.f + __expf(-x.x[i]));
    store8(act + v * 8, y);
}

// da, db of silu(a) b by dy
extern "C" __global__ void swiglu_backward(const bf16 *a, const bf16 *b, const bf16 *dy, bf16 *da, bf16 *db,
                                           long long vectors) {
    long long v = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= vectors) return;
    Eight x = load8(a + v * 8), y = load8(b + v * 8), g = load8(dy + v * 8), dx, dz;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float gate = 1.f / (1.f + __expf(-x.x[i])), silu = x.x[i] * gate;
        dz.x[i] = g.x[i] * silu;
        dx.x[i] = g.x[i] * y.x[i] * (gate + silu - silu * gate);
    }
    store8(da + v * 8, dx);
    store8(db + v * 8, dz);
}

// x += bias, in place
extern "C" __global__ void add_bias(bf16 *x, const bf16 *bias, int width, long long vectors) {
    long long v = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= vectors) return;
    Eight y = load8(x + v * 8), b = load8(bias + (v * 8) % width);
#pragma unroll
    for (int i = 0; i < 8; i++) y.x[i] += b.x[i];
    store8(x + v * 8, y);
}

// Rotates x [tokens, heads, 2 half] in place by each token's position; sign -1 rotates back.
extern "C" __global__ void rope(bf16 *x, const uint32_t *positions, const float *cos, const float *sin, int heads,
                                int half, float sign) {
    size_t token = blockIdx.x;
    const float *c = cos + (size_t)positions[token] * half, *s = sin + (size_t)positions[token] * half;
    bf16 *row = x + token * heads * 2 * half;
    for (int i = threadIdx.x; i < heads * half / 2; i += blockDim.x) {
        int head = i / (half / 2), j = (i % (half / 2)) * 2;
        __nv_bfloat162 *lo = reinterpret_cast<__nv_bfloat162 *>(row + head * 2 * half + j);
        __nv_bfloat162 *hi = reinterpret_cast<__nv_bfloat162 *>(row + head * 2 * half + half + j);
        float2 a = __bfloat1622float2(*lo), b = __bfloat1622float2(*hi);
        float c0 = c[j], c1 = c[j + 1], s0 = s[j] * sign, s1 = s[j + 1] * sign;
        *lo = __floats2bfloat162_rn(a.x * c0 - b.x * s0, a.y * c1 - b.y * s1);
        *hi = __floats2bfloat162_rn(b.x * c0 + a.x * s0, b.y * c1 + a.y * s1);
    }
}

// out[index[i]] = x[i], rows of `width`
extern "C" __global__ void place_rows(const bf16 *x, const uint32_t *index, bf16 *out, int width) {
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8)
        *reinterpret_cast<uint4 *>(out + (size_t)index[blockIdx.x] * width + c) =
            *reinterpret_cast<const uint4 *>(x + (size_t)blockIdx.x * width + c);
}

// table[ids[u]] += sum of rows order[starts[u]..starts[u+1]] of x; one block a distinct id.
extern "C" __global__ void add_rows(const bf16 *x, const uint32_t *ids, const uint32_t *starts, const uint32_t *order,
                                    float *table, int width) {
    float *out = table + (size_t)ids[blockIdx.x] * width;
    uint32_t from = starts[blockIdx.x], to = starts[blockIdx.x + 1];
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        float sum = out[c];
        for (uint32_t i = from; i < to; i++) sum += __bfloat162float(x[(size_t)order[i] * width + c]);
        out[c] = sum;
    }
}
