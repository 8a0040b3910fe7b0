// Causal grouped-query attention over rows of their own length, forward and backward, with bf16 tensor-core
// products of 16x8x16 and f32 sums; scores stay in registers. The backward pass is two kernels, one by keys and
// one by queries, so that no sum depends on the order in which blocks run.
#include "common.cuh"

#define THREADS 128
#define TILE 64

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void copy16(void *to, const void *from, bool valid) {
    int bytes = valid ? 16 : 0; // the rest is filled with zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;\n" ::); }
template <int N> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N)); }

__device__ __forceinline__ void matrices(uint32_t r[4], const bf16 *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p)));
}
__device__ __forceinline__ void matrices_transposed(uint32_t r[4], const bf16 *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p)));
}
__device__ __forceinline__ void product(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint32_t pack(float x, float y) {
    __nv_bfloat162 h = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<uint32_t *>(&h);
}

// Places of a lane in the three ways that a 16x16 tile is read.
// A operand, rows as stored: rows lane%16, columns 8 (lane/16).
__device__ __forceinline__ const bf16 *as_a(const bf16 *tile, int ld) {
    int lane = threadIdx.x & 31;
    return tile + (lane & 15) * ld + (lane >> 4) * 8;
}
// B operand from rows [n][k]: r[0], r[1] belong to n 0..7, r[2], r[3] to n 8..15.
__device__ __forceinline__ const bf16 *as_b(const bf16 *tile, int ld) {
    int lane = threadIdx.x & 31, i = lane >> 3;
    return tile + ((i >> 1) * 8 + (lane & 7)) * ld + (i & 1) * 8;
}
// B operand from rows [k][n], transposed: the same halves of n.
__device__ __forceinline__ const bf16 *as_b_transposed(const bf16 *tile, int ld) {
    int lane = threadIdx.x & 31, i = lane >> 3;
    return tile + ((i & 1) * 8 + (lane & 7)) * ld + (i >> 1) * 8;
}

// Copies `ROWS` rows of HD from global memory (stride in elements), zeros beyond `valid`.
template <int HD, int ROWS>
__device__ __forceinline__ void fetch(bf16 *to, const bf16 *from, long long stride, int valid) {
    constexpr int PIECES = HD / 8;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        int row = i / PIECES, piece = i % PIECES;
        bool there = row < valid;
        copy16(to + row * (HD + 8) + piece * 8, from + (there ? row * stride : 0) + piece * 8, there);
    }
}

