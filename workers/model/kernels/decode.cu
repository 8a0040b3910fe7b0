// Decoding one token a row: caches, attention over cached keys, choosing tokens.
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

// x[i] = table[tokens[i]]
extern "C" __global__ void embed(const bf16 *table, const uint32_t *tokens, bf16 *x, int width) {
    allow_next();
    await_previous();
    const bf16 *row = table + (size_t)tokens[blockIdx.x] * width;
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8)
        *reinterpret_cast<uint4 *>(x + (size_t)blockIdx.x * width + c) = *reinterpret_cast<const uint4 *>(row + c);
}

// Element i of a head after its bias and rotation, rounded between as the other passes do.
template <int D>
__device__ __forceinline__ float rotated(const bf16 *x, const bf16 *bias, int i, const float *cos, const float *sin) {
    float here = __bfloat162float(x[i]), there = __bfloat162float(x[i ^ (D / 2)]);
    if (bias) {
        here = rounded(here + __bfloat162float(bias[i]));
        there = rounded(there + __bfloat162float(bias[i ^ (D / 2)]));
    }
    int j = i & (D / 2 - 1);
    return rounded(here * cos[j] + (i < D / 2 ? -there : there) * sin[j]);
}

// Attention of one new token a row: biases and rotation, the new key and value into the cache, then the cached
// keys in pieces of `chunk`; the last piece to finish joins them in order. Grid (rows, key heads, pieces).
// lens[row]: tokens cached before; negative for a row that rests. G query heads share a key head. Where this kernel
// overlaps its predecessor, lens and the earlier keys are from before the whole step, so they are fetched at once.
template <int D, int G>
__device__ void attend_one(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *bias_q, const bf16 *bias_k,
                           const bf16 *bias_v, const float *cos, const float *sin, bf16 *cache_k, bf16 *cache_v,
                           const int *lens, const int *places, bf16 *o, float *scratch, unsigned *done, int kv_heads,
                           int capacity, int chunk, float factor) {
    constexpr int LANES = D / 8, KEYS = 128 / LANES; // threads of a key, keys at once
    extern __shared__ __align__(16) float memory[];
    float *scores = memory, *queries = scores + G * chunk, *stats = queries + G * D, *sums = stats + 2 * G;
    allow_next();
    int row = blockIdx.x, kv = blockIdx.y, len = lens[row], from = blockIdx.z * chunk;
    if (len < 0) {
        await_previous();
        if (blockIdx.z == 0)
            for (int i = threadIdx.x; i < G * D; i += 128)
                o[((size_t)row * kv_heads + kv) * G * D + i] = __float2bfloat16(0.f);
        return;
    }
    if (from > len) return;
    int pieces = len / chunk + 1, count = min(chunk, len + 1 - from);
    cos += (size_t)len * (D / 2);
    sin += (size_t)len * (D / 2);
    size_t head = (size_t)row * kv_heads + kv, cached = ((size_t)places[row] * kv_heads + kv) * capacity;
    bf16 *keys = cache_k + cached * D, *values = cache_v + cached * D;
    for (int key = threadIdx.x / LANES; key < count; key += KEYS) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(keys + (size_t)(from + key) * D + threadIdx.x % LANES * 8));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(values + (size_t)(from + key) * D + threadIdx.x % LANES * 8));
    }
    await_previous();
    for (int i = threadIdx.x; i < G * D; i += 128) {
        const bf16 *bias = bias_q ? bias_q + (kv * G + i / D) * D : nullptr;
        queries[i] = rotated<D>(q + (head * G + i / D) * D, bias, i % D, cos, sin) * factor;
    }
    if (from + count == len + 1 && threadIdx.x < D) {
        int i = threadIdx.x;
        float value = __bfloat162float(v[head * D + i]);
        if (bias_v) value = rounded(value + __bfloat162float(bias_v[kv * D + i]));
        keys[(size_t)len * D + i] =
            __float2bfloat16(rotated<D>(k + head * D, bias_k ? bias_k + kv * D : nullptr, i, cos, sin));
        values[(size_t)len * D + i] = __float2bfloat16(value);
    }
    __syncthreads();
    int lane = threadIdx.x % LANES, at = threadIdx.x / LANES;
    {
        float mine[G][8];
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
            for (int i = 0; i < 8; i++) mine[g][i] = queries[g * D + lane * 8 + i];
#pragma unroll 4
        for (int base = 0; base < count; base += KEYS) { // all lanes go round together, for the shuffles
            int key = base + at;
            Eight e = load8(keys + (size_t)(from + min(key, count - 1)) * D + lane * 8);
#pragma unroll
            for (int g = 0; g < G; g++) {
                float s = 0.f;
#pragma unroll
                for (int i = 0; i < 8; i++) s += mine[g][i] * e.x[i];
#pragma unroll
                for (int off = LANES / 2; off > 0; off >>= 1) s += __shfl_xor_sync(~0u, s, off);
                if (lane == 0 && key < count) scores[g * chunk + key] = s;
            }
        }
    }
    __syncthreads();
    for (int g = threadIdx.x / 32; g < G; g += 4) {
        float most = -INFINITY, sum = 0.f;
        for (int key = threadIdx.x % 32; key < count; key += 32) most = fmaxf(most, scores[g * chunk + key]);
#pragma unroll
        for (int off = 16; off > 0; off >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, off));
        for (int key = threadIdx.x % 32; key < count; key += 32) {
            float p = exp2f(scores[g * chunk + key] - most);
            scores[g * chunk + key] = p;
            sum += p;
        }
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) stats[2 * g] = most, stats[2 * g + 1] = sum;
    }
    __syncthreads();
    float out[G][8];
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int i = 0; i < 8; i++) out[g][i] = 0.f;
#pragma unroll 4
    for (int key = at; key < count; key += KEYS) {
        Eight e = load8(values + (size_t)(from + key) * D + lane * 8);
#pragma unroll
        for (int g = 0; g < G; g++) {
            float p = scores[g * chunk + key];
#pragma unroll
            for (int i = 0; i < 8; i++) out[g][i] += p * e.x[i];
        }
    }
    int warp = threadIdx.x / 32;
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float x = out[g][i];
#pragma unroll
            for (int off = LANES; off < 32; off <<= 1) x += __shfl_xor_sync(~0u, x, off);
            if (threadIdx.x % 32 < LANES) sums[(warp * G + g) * D + lane * 8 + i] = x;
        }
    __syncthreads();
    float *mine = scratch + ((head * gridDim.z) + blockIdx.z) * G * (D + 2);
    for (int i = threadIdx.x; i < G * D; i += 128) {
        float x = sums[i] + sums[G * D + i] + sums[2 * G * D + i] + sums[3 * G * D + i];
        if (pieces == 1)
            o[head * G * D + i] = __float2bfloat16(x / stats[2 * (i / D) + 1]);
        else
            mine[i] = x;
    }
    if (pieces == 1) return;
    if (threadIdx.x < 2 * G) mine[G * D + threadIdx.x] = stats[threadIdx.x];
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(done + head, 1) == (unsigned)(pieces - 1);
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (threadIdx.x == 0) done[head] = 0;
    // each piece's share of each head, where the scores were; then all pieces' terms, many loads at once
    const float *all = scratch + head * gridDim.z * G * (D + 2);
    for (int g = threadIdx.x / 32; g < G; g += 4) {
        float most = -INFINITY, sum = 0.f;
        for (int p = threadIdx.x % 32; p < pieces; p += 32) {
            float m = __ldcg(all + p * G * (D + 2) + G * D + 2 * g);
            scores[g * chunk + p] = m;
            most = fmaxf(most, m);
        }
#pragma unroll
        for (int off = 16; off > 0; off >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, off));
        for (int p = threadIdx.x % 32; p < pieces; p += 32) {
            float share = exp2f(scores[g * chunk + p] - most);
            scores[g * chunk + p] = share;
            sum += share * __ldcg(all + p * G * (D + 2) + G * D + 2 * g + 1);
        }
        sum = warp_sum(sum);
        for (int p = threadIdx.x % 32; p < pieces; p += 32) scores[g * chunk + p] /= sum;
    }
    __syncthreads();
    constexpr int EACH = (G * D + 127) / 128;
    float joined[EACH];
