// A whole step of one row without low-rank pairs as one kernel: a block on each multiprocessor goes through all layers.
// What blocks tell each other carries a mark with it, so that nobody waits for a barrier of all; and a pass's first
// weights are on their way into shared memory while its input is waited for.
#include "common.cuh"

constexpr int WARPS = 16, THREADS = 32 * WARPS;
constexpr int SPAN = 128; // vectors of a slot of a warp's ring: four of each lane
constexpr int SLOTS = 3;  // of a ring: more would stand in the way of what blocks tell each other
constexpr int PIECES = 8; // of a head's keys, at most
constexpr int QKV = 0, O = 1, GATED = 2, DOWN = 3, PASSES = 4, HEAD = 4;

// Addresses of a layer, in the order of one.rs; biases may be none.
struct Layer {
    const bf16 *q, *k, *v, *o, *gate, *up, *down, *input_norm, *post_norm, *bias_q, *bias_k, *bias_v;
    bf16 *keys, *values;
};

struct Sizes {
    int layers, hidden, ffn, heads, kv_heads, vocab, capacity, chunk;
};

__device__ __forceinline__ float2 unpacked(unsigned pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
__device__ __forceinline__ unsigned packed(float a, float b) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<unsigned *>(&pair);
}

// Post between blocks: 32 bits and the mark of what they belong to, written and read at once. A box is written again
// only two passes later: who writes then has heard, by way of all blocks, from everybody who read it.
struct Box {
    unsigned content, mark;
};
__device__ __forceinline__ void send(Box *box, unsigned content, unsigned mark) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(box), "l"((uint64_t)mark << 32 | content) : "memory");
}
// Two neighbours, and whether both have come.
__device__ __forceinline__ bool come(const Box *boxes, unsigned mark, unsigned &a, unsigned &b) {
    uint64_t x, y;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(x), "=l"(y) : "l"(boxes) : "memory");
    a = (unsigned)x, b = (unsigned)y;
    return (unsigned)(x >> 32) == mark && (unsigned)(y >> 32) == mark;
}
// An even number of boxes into shared memory; `see` gets each two that this thread brings.
template <class See>
__device__ __forceinline__ void receive(int tid, unsigned *to, const Box *from, int boxes, unsigned mark, See see) {
#pragma unroll 1
    for (int i = 2 * tid; i < boxes; i += 8 * THREADS) {
        uint2 got[4];
        while (!come(from + i, mark, got[0].x, got[0].y)) {} // the first alone: many who ask are in each other's way
        bool all;
        do {
            all = true;
#pragma unroll
            for (int j = 1; j < 4; j++)
                if (i + 2 * THREADS * j < boxes) all &= come(from + i + 2 * THREADS * j, mark, got[j].x, got[j].y);
        } while (!all);
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i + 2 * THREADS * j < boxes) {
                *reinterpret_cast<uint2 *>(to + i + 2 * THREADS * j) = got[j];
                see(got[j].x, got[j].y);
            }
    }
}

// A pass over matrices. Pairs of rows go round the blocks, a block's rows round its warps: one by one, or by two where
// there are many, gate with up and neighbours of the head.
struct Kind {
    int rows, vectors, local; // all rows, vectors of one, rows of this block

    __device__ void set(int all, int width) {
        int pairs = all / 2;
        rows = all, vectors = width / 8;
        local = 2 * (pairs / gridDim.x + (blockIdx.x < pairs % gridDim.x));
    }
    __device__ __forceinline__ static int pair(int i) { return i * gridDim.x + blockIdx.x; }
    __device__ __forceinline__ static int row(int i) { return 2 * pair(i >> 1) + (i & 1); }
};

// A warp's weights of a pass in the order in which it needs them, through a ring of slots in shared memory. A lane
// reads what it has fetched itself, so that nobody waits for another.
struct Stream {
    const Kind *kinds;
    const bf16 *head, *row[2];
    const Layer *layer;
    unsigned ring, filled = 0, taken = 0; // the lane's place in shared memory; bytes beyond it
    int lane, what, i, units, vectors, at;
    bool second = false;

