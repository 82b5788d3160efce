/* One timestep of a tower with its zips on a CPU, in float32: what single_step.py does, without an operator call
   for each product. Rows are independent, so that threads take rows of their own: those of OpenMP, which PyTorch
   has, too (two pools of threads would wait for each other's cores). Struct fields are those of native_step.py, in
   the same order. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* LANES floats are one vector register; BATCH_ROWS x 4 of them hold a tile of a product. */
#if defined(__AVX512F__)
#define LANES 16
#define BATCH_ROWS 6
#elif defined(__AVX__)
#define LANES 8
#define BATCH_ROWS 2
#else
#define LANES 4
#define BATCH_ROWS 4
#endif
#define TILE (4 * LANES) /* columns of a packed weight that lie together */

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    const float *weight;   /* packed: [ceil(outputs / TILE), inputs, TILE], the last tile padded with zeros */
    const float *bias;     /* [outputs] or NULL */
    long inputs, outputs;
} Product;

typedef struct {
    const float *weight;   /* [width] */
    float eps;
} Norm;

typedef struct {
    float *key, *value;    /* [B, heads, capacity, size] */
    const float *bias;     /* additive, row r at bias + r * bias_stride */
    long capacity, timesteps, bias_stride;
} KeyValue;

typedef struct {
    long is_zip;
    long heads, kv_heads, size;
    Norm norm, feed_forward_norm, query_norm, key_norm; /* the last two of a layer; weight NULL: none */
    Product into, out;     /* qkv of a layer, the query of a zip */
    Product widen, narrow; /* gate and up of a layer */
    float attention_gate, feed_forward_gate;
    KeyValue kv;
    const unsigned char *has_source; /* [B] or NULL: all rows have one */
    long first_of_stage;   /* of zips: whether x is the state before the stage */
} Block;

typedef struct {
    long width, blocks, at;           /* at: the timestep that is written */
    const Block *block;
    const float *cos, *sin;           /* rotation of the layers [B, size], sin with its sign */
    const float *zip_cos, *zip_sin;   /* of the zips' queries, or NULL */
    Norm finish;
} Step;

long tile(void) { return TILE; }

/* y [rows, outputs] = add * y + scale * (x [rows, inputs] @ weight + bias); strides in floats. */
static inline __attribute__((always_inline)) void product_tile(
    const int rows, const float *x, long x_stride, const float *w, long inputs, float *y, long y_stride,
    const float *bias, long columns, float scale, int add)
{
    Vector sum[BATCH_ROWS][4];
    float out[TILE];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) sum[r][v] = (Vector){0};
    for (long i = 0; i < inputs; i++, w += TILE) {
        const Vector *column = (const Vector *)w;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const float one = x[r * x_stride + i];
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sum[r][v] += one * column[v];
        }
    }
    for (int r = 0; r < rows; r++) {
        float *to = y + r * y_stride;
        memcpy(out, sum[r], sizeof out);
        for (long c = 0; c < columns; c++) {
            const float value = scale * (bias ? out[c] + bias[c] : out[c]);
            to[c] = add ? to[c] + value : value;
        }
    }
}

/* The columns of a tile, from `start` on. */
static void product_columns(const Product *p, long start, long rows, const float *x, long x_stride, float *y,
                            long y_stride, float scale, int add)
{
    const float *w = p->weight + start * p->inputs, *bias = p->bias ? p->bias + start : NULL;
    const long columns = p->outputs - start < TILE ? p->outputs - start : TILE;
    long r = 0;
    for (; r + BATCH_ROWS <= rows; r += BATCH_ROWS)
        product_tile(BATCH_ROWS, x + r * x_stride, x_stride, w, p->inputs, y + r * y_stride + start, y_stride, bias,
                     columns, scale, add);
    for (; r < rows; r++)
        product_tile(1, x + r * x_stride, x_stride, w, p->inputs, y + r * y_stride + start, y_stride, bias, columns,
                     scale, add);
}

static void product(const Product *p, long rows, const float *x, long x_stride, float *y, long y_stride,
                    float scale, int add)
{
    for (long start = 0; start < p->outputs; start += TILE)
        product_columns(p, start, rows, x, x_stride, y, y_stride, scale, add);
}