// s[i] (+)= tile of A (16 rows of this warp) times rows of B transposed.
template <int HD, int N>
__device__ __forceinline__ void scores(float (*s)[4], const bf16 *a_rows, const bf16 *b_rows) {
    constexpr int LD = HD + 8;
#pragma unroll
    for (int kk = 0; kk < HD / 16; kk++) {
        uint32_t a[4];
        matrices(a, as_a(a_rows + kk * 16, LD));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t b[4];
            matrices(b, as_b(b_rows + n * 16 * LD + kk * 16, LD));
            product(s[2 * n], a, b[0], b[1]);
            product(s[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// out[16 x HD] += p[16 x N] (in registers, as products left it) times rows [N][HD].
template <int HD, int N>
__device__ __forceinline__ void weighted(float (*out)[4], float (*p)[4], const bf16 *rows) {
    constexpr int LD = HD + 8;
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++) {
        uint32_t a[4] = {pack(p[2 * kk][0], p[2 * kk][1]), pack(p[2 * kk][2], p[2 * kk][3]),
                         pack(p[2 * kk + 1][0], p[2 * kk + 1][1]), pack(p[2 * kk + 1][2], p[2 * kk + 1][3])};
#pragma unroll
        for (int n = 0; n < HD / 16; n++) {
            uint32_t b[4];
            matrices_transposed(b, as_b_transposed(rows + kk * 16 * LD + n * 16, LD));
            product(out[2 * n], a, b[0], b[1]);
            product(out[2 * n + 1], a, b[2], b[3]);
        }
    }
}

template <int N> __device__ __forceinline__ void clear(float (*x)[4]) {
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) x[i][j] = 0.f;
}

// Writes the 16 rows of this warp, times `factor`, as bf16.
template <int HD>
__device__ __forceinline__ void write_rows(bf16 *to, long long stride, int valid, float (*x)[4], float low, float high) {
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int n = 0; n < HD / 8; n++) {
        if (g < valid) *reinterpret_cast<uint32_t *>(to + g * stride + n * 8 + 2 * t) = pack(x[n][0] * low, x[n][1] * low);
        if (g + 8 < valid)
            *reinterpret_cast<uint32_t *>(to + (g + 8) * stride + n * 8 + 2 * t) = pack(x[n][2] * high, x[n][3] * high);
    }
}

// Grid (heads, rows, blocks of 64 queries, the last first). Row r has queries starts[r]..starts[r+1] of q, and
// past[r] keys before them, at k + offsets[r] with `stride` from key to key and `head_stride` from head to head.
// lse: log2 of the sum of 2^score, [heads, total].
template <int HD>
__device__ void attend(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *o, float *lse, const int *starts,
                       const int *past, const long long *offsets, long long stride, long long head_stride, int heads,
                       int kv_heads, int total, float factor) {
    constexpr int LD = HD + 8;
    extern __shared__ __align__(16) bf16 shared[];
    bf16 *sq = shared, *sk = sq + TILE * LD, *sv = sk + 2 * TILE * LD;
    int head = blockIdx.x, row = blockIdx.y, start = starts[row], len = starts[row + 1] - start;
    int block = (len + TILE - 1) / TILE - 1 - (int)blockIdx.z;
    if (block < 0) return;
    int first = block * TILE, before = past[row], warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int g = lane >> 2, t = lane & 3, kv = head / (heads / kv_heads);
    long long width = (long long)heads * HD;
    const bf16 *keys = k + offsets[row] + kv * head_stride, *values = v + offsets[row] + kv * head_stride;
    int count = before + min(len, first + TILE), tiles = (count + TILE - 1) / TILE;
    fetch<HD, TILE>(sq, q + (start + first) * width + head * HD, width, len - first);
    fetch<HD, TILE>(sk, keys, stride, count);
    fetch<HD, TILE>(sv, values, stride, count);
    copies_commit();
    float out[HD / 8][4], s[TILE / 8][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
    clear<HD / 8>(out);
    for (int tile = 0; tile < tiles; tile++) {
        int stage = tile & 1, next = (tile + 1) * TILE;
        if (tile + 1 < tiles) {
            fetch<HD, TILE>(sk + (1 - stage) * TILE * LD, keys + next * stride, stride, count - next);
            fetch<HD, TILE>(sv + (1 - stage) * TILE * LD, values + next * stride, stride, count - next);
            copies_commit();
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        clear<TILE / 8>(s);
        scores<HD, TILE>(s, sq + warp * 16 * LD, sk + stage * TILE * LD);
        int query = before + first + warp * 16 + g;
        bool edge = tile * TILE + TILE - 1 > before + first + warp * 16;
        float peak[2] = {most[0], most[1]};
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] *= factor;
                if (edge && tile * TILE + n * 8 + 2 * t + (i & 1) > query + (i >> 1) * 8) s[n][i] = -INFINITY;
                peak[i >> 1] = fmaxf(peak[i >> 1], s[n][i]);
            }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            peak[i] = fmaxf(peak[i], __shfl_xor_sync(~0u, peak[i], 1));
            peak[i] = fmaxf(peak[i], __shfl_xor_sync(~0u, peak[i], 2));
            float shrink = exp2f(most[i] - peak[i]);
            most[i] = peak[i];
            sum[i] *= shrink;
#pragma unroll
            for (int n = 0; n < HD / 8; n++) {
                out[n][2 * i] *= shrink;
                out[n][2 * i + 1] *= shrink;
            }
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = exp2f(s[n][i] - most[i >> 1]);
                sum[i >> 1] += s[n][i];
            }
        weighted<HD, TILE>(out, s, sv + stage * TILE * LD);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
        sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
        int at = first + warp * 16 + g + i * 8;
        if (t == 0 && at < len) lse[(long long)head * total + start + at] = most[i] + log2f(sum[i]);
    }
    int mine = first + warp * 16;
    write_rows<HD>(o + (start + mine) * width + head * HD, width, len - mine, out, 1.f / sum[0], 1.f / sum[1]);
}

// delta[head][token] = sum of o do over the head; one warp each.
template <int HD>
__device__ void delta_of(const bf16 *o, const bf16 *g, float *delta, int heads, int total) {
    long long at = (long long)blockIdx.x * (blockDim.x / 32) + (threadIdx.x >> 5);
    int lane = threadIdx.x & 31;
    if (at >= (long long)heads * total) return;
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < HD; i += 64) {
        float2 x = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(o + at * HD + i + lane * 2));
        float2 y = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162 *>(g + at * HD + i + lane * 2));
        sum += x.x * y.x + x.y * y.y;
    }
    sum = warp_sum(sum);
    if (lane == 0) delta[(at % heads) * total + at / heads] = sum;
}