    __device__ __forceinline__ Stream(const Kind *kinds, const bf16 *head, const uint4 *memory, int tid)
        : kinds(kinds), head(head),
          ring(__cvta_generic_to_shared(memory + (tid >> 5) * SLOTS * SPAN + (tid & 31))), lane(tid & 31) {}
    __device__ __forceinline__ bool two() const { return what == GATED || what == HEAD; }
    // To a pass, whose first weights are asked for.
    __device__ __forceinline__ void begin(int pass, const Layer *of, int warp) {
        what = pass, layer = of, i = warp, at = 0;
        units = kinds[what].local >> (what == HEAD), vectors = kinds[what].vectors;
        if (i < units) seek();
#pragma unroll 1
        for (int slot = 0; slot < SLOTS; slot++) fill();
    }
    __device__ __forceinline__ void seek() {
        int from = what == HEAD ? 2 * Kind::pair(i) : Kind::row(i);
        const bf16 *matrix = head, *other = head + 8 * vectors;
        if (what == QKV) {
            int q = kinds[O].vectors * 8, k = q + (kinds[QKV].rows - q) / 2;
            matrix = from < q ? layer->q : from < k ? layer->k : layer->v;
            from -= from < q ? 0 : from < k ? q : k;
        } else if (what != HEAD) {
            matrix = what == O ? layer->o : what == GATED ? layer->gate : layer->down, other = layer->up;
        }
        size_t offset = ((size_t)from * vectors + lane) * 8;
        row[0] = matrix + offset, row[1] = other + offset;
    }
    __device__ __forceinline__ void fill() {
        if (i < units) {
            const bf16 *from = (second ? row[1] : row[0]) + at * 8;
#pragma unroll
            for (int j = 0; j < SPAN; j += 32)
                if (at + lane + j < vectors)
                    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(ring + filled + j * 16),
                                 "l"(from + j * 8)
                                 : "memory");
            second = !second && two();
            if (!second && (at += SPAN) >= vectors) {
                at = 0, i += WARPS;
                if (i < units) seek();
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        if ((filled += SPAN * 16) == SLOTS * SPAN * 16) filled = 0;
    }
    // The lane's place in the next slot, which has come.
    __device__ __forceinline__ unsigned take() {
        asm volatile("cp.async.wait_group %0;" ::"n"(SLOTS - 1) : "memory");
        unsigned slot = ring + taken;
        if ((taken += SPAN * 16) == SLOTS * SPAN * 16) taken = 0;
        return slot;
    }
};

__device__ __forceinline__ uint4 shared16(unsigned address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

__device__ __forceinline__ void mma(float (&c)[4], const uint4 &a, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// The block's rows of a pass, N at once, times `in`, into `sums`. On the tensor cores, which take bf16 as it is: the
// weights of a slot are matrices of 16 rows, four lanes a row; `in` is the columns of another; the product's diagonal
// is what is wanted.
template <int N>
__device__ __forceinline__ void products(Stream &stream, int tid, const unsigned *in, float *sums) {
    int lane = tid & 31, held = -1, vectors = stream.vectors, units = stream.units;
    unsigned input = __cvta_generic_to_shared(in);
    uint4 x[SPAN / 32];
#pragma unroll 1
    for (int i = tid >> 5; i < units; i += WARPS) {
        float low[N][4] = {}, high[N][4] = {};
#pragma unroll 1
        for (int at = 0; at < vectors; at += SPAN) {
            if (at != held) {
#pragma unroll
                for (int j = 0; j < SPAN / 32; j++) {
                    x[j] = make_uint4(0, 0, 0, 0); // against what a slot holds beyond the row's end
                    if (at + lane + 32 * j < vectors) x[j] = shared16(input + (at + lane + 32 * j) * 16);
                }
                held = at;
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                unsigned slot = stream.take();
                uint4 w[SPAN / 32];
#pragma unroll
                for (int j = 0; j < SPAN / 32; j++) w[j] = shared16(slot + 512 * j);
#pragma unroll
                for (int j = 0; j < SPAN / 32; j++) {
                    mma(low[n], w[j], x[j].x, x[j].z);
                    mma(high[n], w[j], x[j].y, x[j].w);
                }
                stream.fill();
            }
        }
        // row r of a product lies on lanes 4 r to 4 r + 3, two columns each
        float sum[N];
#pragma unroll
        for (int n = 0; n < N; n++) {
            sum[n] = lane & 4 ? low[n][1] + high[n][3] : low[n][0] + high[n][2];
            if (lane >> 3 != (lane & 3)) sum[n] = 0.f;
        }
#pragma unroll
        for (int n = 0; n < N; n++) sum[n] = warp_sum(sum[n]);
        if (lane < N) sums[i * N + lane] = lane ? sum[N - 1] : sum[0];
    }
}

// Norms what `in` holds in place, rounded; `squares` are this thread's. Every block does it anew: it is tiny.
__device__ __forceinline__ void norm(int tid, unsigned *in, const bf16 *gain, unsigned first_gain, int width,
                                     float squares, float eps) {
    __shared__ __align__(16) float part[WARPS];
    squares = warp_sum(squares);
    if ((tid & 31) == 0) part[tid >> 5] = squares;
    __syncthreads();
    squares = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w += 4) {
        float4 four = *reinterpret_cast<const float4 *>(part + w);
        squares += (four.x + four.y) + (four.z + four.w);
    }
    float r = rsqrtf(squares / width + eps);
#pragma unroll 1
    for (int i = tid; i < width / 2; i += THREADS) {
        float2 x = unpacked(in[i]);
        float2 g = unpacked(i == tid ? first_gain : __ldg(reinterpret_cast<const unsigned *>(gain) + i));
        in[i] = packed(x.x * (r * g.x), x.y * (r * g.y));
    }
}

// Number i of a head, turned by its place and rounded.
template <int D>
__device__ __forceinline__ float turned(const bf16 *x, const float *turns, int i) {
    float here = __bfloat162float(x[i]), there = __bfloat162float(x[i ^ (D / 2)]);
    int j = i & (D / 2 - 1);
    return rounded(here * turns[j] + (i < D / 2 ? -there : there) * turns[D / 2 + j]);
}

// A query head over `count` keys from `from` on, of len + 1 in all; the last of which is new, and goes into the cache
// if `keeps`. To `out`: D weighted sums of values, the sum of weights, the largest score. D / 8 threads a key, each
// group of them with sums of its own, which are joined at the end. What the cache holds is on its way before `wait` has
// brought the query and the new key and value to shared memory.
template <int D, class Wait>
__device__ __forceinline__ void attend(int tid, const float *query_of, const bf16 *fresh, bf16 *keys, bf16 *values,
                                       bool keeps, int len, int from, int count, Box *out, unsigned mark, Wait wait) {
    constexpr int LANES = D / 8, KEYS = THREADS / LANES;
    __shared__ float joined[WARPS * (D + 2)];
    const float factor = 1.44269504f * rsqrtf(D); // for powers of two
    int lane = tid % LANES, at = tid / LANES;
    keys += (size_t)from * D + lane * 8;
    values += (size_t)from * D + lane * 8;
    uint4 key = make_uint4(0, 0, 0, 0), value = key;
    auto fetch = [&](int i) {
        key = *reinterpret_cast<const uint4 *>(keys + (size_t)i * D);
        value = *reinterpret_cast<const uint4 *>(values + (size_t)i * D);
    };
    if (at < count && from + at < len) fetch(at);
#pragma unroll 1
    for (int i = at + KEYS; i < count; i += KEYS) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(keys + (size_t)i * D));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(values + (size_t)i * D));
    }
    wait();
    float query[8];