/* x [rows, inputs] -> y [rows, outputs]; threads take columns of their own. */
void multiply(const Product *p, const float *x, float *y, long rows, long threads)
{
#pragma omp parallel for num_threads(threads)
    for (long start = 0; start < p->outputs; start += TILE)
        product_columns(p, start, rows, x, p->inputs, y, p->outputs, 1, 0);
}

static void normalise(const Norm *norm, long width, const float *x, float *y)
{
    float sum = 0;
    for (long i = 0; i < width; i++) sum += x[i] * x[i];
    const float scale = 1 / sqrtf(sum / width + norm->eps);
    for (long i = 0; i < width; i++) y[i] = x[i] * scale * norm->weight[i];
}

/* e^x in a form that compilers vectorise. Relative error: 1e-7 for |x| < 10, 2e-6 at the ends, where x is cut. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float n = rintf(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const int bits = ((int)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return (p * r * r + r + 1) * power;
}

/* The error function (Abramowitz and Stegun 7.1.26), to 6e-7. */
static inline float error_function(float x)
{
    const float t = 1 / (1 + 0.3275911f * fabsf(x));
    const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    return copysignf(1 - p * exponential(-x * x), x);
}

/* Rotate x [size], with halves paired. */
static void rotate(float *x, long size, const float *cos, const float *sin)
{
    const long half = size / 2;
    for (long i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] + b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* y [size]: attention of a query q [size] to keys and values [timesteps, size]. scores: room for the timesteps. */
static inline __attribute__((always_inline)) void attend_head(
    const long size, long timesteps, const float *q, const float *key, const float *value, const float *bias,
    float *restrict y, float *restrict scores)
{
    const float scale = 1 / sqrtf((float)size);
    float most = -INFINITY, sum = 0;
    for (long t = 0; t < timesteps; t++) {
        float dot = 0;
        for (long i = 0; i < size; i++) dot += q[i] * key[t * size + i];
        scores[t] = dot * scale + bias[t];
    }
    for (long t = 0; t < timesteps; t++) most = scores[t] > most ? scores[t] : most;
    for (long t = 0; t < timesteps; t++) {
        scores[t] = exponential(scores[t] - most);
        sum += scores[t];
    }
    for (long i = 0; i < size; i++) y[i] = 0;
    for (long t = 0; t < timesteps; t++)
        for (long i = 0; i < size; i++) y[i] += scores[t] * value[t * size + i];
    for (long i = 0; i < size; i++) y[i] /= sum;
}

/* y [heads, size]: attention of q [heads, size] to row r of the keys and values. */
static void attend(const Block *block, const float *q, long r, float *y, float *scores)
{
    const KeyValue *kv = &block->kv;
    const long size = block->size, group = block->heads / block->kv_heads;
    for (long head = 0; head < block->heads; head++, q += size, y += size) {
        const long at = (r * block->kv_heads + head / group) * kv->capacity * size;
        const float *key = kv->key + at, *value = kv->value + at, *bias = kv->bias + r * kv->bias_stride;
        if (size == 32) /* known sizes are unrolled */
            attend_head(32, kv->timesteps, q, key, value, bias, y, scores);
        else if (size == 64)
            attend_head(64, kv->timesteps, q, key, value, bias, y, scores);
        else
            attend_head(size, kv->timesteps, q, key, value, bias, y, scores);
    }
}

/* Queries, keys and values of a layer for rows from `start` on; keys and values go to timestep `at`. */
static void self_attention(const Step *step, const Block *block, long start, long rows, float *wide, long stride,
                           float *heads, long heads_stride, float *scores)
{
    const long size = block->size, query = block->heads * size, own = block->kv_heads * size;
    const KeyValue *kv = &block->kv;
    for (long r = 0; r < rows; r++) {
        float *q = wide + r * stride;
        const float *cos = step->cos + (start + r) * size, *sin = step->sin + (start + r) * size;
        for (long head = 0; head < block->heads + block->kv_heads; head++) {
            const Norm *norm = head < block->heads ? &block->query_norm : &block->key_norm;
            if (norm->weight) normalise(norm, size, q + head * size, q + head * size);
            rotate(q + head * size, size, cos, sin);
        }
        for (long head = 0; head < block->kv_heads; head++) {
            const long at = (((start + r) * block->kv_heads + head) * kv->capacity + step->at) * size;
            memcpy(kv->key + at, q + query + head * size, size * sizeof *q);
            memcpy(kv->value + at, q + query + own + head * size, size * sizeof *q);
        }
        attend(block, q, start + r, heads + r * heads_stride, scores);
    }
}

static void cross_attention(const Step *step, const Block *block, long start, long rows, float *wide, long stride,
                            float *heads, long heads_stride, float *scores)
{
    for (long r = 0; r < rows; r++) {
        float *q = wide + r * stride;
        for (long head = 0; step->zip_cos && head < block->heads; head++)
            rotate(q + head * block->size, block->size, step->zip_cos + (start + r) * block->size,
                   step->zip_sin + (start + r) * block->size);
        attend(block, q, start + r, heads + r * heads_stride, scores);
    }
}

/* SwiGLU of a layer or GELU of a zip, in place: [rows, 2 * inner] or [rows, inner] -> [rows, inner]. */
static void activate(int is_zip, long rows, long inner, float *wide, long stride)
{
    for (long r = 0; r < rows; r++) {
        float *x = wide + r * stride;
        if (is_zip)
            for (long i = 0; i < inner; i++) x[i] = 0.5f * x[i] * (1 + error_function(x[i] * 0.70710678f));
        else
            for (long i = 0; i < inner; i++) x[i] = x[i] / (1 + exponential(-x[i])) * x[inner + i];
    }
}

static long larger(long a, long b) { return a > b ? a : b; }

/* Rows from `start` on: x [B, width] becomes the states after the final norm. Returns 0, or 1 where there is no
   memory for it. */
static int run_rows(const Step *step, float *x, long start, long rows)
{
    const long width = step->width;
    long inner = 0, attended = 0, timesteps = 0;
    for (long b = 0; b < step->blocks; b++) {
        const Block *block = &step->block[b];
        inner = larger(inner, larger(block->into.outputs, block->widen.outputs));
        attended = larger(attended, block->heads * block->size);
        timesteps = larger(timesteps, block->kv.timesteps);
    }
    float *room = malloc((rows * (3 * width + inner + attended) + timesteps) * sizeof *room);
    if (!room) return 1;
    float *normed = room, *before = normed + rows * width, *y = before + rows * width;
    float *wide = y + rows * width, *heads = wide + rows * inner, *scores = heads + rows * attended;
    x += start * width;
    for (long b = 0; b < step->blocks; b++) {
        const Block *block = &step->block[b];
        float *state = x;
        if (block->is_zip) {
            if (block->first_of_stage) memcpy(before, x, rows * width * sizeof *x);
            if (!block->kv.timesteps) continue;
            memcpy(y, before, rows * width * sizeof *x);
            state = y;
        }
        for (long r = 0; r < rows; r++) normalise(&block->norm, width, state + r * width, normed + r * width);
        product(&block->into, rows, normed, width, wide, inner, 1, 0);
        (block->is_zip ? cross_attention : self_attention)(step, block, start, rows, wide, inner, heads, attended,
                                                           scores);
        product(&block->out, rows, heads, attended, state, width, block->attention_gate, 1);
        for (long r = 0; r < rows; r++)
            normalise(&block->feed_forward_norm, width, state + r * width, normed + r * width);
        product(&block->widen, rows, normed, width, wide, inner, 1, 0);
        activate(block->is_zip, rows, block->narrow.inputs, wide, inner);
        product(&block->narrow, rows, wide, inner, state, width, block->feed_forward_gate, 1);
        for (long r = 0; block->is_zip && r < rows; r++)
            if (!block->has_source || block->has_source[start + r])
                for (long i = 0; i < width; i++) x[r * width + i] += y[r * width + i] - before[r * width + i];
    }
    for (long r = 0; r < rows; r++) normalise(&step->finish, width, x + r * width, x + r * width);
    free(room);
    return 0;
}

/* All rows of x [rows, width], as `run_rows`, in so many threads. */
int run(const Step *step, float *x, long rows, long threads)
{
    int failed = 0;
#pragma omp parallel for num_threads(threads) reduction(| : failed)
    for (long part = 0; part < threads; part++) {
        const long start = rows * part / threads;
        failed |= run_rows(step, x, start, rows * (part + 1) / threads - start);
    }
    return failed;
}