// Writes the 16 rows of this warp, times `factor`, as f32.
template <int HD>
__device__ __forceinline__ void write_sums(float *to, long long stride, int valid, float (*x)[4], float factor) {
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int n = 0; n < HD / 8; n++) {
        if (g < valid)
            *reinterpret_cast<float2 *>(to + g * stride + n * 8 + 2 * t) = make_float2(x[n][0] * factor, x[n][1] * factor);
        if (g + 8 < valid)
            *reinterpret_cast<float2 *>(to + (g + 8) * stride + n * 8 + 2 * t) =
                make_float2(x[n][2] * factor, x[n][3] * factor);
    }
}

// out [tokens, kv heads, width] = sum over the group's heads of parts [tokens, heads, width], in order.
extern "C" __global__ void sum_groups(const float *parts, bf16 *out, int group, int width, long long vectors) {
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= vectors * 8) return;
    const float *from = parts + (at / width) * group * width + at % width;
    Eight sum;
#pragma unroll
    for (int i = 0; i < 8; i++) sum.x[i] = 0.f;
    for (int g = 0; g < group; g++) {
        float4 low = *reinterpret_cast<const float4 *>(from + g * width);
        float4 high = *reinterpret_cast<const float4 *>(from + g * width + 4);
        sum.x[0] += low.x, sum.x[1] += low.y, sum.x[2] += low.z, sum.x[3] += low.w;
        sum.x[4] += high.x, sum.x[5] += high.y, sum.x[6] += high.z, sum.x[7] += high.w;
    }
    store8(out + at, sum);
}