#pragma unroll
    for (int c = 0; c < 8; c++) query[c] = query_of[lane * 8 + c] * factor;
    float most = -1e30f, sum = 0.f, mine[8] = {};
#pragma unroll 1
    for (int base = 0; base < count; base += KEYS) { // all lanes go round together, for the shuffles
        int i = base + at;
        if (i < count && from + i == len) {
            key = *reinterpret_cast<const uint4 *>(fresh + lane * 8);
            value = *reinterpret_cast<const uint4 *>(fresh + D + lane * 8);
            if (keeps) {
                *reinterpret_cast<uint4 *>(keys + (size_t)i * D) = key;
                *reinterpret_cast<uint4 *>(values + (size_t)i * D) = value;
            }
        }
        Eight a = eight(key), b = eight(value);
        if (i + KEYS < count && from + i + KEYS < len) fetch(i + KEYS);
        float score = 0.f;
#pragma unroll
        for (int c = 0; c < 8; c++) score += query[c] * a.x[c];
#pragma unroll
        for (int off = LANES / 2; off > 0; off >>= 1) score += __shfl_xor_sync(~0u, score, off);
        if (i < count) {
            float more = fmaxf(most, score), keep = exp2f(most - more), p = exp2f(score - more);
            most = more;
            sum = sum * keep + p;
#pragma unroll
            for (int c = 0; c < 8; c++) mine[c] = mine[c] * keep + p * b.x[c];
        }
    }
    float more = most;