#pragma unroll
    for (int j = 0; j < EACH; j++) joined[j] = 0.f;
#pragma unroll 4
    for (int p = 0; p < pieces; p++) {
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            int i = threadIdx.x + j * 128;
            if (i < G * D) joined[j] += scores[i / D * chunk + p] * __ldcg(all + p * G * (D + 2) + i);
        }
    }
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        int i = threadIdx.x + j * 128;
        if (i < G * D) o[head * G * D + i] = __float2bfloat16(joined[j]);
    }
}

#define ATTEND(D, G)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(128) attend_one_##D##_##G(                                            \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *bias_q, const bf16 *bias_k, const bf16 *bias_v,       \
        const float *cos, const float *sin, bf16 *cache_k, bf16 *cache_v, const int *lens, const int *places, bf16 *o, \
        float *scratch, unsigned *done, int kv_heads, int capacity, int chunk, float factor) {                         \
        attend_one<D, G>(q, k, v, bias_q, bias_k, bias_v, cos, sin, cache_k, cache_v, lens, places, o, scratch, done,  \
                         kv_heads, capacity, chunk, factor);                                                           \
    }
#define ATTENDS(D)                                                                                                     \
    ATTEND(D, 1) ATTEND(D, 2) ATTEND(D, 3) ATTEND(D, 4) ATTEND(D, 5) ATTEND(D, 6) ATTEND(D, 7) ATTEND(D, 8)