// Terms of dk, dv by each query head, f32 [tokens, heads, HD]: grid (heads, rows, blocks of 64 keys, the longest
// first). Scores are computed transposed, so that a warp owns 16 keys and the queries pass by, Q at a time.
template <int HD, int Q>
__device__ void by_keys(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_o, const float *lse,
                        const float *delta, float *dk, float *dv, const int *starts, int heads, int kv_heads, int total,
                        float factor, float scale) {
    constexpr int LD = HD + 8;
    extern __shared__ __align__(16) bf16 shared[];
    bf16 *sk = shared, *sv = sk + TILE * LD, *sq = sv + TILE * LD, *sg = sq + 2 * Q * LD;
    float *sl = reinterpret_cast<float *>(sg + 2 * Q * LD), *sd = sl + 2 * Q;
    int head = blockIdx.x, row = blockIdx.y, start = starts[row], len = starts[row + 1] - start;
    int first = blockIdx.z * TILE;
    if (first >= len) return;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    int kv = head / (heads / kv_heads);
    long long width = (long long)heads * HD, kv_width = (long long)kv_heads * HD;
    fetch<HD, TILE>(sk, k + (start + first) * kv_width + kv * HD, kv_width, len - first);
    fetch<HD, TILE>(sv, v + (start + first) * kv_width + kv * HD, kv_width, len - first);
    int from = first / Q, steps = (len + Q - 1) / Q - from;
    auto bring = [&](int step, int stage) {
        int at = (from + step) * Q;
        fetch<HD, Q>(sq + stage * Q * LD, q + (start + at) * width + head * HD, width, len - at);
        fetch<HD, Q>(sg + stage * Q * LD, d_o + (start + at) * width + head * HD, width, len - at);
        if (threadIdx.x < Q) {
            bool there = at + threadIdx.x < len;
            long long place = (long long)head * total + start + at + threadIdx.x;
            sl[stage * Q + threadIdx.x] = there ? lse[place] : INFINITY; // probability 0
            sd[stage * Q + threadIdx.x] = there ? delta[place] : 0.f;
        }
        copies_commit();
    };
    bring(0, 0);
    float sum_k[HD / 8][4], sum_v[HD / 8][4], p[Q / 8][4], d[Q / 8][4];
    clear<HD / 8>(sum_k);
    clear<HD / 8>(sum_v);
    for (int step = 0; step < steps; step++) {
        int stage = step & 1;
        if (step + 1 < steps) {
            bring(step + 1, 1 - stage);
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        int at = (from + step) * Q;
        clear<Q / 8>(p);
        clear<Q / 8>(d);
        scores<HD, Q>(p, sk + warp * 16 * LD, sq + stage * Q * LD);
        scores<HD, Q>(d, sv + warp * 16 * LD, sg + stage * Q * LD);
#pragma unroll
        for (int n = 0; n < Q / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int query = n * 8 + 2 * t + (i & 1), key = first + warp * 16 + g + (i >> 1) * 8;
                float x = exp2f(p[n][i] * factor - sl[stage * Q + query]);
                p[n][i] = key > at + query ? 0.f : x;
                d[n][i] = p[n][i] * (d[n][i] - sd[stage * Q + query]);
            }
        weighted<HD, Q>(sum_v, p, sg + stage * Q * LD);
        weighted<HD, Q>(sum_k, d, sq + stage * Q * LD);
        __syncthreads();
    }
    int mine = first + warp * 16;
    write_sums<HD>(dk + (start + mine) * width + head * HD, width, len - mine, sum_k, scale);
    write_sums<HD>(dv + (start + mine) * width + head * HD, width, len - mine, sum_v, 1.f);
}

// dq: grid (heads, rows, blocks of 64 queries, the last first).
template <int HD>
__device__ void by_queries(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_o, const float *lse,
                           const float *delta, bf16 *dq, const int *starts, int heads, int kv_heads, int total,
                           float factor, float scale) {
    constexpr int LD = HD + 8;
    extern __shared__ __align__(16) bf16 shared[];
    bf16 *sq = shared, *sg = sq + TILE * LD, *sk = sg + TILE * LD, *sv = sk + 2 * TILE * LD;
    int head = blockIdx.x, row = blockIdx.y, start = starts[row], len = starts[row + 1] - start;
    int block = (len + TILE - 1) / TILE - 1 - (int)blockIdx.z;
    if (block < 0) return;
    int first = block * TILE, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    long long width = (long long)heads * HD, kv_width = (long long)kv_heads * HD;
    int kv = head / (heads / kv_heads);
    const bf16 *keys = k + start * kv_width + kv * HD, *values = v + start * kv_width + kv * HD;
    int count = min(len, first + TILE), tiles = (count + TILE - 1) / TILE;
    fetch<HD, TILE>(sq, q + (start + first) * width + head * HD, width, len - first);
    fetch<HD, TILE>(sg, d_o + (start + first) * width + head * HD, width, len - first);
    fetch<HD, TILE>(sk, keys, kv_width, count);
    fetch<HD, TILE>(sv, values, kv_width, count);
    copies_commit();
    float l[2], delta_here[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int at = first + warp * 16 + g + i * 8;
        l[i] = at < len ? lse[(long long)head * total + start + at] : INFINITY;
        delta_here[i] = at < len ? delta[(long long)head * total + start + at] : 0.f;
    }
    float out[HD / 8][4], p[TILE / 8][4], d[TILE / 8][4];
    clear<HD / 8>(out);
    for (int tile = 0; tile < tiles; tile++) {
        int stage = tile & 1, next = (tile + 1) * TILE;
        if (tile + 1 < tiles) {
            fetch<HD, TILE>(sk + (1 - stage) * TILE * LD, keys + next * kv_width, kv_width, count - next);
            fetch<HD, TILE>(sv + (1 - stage) * TILE * LD, values + next * kv_width, kv_width, count - next);
            copies_commit();
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        clear<TILE / 8>(p);
        clear<TILE / 8>(d);
        scores<HD, TILE>(p, sq + warp * 16 * LD, sk + stage * TILE * LD);
        scores<HD, TILE>(d, sg + warp * 16 * LD, sv + stage * TILE * LD);
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = tile * TILE + n * 8 + 2 * t + (i & 1), query = first + warp * 16 + g + (i >> 1) * 8;
                float x = exp2f(p[n][i] * factor - l[i >> 1]);
                d[n][i] = key > query ? 0.f : x * (d[n][i] - delta_here[i >> 1]);
            }
        weighted<HD, TILE>(out, d, sk + stage * TILE * LD);
        __syncthreads();
    }
    int mine = first + warp * 16;
    write_rows<HD>(dq + (start + mine) * width + head * HD, width, len - mine, out, scale, scale);
}

#define KERNELS(HD, Q)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) attend_##HD(                                                 \
        const bf16 *q, const bf16 *k, const bf16 *v, bf16 *o, float *lse, const int *starts, const int *past,          \
        const long long *offsets, long long stride, long long head_stride, int heads, int kv_heads, int total,         \
        float factor) {                                                                                                \
        attend<HD>(q, k, v, o, lse, starts, past, offsets, stride, head_stride, heads, kv_heads, total, factor);       \
    }                                                                                                                  \
    extern "C" __global__ void delta_##HD(const bf16 *o, const bf16 *g, float *delta, int heads, int total) {          \
        delta_of<HD>(o, g, delta, heads, total);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) by_keys_##HD(                                                \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_o, const float *lse, const float *delta, float *dk, \
        float *dv, const int *starts, int heads, int kv_heads, int total, float factor, float scale) {                 \
        by_keys<HD, Q>(q, k, v, d_o, lse, delta, dk, dv, starts, heads, kv_heads, total, factor, scale);               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) by_queries_##HD(                                             \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *d_o, const float *lse, const float *delta, bf16 *dq,  \
        const int *starts, int heads, int kv_heads, int total, float factor, float scale) {                            \
        by_queries<HD>(q, k, v, d_o, lse, delta, dq, starts, heads, kv_heads, total, factor, scale);                   \
    }

KERNELS(64, 64)
KERNELS(128, 32)