#pragma unroll
    for (int off = LANES; off < 32; off <<= 1) more = fmaxf(more, __shfl_xor_sync(~0u, more, off));
    float keep = exp2f(most - more);
    sum *= keep;
#pragma unroll
    for (int c = 0; c < 8; c++) mine[c] *= keep;
#pragma unroll
    for (int off = LANES; off < 32; off <<= 1) {
        sum += __shfl_xor_sync(~0u, sum, off);
#pragma unroll
        for (int c = 0; c < 8; c++) mine[c] += __shfl_xor_sync(~0u, mine[c], off);
    }
    float *own = joined + (tid >> 5) * (D + 2);
    if ((tid & 31) < LANES)
#pragma unroll
        for (int c = 0; c < 8; c++) own[lane * 8 + c] = mine[c];
    if ((tid & 31) == 0) own[D] = sum, own[D + 1] = more;
    __syncthreads();
    if (tid < (D + 2 + 31) / 32 * 32) {
        float best = joined[(tid & (WARPS - 1)) * (D + 2) + D + 1], all = warp_max(best);
        float share = exp2f(best - all), x = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) x += __shfl_sync(~0u, share, w) * joined[w * (D + 2) + min(tid, D)];
        if (tid < D + 2) send(out + tid, __float_as_uint(tid > D ? all : x), mark);
    }
    __syncthreads();
}

// The heads' results from their pieces, rounded, into shared memory; two numbers a thread.
template <int D>
__device__ __forceinline__ void join(int tid, unsigned *to, const Box *boxes, int width, int pieces, unsigned mark) {
    int lane = tid & 31;
#pragma unroll 1
    for (int i = tid; i < width / 2; i += THREADS) { // a warp's numbers are of one head, and it is whole
        const Box *of = boxes + (size_t)(2 * i / D) * pieces * (D + 2);
        unsigned x[PIECES], y[PIECES], sum = 0, most = __float_as_uint(-1e30f);
        if (lane < pieces)
            while (!come(of + lane * (D + 2) + D, mark, sum, most)) {}
        bool all;
        do {
            all = true;
#pragma unroll
            for (int p = 0; p < PIECES; p++)
                if (p < pieces) all &= come(of + p * (D + 2) + 2 * i % D, mark, x[p], y[p]);
        } while (!all);
        __syncwarp();
        float share = exp2f(__uint_as_float(most) - warp_max(__uint_as_float(most)));
        share /= warp_sum(share * __uint_as_float(sum));
        float a = 0.f, b = 0.f;
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            float part = __shfl_sync(~0u, share, p);
            if (p < pieces) a += part * __uint_as_float(x[p]), b += part * __uint_as_float(y[p]);
        }
        to[i] = packed(a, b);
    }
}