ATTENDS(64)
ATTENDS(128)

// Chooses a token from each row of logits and moves the row on. Temperature 0: the largest, the first of equals;
// else the first whose running sum of e^((z - max) / T) passes uniform * total. said[row] = (token, bits of its
// log-probability at the temperature, or at 1 when greedy). lens[row] < 0 rests. 1024 threads, a stretch of the
// vocabulary each; uniforms [rows, steps] are taken by steps[row].
extern "C" __global__ void __launch_bounds__(1024) choose(const bf16 *logits, const double *uniforms, int *steps,
                                                          int *lens, uint32_t *tokens, uint32_t *said, int vocab,
                                                          int table, float temperature) {
    allow_next();
    await_previous();
    int row = blockIdx.x;
    if (lens[row] < 0) return;
    const bf16 *z = logits + (size_t)row * vocab;
    float inverse = temperature > 0.f ? 1.f / temperature : 1.f;
    __shared__ float warp_most[32];
    __shared__ int warp_first[32];
    __shared__ double shares[1024];
    int vectors = vocab / 8, per = (vectors + 1023) / 1024;
    int begin = min(vectors, (int)threadIdx.x * per), end = min(vectors, begin + per);
    float most = -INFINITY;
    int first = 0;
#pragma unroll 5
    for (int v = threadIdx.x; v < vectors; v += 1024) {
        Eight e = load8(z + v * 8);
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (e.x[i] > most) most = e.x[i], first = v * 8 + i;
    }
#pragma unroll
    for (int off = 16; off > 0; off >>= 1) {
        float other = __shfl_xor_sync(~0u, most, off);
        int place = __shfl_xor_sync(~0u, first, off);
        if (other > most || (other == most && place < first)) most = other, first = place;
    }
    if (threadIdx.x % 32 == 0) warp_most[threadIdx.x / 32] = most, warp_first[threadIdx.x / 32] = first;
    __syncthreads();
    for (int i = 0; i < 32; i++)
        if (i == 0 || warp_most[i] > most || (warp_most[i] == most && warp_first[i] < first))
            most = warp_most[i], first = warp_first[i];
    double share = 0.0;
#pragma unroll 5
    for (int v = begin; v < end; v++) {
        Eight e = load8(z + v * 8);
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) sum += __expf((e.x[i] - most) * inverse);
        share += sum;
    }
    shares[threadIdx.x] = share;
    __syncthreads();
    // running sums: shares[t] becomes the sum up to and with t
    for (int off = 1; off < 1024; off <<= 1) {
        double before = threadIdx.x >= off ? shares[threadIdx.x - off] : 0.0;
        __syncthreads();
        shares[threadIdx.x] += before;
        __syncthreads();
    }
    double total = shares[1023];
    __shared__ int chosen;
    if (threadIdx.x == 0) chosen = first;
    __syncthreads();
    if (temperature > 0.f) {
        double goal = uniforms[(size_t)row * table + steps[row]] * total;
        double low = threadIdx.x ? shares[threadIdx.x - 1] : 0.0, high = shares[threadIdx.x];
        // the thread whose stretch holds the goal; the last with a share where rounding puts the goal at the end
        if (begin < end && low <= goal && goal < high) {
            double sum = low;
            int found = end * 8 - 1;
            for (int v = begin; v < end && found == end * 8 - 1; v++) {
                Eight e = load8(z + v * 8);
                for (int i = 0; i < 8; i++) {
                    sum += __expf((e.x[i] - most) * inverse);
                    if (sum > goal) {
                        found = v * 8 + i;
                        break;
                    }
                }
            }
            chosen = found;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        float logprob = (__bfloat162float(z[chosen]) - most) * inverse - (float)log(total);
        tokens[row] = (uint32_t)chosen;
        said[2 * row] = (uint32_t)chosen;
        said[2 * row + 1] = __float_as_uint(logprob);
        steps[row] += 1;
        lens[row] += 1;
    }
}