template <int D>
__device__ __forceinline__ void one(const Layer *all_layers, const bf16 *embed, const bf16 *last_norm, const bf16 *head,
                                    const uint32_t *tokens, const float *cos, const float *sin, const int *lens,
                                    const int *places, bf16 *logits, Box *boxes, Sizes s, float eps) {
    extern __shared__ __align__(16) uint4 memory[];
    __shared__ Kind kinds[PASSES + 1];
    __shared__ __align__(16) bf16 raw[3 * D], fresh[2 * D];
    __shared__ float query[D], turns[D];
    int len = lens[0], width = s.heads * D, kv_width = s.kv_heads * D, pieces = len / s.chunk + 1, tid;
    if (len < 0) return; // the row rests
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(tid)); // once: it is slow to read, and else would be read again
    unsigned *in = reinterpret_cast<unsigned *>(memory + SLOTS * WARPS * SPAN);
    Layer *layers = reinterpret_cast<Layer *>(in + max(max(width, s.hidden), s.ffn) / 2);
    float *sums = reinterpret_cast<float *>(layers + s.layers);
    if (tid == 0) {
        kinds[QKV].set(width + 2 * kv_width, s.hidden);
        kinds[O].set(s.hidden, width);
        kinds[GATED].set(s.ffn, s.hidden);
        kinds[DOWN].set(s.hidden, s.ffn);
        kinds[HEAD].set(s.vocab, s.hidden);
    }
#pragma unroll 1
    for (int i = tid; i < s.layers * (int)(sizeof(Layer) / 8); i += THREADS)
        reinterpret_cast<uint64_t *>(layers)[i] = reinterpret_cast<const uint64_t *>(all_layers)[i];
#pragma unroll 1
    for (int i = tid; i < SLOTS * WARPS * SPAN; i += THREADS) memory[i] = make_uint4(0, 0, 0, 0); // no NaN at first
    if (tid < D) turns[tid] = (tid < D / 2 ? cos : sin)[(size_t)len * (D / 2) + tid % (D / 2)];
    __syncthreads();
    Stream stream(kinds, head, memory, tid);
    stream.begin(QKV, layers, tid >> 5);
    Box *xs = boxes, *qkv = xs + s.hidden / 2, *acts = qkv + width / 2 + kv_width, *attended = acts + s.ffn / 2;
    const bf16 *embedding = embed + (size_t)tokens[0] * s.hidden;
    size_t place = (size_t)places[0] * s.kv_heads * s.capacity * D;
    int row = Kind::row(tid), group = s.heads / s.kv_heads; // row: the one that this thread finishes
    float own = row < s.hidden ? __bfloat162float(embedding[row]) : 0.f; // its number of x
    unsigned mark = (unsigned)(len + 1) * 6 * (s.layers + 1); // its own for each step: five a layer, and lens grows
#pragma unroll 1
    for (int pass = 0; pass <= PASSES * s.layers; pass++) {
        const Layer &layer = layers[pass / PASSES];
        int what = pass == PASSES * s.layers ? HEAD : pass % PASSES, local = kinds[what].local;
        bf16 bias = __float2bfloat16(0.f);
        if (what == O) {
            mark++;
#pragma unroll 1
            for (int item = blockIdx.x; item < s.heads * pieces; item += gridDim.x) {
                int h = item / pieces, kv = h / group, begin = item % pieces * s.chunk;
                int count = min(s.chunk, len + 1 - begin);
                size_t cached = place + (size_t)kv * s.capacity * D;
                attend<D>(tid, query, fresh, layer.keys + cached, layer.values + cached, h % group == 0, len, begin,
                          count, attended + (size_t)item * (D + 2), mark, [&] {
                              // four numbers a thread: the query, and for the last key the new key and value
                              int which = tid / (D / 4);
                              int first = which == 0 ? h : s.heads + (which - 1) * s.kv_heads + kv;
                              if (which < (begin + count > len ? 3 : 1)) {
                                  uint2 got;
                                  while (!come(qkv + first * (D / 2) + tid % (D / 4) * 2, mark - 1, got.x, got.y)) {}
                                  reinterpret_cast<uint2 *>(raw)[tid] = got;
                              }
                              __syncthreads();
                              if (tid < D)
                                  query[tid] = turned<D>(raw, turns, tid);
                              else if (tid < 2 * D)
                                  fresh[tid - D] = __float2bfloat16(turned<D>(raw + D, turns, tid - D));
                              else if (tid < 3 * D)
                                  fresh[tid - D] = raw[tid];
                              __syncthreads();
                          });
            }
        }
        if (!local) {
            // none of its rows are this block's
        } else if (what == O) {
            join<D>(tid, in, attended, width, pieces, mark);
        } else if (what == DOWN) {
            receive(tid, in, acts, s.ffn / 2, mark, [](unsigned, unsigned) {});
        } else {
            const bf16 *gain = what == QKV ? layer.input_norm : what == GATED ? layer.post_norm : last_norm;
            unsigned first_gain = __ldg(reinterpret_cast<const unsigned *>(gain) + min(tid, s.hidden / 2 - 1));
            if (what == QKV && tid < local) {
                int at = row;
                const bf16 *biases = layer.bias_q;
                if (at >= width) at -= width, biases = at < kv_width ? layer.bias_k : layer.bias_v, at %= kv_width;
                if (biases) bias = biases[at];
            }
            float squares = 0.f;
            auto see = [&](unsigned a, unsigned b) {
                float2 x = unpacked(a), y = unpacked(b);
                squares += x.x * x.x + x.y * x.y + y.x * y.x + y.y * y.y;
            };
            if (pass) {
                receive(tid, in, xs, s.hidden / 2, mark, see);
            } else {
#pragma unroll 1
                for (int i = tid; i < s.hidden / 4; i += THREADS) {
                    uint2 four = reinterpret_cast<const uint2 *>(embedding)[i];
                    reinterpret_cast<uint2 *>(in)[i] = four;
                    see(four.x, four.y);
                }
            }
            norm(tid, in, gain, first_gain, s.hidden, squares, eps);
        }
        __syncthreads();
        if (what == GATED || what == HEAD)
            products<2>(stream, tid, in, sums);
        else
            products<1>(stream, tid, in, sums);
        __syncthreads();
        if (what == HEAD) {
#pragma unroll 1
            for (int i = tid; 2 * i < local; i += THREADS)
                reinterpret_cast<unsigned *>(logits)[Kind::pair(i)] = packed(sums[2 * i], sums[2 * i + 1]);
            return;
        }
        mark++;
        if ((tid & ~31) < local) { // a thread a row, whole warps for the shuffle
            float y = 0.f;
            if (tid >= local) {
            } else if (what == QKV) {
                y = rounded(sums[tid]) + __bfloat162float(bias);
            } else if (what == GATED) {
                float a = rounded(sums[2 * tid]);
                y = __fdividef(a, 1.f + __expf(-a)) * rounded(sums[2 * tid + 1]);
            } else {
                y = own = rounded(own + sums[tid]);
            }
            float next = __shfl_down_sync(~0u, y, 1);
            Box *to = what == QKV ? qkv : what == GATED ? acts : xs;
            if (tid < local && tid % 2 == 0) send(to + row / 2, packed(y, next), mark);
        }
        __syncthreads(); // what the others wait for goes first
        pass + 1 == PASSES * s.layers ? stream.begin(HEAD, nullptr, tid >> 5)
                                      : stream.begin((pass + 1) % PASSES, layers + (pass + 1) / PASSES, tid >> 5);
    }
}

#define ONE(D)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                           \
        one_##D(const Layer *layers, const bf16 *embed, const bf16 *norm, const bf16 *head, const uint32_t *tokens,    \
                const float *cos, const float *sin, const int *lens, const int *places, bf16 *logits, Box *boxes,      \
                int count, int hidden, int ffn, int heads, int kv_heads, int vocab, int capacity, int chunk,           \
                float eps) {                                                                                           \
        Sizes s = {count, hidden, ffn, heads, kv_heads, vocab, capacity, chunk};                                       \
        one<D>(layers, embed, norm, head, tokens, cos, sin, lens, places, logits, boxes, s, eps);                      \
    }
ONE(64)
ONE(128)
